"""A small OpenAI-compatible server that misbehaves as told, and keeps a log of every request and what it charged."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

FAULTS = ("429", "500", "503", "reset", "truncated", "malformed", "empty")


def content(messages: list[dict[str, Any]]) -> str:
    return str(messages[-1]["content"])


@dataclass
class Server:
    """What a test may set and look at.

    Attributes:
        share: of requests that go wrong, chosen by a hash of seed and number.
        script: answers before anything else; returns a response, or None to let the request through.
        log: (question, "answer" or the fault), in the order in which they were decided.
        billed: US dollars charged: for every answer generated, also for those that broke on the way.
    """

    share: float = 0.0
    seed: int = 0
    delay_s: float = 0.0
    script: Callable[[web.Request, dict[str, Any]], web.Response | None] | None = None
    price: tuple[float, float] = (1.0, 4.0)
    extra: dict[str, Any] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    billed: float = 0.0
    most_in_flight: int = 0
    in_flight: int = 0
    url: str = ""

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            scripted = self.script(request, body) if self.script else None
            question = content(body["messages"])
            if scripted is not None:
                self.log.append((question, str(scripted.status)))
                return scripted
            roll = int(hashlib.sha256(f"{self.seed} {number}".encode()).hexdigest(), 16)
            fault = FAULTS[roll // 1000 % len(FAULTS)] if roll % 1000 < self.share * 1000 else None
            self.log.append((question, fault or "answer"))
            return await self.answer(request, body, fault)
        finally:
            self.in_flight -= 1

    async def answer(self, request: web.Request, body: dict[str, Any], fault: str | None) -> web.StreamResponse:
        if fault == "429":
            return web.json_response({"error": {"message": "slow down", "code": "rate_limit"}}, status=429, headers={"retry-after-ms": "5"})
        if fault in ("500", "503"):
            return web.json_response({"error": {"message": "overloaded"}}, status=int(fault))
        answer = completion(body, f"answer to {content(body['messages'])}", **self.extra)
        self.billed += (answer["usage"]["prompt_tokens"] * self.price[0] + answer["usage"]["completion_tokens"] * self.price[1]) / 1e6
        if fault == "malformed":
            return web.Response(text="<html>oops", content_type="application/json")
        if fault == "empty":
            return web.json_response({"id": "x", "choices": []})
        text = json.dumps(answer).encode()
        if fault in ("reset", "truncated"):
            response = web.StreamResponse(headers={"Content-Length": str(len(text)), "Content-Type": "application/json"})
            await response.prepare(request)
            if fault == "truncated":
                await response.write(text[: len(text) // 2])
            assert request.transport is not None
            request.transport.abort()
            return response
        return web.Response(body=text, content_type="application/json")


def completion(body: dict[str, Any], text: str | None, **extra: Any) -> dict[str, Any]:
    size = sum(len(str(message["content"])) for message in body["messages"]) // 4 + 4
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": body["model"],
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": size, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 2}},
        **extra,
    }


@contextmanager
def serve(server: Server, routes: list[web.RouteDef] | None = None) -> Iterator[Server]:
    """Run the server in a thread; the address is `server.url`."""
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=1 << 26)
        app.add_routes([web.post("/v1/chat/completions", server.chat), *(routes or [])])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        server.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"
        return runner

    runner = loop.run_until_complete(start())

    def run() -> None:
        ready.set()
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
