"""A managed fine-tune: the training split sent to the provider, whose job is started once, followed, and paid for within a budget.

OpenAI's files and fine-tuning-jobs API (https://platform.openai.com/docs/api-reference/fine-tuning). The uploaded file is named after its
content, and a job is known by its file, model and hyperparameters: a run that was killed finds both again instead of making them twice.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from workbench.baselines.budget import BudgetExceeded, enough, usd
from workbench.baselines.client import read_key
from workbench.baselines.conversation import requests
from workbench.baselines.faults import Halt, Rejected, Transient, judge, shorten
from workbench.baselines.openai import URL, read_error, read_object, says_simulated, session
from workbench.baselines.prices import Quote, tuned_quote
from workbench.baselines.retry import retrying
from workbench.child import write_json
from workbench.data.example import Example
from workbench.digest import file_digest
from workbench.errors import EvaluationError, disk_faults
from workbench.progress import Advance
from workbench.recipe.schema.baseline import Baseline, FineTune
from workbench.recipe.secrets import redact

STATE = "fine_tune.json"
TRAINING = "training.jsonl"
#: OpenAI refuses a job with fewer rows.
LEAST_ROWS = 10

T = TypeVar("T")

_ENDED = {"succeeded", "failed", "cancelled"}


@dataclass(frozen=True)
class Tuned:
    """A finished managed fine-tune.

    Attributes:
        model: the new model's id, pinned by nature.
        base: the closed model it was made of.
        trained_tokens: tokens that were charged, all epochs together.
        cost_usd: `trained_tokens` at `price.training`.
        seconds: from the job's creation to its end, as the provider says; None where it does not.
        simulated: a simulator said so.
        price: what asking it costs, and where that is from.
    """

    model: str
    base: str
    job: str
    trained_tokens: int
    cost_usd: float
    seconds: float | None
    simulated: bool
    price: Quote

    def baseline(self, asked: Baseline) -> Baseline:
        """The recipe's section with which the new model is asked: no instructions, since it was trained without."""
        changes = {"model": self.model, "price": self.price.price, "fine_tune": None, "allow_floating": True}
        return asked.model_copy(update=changes)


