"""Supervised fine-tuning: TRL's SFTTrainer, with batches, losses and stops that the recipe asks for."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from workbench.child import write_json
from workbench.data.render import IGNORED
from workbench.errors import TrainingError
from workbench.models.load import load_tokenizer
from workbench.training.adapters import trainable_model
from workbench.training.checkpoints import MarkComplete, last_complete
from workbench.training.job import Job
from workbench.training.packing import PACKED, PackedBatch, PaddedBatch, prove_packing

#: The task's own metric on the validation rows, from 0 to 1, of the model as it is now.
ScoreModel = Callable[[PreTrainedModel], float]


class Trainer(SFTTrainer):
    """SFTTrainer that projects only supervised positions through the output head, and weighs every validation token the same.

    Attributes:
        score_model: the task's own metric, where the recipe stops early by it.
        tokens_seen: tokens that this process has trained on in this attempt.
    """

    score_model: ScoreModel | None = None
    tokens_seen = 0
    control: TrainerControl

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        # a padded batch's mask marks its tokens; in a packed one only the first token, and what fills up, stand at place 0
        self.tokens_seen += int(inputs["attention_mask"].sum() if "attention_mask" in inputs else (inputs["packed_tokens"] > 0).sum() + 1)
        if inputs["input_ids"].is_cuda:  # TRL's own fused head skips unsupervised positions there; on a CPU it computes all of them
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        nll, correct, count = self._supervised(model, inputs)
        loss = nll / (count if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the count is of all ranks, and the gradients are averaged over them
        self._metrics["train"]["mean_token_accuracy"].append(correct / max(count, 1))
        return loss

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss and token accuracy over all supervised validation tokens, and the task's own score where the recipe stops early by it."""
        self.model.eval()
        totals = torch.zeros(3, dtype=torch.float64)
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in self.get_eval_dataloader():
                nll, correct, count = self._supervised(self.model_wrapped, self._prepare_inputs(batch))
                totals += torch.tensor([nll.item(), correct, count], dtype=torch.float64)
        nll, correct, count = self.accelerator.reduce(totals.to(self.args.device, torch.float32)).tolist()
        metrics = {f"{metric_key_prefix}_loss": nll / count, f"{metric_key_prefix}_token_accuracy": correct / count}
        if self.score_model is not None:
            metrics[f"{metric_key_prefix}_score"] = self.score_model(self.accelerator.unwrap_model(self.model))
        self.model.train()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _supervised(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, float, int]:
        """Summed negative log-likelihood, number of tokens predicted right, number of supervised tokens."""
        labels = inputs["labels"]
        targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        keep = (targets != IGNORED).any(0).nonzero()[:, 0]
        rest = {name: value for name, value in inputs.items() if name not in ("labels", "use_cache")}
        logits = model(**rest, use_cache=False, logits_to_keep=keep).logits.float()
        targets = targets[:, keep]
        nll = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        correct = (logits.argmax(-1) == targets).sum().item()
        return nll, correct, int((targets != IGNORED).sum())


