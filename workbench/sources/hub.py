"""A model or a data file from a model hub, by huggingface_hub's client.

The client resolves revisions, signs in, follows redirects and retries. The files are laid down here instead of in its own cache
for two reasons: since version 2.4 it deletes a partial file whenever a download ends early, so that nothing resumes after a kill
(its pull request 4228), and a model has to appear as a whole or not at all. Layout, below the cache folder:

    hub/HOST/models--ORG--NAME/COMMIT/            all that a model needs; COMMIT+code holds its Python files as well
    hub/HOST/datasets--ORG--NAME/COMMIT.files/    files that were asked for one by one

What stands under these names is whole, so a pinned source that is there needs neither the network nor the client.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from workbench.digest import digest, file_digest
from workbench.errors import EnvironmentFault, SourceError, WorkbenchError, disk_faults
from workbench.recipe.schema import Hub
from workbench.sources.cache import locked, publish
from workbench.sources.credentials import redacted
from workbench.sources.reference import PICKLES, HubSource

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

logger = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT = 30  # seconds without an answer

# What a model folder is made of, at the root of its repository.
_MODEL_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".tiktoken"}
_MODEL_NAMES = {"merges.txt", "vocab.txt"}


@dataclass(frozen=True)
class Fetched:
    """What `fetch` brings: where it is, what it is, and which commit it is of."""

    path: Path
    digest: str
    commit: str
    warnings: tuple[str, ...]


def fetch(source: HubSource, cache: Path, *, settings: Hub, trust_remote_code: bool = False) -> Fetched:
    """A model's folder, or the one file that `source` names; from the cache where the commit is known and there.

    Raises:
        SourceError: no such repository, revision or file; no access; weights only as pickles.
        EnvironmentFault: the hub cannot be reached or fails, a transfer was cut (what came so far is kept and continued), or
            huggingface_hub is missing.
        StoreError: the cache cannot be written.
    """
    client = _Client(source, settings)
    store = cache / "hub" / client.host / f"{source.kind}s--{source.repo.replace('/', '--')}"
    code = "+code" if trust_remote_code and source.file is None else ""
    warnings: tuple[str, ...] = ()
    if source.pinned:
        commit, listing = str(source.revision), None  # listed only if it has to be fetched
    else:
        commit, listing = client.resolve(_cached_commits(store))
        warnings = (f"{source} names no commit and may change; it is {commit} now: pin it as {source.at(commit)}",)
    entry = store / f"{commit}.files" / source.file if source.file else store / f"{commit}{code}"
    with disk_faults(f"fetching {source}"):
        if not entry.exists():
            with locked(store / commit):
                if not entry.exists():  # nobody else fetched it meanwhile
                    if listing is None:
                        commit, listing = client.resolve(())
                    wanted = [source.file] if source.file else _model_files(source, listing, with_code=bool(code))
                    partial = store / (f"{commit}.files.part" if source.file else f"{entry.name}.part")
                    for name in wanted:
                        client.download(name, commit, partial / name)
                    _publish(partial, wanted, entry, one_file=source.file is not None)
    identity = {"repository": f"{source.kind}s/{source.repo}", "commit": commit, "file": source.file, "code": bool(code)}
    return Fetched(entry, digest(identity), commit, warnings)


def _publish(partial: Path, wanted: list[str], entry: Path, *, one_file: bool) -> None:
    """Move what was fetched to its place; `partial` may hold unfinished files of other requests for one file, which stay."""
    if one_file:
        publish(partial / wanted[0], entry)
        return
    for path in [path for path in partial.rglob("*") if path.is_file() and path.relative_to(partial).as_posix() not in wanted]:
        path.unlink()  # of a version of Workbench that wanted other files
    publish(partial, entry)


def _cached_commits(store: Path) -> list[str]:
    return sorted({path.name[:40] for path in store.glob("*") if re.fullmatch(r"[0-9a-f]{40}(\+code|\.files)?", path.name)})


def _model_files(source: HubSource, listing: Iterable[str], *, with_code: bool) -> list[str]:
    """The files of a repository that a model needs; never a pickle, and Python only where the recipe trusts it.

    Raises:
        SourceError: there are no safetensors weights.
    """
    names = [PurePosixPath(name) for name in listing]
    wanted = [
        name
        for name in names
        if (len(name.parts) == 1 and (name.suffix in _MODEL_SUFFIXES or name.name in _MODEL_NAMES))
        or (name.suffix == ".jinja" and name.parts[0] == "additional_chat_templates")
        or (name.suffix == ".py" and with_code)
    ]
    weights = [name for name in wanted if name.suffix == ".safetensors"]
    if not weights:
        raise _no_weights(source, names)
    # Some repositories hold the weights twice, the second time in their author's own layout.
    doubled = {name for name in weights if name.name.startswith("consolidated")}
    return sorted(str(name) for name in wanted if len(doubled) == len(weights) or name not in doubled)


def _no_weights(source: HubSource, names: list[PurePosixPath]) -> SourceError:
    if gguf := sorted(str(name) for name in names if name.suffix == ".gguf"):
        return SourceError(
            "the repository holds GGUF files and no safetensors weights", where=str(source), fix=f"name the file: {source}/{gguf[0]}"
        )
    if any(name.suffix in PICKLES for name in names):
        return SourceError(
            "the repository's weights are pickles only, which run code when they are loaded; Workbench reads safetensors",
            where=str(source),
            fix="use a revision or a copy of the model that has safetensors (many repositories offer one as a pull request: @refs/pr/N)",
        )
    return SourceError("the repository holds no weights", where=str(source), fix="check that it is a model, and the revision")


class _Client:
    """One source's view of the hub: its address, its token, and its failures as `WorkbenchError`s."""

    def __init__(self, source: HubSource, settings: Hub) -> None:
        self.source = source
        self.endpoint = (settings.endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self.token_env = settings.token_env
        # Only the variable that the recipe names. False, not None: a token stored by a login is not sent to an address that a
        # recipe may have chosen.
        self.token: str | bool = os.environ.get(settings.token_env, "").strip() or False
        address = urlsplit(self.endpoint)
        if address.scheme not in {"http", "https"} or not address.netloc:
            raise SourceError(
                f"'{redacted(self.endpoint)}' is not the address of a hub",
                where=str(source),
                fix="set hub.endpoint or HF_ENDPOINT to an http(s) address",
            )
        # Commits of two hubs do not share a folder: nothing proves that they are the same.
        self.host = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{address.netloc.rpartition('@')[2]}{address.path}")

    def resolve(self, cached: Iterable[str]) -> tuple[str, list[str]]:
        """The commit that the revision means now, and the names of the files there.

        Args:
            cached: commits of this repository that are in the cache, to be named when the hub cannot be reached.
        """
        with self._failures(cached=cached):
            info = self._info()
        names = [sibling.rfilename for sibling in info.siblings or ()]
        if info.sha is None or (self.source.pinned and info.sha != self.source.revision):
            raise SourceError(
                f"the hub at {redacted(self.endpoint)} answers with commit {info.sha}", where=str(self.source), fix="check hub.endpoint"
            )
        if self.source.file and self.source.file not in names:
            raise self._no_file(names)
        return info.sha, names

    def download(self, name: str, commit: str, target: Path) -> None:
        """Fetch one file to `target`, continuing an earlier attempt, and compare it with the hash that the hub names."""
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._failures(name):
            from huggingface_hub import get_hf_file_metadata, hf_hub_url
            from huggingface_hub.file_download import http_get
            from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

            url = hf_hub_url(self.source.repo, name, repo_type=self.source.kind, revision=commit, endpoint=self.endpoint)
            found = get_hf_file_metadata(url, token=self.token, timeout=TIMEOUT, endpoint=self.endpoint, retry_on_errors=True)
            # The token is for the hub alone, not for the storage that it redirects to.
            token = self.token if urlsplit(found.location)[:2] == urlsplit(url)[:2] else False
            # Not compressed: a range counts bytes of what is sent.
            headers = build_hf_headers(token=token, headers={"Accept-Encoding": "identity"})
            incomplete = target.with_name(f"{target.name}.incomplete")
            if found.size is not None and incomplete.exists() and incomplete.stat().st_size > found.size:
                incomplete.unlink()
            with incomplete.open("ab") as file:
                if found.size is None or file.tell() < found.size:
                    logger.info("fetching %s of %s from byte %d", name, self.source, file.tell())
                    http_get(
                        found.location, file, resume_size=file.tell(), headers=headers, expected_size=found.size, displayed_filename=name
                    )
        if not _has_hash(incomplete, found.etag or ""):
            incomplete.unlink()
            raise EnvironmentFault(
                f"'{name}' arrived damaged", where=str(self.source), fix="run the same command again; the file is fetched anew"
            )
        incomplete.rename(target)

    def _info(self) -> ModelInfo | DatasetInfo:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self.token)
        ask = api.model_info if self.source.kind == "model" else api.dataset_info
        try:
            return ask(self.source.repo, revision=self.source.revision, timeout=TIMEOUT)
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # not JSON, or not the hub's
            if isinstance(error, OSError):  # the client's own errors, some of which are ValueErrors too
                raise
            raise SourceError(
                f"{redacted(self.endpoint)} does not answer like a model hub",
                where=str(self.source),
                fix="check hub.endpoint and HF_ENDPOINT",
            ) from error

    @contextmanager
    def _failures(self, name: str | None = None, cached: Iterable[str] = ()) -> Iterator[None]:
        """Say in one line what went wrong; the client's own messages may quote addresses, so only status and cause are used."""
        try:
            from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # httpx's or httpx2's
        except ModuleNotFoundError as error:
            raise EnvironmentFault(
                "hf:// sources need the package huggingface_hub", where=str(self.source), fix="pip install 'workbench[train]'"
            ) from error
        try:
            yield
        except HfHubHTTPError as error:
            code = error.response.headers.get("x-error-code", "")
            raise self._refused(error.response.status_code, code, name) from error
        except (HTTPError, ConnectionError) as error:  # the second: HF_HUB_OFFLINE
            raise self._unreachable(str(error) or type(error).__name__, cached) from error
        except OSError as error:
            if error.errno is not None:
                raise  # the disk's, for disk_faults
            raise self._unreachable(f"the transfer of '{name}' ended early", cached) from error

    def _refused(self, status: int, code: str, name: str | None) -> WorkbenchError:
        where, repo = str(self.source), self.source.repo
        token = f"the token in ${self.token_env}" if self.token else f"no token (${self.token_env} is not set)"
        if code == "GatedRepo":
            return SourceError(
                f"'{repo}' is gated, and the hub does not let in {token}",
                where=where,
                fix=f"ask for access on the repository's page, then set {self.token_env} to your token",
            )
        if code == "RevisionNotFound":
            return SourceError(
                f"'{repo}' has no revision '{self.source.revision or 'main'}'", where=where, fix="check the commit, tag or branch after '@'"
            )
        if code == "EntryNotFound":
            return self._no_file([]) if name is None else SourceError(f"the hub lists '{name}' but has no such file", where=where)
        if status in {401, 403, 404} and (code == "RepoNotFound" or status != 403):
            return SourceError(
                f"'{repo}' does not exist, or is private and may not be read with {token}",
                where=where,
                fix=f"check the name; for a private repository set {self.token_env} to a token that may read it",
            )
        if status == 403:
            return SourceError(f"the hub forbids access to '{repo}' with {token}", where=where, fix="use a token that may read it")
        if status == 429 or status >= 500:
            return EnvironmentFault(
                f"the hub at {redacted(self.endpoint)} fails with HTTP status {status}",
                where=where,
                fix="wait, then run the same command again; what was fetched is kept",
            )
        return SourceError(f"the hub answers with HTTP status {status}", where=where, fix="check the source and hub.endpoint")

    def _unreachable(self, cause: str, cached: Iterable[str]) -> EnvironmentFault:
        fix = "check the network, then run the same command again; what was fetched is kept and continued"
        if commits := list(cached):
            fix += f"; or pin a commit that is in the cache: {', '.join(str(self.source.at(commit)) for commit in commits)}"
        cause = redacted(" ".join(cause.split()))[:300]
        return EnvironmentFault(f"the hub at {redacted(self.endpoint)} cannot be reached: {cause}", where=str(self.source), fix=fix)

    def _no_file(self, names: list[str]) -> SourceError:
        name = PurePosixPath(self.source.file or "").name
        same = next((other for other in names if PurePosixPath(other).name == name), None)
        return SourceError(
            f"'{self.source.repo}' holds no file '{self.source.file}'",
            where=str(self.source),
            fix=f"did you mean '{same}'?" if same else "check the path on the repository's page",
        )


def _has_hash(file: Path, etag: str) -> bool:
    """Compare a file with the hub's tag: the SHA-256 of a large file, git's blob hash of a small one; other tags prove nothing."""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return file_digest(file) == etag
    if re.fullmatch(r"[0-9a-f]{40}", etag):
        content = file.read_bytes()
        # Mirrors that store files by themselves tag them with the plain hash.
        return etag in {hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), hashlib.sha1(content).hexdigest()}
    return True
