"""The command line as a user meets it: what goes wrong is one clear message, what goes right is one document."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sources.wheels import MEMBER, SHA256, build
from tests.support.disk import fill, remount, small_disk
from tests.support.workplace import GUARDS, NOBODY, RECIPE, SECRETS, TRAIN, Said, Workplace, furnish, questions

Spoil = Callable[[Workplace], None]


@pytest.fixture(autouse=True)
def _no_server_and_no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MLflow is away, pip looks nowhere, the cache is empty."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path) -> Workplace:
    """A workplace in which a base-only recipe has run once: its store must survive whatever comes next."""
    place = furnish(tmp_path / "desk", RECIPE.replace(", metadata: [topic]", ""))
    shutil.copytree(tiny_model, place.folder / "model")
    assert place("run", "desk.yaml", "--until", "data").code == 0
    return place


def refused(said: Said, code: int = 2) -> str:
    """The one clear message."""
    assert said.code == code, said.err
    assert "Traceback" not in said.err
    assert "error: unexpected" not in said.err
    text = said.err[said.err.index("error: ") :]
    assert len([line for line in said.err.splitlines() if line.startswith("error: ")]) == 1
    assert "\n  fix: " in text
    assert not said.out
    return text


def edit(old: str, new: str) -> Spoil:
    def spoil(place: Workplace) -> None:
        text = (place.folder / "desk.yaml").read_text()
        assert old in text
        place.write("desk.yaml", text.replace(old, new))

    return spoil


def add(text: str) -> Spoil:
    return lambda place: place.write("desk.yaml", (place.folder / "desk.yaml").read_text() + text) and None


def rows(*lines: str) -> Spoil:
    def spoil(place: Workplace) -> None:
        good = (place.folder / "rows.jsonl").read_text()
        place.write("rows.jsonl", good + "".join(f"{line}\n" for line in lines))

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(place: Workplace) -> None:
        for one in spoils:
            one(place)

    return spoil


def cut(name: str, size: int) -> Spoil:
    return lambda place: os.truncate(place.folder / name, size)


def gguf(place: Workplace) -> None:
    place.write("broken.gguf", b"GGUF" + bytes(range(60)))
    edit("source: model", "source: broken.gguf")(place)


#: What is wrong -> how to make it so, and what the message says.
BAD: dict[str, tuple[Spoil, str]] = {
    "unknown key": (edit("data:\n", "data:\n  sorce: x\n"), r"desk\.yaml:4:3: .*`?sorce`?.*\n  fix: .*source"),
    "unknown section": (add("trian: {}\n"), r"desk\.yaml:\d+:1: .*trian.*\n  fix: .*train"),
    "wrong type": (edit("max_new_tokens: 4", "max_new_tokens: four"), r"desk\.yaml:\d+:19: .*max_new_tokens"),
    "yaml syntax": (edit("labels: [", "labels: [["), r"desk\.yaml:\d+:\d+: "),
    "a missing data file": (edit("rows.jsonl", "rows.json"), r"desk\.yaml:4:11: no such file"),
    "a missing model": (edit("source: model", "source: modle"), r"desk\.yaml:2:17: no such file"),
    "a truncated safetensors file": (cut("model/model.safetensors", 50_000), r"model/model\.safetensors: .*\n  fix: .*again"),
    "an empty safetensors file": (cut("model/model.safetensors", 0), r"model/model\.safetensors: "),
    "a corrupt GGUF": (gguf, r"broken\.gguf: "),
    "a corrupt tokenizer": (cut("model/tokenizer.json", 500), r"tokenizer"),
    "a corrupt model config": (cut("model/config.json", 100), r"config\.json: "),
    "a corrupt JSONL row": (
        rows('{"text": "half a', '{"text": "fine", "label": "yes"}'),
        r"rows\.jsonl: 1 row cannot be used:\n +rows\.jsonl, row 81: it is not JSON",
    ),
    "a row that is no object": (rows("[1, 2]"), r"rows\.jsonl, row 81: "),
    "a row without the field": (rows('{"txt": "a", "label": "yes"}'), r"rows\.jsonl, row 81: .*text"),
    "an empty data file": (lambda place: place.write("rows.jsonl", "") and None, r"rows\.jsonl: is empty"),
    "a label not in the label set": (rows('{"text": "what?", "label": "Yes "}'), r"rows\.jsonl, row 81: .*'Yes '.*not one of task\.labels"),
    "an empty split": (
        edit("{train: 0.5, validation: 0.2, calibration: 0.1, test: 0.2, seed: 1}", "{train: 1, validation: 0, calibration: 0, test: 0}"),
        r"data\.split: the split 'test' is empty",
    ),
    "contamination": (
        both(lambda place: place.rows("held.jsonl", questions(3)) and None, edit("  split:", "  held_out: {test: held.jsonl}\n  split:")),
        r"contamination: 3 prompts stand in both data\.source and data\.held_out\.test",
    ),
    "contamination of a guard set": (
        both(lambda place: place.rows("near.jsonl", questions(80)) and None, add(GUARDS)),
        r"contamination: \d+ prompts stand in both train and guard 'near'",
    ),
    "a chat template with a syntax error": (
        both(
            lambda place: place.write("t.jinja", "{% for") and None,
            edit("license: mit", "chat_template: t.jinja"),
            edit("metric: label", "chat: true\n  metric: label"),
        ),
        r"the chat template refuses the row",
    ),
    "a chat template that refuses": (
        both(
            lambda place: place.write("t.jinja", "{{ raise_exception('no users, please') }}") and None,
            edit("license: mit", "chat_template: t.jinja"),
            edit("metric: label", "chat: true\n  metric: label"),
        ),
        r"no users, please",
    ),
    "a prompt longer than the context": (
        rows(*(json.dumps({"text": f"long {i} " * 300, "label": "yes"}) for i in range(20))),
        r"rows\.jsonl, row \d+: a prompt of \d+ tokens and an answer of 0 do not fit into the model's context of 512",
    ),
    "a missing json_schema": (
        both(edit("metric: label", "metric: json_f1\n  json_schema: gone.json"), edit('  labels: ["yes", "no"]\n', "")),
        r"desk\.yaml:\d+:\d+: no such file: .*gone\.json",
    ),
    "a json_schema that is no JSON": (
        both(
            lambda place: place.write("schema.json", "{") and None,
            edit("metric: label", "metric: json_f1\n  json_schema: schema.json"),
            edit('  labels: ["yes", "no"]\n', ""),
        ),
        r"schema\.json: not JSON",
    ),
    "a function that is not there": (
        both(edit("metric: label", "metric: function\n  function: nowhere:grade"), edit('  labels: ["yes", "no"]\n', "")),
        r"task\.function: cannot import 'nowhere'",
    ),
    "a function whose module fails": (
        both(
            lambda place: place.write("scoring.py", "import not_installed_anywhere\n") and None,
            edit("metric: label", "metric: function\n  function: scoring:grade"),
            edit('  labels: ["yes", "no"]\n', ""),
        ),
        r"task\.function: cannot import 'scoring': ModuleNotFoundError",
    ),
    "a regular expression that is none": (
        both(edit("metric: label", 'metric: regex\n  pattern: "("'), edit('  labels: ["yes", "no"]\n', "")),
        r"task\.pattern: ",
    ),
    "an accelerate config that is no YAML": (
        both(lambda place: place.write("a.yaml", "a: [") and None, add(TRAIN.replace("threads: 1", "threads: 1, config_file: a.yaml"))),
        r"a\.yaml is no accelerate config",
    ),
    "quantize": (
        both(add(TRAIN), add("quantize: [{method: bitsandbytes, bits: 8}, {method: bitsandbytes, bits: 8}]\n")),
        r"desk\.yaml:\d+:\d+: two candidates would be called `int8`",
    ),
    "a guard named task": (
        add("evaluate: {guards: [{name: task, source: near.jsonl, format: chat}]}\n"), r"a guard is named `task`"
    ),
    "a guard without a prompt": (
        add("evaluate: {guards: [{name: near, source: near.jsonl, format: table, task: {metric: exact_match}}]}\n"), r"task\.prompt"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_message_and_harms_nothing(desk: Workplace, case: str) -> None:
    spoil, says = BAD[case]
    before = desk.store()
    spoil(desk)
    text = refused(desk("run", "desk.yaml"))
    assert re.search(says, text), text
    after = desk.store()
    assert {name: after[name] for name in before} == before
    for path in (desk.state / "store").iterdir():
        assert not path.name.startswith("."), "half an artifact was left"
        assert (path / "artifact.json").exists()


USAGE: dict[str, tuple[list[str], str]] = {
    "unknown verb": (["trian"], "error: workbench: No such command 'trian'.\n  fix: see workbench --help\n"),
    "unknown verb of data": (["data", "fecth"], "error: workbench data: No such command 'fecth'."),
    "unknown option": (["run", "desk.yaml", "--fast"], "error: workbench run: No such option: --fast"),
    "missing argument": (["run"], "error: workbench run: Missing argument 'RECIPE'.\n  fix: see workbench run --help\n"),
    "missing value": (["run", "desk.yaml", "--set"], "error: workbench: Option '--set' requires an argument.\n"),
    "one argument too many": (["schema", "x"], "error: workbench schema: Got unexpected extra argument"),
    "a folder for a recipe": (["run", "."], "error: .: this is a folder, not a recipe\n  fix: name a file in it, such as desk.yaml\n"),
    "no such recipe": (["check", "dask.yaml"], "error: dask.yaml: no such file\n  fix: did you mean `desk.yaml`?\n"),
    "no such stage": (
        ["run", "desk.yaml", "--until", "nonsense"],
        "error: --until: there is no stage 'nonsense'\n  fix: choose among model, data, outlook, calibration, train, merge, quantize, ",
    ),
    "unknown key on the command line": (["run", "desk.yaml", "--set", "train.rnak=2"], "error: --set train.rnak=2: "),
    "wrong type on the command line": (["run", "desk.yaml", "--set", "data.limit.test=many"], "error: --set data.limit.test=many: "),
    "no such run": (["show", "NOPE"], "error: {folder}/.workbench/runs: there is no run 'NOPE'\n  fix: choose among desk-"),
    "no such source": (["data", "fetch", "gone"], "error: {folder}/gone: no such file or folder\n"),
    "no such log": (["data", "import", "gone.jsonl", "--out", "o.parquet"], "error: gone.jsonl: "),
    "no such template": (["init", "new", "--template", "poem"], "error: there is no template 'poem'\n  fix: use one of: classification"),
    "a name that is none": (["init", "A Task"], "error: 'A Task' cannot be a recipe's name\n"),
    "init over an existing file": (["init", "desk"], "error: desk.yaml: the file exists already\n"),
    "no such traffic": (["init", "new", "--from", "gone.jsonl"], "error: gone.jsonl"),
}


def test_misuse_is_one_clear_message(desk: Workplace) -> None:
    recipe, before = (desk.folder / "desk.yaml").read_text(), desk.store()
    said = {case: refused(desk(*arguments)) for case, (arguments, _) in USAGE.items()}
    wrong = {case: text for case, text in said.items() if not text.startswith(USAGE[case][1].format(folder=desk.folder))}
    assert wrong == {}
    assert (desk.folder / "desk.yaml").read_text() == recipe
    assert desk.store() == before


def test_show_before_any_run(tmp_path: Path) -> None:
    place = furnish(tmp_path / "new", RECIPE)
    assert refused(place("show")) == (f"error: {place.state}/runs: there is no run yet\n  fix: run a recipe first: workbench run RECIPE\n")
    assert not place.state.exists()


def test_without_arguments_it_says_what_there_is(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    for arguments in ([], ["--help"], ["data"]):
        said = place(*arguments)
        text = said.out + said.err
        assert text.startswith("Usage: workbench")
        assert "error" not in text
        assert said.code == (0 if arguments == ["--help"] else 2)


def test_debug_shows_where_it_comes_from(desk: Workplace) -> None:
    command = [sys.executable, "-m", "workbench", "check", "gone.yaml"]
    plain = subprocess.run(command, cwd=desk.folder, capture_output=True, text=True, check=False)
    assert (plain.returncode, "Traceback" in plain.stderr) == (2, False)
    debug = subprocess.run([*command, "--debug"], cwd=desk.folder, capture_output=True, text=True, check=False)
    assert debug.returncode == 1
    assert "Traceback (most recent call last)" in debug.stderr
    assert "RecipeError: gone.yaml: no such file" in debug.stderr


# The environment's faults: exit code 1 ------------------------------------------------------------------------------------


def test_a_full_disk_in_the_middle_of_a_run(tmp_path: Path, tiny_model: Path) -> None:
    place = furnish(tmp_path / "desk", RECIPE)
    (place.folder / "model").symlink_to(tiny_model)
    with small_disk(place.state, "4m") as disk:
        assert place("run", "desk.yaml", "--until", "data").code == 0
        before = place.store()
        ballast = fill(disk)
        text = refused(place("run", "desk.yaml"), code=1)
        assert "no space left on the disk while" in text
        assert "finished stages are kept" in text
        assert place.store() == before
        ballast.unlink()
        again = place("run", "desk.yaml", "--json")
        assert again.code == 0, again.err
        assert "model: there already\ndata: there already\n" in again.err
        assert again.json["candidates"][0]["n"] == 20


def test_a_disk_that_is_full_while_the_model_is_copied(tmp_path: Path, tiny_model: Path) -> None:
    place = furnish(tmp_path / "desk", RECIPE)
    (place.folder / "model").symlink_to(tiny_model)
    with small_disk(place.state, "160k") as disk:
        text = refused(place("run", "desk.yaml"), code=1)
        assert "no space left on the disk while making artifact model" in text
        assert place.store() == {}
        remount(disk, "size=4m")
        assert place("run", "desk.yaml").code == 0


def test_a_working_directory_that_may_not_be_written(tmp_path: Path, tiny_model: Path) -> None:
    with small_disk(tmp_path / "desk", "1m") as disk:
        place = Workplace(disk)
        place.write("desk.yaml", RECIPE.replace("source: model", f"source: {tiny_model}"))
        place.rows("rows.jsonl", questions(80))
        remount(disk, "ro")
        assert "the file system is read-only while" in refused(place("run", "desk.yaml"), code=1)
        assert "the file system is read-only while" in refused(place("check", "desk.yaml", "--preview"), code=1)
        assert "Read-only file system" in refused(place("init", "new"), code=1)
        assert place("check", "desk.yaml").code == 0
        assert sorted(path.name for path in disk.iterdir()) == ["desk.yaml", "rows.jsonl"]


def test_a_file_where_the_state_should_be(tmp_path: Path, tiny_model: Path) -> None:
    place = furnish(tmp_path / "desk", RECIPE)
    (place.folder / "model").symlink_to(tiny_model)
    place.write(".workbench", "a file")
    assert ".workbench" in refused(place("run", "desk.yaml"), code=1)
    assert (place.folder / ".workbench").read_text() == "a file"


def test_a_report_that_cannot_be_written(desk: Workplace) -> None:
    text = refused(desk("show", "--html", "no/such/folder/report.html"), code=1)
    assert text.startswith("error: no/such/folder/report.html: No such file or directory\n")


def wheel_recipe(place: Workplace) -> None:
    source = f'"pypi://tiny==1.0/{MEMBER}#sha256={SHA256}"'
    place.write("desk.yaml", RECIPE.replace("source: rows.jsonl", f"source: {source}"))


def test_no_network(desk: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = desk.store()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    wheel_recipe(desk)
    text = refused(desk("run", "desk.yaml"), code=1)
    assert text.startswith("error: pypi://tiny==1.0/")
    assert "the package index cannot be used" in text
    assert len(text.splitlines()) == 2
    assert desk.store() == before


def test_a_truncated_wheel(desk: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = desk.store()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    wheel = build(tmp_path / "wheels")
    os.truncate(wheel, wheel.stat().st_size - 100)
    wheel_recipe(desk)
    text = refused(desk("run", "desk.yaml"))
    assert "the wheel tiny==1.0 is damaged" in text
    assert desk.store() == before


def test_a_reader_that_has_seen_enough(desk: Workplace) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "schema"], cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) in (0, 1)


# What goes right ----------------------------------------------------------------------------------------------------------


def test_json_is_one_document_and_everything_else_is_on_standard_error(desk: Workplace) -> None:
    command = [sys.executable, "-m", "workbench"]

    def said(*arguments: str) -> Said:
        done = subprocess.run([*command, *arguments], cwd=desk.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return Said(0, done.stdout, done.stderr)

    run = said("run", "desk.yaml", "--json")
    assert "data: there already" in run.err
    assert run.json["run"]["status"] == "finished"
    assert said("show", "--json").json == run.json
    assert said("check", "desk.yaml", "--preview", "--json").json["problems"] == []
    fetched = said("data", "fetch", "rows.jsonl", "--json").json
    assert fetched["path"] == str(desk.folder / "rows.jsonl")
    assert set(fetched) == {"path", "digest", "origin"}
    assert json.loads(said("schema").out)["title"] == "Workbench recipe"


def test_init_then_check(tmp_path: Path, tiny_model: Path) -> None:
    place = Workplace(tmp_path)
    said = place("init", "tickets")
    assert (said.code, said.err) == (0, "")
    assert said.out == "wrote tickets.yaml; next: workbench check tickets.yaml --preview\n"
    place.rows("train.jsonl", [{"text": f"where is card {i}?", "label": ["card_arrival", "lost_card", "other"][i % 3]} for i in range(60)])
    checked = place("check", "tickets.yaml", "--preview", "--set", f"model.source={tiny_model}")
    assert checked.code == 0, checked.err


def test_a_log_of_another_tool_becomes_an_outcomes_table(tmp_path: Path) -> None:
    log = Path(__file__).parent / "evaluation" / "samples" / "samples_sums_2026-11-24T22-17-58.417128.jsonl"
    place = Workplace(tmp_path)
    said = place("data", "import", str(log), "--out", "table.parquet")
    assert said.code == 0, said.err
    from workbench.evaluation import outcomes

    rows = outcomes.read(tmp_path / "table.parquet").num_rows
    assert said.out == f"wrote table.parquet: {rows} outcomes\n"
    assert rows > 0


def test_secrets_stay_out_of_everything(finished: Workplace) -> None:
    run = [(finished.folder / name).read_bytes() for name in ("stdout.json", "stderr.txt")]  # as said when the secrets were set
    kept = [path.read_bytes() for path in finished.state.rglob("*") if stat.S_ISREG(path.stat().st_mode)]
    assert len(kept) > 50
    assert any(b"SQLite" in content[:20] for content in kept), "MLflow's database is among them"
    for content in run + kept:
        assert not any(value.encode() in content for value in SECRETS.values())


def test_a_secret_in_a_recipe_is_refused_and_not_repeated(desk: Workplace) -> None:
    secret = "hf_" + "A1b2C3d4" * 4
    add(f"hub: {{endpoint: 'https://{secret}@hub.example'}}\n")(desk)
    text = refused(desk("run", "desk.yaml"))
    assert "secret" in text
    assert secret not in text
