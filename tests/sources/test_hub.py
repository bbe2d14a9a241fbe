"""Models and data from a hub: huggingface_hub's real client against a stand-in on the loopback."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.support.hub import StandInHub
from workbench.errors import EnvironmentFault, SourceError, WorkbenchError
from workbench.recipe.schema import Hub
from workbench.sources.fetch import Materialised, materialise
from workbench.sources.reference import parse
from workbench.sources.weights import check_weights

TOKEN = "hf_geheim"
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool.jinja": b"{{ tools }}",
    "merges.txt": b"a b\n",
    "model.safetensors": save({"a": np.arange(50_000, dtype=np.float32)}),
    "consolidated.safetensors": save({"a": np.arange(50_000, dtype=np.float32)}),
    "pytorch_model.bin": b"\x80\x04.",
    "modeling_custom.py": b"print('hello')",
    "onnx/model.json": b"{}",
    "README.md": b"# card",
}
WANTED = {
    "config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "additional_chat_templates/tool.jinja",
    "merges.txt",
    "model.safetensors",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with StandInHub() as server:
        yield server


def _fetch(hub: StandInHub, text: str, cache: Path, *, code: bool = False) -> Materialised:
    return materialise(parse(text, base=cache), cache=cache / "cache", hub=Hub(endpoint=hub.endpoint), trust_remote_code=code)


def _refused(hub: StandInHub, text: str, cache: Path, kind: type[WorkbenchError]) -> str:
    with pytest.raises(kind) as caught:
        _fetch(hub, text, cache)
    assert "\n" not in caught.value.what
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_stand_in_serves_the_client_as_it_is(hub: StandInHub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    commit = hub.add("org/model", MODEL)
    folder = Path(snapshot_download("org/model", endpoint=hub.endpoint, cache_dir=tmp_path))
    assert folder.name == commit
    assert {name: (folder / name).read_bytes() for name in MODEL} == MODEL


def test_pinned_model(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.add("org/model", MODEL)
    got = _fetch(hub, f"hf://org/model@{commit}", tmp_path)
    assert _files(got.path) == WANTED
    assert all((got.path / name).read_bytes() == MODEL[name] for name in WANTED)
    assert (got.origin, got.revision, got.warnings) == (f"hf://org/model@{commit}", commit, ())
    check_weights(got.path)
    assert not any(path.suffix == ".incomplete" for path in tmp_path.rglob("*"))


def test_pinned_and_cached_needs_no_network_and_not_even_the_client(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.add("org/model", MODEL)
    got = _fetch(hub, f"hf://org/model@{commit}", tmp_path)
    asked = len(hub.requests)
    assert _fetch(hub, f"hf://org/model@{commit}", tmp_path) == got
    assert len(hub.requests) == asked
    code = (
        "import sys; from pathlib import Path; sys.modules['huggingface_hub'] = None\n"
        "from workbench.sources.fetch import *; from workbench.sources.reference import parse; from workbench.recipe.schema import Hub\n"
        f"print(materialise(parse('hf://org/model@{commit}', base=Path()), cache=Path(sys.argv[1]), hub=Hub(endpoint=sys.argv[2])).path)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache"), hub.endpoint],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.strip() == str(got.path), done.stderr


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0"])
def test_floating_revision_is_resolved_recorded_and_warned_about(hub: StandInHub, tmp_path: Path, revision: str) -> None:
    first = hub.add("org/model", MODEL, branch=revision[1:] or "main")
    got = _fetch(hub, f"hf://org/model{revision}", tmp_path)
    assert got.revision == first
    assert got.origin == f"hf://org/model@{first}"
    assert len(got.warnings) == 1
    assert f"pin it as hf://org/model@{first}" in got.warnings[0]
    second = hub.add("org/model", {**MODEL, "config.json": b'{"new": 1}'}, branch=revision[1:] or "main")
    moved = _fetch(hub, f"hf://org/model{revision}", tmp_path)
    assert moved.revision == second
    assert moved.digest != got.digest
    assert _fetch(hub, got.origin, tmp_path).digest == got.digest


def test_python_only_with_trust(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.add("org/model", MODEL)
    plain = _fetch(hub, f"hf://org/model@{commit}", tmp_path)
    trusted = _fetch(hub, f"hf://org/model@{commit}", tmp_path, code=True)
    assert _files(trusted.path) == WANTED | {"modeling_custom.py"}
    assert _files(plain.path) == WANTED
    assert trusted.digest != plain.digest


def test_pickles_only_are_refused_before_any_transfer(hub: StandInHub, tmp_path: Path) -> None:
    hub.add("org/old", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."})
    text = _refused(hub, "hf://org/old@main", tmp_path, SourceError)
    assert "pickles only" in text
    assert not any("/resolve/" in seen.path for seen in hub.requests)


def test_gguf_repository_wants_a_file(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.add("org/gguf", {"m.Q4_1.gguf": b"GGUF" * 100})
    assert f"name the file: hf://org/gguf@{commit}/m.Q4_1.gguf" in _refused(hub, f"hf://org/gguf@{commit}", tmp_path, SourceError)
    got = _fetch(hub, f"hf://org/gguf@{commit}/m.Q4_1.gguf", tmp_path)
    assert got.path.name == "m.Q4_1.gguf"
    assert got.path.read_bytes() == b"GGUF" * 100


def test_data_file(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.add("org/rows", {"data/train.jsonl": b"{}\n", "data/test.jsonl": b"[]\n"}, kind="datasets")
    got = _fetch(hub, f"hf://datasets/org/rows@{commit}/data/train.jsonl", tmp_path)
    assert got.path.read_bytes() == b"{}\n"
    assert got.origin == f"hf://datasets/org/rows@{commit}/data/train.jsonl"
    other = _fetch(hub, f"hf://datasets/org/rows@{commit}/data/test.jsonl", tmp_path)
    assert other.path.read_bytes() == b"[]\n"
    assert other.digest != got.digest


def test_missing_repository_revision_file(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.add("org/rows", {"data/train.jsonl": b"{}\n"}, kind="datasets")
    assert "'org/nothing' does not exist" in _refused(hub, "hf://org/nothing@main", tmp_path, SourceError)
    assert "no revision 'v9'" in _refused(hub, "hf://datasets/org/rows@v9/x", tmp_path, SourceError)
    assert "no revision" in _refused(hub, f"hf://datasets/org/rows@{'0' * 40}/x", tmp_path, SourceError)
    text = _refused(hub, f"hf://datasets/org/rows@{commit}/train.jsonl", tmp_path, SourceError)
    assert "did you mean 'data/train.jsonl'?" in text


def test_token_comes_from_the_named_variable_and_stays_with_the_hub(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    commit = hub.add("org/private", MODEL)
    hub.protect("org/private", token=TOKEN)
    text = _refused(hub, f"hf://org/private@{commit}", tmp_path, SourceError)
    assert "no token ($HF_TOKEN is not set)" in text
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "may not be read with the token in $HF_TOKEN" in _refused(hub, f"hf://org/private@{commit}", tmp_path, SourceError)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("OUR_TOKEN", TOKEN)
    source, settings = parse(f"hf://org/private@{commit}", base=tmp_path), Hub(endpoint=hub.endpoint, token_env="OUR_TOKEN")
    got = materialise(source, cache=tmp_path / "cache", hub=settings)
    assert _files(got.path) == WANTED
    storage = [seen for seen in hub.requests if seen.path.startswith("/storage/")]
    assert storage
    assert all(seen.authorization is None for seen in storage)
    assert TOKEN not in caplog.text


def test_gated(hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("org/gated", MODEL)
    hub.protect("org/gated", gated=True)
    assert "is gated" in _refused(hub, "hf://org/gated@main", tmp_path, SourceError)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(code, SourceError) for code in (400, 401, 403, 404)] + [(code, EnvironmentFault) for code in (429, 500, 503)],
)
def test_status(hub: StandInHub, tmp_path: Path, status: int, kind: type[WorkbenchError]) -> None:
    hub.status = status
    _refused(hub, "hf://org/model@main", tmp_path, kind)


def test_web_page_instead_of_a_hub(hub: StandInHub, tmp_path: Path) -> None:
    hub.web_page = True
    assert "does not answer like a model hub" in _refused(hub, "hf://org/model@main", tmp_path, SourceError)


def test_no_network(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.add("org/model", MODEL)
    _fetch(hub, f"hf://org/model@{commit}", tmp_path)
    hub.stop()
    text = _refused(hub, "hf://org/other@main", tmp_path, EnvironmentFault)
    assert "cannot be reached" in text
    text = _refused(hub, "hf://org/model@main", tmp_path, EnvironmentFault)
    assert f"pin a commit that is in the cache: hf://org/model@{commit}" in text
    assert _fetch(hub, f"hf://org/model@{commit}", tmp_path).revision == commit


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://x/y", "http://"])
def test_bad_endpoint(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(SourceError, match="is not the address of a hub"):
        materialise(parse("hf://org/model@main", base=tmp_path), cache=tmp_path, hub=Hub(endpoint=endpoint))


def test_transfer_that_breaks_goes_on_where_it_broke(hub: StandInHub, tmp_path: Path) -> None:
    weights = save({"a": np.arange(8_000_000, dtype=np.float32)})
    commit = hub.add("org/model", {**MODEL, "model.safetensors": weights})
    hub.cut("model.safetensors", 25_000_000)
    got = _fetch(hub, f"hf://org/model@{commit}", tmp_path)
    assert (got.path / "model.safetensors").read_bytes() == weights
    first, second = hub.ranges("model.safetensors")
    assert first is None
    assert second == "bytes=20971520-"  # whole chunks of the client's 10 MiB


def test_killed_process_is_continued_by_the_next(hub: StandInHub, tmp_path: Path) -> None:
    weights = bytes(range(256)) * 200_000  # 51 MB: the client writes in chunks of 10 MB
    commit = hub.add("org/model", {"config.json": b"{}", "m.gguf": weights})
    hub.cut("m.gguf", *[30_000_000 + 1_000 * more for more in range(50)])
    code = (
        "import sys, threading, os, time; from pathlib import Path\n"
        "from workbench.sources.fetch import *; from workbench.sources.reference import parse; from workbench.recipe.schema import Hub\n"
        "def die():\n"
        "    while not any(p.stat().st_size > 10_000_000 for p in Path(sys.argv[1]).rglob('*.incomplete')): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), 9)\n"
        "threading.Thread(target=die, daemon=True).start()\n"
        f"materialise(parse('hf://org/model@{commit}/m.gguf', base=Path()), cache=Path(sys.argv[1]), hub=Hub(endpoint=sys.argv[2]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache"), hub.endpoint], env=environment, capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr
    [part] = (tmp_path / "cache").rglob("*.incomplete")
    assert not list((tmp_path / "cache").rglob("m.gguf"))
    kept = part.stat().st_size
    hub.cut("m.gguf")
    got = _fetch(hub, f"hf://org/model@{commit}/m.gguf", tmp_path)
    assert got.path.read_bytes() == weights
    assert hub.ranges("m.gguf")[-1] == f"bytes={kept}-"
    assert kept > 10_000_000


def test_damaged_transfer_is_found_by_its_hash_and_fetched_anew(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.add("org/model", MODEL)
    for name in ["model.safetensors", "config.json"]:
        hub.damage(name)
        assert f"'{name}' arrived damaged" in _refused(hub, f"hf://org/model@{commit}/{name}", tmp_path, EnvironmentFault)
        assert _fetch(hub, f"hf://org/model@{commit}/{name}", tmp_path).path.read_bytes() == MODEL[name]


def test_two_hubs_do_not_share_a_cache(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.add("org/model", MODEL)
    got = _fetch(hub, f"hf://org/model@{commit}", tmp_path)
    with StandInHub() as other:
        other.add("org/model", MODEL)
        again = _fetch(other, f"hf://org/model@{commit}", tmp_path)
    assert again.path != got.path
    assert again.digest == got.digest


def test_processes_that_fetch_the_same_model_download_it_once(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.add("org/model", MODEL)
    code = (
        "import sys; from pathlib import Path\n"
        "from workbench.sources.fetch import *; from workbench.sources.reference import parse; from workbench.recipe.schema import Hub\n"
        f"print(materialise(parse('hf://org/model@{commit}', base=Path()), cache=Path(sys.argv[1]), hub=Hub(endpoint=sys.argv[2])).digest)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "cache"), hub.endpoint], env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(outputs) == 1
    assert len(hub.ranges("model.safetensors")) == 1


def test_digest_does_not_depend_on_the_machine(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.add("org/model", MODEL)
    got = _fetch(hub, f"hf://org/model@{commit}", tmp_path)
    identity = {"repository": "models/org/model", "commit": commit, "file": None, "code": False}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    assert got.digest == hashlib.sha256(text.encode()).hexdigest()
