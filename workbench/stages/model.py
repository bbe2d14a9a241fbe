"""Stage `model`: the base model in one layout, whatever source it came from."""

from __future__ import annotations

import hashlib

from workbench.digest import file_digest
from workbench.models.facts import read_facts
from workbench.models.load import load_tokenizer
from workbench.models.prepare import from_folder, from_gguf, set_chat_template
from workbench.recipe.load import Loaded
from workbench.sources.fetch import Materialised
from workbench.sources.weights import check_weights
from workbench.stages.stage import Stage, Work


def model_stage(loaded: Loaded, source: Materialised) -> Stage:
    """The stage that prepares the base model of a recipe."""
    model = loaded.recipe.model
    template = loaded.file(model.chat_template) if model.chat_template else None
    is_gguf = source.path.suffix == ".gguf"

    def make(work: Work) -> dict[str, object]:
        check_weights(source.path)
        if is_gguf:
            from_gguf(source.path, work.staging, model.dtype)
        else:
            from_folder(source.path, work.staging, link=source.revision is not None)
        if template is not None:
            set_chat_template(work.staging, template)
        tokenizer = load_tokenizer(work.staging, trust_remote_code=model.trust_remote_code)
        facts = read_facts(work.staging)
        return {
            "origin": source.origin,
            "revision": source.revision,
            "source_digest": source.digest,
            "license": model.license,
            "dequantised_from_gguf": is_gguf,
            "parameters": facts.parameters,
            "architecture": facts.architecture,
            "chat_template": tokenizer.chat_template,
            "chat_template_sha256": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        }

    section = {
        "source": source.digest,
        "dtype": model.dtype if is_gguf else None,
        "license": model.license,
        "chat_template": file_digest(template) if template is not None and template.is_file() else None,
        "trust_remote_code": model.trust_remote_code,
    }
    return Stage("model", 1, section, make, libraries=("transformers", "gguf") if is_gguf else ())
