"""The HTTP interface: routes, keys, errors, and the mark SIMULATED on every response."""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workbench.errors import WorkbenchError
from workbench.simulator import chance, references
from workbench.simulator.answers import Answers
from workbench.simulator.chat import Chat
from workbench.simulator.desk import Desk
from workbench.simulator.errors import ApiError, unknown_model
from workbench.simulator.files import Files, page
from workbench.simulator.fine_tuning import JobRequest, Jobs
from workbench.simulator.models import Models
from workbench.simulator.request import body_of, parse
from workbench.simulator.settings import Simulator


def make_app(settings: Simulator) -> ASGIApp:
    """The server's application.

    Raises:
        WorkbenchError: the references cannot be used, the key's environment variable is empty, the log cannot be written.
    """
    known = references.read(Path(settings.references), settings.seed) if settings.references is not None else {}
    answers = Answers(known, seed=settings.seed, spread=settings.spread, noise=settings.noise, fallback=settings.fallback)
    changed = settings.accuracy if settings.change is None or settings.change.accuracy is None else settings.change.accuracy
    answers.check(min(settings.accuracy, changed, settings.fine_tuning.accuracy))
    desk = Desk(settings.seed, Path(settings.log) if settings.log is not None else None)
    files = Files(settings.seed)
    jobs = Jobs(settings.fine_tuning, files, seed=settings.seed, clock=desk.seconds)
    models = Models(settings, desk.seconds, jobs.tuned)
    app = FastAPI(title="SIMULATED closed model", openapi_url=None)
    guard = [Depends(_Keys(settings.api_key_env, keyless=settings.keyless))]
    app.include_router(_models(models, desk), prefix="/v1", dependencies=guard)
    app.include_router(_chat(Chat(settings, answers, models, desk)), prefix="/v1", dependencies=guard)
    app.include_router(_files(files), prefix="/v1", dependencies=guard)
    app.include_router(_jobs(jobs), prefix="/v1", dependencies=guard)

    @app.get("/simulator/state")
    async def state() -> JSONResponse:
        version = models.current(desk.requests + 1)
        found = {**desk.state(), "training_cost_usd": jobs.cost(), "version": version.name, "system_fingerprint": version.fingerprint}
        return JSONResponse({**found, "simulated": True})

    app.add_exception_handler(ApiError, _said)
    app.add_exception_handler(HTTPException, _no_such_place)
    app.add_exception_handler(ClientDisconnect, _nobody_there)
    return _Marked(app, settings.seed)


def _models(models: Models, desk: Desk) -> APIRouter:
    router = APIRouter()

    def shown(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "simulator", "simulated": True}

    @router.get("/models")
    async def list_models() -> JSONResponse:
        names = models.names(desk.requests + 1)
        return JSONResponse({"object": "list", "data": [shown(name) for name in names], "simulated": True})

    @router.get("/models/{name:path}")
    async def get_model(name: str) -> JSONResponse:
        if name not in models.names(desk.requests + 1):
            raise unknown_model(name)
        return JSONResponse(shown(name))

    return router


def _chat(chat: Chat) -> APIRouter:
    router = APIRouter()

    @router.post("/chat/completions")
    async def complete(request: Request) -> Response:
        return await chat.complete(request)

    return router


def _files(files: Files) -> APIRouter:
    router = APIRouter()

    @router.post("/files")
    async def upload(request: Request) -> JSONResponse:
        return JSONResponse(files.upload(request.headers.get("content-type", ""), await body_of(request)).body())

    @router.get("/files")
    async def list_files(request: Request) -> JSONResponse:
        return JSONResponse(page(files.newest_first(), request.query_params.get("after"), request.query_params.get("limit")))

    @router.get("/files/{identity}")
    async def get_file(identity: str) -> JSONResponse:
        return JSONResponse(files.get(identity).body())

    @router.get("/files/{identity}/content")
    async def get_content(identity: str) -> Response:
        return Response(files.get(identity).content, media_type="application/octet-stream")

    @router.delete("/files/{identity}")
    async def delete_file(identity: str) -> JSONResponse:
        files.delete(identity)
        return JSONResponse({"id": identity, "object": "file", "deleted": True, "simulated": True})

    return router


def _jobs(jobs: Jobs) -> APIRouter:
    router = APIRouter(prefix="/fine_tuning/jobs")

    @router.post("")
    async def create(request: Request) -> JSONResponse:
        return JSONResponse(jobs.create(parse(await body_of(request), JobRequest)))

    @router.get("")
    async def list_jobs(request: Request) -> JSONResponse:
        return JSONResponse(page(jobs.newest_first(), request.query_params.get("after"), request.query_params.get("limit")))

    @router.get("/{identity}")
    async def get_job(identity: str) -> JSONResponse:
        return JSONResponse(jobs.get(identity))

    @router.get("/{identity}/events")
    async def list_events(identity: str, request: Request) -> JSONResponse:
        return JSONResponse(page(jobs.events(identity), request.query_params.get("after"), request.query_params.get("limit")))

    @router.post("/{identity}/cancel")
    async def cancel(identity: str) -> JSONResponse:
        return JSONResponse(jobs.cancel(identity))

    return router


class _Keys:
    """Lets in who shows a key: any, or the one in an environment variable; or everybody."""

    def __init__(self, name: str | None, *, keyless: bool) -> None:
        self._keyless = keyless
        self._key = None if name is None else os.environ.get(name, "").encode()
        if self._key == b"":
            raise WorkbenchError("the environment variable is not set", where=f"api_key_env: {name}", fix=f"export {name}=...")

    async def __call__(self, request: Request) -> None:
        if self._keyless:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(401, "You didn't provide an API key: send it as 'Authorization: Bearer YOUR_KEY'.")
        if self._key is not None and not hmac.compare_digest(key.strip().encode("latin-1"), self._key):
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")


async def _said(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _no_such_place(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"Invalid URL or method ({request.method} {request.url.path[:100]}): {error.detail}"
    return JSONResponse(ApiError(error.status_code, message).body(), status_code=error.status_code, headers=error.headers)


async def _nobody_there(_: Request, __: Exception) -> Response:
    return Response(status_code=400)


class _Marked:
    """Puts `x-simulated: true` and a request id on every response."""

    def __init__(self, app: ASGIApp, seed: int) -> None:
        self._app, self._seed, self._count = app, seed, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._count += 1
        identity = f"req_{chance.identifier(self._seed, 'request', self._count)}"

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                marks = [(b"x-simulated", b"true"), (b"x-request-id", identity.encode())]
                message = {**message, "headers": [*message.get("headers", []), *marks]}
            await send(message)

        await self._app(scope, receive, marked)
