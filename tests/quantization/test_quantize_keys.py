"""Every key of `quantize` and `select` changes something: the checkpoint, the texts it is fitted to, the job, or the choice."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.quantization.making import config, texts
from tests.support.workplace import NOBODY, RECIPE, Workplace, furnish, questions
from workbench import pipeline
from workbench.errors import QuantizationError, WorkbenchError
from workbench.plan import plan
from workbench.quantization.quantizer import Source, method_of
from workbench.recipe import shape
from workbench.stages.calibration import _texts
from workbench.stages.stage import Work
from workbench.store import Artifact, Store

Observe = Callable[[Workplace, str], object]


@dataclass(frozen=True)
class Effect:
    """What is different when a key is.

    Attributes:
        observe: called with a workplace and an override; under `one` it must work, under `other` it must come to something else.
        one, other: values of `quantize` or of the key, in YAML.
    """

    observe: Observe
    one: str
    other: str


def made(place: Workplace, *overrides: str, until: str) -> Artifact:
    """The artifact of the first stage whose name begins so, with all that it stands on."""
    store, artifacts = Store(place.state), dict[str, Artifact]()
    for one in plan(place.load(*overrides)).stages:
        inputs = {item.name: artifacts[item.name] for item in one.inputs}
        artifacts[one.name] = pipeline.make(one, store, inputs, lambda metrics, step: None)
        if one.name.startswith(until):
            return artifacts[one.name]
    raise AssertionError(f"no stage {until}")


def names(place: Workplace, override: str) -> object:
    return [one.name for one in plan(place.load(override)).candidates]


def libraries(place: Workplace, override: str) -> object:
    """What a variant is made with."""
    return next(one.libraries for one in plan(place.load(override)).stages if one.kind == "quantize")


def quantised_from(place: Workplace, override: str) -> object:
    return next([item.name for item in one.inputs] for one in plan(place.load("train={}", override)).stages if one.kind == "quantize")


def checkpoint(place: Workplace, override: str) -> object:
    return config(made(place, override, until="quantize").path)


def calibration_texts(place: Workplace, override: str) -> object:
    """The rows that a variant would be given; no method is asked whether it could use them here."""
    the_plan, inputs = plan(place.load(override)), {name: made(place, override, until=name) for name in ("model", "data")}
    (section,) = the_plan.loaded.recipe.quantize
    settings, general = method_of(section, place.folder).calibration, the_plan.sources.get("quantize.0.calibration.general")
    assert settings is not None
    work = Work(inputs, place.folder, place.folder, lambda metrics, step: None, place.state)
    return _texts(the_plan.loaded, settings, work, "here", general)[0]


def job(place: Workplace, override: str) -> object:
    """What the other environment's script is told; this one has no llm-compressor, so that it ends there."""
    (section,) = place.load(override).recipe.quantize
    workspace = place.folder / "job"
    workspace.mkdir(exist_ok=True)
    with contextlib.suppress(QuantizationError):
        method_of(section, place.folder).quantize(Source(place.folder / "model", "bfloat16", False), workspace, texts(2), workspace, heard)
    return json.loads((workspace / "job.json").read_text())


def heard(done: float, note: str = "", /) -> None:
    """Progress of a job that is not run."""


def refusals(place: Workplace, override: str) -> object:
    from workbench.models.facts import read_facts

    (section,) = place.load(override).recipe.quantize
    return [one.what for one in method_of(section, place.folder).refusals(read_facts(place.folder / "model"))]


def accepted(place: Workplace, override: str) -> object:
    return place.load(override).recipe.select


def beyond(place: Workplace, override: str) -> object:
    """Which limits which candidate does not keep. Everything but the choice itself is made once."""
    facts = made(place, "quantize=[{method: bitsandbytes}]", override, until="select").facts
    return [row["beyond"] for row in facts["candidates"]]


def gptq(place: Workplace, override: str) -> object:
    """What GPTQModel writes: its settings and a digest of the weights."""
    if importlib.util.find_spec("gptqmodel") is None:
        pytest.skip("GPTQModel is not installed: make install")
    return by_gptqmodel(place)[override]


@cache
def by_gptqmodel(place: Workplace) -> dict[str, object]:
    """The checkpoints of all effects that need one, made by the job's own function in one process: importing takes longer than the rest."""
    wanted = sorted({override for effect in EFFECTS.values() if effect.observe is gptq for override in (effect.one, effect.other)})
    folder, jobs = place.folder / "gptq", dict[str, dict[str, Any]]()
    for number, override in enumerate(wanted):
        (section,) = place.load(override).recipe.quantize
        out = folder / str(number)
        out.mkdir(parents=True)
        given = {"calibration": texts(24).calibration, "probes": [], "dtype": "bfloat16", "trust_remote_code": False}
        jobs[override] = {"model": str(place.folder / "model"), "out": str(out), "section": section.model_dump(), **given}
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    program = (
        "import json, pathlib, sys\nfrom workbench.quantization.gptq_job import quantize\n"
        "for job in json.loads(pathlib.Path(sys.argv[1]).read_text()): quantize(job, pathlib.Path(job['out']))"
    )
    environment = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2", "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, str(folder / "jobs.json")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {override: _written(Path(one["out"])) for override, one in jobs.items()}


