"""The one thing that the providers' clients have in common, and the choice among them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from workbench.baselines.conversation import Reply, Request
from workbench.errors import EnvironmentFault, EvaluationError
from workbench.recipe.schema.baseline import Baseline


class Client(Protocol):
    """Asks one endpoint; used as an asynchronous context manager."""

    async def __aenter__(self) -> Client: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    async def ask(self, request: Request) -> Reply:
        """Ask once.

        Raises:
            Transient, Rejected, Halt: as `faults` says.
        """
        ...


@dataclass(frozen=True)
class Asking:
    """How an endpoint is asked.

    Attributes:
        key: the secret itself; never part of a representation.
        parameters: more fields of the request, in the provider's own names.
    """

    model: str
    url: str | None
    key: str | None = field(repr=False)
    max_tokens: int
    temperature: float | None
    stop: tuple[str, ...]
    logprobs: bool
    parameters: dict[str, Any]
    timeout_s: float
    concurrency: int

    @property
    def sampling(self) -> dict[str, Any]:
        """What decides an answer beside model and messages; part of a recorded answer's key."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stop": list(self.stop),
            "logprobs": self.logprobs,
            "parameters": self.parameters,
        }


def asking(baseline: Baseline, *, max_tokens: int, stop: Sequence[str]) -> Asking:
    """How the recipe's closed model is asked.

    Raises:
        EvaluationError: the key is not in the environment.
    """
    return Asking(
        model=baseline.model or "",
        url=baseline.url.rstrip("/") if baseline.url else None,
        key=read_key(baseline),
        max_tokens=max_tokens,
        temperature=baseline.temperature,
        stop=tuple(stop),
        logprobs=baseline.logprobs,
        parameters=baseline.parameters,
        timeout_s=baseline.timeout_s,
        concurrency=baseline.concurrency,
    )


def read_key(baseline: Baseline) -> str | None:
    """The key from the environment; None where none is needed.

    Raises:
        EvaluationError: the variable is not set.
    """
    name = baseline.key_name
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise EvaluationError(
            f"the environment variable {name} is not set, so nothing was asked",
            where="baseline.api_key_env",
            fix=f"export {name}=..., or name another variable in baseline.api_key_env",
        )
    return key


def connect(baseline: Baseline, how: Asking) -> Client:
    """The client for the recipe's provider.

    Raises:
        EnvironmentFault: the package that speaks to it is not installed.
    """
    try:
        if baseline.provider == "anthropic":
            from workbench.baselines.anthropic import AnthropicClient

            return AnthropicClient(how)
        if baseline.provider == "google":
            from workbench.baselines.google import GoogleClient

            return GoogleClient(how)
        from workbench.baselines.openai import OpenAIClient
    except ImportError as error:
        fix = f"pip install 'workbench[{baseline.provider if baseline.provider != 'openai' else 'baselines'}]'"
        raise EnvironmentFault(
            f"the package to ask {baseline.provider} is not installed ({error.name})", where="baseline.provider", fix=fix
        ) from error
    return OpenAIClient(how)
