"""Sending a response the way a real network does: late, in pieces, cut short, or never."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Ending = Literal["whole", "cut", "reset", "hang"]

#: Seconds to wait until a connection that was closed is gone.
_CLOSING = 5.0


class Delivery(Response):
    """One response of a chat completion.

    Args:
        body: what is sent of it.
        media_type: of the body.
        headers: more headers.
        delay_s: seconds before the first byte.
        pause_s: seconds between the parts of the body.
        length: the content-length to claim; None for a stream.
        ending: whole; cut (the connection closes after what was sent); reset (before anything is sent); hang (nothing is ever sent).
        hang_s: the longest time to hang.
        on_end: called once, with whether all of it went out to a client that was there.
    """

    def __init__(
        self,
        body: Iterable[bytes],
        *,
        media_type: str,
        headers: Mapping[str, str],
        delay_s: float = 0.0,
        pause_s: float = 0.0,
        length: int | None = None,
        ending: Ending = "whole",
        hang_s: float = 0.0,
        on_end: Callable[[bool], None],
    ) -> None:
        self.parts, self.delay_s, self.pause_s, self.ending, self.hang_s, self.on_end = body, delay_s, pause_s, ending, hang_s, on_end
        self.status_code, self.media_type, self.background = 200, media_type, None
        lengths = {} if length is None else {"content-length": str(length)}
        self.init_headers({**headers, "content-type": media_type, **lengths})

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """Exactly these; Starlette would add the length of a body that it does not have."""
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        whole, transport = False, scope["state"]["transport"]
        try:
            whole = await self._deliver(transport, receive, send)
        except asyncio.CancelledError:  # the server stops: break off, or uvicorn would answer 500
            transport.abort()
            raise
        finally:
            self.on_end(whole)

    async def _deliver(self, transport: asyncio.Transport, receive: Receive, send: Send) -> bool:
        if self.ending == "reset":
            # A linger time of 0 makes the kernel send RST instead of FIN.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self.ending == "reset" or (self.ending == "hang" and not await _left(receive, self.hang_s)):
            transport.abort()
            await _left(receive, _CLOSING)
        if self.ending in ("reset", "hang") or await _left(receive, self.delay_s):
            return False
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for position, part in enumerate(self.parts):
            if position and await _left(receive, self.pause_s):
                return False
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if self.ending == "cut":
            transport.close()
            await _left(receive, _CLOSING)
            return False
        there = not transport.is_closing()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return there


async def _left(receive: Receive, seconds: float) -> bool:
    """Wait; whether the client left meanwhile."""
    if seconds <= 0:
        return False
    try:
        await asyncio.wait_for(receive(), seconds)
    except TimeoutError:
        return False
    return True
