from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import median, quantiles

import pytest

from workbench.errors import WorkbenchError
from workbench.simulator import chance, faults, latency, tokens
from workbench.simulator.cache import PromptCache
from workbench.simulator.errors import ApiError
from workbench.simulator.limits import RateLimits, span
from workbench.simulator.settings import Cache, Latency, Limits, ScheduledFault, Simulator, load


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------- latency


def test_latency_is_log_normal_with_the_stated_tail() -> None:
    count = 20_000
    shape = Latency(p50_s=0.4, sigma=0.5)
    seconds = [latency.first_token_s(shape, 3, number) for number in range(count)]
    logs = [math.log(value) for value in seconds]
    mean = sum(logs) / count
    assert abs(mean - math.log(0.4)) < 4 * 0.5 / math.sqrt(count)
    assert abs(math.sqrt(sum((value - mean) ** 2 for value in logs) / count) - 0.5) < 4 * 0.5 / math.sqrt(2 * count)

    heavy = shape.model_copy(update={"tail_share": 0.05, "tail_factor": 20.0})
    tailed = [latency.first_token_s(heavy, 3, number) for number in range(count)]
    slow = sum(after != before for before, after in zip(seconds, tailed, strict=True))
    assert abs(slow - 0.05 * count) < 4 * math.sqrt(0.05 * 0.95 * count)
    assert quantiles(tailed, n=100)[98] > 4 * quantiles(seconds, n=100)[98]
    assert median(tailed) < 1.1 * median(seconds)


def test_no_latency_is_no_latency() -> None:
    assert {latency.first_token_s(Latency(), 0, number) for number in range(100)} == {0.0}
    assert latency.pause_s(Latency()) == 0
    assert latency.pause_s(Latency(tokens_per_s=50)) == 0.02


# ---------------------------------------------------------------- rate limits


def test_requests_a_minute() -> None:
    clock = Clock()
    limits = RateLimits(Limits(requests_per_minute=3), clock)
    assert [limits.admit("m", 1)["x-ratelimit-remaining-requests"] for _ in range(3)] == ["2", "1", "0"]
    with pytest.raises(ApiError) as caught:
        limits.admit("m", 1)
    refused = caught.value
    assert (refused.status, refused.code, refused.kind) == (429, "rate_limit_exceeded", "requests")
    assert refused.headers["retry-after"] == "20"
    assert refused.headers["retry-after-ms"] == "20000"
    assert refused.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert "Limit 3, Used 3, Requested 1. Please try again in 20s." in refused.message
    clock.now = 19.9
    with pytest.raises(ApiError):
        limits.admit("m", 1)
    clock.now = 20.1
    assert limits.admit("m", 1)["x-ratelimit-remaining-requests"] == "0"


def test_tokens_a_minute() -> None:
    clock = Clock()
    limits = RateLimits(Limits(requests_per_minute=100, tokens_per_minute=600), clock)
    headers = limits.admit("m", 500)
    assert (headers["x-ratelimit-limit-tokens"], headers["x-ratelimit-remaining-tokens"]) == ("600", "100")
    assert headers["x-ratelimit-reset-tokens"] == "50s"
    with pytest.raises(ApiError) as caught:
        limits.admit("m", 200)
    assert (caught.value.kind, caught.value.headers["retry-after-ms"]) == ("tokens", "10000")
    assert caught.value.headers["x-ratelimit-remaining-requests"] == "99"  # a refused request does not count
    with pytest.raises(ApiError, match="Request too large") as caught:
        limits.admit("m", 601)
    assert "retry-after" not in caught.value.headers  # waiting does not help


def test_no_limit_has_no_headers() -> None:
    assert RateLimits(Limits(), Clock()).admit("m", 10**9) == {}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.12, "120ms"), (0.9999, "1s"), (8.64, "8.64s"), (60, "1m0s"), (360, "6m0s"), (3723, "1h2m3s")]
)
def test_spans_are_written_as_the_api_does(seconds: float, text: str) -> None:
    assert span(seconds) == text


# ---------------------------------------------------------------- schedule of faults


def hits(*schedule: ScheduledFault, count: int = 4000, seed: int = 0, seconds: float = 0.0) -> Counter[str]:
    found = (faults.hit(schedule, seed=seed, number=number, seconds=seconds, prompt=f"p{number % 50}") for number in range(1, count + 1))
    return Counter(str(fault.kind) for fault in found if fault is not None)


def test_the_share_of_faults_is_as_stated() -> None:
    found = hits(ScheduledFault(kind=500, share=0.1), ScheduledFault(kind="reset", share=0.1))
    assert abs(found["500"] - 400) < 4 * math.sqrt(4000 * 0.1 * 0.9)
    assert abs(found["reset"] - 360) < 4 * math.sqrt(4000 * 0.09 * 0.91)  # the first fault counts
    assert found == hits(ScheduledFault(kind=500, share=0.1), ScheduledFault(kind="reset", share=0.1))
    assert found != hits(ScheduledFault(kind=500, share=0.1), ScheduledFault(kind="reset", share=0.1), seed=1)


