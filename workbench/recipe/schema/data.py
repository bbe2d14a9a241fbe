"""Section `data`: where the examples come from and how they are divided."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from workbench.recipe.schema.base import Fault, Fraction, PathText, Positive, Section, Seed, Text, agree

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration", "test")

Format = Literal["prompt_completion", "chat", "openai", "evals", "table"]


class SplitShares(Section):
    """Share of the rows of `data.source` that each split gets, decided by a hash of the content and the seed."""

    train: Fraction = Field(default=0.7, description="share for training and for quantisation calibration")
    validation: Fraction = Field(default=0.1, description="share for early stopping and for choosing among variants")
    calibration: Fraction = Field(default=0.1, description="share for fitting and certifying the router")
    test: Fraction = Field(default=0.1, description="share for the one final verdict")
    seed: Seed = Field(default=0, description="another seed, another split")

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitShares:
        total = self.train + self.validation + self.calibration + self.test
        if abs(total - 1) > 1e-6:
            fix = "change the shares so that train, validation, calibration and test add up to 1; a share left out has its default"
            agree(Fault(None, f"the shares add up to {total:g}, but must add up to 1", fix))
        return self


class HeldOut(Section):
    """Splits that come from a file of their own instead of a share of `data.source`."""

    validation: PathText | None = Field(default=None, description="file with the validation rows; same forms as data.source")
    calibration: PathText | None = Field(default=None, description="file with the calibration rows; same forms as data.source")
    test: PathText | None = Field(default=None, description="file with the test rows; same forms as data.source")


class Limits(Section):
    """At most this many rows of a split, chosen by hash, not by position in the file."""

    train: Positive | None = Field(default=None, description="most training rows; default: all")
    validation: Positive | None = Field(default=None, description="most validation rows; default: all")
    calibration: Positive | None = Field(default=None, description="most calibration rows; default: all")
    test: Positive | None = Field(default=None, description="most test rows; default: all")


class Columns(Section):
    """Names of the fields that hold each part of a row (formats `prompt_completion` and `table`)."""

    prompt: Text = Field(default="prompt", description="prompt_completion: the field with the prompt")
    completion: Text = Field(default="completion", description="the field with the expected answer")
    metadata: list[Text] = Field(default=[], description="fields carried along as metadata, usable as slices")


class Data(Section):
    """Where the examples come from and how they are divided."""

    source: PathText = Field(description="file to read; same forms as model.source (.jsonl, .csv or .parquet)", examples=["train.jsonl"])
    format: Format = Field(
        description="how a row is written: prompt and completion, chat messages, OpenAI's form, input and ideal, or columns",
        examples=["chat"],
    )
    columns: Columns = Field(default=Columns(), description="which fields hold the prompt, the answer and the metadata")
    split: SplitShares = Field(default=SplitShares(), description="how the rows of `source` are divided")
    held_out: HeldOut = Field(default=HeldOut(), description="splits that have a file of their own")
    limit: Limits = Field(default=Limits(), description="most rows per split")
