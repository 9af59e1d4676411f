"""Webdataset shards: read by index, and nothing in them runs or leads out of them."""

import io
import json
import os
import pickle
import tarfile
from types import SimpleNamespace

import pytest
from data_tools import as_shards, encoded, link, noise, samples, write_shard
from training_tools import tiny_vae

from ldm_toolkit.errors import InputError
from ldm_toolkit.training.config import DataConfig, VAEConfig
from ldm_toolkit.training.data import open_source
from ldm_toolkit.training.data.inspection import inspect
from ldm_toolkit.training.data.places import list_data
from ldm_toolkit.training.data.shards import expand_braces, read_shards
from ldm_toolkit.training.methods.vae import VAEMethod
from ldm_toolkit.training.step import _batches

PICTURE = encoded(noise(0))


def listed(path, **options):
    return read_shards(str(path), [path], **options)


def problems(path, **options):
    """name -> reason, of shards and of their pictures."""
    found = inspect(listed(path, **options)).problems
    return {problem.name: problem.reason for problem in found}


@pytest.mark.parametrize("text", ["txt", "json"])
def test_samples_in_the_order_of_the_shards(text, tmp_path):
    made = samples(10)
    folder = as_shards(tmp_path, made, text)
    places = [str(folder), str(folder / "x-{000..002}.tar"), str(folder / "x-00{0,1,2}.tar")]
    sources = [open_source(DataConfig(data=place, size=64)) for place in places]
    for source in sources:
        assert [source.captions(index) for index in range(10)] == [(s.caption,) for s in made]
        assert source.fingerprint == sources[0].fingerprint
    # By index, in any order.
    asked = [sources[0].image(index).tobytes() for index in (7, 0, 9, 7)]
    assert asked[0] == asked[3]
    assert len(set(asked)) == 3


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_an_epoch_and_none_sees_what_another_saw(processes, tmp_path):
    """Each sample once an epoch over all processes, in another order in the next one."""
    folder = as_shards(tmp_path, samples(12))
    orders = []
    for epoch in (0, 1):
        seen = []
        for rank in range(processes):
            config = VAEConfig(data=str(folder), output="o", size=64, crops=1, batch_size=2)
            method = VAEMethod(tiny_vae(), config, open_source(config))
            accelerator = SimpleNamespace(num_processes=processes, process_index=rank)
            steps = 12 // (2 * processes)
            for step in range(epoch * steps, (epoch + 1) * steps):
                run = SimpleNamespace(config=config, accelerator=accelerator, step=step)
                seen += [name for positions in _batches(run) for name in method.names(positions)]
        assert len(seen) == len(set(seen)) == 12
        orders.append(seen)
    assert orders[0] != orders[1]


def test_one_shard(tmp_path):
    made = samples(3)
    as_shards(tmp_path, made)
    source = open_source(DataConfig(data=str(tmp_path / "x-000.tar"), size=64))
    assert len(source) == 3


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{1..2}/{x,y}.tar", ["1/x.tar", "1/y.tar", "2/x.tar", "2/y.tar"]),
        ("a{3..1}", []),
        ("a{}", ["a{}"]),
        ("a{b}", ["a{b}"]),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..100000}", "{0..999}{0..999}"])
def test_too_many_shards(pattern):
    with pytest.raises(InputError, match="more than"):
        expand_braces(pattern)


@pytest.mark.parametrize("name", ["none.tar", "x-{000..009}.tar", "x-{3..1}.tar"])
def test_a_missing_shard_is_named(name, tmp_path):
    as_shards(tmp_path, samples(4))
    with pytest.raises(InputError, match="no such shard"):
        list_data(DataConfig(data=str(tmp_path / name)))


def test_compressed_shards_are_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match="unpack it"):
        list_data(DataConfig(data=str(tmp_path / "x.tar.gz")))
    with tarfile.open(tmp_path / "y.tar", "w:gz"):
        pass
    assert "is damaged" in problems(tmp_path / "y.tar")["y.tar"]


