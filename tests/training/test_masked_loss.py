"""Masks: found beside pictures, cut as they are, brought to latents, and errors count there."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_tools import as_shards, samples
from PIL import Image, ImageOps
from training_tools import metric, noise_schedule, random_moments, tiny_unet, unet_method

from ldm_toolkit.errors import InputError
from ldm_toolkit.training import loop, prepare
from ldm_toolkit.training.config import DataConfig, UNetConfig
from ldm_toolkit.training.data import Plan, check_data, open_source
from ldm_toolkit.training.data.folder import read_folder
from ldm_toolkit.training.data.geometry import Geometry
from ldm_toolkit.training.data.places import list_data
from ldm_toolkit.training.held_out import Part
from ldm_toolkit.training.methods.full import FullUNet
from ldm_toolkit.training.validation import UNetHeldOut


def left_half(width: int, height: int) -> Image.Image:
    """White on the left, black on the right."""
    picture = Image.new("L", (width, height), 0)
    picture.paste(255, (0, 0, width // 2, height))
    return picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of which two have a mask: white where the picture is."""
    home = tmp_path / "data"
    home.mkdir()
    for name, size in (("a.png", (64, 64)), ("b.jpg", (128, 64)), ("c.webp", (64, 96))):
        left_half(*size).convert("RGB").save(home / name)
        (home / name).with_suffix(".txt").write_text(f"a {name}")
    left_half(64, 64).save(home / "a.mask.png")
    left_half(128, 64).save(home / "b.mask.png")
    return home


def source(folder: Path, masks: bool = True, shapes: Geometry | None = None) -> Any:
    plan = Plan(shapes if shapes is not None else Geometry.square(64))
    return open_source(DataConfig(data=str(folder), size=64), plan=plan, masks=masks)


def found_masks(folder: Path) -> dict[str, str | None]:
    listing = list_data(DataConfig(data=str(folder)), masks=True)
    return {e.name: e.mask.name if e.mask is not None else None for e in listing.entries}


# --- where they are found ---


def test_masks_lie_beside_pictures_and_are_none_themselves(folder, caplog):
    assert found_masks(folder) == {"a.png": "a.mask.png", "b.jpg": "b.mask.png", "c.webp": None}
    caplog.set_level("INFO", "ldm_toolkit")
    opened = source(folder)
    assert [opened.captions(index) for index in range(len(opened))] == [
        ("a a.png",), ("a b.jpg",), ("a c.webp",)
    ]  # fmt: skip
    assert "with a mask: 2 of 3 pictures" in caplog.text


def test_without_the_option_they_are_left_alone(folder, caplog):
    caplog.set_level("INFO", "ldm_toolkit")
    opened = source(folder, masks=False)
    assert len(opened) == 3
    assert [opened.mask(index) for index in range(3)] == [None] * 3
    assert "not used: 2 masks, for --masked-loss" in caplog.text


def test_a_mask_without_picture_is_a_picture(folder):
    (folder / "d.mask.png").write_bytes((folder / "a.mask.png").read_bytes())
    with pytest.raises(InputError, match=r"d\.mask\.png: no caption"):
        source(folder)


def test_pictures_of_one_caption_have_masks(folder):
    listing = read_folder(folder, caption="a dog", masks=True)
    assert [(e.name, e.mask and e.mask.name) for e in listing.entries] == [
        ("a.png", "a.mask.png"), ("b.jpg", "b.mask.png"), ("c.webp", None)
    ]  # fmt: skip


