"""What the loop asks of a method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["Method"]


class Method(Protocol):
    """The contract between the loop and what it trains."""

    @property
    def module(self) -> nn.Module:
        """What goes through Accelerate and is called once a step, so that gradients are reduced."""

    def trainable(self) -> nn.Module:
        """What the optimiser, the moving average and the checkpoints see: its parameters that
        require gradients. The frozen ones come from the model at every start.
        """

    def rates(self) -> Mapping[str, float]:
        """Learning rates of parts of ``trainable``, by name, that have one of their own."""

    def names(self, positions: Sequence[int]) -> list[str]:
        """Names of the pictures at these positions of the run; none where they are drawn."""

    def checkpoint_gradients(self) -> None:
        """From now on compute blocks twice instead of keeping what they computed."""

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """Inputs of ``module`` for these positions of the run."""

    def loss(self, outputs: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss and what to log, from what ``module`` returned."""

    def save(self, folder: Path) -> None:
        """Write the trained network, in the diffusers layout."""
