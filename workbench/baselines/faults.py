"""What can go wrong between a question and its answer: worth another try, final for this question, or the end of the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from workbench.errors import EvaluationError


class Transient(Exception):
    """Another attempt may succeed.

    Attributes:
        reason: in words, without secrets.
        after: seconds that the endpoint asks to wait; None where it does not say.
        billed: the endpoint may have generated, and charged for, an answer that never arrived.
    """

    def __init__(self, reason: str, *, after: float | None = None, billed: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.after, self.billed = reason, after, billed


class Rejected(Exception):
    """Final for this question, whatever becomes of the others.

    Attributes:
        status: refused by a content filter, or failed.
        own: it is about this question's content; otherwise every question may have the same fault.
    """

    def __init__(self, status: Literal["refused", "failed"], reason: str, *, own: bool = True) -> None:
        super().__init__(reason)
        self.status, self.reason, self.own = status, reason, own


class Halt(EvaluationError):
    """The run cannot go on: a wrong key, an unknown model, no money. What was recorded is kept."""


_NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "credit_balance_too_low"}
_FILTERED = {"content_filter", "content_policy_violation", "invalid_prompt", "ResponsibleAIPolicyViolation", "moderation_blocked"}
_TOO_LONG = re.compile(
    r"context[_ ](length|window)|maximum context|too many (input )?tokens|prompt is too long|input token count .* exceeds|too long for",
    re.I,
)
#: HTTP statuses after which a gateway may have lost an answer that a model behind it generated.
_LOST = {408, 499, 502, 504}
_RETRIED = {408, 409, 425, 429, 499}


def judge(status: int, code: str | None, message: str, headers: Mapping[str, str], *, model: str, after: float | None = None) -> Exception:
    """What an HTTP error means.

    Args:
        code: the error's own code or type.
        headers: of the response; names in any case.
        after: seconds to wait that the body asks for.

    Returns:
        `Transient`, `Rejected` or `Halt`, to be raised.
    """
    said = f"HTTP {status}{f' {code}' if code else ''}: {shorten(message)}"
    if status in (401, 403):
        return Halt(
            f"the endpoint does not accept the key ({said})",
            fix="check the variable that baseline.api_key_env names; where `url` is set, no key is sent unless it is named",
        )
    if status == 402 or code in _NO_MONEY:
        return Halt(f"the account has no money or quota left ({said})", fix="top it up, then run again; nothing is asked twice")
    if status in _RETRIED or status >= 500:
        return Transient(said, after=wait_asked(headers) if after is None else after, billed=status in _LOST)
    if 300 <= status < 400:
        return Halt(f"the endpoint redirects elsewhere ({said})", fix="set baseline.url to where it really is")
    if code in _FILTERED:
        return Rejected("refused", said)
    if _TOO_LONG.search(f"{code} {message}"):
        return Rejected("failed", f"the prompt does not fit into the model's context ({said})")
    if status in (404, 405):
        return Halt(f"there is no model `{model}` at this address ({said})", fix="check baseline.model and baseline.url")
    return Rejected("failed", said, own=False)


def shorten(text: str, limit: int = 300) -> str:
    """One line of at most `limit` characters."""
    line = re.sub(r"\s+", " ", text).strip()
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def wait_asked(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Seconds that a response asks to wait.

    Reads `retry-after-ms`, `Retry-After` (seconds or a date, RFC 9110 section 10.2.3), then OpenAI's `x-ratelimit-reset-*`
    ("6m0s", "88ms") and Anthropic's `anthropic-ratelimit-*-reset` (a time): of limits that are used up the longest, else of all.
    """
    now = now or datetime.now(UTC)
    lower = {name.lower(): value for name, value in headers.items()}
    milliseconds = _number(lower.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    if "retry-after" in lower:
        seconds = _number(lower["retry-after"])
        return seconds if seconds is not None else _until(lower["retry-after"], now)
    waits: dict[str, float] = {}
    for name, value in lower.items():
        found = re.fullmatch(r"x-ratelimit-reset-(.+)|anthropic-ratelimit-(.+)-reset", name)
        seconds = None if found is None else _duration(value) if found[1] else _until(value, now)
        if found is not None and seconds is not None:
            waits[found[1] or found[2]] = seconds
    left = {key: lower.get(f"x-ratelimit-remaining-{key}", lower.get(f"anthropic-ratelimit-{key}-remaining")) for key in waits}
    used_up = [seconds for key, seconds in waits.items() if _number(left[key]) == 0]
    return max(used_up or waits.values(), default=None)


def _number(text: Any) -> float | None:
    try:
        return max(0.0, float(text))
    except (TypeError, ValueError):
        return None


def _duration(text: str) -> float | None:
    """`1m6.5s`, `88ms` or plain seconds."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return _number(text)
    return sum(float(number) * units[unit] for number, unit in parts)


def _until(text: str, now: datetime) -> float | None:
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            then = read(text)
        except (TypeError, ValueError):
            continue
        return max(0.0, ((then if then.tzinfo else then.replace(tzinfo=UTC)) - now).total_seconds())
    return None
