"""Everything that can be set about the simulated model: one strict, frozen tree, read from YAML or JSON and `--set` texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from workbench.errors import RecipeError, WorkbenchError
from workbench.recipe.document import Node, Origin, Problem, SyntaxFault, parse
from workbench.recipe.schema.base import EnvName, Fraction, PathText, Positive, Section, Seed, Text, agree
from workbench.recipe.schema.base import Fault as Disagreement

LARGEST = 256 * 1024  # bytes of a settings file

NotNegative = Annotated[float, Field(ge=0)]
FaultKind = Literal[429, 500, 503, "timeout", "reset", "truncated_stream", "malformed_json", "content_filter", "refusal"]


class Latency(Section):
    """Seconds to the first token: log-normal, with a heavy tail; then tokens at a steady pace. All zero by default."""

    p50_s: NotNegative = Field(default=0.0, description="median seconds to the first token, the tail aside")
    sigma: NotNegative = Field(default=0.5, description="standard deviation of the logarithm of these seconds")
    tail_share: Fraction = Field(default=0.0, description="share of requests in the tail")
    tail_factor: Annotated[float, Field(ge=1)] = Field(default=10.0, description="how many times longer a request in the tail takes")
    tokens_per_s: Annotated[float, Field(gt=0)] | None = Field(default=None, description="pace after the first token; null: at once")


class Limits(Section):
    """Rate limits: token buckets that refill continuously. Null: no limit, and no headers about it."""

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = Field(default=None, description="a request counts its prompt and the most tokens it asks for")


class Price(Section):
    """US dollars per million tokens. The defaults are the list price of gpt-4.1 in April 2025."""

    input: NotNegative = 2.0
    cached: NotNegative = 0.5
    output: NotNegative = 8.0


class Cache(Section):
    """Prompt caching: a prefix that was sent before counts as cached, from `least_tokens` on and in whole steps of 128 tokens."""

    least_tokens: Positive = 1024
    kept_s: NotNegative = Field(default=300.0, description="seconds without use after which a prefix is forgotten")


class ScheduledFault(Section):
    """One entry of the schedule of faults; of several that hit a request, the first counts."""

    kind: FaultKind
    share: Fraction | None = Field(default=None, description="share of the requests; of the prompts for content_filter and refusal")
    every: Positive | None = Field(default=None, description="every so many requests")
    from_s: NotNegative = Field(default=0.0, description="seconds after the start from which it happens")
    until_s: NotNegative | None = Field(default=None, description="seconds after the start from which it does not happen any more")
    from_request: Positive = Field(default=1, description="the first request it may hit, counted from 1")
    until_request: Positive | None = Field(default=None, description="the last request it may hit")
    retry_after_s: NotNegative | None = Field(default=None, description="429, 500 and 503: the Retry-After to send")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        both = (self.share is None) == (self.every is None)
        late = self.retry_after_s is not None and not isinstance(self.kind, int)
        agree(
            Disagreement("kind", "a fault needs either `share` or `every`", "write share: 0.1, or every: 10") if both else None,
            Disagreement("retry_after_s", f"{self.kind} sends no Retry-After", "remove it") if late else None,
        )
        return self


class Change(Section):
    """The moment from which another version answers."""

    model: Text = Field(description="the version that answers then")
    after_requests: Positive | None = Field(default=None, description="the last request that the old version answers")
    after_s: NotNegative | None = Field(default=None, description="seconds after the start")
    accuracy: Fraction | None = Field(default=None, description="of the new version; null: as before")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        both = (self.after_requests is None) == (self.after_s is None)
        agree(
            Disagreement("model", "a change needs either `after_requests` or `after_s`", "write after_requests: 500, or after_s: 60")
            if both
            else None
        )
        return self


class FineTuning(Section):
    """Managed fine-tuning, as OpenAI sells it."""

    models: list[Text] = Field(default=["gpt-4.1-mini-2025-04-14"], description="what can be fine-tuned")
    accuracy: Fraction = Field(default=0.95, description="of a fine-tuned model")
    queued_s: NotNegative = 1.0
    running_s: NotNegative = 5.0
    organization: Text = "simulated"
    price: Price = Field(default=Price(input=0.8, cached=0.2, output=3.2), description="of the fine-tuned model's answers")
    training_price: NotNegative = Field(default=5.0, description="US dollars per million trained tokens")


class Simulator(Section):
    """A simulated closed model."""

    references: PathText | None = Field(default=None, description="file of prompts and their right answers; see answers.py")
    model: Text = Field(default="gpt-4.1-2025-04-14", description="the version that answers")
    aliases: list[Text] = Field(default=["gpt-4.1"], description="other names that it answers to")
    accuracy: Fraction = Field(default=0.88, description="expected share of right answers over the references, at any temperature")
    spread: NotNegative = Field(default=4.0, description="log-odds of a wrong answer between the easiest and the hardest prompt")
    noise: Fraction = Field(default=0.3, description="share of answers that are drawn anew at temperature 1; in proportion below")
    fallback: Text = Field(
        default="The simulator has no reference for this prompt.", description="answer to a prompt that it does not know"
    )
    seed: Seed = 0
    context_window: Positive = Field(default=128_000, description="tokens of prompt and answer together")
    latency: Latency = Latency()
    limits: Limits = Limits()
    price: Price = Price()
    cache: Cache = Cache()
    faults: list[ScheduledFault] = Field(default=[])
    timeout_s: NotNegative = Field(default=600.0, description="the longest that the fault `timeout` keeps a connection open")
    change: Change | None = None
    fine_tuning: FineTuning = FineTuning()
    api_key_env: EnvName | None = Field(default=None, description="environment variable with the one key accepted; null: any key")
    keyless: bool = Field(default=False, description="let in requests without a key, as servers of one's own do")
    log: PathText | None = Field(default=None, description="append-only file, one line of JSON a request")


def load(path: Path | None, overrides: Sequence[str] = ()) -> Simulator:
    """Read settings.

    Args:
        path: a YAML or JSON file; None: the defaults. Paths in it start from its folder.
        overrides: `key.path=value` texts, the value in YAML; paths start from the working directory.

    Raises:
        RecipeError: with every problem found.
    """
    nodes: dict[str, Any] = {}
    if path is not None:
        tree = _tree(_text(path), lambda line, column: Origin("file", f"{path}:{line}:{column}", path.name, line, column))
        nodes = tree.value if tree is not None else {}
        if not isinstance(nodes, dict):
            raise WorkbenchError("settings are a section of keys and values", where=str(path), fix="write for example accuracy: 0.88")
    plain = {key: entry.node.plain() for key, entry in nodes.items()}
    for name in ("references", "log"):
        if path is not None and isinstance(plain.get(name), str):
            plain[name] = str(path.absolute().parent / Path(plain[name]).expanduser())
    written: dict[str, str] = {}
    for text in overrides:
        key = _override(plain, text)
        written[key] = f"--set {key}"
    try:
        return Simulator.model_validate(plain)
    except ValidationError as error:
        problems = [_problem(one, nodes, written, path) for one in error.errors(include_url=False, include_input=False)]
        raise RecipeError(problems) from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise WorkbenchError(f"over {LARGEST // 1024} KiB: these are no settings", where=str(path), fix="check the file's name")
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise WorkbenchError(f"cannot be read: {error.strerror}", where=str(path), fix="check the path") from error
    except UnicodeDecodeError as error:
        raise WorkbenchError("not UTF-8 text", where=str(path), fix="save the file as UTF-8, or check its name") from error


def _tree(text: str, locate: Any) -> Node | None:
    try:
        tree, problems = parse(text, locate)
    except SyntaxFault as fault:
        raise _refusal(fault.problems) from fault
    if problems:
        raise _refusal(problems)
    return tree


def _refusal(problems: list[Problem]) -> RecipeError:
    return RecipeError([WorkbenchError(problem.what, where=problem.origin.where, fix=problem.fix) for problem in problems])


def _override(plain: dict[str, Any], text: str) -> str:
    """Put one override in; returns its key."""
    key, equals, value = text.partition("=")
    steps = key.strip().split(".")
    place = f"--set {key.strip()}"
    if not equals or not all(steps):
        raise WorkbenchError("not of the form key.path=value", where=place, fix="write for example --set accuracy=0.9")
    node = _tree(value, lambda line, column: Origin("override", place, place, line, column))
    section: Any = plain
    for step in steps[:-1]:
        section = section.setdefault(step, {})
        if not isinstance(section, dict):
            raise WorkbenchError(f"`{step}` is not a section", where=place, fix="write a list in brackets: faults=[{kind: 500, every: 9}]")
    section[steps[-1]] = node.plain() if node is not None else None
    return ".".join(steps)


def _problem(error: Any, nodes: dict[str, Any], written: dict[str, str], path: Path | None) -> WorkbenchError:
    """One of pydantic's errors, with the place of the innermost thing that was written."""
    level: Any = nodes
    where = str(path) if path is not None else "settings"
    for step in error["loc"]:
        if isinstance(level, dict) and step in level:
            where, level = level[step].at.where, level[step].node.value
        elif isinstance(level, tuple) and isinstance(step, int) and step < len(level):
            where, level = level[step].origin.where, level[step].value
    name = ".".join(map(str, error["loc"]))
    for key, place in written.items():
        if name == key or name.startswith(f"{key}.") or key.startswith(f"{name}."):
            where = place
    if error["type"] == "value_error":
        fault = error["ctx"]["error"].faults[0]
        return WorkbenchError(f"`{name}`: {fault.what}", where=where, fix=fault.fix)
    if error["type"] == "extra_forbidden":
        return WorkbenchError(f"unknown key `{name}`", where=where, fix=f"remove it; the keys are {', '.join(Simulator.model_fields)}")
    return WorkbenchError(f"`{name}`: {error['msg'][:1].lower()}{error['msg'][1:]}", where=where, fix="correct the value")
