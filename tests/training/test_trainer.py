"""Real training on a tiny model: what is learnt, what is logged, what stops it, what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional

from tests.training.jobs import EOS, ORIGIN, features, fit, job, logged, result
from workbench.data.example import Example
from workbench.data.render import IGNORED
from workbench.errors import TrainingError
from workbench.models.load import load_model
from workbench.stages import launched
from workbench.training.packing import PaddedBatch

MEMORISE: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, padded": {"packing": False},
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "qlora": {"method": "qlora"},
    "full": {"method": "full", "learning_rate": 3e-3},
    "last layer only": {"layers": 1},
}


@pytest.mark.parametrize("name", MEMORISE)
def test_every_method_memorises(tmp_path: Path, tiny: Path, name: str) -> None:
    settings = {"max_steps": 30, "batch_size": 8, "learning_rate": 1e-2, **MEMORISE[name]}
    losses = logged(fit(job(tmp_path, tiny, rows=features(8), **settings)), "loss")
    assert len(losses) == 30
    assert losses[-1] < losses[0] / 2, losses


def test_one_seed_one_curve(tmp_path: Path, tiny: Path) -> None:
    curves = [logged(fit(job(tmp_path / str(index), tiny, seed=seed, dropout=0.3)), "loss") for index, seed in enumerate((3, 3, 4))]
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def test_packing_learns_what_padding_learns(tmp_path: Path, tiny: Path) -> None:
    packed, padded = (logged(fit(job(tmp_path / str(choice), tiny, packing=choice)), "loss") for choice in (True, False))
    assert packed == pytest.approx(padded, abs=1e-4)


def test_accumulation_equals_a_larger_batch(tmp_path: Path, tiny: Path) -> None:
    """Rows have different numbers of supervised tokens, so a mean of means would not do."""
    rows = [{**row, "labels": row["input_ids"] if index % 4 == 0 else row["labels"]} for index, row in enumerate(features(16))]
    for row in rows:
        row["labels"] = [IGNORED, *row["labels"][1:]]
    for packing in (True, False):
        whole = fit(job(tmp_path / f"whole-{packing}", tiny, rows=rows, batch_size=4, packing=packing, eval_steps=3))
        parts = fit(
            job(tmp_path / f"parts-{packing}", tiny, rows=rows, batch_size=1, gradient_accumulation=4, packing=packing, eval_steps=3)
        )
        assert logged(parts, "loss") == pytest.approx(logged(whole, "loss"), abs=1e-4)
        assert len(logged(parts, "eval_loss")) == 2
        assert logged(parts, "eval_loss") == pytest.approx(logged(whole, "eval_loss"), abs=1e-4)


def test_the_logged_loss_is_the_mean_over_supervised_tokens(tmp_path: Path, tiny: Path) -> None:
    rows = features(4)
    first = logged(fit(job(tmp_path, tiny, rows=rows, max_steps=1)), "loss")[0]
    nll, count = supervised(load_model(tiny, dtype="float32"), rows)
    assert first == pytest.approx(nll / count, abs=1e-4)


def supervised(model: Any, rows: list[dict[str, list[int]]]) -> tuple[float, int]:
    batch = PaddedBatch(EOS)(rows)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:].flatten()
    nll = functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum").item()
    return nll, int((targets != IGNORED).sum())


def test_validation_during_training_is_logged_and_right(tmp_path: Path, tiny: Path) -> None:
    validation = features(7, seed=9)  # in batches of 4 and 3: a mean over batches would be another number
    made = job(tmp_path, tiny, validation=validation, eval_steps=3, save_steps=3, max_steps=6)
    lines = [line for line in fit(made) if "eval_loss" in line]
    assert [line["step"] for line in lines] == [3, 6]
    model = PeftModel.from_pretrained(load_model(tiny, dtype="float32"), str(made.checkpoints / "checkpoint-6"))
    nll, count = supervised(model.eval(), validation)
    assert lines[-1]["eval_loss"] == pytest.approx(nll / count, abs=1e-4)
    assert 0 <= lines[-1]["eval_token_accuracy"] <= 1


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, tiny: Path, method: str) -> None:
    plain, checkpointed = (
        logged(fit(job(tmp_path / str(choice), tiny, method=method, learning_rate=3e-3, gradient_checkpointing=choice)), "loss")
        for choice in (False, True)
    )
    assert checkpointed == pytest.approx(plain, abs=1e-4)


def test_bf16_computes_in_bf16(tmp_path: Path, tiny: Path) -> None:
    exact = logged(fit(job(tmp_path / "no", tiny)), "loss")
    rounded = logged(fit(job(tmp_path / "bf16", tiny, launch={"mixed_precision": "bf16"})), "loss")
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=0.2)


def test_the_recipe_decides_on_precision_not_the_launcher(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = logged(fit(job(tmp_path / "plain", tiny)), "loss")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert logged(fit(job(tmp_path / "launched", tiny)), "loss") == exact


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in float16")
def test_fp16_without_a_gpu_is_refused(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(TrainingError, match="fp16 needs a GPU"):
        fit(job(tmp_path, tiny, launch={"mixed_precision": "fp16"}))


@pytest.mark.parametrize("metric", ["loss", "token_accuracy"])
def test_early_stopping_keeps_the_best(tmp_path: Path, tiny: Path, metric: str) -> None:
    """Random answers cannot be foreseen, so validation gets worse while the model memorises."""
    stop = {"metric": metric, "patience": 2}
    made = job(tmp_path, tiny, eval_steps=1, max_steps=60, learning_rate=3e-2, early_stopping=stop, validation=features(8, seed=1))
    lines = fit(made)
    values = logged(lines, f"eval_{metric}")
    better = min if metric == "loss" else max
    best = values.index(better(values)) + 1
    facts = result(made)
    assert facts["steps"] == len(values) == best + 2 < 60
    assert facts["best_checkpoint_step"] == best
    saved, kept = (load_file(path / "adapter_model.safetensors") for path in (made.trained, made.checkpoints / f"checkpoint-{best}"))
    assert all(torch.equal(value, saved[name]) for name, value in kept.items())


def test_early_stopping_by_the_task_s_own_score(tmp_path: Path, tiny: Path) -> None:
    made = job(tmp_path, tiny, eval_steps=2, max_steps=40, early_stopping={"metric": "score", "patience": 3})
    examples = [Example("a", "What is the capital of France?", ("Paris",), "rows.jsonl, row 1")]
    made.validation_examples.write_text("".join(json.dumps(example.to_json()) + "\n" for example in examples))
    launched.run(made)
    assert not (made.workspace / "error.json").exists()
    lines = [json.loads(line) for line in made.events.read_text().splitlines()]
    assert logged(lines, "eval_score") == [0.0] * 4  # the first, and three without improvement
    assert result(made)["steps"] == 8


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, tiny: Path) -> None:
    made = job(tmp_path, tiny, learning_rate=1e30)
    launched.run(made)
    recorded = json.loads((made.workspace / "error.json").read_text())
    assert "nan" in recorded["what"] and "step" in recorded["what"]
    assert "learning_rate" in recorded["fix"]
    assert not made.result.exists() and not made.trained.exists()


def test_an_adapter_is_safetensors_that_plain_peft_loads(tmp_path: Path, tiny: Path) -> None:
    made = job(tmp_path, tiny, target_modules=["q_proj", "v_proj"])
    fit(made)
    assert sorted(path.name for path in made.trained.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert json.loads((made.trained / "adapter_config.json").read_text())["base_model_name_or_path"] == ORIGIN
    assert str(tiny) not in (made.trained / "adapter_config.json").read_text()
    base, rows = load_model(tiny, dtype="float32"), features(16)
    before = supervised(base, rows)[0]
    assert supervised(PeftModel.from_pretrained(base, str(made.trained)).eval(), rows)[0] < before


def test_full_training_leaves_a_model_folder(tmp_path: Path, tiny: Path) -> None:
    made = job(tmp_path, tiny, method="full", learning_rate=1e-3)
    fit(made)
    names = {path.name for path in made.trained.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names and not any(name.endswith(".bin") for name in names)
    assert supervised(load_model(made.trained, dtype="float32"), features(16))[0] < supervised(load_model(tiny), features(16))[0]


def test_training_continues_to_the_very_same_losses(tmp_path: Path, tiny: Path) -> None:
    """Dropout included. Validation takes place where the first part ends in all of them, as it draws from the random state too."""
    whole = logged(fit(job(tmp_path / "whole", tiny, dropout=0.3, max_steps=6, eval_steps=3, save_steps=3)), "loss")
    made = job(tmp_path / "parts", tiny, dropout=0.3, max_steps=3, eval_steps=3, save_steps=3)
    first = logged(fit(made), "loss")
    again = job(tmp_path / "parts", tiny, dropout=0.3, max_steps=6, eval_steps=3, save_steps=3)
    lines = [line for line in fit(again) if "loss" in line]
    assert first == whole[:3]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == pytest.approx(whole, abs=1e-6)