class Watch(TrainerCallback):
    """Writes every log line of the Trainer to `events.jsonl`, and stops a run whose loss is no number."""

    def __init__(self, events: Path) -> None:
        self.events = events

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and self.events.exists():
            with self.events.open("a") as file:
                file.write("\n")  # ends a line that a kill may have torn

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            event = {"time": time.time(), "step": state.global_step, "total": state.max_steps, **(logs or {})}
            with self.events.open("a") as file:
                file.write(json.dumps(event) + "\n")
        for name in ("loss", "grad_norm", "eval_loss"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(value):
                raise TrainingError(
                    f"{name} became {value} at step {state.global_step}",
                    where="train",
                    fix="lower train.learning_rate or train.max_grad_norm, or use launch.mixed_precision: bf16 instead of fp16",
                )


def fit(job: Job, score_model: ScoreModel | None) -> None:
    """Train, on every launched process; rank 0 leaves `trained/` and `result.json` in the workspace.

    Continues from the last whole checkpoint in the workspace, if there is one.

    Args:
        score_model: needed when the recipe stops early by `score`.

    Raises:
        TrainingError: for reasons the recipe or the data can cure.
    """
    train_rows, validation_rows = Dataset(pq.read_table(job.train_rows)), Dataset(pq.read_table(job.validation_rows))
    settings = arguments(job, len(train_rows), evaluate=len(validation_rows) > 0)  # first: it decides on the device for all of accelerate
    tokenizer = load_tokenizer(job.model, trust_remote_code=job.trust_remote_code)
    model = trainable_model(
        job.model,
        job.train,
        dtype=job.dtype,
        attention=PACKED if job.train.packing else "sdpa",
        trust_remote_code=job.trust_remote_code,
    )
    if job.train.packing:
        prove_packing(model, [train_rows[index] for index in range(min(3, len(train_rows)))])
    trainer = Trainer(
        model=model,
        args=settings,
        data_collator=PackedBatch() if job.train.packing else PaddedBatch(tokenizer.pad_token_id),
        train_dataset=train_rows,
        eval_dataset=validation_rows if len(validation_rows) else None,
        processing_class=tokenizer,
        callbacks=[Watch(job.events), MarkComplete(), *early_stopping(job)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.score_model = score_model
    checkpoint = last_complete(job.checkpoints)
    trainer.accelerator.wait_for_everyone()
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    save(trainer, job)
    if trainer.is_world_process_zero():
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_memory()
        trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        write_json(
            job.result,
            {
                "steps": trainer.state.global_step,
                "epochs": trainer.state.epoch,
                "best_checkpoint_step": _step(trainer.state.best_model_checkpoint),
                "trained_parameters": sum(trained),
                "processes": trainer.accelerator.num_processes,
                "attempt_seconds": seconds,
                "attempt_tokens_per_s": trainer.tokens_seen / seconds,
                "peak_memory_bytes": peak,
            },
        )
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def arguments(job: Job, rows: int, *, evaluate: bool) -> SFTConfig:
    """The Trainer's arguments for a recipe, with `rows` training rows.

    Raises:
        TrainingError: float16 on a CPU, where accelerate would compute in float32 without a word.
    """
    train, launch = job.train, job.launch
    if launch.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise TrainingError("fp16 needs a GPU", where="launch.mixed_precision", fix="use bf16, or no for float32")
    steps = train.steps(rows, launch.num_processes)
    eval_steps = train.eval_steps or max(1, steps // 10)
    save_steps = train.save_steps or max(1, steps // 20)
    if train.early_stopping is not None:  # the best checkpoint can only be kept if there is one at every evaluation
        save_steps = eval_steps
    settings = SFTConfig(
        output_dir=str(job.checkpoints),
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        gradient_checkpointing=train.gradient_checkpointing,
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup if train.warmup < 1 else steps,
        optim=train.optimizer,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=launch.mixed_precision == "bf16",
        fp16=launch.mixed_precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        seed=train.seed,
        data_seed=train.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number stops the run; it is not averaged away
        eval_strategy="steps" if evaluate else "no",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=2,
        load_best_model_at_end=train.early_stopping is not None,
        metric_for_best_model=f"eval_{train.early_stopping.metric}" if train.early_stopping else None,
        greater_is_better=train.early_stopping.metric != "loss" if train.early_stopping else None,
        restore_callback_states_from_checkpoint=True,
        dataset_kwargs={"skip_prepare_dataset": True},  # rows arrive rendered: what the preview showed is what is trained on
        max_length=None,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
    )
    settings.mixed_precision = launch.mixed_precision  # the recipe decides, not the variable that a hand-typed `accelerate launch` sets
    return settings


def early_stopping(job: Job) -> list[TrainerCallback]:
    """The Trainer's own early stopping, when the recipe asks for it."""
    stop = job.train.early_stopping
    return [EarlyStoppingCallback(stop.patience, stop.min_delta)] if stop is not None else []


def save(trainer: Trainer, job: Job) -> None:
    """Write adapter or weights, with the tokenizer, to `trained/`: safetensors, gathered from all ranks."""
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(job.trained))
    if not trainer.is_world_process_zero():
        return
    (job.trained / "training_args.bin").unlink(missing_ok=True)  # a pickle, and of no use to anyone
    (job.trained / "README.md").unlink(missing_ok=True)  # TRL's model card knows nothing of this run
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PeftModel):
        return
    config = json.loads((job.trained / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = job.origin
    (job.trained / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _step(checkpoint: str | None) -> int | None:
    return int(checkpoint.rsplit("-", 1)[1]) if checkpoint else None


def _peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
