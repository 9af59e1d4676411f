"""The last stage: a trained model becomes package data, float16 and without paths.

python examples/storybook/bundle.py runs/storybook/unet_2_longer \\
    --vae runs/storybook/decoder_2 --revision 5

The card of another revision is left out: card.py writes the new one.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from ldm_toolkit.files import staged_directory, write_atomic
from ldm_toolkit.models.places import CARD, read_card

BUNDLED = Path(__file__).parents[2] / "ldm_toolkit" / "models" / "bundled"
WEIGHTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model"}
WEIGHTS["vae"] = WEIGHTS["unet"]
PRIVATE = ("_name_or_path", "dtype", "torch_dtype")


def copy_component(source: Path, target: Path, stem: str) -> None:
    """Weights as float16 and the configuration without the path that it was loaded from."""
    target.mkdir()
    tensors = load_file(source / f"{stem}.safetensors")
    halves = {name: value.to(torch.float16) for name, value in tensors.items()}
    write_atomic(target / f"{stem}.safetensors", save(halves, metadata={"format": "pt"}))
    config = json.loads((source / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in PRIVATE}
    if stem == WEIGHTS["text_encoder"]:  # transformers would take the file's, diffusers takes this
        config["dtype"] = "float32"
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def bundle(model: Path, vae: Path, name: str, revision: str) -> Path:
    """Write the folder of the bundled model and return it; its autoencoder is that of ``vae``."""
    target = BUNDLED / name
    card = target / "README.md"
    same = card.is_file() and read_card(target).get("revision") == revision
    text = card.read_text() if same else None  # another revision has other scores
    with staged_directory(target) as staging:
        for component, stem in WEIGHTS.items():
            source = vae if component == "vae" else model
            copy_component(source / component, staging / component, stem)
        for folder in ("tokenizer", "scheduler"):
            shutil.copytree(model / folder, staging / folder)
        shutil.copy(model / "model_index.json", staging)
        defaults = {"scheduler": "ddim", "guidance_rescale": 0.0, "width": 512, "height": 512}
        about = {"name": name, "revision": revision, "latents": "mean", "defaults": defaults}
        (staging / CARD).write_text(json.dumps(about, indent=2) + "\n")
        if text is not None:
            (staging / "README.md").write_text(text)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the trained model")
    parser.add_argument("--vae", type=Path, help="that of another model, with the same latents")
    parser.add_argument("--name", default="storybook")
    parser.add_argument("--revision", required=True)
    options = parser.parse_args()
    vae = options.vae or options.model
    print(bundle(options.model, vae, options.name, options.revision))
