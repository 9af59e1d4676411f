"""The state of a training run between two steps: what a checkpoint holds."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.training_utils import EMAModel
from torch import Tensor

from ldm_toolkit.errors import UserError
from ldm_toolkit.training import checkpoints, optimizers
from ldm_toolkit.training.config import LoopConfig
from ldm_toolkit.training.methods.protocol import Method
from ldm_toolkit.training.precision import cast_frozen_
from ldm_toolkit.training.rates import warn_of_other_steps
from ldm_toolkit.training.resume import check_course, course
from ldm_toolkit.training.sharding import divided_like, gathered, is_divided, whole
from ldm_toolkit.training.zero import refuse_to_resume, set_up_zero, uses_zero

__all__ = ["RunState"]

logger = logging.getLogger(__name__)


class RunState:
    """The network in training, its optimiser and average, and the step that is next."""

    def __init__(
        self,
        method: Method,
        config: LoopConfig,
        accelerator: Accelerator,
        inputs: Mapping[str, Any],
    ) -> None:
        self.method, self.config, self.accelerator = method, config, accelerator
        self.folder = Path(config.output) / checkpoints.CHECKPOINTS
        self.course = course(
            config, {**_frozen(method), **inputs, "processes": accelerator.num_processes}
        )
        groups = _groups(method, config.lr)
        optimizer = optimizers.create(config, [{"params": g, "lr": r} for r, g in groups.items()])
        self.rate_factors = [rate / config.lr for rate in groups]
        if config.gradient_checkpointing:
            method.checkpoint_gradients()
        # `accelerate launch` may have set another number, by which backward() would divide.
        accelerator.gradient_accumulation_steps = config.accumulate
        saves_all = getattr(method, "adapter_file", None) is None
        if not saves_all and accelerator.distributed_type != DistributedType.FSDP:
            cast_frozen_(method.module, accelerator.mixed_precision)  # `course` has their hash
        module = method.module.to(accelerator.device)
        if config.compile:
            module = torch.compile(module)  # type: ignore[assignment]
        self.zero = uses_zero(accelerator)
        if self.zero:
            set_up_zero(config, accelerator)
        self.module, self.optimizer = accelerator.prepare(module, optimizer)
        self.parameters = _trained(method)  # FSDP has put others in their place
        self.divided = is_divided(self.parameters)
        self.ema = None
        if config.ema > 0:
            settings: dict[str, Any] = {
                "use_ema_warmup": True,
                "power": 0.75,
                "foreach": not self.divided,
            }
            self.ema = EMAModel(self.parameters, decay=config.ema, **settings)
        self.step, self.bad_steps = 0, 0

    def checkpoint(self) -> None:
        """Write the run's state; on one process only, the others wait.

        Under DeepSpeed without the optimiser's, and as a model that a new run can start from.
        """
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        if self.accelerator.is_main_process or self.divided:
            tensors["weights"] = checkpoints.named_state(self.method.trainable())
            if not self.zero:
                tensors["optimizer"] = checkpoints.optimizer_tensors(self.optimizer.optimizer)
            if self.ema is not None:
                tensors["ema"] = {str(i): whole(p) for i, p in enumerate(self.ema.shadow_params)}
        if self.accelerator.is_main_process:
            state: dict[str, Any] = {"seed": self.config.seed, "bad_steps": self.bad_steps}
            state["steps"] = self.config.steps
            state["course"] = self.course
            scalars = {} if self.zero else checkpoints.optimizer_scalars(self.optimizer.optimizer)
            if scalars:
                state["optimizer"] = scalars
            if self.ema is not None:
                state["ema_step"] = self.ema.optimization_step
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            checkpoints.save(self.folder, checkpoints.Checkpoint(self.step, tensors, state))
            checkpoints.prune(self.folder, self.config.keep, newest=self.step)
            if self.zero:
                with self.averaged():
                    self.method.save(Path(self.config.output))
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Take up the newest whole checkpoint where there is one. Raises UserError."""
        found = checkpoints.latest(self.folder)
        if found is None:
            return
        before = {"seed": found.state["seed"], **found.state.get("course", {})}
        if self.zero or "optimizer" not in found.tensors:
            refuse_to_resume(self.folder, self.config.output, found.step)
        check_course(before, self.course, self.folder)
        own = self.method.trainable().state_dict()
        weights = {n: divided_like(t, own.get(n)) for n, t in found.tensors["weights"].items()}
        try:
            checkpoints.restore_state(self.method.trainable(), weights)
        except ValueError as error:
            raise UserError(
                f"{self.folder} belongs to another network ({error}); pass the same model, another "
                "--output, or --resume false to start again"
            ) from error
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            name: divided_like(tensor, ordered[int(name.partition(".")[0])])
            for name, tensor in found.tensors["optimizer"].items()
        }
        checkpoints.restore_optimizer(
            self.optimizer.optimizer, moments, found.state.get("optimizer")
        )
        if self.ema is not None:
            shadow = found.tensors["ema"]
            for index, parameter in enumerate(self.ema.shadow_params):
                parameter.copy_(divided_like(shadow[str(index)], parameter))
            self.ema.optimization_step = found.state["ema_step"]
        if self.accelerator.scaler is not None and "scaler" in found.state:
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        self.step, self.bad_steps = found.step, found.state["bad_steps"]
        logger.info("resumed at step %d", self.step)
        if self.accelerator.is_main_process and "steps" in found.state:
            warn_of_other_steps(self.config, found.state["steps"], self.step)

    def stopping(self, received: bool) -> bool:
        """Whether any process received a signal: all have to leave after the same step."""
        if self.accelerator.num_processes == 1:
            return received
        flag = torch.tensor([int(received)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item())

    @contextlib.contextmanager
    def finished(self) -> Iterator[None]:
        """Inside the block the network is as it is saved: averaged and whole, on all processes."""
        with self.averaged(), gathered(self.method.module):
            yield

    @property
    def averages(self) -> bool:
        """Whether there is an average of the weights."""
        return self.ema is not None or optimizers.averages(self.optimizer.optimizer)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the network has its averaged weights."""
        if self.ema is None:
            with optimizers.averaged(self.optimizer.optimizer, self.parameters):
                yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)


def _trained(method: Method) -> list[torch.nn.Parameter]:
    return [p for p in method.trainable().parameters() if p.requires_grad]


def _groups(method: Method, lr: float) -> dict[float, list[Tensor]]:
    """The parameters that are trained, by their learning rate."""
    groups: dict[float, list[Tensor]] = {}
    own = method.rates()
    for name, parameter in method.trainable().named_parameters():
        if parameter.requires_grad:
            groups.setdefault(own.get(name.partition(".")[0], lr), []).append(parameter)
    return groups


def _frozen(method: Method) -> dict[str, str]:
    """The content of what checkpoints leave out: a resumed run must start from the same model."""
    digest = checkpoints.frozen_hash(method.trainable())
    return {"model": digest} if digest is not None else {}