# --- captions ---


def test_txt_comes_before_json_and_a_column_that_was_asked_for_before_both(tmp_path):
    row = json.dumps({"caption": "of json", "long": ["one", "two"]}).encode()
    path = write_shard(
        tmp_path / "x.tar", [("a.jpg", PICTURE), ("a.json", row), ("a.txt", b" of txt \n")]
    )
    assert listed(path).entries[0].captions == ("of txt",)
    assert listed(path, caption_column="long").entries[0].captions == ("one", "two")
    assert problems(path, caption_column="other") == {"x.tar:a": "no caption"}


@pytest.mark.parametrize(
    ("member", "told"),
    [
        (None, "no caption"),
        (("a.json", b"{}"), "no caption"),
        (("a.json", b'{"text": 3}'), "no caption"),
        (("a.json", b"[" * 100_000), "nests too deep"),
        (("a.json", b"{"), "Expecting"),
        (("a.json", b"[1]"), "not an object"),
        (("a.json", b"\xff"), "not UTF-8"),
        (("a.txt", b"\xff"), "not UTF-8"),
        (("a.txt", b"x" * (2**20 + 1)), "larger than 1 MB"),
        (("a.txt", b" \n"), "empty caption"),
        (("a.png", PICTURE), "several pictures"),
        (("a.jpg", PICTURE), "two members .jpg"),
    ],
)
def test_bad_samples_are_named(member, told, tmp_path):
    members = [("a.jpg", PICTURE), *([member] if member else []), ("b.jpg", PICTURE)]
    path = write_shard(tmp_path / "x.tar", [*members, ("b.txt", b"good")])
    found = problems(path)
    assert len(found) == 1
    assert next(iter(found)).startswith("x.tar:a")
    assert told in next(iter(found.values()))


def test_without_any_caption_source_training_does_not_start(tmp_path):
    write_shard(tmp_path / "x.tar", [("a.jpg", PICTURE), ("b.jpg", PICTURE)])
    config = DataConfig(data=str(tmp_path / "x.tar"), size=64, skip_bad=True, max_bad=1.0)
    with pytest.raises(InputError, match=r"holds no pictures with captions; add a \.txt"):
        open_source(config)


# --- nothing runs, nothing leads out ---