def test_every_so_many_and_windows() -> None:
    def numbers(fault: ScheduledFault, seconds: float = 0.0) -> list[int]:
        found = range(1, 31)
        return [number for number in found if faults.hit([fault], seed=0, number=number, seconds=seconds, prompt="")]

    assert numbers(ScheduledFault(kind=503, every=10)) == [10, 20, 30]
    assert numbers(ScheduledFault(kind=503, every=2, from_request=5, until_request=10)) == [6, 8, 10]
    assert numbers(ScheduledFault(kind=503, share=1.0, from_request=4, until_request=5)) == [4, 5]
    outage = ScheduledFault(kind=503, share=1.0, from_s=10, until_s=20)
    assert [len(numbers(outage, seconds)) for seconds in (9.9, 10, 19.9, 20)] == [0, 30, 30, 0]


def test_refusals_depend_on_the_prompt_and_not_on_the_moment() -> None:
    schedule = [ScheduledFault(kind="content_filter", share=0.3)]
    refused = [{faults.hit(schedule, seed=0, number=n, seconds=0, prompt=f"p{i}") is None for n in range(1, 20)} for i in range(200)]
    assert all(len(one) == 1 for one in refused)
    assert abs(sum(one == {False} for one in refused) - 60) < 4 * math.sqrt(200 * 0.3 * 0.7)


# ---------------------------------------------------------------- tokens and the prompt cache


def test_tokens_are_four_characters() -> None:
    text = "a" * 9
    assert tokens.pieces(text) == ["aaaa", "aaaa", "a"]
    assert tokens.count(text) == 3
    assert tokens.count("") == 0 == len(tokens.pieces(""))


def test_a_prefix_of_enough_tokens_is_cached() -> None:
    clock = Clock()
    cache = PromptCache(Cache(kept_s=60), clock)
    shared = "".join(chance.identifier(i, digits=4) for i in range(1500))
    assert cache.lookup("m", shared + "first") == 0
    assert cache.lookup("m", shared + "second") == 1408  # 11 * 128 of the 1,500 tokens
    assert cache.lookup("other", shared) == 0
    assert cache.lookup("m", shared[: 1100 * 4] + "x" * 4000) == 1024
    assert cache.lookup("m", "y" + shared) == 0
    assert cache.lookup("m", shared[: 1000 * 4]) == 0
    clock.now = 61
    assert cache.lookup("m", shared) == 0


def test_the_least_cached_prefix_is_a_setting() -> None:
    cache = PromptCache(Cache(least_tokens=256), Clock())
    assert [cache.lookup("m", "z" * 4 * 300) for _ in range(2)] == [0, 256]


# ---------------------------------------------------------------- settings

SETTINGS = """
references: data/refs.jsonl
accuracy: 0.9
latency: {p50_s: 0.2, tail_share: 0.02}
limits: {requests_per_minute: 60}
faults:
  - {kind: 429, share: 0.1, retry_after_s: 2}
  - {kind: reset, every: 7}
change: {model: gpt-4.1-2025-09-01, after_requests: 100, accuracy: 0.8}
"""


def test_settings_come_from_a_file_and_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "closed.yaml"
    path.write_text(SETTINGS)
    found = load(path, ["accuracy=0.95", "latency.p50_s=0", "faults=[{kind: 503, every: 9}]", "log=here.jsonl"])
    assert found.references == str(tmp_path / "data/refs.jsonl")
    assert found.log == "here.jsonl"
    assert (found.accuracy, found.latency.p50_s, found.latency.tail_share) == (0.95, 0, 0.02)
    assert [fault.kind for fault in found.faults] == [503]
    assert found.change is not None and found.change.accuracy == 0.8
    assert load(None) == Simulator()
    (tmp_path / "same.json").write_text(Simulator().model_dump_json())
    assert load(tmp_path / "same.json") == Simulator()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acuracy: 0.9", "1:1: unknown key `acuracy`"),
        ("accuracy: 1.5", "1:1: `accuracy`: input should be less than or equal to 1"),
        ("accuracy: 'high'", "`accuracy`: input should be a valid number"),
        ("faults: [{kind: reset}]", "1:10: `faults.0`: a fault needs either `share` or `every`"),
        ("faults: [{kind: reset, every: 2, share: 0.1}]", "either `share` or `every`"),
        ("faults: [{kind: reset, every: 2, retry_after_s: 1}]", "reset sends no Retry-After"),
        ("faults:\n  - {kind: slow, every: 2}", "2:6: `faults.0.kind`"),
        ("change: {model: x}", "either `after_requests` or `after_s`"),
        ("api_key_env: sk-not-a-name", "`api_key_env`"),
        ("- a list", "a section of keys and values"),
        ("a: [", "1:5"),
    ],
)
def test_bad_settings_say_where(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(WorkbenchError) as caught:
        load(path)
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_bad_overrides_say_which() -> None:
    for text, said in [("accuracy", "not of the form"), ("accuracy=2", "--set accuracy: `accuracy`"), ("seed.x=1", "--set seed.x: `seed`")]:
        with pytest.raises(WorkbenchError) as caught:
            load(None, [text])
        assert said in str(caught.value)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("accuracy: 2\nnoise: 3\n")
    with pytest.raises(WorkbenchError) as caught:
        load(path)
    assert ":1:1: `accuracy`" in str(caught.value) and ":2:1: `noise`" in str(caught.value)
