"""The evidence of a run: every number recomputed here from the outcomes tables, by other means than the product's."""

from __future__ import annotations

import io
import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support.workplace import NOBODY, RECIPE, Workplace, furnish
from workbench import display, report


@pytest.fixture(autouse=True)
def _mlflow_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)


@pytest.fixture
def shown(finished: Workplace) -> dict[str, Any]:
    """`workbench show RUN --json` on the run that trained."""
    run = json.loads((finished.folder / "stdout.json").read_text())["run"]["id"]
    said = finished("show", run, "--json")
    assert said.code == 0, said.err
    assert said.err == ""
    return dict(said.json)


def table(finished: Workplace, shown: dict[str, Any], candidate: str, name: str) -> list[dict[str, Any]]:
    """The outcomes of one candidate and set, read as any tool would."""
    import pyarrow.parquet as pq

    (artifact,) = [stage["artifact"] for stage in shown["stages"] if stage["name"] == f"evaluate:{candidate}:{name}"]
    rows = pq.read_table(finished.state / "store" / artifact / "outcomes.parquet").to_pylist()
    assert {row["candidate"] for row in rows} == {candidate}
    return [dict(row) for row in rows]


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson 1927, equation for a 95% interval, written out."""
    z, p = statistics.NormalDist().inv_cdf(0.975), right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def test_the_keys_that_scripts_rely_on(shown: dict[str, Any]) -> None:
    promised = {
        "name", "kind", "metric", "score", "ci_low", "ci_high", "n", "recovery", "recovery_low", "size_bytes", "tokens_per_s",
    }  # fmt: skip
    assert [(one["name"], one["kind"]) for one in shown["candidates"]] == [("base", "base"), ("tuned", "merged")]
    for candidate in shown["candidates"]:
        assert promised <= set(candidate)
        assert candidate["metric"] == "label"
    assert shown["run"]["status"] == "finished"


def test_scores_and_intervals(finished: Workplace, shown: dict[str, Any]) -> None:
    for candidate in shown["candidates"]:
        rows = table(finished, shown, candidate["name"], "task")
        scores = [row["score"] for row in rows]
        assert [float(row["output"] == row["reference"]) for row in rows] == scores
        assert candidate["n"] == len(scores) == 20
        assert candidate["score"] == pytest.approx(sum(scores) / len(scores))
        low, high = wilson(int(sum(scores)), len(scores))
        assert (candidate["ci_low"], candidate["ci_high"]) == (pytest.approx(low), pytest.approx(high))
        assert candidate["unscored"] == 0


def test_the_difference_is_paired(finished: Workplace, shown: dict[str, Any]) -> None:
    base, tuned = ({row["example_id"]: row["score"] for row in table(finished, shown, name, "task")} for name in ("base", "tuned"))
    assert base.keys() == tuned.keys()
    gains = [tuned[example] - base[example] for example in base]
    difference = shown["candidates"][1]["difference_to_base"]
    assert shown["candidates"][0]["difference_to_base"] is None
    assert difference["estimate"] == pytest.approx(sum(gains) / len(gains))
    assert difference["n"] == 20
    assert difference["ci_low"] <= difference["estimate"] <= difference["ci_high"]
    # Tango's interval is the set of differences that his score test does not reject: at its ends the statistic is z.
    wins, losses, n = gains.count(1), gains.count(-1), len(gains)
    for bound in (difference["ci_low"], difference["ci_high"]):
        assert abs(tango_statistic(wins, losses, n, bound)) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-3)


def tango_statistic(wins: int, losses: int, n: int, difference: float) -> float:
    """Tango 1998, Statistics in Medicine 17:891, equations 3 and 4."""
    a = 2 * n
    b = -wins - losses + (2 * n - wins + losses) * difference
    c = -losses * difference * (1 - difference)
    rare = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
    return (wins - losses - n * difference) / math.sqrt(n * (2 * rare + difference * (1 - difference)))


def test_sizes_speed_and_what_was_trained_on(finished: Workplace, shown: dict[str, Any]) -> None:
    store = finished.state / "store"
    artifacts = {stage["name"]: store / stage["artifact"] for stage in shown["stages"]}
    for candidate, stage in zip(shown["candidates"], ("model", "merge"), strict=True):
        weights = sum(path.stat().st_size for path in artifacts[stage].glob("*.safetensors"))
        assert candidate["size_bytes"] == weights > 100_000
        rows = table(finished, shown, candidate["name"], "task")
        tokens = sum(row["input_tokens"] + row["output_tokens"] for row in rows)
        seconds = sum({row["latency_s"] for row in rows})  # rows of one batch share its time
        assert 0 < candidate["tokens_per_s"] <= tokens / seconds * 1.001
        assert candidate["peak_memory_bytes"] > 50e6
    sizes = {split: len((artifacts["data"] / f"{split}.jsonl").read_text().splitlines()) for split in shown["data"]["sizes"]}
    assert shown["data"]["sizes"] == sizes
    assert shown["training"]["rows"] == sizes["train"] == 40
    assert shown["model"]["license"] == "mit"
    assert "chat_template" not in shown["model"]


def test_guards_floors_and_what_cannot_be_scored(finished: Workplace, shown: dict[str, Any]) -> None:
    guards = {(row["guard"], row["candidate"]): row for row in shown["guards"]}
    assert list(guards) == [("near", "base"), ("near", "tuned"), ("far", "base"), ("far", "tuned")]
    for (name, candidate), row in guards.items():
        rows = table(finished, shown, candidate, name)
        assert {one["split"] for one in rows} == {f"guard:{name}"}
        scores = [one["score"] for one in rows if one["score"] is not None]
        assert (row["n"], row["unscored"]) == (len(scores), len(rows) - len(scores))
        assert row["score"] == pytest.approx(sum(scores) / len(scores))
        assert row["ci_low"] <= row["score"] <= row["ci_high"]
    assert [(guards["far", name]["n"], guards["far", name]["unscored"]) for name in ("base", "tuned")] == [(9, 1), (9, 1)]
    (unscored,) = [row for row in table(finished, shown, "base", "far") if row["status"] == "unscored"]
    assert (unscored["score"], unscored["reference"]) == (None, "7")
    assert unscored["error"]
    assert (guards["near", "tuned"]["floor"], guards["near", "tuned"]["floor_met"]) == (0.0, True)
    assert (guards["far", "tuned"]["floor"], guards["far", "tuned"]["floor_met"]) == (1.0, False)
    assert {guards[name, "base"]["floor_met"] for name in ("near", "far")} == {None}, "a floor is for the tuned model"


def test_the_terminal_says_the_same(shown: dict[str, Any]) -> None:
    text = io.StringIO()
    display.render(shown, Console(file=text, width=110))
    said = text.getvalue()
    base, tuned = shown["candidates"]
    for row in (base, tuned):
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [row["name"]] and "MB" in line]
        assert f"{100 * row['score']:.1f}%" in line
        assert f"{100 * row['ci_low']:.1f}% to {100 * row['ci_high']:.1f}%" in line
    assert "On 20 held-out examples (test split)" in said
    gain = tuned["difference_to_base"]
    assert f"tuned against base on the same 20 examples: {100 * gain['estimate']:+.1f} points" in said
    lines = [line.split() for line in said.splitlines()]
    assert any(line[:2] == ["near", "tuned"] and line[-2:] == ["0.0%", "met"] for line in lines)
    assert any(line[:2] == ["far", "tuned"] and line[-4:] == ["9", "1", "100.0%", "MISSED"] for line in lines)
    assert any(line[:2] == ["far", "base"] and line[-1:] == ["100.0%"] for line in lines)


def test_everything_fits_into_a_terminal_of_80_characters(shown: dict[str, Any]) -> None:
    text = io.StringIO()
    display.render(shown, Console(file=text, width=80))
    assert "…" not in text.getvalue()
    for row in shown["candidates"]:
        assert f"{100 * row['ci_low']:.1f}% to {100 * row['ci_high']:.1f}%" in text.getvalue()


class Page(HTMLParser):
    """Text of a page, and whatever it would load from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.loads = "", list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href") or tag in ("script", "link", "iframe")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_web_page_holds_everything_itself(finished: Workplace, shown: dict[str, Any]) -> None:
    said = finished("show", shown["run"]["id"], "--html", "report.html")
    assert (said.code, said.out) == (0, "wrote report.html\n")
    source = (finished.folder / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert page.loads == []
    assert not re.search(r"https?://|@import|url\(", source)
    for row in [*shown["candidates"], *shown["guards"]]:
        assert f"{100 * row['score']:.1f}%" in page.text
        assert f"{100 * row['ci_low']:.1f}% to {100 * row['ci_high']:.1f}%" in page.text
    assert "MISSED" in page.text
    assert shown["run"]["id"] in page.text


def test_runs_are_found_by_id_name_and_folder(finished: Workplace, shown: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shown["run"]["folder"])
    assert report.find_run(finished.state, folder.name) == folder
    assert report.find_run(tmp_path, str(folder)) == folder
    assert report.find_run(finished.state, "desk").name.startswith("desk-")
    assert report.find_run(finished.state, None).parent == folder.parent


def test_a_run_that_failed_shows_how_far_it_came(tmp_path: Path, tiny_model: Path) -> None:
    place = furnish(tmp_path / "desk", RECIPE)
    (place.folder / "model").symlink_to(tiny_model)
    place.write("t.jinja", "{{ raise_exception('no') }}")
    place.write(
        "desk.yaml", RECIPE.replace("license: mit", "chat_template: t.jinja").replace("metric: label", "metric: label\n  chat: true")
    )
    assert place("run", "desk.yaml").code == 2
    said = place("show", "--json")
    assert said.code == 0
    assert said.json["run"]["status"] == "failed"
    assert said.json["candidates"] == []
    assert [stage["name"] for stage in said.json["stages"]] == ["model", "data"]
    assert "failed" in place("show").out


def test_a_score_that_nobody_could_give_is_none_and_not_zero(tmp_path: Path, tiny_model: Path) -> None:
    place = furnish(
        tmp_path / "desk",
        RECIPE.replace("metric: label", "metric: function\n  function: scoring:never").replace('  labels: ["yes", "no"]\n', ""),
    )
    (place.folder / "model").symlink_to(tiny_model)
    place.write("scoring.py", "def never(output, reference, metadata):\n    raise ValueError('no idea')\n")
    said = place("run", "desk.yaml", "--json")
    assert said.code == 0, said.err
    (base,) = said.json["candidates"]
    assert (base["score"], base["ci_low"], base["n"], base["unscored"]) == (None, None, 0, 20)
    text = place("show").out
    assert "unscored" in text
    (line,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["base"]]
    assert line[4:6] == ["none", "20"]
