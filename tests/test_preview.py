from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny import make_model
from tests.support.workplace import NOBODY, RECIPE, TRAIN, Workplace, furnish
from workbench.data.render import Renderer, Row
from workbench.models.estimate import computed_in, training_flops, training_memory, validations
from workbench.models.facts import ModelFacts
from workbench.models.load import load_tokenizer
from workbench.preview import CLOSE, OPEN, Preview, marked, preview
from workbench.recipe.schema import Launch, Train
from workbench.stages.data import examples_of

CHAT = """\
name: desk
model: {source: model}
data: {source: chat.jsonl, format: openai, split: {train: 0.4, validation: 0.3, calibration: 0.0, test: 0.3, seed: 1}}
task: {metric: exact_match}
train: {max_length: 256, loss: LOSS}
"""


@pytest.fixture
def place(tiny_model: Path, tmp_path: Path) -> Workplace:
    workplace = furnish(tmp_path / "desk", RECIPE, TRAIN)
    (workplace.folder / "model").symlink_to(tiny_model)
    return workplace


def look(place: Workplace, *overrides: str) -> Preview:
    return preview(place.load(*overrides), place.state)


def problems(found: Preview) -> list[str]:
    return [str(problem) for problem in found.problems]


# Rows ---------------------------------------------------------------------------------------------------------------


def test_rows_as_the_model_will_see_them(place: Workplace) -> None:
    found = look(place)
    assert len(found.rows) == 3
    for row in found.rows:
        question, answer = row.split("\nAnswer: ")
        assert question.startswith("is the number") and answer in (f"{OPEN}{label}<|im_end|>{CLOSE}" for label in ("yes", "no"))


@pytest.mark.parametrize(
    ("loss", "first", "last"),
    [
        ("completion", "one<|im_end|>", f"{OPEN}two<|im_end|>{CLOSE}"),
        ("assistant", f"{OPEN}one<|im_end|>{CLOSE}", f"{OPEN}two<|im_end|>{CLOSE}"),
    ],
)
def test_marks_follow_the_loss(place: Workplace, loss: str, first: str, last: str) -> None:
    turns = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "one"},
        {"role": "user"},
        {"role": "assistant", "content": "two"},
    ]
    place.rows("chat.jsonl", [{"messages": [*turns[:2], turns[2] | {"content": f"{n}?"}, turns[3]]} for n in range(40)])
    place.write("desk.yaml", CHAT.replace("LOSS", loss))
    for row in look(place).rows:
        start, end = (
            f"<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n{first}\n<|im_start|>user\n",
            f"?<|im_end|>\n<|im_start|>assistant\n{last}",
        )
        assert row.startswith(start) and row.endswith(end)
    assert all(row.startswith(OPEN) and row.endswith(CLOSE) for row in look(place, "train.loss=all").rows)


