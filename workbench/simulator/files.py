"""The files API: uploads, kept in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from workbench.simulator import chance
from workbench.simulator.errors import ApiError


@dataclass(frozen=True)
class File:
    """An uploaded file."""

    identity: str
    name: str
    purpose: str
    content: bytes = field(repr=False)
    created: int

    def body(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "id": self.identity,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "simulated": True,
        }


class Files:
    """All uploads, the newest last.

    Args:
        seed: of the ids.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._count = seed, 0
        self._files: dict[str, File] = {}

    def upload(self, content_type: str, body: bytes) -> File:
        """Keep the file of a multipart form with the fields `purpose` and `file`.

        Raises:
            ApiError: 400, the form is not such a form.
        """
        form = _form(content_type, body)
        if "file" not in form:
            raise ApiError(400, "'file' is a required property", param="file")
        purpose = form.get("purpose", ("", b""))[1].decode("utf-8", "replace")
        if purpose != "fine-tune":
            message = f"'{purpose[:40]}' is not one of ['fine-tune'] - 'purpose'; the simulator plays no other."
            raise ApiError(400, message, param="purpose", code="invalid_value")
        name, content = form["file"]
        if not name.endswith(".jsonl"):
            raise ApiError(400, "Invalid file format for Fine-Tuning API. Must be .jsonl", param="file")
        self._count += 1
        file = File(f"file-{chance.identifier(self._seed, 'file', self._count)}", name, purpose, content, int(time.time()))
        self._files[file.identity] = file
        return file

    def get(self, identity: str) -> File:
        """One file.

        Raises:
            ApiError: 404.
        """
        if identity not in self._files:
            raise ApiError(404, f"No such File object: {identity[:100]}", param="id")
        return self._files[identity]

    def delete(self, identity: str) -> None:
        """Forget one file (404 where there is none)."""
        del self._files[self.get(identity).identity]

    def newest_first(self) -> list[dict[str, Any]]:
        """All files as the API shows them."""
        return [file.body() for file in reversed(self._files.values())]


def page(items: Sequence[dict[str, Any]], after: str | None, limit: str | None) -> dict[str, Any]:
    """A page of a list, by the API's cursor.

    Args:
        after: the id after which it begins; None: at the first.
        limit: at most so many, 20 by default.

    Raises:
        ApiError: 400, the limit is not a number from 1 to 10,000.
    """
    if limit is not None and not (limit.isascii() and limit.isdecimal() and len(limit) < 6 and 1 <= int(limit) <= 10_000):
        raise ApiError(400, "Invalid value for 'limit': it must be a number from 1 to 10000.", param="limit", code="invalid_value")
    most = 20 if limit is None else int(limit)
    start = next((position + 1 for position, item in enumerate(items) if item["id"] == after), 0)
    shown = list(items[start : start + most])
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, **ends, "has_more": start + most < len(items), "simulated": True}


def _form(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """The fields of a multipart form: file name and content, by name."""
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body)
    if message.get_content_type() != "multipart/form-data" or not message.is_multipart():
        raise ApiError(400, "The body of your request must be a multipart/form-data form with 'purpose' and 'file'.")
    found = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            found[name] = (part.get_filename() or "", content)
    return found
