"""Methods: what is trained, what a batch costs, what is saved; nothing else.

A method is given positions in the run and makes its own batch from them, so that everything
random depends on (seed, position) alone. A new one is a module here and a row of
``training.config.UNET_METHODS``.
"""

import importlib
from typing import TYPE_CHECKING

from ldm_toolkit.training.config import UNET_METHODS

if TYPE_CHECKING:
    from ldm_toolkit.training.methods.unet_step import UNetMethod

__all__ = ["method_class"]


def method_class(name: str) -> "type[UNetMethod]":
    """The class of ``--method``; a method's imports are paid by those who use it."""
    module, kind = UNET_METHODS[name].split(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), kind)
