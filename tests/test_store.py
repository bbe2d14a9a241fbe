"""The artifact store: whole artifacts or none, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.disk import fill, remount, small_disk
from workbench.errors import EnvironmentFault, StoreError
from workbench.pipeline import make
from workbench.stages.stage import Stage, Work
from workbench.store import MANIFEST, Artifact, Store

#: Fills a staging directory and publishes it; dies by kill -9 at the given step, where every file opened, renamed or removed is a
#: step. Says how many steps there were.
PUBLISH = """
import os, signal, sys
from pathlib import Path
from workbench.store import Store

store, files, last = Store(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
steps = 0

def step(event, arguments):
    global steps
    if event in ("open", "os.rename", "os.remove", "os.rmdir"):
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

with store.lock("s", "k"), store.staging("s", "k") as staged:
    (store.workspace("s", "k") / "checkpoint").write_text("1")
    for number in range(files):
        (staged / f"{number}.bin").write_bytes(bytes(1000))
    sys.addaudithook(step)
    store.publish(staged, "s", "k", ingredients={}, facts={}, seconds=0.0)
    print(steps)
"""

#: Makes an artifact through the pipeline, and leaves a line for every time it was really made.
MAKE = """
import sys, time
from pathlib import Path
from workbench.pipeline import make
from workbench.stages.stage import Stage
from workbench.store import Store

folder = Path(sys.argv[1])

def work(work):
    with (folder / "made.log").open("a") as file:
        file.write("made\\n")
    time.sleep(0.5)
    (work.staging / "a").write_text("1")
    return {}

print("ready", flush=True)
sys.stdin.readline()
artifact = make(Stage("s", 1, {}, work), Store(folder / "state"), {}, lambda metrics, step: None)
print(artifact.path)
"""

#: Takes the lock of an artifact and keeps it.
HOLD = """
import sys, time
from pathlib import Path
from workbench.store import Store
with Store(Path(sys.argv[1])).lock("s", "k"):
    print("locked", flush=True)
    time.sleep(60)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def publish(store: Store, files: dict[str, str] | None = None, stage: str = "s", key: str = "k") -> Artifact:
    with store.staging(stage, key) as staged:
        for name, text in (files or {"a": "one", "deep/b": "two"}).items():
            (staged / name).parent.mkdir(exist_ok=True)
            (staged / name).write_text(text)
        return store.publish(staged, stage, key, ingredients={"version": 1}, facts={"rows": 3}, seconds=1.23456)


def left_behind(store: Store) -> list[str]:
    """What lies in the store and is no artifact."""
    return [path.name for path in store.root.iterdir() if store.find(*path.name.rsplit("-", 1)) is None]


def test_an_artifact_is_what_was_published(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.workspace("s", "k") / "checkpoint").write_text("kept for the next attempt")
    artifact = publish(store)
    assert artifact == store.find("s", "k")
    assert (artifact.name, artifact.stage, artifact.key, artifact.facts, artifact.seconds) == ("s-k", "s", "k", {"rows": 3}, 1.235)
    assert (artifact.path / "deep" / "b").read_text() == "two"
    assert store.damaged(artifact) == []
    manifest = json.loads((artifact.path / MANIFEST).read_text())
    assert manifest["ingredients"] == {"version": 1}
    assert set(manifest["files"]) == {"a", "deep/b"}
    assert not (store.scratch / "s-k").exists(), "the workspace has served its purpose"
    assert left_behind(store) == []


def test_nothing_is_there_before(tmp_path: Path) -> None:
    assert Store(tmp_path).find("s", "k") is None


def test_a_stage_with_a_colon_and_one_with_a_dash_lie_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, other = publish(store, stage="evaluate:base:task", key="1"), publish(store, stage="evaluate:base:task", key="2")
    assert one.path != other.path
    assert store.find("evaluate:base:task", "1") == one


def test_a_changed_byte_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = publish(store)
    (artifact.path / "a").write_text("onE")
    (artifact.path / "stranger").write_text("")
    assert store.damaged(artifact) == ["a", "stranger"]


@pytest.mark.parametrize("harm", ["lost", "shortened", "grown", "manifest lost", "manifest torn", "manifest of another kind"])
def test_an_artifact_that_lost_something_is_missing_and_made_again(tmp_path: Path, harm: str) -> None:
    store = Store(tmp_path)
    artifact = publish(store)
    if harm == "lost":
        (artifact.path / "deep" / "b").unlink()
    elif harm == "shortened":
        os.truncate(artifact.path / "a", 1)
    elif harm == "grown":
        (artifact.path / "a").write_text("one and more")
    elif harm == "manifest lost":
        (artifact.path / MANIFEST).unlink()
    elif harm == "manifest torn":
        os.truncate(artifact.path / MANIFEST, 30)
    else:
        (artifact.path / MANIFEST).write_text('{"files": []}')
    assert store.find("s", "k") is None
    again = publish(store)
    assert store.find("s", "k") == again
    assert store.damaged(again) == []
    assert left_behind(store) == [], "the damaged one is gone"


def test_a_stage_that_fails_leaves_nothing_but_its_workspace(tmp_path: Path) -> None:
    store = Store(tmp_path)
    seen = []

    def work(work: Work) -> dict[str, object]:
        seen.append([path.name for path in work.workspace.iterdir()])
        assert not any(work.staging.iterdir())
        (work.staging / "half").write_text("x")
        (work.workspace / "checkpoint").write_text("x")
        if len(seen) == 1:
            raise RuntimeError("the first time it fails")
        return {}

    stage = Stage("s", 1, {}, work)
    with pytest.raises(RuntimeError, match="the first time"):
        make(stage, store, {}, lambda metrics, step: None)
    assert list(store.root.iterdir()) == []
    make(stage, store, {}, lambda metrics, step: None)
    assert seen == [[], ["checkpoint"]]


def test_what_is_there_is_never_made_again(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []

    def work(work: Work) -> dict[str, object]:
        calls.append(1)
        (work.staging / "a").write_text(f"call {len(calls)}")
        return {}

    first = make(Stage("s", 1, {"x": 1}, work), store, {}, lambda metrics, step: None)
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    assert make(Stage("s", 1, {"x": 1}, work), store, {}, lambda metrics, step: None) == first
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == before
    assert calls == [1]
    assert make(Stage("s", 1, {"x": 2}, work), store, {}, lambda metrics, step: None).path != first.path
    assert make(Stage("s", 2, {"x": 1}, work), store, {}, lambda metrics, step: None).path != first.path
    assert calls == [1, 1, 1]


def test_two_processes_make_an_artifact_once(tmp_path: Path) -> None:
    processes = [start(MAKE, tmp_path) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        said.append(out)
    assert (tmp_path / "made.log").read_text() == "made\n"
    assert set(said) == {f"{tmp_path / 'state' / 'store'}/{Path(said[0].strip()).name}\n"}


def test_a_killed_holder_lets_go_of_the_lock(tmp_path: Path) -> None:
    holder = start(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with Store(tmp_path).lock("s", "k"):
        pass


def test_kill_in_the_middle_of_publishing(tmp_path: Path) -> None:
    def publish_elsewhere(state: Path, last: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PUBLISH, str(state), "5", str(last)]
        return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False, timeout=60)

    whole = publish_elsewhere(tmp_path / "unharmed", 0)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout)
    assert steps > 10, "five files are read, the manifest is written, all are synced, then comes the renaming"
    there = set()
    for last in range(1, steps + 1):
        store = Store(tmp_path / str(last))
        assert publish_elsewhere(tmp_path / str(last), last).returncode == -signal.SIGKILL
        found = store.find("s", "k")
        there.add(found is not None)
        if found is None:
            assert not (store.root / "s-k").exists(), "half an artifact under the name of a whole one"
            assert (store.scratch / "s-k" / "checkpoint").exists(), "what a stage can pick up again was lost"
        else:
            assert store.damaged(found) == []
            assert len(list(found.path.iterdir())) == 5 + 1
        again = publish(store)  # the next attempt does not care how the last one ended
        assert store.damaged(again) == []
        assert left_behind(store) == []
    assert there == {True, False}


def test_a_full_disk_in_the_middle_of_publishing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = Store(disk)
        first = publish(store, {"a": "x" * 100_000}, key="first")
        before = {path: path.read_bytes() for path in first.path.rglob("*")}
        with store.staging("s", "second") as staged:
            (staged / "b").write_bytes(bytes(500_000))
            ballast = fill(disk)
            with pytest.raises(StoreError) as caught:
                store.publish(staged, "s", "second", ingredients={}, facts={}, seconds=0.0)
        assert caught.value.what == "no space left on the disk while publishing artifact s-second"
        assert caught.value.fix == "free some space or make it writable, then run the same command again; finished stages are kept"
        assert caught.value.exit_code == 1
        assert store.find("s", "second") is None
        assert [path.name for path in store.root.iterdir()] == ["s-first"]
        assert store.find("s", "first") == first
        assert {path: path.read_bytes() for path in first.path.rglob("*")} == before
        ballast.unlink()
        assert store.damaged(publish(store, key="second")) == []


def test_a_disk_that_is_full_for_the_manifest_alone(tmp_path: Path) -> None:
    # /dev/full answers every write with ENOSPC; this one needs no right to mount anything.
    store = Store(tmp_path)
    first = publish(store)
    with store.staging("s", "second") as staged:
        (staged / MANIFEST).symlink_to("/dev/full")
        with pytest.raises(StoreError, match="no space left on the disk while publishing artifact s-second"):
            store.publish(staged, "s", "second", ingredients={}, facts={}, seconds=0.0)
    assert store.find("s", "second") is None
    assert [path.name for path in store.root.iterdir()] == ["s-k"]
    assert store.damaged(first) == []


def test_a_full_disk_while_a_stage_writes_weights(tmp_path: Path) -> None:
    # safetensors is written in Rust: its error is no OSError, and says so in its text only.
    def work(work: Work) -> dict[str, object]:
        import numpy
        from safetensors.numpy import save_file

        save_file({"w": numpy.zeros(1_000_000, dtype=numpy.float32)}, work.staging / "model.safetensors")
        return {}

    with small_disk(tmp_path / "disk", "1m") as disk:
        with pytest.raises(StoreError, match="no space left on the disk while making artifact s"):
            make(Stage("s", 1, {}, work), Store(disk), {}, lambda metrics, step: None)
        assert list((disk / "store").iterdir()) == []


def test_a_read_only_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = Store(disk)
        first = publish(store)
        remount(disk, "ro")
        with pytest.raises(EnvironmentFault, match=r"the file system is read-only while preparing artifact s-other"):
            publish(store, key="other")
        with pytest.raises(StoreError, match="read-only"), store.lock("s", "k"):
            pass
        assert store.find("s", "k") == first, "what is there can still be read"
        assert store.damaged(first) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; the read-only disk above is for root")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StoreError, match="permission denied while preparing"):
            publish(Store(tmp_path / "state"))
    finally:
        tmp_path.chmod(0o755)