class Payload:
    """Unpickling makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


ENDINGS = ["pkl", "pickle", "pyd", "pth", "pt", "ckpt", "py", "cls", "npy", "npz", "bin", "mp"]


def test_payloads_in_members_do_nothing(tmp_path, monkeypatch):
    """Four shards: payloads beside good pictures, as pictures, as captions, as metadata."""
    payload = pickle.dumps(Payload(tmp_path / "ran"))
    (tmp_path / "shards").mkdir()
    beside = [member for key in "ab" for member in
              [(f"{key}.jpg", PICTURE), (f"{key}.txt", b"good"),
               *((f"{key}.{ending}", payload) for ending in ENDINGS)]]  # fmt: skip
    write_shard(tmp_path / "shards" / "0.tar", beside)
    write_shard(tmp_path / "shards" / "1.tar", [("c.jpg", payload), ("c.txt", b"bad")])
    write_shard(tmp_path / "shards" / "2.tar", [("d.jpg", PICTURE), ("d.txt", payload)])
    write_shard(tmp_path / "shards" / "3.tar", [("e.jpg", PICTURE), ("e.json", payload)])

    def refuse(*arguments, **options):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    inspection = inspect(list_data(DataConfig(data=str(tmp_path / "shards"))))
    assert [entry.name for entry in inspection.entries] == ["0.tar:a.jpg", "0.tar:b.jpg"]
    assert sorted(problem.name for problem in inspection.problems) == [
        "1.tar:c.jpg", "2.tar:d", "3.tar:e",
    ]  # fmt: skip
    for ending in ENDINGS:
        assert inspection.listing.unread["member", f" .{ending}, not decoded"] == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "member",
    [
        link("a.jpg", "/etc/passwd"),
        link("a.jpg", "b.jpg", tarfile.LNKTYPE),
        link("a.jpg", "", tarfile.CHRTYPE),
        link("a.jpg", "", tarfile.FIFOTYPE),
        ("/a.jpg", PICTURE),
        ("../a.jpg", PICTURE),
        ("x/../../a.jpg", PICTURE),
        ("x\\..\\a.jpg", PICTURE),
        ("C:/a.jpg", PICTURE),
    ],
    ids=[
        "symlink",
        "hard link",
        "device",
        "pipe",
        "absolute",
        "up",
        "through",
        "backslash",
        "drive",
    ],
)
def test_members_that_lead_out_are_refused(member, tmp_path):
    path = write_shard(tmp_path / "x.tar", [member, ("b.jpg", PICTURE), ("b.txt", b"good")])
    inspection = inspect(listed(path))
    assert [entry.name for entry in inspection.entries] == ["x.tar:b.jpg"]
    assert len(inspection.problems) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar"], "nothing is unpacked"


def test_names_that_mean_nothing_are_passed_over(tmp_path):
    folder = tarfile.TarInfo("x")
    folder.type = tarfile.DIRTYPE
    members = [folder, ("./x/a.jpg", PICTURE), ("./x/a.txt", b"good"), (".hidden", b""),
               ("README", b""), ("__meta__.json", b"")]  # fmt: skip
    listing = listed(write_shard(tmp_path / "x.tar", members))
    assert [entry.name for entry in listing.entries] == ["x.tar:x/a.jpg"]
    assert listing.problems == []


def test_a_name_again_in_the_same_shard(tmp_path):
    members = [("a.jpg", PICTURE), ("a.txt", b"x"), ("b.jpg", PICTURE), ("b.txt", b"x")]
    found = problems(write_shard(tmp_path / "x.tar", [*members, *members[:2]]))
    assert found == {"x.tar:a": "is in the shard already, further up"}


# --- damaged ---


def shard_bytes(count=4):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for index in range(count):
            for name, data in ((f"{index}.png", PICTURE), (f"{index}.txt", b"good")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.3, 0.5, 0.75, 0.85])
def test_a_shard_that_was_cut_off_is_never_taken_for_a_short_one(share, tmp_path):
    data = shard_bytes()
    path = tmp_path / "x.tar"
    path.write_bytes(data[: int(share * len(data))])
    inspection = inspect(listed(path))
    assert any(problem.name == "x.tar" for problem in inspection.problems)
    assert len(inspection.entries) < 4


def test_a_broken_header_in_the_middle_is_told(tmp_path):
    data = bytearray(shard_bytes())
    place = data.index(b"2.png")
    data[place + 148 : place + 156] = b"notasum\0"
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    inspection = inspect(listed(path))
    assert [entry.name for entry in inspection.entries] == ["x.tar:0.png", "x.tar:1.png"]
    assert "samples may be missing" in inspection.problems[0].reason


def header(name, size, kind=b"0"):
    """A header with any size, also those that tarfile would not write."""
    field = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    block = bytearray(512)
    block[0 : len(name)] = name
    block[124:136], block[156:157], block[257:265] = field, kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("size", [-512, -1024, -(2**60), 2**40, 2**62])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"S"])
def test_headers_that_lie_about_sizes_end(size, kind, tmp_path):
    """Also the loop without end of CVE-2025-8194."""
    path = tmp_path / "x.tar"
    path.write_bytes(header(b"a.png", size, kind) * 3 + bytes(1024))
    assert inspect(listed(path)).entries == ()


def test_random_damage_never_breaks_out(tmp_path):
    import random

    data, path = shard_bytes(2), tmp_path / "x.tar"
    draw = random.Random(0)
    for _ in range(200):
        hurt = bytearray(data)
        for _ in range(draw.randrange(1, 8)):
            hurt[draw.randrange(len(hurt))] = draw.randrange(256)
        path.write_bytes(hurt)
        inspect(listed(path))