def test_metadata_names_masks(folder):
    (folder / "masks").mkdir()
    left_half(64, 96).save(folder / "masks" / "c.png")
    rows: list[dict[str, Any]] = [
        {"file_name": "a.png", "text": "x", "mask_file_name": ""},
        {"file_name": "b.jpg", "text": "x"},
        {"file_name": "c.webp", "text": "x", "mask_file_name": "masks/c.png"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    expected = {"a.png": "a.mask.png", "b.jpg": "b.mask.png", "c.webp": "masks/c.png"}
    assert found_masks(folder) == expected
    listing = list_data(DataConfig(data=str(folder)), masks=True)
    assert not listing.unread
    assert source(folder).mask(2).size == (64, 64)
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,text,mask_file_name\nc.webp,x,a.mask.png\n")
    with pytest.raises(InputError, match=r"its mask a\.mask\.png: is 64x64, the picture 64x96"):
        source(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"b.mask.png": left_half(64, 64)},
         r"b\.jpg: its mask b\.mask\.png: is 64x64, the picture 128x64; expected the same size"),
        ({"a.mask.png": b"no picture"}, r"a\.png: its mask a\.mask\.png: is not a picture"),
    ],
)  # fmt: skip
def test_bad_masks_are_named(change, told, folder, capsys):
    for name, value in change.items():
        if isinstance(value, bytes):
            (folder / name).write_bytes(value)
        else:
            value.save(folder / name)
    with pytest.raises(InputError, match=rf"1 problem .*{told}"):
        source(folder)
    with pytest.raises(InputError):
        check_data(DataConfig(data=str(folder)), Plan(Geometry.square(64)), masks=True)
    assert "its mask" in capsys.readouterr().out
    assert len(source(folder, masks=False)) == 3


@pytest.mark.parametrize("name", ["gone.png", "../secret.png", "/etc/passwd", 3, ["a"]])
def test_names_that_are_none_are_told(name, folder):
    row = {"file_name": "a.png", "text": "x", "mask_file_name": name}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"1 problem .*mask"):
        source(folder)


def test_data_without_any_mask_is_refused(folder, tmp_path):
    for path in folder.glob("*.mask.png"):
        path.unlink()
    shards = as_shards(tmp_path / "shards", samples(4))
    for place in (folder, shards):
        with pytest.raises(InputError, match=r"--masked-loss: no picture of .* has a mask"):
            source(place)
    scenes = DataConfig(data="storybook", size=64)
    for act in (open_source, check_data):
        with pytest.raises(InputError, match="--masked-loss needs masks, which the scenes"):
            act(scenes, plan=Plan(Geometry.square(64)), masks=True)


# --- they move with the picture ---


