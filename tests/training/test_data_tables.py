"""Parquet and arrow files and data sets of the hub; every form of the same content is the same."""

import builtins
import types

import pytest
from data_tools import as_csv, as_files, as_jsonl, as_shards, as_txt, encoded, noise, samples

from ldm_toolkit.errors import InputError
from ldm_toolkit.training.config import DataConfig
from ldm_toolkit.training.data import open_source
from ldm_toolkit.training.data.inspection import inspect
from ldm_toolkit.training.data.places import list_data

MADE = samples(6)


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, with a cache of its own and no way to the network."""
    library = pytest.importorskip("datasets", reason="needs the extra train (datasets)")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    library.disable_progress_bars()

    def refuse(*arguments, **options):
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    return library


def table(datasets, made=MADE, image="image", caption="text", **options):
    """A table as the hub's are: pictures as bytes with their names."""
    pictures = [{"bytes": one.data, "path": one.name} for one in made]
    columns = {image: pictures, caption: [one.caption for one in made], "width": [1] * len(made)}
    found = datasets.Dataset.from_dict(columns, **options)
    return found.cast_column(image, datasets.Image())


def as_parquet(folder, datasets, made=MADE, names=("train-00000-of-00001.parquet",)):
    folder.mkdir(parents=True, exist_ok=True)
    each = -(-len(made) // len(names))
    for number, name in enumerate(names):
        part = made[number * each : (number + 1) * each]
        table(datasets, part).to_parquet(str(folder / name))
    return folder


def as_saved(folder, datasets, made=MADE):
    table(datasets, made).save_to_disk(str(folder))
    return folder


def as_metadata_parquet(folder, datasets, made=MADE):
    as_files(folder, made)
    rows = {"file_name": [one.name for one in made], "text": [one.caption for one in made]}
    datasets.Dataset.from_dict(rows).to_parquet(str(folder / "metadata.parquet"))
    return folder


def opened(place, **options):
    return open_source(DataConfig(**{"data": str(place), "size": 64} | options))


def test_equal_content_is_equal_wherever_it_comes_from(tmp_path, datasets):
    two = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet")
    places = {
        "jsonl": as_jsonl(tmp_path / "jsonl", MADE),
        "csv": as_csv(tmp_path / "csv", MADE),
        "txt": as_txt(tmp_path / "txt", MADE),
        "split": as_txt(tmp_path / "split" / "train", MADE).parent,
        "shards": as_shards(tmp_path / "shards", MADE),
        "shards of json": as_shards(tmp_path / "shards-json", MADE, "json"),
        "metadata.parquet": as_metadata_parquet(tmp_path / "metadata", datasets),
        "parquet": as_parquet(tmp_path / "parquet", datasets, names=two),
        "parquet file": as_parquet(tmp_path / "one", datasets) / "train-00000-of-00001.parquet",
        "saved": as_saved(tmp_path / "saved", datasets),
        "arrow": as_saved(tmp_path / "saved2", datasets) / "data-00000-of-00001.arrow",
    }
    sources = {name: opened(place) for name, place in places.items()}
    expected = sources.pop("jsonl")
    for name, source in sources.items():
        assert source.fingerprint == expected.fingerprint, name
        assert len(source) == len(MADE), name
        for index, sample in enumerate(MADE):
            assert source.captions(index) == (sample.caption,), name
            assert source.image(index).tobytes() == expected.image(index).tobytes(), name


def test_arrow_files_of_the_other_kind(tmp_path, datasets):
    pyarrow = pytest.importorskip("pyarrow")
    whole = table(datasets).data.table
    with (
        pyarrow.OSFile(str(tmp_path / "x.arrow"), "wb") as file,
        pyarrow.ipc.new_file(file, whole.schema) as writer,
    ):
        writer.write_table(whole)
    assert (
        opened(tmp_path / "x.arrow").fingerprint == opened(as_txt(tmp_path / "t", MADE)).fingerprint
    )


def test_the_split_that_is_asked_for(tmp_path, datasets):
    as_parquet(tmp_path / "data", datasets, MADE[:4], ["train-0.parquet"])
    as_parquet(tmp_path / "data", datasets, MADE[4:], ["test-0.parquet"])
    assert len(opened(tmp_path)) == 4
    assert len(opened(tmp_path, data_split="test")) == 2


@pytest.mark.parametrize(
    ("columns", "options", "told"),
    [
        ({"image": "photo", "caption": "words"}, {}, "pass --caption-column with one of the colu"),
        ({"image": "photo"}, {"caption_column": "txt"}, "did you mean 'text'?"),
        ({}, {"image_column": "imag"}, "has the columns image, text, width; did you mean 'image'"),
        ({}, {"caption_column": "width"}, "column width holds int, not text"),
    ],
)
def test_columns_that_are_not_there_are_told_with_those_that_are(
    columns, options, told, tmp_path, datasets
):
    table(datasets, **columns).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(InputError) as caught:
        opened(tmp_path / "x.parquet", **options)
    assert told in str(caught.value)


def test_columns_of_other_names(tmp_path, datasets):
    table(datasets, image="photo", caption="words").to_parquet(str(tmp_path / "x.parquet"))
    source = opened(tmp_path / "x.parquet", caption_column="words")
    assert source.captions(2) == (MADE[2].caption,)
    assert source.image(2).size == (64, 64)


def test_pictures_as_plain_bytes_and_several_captions(tmp_path, datasets):
    rows = {"jpg": [one.data for one in MADE], "captions": [[one.caption, "x"] for one in MADE]}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "x.parquet"))
    assert opened(tmp_path / "x.parquet").captions(1) == (MADE[1].caption, "x")


