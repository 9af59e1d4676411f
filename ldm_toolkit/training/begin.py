"""What every training command does first, before anything that takes long."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration

from ldm_toolkit.errors import UserError
from ldm_toolkit.training import optimizers
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.folders import write_json
from ldm_toolkit.training.loop import set_threads

__all__ = ["begin"]


def begin(config: LoopConfig) -> Accelerator:
    """The output folder with the configuration, threads, seed and the processes.

    Raises UserError, CannotWrite.
    """
    set_threads(config.threads)
    torch.manual_seed(config.seed)
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from error
    try:
        accelerator = Accelerator(mixed_precision=config.mixed_precision, **_tracking(config))
    except ValueError as error:  # fp16 without an accelerator
        raise UserError(f"--mixed-precision {config.mixed_precision}: {error}") from error
    optimizers.check(config, accelerator.device)
    if accelerator.is_main_process:
        write_json(output / "config.json", vars(config))
    return accelerator


def _tracking(config: LoopConfig) -> dict[str, Any]:
    """What Accelerate is told of ``--trackers``. Raises UserError for a missing package."""
    names = config.tracker_names()
    available = {str(tracker) for tracker in get_available_trackers()}
    missing = [name for name in names if name not in available]  # Accelerate would leave them out
    if missing:
        raise UserError(
            f"--trackers {', '.join(missing)}: not installed; pip install 'ldm-toolkit[trackers]'"
        )
    if not names:
        return {}
    folders = ProjectConfiguration(
        project_dir=config.output, logging_dir=str(Path(config.output) / "logs")
    )
    return {"log_with": names, "project_config": folders}
