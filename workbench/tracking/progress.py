"""How far a journal has come in an MLflow."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "tracking.sync.json"


@dataclass
class Progress:
    """How far one journal has come in one MLflow; kept beside the journal, replaced as a whole.

    Losing it costs time only: runs are found again by their tag.
    """

    path: Path
    target: str
    offset: int = 0
    runs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path, target: str) -> Progress:
        """The progress of the journal in `directory` towards `target`, or none."""
        kept = _json_object(directory / FILE).get(target, {})
        return cls(directory / FILE, target, kept.get("offset", 0), kept.get("runs", {}))

    def save(self) -> None:
        """Write it down, beside what is known of other targets."""
        whole = {**_json_object(self.path), self.target: {"offset": self.offset, "runs": self.runs}}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(whole, indent=1))
        temporary.replace(self.path)

    def forget(self) -> None:
        """Begin again at the start of the journal."""
        self.offset, self.runs = 0, {}


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
