from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from tests.support.loaded import logprobs, spread, tiny
from tests.support.tiny import make_model
from workbench.data.example import Example
from workbench.data.render import Renderer
from workbench.errors import EvaluationError
from workbench.evaluation import fidelity
from workbench.evaluation.fidelity import Fidelity, compare
from workbench.evaluation.reference import read_references
from workbench.models.load import load_model
from workbench.recipe.schema import Task

TASK = Task(metric="exact_match", max_new_tokens=4)
WORDS = "local man wins prize area cat unimpressed by everything what is the capital of France".split()
CHAT = Example(({"role": "user", "content": "What is the capital of France?"},), ("Paris.",), where="chat row")


def examples() -> list[Example]:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 20))) for _ in range(11)]
    return [CHAT, *(Example(text, (draw.choice(["0", "1", "yes no maybe"]),), where=f"row {row}") for row, text in enumerate(texts))]


def renderer() -> Renderer:
    return Renderer(tiny()[1], TASK)


def near(scale: float) -> PreTrainedModel:
    """The tiny model with every weight a little off, as rounding would have it."""
    model = copy.deepcopy(tiny()[0])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + scale * torch.randn_like(parameter))
    return model


def read(parent: PreTrainedModel, variant: PreTrainedModel, rows: list[Example] | None = None, budget: int = 128) -> Fidelity:
    return compare(parent, variant, renderer(), examples() if rows is None else rows, batch_tokens=budget, advance=lambda *_: None)


def by_definition(parent: PreTrainedModel, variant: PreTrainedModel, rows: list[Example]) -> Fidelity:
    """One row at a time, one position at a time, in float64."""
    answer: list[tuple[float, float, float, bool]] = []
    text: list[tuple[float, float, float, bool]] = []
    for row in rows:
        prompt, ids = renderer().prompt_ids(row), [*renderer().prompt_ids(row), *renderer().answer_ids(row)]
        theirs, own = logprobs(parent, ids).double(), logprobs(variant, ids).double()
        for position, token in enumerate(ids[1:]):
            p, q = theirs[position], own[position]
            seen = (float(p[token]), float(q[token]), float((p.exp() * (p - q)).sum()), bool(p.argmax() == q.argmax()))
            text.append(seen)
            if position + 1 >= len(prompt):
                answer.append(seen)

    def perplexity(seen: list[tuple[float, float, float, bool]], whose: int) -> float:
        return math.exp(-sum(one[whose] for one in seen) / len(seen))

    return Fidelity(
        perplexity=perplexity(answer, 1),
        parent_perplexity=perplexity(answer, 0),
        kl_mean=sum(seen[2] for seen in answer) / len(answer),
        kl_max=max(seen[2] for seen in answer),
        same_top_token=sum(seen[3] for seen in answer) / len(answer),
        text_perplexity=perplexity(text, 1),
        parent_text_perplexity=perplexity(text, 0),
        text_kl_mean=sum(seen[2] for seen in text) / len(text),
        tokens=len(answer),
        text_tokens=len(text),
        rows=len(rows),
    )


@pytest.mark.parametrize("budget", [1, 128, 100_000])
def test_equals_the_definition(budget: int) -> None:
    """Whatever goes through the models at once: one position, several rows, everything."""
    variant = near(0.1)
    found, expected = read(tiny()[0], variant, budget=budget), by_definition(tiny()[0], variant, examples())
    assert found.to_json() == pytest.approx(expected.to_json(), rel=2e-3, abs=1e-6)
    assert expected.kl_mean > 0.05 and 0 < expected.same_top_token < 1, "the copy is too close to tell anything"


def test_logits_are_read_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = near(0.1)
    expected = read(tiny()[0], variant)
    monkeypatch.setattr(fidelity, "PASS_LOGITS", 20 * 512)
    monkeypatch.setattr(fidelity, "SLICE_LOGITS", 7 * 512)
    assert read(tiny()[0], variant).to_json() == pytest.approx(expected.to_json(), rel=2e-3)


