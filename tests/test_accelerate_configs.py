"""The accelerate configs we ship: read by accelerate's own loader and launcher, and run where this machine can.

Only cpu-2-processes.yaml can be run without a GPU. fsdp.yaml, multi-gpu.yaml and the DeepSpeed files need two CUDA GPUs (DeepSpeed
itself is not installed either): of these the tests prove that accelerate's launcher understands every key and hands the training
processes what the file says.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

CONFIGS = Path(__file__).parent.parent / "recipes" / "accelerate"
FILES = sorted(CONFIGS.glob("*.yaml"))


def launcher_arguments(name: str) -> argparse.Namespace:
    """What `accelerate launch --config_file NAME -m workbench` has made of the file before it starts anything."""
    parser = launch_command_parser()
    given = parser.parse_args(["--config_file", str(CONFIGS / name), "--main_process_port", "0", "-m", "workbench"])
    arguments, _, _ = _validate_launch_command(given)
    return arguments


def test_every_kind_is_there() -> None:
    names = {path.stem for path in FILES}
    assert names == {"cpu-2-processes", "deepspeed-zero2", "deepspeed-zero3", "fsdp", "multi-gpu"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_what_the_file_says(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    read = load_config_from_file(str(path))  # refuses unknown keys at the top level
    assert isinstance(read, ClusterConfig)
    for key, value in written.items():
        found = getattr(read, key)
        assert (found.value if key in ("distributed_type", "compute_environment") else found) == value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_unknown_keys_inside_a_section(path: Path) -> None:
    """accelerate copies these to its launcher's options without a check; a mistyped one would be ignored in silence."""
    options = {action.dest for action in launch_command_parser()._actions}
    sections = [value for value in yaml.safe_load(path.read_text()).values() if isinstance(value, dict)]
    assert {key for section in sections for key in section} <= options


def test_a_mistyped_key_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text((CONFIGS / "fsdp.yaml").read_text().replace("num_processes", "num_proceses"))
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(path))


def test_fsdp_reaches_the_training_processes() -> None:
    arguments = launcher_arguments("fsdp.yaml")
    assert arguments.use_fsdp and arguments.num_processes == 2
    with patch_environment(**prepare_multi_gpu_env(arguments)):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"  # else transformers' Trainer saves no model at the end
    assert plugin.activation_checkpointing is False


def test_multi_gpu_reaches_the_training_processes() -> None:
    arguments = launcher_arguments("multi-gpu.yaml")
    assert arguments.multi_gpu and arguments.num_processes == 2
    environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert "ACCELERATE_USE_FSDP" not in environment
    assert "ACCELERATE_USE_DEEPSPEED" not in environment


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_reaches_the_training_processes(stage: int) -> None:
    arguments = launcher_arguments(f"deepspeed-zero{stage}.yaml")
    assert arguments.use_deepspeed and arguments.num_processes == 2
    arguments.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(arguments)
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    assert environment["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "none"
    assert environment.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL") == ("true" if stage == 3 else None)
    # Left to the recipe: a value here that differs from the recipe's makes transformers refuse to start.
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in environment
    assert "ACCELERATE_GRADIENT_CLIPPING" not in environment


def test_two_processes_on_the_cpu_really_are_two(tmp_path: Path) -> None:
    script = tmp_path / "add.py"
    script.write_text(
        "import torch\n"
        "from accelerate import PartialState\n"
        "state = PartialState(cpu=True)\n"
        "total = torch.tensor([10.0 ** state.process_index])\n"
        "torch.distributed.all_reduce(total)\n"
        "print(f'rank {state.process_index} of {state.num_processes}: {total.item():g}\\n', end='', flush=True)\n"
        "state.destroy_process_group()\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu-2-processes.yaml")]
    done = subprocess.run(
        [*launch, "--main_process_port", "0", str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("rank")) == ["rank 0 of 2: 11", "rank 1 of 2: 11"]
