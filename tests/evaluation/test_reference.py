from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from tests.support.loaded import logprobs, spread, tiny
from workbench.evaluation.reference import read_references

TOKENS = st.lists(st.integers(2, 511), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    """Knows absolute positions, unlike a Llama, for which only distances count."""
    torch.manual_seed(0)
    return spread(GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=32, n_embd=32, n_layer=2, n_head=4)).eval())


@pytest.mark.parametrize("positions", ["relative", "absolute"])
@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=5))
def test_equals_a_plain_forward_pass(rows: list[tuple[list[int], list[int]]], positions: str, gpt2: PreTrainedModel) -> None:
    model = gpt2 if positions == "absolute" else tiny()[0]
    replies = read_references(model, [prompt for prompt, _ in rows], [answer for _, answer in rows], pad_id=1)
    for (prompt, answer), reply in zip(rows, replies, strict=True):
        own = logprobs(model, [*prompt, *answer])[len(prompt) - 1 : -1]
        best = own.topk(2).values
        assert reply.text is None and reply.label_prob is None and reply.tokens == len(answer)
        assert reply.logprobs == pytest.approx(own.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist(), abs=2e-4)
        assert reply.margin == pytest.approx((best[:, 0] - best[:, 1]).min().item(), abs=4e-4)