def test_no_forward_pass_makes_more_logits_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "PASS_LOGITS", 20 * 512)
    made = []
    model = tiny()[0]
    hook = model.register_forward_hook(lambda _, args, output: made.append(output.logits.numel()))
    try:
        read(model, model)
    finally:
        hook.remove()
    assert 10 * 512 < max(made) <= 20 * 512


def test_a_model_beside_itself() -> None:
    found = read(tiny()[0], tiny()[0])
    assert found.kl_mean == found.kl_max == found.text_kl_mean == 0 and found.same_top_token == 1
    assert found.perplexity == found.parent_perplexity and found.text_perplexity == found.parent_text_perplexity


def test_perplexity_is_that_of_the_metric() -> None:
    """What `metric: perplexity` reads from the same rows, pooled over tokens."""
    model, rows, render = tiny()[0], examples(), renderer()
    prompts, answers = [render.prompt_ids(row) for row in rows], [render.answer_ids(row) for row in rows]
    seen = [value for reply in read_references(model, prompts, answers, pad_id=1) for value in reply.logprobs]
    found = read(model, model)
    assert found.tokens == len(seen)
    assert found.perplexity == pytest.approx(math.exp(-sum(seen) / len(seen)), rel=1e-4)


def test_the_order_of_the_examples_does_not_matter() -> None:
    variant, rows = near(0.1), examples()
    expected = read(tiny()[0], variant, rows).to_json()
    random.Random(3).shuffle(rows)
    assert read(tiny()[0], variant, rows).to_json() == pytest.approx(expected, rel=1e-4)


def test_further_away_is_further_away() -> None:
    close, far = read(tiny()[0], near(0.01)), read(tiny()[0], near(0.1))
    assert 0 < close.kl_mean < far.kl_mean and close.same_top_token >= far.same_top_token
    assert close.kl_mean <= close.kl_max


def test_quantised_copies(tmp_path: Path) -> None:
    """Eight bits are closer to the model than four."""
    model = spread(load_model(make_model(tmp_path / "plain"), dtype="float32"))
    model.save_pretrained(tmp_path / "plain")
    found = [
        read(model.eval(), load_model(tmp_path / "plain", dtype="float32", quantization_config=BitsAndBytesConfig(**how)).eval())
        for how in ({"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True})
    ]
    assert 0 < found[0].text_kl_mean < found[1].text_kl_mean
    assert found[0].parent_perplexity == found[1].parent_perplexity


def test_its_json_is_json() -> None:
    found = read(tiny()[0], near(0.01))
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["rows"] == len(examples())


def test_progress() -> None:
    seen: list[float] = []
    compare(tiny()[0], tiny()[0], renderer(), examples(), batch_tokens=64, advance=lambda done, *_: seen.append(done))
    assert seen == sorted(set(seen)) and len(seen) > 2 and seen[-1] == len(examples())


def test_a_damaged_variant_is_refused() -> None:
    damaged = near(0.0)
    with torch.no_grad():
        damaged.model.layers[1].mlp.up_proj.weight[3, 3] = math.nan
    with pytest.raises(EvaluationError, match="the variant's log-probabilities") as caught:
        read(tiny()[0], damaged)
    assert "damaged" in str(caught.value.fix)
    with pytest.raises(EvaluationError, match="the parent's log-probabilities"):
        read(damaged, tiny()[0])


def test_a_hopeless_variant_is_refused() -> None:
    hopeless = near(0.0)
    with torch.no_grad():
        hopeless.get_output_embeddings().weight.mul_(1e5)
    with pytest.raises(EvaluationError, match="a perplexity cannot be told"):
        read(tiny()[0], hopeless)


def test_bad_input(tmp_path: Path) -> None:
    model = tiny()[0]
    with pytest.raises(EvaluationError, match="no examples"):
        read(model, model, [])
    with pytest.raises(EvaluationError, match="context is 512") as caught:
        read(model, model, [CHAT, Example("cat " * 600, ("1",), where="long row")])
    assert caught.value.where == "long row"
    wider = copy.deepcopy(model)
    wider.resize_token_embeddings(520)
    with pytest.raises(EvaluationError, match="vocabulary of 512 and the variant one of 520"):
        read(model, wider)
