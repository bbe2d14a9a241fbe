"""Errors as the API says them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """An answer of the form {"error": {"message", "type", "param", "code"}}.

    Args:
        status: the HTTP status.
        message: one sentence or two; never holds a key.
        kind: the error's `type`.
        param: the parameter to blame.
        code: what a program can tell errors apart by.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error, "simulated": True}


def unknown_model(name: str) -> ApiError:
    """The model does not exist (404)."""
    message = f"The model `{name[:100]}` does not exist or you do not have access to it."
    return ApiError(404, message, code="model_not_found", param="model")
