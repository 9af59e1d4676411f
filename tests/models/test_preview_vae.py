"""A stranger's small decoder: what is wrong with it is a line, before anything loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import AutoencoderKL
from tiny_models import make_preview_vae

from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.preview_vae import check_preview_vae

if TYPE_CHECKING:
    from command import Outcome

pytest_plugins = ["command"]

Command = Callable[..., "Outcome"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_preview_vae(tmp_path / "taesd")


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another class": ({"_class_name": "AutoencoderKL"}, "'AutoencoderKL', not an AutoencoderTiny"),
    "no class": ({"_class_name": None}, "not an AutoencoderTiny"),
    "latents": ({"latent_channels": 16}, "latent_channels must be 4, not 16"),
    "widths": ({"decoder_block_out_channels": [8] * 9}, "decoder_block_out_channels and"),
    "huge": ({"decoder_block_out_channels": [1 << 20] * 4}, "decoder_block_out_channels and"),
    "blocks": ({"num_encoder_blocks": [1]}, "encoder_block_out_channels and"),
    "upsampling": ({"upsampling_scaling_factor": 3}, "upsampling_scaling_factor must be 2"),
    "mode": ({"upsample_fn": "magic"}, "upsample_fn must be one of nearest"),
    "scale": ({"scaling_factor": 0}, "scaling_factor and shift_factor must be numbers"),
    "shift": ({"shift_factor": "1"}, "scaling_factor and shift_factor must be numbers"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_configuration(case: str, folder: Path) -> None:
    changes, message = CONFIGS[case]
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"^preview_vae: .*{message}"):
        check_preview_vae(folder)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: (f / WEIGHTS).write_bytes(b"1" * 20), "broken or cut short"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"lacks {WEIGHTS}"),
    "no config": (lambda f: (f / "config.json").unlink(), "lacks config.json"),
    "code": (lambda f: (f / "model.py").write_text(""), "contains code"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_folder(case: str, folder: Path) -> None:
    spoil, message = FILES[case]
    spoil(folder)
    with pytest.raises(ModelError, match=f"^preview_vae: .*{message}"):
        check_preview_vae(folder)


def test_the_command_says_it_at_once(
    real_ldm_gen: Command, folder: Path, tiny_model: Path, workdir: Path
) -> None:
    words = ("a dog", "--model", tiny_model, "--preview-vae")
    done = real_ldm_gen(*words, workdir / "none", "--steps", 0)
    assert done.code == 2
    for message in ("none is neither a folder nor", "add --save-intermediates EVERY", "steps"):
        assert message in done.err
    done = real_ldm_gen(*words, tiny_model / "vae", "--save-intermediates", 1)
    assert "not an AutoencoderTiny" in done.err
    assert "loading" not in done.err
    (workdir / "rows.txt").write_text("a dog\n")
    done = real_ldm_gen("--prompts", "rows.txt", "-o", "out/", "--preview-vae", folder)
    assert "--prompts does not go with --preview-vae" in done.err


def test_the_command_draws_intermediates_with_it(
    real_ldm_gen: Command,
    folder: Path,
    tiny_model: Path,
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[torch.Tensor] = []
    original = AutoencoderKL.decode

    def decode(self: AutoencoderKL, x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        decoded.append(x)
        return original(self, x, *arguments, **named)

    monkeypatch.setattr(AutoencoderKL, "decode", decode)
    words = ("a dog", "--model", tiny_model, "--steps", 2, "--seed", 1, "--scheduler", "ddim")
    words += ("--save-intermediates", 1)
    plain = real_ldm_gen(*words, "-o", "plain.png")
    assert (plain.code, len(decoded)) == (0, 3)
    decoded.clear()
    done = real_ldm_gen(*words, "-o", "small.png", "--preview-vae", folder)
    assert (done.code, len(decoded)) == (0, 1), done.err
    assert (workdir / "small.png").read_bytes() == (workdir / "plain.png").read_bytes()
    for name in ("step-0001.png", "step-0002.png"):
        small, large = (workdir / f"{kind}-steps" / name for kind in ("small", "plain"))
        assert small.read_bytes() != large.read_bytes()
