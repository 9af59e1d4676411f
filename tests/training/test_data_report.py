"""Bad pictures named exactly, skipped alike everywhere, and what the report says of the others."""

import json
import os
import re

import pytest
from data_tools import Sample, as_jsonl, as_shards, as_txt, encoded, noise, samples
from PIL import Image

from ldm_toolkit.errors import InputError
from ldm_toolkit.training.config import DataConfig
from ldm_toolkit.training.data import Plan, check_data, inspection, open_source
from ldm_toolkit.training.data.entries import Entry, Listing, Problem
from ldm_toolkit.training.data.geometry import Geometry
from ldm_toolkit.training.data.inspection import inspect
from ldm_toolkit.training.data.places import list_data
from ldm_toolkit.training.data.report import report_text

BAD = range(1, 100, 4)  # 25 of 100


def cut(share):
    return lambda path, caption: path.write_bytes(path.read_bytes()[: int(share * _size(path))])


def _size(path):
    return path.stat().st_size


def _pipe(path, caption):
    path.unlink()
    os.mkfifo(path)


def _gif(path, caption):
    path.write_bytes(encoded(noise(0), "GIF"))


def _no_permission(path, caption):
    path.unlink()
    path.symlink_to(path)  # unreadable for root too


KINDS = {
    "no bytes": (lambda path, caption: path.write_bytes(b""), "is not a picture"),
    "10 %": (cut(0.1), "is damaged|is not a picture"),
    "50 %": (cut(0.5), "is damaged"),
    "99 %": (cut(0.99), "is damaged"),
    "another format": (_gif, "is not a picture"),
    "HTML": (lambda path, caption: path.write_bytes(b"<!DOCTYPE html>"), "is not a picture"),
    "not to be opened": (_no_permission, "levels of symbolic links"),
    "no file": (_pipe, "is not a file"),
    "no caption": (lambda path, caption: caption.unlink(), "no caption"),
    "caption not UTF-8": (lambda path, caption: caption.write_bytes(b"\xff\xfe\xfd"), "codec"),
    "empty caption": (lambda path, caption: caption.write_text(" \n"), "empty caption"),
}


@pytest.fixture
def hundred(tmp_path):
    """A hundred pictures of which 25 are bad in eleven ways; name -> what is wrong."""
    made = [Sample(f"{n:03d}.png", encoded(noise(n)), f"caption {n}") for n in range(100)]
    folder = as_txt(tmp_path / "hundred", made)
    expected = {}
    for place, number in enumerate(BAD):
        spoil, told = list(KINDS.values())[place % len(KINDS)]
        path = folder / f"{number:03d}.png"
        spoil(path, path.with_suffix(".txt"))
        expected[path.name] = told
    return folder, expected


def test_exactly_the_bad_ones_are_named(hundred):
    folder, expected = hundred
    found = {p.name: p.reason for p in inspect(list_data(DataConfig(data=str(folder)))).problems}
    assert found.keys() == expected.keys()
    assert len(found) == 25
    for name, told in expected.items():
        assert re.search(told, found[name]), (name, found[name])
        assert name not in found[name]
        assert str(folder) not in found[name]


def test_bad_rows_of_metadata_are_named_too(tmp_path):
    made = samples(8)
    folder = as_jsonl(tmp_path, made)
    lines = (folder / "metadata.jsonl").read_bytes().splitlines()
    lines[1] = lines[0]
    lines[2] = b'{"file_name": "0002.webp", "text": "\xff"}'
    lines[3] = b'{"file_name": "gone.png", "text": "x"}'
    lines[4] = b'{"file_name": "0004.jpg", "text": [""]}'
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines))
    inspection = inspect(list_data(DataConfig(data=str(folder))))
    assert {problem.name for problem in inspection.problems} == {
        "metadata.jsonl:2", "metadata.jsonl:3", "gone.png", "0004.jpg",
    }  # fmt: skip
    assert len(inspection.entries) == 4
    told = report_text(inspection, Plan(Geometry.square(64)))
    assert "0000.png is in metadata.jsonl:1 already" in told
    assert "4 pictures that metadata.jsonl does not name" not in told
    assert "2 pictures that metadata.jsonl does not name" not in told


def test_training_refuses_skips_and_gives_up(hundred, caplog):
    folder, expected = hundred
    caplog.set_level("INFO", "ldm_toolkit")

    def config(**options):
        return DataConfig(data=str(folder), size=64, **options)

    with pytest.raises(InputError, match=r"25 problems.*and 5 more.*--skip-bad leaves them out"):
        open_source(config())
    with pytest.raises(InputError, match=r"of 100, more than --max-bad 0\.1"):
        open_source(config(skip_bad=True))
    with pytest.raises(InputError, match=r"more than --max-bad 0\.24"):
        open_source(config(skip_bad=True, max_bad=0.24))
    source = open_source(config(skip_bad=True, max_bad=0.25))  # the share itself is allowed
    assert len(source) == 75
    kept = [number for number in range(100) if number not in BAD]
    assert [source.captions(index)[0] for index in range(75)] == [f"caption {n}" for n in kept]
    for name in expected:
        assert f"  {name}: " in caplog.text
    assert "left out: the 25 bad pictures above" in caplog.text


def test_every_process_skips_the_same_and_has_the_order_of_clean_data(hundred, tmp_path):
    """The source is a function of the content: as if the bad ones had never been there."""
    folder, expected = hundred
    config = DataConfig(data=str(folder), size=64, skip_bad=True, max_bad=0.3)
    sources = [open_source(config, quiet=quiet) for quiet in (False, True)]
    clean = [Sample(f"{n:03d}.png", encoded(noise(n)), f"caption {n}") for n in range(100)]
    clean = [one for one in clean if one.name not in expected]
    sources.append(open_source(DataConfig(data=str(as_txt(tmp_path / "clean", clean)), size=64)))
    assert len({source.fingerprint for source in sources}) == 1


def test_a_caption_source_must_be_there(tmp_path):
    for sample in samples(3):
        (tmp_path / sample.name).write_bytes(sample.data)
    with pytest.raises(InputError, match=r"3 problems.*no caption.*add metadata\.jsonl"):
        open_source(DataConfig(data=str(tmp_path)))
    with pytest.raises(InputError, match="holds no pictures with captions; add metadata"):
        open_source(DataConfig(data=str(tmp_path), skip_bad=True, max_bad=1.0))


# --- what was decoded is remembered ---


def test_a_later_start_only_reads_the_files(tmp_path, monkeypatch):
    config = DataConfig(data=str(as_txt(tmp_path / "data", samples(5))), size=64)
    memory = tmp_path / "cache" / "checked.jsonl"
    first = open_source(config, memory=memory)
    decoded = []
    real = inspection.decode_image
    monkeypatch.setattr(
        inspection, "decode_image", lambda data, name: decoded.append(name) or real(data, name)
    )
    assert open_source(config, memory=memory).fingerprint == first.fingerprint
    assert decoded == []
    (tmp_path / "data" / "0001.jpg").write_bytes(encoded(noise(99), "JPEG"))
    assert open_source(config, memory=memory).fingerprint != first.fingerprint
    assert decoded == ["0001.jpg"]
    # Neither torn lines nor another version's are believed.
    text = memory.read_text()
    memory.write_text(text[:100] + "\n[1]\n{}\nnull\n" + text.replace(inspection._RULES, "0"))
    decoded.clear()
    open_source(config, memory=memory, quiet=True)
    assert len(decoded) == 5
    decoded.clear()
    open_source(config, memory=memory)
    assert len(decoded) == 5, "a quiet process writes nothing"


def test_a_memory_that_cannot_be_written_is_told(tmp_path):
    from ldm_toolkit.errors import CannotWrite

    (tmp_path / "file").write_text("x")
    config = DataConfig(data=str(as_txt(tmp_path / "data", samples(1))), size=64)
    with pytest.raises(CannotWrite, match=r"checked\.jsonl"):
        open_source(config, memory=tmp_path / "file" / "checked.jsonl")


# --- the report ---


def looked_at(sizes, captions=None, data=None):
    """An inspection of drawn pictures."""
    listing = Listing("place", "advice")
    for number, size in enumerate(sizes):
        file = data if data is not None else encoded(noise(number, *size))
        texts = (captions[number],) if captions else (f"caption {number}",)
        listing.entries.append(Entry(f"{number}.png", texts, lambda file=file: file))
    return inspect(listing)


def test_report_of_squares():
    sizes = [(64, 64), (200, 100), (300, 100), (32, 40)]
    told = report_text(looked_at(sizes), Plan(Geometry.square(64), text_width=768)).splitlines()
    assert told == [
        "place: 4 pictures, 0 of them bad",
        "sizes from 32x40 to 300x100, in the middle 200x100",
        "64x64: 4 pictures, 34% of the area is cut off",
        "2 pictures are cut by more than 30%: 1.png (50%), 2.png (67%)",
        "1 picture is smaller and enlarged: 3.png",
        "the cache takes 0.1 MB for latents and 0.6 MB for 5 captions, on disk and in the memory "
        "of every process",
    ]


def test_report_of_buckets():
    sizes = [(512, 512)] * 5 + [(640, 384), (641, 384)]
    told = report_text(looked_at(sizes), Plan(Geometry.buckets(512), batch=4))
    assert "512x512: 5 pictures, 0% of the area is cut off, 3 of them shown again to fill" in told
    assert "640x384: 2 pictures, 0% of the area is cut off, 2 of them shown again" in told


def test_report_of_copies_and_long_captions():
    same = encoded(noise(7))
    captions = ["a " * 90, "short", "b " * 80]
    found = looked_at([(64, 64)] * 3, captions, data=same)
    plan = Plan(Geometry.square(64), token_counts=lambda texts: [len(t.split()) + 2 for t in texts])
    told = report_text(found, plan)
    assert "2 exact copies: 0.png = 1.png = 2.png" in told
    assert "2 captions are longer than 77 tokens and cut: 0.png (92), 2.png (82)" in told
    assert "tokens" not in report_text(found, Plan(Geometry.square(64)))


def test_equal_pixels_in_other_files_are_copies():
    listing = Listing("place", "advice")
    for name, options in [("a", {}), ("b", {"compress_level": 1})]:
        file = encoded(noise(1), **options)
        listing.entries.append(Entry(name, ("x",), lambda file=file: file))
    assert "1 exact copy: a = b" in report_text(inspect(listing), Plan(Geometry.square(64)))


def test_what_is_not_read_is_told(tmp_path):
    folder = as_txt(tmp_path / "data", samples(2))
    (folder / "below").mkdir()
    (folder / "below" / "x.png").write_bytes(b"")
    (folder / "old.bmp").write_bytes(b"BM")
    (folder / "._0000.png").write_bytes(b"of a Mac")
    told = report_text(inspect(list_data(DataConfig(data=str(folder)))), Plan(Geometry.square(64)))
    assert "data: 3 pictures, 1 of them bad" in told
    assert "  old.bmp: .bmp is not read; save it as PNG, JPEG or WebP" in told
    assert "not used: 1 picture in folders below: name them in metadata.jsonl" in told
    assert "._0000" not in told


@pytest.mark.parametrize("form", [as_txt, as_jsonl, as_shards])
def test_check_data_writes_the_report_and_says_whether_it_is_clean(form, tmp_path, capsys):
    folder = form(tmp_path / "data", samples(4))
    plan = Plan(Geometry.square(64))
    check_data(DataConfig(data=str(folder), size=64), plan)
    assert "4 pictures, 0 of them bad" in capsys.readouterr().out
    form(folder, [*samples(4)[:3], Sample("0003.png", b"bad", "x")])
    with pytest.raises(InputError, match="bad: 1 of 4 pictures; see the report"):
        check_data(DataConfig(data=str(folder), size=64, skip_bad=True), plan)
    out = capsys.readouterr().out
    assert re.search(r"^  \S*0003\.png: is not a picture", out, re.MULTILINE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"], "nothing is written"


def test_a_missing_caption_hides_nothing_else(tmp_path, capsys):
    """All kinds of faults of the same pictures are in one report."""
    folder = as_txt(tmp_path / "data", samples(6))
    shown = sorted(path for path in folder.iterdir() if path.suffix != ".txt")
    for path in shown[:5]:
        path.with_suffix(".txt").unlink()
    shown[0].write_bytes(shown[0].read_bytes()[:99])
    shown[1].write_bytes(shown[2].read_bytes())
    shown[3].write_bytes(encoded(noise(1, 300, 100), "WEBP"))
    shown[4].with_suffix(".txt").write_text("a " * 90)
    plan = Plan(Geometry.square(64), token_counts=lambda texts: [len(t.split()) + 2 for t in texts])
    with pytest.raises(InputError, match="bad: 4 of 6 pictures"):
        check_data(DataConfig(data=str(folder), size=64), plan)
    told = capsys.readouterr().out
    assert re.search(rf"^  {shown[0].name}: no caption; is (damaged|not a picture)", told, re.M)
    for path in shown[1:4]:
        assert f"\n  {path.name}: no caption\n" in told
    assert f"1 exact copy: {shown[1].name} = {shown[2].name}" in told
    assert f"1 caption is longer than 77 tokens and cut: {shown[4].name} (92)" in told
    assert f"1 picture is cut by more than 30%: {shown[3].name} (67%)" in told
    assert "64x64: 2 pictures" in told, "only the good ones are trained on"
    shown[5].with_suffix(".txt").unlink()
    shown[4].with_suffix(".txt").unlink()
    with pytest.raises(InputError, match="bad: 6 of 6 pictures"):
        check_data(DataConfig(data=str(folder), size=64), plan)
    assert "64x64: " not in capsys.readouterr().out


def test_a_row_without_a_caption_names_its_picture_and_what_it_has(tmp_path):
    folder = as_jsonl(tmp_path, samples(3))
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    name = json.loads(lines[1])["file_name"]
    lines[1] = json.dumps({"file_name": name, "txt": "x"})
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / name).write_bytes(b"bad")
    (found,) = inspect(list_data(DataConfig(data=str(folder)))).problems
    assert found.name == "metadata.jsonl:2"
    told = "expected file_name and text, got ['file_name', 'txt']; is not a picture"
    assert found.reason.startswith(told)


def test_check_data_of_drawn_scenes_and_of_nothing(tmp_path, capsys):
    check_data(DataConfig(data="storybook", count=7), Plan(Geometry.square(64)))
    assert "7 scenes" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds no pictures"):
        check_data(DataConfig(data=str(tmp_path)), Plan(Geometry.square(64)))


def test_problems_read_well():
    assert str(Problem("a.png", "is damaged")) == "a.png: is damaged"


# --- pictures of all kinds ---


def transposed(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


RED, WHITE = (255, 0, 0), (255, 255, 255)
COLOURS = {
    "RGB": (encoded(Image.new("RGB", (64, 64), RED)), RED),
    "grayscale": (encoded(Image.new("L", (64, 64), 99)), (99, 99, 99)),
    "one bit": (encoded(Image.new("1", (64, 64), 1)), WHITE),
    "palette": (encoded(Image.new("RGB", (64, 64), RED).quantize(4)), RED),
    "palette with a transparent colour": (
        encoded(Image.new("P", (64, 64), 0), transparency=0), WHITE,
    ),
    "alpha": (encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 0))), WHITE),
    "half alpha": (encoded(Image.new("RGBA", (64, 64), (255, 0, 0, 128))), (255, 127, 127)),
    "grayscale with alpha": (encoded(Image.new("LA", (64, 64), (0, 0))), WHITE),
    "16 bits": (encoded(Image.new("I;16", (64, 64), 99 * 257)), (99, 99, 99)),
    "CMYK": (encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG", quality=100), RED),
    "WebP with alpha": (
        encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "WEBP", lossless=True), WHITE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLOURS)
def test_every_kind_of_picture_is_read(kind, tmp_path):
    data, colour = COLOURS[kind]
    for form in (as_txt, as_shards):
        folder = form(tmp_path / form.__name__, [Sample("0.png", data, "x")])
        found = open_source(DataConfig(data=str(folder), size=64)).image(0)
        assert found.mode == "RGB"
        assert found.getpixel((32, 32)) == pytest.approx(colour, abs=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_comes_before_the_crop(orientation, tmp_path):
    """A wide picture belongs into a wide bucket, however it is stored."""
    upright = Image.new("RGB", (128, 64), "red")
    upright.paste("blue", (0, 0, 64, 64))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that undoes each
    stored = upright
    if orientation in back:
        stored = upright.transpose(Image.Transpose(back[orientation]))
    data = encoded(stored, exif=transposed(orientation))
    folder = as_txt(tmp_path, [Sample("0.png", data, "x")])
    plan = Plan(Geometry.buckets(128))
    source = open_source(DataConfig(data=str(folder), size=128), plan=plan)
    assert source.size(0)[0] > source.size(0)[1]
    found = source.image(0)
    assert found.getpixel((8, found.height // 2)) == (0, 0, 255)
    assert found.getpixel((found.width - 8, found.height // 2)) == RED
