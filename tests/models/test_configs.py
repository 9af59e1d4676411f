"""Odd values in a stranger's configurations: they work, or one line says which file and key."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from ldm_toolkit import schedulers
from ldm_toolkit.errors import ModelError, UserError
from ldm_toolkit.fastpath.halves import most_depth
from ldm_toolkit.models.checks import check_tokenizer
from ldm_toolkit.models.configs import check_configs, check_unet, most_reuse_depth
from ldm_toolkit.models.tokenizer import load_tokenizer
from ldm_toolkit.tokens import tokenize

ODD = ["x", -1, 0, 7, 0.5, 1e308, float("nan"), True, [], ["x"], [0.5, 0.5], {}, {"a": "b"}]
OTHERS: dict[str, Any] = {"unet": {"cross_attention_dim": 512}, "vae": {}, "text_encoder": {}}
CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
BASES = [name for name in schedulers.names() if not name.endswith(("_exponential", "_beta"))]


@pytest.mark.filterwarnings("ignore")  # numpy and scipy at noise levels that make no sense
@pytest.mark.parametrize("name", BASES)
def test_odd_settings_of_a_scheduler(name: str) -> None:
    """What passes the check runs to its end; everything else is one line."""
    known = inspect.signature(schedulers._class_of(name).__init__).parameters
    refused = 0
    for key in [key for key in known if key != "self"]:
        for value in ODD:
            config = CONFIG | {key: value}
            try:
                check_configs({**OTHERS, "scheduler": config})
                solver = schedulers.create(name, config)
                schedulers.set_steps(solver, 3)
            except UserError as error:
                told = str(error)
                assert key in told or "scheduler_config.json" in told, (key, value, told)
                assert "\n" not in told
                assert len(told) < 600
                refused += 1
                continue
            generators = [torch.Generator().manual_seed(0)]
            taken = inspect.signature(solver.step).parameters
            extras = {"generator": generators} if "generator" in taken else {}
            latents = torch.ones(1, 4, 2, 2)
            for timestep in solver.timesteps:
                seen = solver.scale_model_input(latents, timestep)
                latents = solver.step(seen * 0.1, timestep, latents, **extras).prev_sample
    assert refused > len(ODD)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("trained_betas", "0.1", "trained_betas must be 1000 numbers between 0 and 1, not '0.1'"),
        ("trained_betas", [0.1, 0.1], "trained_betas must be 1000 numbers"),
        ("original_inference_steps", "50", "original_inference_steps must be a whole number"),
        ("original_inference_steps", 0, "original_inference_steps must be a whole number"),
        ("clip_sample", 1, "clip_sample must be true or false, not 1"),
        ("sigma_max", "1", "sigma_max must be a number from 0 to 1000000, not '1'"),
        ("lambda_min_clipped", float("nan"), "lambda_min_clipped must be a number, not nan"),
        ("variance_type", "learned", "predicts no variance"),
        ("timestep_type", "continuous", "timestep_type must be discrete"),
    ],
)
def test_settings_are_named(key: str, value: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told) as caught:
        check_configs({**OTHERS, "scheduler": CONFIG | {key: value}})
    assert "scheduler" in str(caught.value)


def test_all_settings_at_once() -> None:
    odd = {"clip_sample": "no", "sigma_min": [], "solver_p": {}}
    with pytest.raises(ModelError, match=r"clip_sample .*; sigma_min .*; solver_p"):
        check_configs({**OTHERS, "scheduler": CONFIG | odd})


def test_usual_settings_pass() -> None:
    usual: dict[str, Any] = {
        "trained_betas": None,
        "lambda_min_clipped": -float("inf"),
        "sigma_min": None,
        "use_karras_sigmas": None,
        "clip_sample": False,
        "variance_type": "fixed_small",
        "solver_p": None,
        "disable_corrector": [0],
    }
    check_configs({**OTHERS, "scheduler": CONFIG | usual})
    check_configs({**OTHERS, "scheduler": CONFIG | {"trained_betas": [0.001] * 1000}})


@pytest.fixture
def tokenizer(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's tokenizer to spoil."""
    return Path(shutil.copytree(tiny_model / "tokenizer", tmp_path / "tokenizer"))


def edit(file: Path, key: str, value: Any) -> None:
    data = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(data | {key: value}))


KEYS = ["model_max_length", "bos_token", "eos_token", "pad_token", "unk_token"]
KEYS += ["added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"]
KEYS += ["padding_side", "truncation_side", "add_prefix_space", "tokenizer_class"]
KEYS += ["clean_up_tokenization_spaces", "errors", "do_lower_case", "split_special_tokens"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_odd_settings_of_a_tokenizer(file: str, key: str, tokenizer: Path) -> None:
    plain = (tokenizer / file).read_text()
    for value in [None, *ODD, 10**30, -(10**30), "77"]:
        (tokenizer / file).write_text(plain)
        edit(tokenizer / file, key, value)
        try:
            loaded = load_tokenizer(check_tokenizer(tokenizer))
        except ModelError as error:
            told = str(error)
            assert "tokenizer" in told
            assert "\n" not in told
            assert len(told) < 600
        else:
            ids = tokenize("a dog, (a cat:1.2)", loaded)
            assert all(type(one) is int for one in ids)
            assert len(ids) % loaded.model_max_length == 0


@pytest.mark.parametrize("value", ["77", -1, 2, True, [], float("nan")])
def test_the_length_is_named(value: Any, tokenizer: Path) -> None:
    edit(tokenizer / "tokenizer_config.json", "model_max_length", value)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: model_max_length must be"):
        load_tokenizer(check_tokenizer(tokenizer))


@pytest.mark.parametrize("value", [10**30, 1e30, 78])
def test_a_length_beyond_the_text_encoder_s_is_77(value: Any, tokenizer: Path) -> None:
    edit(tokenizer / "tokenizer_config.json", "model_max_length", value)
    assert load_tokenizer(check_tokenizer(tokenizer)).model_max_length == 77


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("freq_shift", value) for value in ("", [0], [1, 2, 3, 4], None, float("nan"))),
        *(("norm_eps", value) for value in ({}, -1, 0, "1e-5", True)),
        *(("mid_block_scale_factor", value) for value in (None, 10**20, 0, "1")),
        *(("downsample_padding", value) for value in (-1, [], None, 1.5)),
        *(("norm_num_groups", value) for value in (True, 0, "32")),
    ],
)
def test_odd_numbers_of_a_unet_are_named(key: str, value: Any) -> None:
    text = {"hidden_size": 32}
    check_unet({"cross_attention_dim": 32}, text)
    with pytest.raises(ModelError, match=f"unet: {key} must be a ") as caught:
        check_unet({"cross_attention_dim": 32, key: value}, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", [1, 2, [2, 1, 3]], ids=str)
def test_the_depth_that_a_configuration_tells_is_the_networks(layers: int | list[int]) -> None:
    config = {
        "layers_per_block": layers,
        "block_out_channels": [8, 8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    assert most_reuse_depth(config) == most_depth(UNet2DConditionModel(**config))


def test_the_depth_of_stable_diffusion() -> None:
    assert most_reuse_depth({}) == 11