def red(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))[..., 0].astype(float)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(64, 64), (150, 70), (70, 190), (640, 480)])
def test_a_mask_is_cut_turned_and_mirrored_as_its_picture(size, orientation, tmp_path):
    """The mask is the picture itself, so both have to stay alike; buckets of 64 to 128 pixels."""
    picture = Image.new("L", size, 0)
    picture.paste(255, (0, 0, size[0] // 2, size[1] // 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.convert("RGB").save(tmp_path / "a.png", exif=exif)
    picture.save(tmp_path / "a.mask.png", exif=exif)
    (tmp_path / "a.txt").write_text("x")
    for shapes in (Geometry.square(64), Geometry.buckets(128)):
        opened = source(tmp_path, shapes=shapes)
        image, mask = opened.image(0), opened.mask(0)
        assert mask.size == image.size == opened.size(0)
        assert mask.mode == "L"
        assert np.abs(red(image) - red(mask)).mean() < 5  # two filters at the edges
        mirrored = ImageOps.mirror(mask)
        assert np.abs(red(image) - red(mirrored)).mean() > 100  # it would be seen


def test_parts_have_the_masks_of_their_pictures(folder):
    whole = source(folder)
    part = Part(whole, [2, 0])
    assert part.mask(0) is None
    assert part.mask(1).tobytes() == whole.mask(0).tobytes()


# --- brought to latents ---


def test_a_latent_has_the_mean_of_its_pixels(folder, tmp_path):
    """Against numpy in float64; the picture without mask is all ones."""
    rng = np.random.default_rng(1)
    levels = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(levels).save(folder / "a.mask.png")
    rows = prepare.masks([source(folder)], tmp_path / "cache")
    assert rows.shape == (3, 1, 8, 8)
    expected = levels.astype(np.float64).reshape(8, 8, 8, 8).mean(axis=(1, 3)) / 255
    assert np.allclose(rows[0, 0].double().numpy(), expected, atol=5e-4)  # float16
    assert rows[1, 0].tolist() == [[1.0] * 4 + [0.0] * 4] * 8  # the middle of a wide one
    assert (rows[2] == 1).all()


def test_masks_have_the_shape_of_the_latents_of_their_bucket(folder, tmp_path):
    opened = source(folder, shapes=Geometry.buckets(64))
    rows = prepare.masks([opened, source(folder, masks=False)], tmp_path / "cache")
    assert len(rows) == 6
    for index in range(3):
        width, height = opened.size(index)
        assert rows[index].shape == (1, height // 8, width // 8)
    assert all((row == 1).all() for row in rows[3:])


def test_another_mask_is_noticed(folder, tmp_path):
    plain = source(folder, masks=False).fingerprint
    before = source(folder)
    first = prepare.masks([before], tmp_path)
    ImageOps.invert(left_half(64, 64)).save(folder / "a.mask.png")
    after = source(folder)
    assert len({plain, before.fingerprint, after.fingerprint}) == 3
    second = prepare.masks([after], tmp_path)
    assert torch.equal(second[0], 1 - first[0])
    assert torch.equal(second[1:], first[1:])
    assert torch.equal(prepare.masks([after], tmp_path), second)  # from the cache


# --- the loss ---


def masked_method(output: Path, masks: torch.Tensor, **options: Any) -> tuple[Any, UNetConfig]:
    config = UNetConfig(data="none", output=str(output), size=64, masked_loss=True, **options)
    rng = torch.Generator().manual_seed(1)
    method = FullUNet(
        tiny_unet(), config,
        moments=random_moments(len(masks), rng),
        embeddings=torch.randn(1 + len(masks), 7, 32, generator=rng).half(),
        caption_rows=[[1 + index] for index in range(len(masks))],
        scaling_factor=0.5,
        scheduler_config=noise_schedule("epsilon"),
        masks=masks,
    )  # fmt: skip
    return method, config


def test_the_loss_is_that_of_float64(tmp_path):
    masks = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)).half()
    masks[1] = 1.0
    masks[2, :, :, :6] = 0.0
    method, _ = masked_method(tmp_path, masks)
    columns = method.batch(range(8))
    guess = torch.randn(columns["noise"].shape, generator=torch.Generator().manual_seed(4))
    method.module._prediction = lambda *_: guess
    expected = []
    for row in range(8):
        mask = method._masks[method._index(row)].double().numpy()
        error = (guess[row] - columns["noise"][row]).double().numpy() ** 2
        expected.append((error * mask).sum() / (mask.sum() * len(error)))
    assert float(method.module(**columns)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_mask_of_ones_changes_nothing(tmp_path):
    method, _ = masked_method(tmp_path, torch.ones(6, 1, 8, 8))
    plain, _ = unet_method(tmp_path)
    with torch.no_grad():
        found, expected = (
            method.module(**method.batch(range(4))),
            plain.module(**plain.batch(range(4))),
        )
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_what_the_mask_hides_teaches_nothing(accelerator, tmp_path):
    """Two runs whose pictures differ only there end with the same weights."""
    results = []
    masks = torch.zeros(2, 1, 8, 8)
    masks[..., :4] = 1.0
    for hidden in (0.0, 5.0):
        output = tmp_path / str(hidden)
        output.mkdir()
        options = {"steps": 3, "batch_size": 2, "warmup": 0, "lr": 1e-2, "latents": "mean"}
        method, settings = masked_method(output, masks, **options)
        # Noise alone at the input: the picture itself is then only in the target.
        method.module.kind = "sample"
        method._alphas_cumprod = torch.zeros_like(method._alphas_cumprod)
        method._moments[:, :4, :, 4:] += hidden
        loop.train(method, settings, accelerator)
        results.append(({n: p.clone() for n, p in method.unet.state_dict().items()},
                        metric(output, "loss")))  # fmt: skip
    assert results[0][1] == results[1][1]
    assert all(torch.equal(results[0][0][name], results[1][0][name]) for name in results[0][0])


def test_validation_counts_what_training_counts(tmp_path):
    """Against float64, of a network that says 0; without masks all of a picture counts."""
    method, _ = masked_method(tmp_path, torch.ones(2, 1, 8, 8))
    rng = torch.Generator().manual_seed(3)
    given = {
        "moments": random_moments(3, rng),
        "embeddings": torch.randn(4, 7, 32, generator=rng).half(),
        "caption_rows": [[1], [2], [3]], "scaling_factor": 0.5, "batch_size": 4,
    }  # fmt: skip
    masks = torch.rand(3, 1, 8, 8, generator=rng).half()
    masks[1] = 1.0
    masks[2, :, :, 2:] = 0.0
    noises = []

    def nothing(noisy, *_):
        noises.append(noisy)
        return torch.zeros_like(noisy)

    method.module._prediction = nothing
    # Noise alone at the input, which is then the target.
    method._alphas_cumprod = torch.zeros_like(method._alphas_cumprod)
    masked, plain = UNetHeldOut(method, masks=masks, **given), UNetHeldOut(method, **given)
    for picture in range(3):
        noises.clear()
        found, whole = masked.errors(picture), plain.errors(picture)
        error = noises[0][0].double().numpy() ** 2
        mask = masks[picture].double().numpy()
        expected = (error * mask).sum() / (mask.sum() * len(error))
        assert found.tolist() == pytest.approx([expected] * 10, rel=1e-5)
        assert whole.tolist() == pytest.approx([error.mean()] * 10, rel=1e-5)
        assert (picture == 1) == (found.tolist() == pytest.approx(whole.tolist(), rel=1e-4))


# --- the command ---


def words(model: Path, data: Path, output: Path, *more: object) -> list[Any]:
    return ["finetune_unet", "--model", model, "--data", data, "--output", output, "--size", 64,
            "--steps", 3, "--batch_size", 2, "--warmup", 0, "--threads", 1, "--masked-loss",
            *more]  # fmt: skip


def test_the_command_trains_with_masks(folder, trainer, tiny_model, tmp_path):
    output = tmp_path / "out"
    child = trainer.run(*words(tiny_model, folder, output, "--buckets"))
    assert child.wait() == 0, child.errors
    assert "with a mask: 2 of 3 pictures" in child.errors
    cached = {path.name.partition("-")[0] for path in (output / "cache").iterdir()}
    assert cached == {"checked.jsonl", "latents", "embeddings", "masks"}
    ImageOps.invert(left_half(64, 64)).save(folder / "a.mask.png")
    child = trainer.run(*words(tiny_model, folder, output, "--buckets", "--steps", 4))
    assert child.wait() == 2
    assert "--data (its content has changed)" in child.errors


def test_pictures_of_the_class_count_everywhere(folder, trainer, tiny_model, pictures, tmp_path):
    more = ["--method", "dreambooth", "--class-prompt", "a dog", "--class-data", pictures]
    child = trainer.run(*words(tiny_model, folder, tmp_path / "out", *more))
    assert child.wait() == 0, child.errors


def validated(trainer, model: Path, data: Path, output: Path, *more: object) -> float:
    """The loss on held-out pictures of a model that learns nothing."""
    still = ["--steps", 1, "--lr", "1e-12", "--ema", 0, "--validate-every", 1]
    child = trainer.run(*words(model, data, output, *still, *more))
    assert child.wait() == 0, child.errors
    (line,) = (output / "metrics.jsonl").read_text().splitlines()
    return json.loads(line)["validation"]["raw"]["loss"]


def test_the_command_validates_with_masks(folder, trainer, tiny_model, tmp_path):
    """With those of the pictures that are held out, wherever these come from."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    more = ["--validation-data", other]
    first = validated(trainer, tiny_model, folder, tmp_path / "1", *more)
    for name, size in (("a", (64, 64)), ("b", (128, 64))):
        Image.new("L", size, 255).save(other / f"{name}.mask.png")
    assert validated(trainer, tiny_model, folder, tmp_path / "2", *more) != first
    part = ["--validation-count", 2]
    first = validated(trainer, tiny_model, folder, tmp_path / "3", *part)
    assert validated(trainer, tiny_model, other, tmp_path / "4", *part) != first
    for path in other.glob("*.mask.png"):
        path.unlink()
    child = trainer.run(*words(tiny_model, folder, tmp_path / "5", "--validate-every", 1, *more))
    assert child.wait() == 2
    assert f"no picture of {other} has a mask" in child.errors
