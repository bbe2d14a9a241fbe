"""Sources that lie on this machine."""

import os
from pathlib import Path

import pytest

from workbench.digest import path_digest
from workbench.errors import SourceError
from workbench.sources import local


def test_file_and_folder_give_their_digest(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert local.check(tmp_path / "a.txt") == path_digest(tmp_path / "a.txt")
    before = local.check(tmp_path)
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert local.check(tmp_path) != before


def _missing(folder: Path) -> Path:
    return folder / "nothing"


def _like_a_repository(folder: Path) -> Path:
    return folder / "Qwen" / "Qwen3-0.6B"


def _empty_file(folder: Path) -> Path:
    (folder / "empty").touch()
    return folder / "empty"


def _empty_folder(folder: Path) -> Path:
    (folder / "sub").mkdir()
    return folder / "sub"


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def _dangling(folder: Path) -> Path:
    (folder / "link").symlink_to("gone")
    return folder / "link"


def _too_long(folder: Path) -> Path:
    return folder / ("n" * 300)


def _loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_missing, "no such file or folder"),
        (_like_a_repository, "hf://Qwen/Qwen3-0.6B@REVISION"),
        (_empty_file, "is empty"),
        (_empty_folder, "is empty"),
        (_fifo, "neither a file nor a folder"),
        (_dangling, "link to something that is gone"),
        (_too_long, "cannot be looked up"),
        (_loop, "link to something that is gone"),
    ],
)
def test_refusals(tmp_path: Path, make: object, says: str) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(SourceError) as caught:
        local.check(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0)
    with pytest.raises(SourceError, match="may not be read"):
        local.check(tmp_path)
