"""Section `baseline`: the closed model that candidates are compared with, how it is asked, and what that may cost."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from workbench.recipe.schema.base import EnvName, Fault, Fraction, PathText, Positive, Section, Seed, Suffix, Text, Url, agree

Provider = Literal["openai", "anthropic", "google", "transcript", "simulator"]

#: Fields of a request that keys of this section, or the run itself, decide.
_OWN_FIELDS = {
    "model", "messages", "system", "contents", "tools", "n", "stream", "temperature", "stop", "stop_sequences",
    "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs",
}  # fmt: skip

_DATED = re.compile(r"-20\d\d-?[01]\d-?[0-3]\d$")
_PINNED_OPENAI = re.compile(r"-20\d\d-[01]\d-[0-3]\d$|^ft:.|^gpt-(3\.5-turbo|4)(-[a-z0-9]+)*-[01]\d[0-3]\d(-preview)?$")
_PINNED_GOOGLE = re.compile(r"-\d{3}$|-(preview|exp)(-[a-z]+)*-[01]\d-?(\d\d|20\d\d)$")
_DATELESS_CLAUDE = re.compile(r"^claude-[a-z]+-(\d{1,2})(?:-(\d{1,2}))?$")
_MARKED = re.compile(r"@[0-9a-f]{7,64}$|@sha256:[0-9a-f]{64}$|^ft:.|-\d{3}$")


def floating(provider: Provider, model: str, *, own_url: bool = False) -> str | None:
    """Why a model id names no fixed version, or None where it does.

    Args:
        own_url: the recipe names an endpoint other than the provider's, whose names follow no known rule.

    Sources: OpenAI's dated snapshots (platform.openai.com/docs/models); Anthropic's "Model IDs and versioning" (a date before Claude 4.6,
    none from then on); Google's "Model versions and lifecycle" (three digits for a stable version, a date for a preview).
    """
    if provider in ("transcript", "simulator"):
        return None
    if own_url and not (_DATED.search(model) or _MARKED.search(model)):
        return "an endpoint of your own may serve other weights under this name tomorrow, and nothing in the name would say so"
    if own_url:
        return None
    if provider == "openai":
        return None if _PINNED_OPENAI.search(model) else "OpenAI moves a name without a date, as in -2025-04-14, to newer snapshots"
    if provider == "google":
        fixed = _PINNED_GOOGLE.search(model) and not model.endswith("-latest")
        return None if fixed else "Google may change what a name without a version, as in -001 or -preview-05-20, stands for"
    generation = _DATELESS_CLAUDE.match(model)
    if re.search(r"-20\d{6}$", model) or (generation and (int(generation[1]), int(generation[2] or 0)) >= (4, 6)):
        return None
    return "before Claude 4.6, Anthropic's name without a date, as in -20250929, is an alias that moves"


class Price(Section):
    """What a model costs, in US dollars per million tokens."""

    input: float = Field(ge=0, description="USD per million prompt tokens that came from no cache", examples=[2.0])
    cached_input: float | None = Field(default=None, ge=0, description="USD per million prompt tokens from the cache; default: as `input`")
    output: float = Field(ge=0, description="USD per million generated tokens", examples=[8.0])

    @model_validator(mode="after")
    def _a_cache_saves(self) -> Price:
        dearer = self.cached_input is not None and self.cached_input > self.input
        agree(Fault("cached_input", "`cached_input` costs more than `input`", "check the two prices") if dearer else None)
        return self


class Simulated(Section):
    """How the simulator plays a closed model: for rehearsals, and marked SIMULATED wherever a number of it appears."""

    accuracy: Fraction = Field(default=0.88, description="expected share of right answers")
    seed: Seed = Field(default=0, description="another seed, other errors")


class FineTune(Section):
    """A fine-tune that the provider makes and hosts (OpenAI's files and fine-tuning-jobs API): a candidate beside the open models."""

    model: Text | None = Field(default=None, description="the closed model to tune; default: baseline.model")
    epochs: Positive = Field(default=3, description="passes over the training rows; fixed, since they decide the cost")
    batch_size: Positive | None = Field(default=None, description="examples per step; default: the provider's choice")
    learning_rate_multiplier: float | None = Field(default=None, gt=0, description="default: the provider's choice")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the provider's job")
    suffix: Suffix = Field(default="workbench", description="becomes part of the new model's id")
    training_price: float | None = Field(default=None, ge=0, description="USD per million trained tokens; default: the dated price book")
    price: Price | None = Field(default=None, description="what the tuned model costs to ask; default: the dated price book")
    budget_usd: float = Field(default=20.0, gt=0, description="a job that could cost more than this is not started")
    poll_s: float = Field(default=10.0, gt=0, description="seconds between two looks at the job")


class Baseline(Section):
    """A closed model, or a file of its recorded answers."""

    provider: Provider = Field(
        description="openai (any OpenAI-compatible endpoint), anthropic, google, transcript: a file of recorded answers, or simulator: for "
        "rehearsals, no evidence about any real model",
        examples=["openai"],
    )
    model: Text | None = Field(
        default=None, description="a pinned version; with a transcript: the model its answers must be from", examples=["gpt-4.1-2025-04-14"]
    )
    url: Url | None = Field(
        default=None,
        description="base URL of a compatible endpoint; default: the provider's own",
        examples=["http://localhost:8000/v1"],
    )
    api_key_env: EnvName | None = Field(
        default=None,
        description="environment variable that holds the key; default: OPENAI_API_KEY, ANTHROPIC_API_KEY or GEMINI_API_KEY, and none where "
        "`url` names another endpoint",
        examples=["OPENAI_API_KEY"],
    )
    transcript: PathText | None = Field(default=None, description="transcript: JSON lines with recorded answers")
    allow_floating: bool = Field(
        default=False, description="accept a name that can stand for other versions; the one that answered is kept"
    )
    budget_usd: float = Field(default=5.0, gt=0, description="most that answering this recipe's questions may cost, over all attempts")
    price: Price | None = Field(default=None, description="USD per million tokens; default: the dated price book")
    system: str | None = Field(
        default=None, description="system message for the closed model; replaces the rows' own; empty: none. Default: as the task has it"
    )
    prompt: Text | None = Field(
        default=None,
        description="template around {input}, the prompt as the task makes it, and fields of the row's metadata: a tuned model needs no "
        "instructions, a closed one does",
    )
    temperature: float | None = Field(default=0.0, ge=0, le=2, description="null leaves it out, as reasoning models want")
    max_tokens: Positive | None = Field(
        default=None,
        description="longest answer; default: twice task.max_new_tokens and at least 16, since the closed model's tokenizer may cut the "
        "same text into more tokens. A reasoning model's hidden tokens count as well",
    )
    logprobs: bool = Field(default=False, description="ask for the answers' log-probabilities (openai, google)")
    parameters: dict[str, Any] = Field(
        default={}, description="more fields of the request, in the provider's own names", examples=[{"reasoning_effort": "low"}]
    )
    repeats: Positive = Field(default=1, description="answers to each example; two or more show the model's own noise")
    concurrency: Positive = Field(default=8, description="requests in flight")
    timeout_s: float = Field(default=60.0, gt=0, description="seconds that one answer may take")
    attempts: Positive = Field(default=6, description="tries before a request goes on the dead-letter list")
    simulator: Simulated = Field(default=Simulated(), description="provider simulator: how it plays the model")
    fine_tune: FineTune | None = Field(
        default=None, description="have the provider tune a model on the training rows as well; {} takes the defaults"
    )

    @property
    def key_name(self) -> str | None:
        """The environment variable with the key; a key for a provider is never sent to another endpoint unless the recipe says so."""
        names = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "google": "GEMINI_API_KEY"}
        return self.api_key_env or (names.get(self.provider) if self.url is None else None)

    def room(self, max_new_tokens: int) -> int:
        """Most tokens of an answer, for a task whose answers take up to `max_new_tokens` of the open model's tokens."""
        return self.max_tokens or max(16, 2 * max_new_tokens)

    @model_validator(mode="after")
    def _provider_has_what_it_needs(self) -> Baseline:
        agree(*self._source(), *self._version(), *self._asking())
        return self

    def _source(self) -> list[Fault | None]:
        recorded = self.provider == "transcript"
        return [
            Fault("transcript", "provider `transcript` needs a file", "add transcript: FILE") if recorded and not self.transcript else None,
            Fault(
                "transcript", f"`transcript` belongs to provider `transcript`, not `{self.provider}`", "remove it, or change the provider"
            )
            if self.transcript and not recorded
            else None,
            Fault("model", f"provider `{self.provider}` needs a model", "add model: ID, with its version")
            if not recorded and not self.model
            else None,
            Fault("url", "a transcript is not asked over a `url`", "remove `url`") if recorded and self.url else None,
        ]

    def _version(self) -> list[Fault | None]:
        names = [("model", self.model)]
        if self.fine_tune is not None and self.fine_tune.model:
            names.append(("fine_tune", self.fine_tune.model))
        faults: list[Fault | None] = []
        for key, name in names:
            reason = floating(self.provider, name, own_url=self.url is not None) if name and not self.allow_floating else None
            fix = "name a pinned version, or set baseline.allow_floating: true; the version that answers is then recorded and reported"
            faults.append(Fault(key, f"`{name}` is not a pinned version: {reason}", fix) if reason else None)
        return faults

    def _asking(self) -> list[Fault | None]:
        own = sorted(_OWN_FIELDS & self.parameters.keys())
        return [
            Fault("logprobs", "Anthropic's API returns no log-probabilities", "remove `logprobs`")
            if self.logprobs and self.provider == "anthropic"
            else None,
            Fault("parameters", f"`parameters` sets {own[0]!r}, which is decided elsewhere", "use the recipe's own key for it")
            if own
            else None,
            Fault(
                "fine_tune", f"`fine_tune` speaks OpenAI's API, and the provider is `{self.provider}`", "remove it, or use provider: openai"
            )
            if self.fine_tune is not None and self.provider != "openai"
            else None,
        ]
