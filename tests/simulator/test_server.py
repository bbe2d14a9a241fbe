from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.simulator.playing import ask, logged, references, state
from workbench.errors import DataError, EnvironmentFault, WorkbenchError
from workbench.simulator.server import running, serve
from workbench.simulator.settings import ScheduledFault, Simulator

PARENT = """
import sys
from workbench.simulator.server import running
from workbench.simulator.settings import Simulator
with running(Simulator()) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def listens(url: str) -> bool:
    place = urlsplit(url)
    try:
        socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=1).close()
    except OSError:
        return False
    return True


def gone(url: str) -> bool:
    deadline = time.monotonic() + 10
    while listens(url):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def start() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_it_ends_with_the_block_even_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    settings = Simulator(references=references(tmp_path), faults=[ScheduledFault(kind="timeout", every=1)], log=str(tmp_path / "log"))

    broken: list[bool] = []

    def hang(url: str) -> None:
        try:
            ask(url, "question 1")
        except ConnectionResetError:  # http.client's RemoteDisconnected is one
            broken.append(True)

    with running(settings) as url:
        waiting = threading.Thread(target=hang, args=(url,))
        waiting.start()
        while state(url)["open"] < 1:
            time.sleep(0.02)
        assert url.startswith("http://127.0.0.1:") and url.endswith("/v1")
        begin = time.monotonic()
    assert time.monotonic() - begin < 5
    waiting.join(10)
    assert broken == [True] and gone(url)
    assert [entry["answered"] for entry in logged(tmp_path / "log")] == [False]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_parent(end: signal.Signals) -> None:
    process, url = start()
    try:
        assert listens(url)
        process.send_signal(end)
        process.wait(10)
        assert gone(url)
    finally:
        process.kill()


def test_sigterm_lets_an_answer_finish(tmp_path: Path) -> None:
    """`serve` in a process of its own, as the verb runs it."""
    script = (
        "from workbench.simulator.server import serve\n"
        "from workbench.simulator.settings import Latency, Simulator\n"
        "serve(Simulator(latency=Latency(p50_s=0.8, sigma=0.0)), '127.0.0.1', 0, lambda url: print(url, flush=True))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    statuses: list[int] = []
    asking = threading.Thread(target=lambda: statuses.append(ask(url, "question 1").status))
    asking.start()
    while state(url)["open"] < 1:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    asking.join(10)
    assert statuses == [200]
    assert process.wait(10) == 0
    process.stdout.close()


def test_what_is_wrong_is_said_by_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY_HERE", raising=False)
    with pytest.raises(WorkbenchError, match="there is no such file"), running(Simulator(references=str(tmp_path / "none.jsonl"))):
        pass
    with pytest.raises(WorkbenchError, match="not set") as caught, running(Simulator(api_key_env="NO_KEY_HERE")):
        pass
    assert caught.value.exit_code == 2 and "NO_KEY_HERE" in str(caught.value)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EnvironmentFault, match="cannot listen"):
        serve(Simulator(), "127.0.0.1", taken.getsockname()[1], lambda url: None)
    with pytest.raises(EnvironmentFault, match="cannot listen"):
        serve(Simulator(), "no.such.host.invalid", 0, lambda url: None)
    with pytest.raises(EnvironmentFault, match="cannot listen"):
        serve(Simulator(), "127.0.0.1", 70_000, lambda url: None)


def test_bad_references_are_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="no field 'prompt'"):
        serve(Simulator(references=str(tmp_path / "bad.jsonl")), "127.0.0.1", 0, lambda url: None)


def test_it_needs_no_torch() -> None:
    probe = "import sys, workbench.simulator.app; print(*{'torch', 'transformers', 'mlflow', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
