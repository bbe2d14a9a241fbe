"""What these tests share: a file of references, requests without the SDK, the state and the log of a running simulator."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from openai import OpenAI

LABELS = ["angry", "glad", "sad"]


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


def label(number: int) -> str:
    return LABELS[number % 3]


def references(folder: Path, count: int = 300) -> str:
    """`question i` is answered by `label(i)`."""
    path = folder / "references.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}", "reference": label(i)}) + "\n" for i in range(count)))
    return str(path)


def client(url: str, **options: Any) -> OpenAI:
    return OpenAI(base_url=url, api_key="any", **{"max_retries": 0, **options})


def request(url: str, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
    """One request on a connection of its own; `body` is bytes, or made JSON."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=20)
    try:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, place.path + path, raw, {"Authorization": "Bearer any", **(headers or {})})
        answer = connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def ask(url: str, prompt: str, **parameters: Any) -> Reply:
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": prompt}], "temperature": 0, **parameters}
    return request(url, "POST", "/chat/completions", body)


def state(url: str) -> dict[str, Any]:
    return dict(request(url.removesuffix("/v1"), "GET", "/simulator/state").body)


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
