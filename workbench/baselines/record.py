"""Ask a closed model within a budget, keep every answer for good, and ask only for what is missing."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.baselines.budget import BudgetExceeded, Ledger, enough, usd
from workbench.baselines.client import Asking, Client, asking, connect
from workbench.baselines.conversation import Answer, Reply, Request
from workbench.baselines.faults import Halt, Rejected, Transient, shorten
from workbench.baselines.prices import Quote, quote
from workbench.baselines.retry import PATIENCE, retrying
from workbench.baselines.transcript import Transcript
from workbench.digest import digest
from workbench.errors import EvaluationError, WorkbenchError, disk_faults
from workbench.progress import Advance
from workbench.recipe.schema.baseline import Baseline
from workbench.recipe.secrets import redact

DEAD_LETTERS = "dead_letters.jsonl"

_COLUMNS = {field.name for field in fields(Answer)} - {"example_id", "repeat", "replayed"}


@dataclass(frozen=True)
class Recording:
    """The answers, and what getting them took.

    Attributes:
        answers: one for each request, in the order of the requests.
        asked: requests answered in this run; the others were replayed or are on the dead-letter list.
        dead: requests on the dead-letter list; a second run asks them again.
        spent_usd: cost of these questions' answers, over all runs.
        lost_usd: at most this much was charged for answers that never arrived, over all runs.
        versions: how many answers each (model, fingerprint) gave.
        price: where the price is from.
    """

    answers: list[Answer]
    asked: int
    dead: int
    spent_usd: float
    lost_usd: float
    versions: dict[tuple[str | None, str | None], int]
    price: str


def record(
    requests: Sequence[Request], baseline: Baseline, folder: Path, *, max_tokens: int, stop: Sequence[str] = (), advance: Advance
) -> Recording:
    """Answer requests from the transcript in `folder`, and ask the recipe's closed model for those that are missing.

    Args:
        max_tokens: longest answer; `baseline.room(task.max_new_tokens)`.
        stop: strings that end an answer.
        advance: told the number of requests done, and the cost so far.

    Raises:
        EvaluationError: the key is not in the environment, no price is known, two requests are the same; nothing was sent.
        Halt: a wrong key, an unknown model, no money left; everything answered is kept.
        BudgetExceeded: `baseline.budget_usd` does not cover the rest; everything answered is kept.
        EnvironmentFault: a package is missing, or another process records here.
    """
    _distinct(requests)
    price = quote(baseline)
    assert price is not None  # only a transcript may be without
    how = asking(baseline, max_tokens=max_tokens, stop=stop)
    client = connect(baseline, how)
    with Transcript(folder, _hider(how.key)) as transcript:
        recorder = _Recorder(requests, baseline, how, client, price, transcript, advance)
        try:
            asyncio.run(recorder.run())
        finally:
            _write_dead_letters(folder, recorder.dead)
        return recorder.result()


def versions(answers: Sequence[Answer]) -> dict[tuple[str | None, str | None], int]:
    """How many answers each (model, fingerprint) gave."""
    return dict(Counter((one.model_answered, one.fingerprint) for one in answers if one.status == "answered"))


def most_usd(requests: Sequence[Request], price: Quote, max_tokens: int) -> float:
    """What requests may cost at most, each answered once: US dollars."""
    return sum(price.cost(request.most_tokens, 0, max_tokens) for request in requests)


def request_key(request: Request, baseline: Baseline, how: Asking) -> str:
    """What makes two requests the same: provider, model, messages, sampling and repeat; neither the address nor the key.

    The provider's own endpoint is another provider than all that are compatible with it: what a simulator said is not what it would say.
    """
    provider = baseline.provider if baseline.url is None else f"{baseline.provider}-compatible"
    return digest([provider, how.model, request.prompt_digest, how.sampling, request.repeat])


class _Recorder:
    """One run of `record`: workers that take questions from one list until it is empty or something stops them all."""

    def __init__(
        self,
        requests: Sequence[Request],
        baseline: Baseline,
        how: Asking,
        client: Client,
        price: Quote,
        transcript: Transcript,
        advance: Advance,
    ) -> None:
        self._requests, self._baseline, self._how, self._client = requests, baseline, how, client
        self._price, self._transcript, self._advance = price, transcript, advance
        self._keys = [request_key(request, baseline, how) for request in requests]
        self._known = transcript.answers
        questions = dict(zip(self._keys, requests, strict=True))
        self._waiting = [(key, request) for key, request in reversed(questions.items()) if key not in self._known]
        self._replayed = questions.keys() & self._known.keys()
        self._total, self._done = len(questions), len(self._replayed)
        self.dead: dict[str, tuple[Request, str]] = {}
        self._stop: asyncio.Event | None = None
        self._error: WorkbenchError | None = None
        self._hold_until = 0.0
        self._hide = _hider(how.key)

    async def run(self) -> None:
        self._stop = asyncio.Event()
        spent = sum(self._known[key]["cost_usd"] for key in self._replayed)
        self._ledger = Ledger(self._baseline.budget_usd, spent=spent, lost=self._transcript.lost(set(self._keys)))
        self._succeeded = any(self._known[key]["status"] == "answered" for key in self._replayed)
        self._tell()
        if not self._waiting:
            return
        async with self._client:
            workers = min(self._baseline.concurrency, len(self._waiting))
            await asyncio.gather(*(self._work() for _ in range(workers)))
        if self._error is not None:
            raise self._error

    def result(self) -> Recording:
        answers = [self._answer(request, key) for request, key in zip(self._requests, self._keys, strict=True)]
        return Recording(
            answers=answers,
            asked=self._total - len(self._replayed) - len(self.dead),
            dead=len(self.dead),
            spent_usd=self._ledger.spent,
            lost_usd=self._ledger.lost,
            versions=versions(answers),
            price=self._price.source,
        )

    def _answer(self, request: Request, key: str) -> Answer:
        if key in self.dead:
            reason = self.dead[key][1]
            return Answer(request.example_id, request.repeat, "failed", error=reason, model_requested=self._how.model)
        line = self._known[key]
        return Answer(request.example_id, request.repeat, replayed=key in self._replayed, **{name: line[name] for name in _COLUMNS})

    async def _work(self) -> None:
        while self._waiting and self._error is None:
            key, request = self._waiting.pop()
            try:
                await self._ask(key, request)
            except _Stopped:
                self._waiting.append((key, request))
            except WorkbenchError as error:
                self._waiting.append((key, request))
                self._halt(error)
            else:
                self._done += 1
            self._tell()

    def _halt(self, error: WorkbenchError) -> None:
        """Stop every worker once its request in flight has ended; the first reason counts."""
        assert self._stop is not None
        if self._error is None:
            self._error = type(error)(self._clean(error.what), where=error.where, fix=error.fix)
        self._stop.set()

    async def _ask(self, key: str, request: Request) -> None:
        """Ask until there is an answer, a final rejection, or no attempt left."""
        tries = 0
        try:
            async for attempt in retrying(self._baseline.attempts, self._sleep):
                with attempt:
                    tries += 1
                    await self._attempt(key, request, tries)
        except Transient as error:
            self.dead[key] = (request, f"no answer after {tries} attempts; the last one: {self._clean(error.reason)}")

    async def _attempt(self, key: str, request: Request, tries: int) -> None:
        await self._sleep(self._hold_until - time.monotonic())
        most = self._price.cost(request.most_tokens, 0, self._how.max_tokens)
        if not await self._ledger.reserve(most):
            raise self._exceeded()
        cost, lost, call = 0.0, most, secrets.token_hex(8)
        try:
            if self._error is not None:
                lost = 0.0
                raise _Stopped
            await self._transcript.add({"kind": "asked", "call": call, "key": key, "most_usd": most, "time": _now()})
            started = time.perf_counter()
            try:
                reply = await self._client.ask(request)
            except Transient as error:
                lost = most if error.billed else 0.0
                reason = self._clean(error.reason)
                await self._transcript.add({"kind": "lost" if error.billed else "unbilled", "call": call, "reason": reason})
                if error.after is not None:
                    self._hold_until = max(self._hold_until, time.monotonic() + min(error.after, PATIENCE))
                raise
            except Rejected as error:
                lost = 0.0
                await self._reject(error, request, key, call)
                return
            except Halt as error:
                lost = 0.0
                await self._transcript.add({"kind": "unbilled", "call": call, "reason": self._clean(error.what)})
                raise
            line = self._line(reply, request, most=most, latency=time.perf_counter() - started)
            cost, lost = line["cost_usd"], 0.0
            await self._transcript.add({"kind": "answer", "call": call, "key": key, "attempt": tries, **line})
            self._succeeded = True
        finally:
            await self._ledger.settle(most, cost=cost, lost=lost)

    async def _reject(self, error: Rejected, request: Request, key: str, call: str) -> None:
        """Keep a final rejection, unless it looks as if every request would get it."""
        reason = self._clean(error.reason)
        if not error.own and not self._succeeded:
            await self._transcript.add({"kind": "unbilled", "call": call, "reason": reason})
            raise Halt(
                f"the endpoint rejects the request ({reason})",
                where=f"example {request.example_id}",
                fix="correct what it names under baseline: temperature, max_tokens, logprobs or parameters",
            )
        line = self._line(Reply(output=None, model=None), request, most=0.0, latency=None)
        await self._transcript.add({"kind": "answer", "call": call, "key": key, **line, "status": error.status, "error": reason})

    def _line(self, reply: Reply, request: Request, *, most: float, latency: float | None) -> dict[str, Any]:
        """All that is kept of an answer; where the endpoint does not say what it used, the worst case is what it cost."""
        told = reply.input_tokens is not None and reply.output_tokens is not None
        cost = self._price.cost(reply.input_tokens or 0, reply.cached_tokens or 0, reply.output_tokens or 0) if told else most
        scores = reply.logprobs
        return {
            "status": "answered" if reply.refusal is None else "refused",
            "output": reply.output,
            "error": None if reply.refusal is None else f"refused: {shorten(reply.refusal)}",
            "input_tokens": reply.input_tokens,
            "cached_tokens": reply.cached_tokens,
            "output_tokens": reply.output_tokens,
            "latency_s": latency,
            "ttft_s": None,
            "cost_usd": cost,
            "logprob_mean": sum(scores) / len(scores) if scores else None,
            "logprob_min": min(scores, default=None),
            "margin_min": reply.margin,
            "model_requested": self._how.model,
            "model_answered": reply.model,
            "fingerprint": reply.fingerprint,
            "finish_reason": reply.finish_reason,
            "simulated": reply.simulated,
            "time": _now(),
            "provider": self._baseline.provider,
            "prompt_digest": request.prompt_digest,
            "messages": list(request.messages),
            "tools": list(request.tools) if request.tools else None,
            "sampling": self._how.sampling,
            "repeat": request.repeat,
        }

    async def _sleep(self, seconds: float) -> None:
        """Wait, unless the run is stopped meanwhile."""
        assert self._stop is not None
        if seconds > 0:
            try:
                await asyncio.wait_for(self._stop.wait(), seconds)
            except TimeoutError:
                return
            raise _Stopped

    def _exceeded(self) -> BudgetExceeded:
        open_ones = {
            key: one for key, one in zip(self._keys, self._requests, strict=True) if key not in self._known and key not in self.dead
        }
        left, done = list(open_ones.values()), self._total - len(open_ones)
        most = most_usd(left, self._price, self._how.max_tokens)
        answered = [self._known[key]["cost_usd"] for key in set(self._keys) & self._known.keys()]
        likely = f"about {usd(sum(answered) / len(answered) * len(left))}, at most " if answered else "at most "
        needed = self._ledger.spent + self._ledger.lost + most
        return BudgetExceeded(
            f"the budget is used up ({self._ledger}): {len(left)} of {self._total} questions are open, and would cost {likely}{usd(most)}",
            where="baseline.budget_usd",
            fix=f"raise baseline.budget_usd (to {enough(needed)} at most) and run again; the {done} that are done cost nothing more",
        )

    def _tell(self) -> None:
        self._advance(self._done, str(self._ledger))

    def _clean(self, text: str) -> str:
        return redact(self._hide(text))


class _Stopped(Exception):
    """Another worker has stopped the run."""


def _hider(key: str | None) -> Callable[[str], str]:
    """Takes the key out of a text. Fewer than eight characters, such as "EMPTY", are a placeholder and no secret."""
    if key is None or len(key) < 8:
        return lambda text: text
    return lambda text: text.replace(key, "***")


def _distinct(requests: Sequence[Request]) -> None:
    count = Counter((request.example_id, request.repeat) for request in requests)
    twice = next((key for key, number in count.items() if number > 1), None)
    if twice is not None:
        raise EvaluationError(f"example {twice[0]!r} is asked twice (repeat {twice[1]})", fix="give every example an id of its own")


def _write_dead_letters(folder: Path, dead: dict[str, tuple[Request, str]]) -> None:
    """Rewrite the list of requests without an answer; no file where there are none."""
    path = folder / DEAD_LETTERS
    with disk_faults(f"writing {path}"):
        if not dead:
            path.unlink(missing_ok=True)
            return
        lines = [
            {
                "example_id": request.example_id,
                "repeat": request.repeat,
                "key": key,
                "reason": reason,
                "prompt_digest": request.prompt_digest,
            }
            for key, (request, reason) in dead.items()
        ]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
        partial.rename(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
