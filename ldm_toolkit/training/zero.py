"""Training under DeepSpeed's ZeRO, stages 1 and 2: moments and gradients divided among GPUs.

DeepSpeed exchanges gradients, clips and steps by itself at the end of each backward pass. Weights
stay whole and float32; mixed precision is its own autocast around them. What it keeps of the
optimiser is divided among the processes and in its own order, and no checkpoint of ours holds it.
"""

import os
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType

from ldm_toolkit.errors import UserError
from ldm_toolkit.training.config import LoopConfig, UNetConfig

__all__ = ["check_zero", "refuse_to_resume", "set_up_zero", "uses_zero", "zero_is_meant"]

_TYPES = {"bf16": "bfloat16"}


def zero_is_meant() -> bool:
    """Whether the launcher asked for DeepSpeed; before there is an Accelerator."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def uses_zero(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed trains."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def check_zero(config: LoopConfig, accelerator: Accelerator) -> None:
    """Refuse what does not work under DeepSpeed. Raises UserError."""
    found = []
    if accelerator.deepspeed_plugin.zero_stage > 2:
        found.append("zero_stage must be at most 2; fsdp.yaml divides the weights too")
    if not isinstance(config, UNetConfig) or config.method not in ("full", "dreambooth"):
        found.append("only whole UNets are trained: take ddp.yaml for the rest, which is small")
    if config.optimizer != "adamw":
        found.append(f"--optimizer {config.optimizer} cannot be divided: pass adamw")
    if config.accumulate > 1 or config.auto_batch:
        found.append("leave --accumulate and --auto-batch out")
    if config.mixed_precision not in ("no", *_TYPES):
        found.append(f"--mixed-precision {config.mixed_precision}: pass bf16")
    if config.compile:
        found.append("leave --compile out")
    if found:
        raise UserError(f"DeepSpeed: {'; '.join(found)}")


def set_up_zero(config: LoopConfig, accelerator: Accelerator) -> None:
    """Tell DeepSpeed what the options of the training say, whatever its own file does."""
    kind = _TYPES.get(config.mixed_precision)
    accelerator.deepspeed_plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        # The list is of what would exchange its gradients in fewer bits.
        "torch_autocast": {
            "enabled": kind is not None,
            "dtype": kind or "float32",
            "lower_precision_safe_modules": [],
        },
    }


def refuse_to_resume(folder: Path, output: str, step: int) -> None:
    """Say that a run under DeepSpeed cannot go on, and what to do with its weights.

    Always raises UserError.
    """
    raise UserError(
        f"{folder} cannot be gone on with: under DeepSpeed the optimiser's state is not restored "
        f"exactly; start anew from the weights of step {step} with --model {output} and another "
        "--output, or pass --resume false to begin again"
    )
