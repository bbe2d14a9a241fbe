"""One example: what the model is asked, and what counts as the answer."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

Message = dict[str, Any]  # {"role": ..., "content": ..., and for tools "tool_calls", "tool_call_id", "name"}


def content_key(content: str) -> str:
    """SHA-256, 16 hex digits, of a text without regard to case and spacing."""
    return hashlib.sha256(re.sub(r"\s+", " ", content).strip().casefold().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Example:
    """One row of a data set, after its format was read and its prompt template filled in.

    Attributes:
        prompt: raw text, or the chat messages before the answer (earlier assistant turns included).
        references: accepted answers; the first is the one that is trained on.
        metadata: JSON-compatible values that came with the row; slices are fields of it.
        where: file and row for error messages, such as `train.jsonl, row 12` (rows count from 1).
        tools: tool schemas offered to the model, in OpenAI's form; None when there are none.
        answer: the final assistant message in full where it is more than text (tool calls); else None.
        key: content key of the row's own words, given by the reader: the wording of `task.prompt` or `task.system`
            around them is no part of it, so that another wording moves no row to another split. Empty: made of the prompt.
    """

    prompt: str | tuple[Message, ...]
    references: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    where: str = ""
    tools: tuple[dict[str, Any], ...] | None = None
    answer: Message | None = None
    key: str = ""

    @property
    def content_key(self) -> str:
        """What makes two prompts the same for deduplication and contamination (16 hex digits).

        The answer is not part of it: one prompt must not sit in two splits.
        """
        if self.key:
            return self.key
        text = self.prompt if isinstance(self.prompt, str) else json.dumps([self.prompt, self.tools], sort_keys=True, ensure_ascii=False)
        return content_key(text)

    @property
    def id(self) -> str:
        """The `example_id` of the outcomes table: stable over files, orders, splits and prompt wordings."""
        return self.content_key

    def to_json(self) -> dict[str, Any]:
        """A JSON-compatible copy; `from_json` reverses it."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Example:
        """Read what `to_json` wrote."""
        prompt = row["prompt"]
        return cls(
            prompt=prompt if isinstance(prompt, str) else tuple(prompt),
            references=tuple(row["references"]),
            metadata=row["metadata"],
            where=row["where"],
            tools=tuple(row["tools"]) if row["tools"] else None,
            answer=row["answer"],
            key=row["key"],
        )
