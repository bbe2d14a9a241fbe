"""Checkpoints that can be trusted after a kill -9: one that was not written to its end is never resumed from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

#: Written last, after everything else in the checkpoint is on the disk.
COMPLETE = "complete"


class MarkComplete(TrainerCallback):
    """Marks each checkpoint once it is whole. The Trainer itself writes file by file into the final name."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank writes its own random state
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        for file in sorted(checkpoint.rglob("*")):
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        (checkpoint / COMPLETE).touch()


def last_complete(directory: Path) -> Path | None:
    """The newest whole checkpoint; half-written ones are removed on the way."""
    found = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    whole = [path for path in found if (path / COMPLETE).exists()]
    for path in found:
        if path not in whole:
            shutil.rmtree(path, ignore_errors=True)
    return whole[0] if whole else None
