"""Loading needs memory for the weights once, whatever they are stored and computed in."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ldm_layout import checkpoint
from safetensors.torch import load_file, save_file

Factory = Callable[..., Path]
WIDE = (256, 1024)  # 150 million weights: what the libraries themselves take is small beside them

# Loads a small model for the libraries' sake, then the large one; tells how much the peak grew.
PROGRAM = """
import json, resource, sys
from pathlib import Path
from ldm_toolkit.models import single_file
from ldm_toolkit.models.load import load_components

def configurations(kind):
    names = ("unet/config", "vae/config", "text_encoder/config", "scheduler/scheduler_config")
    read = lambda name: json.loads((folder / f"{name}.json").read_text())
    return {name.partition("/")[0]: read(name) for name in names}

single_file._configurations = configurations
peaks = []
for word in sys.argv[2:]:
    path = Path(word)
    folder = path if path.is_dir() else path.with_suffix("")
    more = {} if path.is_dir() else {"tokenizer": folder / "tokenizer"}
    found = load_components(path, device="cpu", dtype=sys.argv[1], **more)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
parts = (found.unet, found.vae, found.text_encoder)
sizes = [p.numel() * p.element_size() for part in parts for p in part.parameters()]
scale = 1 if sys.platform == "darwin" else 1024
grown = (peaks[1] - peaks[0]) * scale
print(json.dumps({"grown": grown, "weights": sum(sizes), "largest": max(sizes)}))
"""


def stored_as(folder: Path, target: Path, dtype: torch.dtype, single: bool) -> Path:
    """The model of a folder with weights in ``dtype``: a folder, or a file beside it."""
    parts = {}
    for file in folder.rglob("*"):
        place = target / file.relative_to(folder)
        if file.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif file.suffix == ".safetensors":
            parts[file.parent.name] = {n: v.to(dtype) for n, v in load_file(file).items()}
            save_file(parts[file.parent.name], place, {"format": "pt"})
        else:
            place.write_bytes(file.read_bytes())
    if not single:
        return target
    whole = checkpoint(
        parts["unet"], parts["vae"], parts["text_encoder"], layers=1, levels=4, second=False
    )
    path = target.with_suffix(".safetensors")
    save_file({name: value.contiguous() for name, value in whole.items()}, path)
    return path


CASES = {
    "folder, as it is": (False, torch.float32, "float32"),
    "folder, halved": (False, torch.float32, "bfloat16"),
    "folder, doubled": (False, torch.float16, "float32"),
    "folder, laid out anew": (False, torch.bfloat16, "bfloat16"),
    "file, halved": (True, torch.float32, "bfloat16"),
    "file, laid out anew": (True, torch.bfloat16, "bfloat16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_no_weight_is_there_twice(case: str, model_factory: Factory) -> None:
    single, stored, computed = CASES[case]
    with tempfile.TemporaryDirectory() as folder:  # pytest would keep gigabytes of three runs
        models = [
            stored_as(model_factory(**options), Path(folder) / name, stored, single)
            for name, options in (("small", {}), ("large", {"unet_channels": WIDE}))
        ]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, computed, *map(str, models)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["weights"] > 250 << 20
    # The largest tensor here is a tenth of all, the one of Stable Diffusion 1.5 a thirtieth.
    stored_largest = found["largest"] * stored.itemsize / getattr(torch, computed).itemsize
    assert found["grown"] <= 1.1 * found["weights"] + stored_largest