def test_bad_rows_are_named(tmp_path, datasets):
    (tmp_path / "secret.png").write_bytes(MADE[0].data)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "beside.png").write_bytes(MADE[0].data)
    rows = [
        ({"bytes": MADE[0].data, "path": None}, "good"),
        ({"bytes": MADE[1].data, "path": None}, None),
        ({"bytes": MADE[2].data, "path": None}, " "),
        ({"bytes": b"no picture", "path": None}, "x"),
        ({"bytes": None, "path": "beside.png"}, "good"),
        ({"bytes": None, "path": str(folder / "beside.png")}, "good"),
        ({"bytes": None, "path": "../secret.png"}, "x"),
        ({"bytes": None, "path": str(tmp_path / "secret.png")}, "x"),
        ({"bytes": None, "path": "https://localhost/x.png"}, "x"),
        ({"bytes": None, "path": "a\0b"}, "x"),
        ({"bytes": None, "path": None}, "x"),
        (None, "x"),
    ]
    pyarrow = pytest.importorskip("pyarrow")
    columns = pyarrow.table({"image": [row[0] for row in rows], "text": [row[1] for row in rows]})
    from pyarrow.parquet import write_table

    write_table(columns, folder / "x.parquet")
    inspection = inspect(list_data(DataConfig(data=str(folder / "x.parquet"))))
    assert [entry.name for entry in inspection.entries] == ["row 0", "row 4", "row 5"]
    told = {problem.name: problem.reason for problem in inspection.problems}
    expected = {
        1: "no caption", 2: "empty caption", 3: "is not a picture", 6: "does not lie with the data",
        7: "does not lie with the data", 8: "does not lie with the data",
        9: "does not lie with the data", 10: "holds no picture", 11: "holds no picture",
    }  # fmt: skip
    assert told.keys() == {f"row {row}" for row in expected}
    for row, text in expected.items():
        assert text in told[f"row {row}"], row


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
@pytest.mark.parametrize("data", [b"", b"PAR1", b"ARROW1\0\0", b"\x80\x04.", bytes(1000)])
def test_damaged_tables_are_one_line(name, data, tmp_path, datasets):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="cannot be read") as caught:
        opened(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["the end", "a page"])
