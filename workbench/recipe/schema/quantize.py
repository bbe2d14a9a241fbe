"""Sections `quantize` and `select`: copies of the model with fewer bits a weight, and which one to take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.recipe.schema.base import Fault, Fraction, Name, PathText, Positive, Section, Seed, agree


class Calibration(Section):
    """The texts on which rounding errors are weighed against each other. Their choice alone can move a model's quality a lot."""

    rows: Positive = Field(default=256, description="training rows, spread evenly over answers and lengths")
    max_length: Positive = Field(default=512, description="longer texts are cut to this many tokens")
    general: PathText | None = Field(
        default=None, description="file with general text to mix in: .txt with one text a line, or .jsonl with a field `text`"
    )
    general_share: Fraction = Field(default=0.25, description="share of `rows` taken from `general`, where it is given")
    seed: Seed = Field(default=0, description="another seed, other rows")

    @model_validator(mode="after")
    def _some_of_each(self) -> Calibration:
        general = round(self.rows * self.general_share)
        if self.general is not None and not 0 < general < self.rows:
            fix = "choose a share between 0 and 1 that leaves rows of both kinds"
            agree(Fault("general_share", f"`general_share` {self.general_share:g} of {self.rows} rows leaves one kind without a row", fix))
        return self


class Gptq(Section):
    """GPTQ (Frantar et al. 2022, arXiv:2210.17323), in the checkpoint format of auto-gptq."""

    method: Literal["gptq"] = Field(description="gptq, bitsandbytes or compressed_tensors", examples=["gptq"])
    name: Name | None = Field(
        default=None, description="what reports call this variant; default: such as gptq-4bit-g64", examples=["small"]
    )
    bits: Literal[2, 3, 4, 8] = Field(default=4, description="bits per weight")
    group_size: int = Field(default=64, ge=-1, description="must divide the input width of every linear layer; -1: one group per row")
    desc_act: bool = Field(default=False, description="quantise columns in the order of their activations: better, and slower to serve")
    sym: bool = Field(default=True, description="symmetric values around zero; most fast kernels want them")
    damping: float = Field(default=0.05, gt=0, lt=1, description="added to the Hessian's diagonal, as a share of its mean")
    calibration: Calibration = Field(default=Calibration(), description="the texts that the rounding is fitted to")

    @property
    def title(self) -> str:
        """What reports call it."""
        group = "row" if self.group_size == -1 else f"g{self.group_size}"
        return self.name or f"gptq-{self.bits}bit-{group}{'-act' if self.desc_act else ''}{'' if self.sym else '-asym'}"

    @model_validator(mode="after")
    def _group_size_is_not_zero(self) -> Gptq:
        fix = "write a size such as 64, or -1 for one group per row"
        agree(Fault("group_size", "`group_size` is 0", fix) if self.group_size == 0 else None)
        return self


class Bitsandbytes(Section):
    """bitsandbytes LLM.int8(), NF4 or FP4 (Dettmers et al. 2022, arXiv:2208.07339, and 2023, arXiv:2305.14314)."""

    method: Literal["bitsandbytes"] = Field(description="gptq, bitsandbytes or compressed_tensors", examples=["bitsandbytes"])
    name: Name | None = Field(default=None, description="what reports call this variant; default: such as nf4-double", examples=["small"])
    bits: Literal[4, 8] = Field(default=4, description="bits per weight; 8 is LLM.int8()")
    type: Literal["nf4", "fp4"] = Field(default="nf4", description="4 bits: the sixteen values a weight can take")
    double: bool = Field(default=False, description="4 bits: quantise the scales as well, which saves 0.4 bits per weight")
    compute_dtype: Literal["bfloat16", "float16", "float32"] = Field(default="bfloat16", description="4 bits: precision of the arithmetic")
    keep_adapter: bool = Field(
        default=False,
        description="4 bits: quantise the base and leave the adapter over it in 16 bits, as QLoRA trained it, instead of merging first",
    )

    @property
    def title(self) -> str:
        """What reports call it."""
        four_bits = f"{self.type}{'-double' if self.double else ''}{'-adapter' if self.keep_adapter else ''}"
        return self.name or ("int8" if self.bits == 8 else four_bits)

    @model_validator(mode="after")
    def _four_bit_keys_need_four_bits(self) -> Bitsandbytes:
        if self.bits == 8:
            keys = ("type", "double", "compute_dtype", "keep_adapter")
            given = [key for key in keys if getattr(self, key) != type(self).model_fields[key].get_default()]
            agree(*(Fault(key, f"`{key}` belongs to 4 bits, but `bits` is 8", "remove it, or use bits: 4") for key in given))
        return self


class CompressedTensors(Section):
    """compressed-tensors through llm-compressor, the form that vLLM reads fastest; made in an environment of its own."""

    method: Literal["compressed_tensors"] = Field(description="gptq, bitsandbytes or compressed_tensors", examples=["compressed_tensors"])
    name: Name | None = Field(default=None, description="what reports call this variant; default: such as w4a16-g64", examples=["small"])
    scheme: Literal["W4A16", "W8A8", "FP8"] = Field(
        default="W4A16", description="bits of weights and activations; W4A16 and W8A8 are integers, FP8 needs a GPU that computes in it"
    )
    group_size: Positive = Field(default=64, description="W4A16: must divide the input width of every linear layer")
    calibration: Calibration = Field(default=Calibration(), description="the texts that the rounding is fitted to; FP8 needs none")
    python: PathText | None = Field(
        default=None,
        description="the Python of the environment that has llm-compressor, whose pins exclude ours; default: the one that "
        "`make llmcompressor` builds in the working directory",
    )

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.name or (f"w4a16-g{self.group_size}" if self.scheme == "W4A16" else self.scheme.lower())

    @model_validator(mode="after")
    def _groups_belong_to_four_bits(self) -> CompressedTensors:
        if self.scheme != "W4A16" and self.group_size != type(self).model_fields["group_size"].get_default():
            agree(Fault("group_size", f"`group_size` belongs to W4A16, but `scheme` is {self.scheme}", "remove it"))
        return self


Quantizer = Annotated[Gptq | Bitsandbytes | CompressedTensors, Field(discriminator="method")]


class Bounds(Section):
    """What a model may take at most."""

    size_mb: float | None = Field(default=None, gt=0, description="weights on disk, in millions of bytes; an adapter counts with its base")
    memory_mb: float | None = Field(default=None, gt=0, description="peak memory of loading and answering, in millions of bytes")
    slowdown: float | None = Field(
        default=None, gt=0, description="decoding time per token as a multiple of the unquantised model's; 1: not slower"
    )


class Select(Section):
    """Which of the tuned model and its variants goes on, decided on the validation split alone."""

    by: Literal["score"] = Field(default="score", description="the highest mean score among those within `at_most`; of equals the smallest")
    at_most: Bounds = Field(default=Bounds(), description="limits that a model must keep")
