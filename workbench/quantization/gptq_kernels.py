"""What GPTQModel can do on this machine. Importing it takes seconds, and it greets on standard output, so it is asked here only."""

from __future__ import annotations

from workbench.models.load import device
from workbench.models.quiet import hushed_gptqmodel
from workbench.recipe.schema import Gptq


def supported(model_type: str) -> bool:
    """Whether GPTQModel knows an architecture, by transformers' name of it."""
    hushed_gptqmodel()
    from gptqmodel.models.auto import SUPPORTED_MODELS

    return model_type in SUPPORTED_MODELS


def missing_kernel(section: Gptq) -> str | None:
    """Why no kernel here runs weights of this form; None where one does."""
    hushed_gptqmodel()
    import torch
    from gptqmodel.models._const import DEVICE
    from gptqmodel.utils.importer import select_quant_linear

    try:
        select_quant_linear(
            bits=section.bits,
            group_size=section.group_size,
            desc_act=section.desc_act,
            sym=section.sym,
            device=DEVICE(device()),
            pack_dtype=torch.int32,
        )
    except (ValueError, NotImplementedError, AssertionError, ImportError) as error:
        return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return None
