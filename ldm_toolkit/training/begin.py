"""What every training command does first, before anything that takes long."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, ProjectConfiguration
from diffusers.utils.logging import disable_progress_bar

from ldm_toolkit.errors import UserError, install_hint
from ldm_toolkit.training import optimizers
from ldm_toolkit.training.config import LoopConfig, UNetConfig
from ldm_toolkit.training.folders import write_config
from ldm_toolkit.training.loop import set_threads
from ldm_toolkit.training.method_options import WORD_METHODS
from ldm_toolkit.training.zero import check_zero, uses_zero, zero_is_meant

__all__ = ["begin"]

logger = logging.getLogger(__name__)


def begin(config: LoopConfig) -> Accelerator:
    """The output folder with the configuration, threads, seed and the processes.

    Raises UserError, CannotWrite.
    """
    if not sys.stderr.isatty():  # the other libraries are told by the environment: `options`
        disable_progress_bar()
    set_threads(config.threads)
    torch.manual_seed(config.seed)
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from error
    precision = "no" if zero_is_meant() else config.mixed_precision  # DeepSpeed has its own
    try:
        accelerator = Accelerator(mixed_precision=precision, **_tracking(config))
    except ValueError as error:  # fp16 without an accelerator
        raise UserError(f"--mixed-precision {config.mixed_precision}: {error}") from error
    except ImportError as error:
        raise UserError(f"{error}; or take examples/configs/ddp.yaml or fsdp.yaml") from error
    _warn_if_alone(accelerator)
    if uses_zero(accelerator):
        check_zero(config, accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        _check_divided(config, accelerator)
    optimizers.check(config, accelerator.device)
    if accelerator.is_main_process and not config.auto_batch:  # which completes it first
        write_config(config)
    return accelerator


def _tracking(config: LoopConfig) -> dict[str, Any]:
    """What Accelerate is told of ``--trackers``. Raises UserError for a missing package."""
    names = config.tracker_names()
    available = {str(tracker) for tracker in get_available_trackers()}
    missing = [name for name in names if name not in available]  # Accelerate would leave them out
    if missing:
        raise UserError(
            f"--trackers {', '.join(missing)}: not installed; {install_hint('trackers')}"
        )
    if not names:
        return {}
    folders = ProjectConfiguration(
        project_dir=config.output, logging_dir=str(Path(config.output) / "logs")
    )
    return {"log_with": names, "project_config": folders}


def _check_divided(config: LoopConfig, accelerator: Accelerator) -> None:
    """Refuse what does not work on weights that FSDP divides. Raises UserError."""
    found = []
    if not accelerator.is_fsdp2:
        found.append("fsdp_version must be 2")
    if not isinstance(config, UNetConfig) or config.method in WORD_METHODS:
        found.append("only the UNet and LoRAs of it are trained: leave FSDP out for the rest")
    elif config.train_text_encoder:
        found.append("leave --train-text-encoder out")
    if config.optimizer != "adamw":
        found.append(f"--optimizer {config.optimizer} cannot be divided: pass adamw")
    if config.compile:
        found.append("leave --compile out")
    if getattr(config, "validate_every", 0) > 0:
        found.append("pass --validate-every 0: measuring needs the whole network in each process")
    if found:
        raise UserError(f"FSDP: {'; '.join(found)}")


def _warn_if_alone(accelerator: Accelerator) -> None:
    """Say so where `accelerate launch` was told of several processes and started one.

    Without several GPUs it does (1.15: `prepare_simple_launcher_cmd_env`), and what the process can
    see of it is this: an address to meet at, set for several only, and no number of processes.
    """
    launched = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    if accelerator.num_processes == 1 and launched and "WORLD_SIZE" not in os.environ:
        logger.warning(
            "one process trains alone: accelerate launch starts several only on GPUs; on CPUs use "
            "torchrun --nproc_per_node N with ACCELERATE_USE_CPU=true"
        )