def _written(folder: Path) -> object:
    found = config(folder)
    settings = {key: found[key] for key in ("bits", "group_size", "desc_act", "sym")}
    return settings, hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def variant(method: str, **settings: Any) -> str:
    return f"quantize={json.dumps([{'method': method, **settings}])}"


def of_gptq(**settings: Any) -> str:
    return variant("gptq", **{"group_size": 32, **settings})


def of_bitsandbytes(**settings: Any) -> str:
    return variant("bitsandbytes", **settings)


def of_compressed(**settings: Any) -> str:
    return variant("compressed_tensors", **{"python": sys.executable, **settings})


def calibrations(of: Callable[..., str]) -> dict[str, Effect]:
    """The effects of the keys of `calibration`."""

    def effect(key: str, one: Any, other: Any, **rest: Any) -> Effect:
        values = ({"rows": 24, **rest, key: value} for value in (one, other))
        return Effect(calibration_texts, *(of(calibration=value) for value in values))

    return {
        "rows": effect("rows", 24, 25),
        "max_length": effect("max_length", 512, 9),
        "general": effect("general", None, "general.txt"),
        "general_share": effect("general_share", 0.25, 0.5, general="general.txt"),
        "seed": effect("seed", 0, 1),
    }


EFFECTS: dict[str, Effect] = {
    "quantize[gptq].method": Effect(libraries, of_gptq(), of_bitsandbytes()),
    "quantize[gptq].name": Effect(names, of_gptq(name="one"), of_gptq(name="two")),
    "quantize[gptq].bits": Effect(gptq, of_gptq(), of_gptq(bits=8)),
    "quantize[gptq].group_size": Effect(gptq, of_gptq(), of_gptq(group_size=-1)),
    "quantize[gptq].desc_act": Effect(gptq, of_gptq(), of_gptq(desc_act=True)),
    "quantize[gptq].sym": Effect(gptq, of_gptq(), of_gptq(sym=False)),
    "quantize[gptq].damping": Effect(gptq, of_gptq(), of_gptq(damping=0.9)),
    **{f"quantize[gptq].calibration.{key}": effect for key, effect in calibrations(of_gptq).items()},
    "quantize[bitsandbytes].method": Effect(libraries, of_bitsandbytes(), of_gptq()),
    "quantize[bitsandbytes].name": Effect(names, of_bitsandbytes(name="one"), of_bitsandbytes(name="two")),
    "quantize[bitsandbytes].bits": Effect(checkpoint, of_bitsandbytes(), of_bitsandbytes(bits=8)),
    "quantize[bitsandbytes].type": Effect(checkpoint, of_bitsandbytes(), of_bitsandbytes(type="fp4")),
    "quantize[bitsandbytes].double": Effect(checkpoint, of_bitsandbytes(), of_bitsandbytes(double=True)),
    "quantize[bitsandbytes].compute_dtype": Effect(checkpoint, of_bitsandbytes(), of_bitsandbytes(compute_dtype="float32")),
    "quantize[bitsandbytes].keep_adapter": Effect(quantised_from, of_bitsandbytes(), of_bitsandbytes(keep_adapter=True)),
    "quantize[compressed_tensors].method": Effect(libraries, of_compressed(), of_bitsandbytes()),
    "quantize[compressed_tensors].name": Effect(names, of_compressed(name="one"), of_compressed(name="two")),
    "quantize[compressed_tensors].scheme": Effect(job, of_compressed(), of_compressed(scheme="W8A8")),
    "quantize[compressed_tensors].group_size": Effect(job, of_compressed(), of_compressed(group_size=32)),
    **{f"quantize[compressed_tensors].calibration.{key}": effect for key, effect in calibrations(of_compressed).items()},
    "quantize[compressed_tensors].python": Effect(refusals, of_compressed(), of_compressed(python="nowhere/python")),
    "select.by": Effect(accepted, "select.by=score", "select.by=size"),
    "select.at_most.size_mb": Effect(beyond, "select.at_most.size_mb=1000", "select.at_most.size_mb=1.0e-3"),
    "select.at_most.memory_mb": Effect(beyond, "select.at_most.memory_mb=1000000", "select.at_most.memory_mb=1.0e-3"),
    "select.at_most.slowdown": Effect(beyond, "select.at_most.slowdown=1000000", "select.at_most.slowdown=1.0e-6"),
}


def test_no_key_is_forgotten() -> None:
    assert EFFECTS.keys() == {key for key in map(str, shape.keys()) if key.startswith(("quantize", "select"))}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Workplace]:
    """A recipe without training, so that the base is quantised."""
    place = furnish(tmp_path_factory.mktemp("keys") / "desk", RECIPE)
    (place.folder / "model").symlink_to(tiny_model)
    place.write("general.txt", "".join(f"a general text, the one of number {number}\n" for number in range(40)))
    place.rows("rows.jsonl", questions(80))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        yield place


@pytest.mark.parametrize("key", EFFECTS)
def test_a_key_changes_the_result(desk: Workplace, key: str) -> None:
    effect = EFFECTS[key]
    one = effect.observe(desk, effect.one)
    try:
        other = effect.observe(desk, effect.other)
    except WorkbenchError as error:
        other = error
    assert one != other