def test_marks_fall_exactly_on_the_tokens(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    ids = tuple(tokenizer("What is the capital of France?")["input_ids"])
    for pattern in ([False], [True], [False, True], [True, True, False]):
        supervised = tuple(pattern[index % len(pattern)] for index in range(len(ids)))
        expected, before = "", False
        for token, wanted in [*zip(ids, supervised, strict=True), (None, False)]:
            expected += (OPEN if wanted and not before else CLOSE if before and not wanted else "") + (
                tokenizer.decode([token]) if token else ""
            )
            before = wanted
        assert marked(Row(ids, supervised, 1, ""), tokenizer) == expected


def test_counts_are_those_of_the_rendered_rows(place: Workplace) -> None:
    found = look(place, "train.max_length=20", "train.overflow=drop")
    loaded = place.load()
    renderer = Renderer(load_tokenizer(place.folder / "model"), loaded.recipe.task)
    (data,) = (place.state / "store").glob("data-*")
    assert [one.split for one in found.lengths] == ["train", "validation", "test"]
    for one in found.lengths:
        rows = [renderer.row(example, "completion") for example in examples_of(data, one.split)]
        sizes = [len(row.input_ids) for row in rows]
        assert one.rows == len(rows) > 0 and one.longest == max(sizes) and one.overlong == sum(size > 20 for size in sizes)
        assert [one.p50, one.p90, one.p99] == [np.quantile(sizes, share, method="inverted_cdf") for share in (0.5, 0.9, 0.99)]
        if one.split == "train":
            assert (found.tokens, found.supervised) == (sum(sizes), sum(sum(row.supervised) for row in rows))
    assert sum(one.overlong for one in found.lengths) > 0 and not found.problems


def test_a_recipe_without_training(place: Workplace) -> None:
    place.write("desk.yaml", RECIPE)
    found = look(place)
    assert [one.split for one in found.lengths] == ["test"] and found.train_seconds == 0 and found.evaluate_seconds > 0
    assert (found.max_length, found.tokens, found.problems) == (None, 0, ())
    assert OPEN in found.text() and "training reads" not in found.text()


# Refusals -----------------------------------------------------------------------------------------------------------


def test_the_command_prints_and_then_refuses(place: Workplace) -> None:
    said = place("check", "desk.yaml", "--preview", "--set", "train.max_length=20")
    assert said.code == 2 and "Traceback" not in said.err
    assert OPEN in said.out and "too long" in said.out and "longest row allowed: train.max_length 20" in said.out
    found = look(place, "train.max_length=20")
    overlong = sum(one.overlong for one in found.lengths if one.split != "test")
    longest = max(one.longest for one in found.lengths if one.split != "test")
    assert f"--set train.max_length=20: {overlong} rows are longer than 20 tokens and would be truncated" in said.err
    assert f"raise train.max_length to {longest}" in said.err
    assert place("check", "desk.yaml", "--preview", "--set", f"train.max_length={longest}").code == 0
    assert place("check", "desk.yaml", "--preview", "--set", "train.max_length=20", "--set", "train.overflow=truncate").code == 0


def test_json(place: Workplace) -> None:
    good = place("check", "desk.yaml", "--preview", "--json")
    assert good.code == 0 and good.json["problems"] == [] and len(good.json["rows"]) == 3 and good.json["lengths"][0]["split"] == "train"
    bad = place("check", "desk.yaml", "--preview", "--json", "--set", "train.max_length=20")
    assert bad.code == 2 and len(bad.json["problems"]) == 1 and bad.json["problems"][0] in bad.err


def test_rows_beyond_the_context(place: Workplace) -> None:
    assert look(place, "train.max_length=512").problems == ()
    (problem,) = problems(look(place, "train.max_length=513"))
    assert problem.startswith("--set train.max_length=513: train.max_length 513 is beyond the model's context of 512 tokens")
    assert "choose at most 512" in problem


GPTQ = "\nquantize:\n  - {method: bitsandbytes}\n  - {method: gptq, group_size: SIZE}\n"


@pytest.mark.parametrize(("size", "refused"), [(128, "q_proj 64"), (96, "down_proj 128"), (64, None), (32, None), (-1, None)])
def test_group_sizes(place: Workplace, size: int, refused: str | None) -> None:
    place.write("desk.yaml", RECIPE + TRAIN + GPTQ.replace("SIZE", str(size)))
    found = problems(look(place))
    assert len(found) == (refused is not None)
    if refused is not None:
        assert f"group_size {size} does not divide the input widths q_proj 64" in found[0] and refused in found[0]
        assert "choose 32 or 64" in found[0]
        assert found[0].startswith(f"{place.folder / 'desk.yaml'}:")


def test_a_width_that_no_usual_group_divides(place: Workplace) -> None:
    (place.folder / "model").unlink()
    make_model(place.folder / "model", hidden=48)
    place.write("desk.yaml", RECIPE + TRAIN + GPTQ.replace("SIZE", "64"))
    (problem,) = problems(look(place))
    assert "q_proj 48" in problem and "choose -1" in problem


def test_the_run_finds_what_the_preview_made(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    look(place)
    before = place.store()
    assert {name.partition("-")[0] for name in before} == {"model", "data"}
    assert place("run", "desk.yaml", "--until", "data").code == 0
    assert place.store() == before


# Estimates ----------------------------------------------------------------------------------------------------------

SMOL = ModelFacts("LlamaForCausalLM", "llama", 30, 576, 1536, 9, 3, 64, 49152, 8192, True)
MIB = 2**20


def rows(*lengths: int, answer: int = 2) -> list[Row]:
    return [Row((5,) * length, (False,) * (length - answer) + (True,) * answer, length - answer, "") for length in lengths]


def quickstart_rows() -> list[Row]:
    """As long as those of recipes/quickstart.yaml."""
    return rows(*[58, 50, 46, *[42] * 29, *[31] * 900, *[24] * 8065])


@pytest.mark.parametrize(
    ("train", "measured"),
    [
        (Train(layers=20, batch_size=32), 3745 * MIB),  # after 282 steps
        (Train(layers=20, batch_size=32), 1900 * MIB),  # after 10: every new number of tokens in a batch costs a little more
        (Train(method="full", batch_size=8), 3223 * MIB),
    ],
    ids=["lora", "lora, short", "full"],
)
def test_memory_is_within_a_factor_of_two_of_real_runs(train: Train, measured: int) -> None:
    """Measured on SmolLM2-135M and the headlines of the quickstart, in bfloat16 on 2 cores."""
    assert measured / 2 < training_memory(SMOL, train, "bfloat16", quickstart_rows()) < measured * 2


def test_memory_of_a_real_run(finished: Workplace) -> None:
    measured = max(
        json.loads(path.read_text())["facts"]["peak_memory_bytes"] for path in (finished.state / "store").glob("train-*/artifact.json")
    )
    assert measured / 2 < preview(finished.load(), finished.state).memory_bytes < measured * 2


def test_what_memory_grows_with() -> None:
    def needed(**keys: Any) -> int:
        return training_memory(SMOL, Train(**keys), "bfloat16", rows(*[200] * 100))

    base = needed()
    assert needed(method="qlora") < base < needed(method="full")
    assert needed(gradient_checkpointing=True) < base < needed(batch_size=64)
    assert needed(layers=10) < base < needed(rank=256)
    assert needed(target_modules=["q_proj"]) < base


def test_the_work_of_training() -> None:
    """All weights: six operations a weight and token (Kaplan et al. 2020, arXiv:2001.08361), where every token is supervised."""
    full = training_flops(SMOL, Train(method="full"), 1000, 1000, 10)
    assert full == pytest.approx(6 * SMOL.parameters * 1000)
    lora = training_flops(SMOL, Train(), 1000, 0, 10)
    assert lora == pytest.approx(4 * SMOL.block_parameters * 30 * 1000)
    assert training_flops(SMOL, Train(layers=15), 1000, 0, 10) == pytest.approx(lora * 3 / 4)
    assert training_flops(SMOL, Train(gradient_checkpointing=True), 1000, 0, 10) == pytest.approx(lora * 3 / 2)
    assert training_flops(SMOL, Train(epochs=2.5), 1000, 0, 10) == pytest.approx(lora * 2.5)
    assert training_flops(SMOL, Train(max_steps=4, batch_size=5, gradient_accumulation=2), 1000, 0, 10) == pytest.approx(lora * 4)


def test_how_often_validation_is_read() -> None:
    assert validations(Train(), Launch(), 9000) == 10
    assert validations(Train(eval_steps=100), Launch(), 9000) == 2
    assert validations(Train(max_steps=7), Launch(), 9000) == 7
    assert validations(Train(epochs=0.5, eval_steps=10), Launch(num_processes=2), 640) == 0


@pytest.mark.parametrize(
    ("method", "precision", "expected"),
    [
        ("lora", "bf16", "bfloat16"),
        ("lora", "no", "float16"),
        ("full", "no", "float32"),
        ("full", "bf16", "bfloat16"),
        ("qlora", "fp16", "float16"),
    ],
)
def test_the_precision_of_the_arithmetic(method: Any, precision: Any, expected: str) -> None:
    assert computed_in(Train(method=method), Launch(mixed_precision=precision), "float16") == expected


def test_time_follows_the_work(place: Workplace) -> None:
    short, long = look(place, "train.max_steps=100"), look(place, "train.max_steps=1000")
    assert 5 < long.train_seconds / short.train_seconds < 20, "twice the same speed, measured twice"
    assert short.evaluate_seconds > 0


# Without a preview --------------------------------------------------------------------------------------------------

CHECK = """
import os, sys
from workbench.cli import main
sys.argv = ["workbench", "check", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "transformers", "mlflow", "pyarrow", "numpy", "scipy", "peft", "trl"} & sys.modules.keys()
    print("SECONDS", sum(os.times()[:2]), "HEAVY", *heavy)
"""


def test_checking_alone_is_quick_and_light(place: Workplace) -> None:
    """Under a second of processor time, which is what the clock shows on a machine with nothing else to do."""
    command = [sys.executable, "-c", CHECK, "desk.yaml"]
    seconds = []
    for _ in range(2):  # the first one may have to compile the modules
        done = subprocess.run(command, cwd=place.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        valid, facts = done.stdout.splitlines()
        assert valid == "desk.yaml: valid" and facts.endswith("HEAVY")
        seconds.append(float(facts.split()[1]))
    assert min(seconds) < 1
    assert not place.state.exists()
