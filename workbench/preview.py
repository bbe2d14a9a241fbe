"""`workbench check --preview`: real rows as the model will see them, lengths, and what the run will take, before it is paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data.render import Renderer, Row, quantile
from workbench.errors import RecipeError, WorkbenchError
from workbench.models.estimate import (
    BYTES,
    FORWARD_EFFICIENCY,
    RUNTIME_BYTES,
    TRAINING_EFFICIENCY,
    computed_in,
    forward_flops,
    matmul_speed,
    training_flops,
    training_memory,
    validations,
)
from workbench.models.facts import ModelFacts, read_facts
from workbench.pipeline import make
from workbench.plan import fetch_sources, prepared
from workbench.progress import duration
from workbench.recipe.load import Loaded
from workbench.recipe.schema import Train
from workbench.stages.calibration import refuse
from workbench.stages.data import examples_of
from workbench.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Rows shown.
SHOWN = 3
#: Marks around supervised text.
OPEN, CLOSE = "⟦", "⟧"


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows of one split: prompt and answer together.

    Attributes:
        overlong: rows longer than `train.max_length`.
    """

    split: str
    rows: int
    p50: int
    p90: int
    p99: int
    longest: int
    overlong: int


@dataclass(frozen=True)
class Preview:
    """What a preview found.

    Attributes:
        rows: rendered rows, supervised text between ⟦ and ⟧.
        lengths: one entry per split.
        tokens, supervised: of the training rows.
        memory_bytes: estimated peak of one training process.
        train_seconds, evaluate_seconds: estimated for a machine that does nothing else; downloads and loading aside.
        problems: what would stop the run or make its result useless.
    """

    rows: tuple[str, ...]
    lengths: tuple[Lengths, ...]
    tokens: int
    supervised: int
    max_length: int | None
    memory_bytes: int
    train_seconds: float
    evaluate_seconds: float
    problems: tuple[WorkbenchError, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-compatible copy; problems as texts."""
        return {**asdict(self), "problems": [str(problem) for problem in self.problems]}

    def text(self) -> str:
        """For a terminal."""
        lines = [f"{SHOWN} rows as the model will see them; {OPEN}supervised{CLOSE}:"]
        lines += ["", *(f"  {line}" for row in self.rows for line in [*row.splitlines(), ""])]
        lines.append(f"{'tokens per row':<14}{'rows':>8}{'median':>8}{'90%':>6}{'99%':>6}{'longest':>9}{'too long':>10}")
        lines += [
            f"{one.split:<14}{one.rows:>8}{one.p50:>8}{one.p90:>6}{one.p99:>6}{one.longest:>9}{one.overlong:>10}" for one in self.lengths
        ]
        if self.max_length is not None:
            lines.append(f"longest row allowed: train.max_length {self.max_length}")
            lines.append(f"training reads {self.tokens} tokens a pass, {self.supervised} of them supervised")
        lines.append(
            f"estimate for this machine, if it does nothing else: {self.memory_bytes / 2**30:.1f} GiB of memory, "
            f"{duration(self.train_seconds)} training, {duration(self.evaluate_seconds)} evaluation"
        )
        return "\n".join(lines)


def preview(loaded: Loaded, state: Path) -> Preview:
    """Prepare model and data (the run will find them there), render, count and estimate.

    Raises:
        WorkbenchError: the sources or the data cannot be used.
    """
    from workbench.models.load import load_tokenizer

    recipe, train = loaded.recipe, loaded.recipe.train
    model_stage, data_stage, guard_stages = prepared(loaded, fetch_sources(loaded))
    store = Store(state)
    model, data = (make(stage, store, {}, _unheard) for stage in (model_stage, data_stage))
    for stage in guard_stages.values():
        make(stage, store, {"data": data}, _unheard)
    renderer = Renderer(load_tokenizer(model.path, trust_remote_code=recipe.model.trust_remote_code), recipe.task)
    supervise = train.loss if train is not None else "completion"
    splits = ["train", "validation", recipe.evaluate.split] if train is not None else [recipe.evaluate.split]
    rows = {split: [renderer.row(example, supervise) for example in examples_of(data.path, split)] for split in dict.fromkeys(splits)}
    limit = train.max_length if train is not None else None
    lengths = tuple(_lengths(split, found, limit) for split, found in rows.items())
    facts = read_facts(model.path)
    learned = rows["train"] if train is not None else []
    shown = next(iter(rows.values()))
    tokens, supervised = sum(len(row.input_ids) for row in learned), sum(sum(row.supervised) for row in learned)
    candidates = (1 if train is None else 2) + len(recipe.quantize)
    evaluated = sum(len(row.input_ids) for row in rows[recipe.evaluate.split]) * candidates
    trained_in = computed_in(train, recipe.launch, recipe.model.dtype) if train is not None else recipe.model.dtype
    speeds = {dtype: matmul_speed(facts, dtype, recipe.launch) for dtype in {trained_in, recipe.model.dtype}}
    evaluate_seconds = evaluated * forward_flops(facts) / (speeds[recipe.model.dtype] * FORWARD_EFFICIENCY)
    train_seconds = 0.0
    if train is not None:
        speed = speeds[trained_in]
        train_seconds = training_flops(facts, train, tokens, supervised, len(learned)) / (speed * TRAINING_EFFICIENCY)
        validated = validations(train, recipe.launch, len(learned)) * sum(len(row.input_ids) for row in rows["validation"])
        train_seconds += validated * forward_flops(facts) / (speed * FORWARD_EFFICIENCY)
    return Preview(
        rows=tuple(marked(row, renderer.tokenizer) for row in shown[:SHOWN]),
        lengths=lengths,
        tokens=tokens,
        supervised=supervised,
        max_length=limit,
        memory_bytes=training_memory(facts, train, recipe.model.dtype, learned)
        if train is not None
        else RUNTIME_BYTES + facts.parameters * BYTES[recipe.model.dtype],
        train_seconds=train_seconds,
        evaluate_seconds=evaluate_seconds,
        problems=(*_overlong(loaded, train, lengths, rows), *_context(loaded, facts, train), *_quantizers(loaded, model.path)),
    )


def _unheard(metrics: Mapping[str, float], step: int | None) -> None:
    """Preparing reports no numbers."""


def marked(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """A row as text, special tokens included, with the supervised runs between ⟦ and ⟧."""
    text, run, inside = "", list[int](), False
    for token, supervised in [*zip(row.input_ids, row.supervised, strict=True), (None, False)]:
        if supervised != inside or token is None:
            decoded = tokenizer.decode(run, skip_special_tokens=False)
            text += f"{OPEN}{decoded}{CLOSE}" if inside else decoded
            run, inside = [], supervised
        if token is not None:
            run.append(token)
    return text


def _lengths(split: str, rows: Sequence[Row], limit: int | None) -> Lengths:
    sizes = [len(row.input_ids) for row in rows]
    overlong = sum(size > limit for size in sizes) if limit is not None else 0
    p50, p90, p99 = (quantile(sizes, share) for share in (0.5, 0.9, 0.99))
    return Lengths(split, len(rows), p50, p90, p99, max(sizes), overlong)


def _overlong(loaded: Loaded, train: Train | None, lengths: Sequence[Lengths], rows: dict[str, list[Row]]) -> list[WorkbenchError]:
    """Rows that `overflow: refuse` refuses; the evaluation split is never cut, whatever its length."""
    if train is None or train.overflow != "refuse":
        return []
    found = [one for one in lengths if one.overlong and one.split in ("train", "validation")]
    if not found:
        return []
    total, longest = sum(one.overlong for one in found), max(one.longest for one in found)
    return [
        WorkbenchError(
            f"{total} rows are longer than {train.max_length} tokens and would be truncated",
            where=loaded.where("train", "max_length"),
            fix=f"raise train.max_length to {longest}, or choose train.overflow: drop or truncate",
        )
    ]


def _context(loaded: Loaded, facts: ModelFacts, train: Train | None) -> list[WorkbenchError]:
    if train is None or train.max_length <= facts.context:
        return []
    what = f"train.max_length {train.max_length} is beyond the model's context of {facts.context} tokens"
    return [WorkbenchError(what, where=loaded.where("train", "max_length"), fix=f"choose at most {facts.context}")]


def _quantizers(loaded: Loaded, model: Path) -> list[WorkbenchError]:
    """What stands against the recipe's quantised variants."""
    problems: list[WorkbenchError] = []
    for index in range(len(loaded.recipe.quantize)):
        try:
            refuse(loaded, index, model)
        except RecipeError as error:
            problems += error.problems
    return problems
