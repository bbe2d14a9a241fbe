"""Content-addressed artifacts: written under a temporary name, synced, then renamed. Never half an artifact.

.workbench/store/<stage>-<key>/     one immutable artifact: its files, and artifact.json that names them all
.workbench/work/<stage>-<key>/      what a stage keeps between attempts, such as checkpoints; removed once published
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.digest import tree_files
from workbench.disk import fsync
from workbench.errors import StoreError, disk_faults
from workbench.progress import say

MANIFEST = "artifact.json"


@dataclass(frozen=True)
class Artifact:
    """A published artifact.

    Attributes:
        path: its directory; read it, never write to it.
        stage: name of the stage that made it, such as `train`.
        key: digest (16 hex digits) of everything that decides its content.
        facts: what the stage said about it; JSON-compatible.
        seconds: wall-clock time that making it took.
    """

    path: Path
    stage: str
    key: str
    facts: Mapping[str, Any]
    seconds: float

    @property
    def name(self) -> str:
        return self.path.name


class Store:
    """The artifact store below one state directory (`.workbench`)."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.root = state / "store"
        self.scratch = state / "work"

    def find(self, stage: str, key: str) -> Artifact | None:
        """The artifact with this key, or None. One that lost or grew a file since it was published counts as missing."""
        path = self.root / _name(stage, key)
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            whole = all((path / name).stat().st_size == entry["size"] for name, entry in manifest["files"].items())
            artifact = Artifact(path, manifest["stage"], manifest["key"], manifest["facts"], manifest["seconds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return artifact if whole else None

    def artifacts(self) -> Iterator[tuple[Artifact, Mapping[str, Any]]]:
        """Every whole artifact, with the ingredients it was made of."""
        for path in sorted(self.root.glob(f"[!.]*/{MANIFEST}")):
            try:
                manifest = json.loads(path.read_text())
                found = self.find(manifest["stage"], manifest["key"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if found is not None:
                yield found, manifest["ingredients"]

    def damaged(self, artifact: Artifact) -> list[str]:
        """Names of the files whose bytes are not what was published; reads everything."""
        files = json.loads((artifact.path / MANIFEST).read_text())["files"]
        now = {name: sha for name, sha in tree_files(artifact.path).items() if name != MANIFEST}
        return sorted(name for name in files.keys() | now.keys() if files.get(name, {}).get("sha256") != now.get(name))

    def workspace(self, stage: str, key: str) -> Path:
        """A directory that survives a kill, for what a stage can pick up again."""
        path = self.scratch / _name(stage, key)
        with disk_faults(f"making room for {path.name}"):
            path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        """Hold the right to make this artifact; a second process waits here. A killed holder lets go by dying."""
        with disk_faults(f"locking {_name(stage, key)}"):
            self.scratch.mkdir(parents=True, exist_ok=True)
            file = (self.scratch / f"{_name(stage, key)}.lock").open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"  another run is making {_name(stage, key)}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def staging(self, stage: str, key: str) -> Iterator[Path]:
        """An empty directory on the store's own disk, to be filled and handed to `publish`; removed if that never happens."""
        path = self.root / f".{_name(stage, key)}.partial"
        with disk_faults(f"preparing artifact {_name(stage, key)}"):
            shutil.rmtree(path, ignore_errors=True)  # what a killed attempt left
            path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def publish(
        self, staged: Path, stage: str, key: str, *, ingredients: Mapping[str, Any], facts: Mapping[str, Any], seconds: float
    ) -> Artifact:
        """Make a filled staging directory the artifact `stage`-`key`, in one rename, after everything is on the disk.

        Raises:
            StoreError: the disk is full, read-only or failing; the store is as it was before.
        """
        target = self.root / _name(stage, key)
        with disk_faults(f"publishing artifact {target.name}"):
            files = {
                name: {"sha256": sha, "size": (staged / name).stat().st_size}
                for name, sha in tree_files(staged).items()
                if name != MANIFEST
            }
            manifest = {
                "stage": stage,
                "key": key,
                "seconds": round(seconds, 3),
                "facts": facts,
                "ingredients": ingredients,
                "files": files,
            }
            (staged / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
            for file in staged.rglob("*"):
                fsync(file)
            fsync(staged)
            damaged = self.root / f".{target.name}.damaged"
            shutil.rmtree(damaged, ignore_errors=True)
            if target.exists():  # damaged, or `find` would have returned it
                target.rename(damaged)
            staged.rename(target)
            fsync(self.root)
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.rmtree(self.scratch / _name(stage, key), ignore_errors=True)
        published = self.find(stage, key)
        if published is None:
            raise StoreError("the artifact changed while it was being published", where=str(target), fix="run the same command again")
        return published


def _name(stage: str, key: str) -> str:
    return f"{stage.replace(':', '-')}-{key}"
