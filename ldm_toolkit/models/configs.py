"""The configurations of a model's parts: values that this edition can run. Level 1: no torch.

Bounds keep a stranger's configuration from building a network that fills the memory before the
weights are compared with it.
"""

import math
from collections.abc import Mapping
from typing import Any

from ldm_toolkit.errors import ModelError
from ldm_toolkit.values import is_number, is_whole, number_problem

__all__ = ["check_configs", "check_unet", "image_size", "latent_factor", "most_reuse_depth"]

_MAX_WIDTH = 8192
_MAX_LEVELS = 8
_MAX_LAYERS = 64
_MAX_NUMBER = 1e6
_UNET_NUMBERS = (
    ("freq_shift", 0, -_MAX_NUMBER),
    ("mid_block_scale_factor", 1, 1e-6),
    ("norm_eps", 1e-5, 1e-12),
)
"""Numbers of a UNet's configuration: name, diffusers' default, least value."""
_INPUTS = (4, 9)
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
_SPACINGS = ("leading", "trailing", "linspace")
_FLAGS = (
    "clip_sample",
    "euler_at_final",
    "lower_order_final",
    "predict_x0",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "skip_prk_steps",
    "thresholding",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
)
_NUMBERS = (
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "sigma_max",
    "sigma_min",
    "timestep_scaling",
)


