from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from tests.support.loaded import tiny
from tests.support.tiny import make_model
from workbench.errors import EvaluationError
from workbench.evaluation.speed import PREFILL_TOKENS, Speed, compare_speed
from workbench.models.load import load_model

PROMPTS = [[40, 41, 42], [], [50, 51, 52, 53]]


@pytest.fixture(scope="module")
def other(tiny_model: Path) -> PreTrainedModel:
    return load_model(tiny_model, dtype="float32").eval()


def run(parent: PreTrainedModel, variant: PreTrainedModel, new_tokens: int = 8, repeats: int = 3) -> Speed:
    return compare_speed(parent, variant, PROMPTS, new_tokens=new_tokens, repeats=repeats, advance=lambda *_: None)


@contextmanager
def watched(*models: PreTrainedModel) -> Iterator[list[tuple[int, list[list[int]]]]]:
    """Notes which model reads which tokens."""
    seen: list[tuple[int, list[list[int]]]] = []
    hooks = [
        model.register_forward_pre_hook(
            lambda _, args, given, which=which: seen.append((which, given["input_ids"].tolist())), with_kwargs=True
        )
        for which, model in enumerate(models)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def slowed(model: PreTrainedModel, seconds: float, *, over: int) -> Iterator[None]:
    """Each forward pass of more than, or of exactly one, token takes longer."""

    def wait(_: object, args: object, given: dict[str, torch.Tensor]) -> None:
        if (given["input_ids"].shape[1] > 1) == (over > 1):
            time.sleep(seconds)

    hook = model.register_forward_pre_hook(wait, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def test_turns_alternate_after_a_warm_up(other: PreTrainedModel) -> None:
    with watched(tiny()[0], other) as seen:
        run(tiny()[0], other)
    prefills = [which for which, ids in seen if len(ids[0]) > 1]
    assert prefills == [0, 1] * 4
    decoded = [sum(len(ids[0]) == 1 and which == model for which, ids in seen) for model in (0, 1)]
    assert decoded == [4 + 3 * 8] * 2


def test_both_read_the_same_long_prompt(other: PreTrainedModel) -> None:
    with watched(tiny()[0], other) as seen:
        run(tiny()[0], other)
    prompts = [ids[0] for _, ids in seen if len(ids[0]) > 1]
    assert all(prompt == prompts[0] for prompt in prompts)
    assert prompts[0][:9] == [40, 41, 42, 50, 51, 52, 53, 40, 41] and len(prompts[0]) == PREFILL_TOKENS


def test_what_is_written_is_the_models_own_greedy_answer(other: PreTrainedModel) -> None:
    """The timed loop is decoding: the tokens fed back are those that `generate` writes."""
    model = tiny()[0]
    with watched(model) as seen:
        run(model, other, repeats=1)
    prompt = next(ids[0] for _, ids in seen if len(ids[0]) > 1)
    written = [ids[0][0] for _, ids in seen if len(ids[0]) == 1][-8:]
    ids = torch.tensor([prompt])
    whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, min_new_tokens=8)
    assert written == whole[0, -8:].tolist()


def test_prefill_and_decode_are_told_apart(other: PreTrainedModel) -> None:
    model = tiny()[0]
    with slowed(other, 0.3, over=2):
        prefill = run(model, other)
    with slowed(other, 0.1, over=1):
        decode = run(model, other)
    assert prefill.prefill_tokens_per_s < PREFILL_TOKENS / 0.3 and prefill.prefill_ratio < 0.7
    assert decode.decode_tokens_per_s < 10 and decode.decode_ratio < 0.5
    assert decode.prefill_tokens_per_s > prefill.prefill_tokens_per_s and prefill.decode_tokens_per_s > decode.decode_tokens_per_s


def test_figures_agree(other: PreTrainedModel) -> None:
    seen: list[float] = []
    found = compare_speed(tiny()[0], other, PROMPTS, new_tokens=4, repeats=3, advance=lambda done, *_: seen.append(done))
    assert seen == [1, 2, 3]
    assert found.prefill_ratio_low <= found.prefill_ratio <= found.prefill_ratio_high
    assert found.decode_ratio_low <= found.decode_ratio <= found.decode_ratio_high
    assert (found.prefill_tokens, found.new_tokens, found.repeats) == (PREFILL_TOKENS, 4, 3)
    assert found.threads == torch.get_num_threads() and found.device == "cpu"
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()


def test_a_larger_model_is_slower(tmp_path: Path) -> None:
    larger = load_model(make_model(tmp_path, layers=24), dtype="float32").eval()
    found = run(tiny()[0], larger)
    assert found.prefill_ratio < 1 and found.decode_ratio_high < 1


def test_a_quantised_copy(tiny_model: Path, other: PreTrainedModel) -> None:
    copy = load_model(tiny_model, quantization_config=BitsAndBytesConfig(load_in_4bit=True)).eval()
    found = run(other, copy)
    assert found.decode_tokens_per_s > 0 and found.prefill_tokens_per_s > 0


def test_the_prompt_leaves_room_for_the_answer(other: PreTrainedModel) -> None:
    """The tiny model's context is 512."""
    with watched(other) as seen:
        found = run(tiny()[0], other, new_tokens=500, repeats=1)
    assert found.prefill_tokens == 12
    assert all(len(ids[0]) in (1, 12) for _, ids in seen)


def test_bad_input(other: PreTrainedModel) -> None:
    with pytest.raises(EvaluationError, match="512 new tokens leave no room"):
        run(tiny()[0], other, new_tokens=512)
    for empty in ([], [[], []]):
        with pytest.raises(EvaluationError, match="no prompt"):
            compare_speed(tiny()[0], other, empty, new_tokens=2, repeats=1, advance=lambda *_: None)