def test_what_the_libraries_log_of_damage_is_not_shown(place, tmp_path, datasets, caplog, capfd):
    """Our line names the file, and it is the only one."""
    from pyarrow.parquet import write_table

    folder = as_parquet(tmp_path, datasets, names=("train-0.parquet", "train-1.parquet"))
    path = folder / "train-1.parquet"
    write_table(table(datasets).data.table, path, compression="gzip")
    data = path.read_bytes()
    hurt = data[:-40] if place == "the end" else data[:60] + bytes(400) + data[460:]
    path.write_bytes(hurt)
    with pytest.raises(InputError, match="cannot be read") as caught:
        opened(tmp_path)
    assert (str(path) in str(caught.value)) == (place == "the end")
    assert "An error occurred" not in str(caught.value)
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


def test_random_damage_of_arrow_files_is_told_or_harmless(tmp_path, datasets):
    import random

    data = bytearray(
        (as_saved(tmp_path / "s", datasets) / "data-00000-of-00001.arrow").read_bytes()
    )
    draw, path = random.Random(0), tmp_path / "x.arrow"
    for _ in range(40):
        hurt = bytearray(data)
        for _ in range(4):
            hurt[draw.randrange(len(hurt) // 8)] = draw.randrange(256)
        path.write_bytes(hurt)
        try:
            inspect(list_data(DataConfig(data=str(path))))
        except InputError:
            continue


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"")
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'ldm-toolkit\[train\]'"):
        opened(tmp_path / "x.parquet")


# --- the hub ---


class Builder:
    """What `datasets` returns for a data set; its module is its kind."""

    def __init__(self, found):
        self.found, self.prepared = found, False
        self.info = types.SimpleNamespace(splits={"train": None, "test": None})

    def download_and_prepare(self):
        self.prepared = True

    def as_dataset(self, split):
        return self.found[split]


def builder(kind, found):
    made = type("Made", (Builder,), {"__module__": f"datasets.packaged_modules.{kind}.{kind}"})
    return made(found)


def test_a_data_set_of_the_hub(datasets, monkeypatch, tmp_path):
    asked = []

    def load(name, subset, *, revision):
        asked.append((name, subset, revision))
        return builder("parquet", {"train": table(datasets), "test": table(datasets, MADE[:2])})

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    monkeypatch.chdir(tmp_path)
    source = opened("someone/pictures", data_subset="small", data_revision="v1")
    assert asked == [("someone/pictures", "small", "v1")]
    assert source.fingerprint == opened(as_txt(tmp_path / "txt", MADE)).fingerprint
    assert len(opened("someone/pictures", data_split="test")) == 2
    with pytest.raises(InputError, match="has no split 'val', but train, test"):
        opened("someone/pictures", data_split="val")


@pytest.mark.parametrize("kind", ["pandas", "webdataset", "spark", "sql", "hdf5"])
def test_other_kinds_of_data_sets_are_not_prepared(kind, datasets, monkeypatch, tmp_path):
    made = builder(kind, {})
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **k: made)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"of kind {kind}; expected arrow, imagefolder, parquet"):
        opened("someone/pictures")
    assert not made.prepared


def test_what_the_hub_says_is_one_line(datasets, monkeypatch, tmp_path):
    def load(*arguments, **options):
        raise RuntimeError("Dataset 'a/b' doesn't exist\nand more")

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no folder a/b here, and the data set") as caught:
        opened("a/b")
    assert "\n" not in str(caught.value)
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="--data a/b is not a folder"):
        opened("a/b")


def test_shards_and_tables_in_one_folder_are_told_apart(tmp_path):
    as_shards(tmp_path, MADE)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="name the files of one"):
        opened(tmp_path)


def test_rows_that_lie_about_formats(tmp_path, datasets):
    """A picture of another kind is told by its content, whatever its row says."""
    rows = [{"bytes": encoded(noise(1), "GIF"), "path": "a.png"}]
    found = datasets.Dataset.from_dict({"image": rows, "text": ["x"]})
    found.to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(InputError, match="row 0: is not a picture"):
        opened(tmp_path / "x.parquet")
