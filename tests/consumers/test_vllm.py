"""vLLM, in its own environment and on the CPU, answers from the folders that Workbench writes as Workbench itself does.

Both decode greedily, but add up in another order, so texts may part at a near-tie and then go their own ways. The rule is therefore
about every single token: Workbench's model reads vLLM's answer, and wherever vLLM's token is not its own favourite, the two logits
must be a tie at the resolution of the arithmetic. bfloat16 has eight significant bits, so a logit is known to one part in 256; rounding
differs at every one of the thirty layers, so four such units count as a tie. Such ties must be rare: nine tokens in ten are the same.
How many texts are identical to the letter, by `evaluation.generate`, is reported (7 of 12 in 16 bits), not judged: it counts ties.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from workbench.quantization.quantizer import Source, Texts, method_of
from workbench.recipe.schema import CompressedTensors, Gptq, Quantizer

ROOT = Path(__file__).parents[2]
VLLM = ROOT / ".venv-vllm"
LLMCOMPRESSOR = ROOT / ".venv-llmcompressor"
RECIPE = ROOT / "recipes" / "quickstart.yaml"

#: Two logits that differ by less than this share of the larger one are a tie.
RESOLUTION = 4 / 256
PROMPTS, TOKENS = 12, 12
#: Seconds that a server may take until it answers: 30 on an idle machine.
PATIENCE = 300

pytestmark = [
    pytest.mark.consumers,
    pytest.mark.skipif(not (VLLM / ".installed").exists(), reason="make vllm"),
]


@pytest.fixture(scope="module")
def texts(base: Path) -> Texts:
    """Headlines as token ids: a few dozen to calibrate on, and others as prompts."""
    from workbench.models.load import load_tokenizer
    from workbench.recipe.load import load
    from workbench.sources.fetch import default_cache, materialise
    from workbench.sources.reference import parse

    recipe = load(RECIPE).recipe
    data = materialise(parse(recipe.data.source, base=ROOT), cache=default_cache(), hub=recipe.hub)
    with data.path.open(encoding="utf-8") as lines:
        headlines = [json.loads(line)["input"][-1]["content"] for line, _ in zip(lines, range(400 + PROMPTS), strict=False)]
    tokenizer = load_tokenizer(base)
    rows = ["\n".join(headlines[start : start + 8]) for start in range(PROMPTS, PROMPTS + 384, 8)]
    asked = [f"Headline: {headline}\nThe story:" for headline in headlines[:PROMPTS]]
    return Texts(*([tokenizer(text)["input_ids"] for text in some] for some in (rows, asked)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model in bfloat16."""
    from workbench.models.prepare import from_gguf
    from workbench.recipe.load import load
    from workbench.sources.fetch import default_cache, materialise
    from workbench.sources.reference import parse

    recipe, out = load(RECIPE).recipe, tmp_path_factory.mktemp("base")
    from_gguf(materialise(parse(recipe.model.source, base=ROOT), cache=default_cache(), hub=recipe.hub).path, out, recipe.model.dtype)
    return out


def quantised(section: Quantizer, base: Path, texts: Texts, folder: Path) -> Path:
    """The quantised copy of `base`, made as a recipe would."""
    out, workspace = folder / "out", folder / "work"
    out.mkdir()
    workspace.mkdir()
    method_of(section, ROOT).quantize(Source(base, "bfloat16", False), out, texts, workspace, lambda *_: None)
    return out


def test_sixteen_bits(base: Path, texts: Texts, tmp_path: Path, record_property: Any) -> None:
    agree(base, texts, tmp_path, record_property)


@pytest.mark.slow
def test_gptq(base: Path, texts: Texts, tmp_path: Path, record_property: Any) -> None:
    folder = quantised(Gptq(method="gptq", bits=4, group_size=64), base, texts, tmp_path)
    assert weights(folder) < 120e6
    agree(folder, texts, tmp_path, record_property)


@pytest.mark.slow
@pytest.mark.skipif(not (LLMCOMPRESSOR / ".installed").exists(), reason="make llmcompressor")
def test_compressed_tensors(base: Path, texts: Texts, tmp_path: Path, record_property: Any) -> None:
    """W4A16 only. W8A8 loads and answers too, but rounds activations to 8 bits at every layer, vLLM in integers and transformers in
    bfloat16: 17 of 144 tokens differed, by up to 0.034 of the logit, so another engine's answers say little about it.
    """
    folder = quantised(CompressedTensors(method="compressed_tensors", scheme="W4A16"), base, texts, tmp_path)
    assert weights(folder) < 120e6
    agree(folder, texts, tmp_path, record_property)


def weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def agree(folder: Path, texts: Texts, scratch: Path, record_property: Any) -> None:
    """Hold vLLM's answers against Workbench's, token by token."""
    import torch

    from workbench.evaluation.generate import generate
    from workbench.models.load import load_candidate, load_tokenizer

    with serving(folder, scratch / "vllm.log") as url:
        theirs = [ask(url, folder, prompt) for prompt in texts.probes]

    tokenizer, model = load_tokenizer(folder), load_candidate(folder, dtype="bfloat16", trust_remote_code=False)
    ours = generate(model, tokenizer, texts.probes, max_new_tokens=TOKENS, stop=[], eos_ids=[tokenizer.eos_token_id])
    identical = sum(mine.text == his["text"].strip() for mine, his in zip(ours, theirs, strict=True))
    gaps = []
    for prompt, his in zip(texts.probes, theirs, strict=True):
        answer = his["token_ids"]
        assert his["prompt_token_ids"] == list(prompt) and answer
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].float()
        best = logits.max(-1).values
        chosen = logits.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        gaps += ((best - chosen) / best.abs()).tolist()
    parted = sum(gap > 0 for gap in gaps)
    said = f"{identical} of {PROMPTS} texts identical; {parted} of {len(gaps)} tokens differ, by at most {max(gaps):.4f} of the logit"
    print(f"{weights(folder) / 1e6:.1f} MB: {said}")
    record_property("agreement", said)
    assert max(gaps) < RESOLUTION, said
    assert parted <= len(gaps) / 10, said


def ask(url: str, folder: Path, prompt: Any) -> dict[str, Any]:
    """vLLM's greedy continuation, with its token ids."""
    body = {
        "model": str(folder),
        "prompt": list(prompt),
        "max_tokens": TOKENS,
        "temperature": 0,
        "return_token_ids": True,
    }
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return dict(json.load(reply)["choices"][0])


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[str]:
    """A real `vllm serve`; at the end its whole process group is gone, and its port is free."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [VLLM / "bin" / "vllm", "serve", folder, "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    # Its own defaults for what a request leaves open, not those that the model was shipped with.
    command += ["--generation-config", "vllm", "--max-model-len", "512", "--max-num-seqs", "4", "--enforce-eager"]
    settings = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**inherited, **settings}, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: ready(url) or server.poll() is not None, PATIENCE)
        assert server.poll() is None, log.read_text(errors="replace")[-4000:]
        yield url
    finally:
        stop(server)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the group to end, then end it: its engine and workers are processes of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            break
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            continue

    def gone() -> bool:
        try:
            os.killpg(server.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(gone, 20)


def wait_until(happened: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.2)