def export(examples: Sequence[Example], baseline: Baseline, path: Path) -> None:
    """Write the training rows as the provider wants them: `{"messages": [..., the answer]}`, one a line.

    The prompts are those that the closed model is asked with, `baseline.prompt` and `baseline.system` included.

    Raises:
        EvaluationError: too few rows for a job.
    """
    if len(examples) < LEAST_ROWS:
        raise EvaluationError(f"{len(examples)} training rows are too few for a fine-tune", fix=f"give it {LEAST_ROWS} or more")
    asked = requests(examples, baseline.model_copy(update={"repeats": 1}))
    lines = []
    for example, request in zip(examples, asked, strict=True):
        answer = example.answer or {"role": "assistant", "content": example.references[0]}
        row: dict[str, Any] = {"messages": [*request.messages, answer]}
        if example.tools:
            row["tools"] = list(example.tools)
        lines.append(json.dumps(row, ensure_ascii=False))
    with disk_faults(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def most_usd(training: Path, epochs: int, price: Quote) -> float:
    """What training on a file may cost at most: no tokenizer makes more than a token a byte."""
    return training.stat().st_size * epochs * (price.training or 0.0) / 1e6


def fine_tune(examples: Sequence[Example], baseline: Baseline, folder: Path, advance: Advance) -> Tuned:
    """Have the provider fine-tune its model on the training rows; goes on where an earlier attempt was killed.

    Args:
        folder: keeps the training file, and the ids of file and job.
        advance: told the share done, 0 to 1, as far as the provider's estimate tells.

    Raises:
        EvaluationError: no key, no price, too few rows; or the job failed, with the provider's reason.
        BudgetExceeded: the job could cost more than `fine_tune.budget_usd`; nothing was uploaded.
        Halt: a wrong key, an unknown model, a job that the provider refuses.
    """
    wanted = baseline.fine_tune
    assert wanted is not None and baseline.provider == "openai"
    base = wanted.model or baseline.model or ""
    price = tuned_quote(baseline, base)
    key = read_key(baseline)
    training = folder / TRAINING
    export(examples, baseline, training)
    most = most_usd(training, wanted.epochs, price)
    if most > wanted.budget_usd:
        raise BudgetExceeded(
            f"fine-tuning `{base}` on {len(examples)} rows for {wanted.epochs} epochs may cost {usd(most)}, over {usd(wanted.budget_usd)}",
            where="baseline.fine_tune.budget_usd",
            fix=f"raise it to {enough(most)}, or lower epochs or the number of rows; the bound counts a token a byte, four times the usual",
        )
    job = asyncio.run(_Job(baseline, wanted, base, key, training, folder / STATE, advance).run())
    if job["status"] != "succeeded" or not job.get("fine_tuned_model"):
        reason = (job.get("error") or {}).get("message") or "the provider gives no reason"
        raise EvaluationError(
            f"the fine-tuning job {job['id']} has {job['status']}: {redact(shorten(reason))}",
            where=str(folder / STATE),
            fix="correct what it names, remove this file, and run again: that starts a new job",
        )
    tokens = int(job.get("trained_tokens") or 0)
    begun, ended = job.get("created_at"), job.get("finished_at")
    return Tuned(
        model=job["fine_tuned_model"],
        base=base,
        job=job["id"],
        trained_tokens=tokens,
        cost_usd=tokens * (price.training or 0.0) / 1e6,
        seconds=float(ended - begun) if begun and ended else None,
        simulated=bool(job.get("simulated")),
        price=price,
    )


class _Job:
    """The file and the job of one fine-tune, each found if it is there and made if it is not."""

    def __init__(
        self, baseline: Baseline, wanted: FineTune, base: str, key: str | None, training: Path, state: Path, advance: Advance
    ) -> None:
        self._baseline, self._wanted, self._base, self._key = baseline, wanted, base, key
        self._training, self._state, self._advance = training, state, advance
        self._url = (baseline.url or URL).rstrip("/")
        self._simulated = False

    async def run(self) -> dict[str, Any]:
        async with session(self._key, self._baseline.timeout_s, 1) as self._session:
            known = json.loads(self._state.read_text()) if self._state.exists() else {}
            name = f"workbench-{file_digest(self._training)[:16]}.jsonl"
            if known.get("file_name") != name:
                known = {"file_name": name}
            if "file" not in known:
                known["file"] = await self._again(lambda: self._file(name))
                write_json(self._state, known)
            if "job" not in known:
                known["job"] = await self._again(lambda: self._start(known["file"]))
                write_json(self._state, known)
            return {**await self._follow(known["job"]), "simulated": self._simulated}

    async def _file(self, name: str) -> str:
        """The id of the uploaded training file."""
        listed = await self._call("GET", "/files", params={"purpose": "fine-tune", "limit": "10000"})
        size = self._training.stat().st_size
        for file in listed.get("data", []):
            if file.get("filename") == name and file.get("bytes") in (size, None) and file.get("status") not in ("error", "deleted"):
                return str(file["id"])
        form = aiohttp.FormData()
        form.add_field("purpose", "fine-tune")
        form.add_field("file", self._training.read_bytes(), filename=name, content_type="application/jsonl")
        return str((await self._call("POST", "/files", data=form))["id"])

    async def _start(self, file: str) -> str:
        """The id of the job on this file; one that was cancelled or failed is not taken up again."""
        hyper: dict[str, Any] = {"n_epochs": self._wanted.epochs}
        if self._wanted.batch_size is not None:
            hyper["batch_size"] = self._wanted.batch_size
        if self._wanted.learning_rate_multiplier is not None:
            hyper["learning_rate_multiplier"] = self._wanted.learning_rate_multiplier
        listed = await self._call("GET", "/fine_tuning/jobs", params={"limit": "100"})
        for job in listed.get("data", []):
            theirs = job.get("hyperparameters") or _supervised(job)
            same = job.get("training_file") == file and job.get("model") == self._base and job.get("seed") in (self._wanted.seed, None)
            if same and all(theirs.get(key) == value for key, value in hyper.items()) and job.get("status") not in ("failed", "cancelled"):
                return str(job["id"])
        body = {
            "model": self._base,
            "training_file": file,
            "seed": self._wanted.seed,
            "suffix": self._wanted.suffix,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
        }
        return str((await self._call("POST", "/fine_tuning/jobs", json=body))["id"])

    async def _follow(self, job: str) -> dict[str, Any]:
        begun = time.time()
        while True:
            state = await self._again(lambda: self._call("GET", f"/fine_tuning/jobs/{job}"))
            status = str(state.get("status"))
            if status in _ENDED:
                return {**state, "id": job}
            finish = state.get("estimated_finish")
            share = (time.time() - begun) / max(finish - begun, 1.0) if isinstance(finish, int | float) else 0.0
            self._advance(min(share, 0.99), status)
            await asyncio.sleep(self._wanted.poll_s)

    async def _again(self, step: Callable[[], Awaitable[T]]) -> T:
        """A step, repeated with full jitter while it fails in a way that may pass. Each step first looks for what an earlier try made."""
        try:
            async for attempt in retrying(self._baseline.attempts):
                with attempt:
                    return await step()
        except Transient as error:
            fix = "run again: it goes on from here"
            raise Halt(f"the fine-tuning API does not answer: {self._clean(error.reason)}", where=self._url, fix=fix) from error
        except Rejected as error:
            fix = "correct what it names under baseline.fine_tune"
            raise Halt(f"the provider refuses the fine-tune: {self._clean(error.reason)}", where="baseline.fine_tune", fix=fix) from error
        except Halt as error:
            raise Halt(self._clean(error.what), where=error.where, fix=error.fix) from error
        raise AssertionError("the last attempt returns or raises")

    async def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            async with self._session.request(method, f"{self._url}{path}", allow_redirects=False, **arguments) as response:
                raw, status, headers = await response.read(), response.status, response.headers
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Transient(f"{type(error).__name__} {shorten(str(error))}") from error
        self._simulated = self._simulated or says_simulated(headers)
        body = read_object(raw)
        if status >= 300:
            raise judge(status, *read_error(body, raw), headers, model=self._base)
        if body is None:
            raise Transient("an answer that is not JSON")
        self._simulated = self._simulated or body.get("simulated") is True
        return body

    def _clean(self, text: str) -> str:
        return redact(text.replace(self._key, "***") if self._key else text)


def _supervised(job: Mapping[str, Any]) -> Mapping[str, Any]:
    return ((job.get("method") or {}).get("supervised") or {}).get("hyperparameters") or {}