def check_configs(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Check unet, vae, text_encoder and scheduler, alone and against each other.

    Raises ModelError.
    """
    check_unet(configs["unet"], configs["text_encoder"])
    _check_vae(configs["vae"])
    _check_text_encoder(configs["text_encoder"])
    _check_scheduler(configs["scheduler"])


def latent_factor(vae: Mapping[str, Any]) -> int:
    """Pixels that a position of a VAE's latents covers in each direction."""
    return 2 ** (len(vae.get("block_out_channels", [1])) - 1)


def image_size(unet: Mapping[str, Any], factor: int) -> tuple[int, int]:
    """(width, height) in pixels that a UNet was trained for; 512 where it does not say."""
    size = unet.get("sample_size")
    if size is None:
        return 512, 512
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(width) * factor, int(height) * factor


def most_reuse_depth(unet: Mapping[str, Any]) -> int:
    """What ``fastpath.halves.most_depth`` says of a UNet of Stable Diffusion, without building it.

    One less than its layers up, of which a level has one more than it has down.
    """
    layers = unet.get("layers_per_block", 2)
    levels = len(unet.get("block_out_channels", (320, 640, 1280, 1280)))
    counts = layers if isinstance(layers, list) else [layers] * levels
    return sum(count + 1 for count in counts) - 1


def _whole(
    config: Mapping[str, Any], part: str, name: str, low: int, high: int, default: int
) -> int:
    """A whole number of a configuration, checked. Raises ModelError."""
    value = config.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise ModelError(
            f"{part}: {name} must be a whole number from {low} to {high}, not {value!r:.80}"
        )
    return value


def _channels(config: Mapping[str, Any], part: str) -> None:
    """Levels and widths of a convolutional network within bounds."""
    widths = config.get("block_out_channels", [1])
    plain = isinstance(widths, list) and 1 <= len(widths) <= _MAX_LEVELS
    if not plain or not all(type(width) is int and 1 <= width <= _MAX_WIDTH for width in widths):
        raise ModelError(
            f"{part}: block_out_channels must be 1 to {_MAX_LEVELS} widths, not {widths!r:.80}"
        )
    layers = config.get("layers_per_block", 2)
    for count in layers if isinstance(layers, list) else [layers]:
        _whole({"layers_per_block": count}, part, "layers_per_block", 1, 16, 2)


def check_unet(unet: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """The UNet of Stable Diffusion: 4 channels in (9 to inpaint) and out, this text's width.

    Raises ModelError.
    """
    channels = unet.get("in_channels", 4)
    if type(channels) is not int or channels not in _INPUTS:
        known = {5: " (a depth-to-image model)", 7: " (an upscaler)", 8: " (InstructPix2Pix)"}
        hint = known.get(channels, "") if isinstance(channels, int) else ""
        raise ModelError(
            f"unet: in_channels must be 4, or 9 to inpaint, not {channels!r:.80}{hint}"
        )
    _whole(unet, "unet", "out_channels", 4, 4, 4)
    _channels(unet, "unet")
    added = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "encoder_hid_dim")
    for name in added:
        if unet.get(name) is not None:
            raise ModelError(
                f"the UNet wants more than a prompt ({name}: {unet[name]!r:.40}), as Stable "
                "Diffusion XL and others do; 1.x and 2.x are read"
            )
    if unet.get("time_cond_proj_dim") is not None:
        raise ModelError(
            "the UNet is guidance-distilled (time_cond_proj_dim); this edition does not run it"
        )
    _whole(unet, "unet", "transformer_layers_per_block", 1, 16, 1)
    width = _whole(text, "text_encoder", "hidden_size", 1, _MAX_WIDTH, 512)
    if unet.get("cross_attention_dim", 1280) != width:
        raise ModelError(
            f"the UNet expects text of width {unet.get('cross_attention_dim')!r:.40}, the text "
            f"encoder gives {width}; they are of different models"
        )
    _whole(unet, "unet", "norm_num_groups", 1, _MAX_WIDTH, 32)
    _whole(unet, "unet", "downsample_padding", 0, 8, 1)
    for name, default, low in _UNET_NUMBERS:
        value = unet.get(name, default)
        if not is_number(value) or not low <= value <= _MAX_NUMBER:
            raise ModelError(f"unet: {name} must be a number from {low:g}, not {value!r:.80}")
    size = unet.get("sample_size")
    sizes = size if isinstance(size, list) else [size]
    if size is not None and (
        len(sizes) not in (1, 2) or not all(type(n) is int and 1 <= n <= 1024 for n in sizes)
    ):
        raise ModelError(f"unet: sample_size must be 1 to 1024, not {size!r:.80}")


def _check_vae(vae: Mapping[str, Any]) -> None:
    """The VAE of Stable Diffusion: 3 channels to 4 and back, a scale."""
    for name, value in (("in_channels", 3), ("out_channels", 3), ("latent_channels", 4)):
        if vae.get(name, value) != value:
            raise ModelError(
                f"vae: {name} must be {value} for Stable Diffusion, not {vae[name]!r:.80}"
                + (" (Stable Diffusion 3 and Flux have 16)" if name == "latent_channels" else "")
            )
    _channels(vae, "vae")
    size = vae.get("sample_size")
    for side in size if isinstance(size, list) else [size]:
        # The side of diffusers' tiles.
        _whole({"sample_size": 512 if side is None else side}, "vae", "sample_size", 32, 8192, 512)
    for name, default, low in (("scaling_factor", 0.18215, 0.0), ("shift_factor", None, -math.inf)):
        value = vae.get(name, default)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelError(f"vae: {name} must be a number, not {value!r:.80}")
        if not (math.isfinite(value) and value > low):
            raise ModelError(f"vae: {name} must be finite and above {low}, not {value!r:.80}")


def _check_text_encoder(text: Mapping[str, Any]) -> None:
    """A CLIP text model that reads 77 tokens."""
    _whole(text, "text_encoder", "max_position_embeddings", 77, 77, 77)
    _whole(text, "text_encoder", "num_hidden_layers", 1, _MAX_LAYERS, 12)
    _whole(text, "text_encoder", "intermediate_size", 1, 8 * _MAX_WIDTH, 2048)
    _whole(text, "text_encoder", "vocab_size", 3, 1_000_000, 49408)
    _whole(text, "text_encoder", "num_attention_heads", 1, 512, 8)


def _check_scheduler(scheduler: Mapping[str, Any]) -> None:
    """A discrete diffusion schedule with a known prediction type."""
    trained = _whole(scheduler, "scheduler", "num_train_timesteps", 1, 100_000, 1000)
    _whole(scheduler, "scheduler", "steps_offset", 0, 1000, 0)
    _whole(scheduler, "scheduler", "original_inference_steps", 1, 100_000, 50)
    _whole(scheduler, "scheduler", "solver_order", 1, 3, 2)
    problems = _setting_problems(scheduler, trained)
    if problems:
        raise ModelError(f"scheduler_config.json: {'; '.join(problems)}")
    for name, known in (
        ("prediction_type", _PREDICTIONS),
        ("beta_schedule", _BETAS),
        ("timestep_spacing", _SPACINGS),
    ):
        value = scheduler.get(name, known[0])
        if value not in known:
            raise ModelError(f"scheduler: {name} must be {' or '.join(known)}, not {value!r:.80}")
    for name, default in (("beta_start", 0.0001), ("beta_end", 0.02)):
        value = scheduler.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ModelError(f"scheduler: {name} must lie between 0 and 1, not {value!r:.80}")
    for name in ("use_flow_sigmas", "use_dynamic_shifting"):
        if scheduler.get(name):
            raise ModelError(f"scheduler: {name} is for flow-matching models, not for this one")


def _setting_problems(scheduler: Mapping[str, Any], trained: int) -> list[str]:
    """A line about each setting that diffusers takes unseen and fails at, some at the last step."""

    def wrong(name: str, expected: str) -> str:
        return f"{name} must be {expected}, not {scheduler[name]!r:.80}"

    there = {name for name, value in scheduler.items() if value is not None}
    problems = [
        wrong(name, "true or false")
        for name in _FLAGS
        if name in there and type(scheduler[name]) is not bool
    ]
    for name in _NUMBERS:
        problems += number_problem(name, scheduler[name], 1_000_000) if name in there else []
    lowest = scheduler.get("lambda_min_clipped", 0)
    if not is_number(lowest) and lowest != -math.inf:
        problems.append(wrong("lambda_min_clipped", "a number"))
    betas = scheduler.get("trained_betas")
    plain = isinstance(betas, list) and len(betas) == trained
    if betas is not None and not (plain and all(is_number(b) and 0 < b < 1 for b in betas)):
        problems.append(wrong("trained_betas", f"{trained} numbers between 0 and 1"))
    dropped = scheduler.get("disable_corrector", [])
    if not (isinstance(dropped, list) and all(is_whole(step) for step in dropped)):
        problems.append(wrong("disable_corrector", "a list of steps"))
    if scheduler.get("timestep_type", "discrete") != "discrete":
        problems.append(wrong("timestep_type", "discrete"))
    if "learned" in str(scheduler.get("variance_type")):
        problems.append(wrong("variance_type", "fixed; the UNet predicts no variance"))
    if "solver_p" in there:
        problems.append(wrong("solver_p", "null"))
    return problems
