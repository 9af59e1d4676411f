"""Prompt files: what is read, and every bad row at once."""

import contextlib
import io
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm_toolkit.errors import InputError
from ldm_toolkit.promptfile import COLUMNS, read_rows


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def options(rows: list) -> list[dict[str, Any]]:
    names = ("prompt", "steps", "seed", "guidance")
    return [{name: getattr(row.options, name) for name in names} for row in rows]


class TestFormats:
    def test_text(self, tmp_path: Path) -> None:
        file = write(tmp_path / "p.txt", "\ufeffa dog\r\n\r\n  a cat, {x}  \n# a hat\nno end")
        rows = read_rows(file, {"steps": 7})
        assert [row.options.prompt for row in rows] == ["a dog", "a cat, {x}", "# a hat", "no end"]
        assert {row.options.steps for row in rows} == {7}
        assert {row.options.seed for row in rows} == {None}

    def test_the_same_rows_in_every_format(self, tmp_path: Path) -> None:
        table = [
            {"prompt": 'a "red", dog', "steps": 5, "seed": 0},
            {"prompt": "a cat", "guidance": 1.5},
            {"prompt": "狗\u2028x", "steps": 1, "seed": 9, "guidance": 0.0},
        ]
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in table)
        cells = (
            'prompt,steps,seed,guidance\n"a ""red"", dog",5,0,\na cat,,,1.5\n狗\u2028x,1,9,0.0\n'
        )
        expected = options(read_rows(write(tmp_path / "p.jsonl", lines), {}))
        assert [row["prompt"] for row in expected] == [row["prompt"] for row in table]
        assert [row["seed"] for row in expected] == [0, None, 9]
        assert [row["guidance"] for row in expected] == [7.5, 1.5, 0.0]
        assert options(read_rows(write(tmp_path / "p.csv", cells), {})) == expected

    def test_what_a_spreadsheet_adds(self, tmp_path: Path) -> None:
        file = write(tmp_path / "p.csv", "prompt,steps,,\na dog,5,,\na cat,, ,\n,,,\n")
        with pytest.raises(InputError, match=r"^1 bad row: p\.csv:4: no prompt$"):
            read_rows(file, {})
        rows = read_rows(write(file, "prompt,steps,,\na dog,5,,\na cat,, ,\n"), {"steps": 9})
        assert [row.options.steps for row in rows] == [5, 9]

    def test_parquet(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow", reason="reads .parquet; extra of its own")
        from pyarrow import parquet

        table = pyarrow.table({"prompt": ["a dog", "a cat"], "seed": [3, None]})
        parquet.write_table(table, tmp_path / "p.parquet")
        assert [row["seed"] for row in options(read_rows(tmp_path / "p.parquet", {}))] == [3, None]

    @pytest.mark.parametrize("text", ["a dog\na cat\n", '{"prompt": "a dog"}\n{"text": "a cat"}\n'])
    def test_stdin(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert [row.options.prompt for row in read_rows("-", {})] == ["a dog", "a cat"]

    def test_every_option_is_a_column(self, tmp_path: Path) -> None:
        Image.new("RGB", (8, 8), "red").save(tmp_path / "in.png")
        row = {
            "prompt": "a", "negative": "b", "steps": 3, "guidance": 2, "seed": 4, "width": 64,
            "height": 72, "scheduler": "Euler a", "guidance_rescale": 0.5, "eta": 0.1,
            "guidance_interval": [0.1, 0.9], "clip_skip": 1, "strength": 0.4, "speed": "fast",
            "reuse_every": 2, "reuse_depth": 1, "reuse_power": 1.5,
            "gate": 0.5, "attention_every": 2,
            "image": "in.png", "mask": "in.png",
        }  # fmt: skip
        assert {"negative_prompt" if key == "negative" else key for key in row} == set(COLUMNS)
        (found,) = read_rows(write(tmp_path / "p.jsonl", json.dumps(row)), {"steps": 9})
        assert found.options.scheduler == "euler_a"
        assert found.options.steps == 3
        assert found.options.guidance_interval == (0.1, 0.9)
        assert found.image == tmp_path / "in.png"
        assert found.image_sha256 == found.mask_sha256
        cells = 'prompt,guidance_interval\na,"0.1,0.9"\n'
        (found,) = read_rows(write(tmp_path / "p.csv", cells), {})
        assert found.options.guidance_interval == (0.1, 0.9)

    @pytest.mark.parametrize(
        ("column", "cell", "field", "value"),
        [
            ("negative", "rain", "negative_prompt", "rain"),
            ("negative-prompt", "rain", "negative_prompt", "rain"),
            ("guidance_scale", "3.5", "guidance", 3.5),
            ("cfg_scale", "3.5", "guidance", 3.5),
            ("num_inference_steps", "3", "steps", 3),
            ("sampler", "Euler a", "scheduler", "euler_a"),
            ("clip-skip", "1", "clip_skip", 1),
            ("dim", "256", "width", 256),
            ("dim", "256", "height", 256),
        ],
    )
    def test_other_names_of_columns(
        self, column: str, cell: str, field: str, value: Any, tmp_path: Path
    ) -> None:
        defaults = {"width": 64, "height": 64, "negative_prompt": "x"}
        csv = write(tmp_path / "p.csv", f"prompt,{column}\na dog,{cell}\n")
        typed = value if field != "scheduler" else cell
        jsonl = write(tmp_path / "p.jsonl", json.dumps({"prompt": "a dog", column: typed}))
        for file in (csv, jsonl):
            (row,) = read_rows(file, defaults)
            assert getattr(row.options, field) == value


BAD_ROWS: list[tuple[bytes, str]] = [
    (b'{"prompt": "a"', "not JSON"),
    (b'["a"]', "expected an object, found list"),
    (b'"a"', "expected an object, found str"),
    (b'{"steps": 3}', "no prompt"),
    (b'{"prompt": "   "}', "no prompt"),
    (b'{"prompt": "a", "seed": NaN}', "seed must be"),
    (b'{"prompt": "a", "steps": -1}', "steps must be"),
    (b'{"prompt": "a", "steps": "5"}', "steps must be"),
    (b'{"prompt": "a", "width": 513}', "width must be a multiple of 8"),
    (b'{"prompt": "a", "scheduler": "eulr"}', "did you mean 'euler'"),
    (b'{"prompt": "a", "guidence": 5}', "unknown column 'guidence'; did you mean 'guidance'"),
    (b'{"prompt": "a", "steps": {"n": 5}}', "steps must be"),
    (b'{"prompt": ["a"]}', "prompt must be text"),
    (b'{"prompt": "' + b"x" * 1_000_000 + b'"}', "more than 32000 characters"),
    (b'{"prompt": "a\xff"}', "not UTF-8"),
    (b'{"prompt": "a\x00b"}', "NUL"),
    (b'{"prompt": "a", "image": "none.png"}', "none.png"),
    (b'{"prompt": "a", "mask": "none.png"}', "need an image"),
    (b'{"prompt": "a", "strength": 0.5}', "need an image"),
    (b'{"prompt": "a", "text": "b"}', "prompt is given twice"),
    (b'{"prompt": "a", "dim": 64, "height": 64}', "dim sets width and height: leave those away"),
    (b'{"prompt": "a", "dim": 65}', "width must be a multiple of 8"),
    (b'{"prompt": "a", "dime": 64}', "did you mean 'dim'?"),
    (b"[" * 100_000, "not JSON"),
]


class TestMistakes:
    @pytest.mark.parametrize(("line", "told"), BAD_ROWS, ids=[told for _, told in BAD_ROWS])
    def test_each_kind(self, line: bytes, told: str, tmp_path: Path) -> None:
        file = write(tmp_path / "p.jsonl", b'{"prompt": "good"}\n' + line + b"\n")
        with pytest.raises(InputError) as caught:
            read_rows(file, {})
        assert str(caught.value).startswith("1 bad row: p.jsonl:2: ")
        assert told in str(caught.value)
        assert len(str(caught.value)) < 600

    def test_a_thousand_rows_of_which_37_are_bad(self, tmp_path: Path) -> None:
        draw = random.Random(0)
        places = sorted(draw.sample(range(1000), 37))
        lines = [json.dumps({"prompt": f"a dog {n}", "seed": n}).encode() for n in range(1000)]
        for place in places:
            lines[place] = draw.choice(BAD_ROWS)[0]
        with pytest.raises(InputError) as caught:
            read_rows(write(tmp_path / "p.jsonl", b"\n".join(lines)), {})
        message = str(caught.value)
        assert message.startswith("37 bad rows: ")
        assert "; and 17 more" in message
        named = [int(number) for number in re.findall(r"p\.jsonl:(\d+): ", message)]
        assert len(named) == 20
        assert set(named) <= {place + 1 for place in places}
        for place in places:
            lines[place] = b""
        assert len(read_rows(write(tmp_path / "p.jsonl", b"\n".join(lines)), {})) == 963

    @pytest.mark.parametrize(
        ("name", "content", "told"),
        [
            ("p.txt", "", "holds no prompt"),
            ("p.txt", "\n \n", "holds no prompt"),
            ("p.txt", "a dog".encode("utf-16"), "UTF-16"),
            ("p.jsonl", '{"prompt": "a long enough row"}'.encode("utf-16-le"), "UTF-16"),
            ("p.md", "a", "expected a .txt"),
            ("p", "a", "expected a .txt"),
            ("p.csv", "steps\n5\n", "must name the columns, with prompt"),
            ("p.csv", "prompt,steps\na\n", "1 cell under 2 columns"),
            ("p.csv", 'prompt\n"a\n', "p.csv"),
            ("p.csv", "prompt,stepz\na,5\n", "did you mean 'steps'"),
            ("p.csv", "prompt,steps\na,five\n", "steps must be"),
            ("p.csv", "prompt,format\na,png\n", "p.csv:1: unknown column 'format' (columns are pr"),
            ("p.csv", "prompt,stepz\na,\nb,\n", "1 bad row: p.csv:1: unknown column 'stepz'"),
            ("p.csv", "prompt,,\na,,x\n", "1 bad row: p.csv:2: 'x' stands in a column without a"),
            ("p.jsonl", '{"prompt": "a", "stepz": null}', "unknown column 'stepz'; did you mean"),
            ("p.parquet", "no parquet", "p.parquet"),
        ],
    )
    def test_files(self, name: str, content: str | bytes, told: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=re.escape(told)) as caught:
            read_rows(write(tmp_path / name, content), {})
        assert "\n" not in str(caught.value)

    def test_one_kind_of_mistake_hides_no_other(self, tmp_path: Path) -> None:
        row = {
            "steps": 0, "width": 513, "height": "x", "scheduler": "eulr", "stepz": 4, "seed": -1,
            "mask": "none.png", "guidance": 5,
        }  # fmt: skip
        lines = [json.dumps(row), json.dumps({"prompt": "(a:200)", "width": 20, "eta": 2})]
        file = write(tmp_path / "p.jsonl", "\n".join(lines))
        with pytest.raises(InputError) as caught:
            read_rows(file, {"strength": 0.5})
        first, second = str(caught.value).split("p.jsonl:2: ")
        told = [
            "unknown column 'stepz'; did you mean 'steps'?",
            "no prompt",
            "mask and strength need an image",
            "cannot read",
            "steps must be a whole number from 1",
            "height must be a whole number",
            "seed must be",
            "did you mean 'euler'?",
            "width must be a multiple of 8; the nearest is 512",
        ]
        assert [text for text in told if text not in first] == []
        assert "guidance" not in first
        assert "width must be a multiple of 8; the nearest is 16" in second
        assert "eta must be" in second

    def test_a_column_that_there_is_not_is_told_once_in_parquet(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow", reason="reads .parquet; extra of its own")
        from pyarrow import parquet

        table = pyarrow.table({"prompt": ["a", "b"], "stepz": pyarrow.nulls(2), "seed": [-1, 2]})
        parquet.write_table(table, tmp_path / "p.parquet")
        with pytest.raises(InputError) as caught:
            read_rows(tmp_path / "p.parquet", {})
        assert str(caught.value).startswith("2 bad rows: p.parquet: unknown column 'stepz'; did")
        assert "p.parquet:1: seed must be" in str(caught.value)

    def test_no_file(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.txt", tmp_path):
            with pytest.raises(InputError):
                read_rows(path, {})

    def test_bad_bytes(self, tmp_path: Path) -> None:
        draw = np.random.default_rng(0)
        good = b'{"prompt": "a dog", "seed": 5, "steps": 3}\n{"prompt": "a cat"}\n'
        for number in range(200):
            data = bytearray(good)
            for place in draw.integers(0, len(data), 3):
                data[place] = int(draw.integers(0, 256))
            file = write(tmp_path / f"{number}.jsonl", bytes(data))
            with contextlib.suppress(InputError):  # nothing else
                read_rows(file, {})
