"""A checkpoint that a kill cut short is never resumed from."""

from __future__ import annotations

from pathlib import Path

from tests.training.jobs import fit, job, logged
from workbench.training.checkpoints import COMPLETE, last_complete


def checkpoint(folder: Path, step: int, *, whole: bool) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text("{}")
    if whole:
        (path / COMPLETE).touch()
    return path


def test_none_at_first(tmp_path: Path) -> None:
    assert last_complete(tmp_path / "nowhere") is None
    assert last_complete(tmp_path) is None


def test_the_newest_by_number_not_by_name(tmp_path: Path) -> None:
    newest = checkpoint(tmp_path, 10, whole=True)
    checkpoint(tmp_path, 9, whole=True)
    assert last_complete(tmp_path) == newest


def test_half_written_ones_are_passed_over_and_removed(tmp_path: Path) -> None:
    whole, half = checkpoint(tmp_path, 4, whole=True), checkpoint(tmp_path, 6, whole=False)
    assert last_complete(tmp_path) == whole
    assert not half.exists()
    only_half = checkpoint(tmp_path / "other", 2, whole=False)
    assert last_complete(tmp_path / "other") is None and not only_half.exists()


def test_training_goes_on_from_the_whole_one(tmp_path: Path, tiny: Path) -> None:
    """The newer one lacks its weights, as after a kill between two files."""
    whole = logged(fit(job(tmp_path / "whole", tiny, max_steps=6, save_steps=2)), "loss")
    made = job(tmp_path / "cut", tiny, max_steps=4, save_steps=2)
    fit(made)
    newest = made.checkpoints / "checkpoint-4"
    assert (newest / COMPLETE).exists()
    (newest / COMPLETE).unlink()
    (newest / "adapter_model.safetensors").write_bytes(b"torn")
    (made.checkpoints / "checkpoint-2" / "untouched").touch()
    lines = [line for line in fit(job(tmp_path / "cut", tiny, max_steps=6, save_steps=2)) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 3, 4, 5, 6]
    assert [line["loss"] for line in lines[-4:]] == whole[2:]
