"""What a model uses where the user says nothing: its card, else its configurations. Level 1."""

from collections.abc import Mapping
from typing import Any

from ldm_toolkit import schedulers
from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.configs import image_size, latent_factor
from ldm_toolkit.recipe import ModelDefaults

__all__ = ["model_defaults"]


def model_defaults(
    name: str,
    configs: Mapping[str, Mapping[str, Any]],
    scheduler: str,
    card: Mapping[str, Any],
) -> ModelDefaults:
    """The defaults of a model by its parts' configurations, its scheduler's class and its card.

    Raises ModelError.
    """
    factor = latent_factor(configs["vae"])
    width, height = image_size(configs["unet"], factor)
    values: dict[str, Any] = {
        "width": width,
        "height": height,
        "scheduler": schedulers.name_for_config(scheduler, configs["scheduler"]),
        "guidance_rescale": 0.0,
    }
    stated = card.get("defaults", {})
    if not isinstance(stated, dict):
        raise ModelError("ldm_toolkit.json: defaults must be an object")
    values |= {key: value for key, value in stated.items() if key in values}
    for key in ("width", "height"):
        if type(values[key]) is not int or values[key] < 1 or values[key] % factor:
            raise ModelError(f"ldm_toolkit.json: {key} must be a multiple of {factor}")
    rescale = values["guidance_rescale"]
    if type(rescale) not in (int, float) or not 0 <= rescale <= 1:
        raise ModelError("ldm_toolkit.json: guidance_rescale must be a number from 0 to 1")
    values["scheduler"] = schedulers.resolve_name(str(values["scheduler"]))
    return ModelDefaults(name=name, multiple=factor, **values)
