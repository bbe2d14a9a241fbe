"""A quantisation that is killed leaves nothing behind that could be taken for a model; and libraries that greet do so to nobody."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import naming, wait
from tests.support.tiny import make_model
from tests.support.workplace import NOBODY, RECIPE, Workplace, furnish

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is None, reason="GPTQModel is not installed: make install")

ROOT = Path(__file__).parents[2]
VARIANT = "quantize:\n  - {method: gptq, group_size: 32, calibration: {rows: 40}}\n"


def start(place: Workplace, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": NOBODY}
    command = [sys.executable, "-m", "workbench", *arguments]
    return subprocess.Popen(
        command, cwd=place.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def layers(place: Workplace) -> int:
    return sum(len(file.read_text().splitlines()) for file in (place.state / "work").glob("quantize-*/events.jsonl"))


def published(place: Workplace) -> list[Path]:
    return list((place.state / "store").glob("quantize-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_killed_and_continued(tmp_path: Path) -> None:
    """By kill -9 in the middle of the layers: first the command, then its child; the third time it is let go on."""
    from tests.support.loaded import spread
    from workbench.models.load import load_model

    place = furnish(tmp_path / "desk", RECIPE, VARIANT)
    spread(load_model(make_model(place.folder / "model", layers=12))).save_pretrained(place.folder / "model")
    command = ("run", "desk.yaml", "--until", "quantize")

    first = start(place, *command)
    wait(lambda: layers(place) >= 2, "the second layer")
    assert naming("gptq_job", place.folder)
    first.kill()
    first.communicate()
    wait(lambda: not naming("gptq_job", place.folder), "the end of the child", 10)
    assert 2 <= layers(place) < 12, "it was in the middle"
    assert published(place) == []

    second = start(place, *command)
    wait(lambda: layers(place) == 0 or second.poll() is not None, "the new attempt")
    wait(lambda: layers(place) >= 2, "the second layer")
    (child,) = naming("gptq_job", place.folder)
    os.kill(child, signal.SIGKILL)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 1 and "quantisation ended without a result (exit code -9)" in said
    assert "Traceback" not in said and published(place) == []

    third = start(place, *command, "--json")
    out, said = third.communicate(timeout=120)
    assert third.returncode == 0, said
    assert [stage["name"] for stage in json.loads(out)["stages"]][-1] == "quantize:gptq-4bit-g32"
    assert len(published(place)) == 1
    assert not list((place.state / "store").glob(".*")) and not list((place.state / "work").glob("quantize-*/*"))
    assert "calibration:gptq-4bit-g32: there already" in said
    for line in said.splitlines():  # nothing of torchao's or GPTQModel's
        assert line.startswith(("run ", "model", "data", "calibration", "quantize", "  ", "warning: MLflow", "quantising")), line


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_child_got_ready_for_nothing_is_gone(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was started while the calibration texts were chosen, which turned out to be too few."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    place = furnish(tmp_path / "desk", RECIPE, VARIANT)
    (place.folder / "model").symlink_to(tiny_model)
    said = place("run", "desk.yaml", "--set", "quantize.0.calibration.rows=4", "--set", "quantize.0.calibration.max_length=8")
    assert said.code == 2 and "too few to fit its rounding to" in said.err
    assert list((place.state / "work").glob("quantize-*/quantize.log")), "it was there"
    assert naming("gptq_job", place.folder) == {}


def test_a_child_that_is_not_wanted_ends_quietly(tmp_path: Path) -> None:
    """End of file where it waits for its job: whoever started it has died."""
    command = [sys.executable, "-m", "workbench.quantization.gptq_job", str(tmp_path / "job.json")]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, list(tmp_path.iterdir())) == (0, []), done.stderr
    assert "Traceback" not in done.stderr


def test_no_library_greets(tiny_model: Path, tmp_path: Path) -> None:
    """Whoever comes first to import GPTQModel: PEFT over a model, transformers over a checkpoint, or the question for a kernel."""
    program = """
import sys
from pathlib import Path
from workbench.models.load import load_candidate, load_model
from workbench.recipe.schema import Gptq
what, model = sys.argv[1], Path(sys.argv[2])
if what == "adapter":
    from workbench.models.load import with_adapter
    with_adapter(load_model(model), Path(sys.argv[3]))
else:
    from workbench.quantization.gptq_kernels import missing_kernel
    assert missing_kernel(Gptq(method="gptq")) is None
"""
    from peft import LoraConfig, get_peft_model

    from workbench.models.load import load_model

    get_peft_model(load_model(tiny_model), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    for what in ("adapter", "kernel"):
        command = [sys.executable, "-c", program, what, str(tiny_model), str(tmp_path / "adapter")]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr
