"""Buckets: near the pictures' shapes, no larger than the square, batches of one bucket."""

from fractions import Fraction

import numpy as np
import pytest
from data_tools import as_txt, encoded, samples
from PIL import Image

from ldm_toolkit.training.config import DataConfig
from ldm_toolkit.training.data import Plan, open_source
from ldm_toolkit.training.data.geometry import Geometry, bucket_shapes, crop_box, cut_share, fit


@pytest.mark.parametrize("size", [64, 72, 96, 128, 256, 320, 512, 640, 768, 1024])
def test_shapes_of_buckets(size):
    shapes = bucket_shapes(size)
    assert len(set(shapes)) == len(shapes)
    square = size // 64 * 64
    assert (square, square) in shapes
    for width, height in shapes:
        assert width % 64 == height % 64 == 0
        assert width * height <= size * size, "no bucket needs more memory than the square"
        assert (height, width) in shapes
    if size >= 512:
        assert all(width * height > 0.75 * size * size for width, height in shapes)
        assert max(Fraction(*shape) for shape in shapes) == 4


def test_shapes_at_512():
    landscape = [shape for shape in bucket_shapes(512) if shape[0] >= shape[1]]
    assert landscape == [
        (512, 512), (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256),
        (960, 256), (1024, 256),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 512), (512, 512)),
        ((3000, 3000), (512, 512)),
        ((100, 90), (512, 512)),
        ((4000, 3000), (576, 448)),
        ((3000, 4000), (448, 576)),
        ((1920, 1080), (640, 384)),
        ((1080, 1920), (384, 640)),
        ((1024, 256), (1024, 256)),
        ((9000, 100), (1024, 256)),
        ((1, 9000), (256, 1024)),
    ],
)
def test_the_nearest_bucket(size, bucket):
    assert Geometry.buckets(512).nearest(*size) == bucket
    assert Geometry.square(512).nearest(*size) == (512, 512)


@pytest.mark.parametrize("shape", [(64, 64), (128, 64), (64, 192)])
@pytest.mark.parametrize(
    "size", [(64, 64), (65, 64), (200, 31), (31, 200), (1, 1), (1, 900), (7, 3)]
)
def test_the_crop_is_the_largest_middle_of_that_shape(size, shape):
    left, top, right, bottom = crop_box(size, shape)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    assert (right - left, bottom - top)[0] == size[0] or bottom - top == size[1]
    assert abs(left - (size[0] - right)) <= 1
    assert abs(top - (size[1] - bottom)) <= 1
    assert 0 <= cut_share(size, shape) < 1
    assert fit(Image.new("RGB", size), shape).size == shape


def test_squares_are_cropped_as_they_always_were():
    for width, height in [(192, 64), (64, 193), (71, 70), (1, 2)]:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        assert crop_box((width, height), (512, 512)) == (left, top, left + side, top + side)


def test_a_source_of_buckets(tmp_path):
    wide = Image.new("RGB", (300, 150), "red")
    wide.paste("blue", (25, 0, 275, 150))
    for name, picture in [("wide", wide), ("tall", wide.rotate(90, expand=True))]:
        (tmp_path / f"{name}.png").write_bytes(encoded(picture))
        (tmp_path / f"{name}.txt").write_text("x")
    config = DataConfig(data=str(tmp_path), size=256)
    square = open_source(config)
    source = open_source(config, plan=Plan(Geometry.buckets(256)))
    assert [square.size(index) for index in range(2)] == [(256, 256)] * 2
    # 2:1 is nearest to 5:3 of the shapes that 256 x 256 pixels allow; the red sides are cut off.
    assert [source.size(index) for index in range(2)] == [(192, 320), (320, 192)]
    for index in range(2):
        picture = source.image(index)
        assert picture.size == source.size(index)
        # Lanczos looks a few pixels over the edge.
        inner = picture.crop((4, 4, picture.width - 4, picture.height - 4))
        assert inner.getcolors() == [(inner.width * inner.height, (0, 0, 255))]
    assert square.fingerprint != source.fingerprint


def test_the_fingerprint_of_squares_stays_what_it_was(tmp_path):
    """Caches and checkpoints of earlier versions go on."""
    import hashlib

    made = samples(4)
    source = open_source(DataConfig(data=str(as_txt(tmp_path, made)), size=64))
    content = hashlib.sha256(b"folder 64")
    for sample in made:
        content.update(f"{hashlib.sha256(sample.data).hexdigest()} {sample.caption!r}".encode())
    assert source.fingerprint == content.hexdigest()


def test_squares_have_the_pixels_that_they_had(tmp_path):
    made = samples(4)
    source = open_source(DataConfig(data=str(as_txt(tmp_path, made)), size=64))
    for index, sample in enumerate(made):
        picture = Image.open(tmp_path / sample.name).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        old = picture.resize((64, 64), Image.Resampling.LANCZOS, box=box)
        assert np.array_equal(np.asarray(source.image(index)), np.asarray(old))
