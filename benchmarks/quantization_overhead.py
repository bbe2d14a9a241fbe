"""What `method: gptq` costs beside GPTQModel itself: the same model, rows and settings, bare and through Workbench, in one run.

    python benchmarks/quantization_overhead.py MODEL_FOLDER [--rows 256] [--repeats 1]

MODEL_FOLDER is a 16-bit model in Hugging Face's layout, such as a `merge` artifact of the quickstart. The rows are random tokens of
headline length: what GPTQ takes does not depend on what they say. Prints seconds outside GPTQModel's own `quantize` as a share of it,
and the peak memory of both processes. Nothing is asserted here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workbench.models.facts import read_facts
from workbench.quantization.gptq import GptqMethod
from workbench.quantization.quantizer import Source, Texts
from workbench.recipe.schema import Gptq
from workbench.stages.quantize import PROBES

BARE = """
import json, sys, time
from pathlib import Path
from gptqmodel import GPTQModel, QuantizeConfig
model, out, rows = sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_text())
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


def bare(model: Path, rows: list[list[int]], work: Path) -> dict[str, float]:
    """GPTQModel by itself, in a fresh process."""
    (work / "rows.json").write_text(json.dumps(rows))
    environment = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2", "TORCHDYNAMO_DISABLE": "1"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(model), str(work / "bare"), str(work / "rows.json")],
        env=environment, cwd=work, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return {**json.loads(done.stdout.partition("RESULT")[2].splitlines()[0]), "seconds": seconds}


def ours(model: Path, rows: list[list[int]], work: Path) -> dict[str, float]:
    """The same through `GptqMethod`, with its probes."""
    out, scratch = work / "ours", work / "scratch"
    out.mkdir()
    scratch.mkdir()
    started = time.perf_counter()
    made = GptqMethod(Gptq(method="gptq")).quantize(
        Source(model, "bfloat16", trust_remote_code=False), out, Texts(rows, rows[:PROBES]), scratch, lambda done, note="", /: None
    )
    return {**made.facts, "seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description="GPTQ through Workbench against GPTQModel by itself.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    draw = random.Random(0)
    vocabulary = read_facts(options.model).vocab
    rows = [[draw.randrange(vocabulary) for _ in range(draw.randint(15, 40))] for _ in range(options.rows)]
    for _ in range(options.repeats):
        for name, measure in (("GPTQModel", bare), ("workbench", ours)):
            with tempfile.TemporaryDirectory() as work:
                found = measure(options.model.absolute(), rows, Path(work))
            outside = found["seconds"] - found["quantize_seconds"]
            print(
                f"{name}: quantize() {found['quantize_seconds']:.1f} s, {outside:.1f} s outside it "
                f"({100 * outside / found['quantize_seconds']:.1f}%), peak memory {found['peak_memory_bytes'] / 1e6:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
