"""Keeps the libraries' own bars, greetings and advice off the user's terminal; what matters, Workbench says itself."""

from __future__ import annotations

import io
import logging
import os
import warnings
from contextlib import redirect_stdout
from importlib.util import find_spec


def quiet() -> None:
    """Silence transformers, PEFT and bitsandbytes below the level of errors, in this process."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("bitsandbytes", "peft", "accelerate", "transformers", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft|accelerate")


def hushed_gptqmodel() -> None:
    """Import GPTQModel, if it is there, without its greeting.

    PEFT and transformers import it by themselves sooner or later, and it greets on standard output, where `--json` writes.
    """
    if find_spec("gptqmodel") is None:
        return
    # Its pool of threads wants two, which it does not take by itself on a machine of two cores.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 1) // 2)))
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")  # kernels for GPUs, missed in loud words
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            from logbar import LogBar

            LogBar.shared().setLevel("ERROR")
            import gptqmodel  # noqa: F401
    finally:
        logging.disable(logging.NOTSET)
