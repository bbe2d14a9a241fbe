"""Stage `merge`: every key counts, and a merge that is not the adapter publishes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.chains import plan, run
from tests.stages.conftest import TRAINED
from workbench.errors import TrainingError

STAGES = ["model", "data", "train", "merge"]


def test_merge_keys(trained: Path) -> None:
    def merged(*overrides: str) -> dict[str, float]:
        made = run(plan(trained, *TRAINED, *overrides), trained / ".workbench", STAGES)["merge"]
        assert (made.path / "model.safetensors").exists()
        return dict(made.facts)

    default = merged()
    validation = default["prompts"]
    assert default["identical"] + default["near_ties"] == validation > 3
    assert merged("merge.check_prompts=3")["prompts"] == 3
    fewer, more = merged("merge.check_tokens=1"), merged("merge.check_tokens=12")
    assert fewer["max_logit_difference"] <= more["max_logit_difference"]
    assert fewer["max_logit_difference"] != more["max_logit_difference"]
    store = trained / ".workbench" / "store"
    before = sorted(path.name for path in store.iterdir())
    with pytest.raises(TrainingError, match="the merged model is not the adapter"):
        merged(f"merge.max_logit_difference={default['max_logit_difference'] / 2}")
    assert sorted(path.name for path in store.iterdir()) == before


def test_the_tokenizer_is_the_base_s(trained: Path) -> None:
    made = run(plan(trained, *TRAINED), trained / ".workbench", STAGES)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (made["merge"].path / name).read_bytes() == (trained / "model" / name).read_bytes()
    assert made["merge"].facts["rendering"] == made["train"].facts["rendering"]
