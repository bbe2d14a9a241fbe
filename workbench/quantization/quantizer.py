"""What a quantisation method is, and which one a section of the recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from workbench.models.facts import ModelFacts
from workbench.progress import Advance
from workbench.recipe.schema import Bitsandbytes, Calibration, Gptq, Quantizer


@dataclass(frozen=True)
class Source:
    """What is quantised.

    Attributes:
        model: folder of the 16-bit model.
        adapter: folder of an adapter that stays in 16 bits over the quantised model; None where there is none, or where it is merged.
        dtype: precision of the weights that are not quantised.
        trust_remote_code: as in the recipe.
    """

    model: Path
    dtype: str
    trust_remote_code: bool
    adapter: Path | None = None


@dataclass(frozen=True)
class Texts:
    """Token ids that a method is given.

    Attributes:
        calibration: what the rounding is fitted to; empty for a method that needs none.
        probes: texts that the quantised model reads before it is saved, and again when it was loaded.
    """

    calibration: Sequence[Sequence[int]]
    probes: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Made:
    """What making a variant left to know.

    Attributes:
        probes: what the quantised model expected in the texts `Texts.probes` before it was saved: `models.parity.expectations`.
        facts: JSON-compatible.
    """

    probes: Sequence[dict[str, Any]]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Refusal:
    """Why a method cannot quantise a model; known before any time is spent.

    Attributes:
        key: the key of the method's section to blame.
        what: one sentence.
        fix: what to do about it.
    """

    key: str
    what: str
    fix: str


class Method(Protocol):
    """One way to quantise, with the settings of its section of the recipe."""

    @property
    def calibration(self) -> Calibration | None:
        """How to choose the texts that the rounding is fitted to; None for a method that needs none."""

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version decides the result."""

    def refusals(self, facts: ModelFacts) -> list[Refusal]:
        """What stands against quantising a model of these sizes here; takes seconds at most."""

    def memory(self, facts: ModelFacts, dtype: str) -> int:
        """Estimated peak memory in bytes."""

    def ahead(self, workspace: Path) -> AbstractContextManager[None]:
        """Get ready what `quantize` would have to wait for, in its workspace, while something else is done.

        What is ready already stays as it is. On leaving, what is left of it is ended, whether `quantize` was called or not.
        """

    def quantize(self, source: Source, out: Path, texts: Texts, workspace: Path, advance: Advance) -> Made:
        """Write the quantised model folder.

        Args:
            out: an empty folder.
            workspace: a scratch folder; what an earlier attempt that was killed left there may be used or removed.
            advance: told the share of the work that is done, from 0 to 1.

        Raises:
            QuantizationError: the weights or the texts make it impossible.
        """


def method_of(section: Quantizer, base: Path) -> Method:
    """The method that a section of the recipe asks for.

    Args:
        base: the recipe's folder, where its paths start.
    """
    if isinstance(section, Gptq):
        from workbench.quantization.gptq import GptqMethod

        return GptqMethod(section)
    if isinstance(section, Bitsandbytes):
        from workbench.quantization.bitsandbytes import BitsandbytesMethod

        return BitsandbytesMethod(section)
    from workbench.quantization.compressed_tensors import CompressedTensorsMethod

    return CompressedTensorsMethod(section, base)


def group_refusals(facts: ModelFacts, group_size: int) -> list[Refusal]:
    """A group size must divide the input width of every linear layer: a model whose groups are cut is saved gladly and cannot answer."""
    cut = {name: width for name, (_, width) in facts.linear_shapes.items() if width % group_size}
    if not cut:
        return []
    widths = ", ".join(f"{name} {width}" for name, width in cut.items())
    good = [str(size) for size in (32, 64, 128, 256) if all(width % size == 0 for _, width in facts.linear_shapes.values())]
    what = f"group_size {group_size} does not divide the input widths {widths}; the quantised model could not answer"
    return [Refusal("group_size", what, f"choose {' or '.join(good)}" if good else "choose -1, one group per row")]
