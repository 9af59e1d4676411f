"""compile=True: the same pictures, said in the recipe, errors in one line."""

import dataclasses
import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_toolkit import compilation
from ldm_toolkit.errors import LdmToolkitError, UserError
from ldm_toolkit.images import pixels_sha256
from ldm_toolkit.models import adapters
from ldm_toolkit.pipeline import LatentPipeline

PROMPT = "a dog wearing a hat"
OPTIONS: dict[str, Any] = {"steps": 3, "seed": 3}


@pytest.fixture(scope="module")
def compiled(tiny_model: Path) -> LatentPipeline:
    """The tiny model, compiled."""
    return LatentPipeline.from_pretrained(tiny_model, device="cpu", dtype="float32", compile=True)


@pytest.mark.slow
def test_a_compiled_model_draws_the_same_picture(
    compiled: LatentPipeline, pipe: LatentPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "ldm_toolkit"):
        ours = compiled(PROMPT, **OPTIONS)
    expected = pipe(PROMPT, **OPTIONS)
    assert (ours.latents - expected.latents).abs().max() <= 1e-4
    assert "compiled in" in caplog.text
    assert ours.recipes[0].compile
    assert not expected.recipes[0].compile
    again = compiled(PROMPT, **OPTIONS)
    assert pixels_sha256(again.images[0]) == pixels_sha256(ours.images[0])


@pytest.mark.slow
def test_the_same_call_is_not_compiled_twice(
    compiled: LatentPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    compiled(PROMPT, **OPTIONS)
    with caplog.at_level("INFO", "ldm_toolkit"):
        compiled("a red cat", **(OPTIONS | {"seed": 4, "scheduler": "euler"}))
        latents = torch.zeros(2, 4, 8, 8)
        for timestep in (1, 500, 999):
            compiled.predict_noise(latents, timestep, compiled.encode_prompt(["a", "b"]))
    # Euler's timesteps are floats; `predict_noise` keeps nothing from step to step.
    assert caplog.text.count("compiled in") <= 2


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    from torch._inductor import cpp_builder, exc

    def absent() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", absent)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        LatentPipeline.from_pretrained(tiny_model, device="cpu", compile=True)


def test_a_compiler_that_fails_is_one_line() -> None:
    failure = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})
    told = "could not be compiled: InductorError:   no header;"
    with pytest.raises(LdmToolkitError, match=told), compilation.explained():
        raise failure("\n  no header\nmany more lines")
    with pytest.raises(RuntimeError, match="another"), compilation.explained():
        raise RuntimeError("another")


def test_what_is_compiled_and_that_the_recipe_says_so(compiled: LatentPipeline) -> None:
    parts = compiled.components
    networks = (parts.unet, parts.vae.encoder, parts.vae.decoder)
    assert all(network._compiled_call_impl is not None for network in networks)
    assert parts.text_encoder._compiled_call_impl is None
    recipe = compiled.stream(PROMPT, **OPTIONS).recipes[0]
    assert recipe.compile
    assert type(recipe).from_json(recipe.to_json()) == recipe


def test_networks_with_a_lora_are_compiled_too(
    compiled: LatentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`models.adapters` works on copies, which are not compiled."""
    pipe = LatentPipeline(compiled.components)
    copy = dataclasses.replace(compiled.components, unet=deepcopy(compiled.components.unet))
    assert copy.unet._compiled_call_impl is None
    monkeypatch.setattr(adapters, "unload_loras", lambda _: copy)
    pipe.unload_loras()
    assert pipe.components.unet._compiled_call_impl is not None


HOMES = {
    "the user's cache": ({"HOME": "home"}, "home/.cache/ldm_toolkit/inductor"),
    "XDG": ({"HOME": "home", "XDG_CACHE_HOME": "xdg"}, "xdg/ldm_toolkit/inductor"),
    "set already": ({"HOME": "home", "TORCHINDUCTOR_CACHE_DIR": "mine"}, "mine"),
    "set by torch": (
        {"HOME": "home", "TORCHINDUCTOR_CACHE_DIR": None},
        "home/.cache/ldm_toolkit/inductor",
    ),
    "no place": ({"HOME": "file"}, None),
}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other places")
@pytest.mark.parametrize("case", HOMES)
def test_what_is_compiled_is_kept_for_the_next_process(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    given, expected = HOMES[case]
    (tmp_path / "home").mkdir()
    (tmp_path / "file").write_text("no folder")
    for name in ("HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        place = default_cache_dir() if value is None else tmp_path / value
        monkeypatch.setenv(name, str(place))
    compilation._keep_compiled()
    found = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    assert found == (None if expected is None else str(tmp_path / expected))
    if case != "set already" and found is not None:
        assert Path(cache_dir()) == Path(found)


# A process of its own, as the next start is one; tells what inductor found of the last one's work.
START = """
import json, sys
from torch._dynamo.utils import counters
from ldm_toolkit.images import pixels_sha256
from ldm_toolkit.pipeline import LatentPipeline
pipe = LatentPipeline.from_pretrained(sys.argv[1], device="cpu", dtype="float32", compile=True)
image = pipe("a dog", steps=1, seed=1).images[0]
found = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}
print(json.dumps(found | {"pixels": pixels_sha256(image)}))
"""


@pytest.mark.slow
def test_the_next_process_compiles_nothing_anew(tiny_model: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if "INDUCTOR" not in name}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", START, str(tiny_model)]
    first, second = (
        json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
        for _ in range(2)
    )
    assert first["miss"] == second["hit"] == 2  # the UNet and the decoder
    assert second["miss"] == second["bypass"] == 0
    assert second["pixels"] == first["pixels"]
