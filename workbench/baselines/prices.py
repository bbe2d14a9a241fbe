"""What an answer costs: the recipe's own price, or the dated price book `prices.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from workbench.errors import EvaluationError
from workbench.recipe.schema.baseline import Baseline, Price


@dataclass(frozen=True)
class Quote:
    """A price and where it is from.

    Attributes:
        source: for reports, such as "openai's public price page, as of 2025-07-04".
        training: USD per million trained tokens, where the model can be fine-tuned.
    """

    price: Price
    source: str
    training: float | None = None

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """US dollars for one answer; `cached_tokens` are part of `input_tokens`."""
        cached = self.price.input if self.price.cached_input is None else self.price.cached_input
        fresh = input_tokens - cached_tokens
        return (fresh * self.price.input + cached_tokens * cached + output_tokens * self.price.output) / 1e6


def quote(baseline: Baseline) -> Quote | None:
    """The price of the recipe's closed model; None for a transcript whose price nobody gives.

    Raises:
        EvaluationError: neither the recipe nor the price book has it, so that no budget could be kept.
    """
    if baseline.price is not None:
        return Quote(baseline.price, "the recipe")
    found = _look_up(baseline.provider, baseline.model or "")
    if found is not None or baseline.provider == "transcript":
        return found
    raise EvaluationError(
        f"the price book has no price for `{baseline.model}`, and without one no budget can be kept",
        where="baseline.price",
        fix="add price: {input: ..., cached_input: ..., output: ...} in USD per million tokens; zeros where it is free",
    )


def tuned_quote(baseline: Baseline, base: str) -> Quote:
    """The price of tuning the closed model `base`, and of asking what comes out.

    Raises:
        EvaluationError: a part of it is neither in the recipe nor in the price book.
    """
    assert baseline.fine_tune is not None
    wanted = baseline.fine_tune
    found = _look_up("openai", f"ft:{base}")
    price = wanted.price or (found.price if found else None)
    training = wanted.training_price if wanted.training_price is not None else (found.training if found else None)
    if price is None or training is None:
        missing = "training_price" if training is None else "price"
        raise EvaluationError(
            f"nobody says what a fine-tune of `{base}` costs, and without `{missing}` no budget can be kept",
            where=f"baseline.fine_tune.{missing}",
            fix="give it in USD per million tokens",
        )
    own = wanted.price is not None or wanted.training_price is not None
    return Quote(price, "the recipe" if own or found is None else found.source, training)


def _look_up(provider: str, model: str) -> Quote | None:
    name = ":".join(model.split(":")[:2]) if model.startswith("ft:") else model
    entry = _book().get(provider, {}).get(name)
    if entry is None:
        return None
    price = Price(input=entry["input"], cached_input=entry.get("cached_input"), output=entry["output"])
    return Quote(price, f"{provider}'s public price page, as of {entry['as_of']}", entry.get("training"))


@cache
def _book() -> dict[str, Any]:
    return dict(json.loads(files("workbench.baselines").joinpath("prices.json").read_text()))
