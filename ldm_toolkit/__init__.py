"""Latent-diffusion inference and fine-tuning that works offline from the first minute.

The public names are loaded when they are first used, so that ``import ldm_toolkit`` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm_toolkit.denoise import Step
    from ldm_toolkit.errors import LdmToolkitError, ModelError, NumericalError, UserError
    from ldm_toolkit.pipeline import LatentPipeline
    from ldm_toolkit.recipe import GenerateOptions, Recipe
    from ldm_toolkit.run import Result, Run

__all__ = [
    "GenerateOptions",
    "LatentPipeline",
    "LdmToolkitError",
    "ModelError",
    "NumericalError",
    "Recipe",
    "Result",
    "Run",
    "Step",
    "UserError",
    "__version__",
]

__version__ = "0.1.0"

_HOMES = {
    "GenerateOptions": "recipe",
    "LatentPipeline": "pipeline",
    "LdmToolkitError": "errors",
    "ModelError": "errors",
    "NumericalError": "errors",
    "Recipe": "recipe",
    "Result": "run",
    "Run": "run",
    "Step": "denoise",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name's module at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
