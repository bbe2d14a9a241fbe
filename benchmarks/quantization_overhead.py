"""What `method: gptq` costs beside GPTQModel itself: the same model, rows and settings, bare and as a stage of a run.

    python benchmarks/quantization_overhead.py MODEL_FOLDER [--rows 256] [--repeats 1]

MODEL_FOLDER is a 16-bit model in Hugging Face's layout, such as a `merge` artifact of the quickstart. The rows are random tokens of
headline length: what GPTQ takes does not depend on what they say. Prints, for each way, the seconds outside GPTQModel's own `quantize`
as a share of those inside, and the peak memory of the process that quantised. Nothing is asserted here.

`GPTQModel`: a script that imports it, loads, quantises and saves. Outside: all of that script's life.
`workbench run`: the whole stage `quantize:...` of a run, its reload check included. Its child's imports (torch, transformers, GPTQModel)
    overlap with the stage before, which is `calibration:...` here and `merge` where a run trains; they take processor time from that
    stage, and are counted only as far as they are not over when it is.
`workbench run, continued`: the same where everything before the stage is in the store, as after a kill. No stage is made before this
    one, so the imports overlap with the start of the run alone, and the rest of them is counted.
In all of them, what GPTQModel imports late, and in the last one the parent's own import of it, for the reload check, falls into `quantize`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workbench.models.load import load_tokenizer

BARE = """
import json, sys, time
from pathlib import Path
from gptqmodel import GPTQModel, QuantizeConfig
model, out = sys.argv[1:3]
rows = [json.loads(line) for line in Path(sys.argv[3]).read_text().splitlines()]
config = QuantizeConfig(bits=4, group_size=64, desc_act=False, sym=True, damp_percent=0.05, device="cpu", offload_to_disk=False)
loaded = GPTQModel.load(model, config, dtype="bfloat16")
started = time.perf_counter()
loaded.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=2048 // max(map(len, rows)))
seconds = time.perf_counter() - started
loaded.save(out)
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
print("RESULT" + json.dumps({"quantize_seconds": seconds, "peak_memory_bytes": peak}))
"""

RECIPE = """\
name: overhead
model: {{source: {model}, license: none}}
data:
  source: rows.jsonl
  format: prompt_completion
  split: {{train: 0.8, validation: 0.1, calibration: 0.05, test: 0.05, seed: 0}}
task: {{prompt: "{{prompt}}", metric: label, labels: ["0", "1"], max_new_tokens: 1}}
quantize:
  - {{method: gptq, bits: 4, group_size: 64, calibration: {{rows: {rows}}}}}
"""


def furnish(model: Path, rows: int, work: Path) -> None:
    """A recipe, and twice the rows that it calibrates on."""
    draw, tokenizer = random.Random(0), load_tokenizer(model)
    texts = [tokenizer.decode([draw.randrange(len(tokenizer)) for _ in range(draw.randint(15, 35))]) for _ in range(2 * rows)]
    lines = (json.dumps({"prompt": text, "completion": draw.choice("01")}) + "\n" for text in texts)
    (work / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    (work / "recipe.yaml").write_text(RECIPE.format(model=json.dumps(str(model)), rows=rows))


def ours(work: Path) -> dict[str, float]:
    """A run up to its stage `quantize`; one that was there is made again."""
    store = work / ".workbench" / "store"
    for earlier in store.glob("quantize-*"):
        shutil.rmtree(earlier)
    command = [sys.executable, "-m", "workbench", "run", "recipe.yaml", "--until", "quantize"]
    if subprocess.run(command, cwd=work, stdout=subprocess.DEVNULL, check=False).returncode:
        sys.exit("the run failed, as it said")
    (made,) = store.glob("quantize-*/artifact.json")
    artifact = json.loads(made.read_text())
    return {**artifact["facts"], "seconds": artifact["seconds"]}


def bare(model: Path, work: Path) -> dict[str, float]:
    """GPTQModel by itself, in a fresh process, on the rows that the run calibrated on."""
    (rows,) = (work / ".workbench" / "store").glob("calibration-*/rows.jsonl")
    environment = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2", "TORCHDYNAMO_DISABLE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(model), str(work / "bare"), str(rows)],
        env=environment, cwd=work, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return {**json.loads(done.stdout.partition("RESULT")[2].splitlines()[0]), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description="GPTQ through Workbench against GPTQModel by itself.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    model = options.model.absolute()
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            furnish(model, options.rows, work)
            show("workbench run", ours(work))
            show("workbench run, continued", ours(work))
            show("GPTQModel", bare(model, work))


def show(name: str, found: dict[str, float]) -> None:
    inside = found["quantize_seconds"]
    outside = found["seconds"] - inside
    share, memory = outside / inside, found["peak_memory_bytes"] / 1e6
    print(f"{name}: quantize() {inside:.1f} s, {outside:.1f} s outside it ({share:.1%}), peak memory {memory:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
