"""Trained tokens a second of `workbench run` against a bare `trl sft`: the same rows, batches, steps, adapter and precision, in one run.

    python benchmarks/training_speed.py [--rows 960] [--repeats 1]

Both train SmolLM2-135M on sarcasm headlines (see data/), on whatever this machine is. TRL is given the prompt and the answer as text
and its own defaults, but for what has to be equal; gradient checkpointing, which TRL turns on, is off for both. Prints tokens a second
(the trainers' own clocks, imports and loading left out), the ratio, and both losses. Nothing is asserted here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from workbench.data.render import Renderer
from workbench.models.load import load_tokenizer
from workbench.pipeline import make
from workbench.plan import plan
from workbench.recipe.load import load
from workbench.stages.data import examples_of
from workbench.stages.train import rendered
from workbench.store import Store

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
BATCH, RANK, RATE, SEED = 32, 16, 2e-4, 0


def ours(work: Path, rows: int) -> tuple[float, float, int, Path]:
    """Tokens a second, mean loss of the last five steps, tokens, and the prepared folder of model and rows."""
    train = (
        f"{{rank: {RANK}, learning_rate: {RATE}, batch_size: {BATCH}, scheduler: constant, warmup: 0.0, seed: {SEED}, "
        "max_length: 64, overflow: drop, eval_steps: 100000, save_steps: 100000}"
    )
    loaded = load(RECIPE, [f"data.limit={{train: {rows}, validation: 32, test: 32}}", f"train={train}"])
    store, made = Store(work / "state"), {}
    for stage in plan(loaded).stages:
        if stage.name in ("model", "data", "train"):
            made[stage.name] = make(stage, store, {one.name: made[one.name] for one in stage.inputs}, lambda metrics, step: None)
    history = [json.loads(line) for line in (made["train"].path / "history.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in history if "loss" in event]
    tokenizer = load_tokenizer(made["model"].path)
    assert loaded.recipe.train is not None
    kept, _ = rendered(Renderer(tokenizer, loaded.recipe.task), examples_of(made["data"].path, "train"), loaded.recipe.train)
    texts = [
        {"prompt": example.prompt, "completion": example.references[0]}
        for example in examples_of(made["data"].path, "train")
        if any(row.where == example.where for row in kept)
    ]
    (work / "rows").mkdir(exist_ok=True)
    (work / "rows" / "train.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    facts = made["train"].facts
    return facts["attempt_tokens_per_s"], statistics.mean(losses[-5:]), facts["tokens"], made["model"].path


def theirs(work: Path, model: Path, tokens: int) -> tuple[float, float]:
    """Tokens a second, and mean loss of the last five steps, of `trl sft` on the same rows."""
    options = {
        "model_name_or_path": model, "dataset_name": work / "rows", "output_dir": work / "trl", "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1, "learning_rate": RATE, "lr_scheduler_type": "constant", "bf16": True, "dtype": "bfloat16", "use_peft": True,
        "lora_r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.0, "lora_target_modules": "all-linear", "gradient_checkpointing": False,
        "completion_only_loss": True, "logging_steps": 1, "save_strategy": "no", "seed": SEED, "report_to": "none", "max_length": 64,
        "use_cpu": not _has_cuda(), "disable_tqdm": True,
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "trl"), "sft"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": str(not _has_cuda())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    output = done.stdout + done.stderr
    runtime = re.search(r"'train_runtime': '?([0-9.e+]+)", output)
    losses = [float(value) for value in re.findall(r"'loss': '?([0-9.e+-]+)", output)]
    if done.returncode or runtime is None:
        sys.exit(f"trl sft failed:\n{output[-3000:]}")
    return tokens / float(runtime[1]), statistics.mean(losses[-5:])


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def main() -> None:
    """Run both in turn and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=960)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    ratios = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            speed, loss, tokens, model = ours(Path(folder), options.rows)
            other_speed, other_loss = theirs(Path(folder), model, tokens)
        ratios.append(speed / other_speed)
        print(f"workbench {speed:.0f} tokens/s, loss {loss:.4f}; trl sft {other_speed:.0f} tokens/s, loss {other_loss:.4f}")
    print(f"median ratio {statistics.median(ratios):.2f} over {options.repeats} run(s) of {options.rows} rows")


if __name__ == "__main__":
    main()
