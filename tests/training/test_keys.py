"""Every key of `train`, `launch` and `merge` does something: change it, and what comes out changes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.training.chain import make_recipe
from tests.training.jobs import events, features, fit, job, logged, result
from workbench.errors import RecipeError, TrainingError
from workbench.recipe.shape import keys

#: One other value for each key whose effect shows in the log or the result of a short real training, or in the adapter's shape.
CHANGES: dict[str, dict[str, Any]] = {
    "method": {"method": "full"},
    "rank": {"rank": 4},
    "alpha": {"alpha": 5},
    "dropout": {"dropout": 0.5},
    "target_modules": {"target_modules": ["q_proj"]},
    "modules_to_save": {"modules_to_save": ["post_attention_layernorm"]},
    "layers": {"layers": 1},
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "max_steps": {"max_steps": 4},
    "batch_size": {"batch_size": 2},
    "gradient_accumulation": {"gradient_accumulation": 2},
    "learning_rate": {"learning_rate": 2e-2},
    "scheduler": {"scheduler": "linear"},
    "warmup": {"warmup": 0.5, "scheduler": "linear"},
    "optimizer": {"optimizer": "sgd"},
    "weight_decay": {"weight_decay": 0.9},
    "max_grad_norm": {"max_grad_norm": 1e-3, "optimizer": "sgd"},
    "eval_steps": {"eval_steps": 2},
    "seed": {"seed": 1},
}

#: Where the other keys are shown to matter.
ELSEWHERE = {
    "train.serve_adapter": "tests/training/test_keys.py::test_serve_adapter",
    "train.loss": "tests/stages/test_train_stage.py::test_loss_decides_which_tokens_teach",
    "train.max_length": "tests/stages/test_train_stage.py::test_overlong_rows",
    "train.overflow": "tests/stages/test_train_stage.py::test_overlong_rows",
    "train.epochs": "tests/training/test_keys.py::test_epochs",
    "train.gradient_checkpointing": "tests/training/test_keys.py::test_gradient_checkpointing_keeps_fewer_activations",
    "train.packing": "tests/training/test_keys.py::test_packing",
    "train.save_steps": "tests/training/test_keys.py::test_save_steps",
    "train.early_stopping.metric": "tests/training/test_trainer.py::test_early_stopping_keeps_the_best",
    "train.early_stopping.patience": "tests/training/test_keys.py::test_early_stopping_keys",
    "train.early_stopping.min_delta": "tests/training/test_keys.py::test_early_stopping_keys",
    "launch.num_processes": "tests/training/test_launch.py::test_several_processes",
    "launch.mixed_precision": "tests/training/test_trainer.py::test_bf16_computes_in_bf16",
    "launch.config_file": "tests/training/test_launch.py::test_a_config_file_is_handed_on",
    "launch.threads": "tests/training/test_launch.py::test_threads_reach_the_processes",
    "merge.check_prompts": "tests/stages/test_merge_stage.py::test_merge_keys",
    "merge.check_tokens": "tests/stages/test_merge_stage.py::test_merge_keys",
    "merge.max_logit_difference": "tests/stages/test_merge_stage.py::test_merge_keys",
}

ROOT = Path(__file__).parents[2]


def test_no_key_is_forgotten() -> None:
    wanted = {key for key in keys() if key.partition(".")[0] in ("train", "launch", "merge")}
    assert {f"train.{key}" for key in CHANGES} | ELSEWHERE.keys() == wanted
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text(), place


@pytest.mark.parametrize("key", CHANGES)
def test_key_changes_the_training(tmp_path: Path, tiny: Path, key: str) -> None:
    other = {name: value for name, value in CHANGES[key].items() if name != key}
    assert outcome(tmp_path / "changed", tiny, CHANGES[key]) != _default(tmp_path.parent / "default", tiny, tuple(other.items()))


@cache
def _default(folder: Path, model: Path, settings: tuple[tuple[str, Any], ...]) -> Any:
    return outcome(folder / "-".join(name for name, _ in settings), model, dict(settings))


def outcome(folder: Path, model: Path, train: dict[str, Any]) -> Any:
    made = job(folder, model, rows=features(8), **{"max_steps": 3, **train})
    lines = fit(made)
    return [logged(lines, name) for name in ("loss", "learning_rate", "eval_loss")], result(made)["trained_parameters"]


def test_serve_adapter(tmp_path: Path) -> None:
    """Decides what `workbench check` lets through, not what is trained."""
    from workbench.check import check_static
    from workbench.recipe.load import load

    recipe = make_recipe(tmp_path)
    check_static(load(recipe, ["train.dora=true", "train.serve_adapter=false"]))
    with pytest.raises(RecipeError, match="cannot serve a DoRA adapter"):
        check_static(load(recipe, ["train.dora=true"]))


def test_epochs(tmp_path: Path, tiny: Path) -> None:
    steps = {}
    for epochs in (0.5, 1.0, 1.5, 2.0):
        made = job(tmp_path / str(epochs), tiny, rows=features(10), max_steps=None, epochs=epochs)
        steps[epochs] = len(logged(fit(made), "loss"))
        assert steps[epochs] == made.train.steps(10, made.launch.num_processes)
    assert steps == {0.5: 2, 1.0: 3, 1.5: 5, 2.0: 6}


def test_packing(tmp_path: Path, tiny: Path) -> None:
    """Both teach the same, so what shows the difference is a model that cannot be packed."""
    import torch
    from transformers import StableLmConfig, StableLmForCausalLM

    from tests.support.tiny import make_tokenizer

    torch.manual_seed(0)
    model = tmp_path / "model"
    make_tokenizer(model)
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    StableLmForCausalLM(StableLmConfig(**sizes, num_key_value_heads=4, eos_token_id=1, bos_token_id=None)).save_pretrained(model)
    assert len(logged(fit(job(tmp_path / "padded", model, packing=False)), "loss")) == 6
    with pytest.raises(TrainingError, match="packed"):
        fit(job(tmp_path / "packed", model, packing=True))


def test_save_steps(tmp_path: Path, tiny: Path) -> None:
    for every, kept in ((2, ["checkpoint-4", "checkpoint-6"]), (3, ["checkpoint-3", "checkpoint-6"])):
        made = job(tmp_path / str(every), tiny, save_steps=every)
        fit(made)
        assert sorted(path.name for path in made.checkpoints.glob("*-*")) == kept


def test_gradient_checkpointing_keeps_fewer_activations(tmp_path: Path, tiny: Path) -> None:
    """The layers' forward runs once more in the backward pass."""
    from torch.nn.modules.module import register_module_forward_hook

    calls = []
    hook = register_module_forward_hook(lambda module, *_: calls.append(1) if type(module).__name__ == "LlamaAttention" else None)
    try:
        counts = []
        for choice in (False, True):
            calls.clear()
            fit(job(tmp_path / str(choice), tiny, max_steps=1, packing=False, validation=[], gradient_checkpointing=choice))
            counts.append(len(calls))
    finally:
        hook.remove()
    assert counts == [2, 4]


def test_early_stopping_keys(tmp_path: Path, tiny: Path) -> None:
    def steps(name: str, **stop: Any) -> int:
        made = job(tmp_path / name, tiny, eval_steps=1, max_steps=12, early_stopping={"min_delta": 0.0, "patience": 1, **stop})
        fit(made)
        assert len(logged(events(made), "eval_loss")) == result(made)["steps"]
        return int(result(made)["steps"])

    demanding = steps("demanding", min_delta=100.0)
    assert demanding == 2
    assert steps("patient", min_delta=100.0, patience=3) == 4
    assert steps("content", min_delta=0.0, patience=3) > 4
