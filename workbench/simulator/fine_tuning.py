"""The fine-tuning jobs API, played by the clock: queued, running, then succeeded, or failed where a file is no good."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from workbench.simulator import chance
from workbench.simulator.desk import MILLION
from workbench.simulator.errors import ApiError, unknown_model
from workbench.simulator.files import Files
from workbench.simulator.settings import FineTuning
from workbench.simulator.training_file import InvalidFileError, count_tokens

#: What `auto` means here.
AUTO_EPOCHS = 3

Auto = Literal["auto"]


class Hyperparameters(BaseModel):
    """Only the epochs change what is played: the trained tokens, and with them the cost."""

    model_config = ConfigDict(strict=True, extra="forbid")

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0)] = "auto"


class Supervised(BaseModel):
    """How a supervised job trains."""

    model_config = ConfigDict(strict=True, extra="forbid")

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(BaseModel):
    """The one method that is played."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["supervised"]
    supervised: Supervised = Supervised()


class JobRequest(BaseModel):
    """Body of POST /v1/fine_tuning/jobs. `integrations` is accepted and changes nothing."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: dict[str, str] | None = None
    integrations: Any = None

    def chosen(self) -> Hyperparameters:
        """From wherever they were given."""
        return self.method.supervised.hyperparameters if self.method is not None else self.hyperparameters or Hyperparameters()


@dataclass
class Job:
    """A job; what it has become is a matter of the clock.

    Attributes:
        created: seconds of the clock; `created_at` seconds since 1970.
        trained_tokens: once it has succeeded.
        fault: (message, parameter) of the file that is no good.
        cancelled: seconds of the clock.
    """

    identity: str
    request: JobRequest
    created: float
    created_at: int
    trained_tokens: int
    tuned_model: str
    fault: tuple[str, str] | None = None
    cancelled: float | None = None

    def history(self, settings: FineTuning, now: float) -> list[tuple[str, float]]:
        """The states it went through until `now`, each with the second it began."""
        starts = self.created + settings.queued_s
        states = [("queued", self.created)]
        if self.fault is not None:
            states.append(("failed", starts))
        else:
            states += [("running", starts), ("succeeded", starts + settings.running_s)]
        if self.cancelled is not None:
            states = [(state, at) for state, at in states if at < self.cancelled] + [("cancelled", self.cancelled)]
        return [(state, at) for state, at in states if at <= now]


class Jobs:
    """All jobs.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, settings: FineTuning, files: Files, *, seed: int, clock: Callable[[], float]) -> None:
        self._settings, self._files, self._seed, self._clock = settings, files, seed, clock
        self._jobs: dict[str, Job] = {}

    def create(self, request: JobRequest) -> dict[str, Any]:
        """Start a job.

        Raises:
            ApiError: 404 for an unknown model, 400 for an unknown file. A file that is no good fails the job instead.
        """
        if request.model not in self._settings.models:
            raise unknown_model(request.model)
        fault, counted = None, 0
        for param, name in (("validation_file", request.validation_file), ("training_file", request.training_file)):
            if name is None:
                continue
            try:
                counted = count_tokens(self._files.get(name).content)
            except ApiError as error:
                raise ApiError(400, f"invalid {param}: {name[:100]}", param=param, code="invalid_file_id") from error
            except InvalidFileError as error:
                fault = (str(error), param)
        epochs = request.chosen().n_epochs
        number = len(self._jobs) + 1
        ending = chance.identifier(self._seed, "tuned", number, digits=8)
        job = Job(
            identity=f"ftjob-{chance.identifier(self._seed, 'job', number)}",
            request=request,
            created=self._clock(),
            created_at=int(time.time()),
            trained_tokens=counted * (AUTO_EPOCHS if epochs == "auto" else epochs),
            tuned_model=f"ft:{request.model}:{self._settings.organization}:{request.suffix or ''}:{ending}",
            fault=fault,
        )
        self._jobs[job.identity] = job
        return self._body(job)

    def get(self, identity: str) -> dict[str, Any]:
        """One job as the API shows it (404 where there is none)."""
        return self._body(self._find(identity))

    def newest_first(self) -> list[dict[str, Any]]:
        """All jobs as the API shows them."""
        return [self._body(job) for job in reversed(self._jobs.values())]

    def cancel(self, identity: str) -> dict[str, Any]:
        """Stop a job that is not finished.

        Raises:
            ApiError: 400, it is finished.
        """
        job = self._find(identity)
        if self._state(job) not in ("queued", "running"):
            raise ApiError(400, f"Job has already completed: {identity}", code="invalid_job_state")
        job.cancelled = self._clock()
        return self._body(job)

    def events(self, identity: str) -> list[dict[str, Any]]:
        """What happened to a job, the newest first."""
        job = self._find(identity)
        said = {
            "queued": f"Created fine-tuning job: {job.identity} (SIMULATED)",
            "running": "Fine-tuning job started",
            "succeeded": f"New fine-tuned model created: {job.tuned_model}",
            "failed": job.fault[0] if job.fault is not None else "",
            "cancelled": "The job was cancelled",
        }
        events = [
            {
                "id": f"ftevent-{chance.identifier(self._seed, job.identity, state)}",
                "object": "fine_tuning.job.event",
                "created_at": job.created_at + int(at - job.created),
                "level": "error" if state == "failed" else "info",
                "message": said[state],
                "type": "message",
                "simulated": True,
            }
            for state, at in job.history(self._settings, self._clock())
        ]
        return events[::-1]

    def tuned(self) -> list[str]:
        """The models that are ready."""
        return [job.tuned_model for job in self._jobs.values() if self._state(job) == "succeeded"]

    def cost(self) -> float:
        """US dollars for all training that has succeeded."""
        done = (job.trained_tokens for job in self._jobs.values() if self._state(job) == "succeeded")
        return sum(done) * self._settings.training_price / MILLION

    def _find(self, identity: str) -> Job:
        if identity not in self._jobs:
            raise ApiError(404, f"Could not find fine tune: {identity[:100]}", param="fine_tuning_job_id", code="fine_tune_not_found")
        return self._jobs[identity]

    def _state(self, job: Job) -> str:
        return job.history(self._settings, self._clock())[-1][0]

    def _body(self, job: Job) -> dict[str, Any]:
        state, at = job.history(self._settings, self._clock())[-1]
        succeeded, request, chosen = state == "succeeded", job.request, job.request.chosen().model_dump()
        error = None
        if state == "failed" and job.fault is not None:
            error = {"code": f"invalid_{job.fault[1]}", "message": job.fault[0], "param": job.fault[1]}
        return {
            "id": job.identity,
            "object": "fine_tuning.job",
            "created_at": job.created_at,
            "finished_at": job.created_at + int(at - job.created) if state in ("succeeded", "failed", "cancelled") else None,
            "estimated_finish": None,
            "model": request.model,
            "fine_tuned_model": job.tuned_model if succeeded else None,
            "organization_id": self._settings.organization,
            "status": state,
            "trained_tokens": job.trained_tokens if succeeded else None,
            "training_file": request.training_file,
            "validation_file": request.validation_file,
            "result_files": [],
            "hyperparameters": chosen,
            "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}},
            "seed": request.seed or 0,
            "metadata": request.metadata,
            "integrations": [],
            "user_provided_suffix": request.suffix,
            "error": error,
            "simulated": True,
        }
