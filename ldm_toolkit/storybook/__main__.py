"""`python -m ldm_toolkit.storybook`: data sets and contact sheets of the storybook world."""

import argparse
import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ldm_toolkit import errors, files
from ldm_toolkit.storybook import METADATA, scenes

SHEET_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": tuple(scenes.SUBJECTS),
    "accessory": tuple(scenes.ACCESSORIES),
    "colour": tuple(scenes.COLOURS),
    "setting": tuple(scenes.SETTINGS),
    "weather": tuple(scenes.WEATHERS),
    "place": tuple(scenes.PLACES),
    "size": tuple(scenes.SIZES),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit code is 0, 2 (wrong use) or 74 (cannot write)."""
    try:
        options = _parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], Path] = options.run
        sys.stdout.write(f"{run(options)}\n")
    except errors.LdmToolkitError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like those of the rest of the package."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise errors.UserError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m ldm_toolkit.storybook", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="render|sheet")
    render = commands.add_parser("render", help="write an imagefolder data set")
    render.set_defaults(run=_render)
    render.add_argument("--count", type=_number(1), default=1000, help="pictures (%(default)s)")
    render.add_argument("--size", type=_number(8), default=512, help="pixels (%(default)s)")
    render.add_argument("--out", type=Path, required=True, help="the folder to write")
    render.add_argument("--overwrite", action="store_true", help="replace a folder with pictures")
    sheet = commands.add_parser("sheet", help="write a contact sheet as one PNG")
    sheet.set_defaults(run=_sheet)
    sheet.add_argument("--out", type=Path, required=True, help="the PNG to write")
    sheet.add_argument("--by", choices=tuple(SHEET_ATTRIBUTES), default="subject",
                       help="one row for each of these (%(default)s)")  # fmt: skip
    sheet.add_argument("--tile", type=_number(8), default=128, help="pixels (%(default)s)")
    sheet.add_argument("--columns", type=_number(1), default=10, help="tiles a row (%(default)s)")
    for command in (render, sheet):
        command.add_argument("--seed", type=int, default=0, help="the same seed: the same bytes")
        command.add_argument("--split", choices=scenes.SPLITS,
                             default="train" if command is render else "all",
                             help="which compositions (%(default)s)")  # fmt: skip
    return parser


def _number(least: int) -> Callable[[str], int]:
    """A parser of whole numbers of at least `least`."""

    def whole_number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {least}")
        return int(text)

    return whole_number


def _render(options: argparse.Namespace) -> Path:
    """Write `count` pictures and metadata.jsonl, which comes last: with it the set is whole."""
    folder: Path = options.out
    _prepare(folder, options.overwrite)
    lines = []
    for index in range(options.count):
        scene = scenes.sample_scene(options.seed, index, options.split)
        said = scenes.caption(scene, options.seed)
        name = f"{index:06d}.png"
        files.write_atomic(folder / name, _png(scene, options.size))
        row = {"file_name": name, "text": said.text, "mentions": sorted(said.mentions)}
        lines.append(json.dumps(row | asdict(scene), sort_keys=False))
        if (index + 1) % 100 == 0 or index + 1 == options.count:
            sys.stderr.write(f"\r{index + 1}/{options.count} pictures")
            sys.stderr.flush()
    sys.stderr.write("\n")
    files.write_atomic(folder / METADATA, ("\n".join(lines) + "\n").encode())
    return folder


def _prepare(folder: Path, overwrite: bool) -> None:
    """Make the folder; what an earlier run wrote there goes only with `overwrite`."""
    try:
        if folder.exists() and not folder.is_dir():
            raise errors.UserError(f"--out {folder} is a file: expected a folder")
        if folder.exists() and any(folder.iterdir()):
            if not overwrite:
                raise errors.UserError(
                    f"--out {folder} is not empty: choose another folder or pass --overwrite"
                )
            if not (folder / METADATA).is_file():
                raise errors.UserError(
                    f"--out {folder} holds no {METADATA}: --overwrite replaces data sets only"
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.CannotWrite(f"cannot write {folder}: {error.strerror}") from error


def _sheet(options: argparse.Namespace) -> Path:
    """Draw a row of pictures for each value of an attribute; the rest comes from the seed."""
    from PIL import Image

    from ldm_toolkit.storybook import render

    values, tile = SHEET_ATTRIBUTES[options.by], options.tile
    picture = Image.new("RGB", (options.columns * tile, len(values) * tile))
    for row, value in enumerate(values):
        index = -1
        for column in range(options.columns):
            index += 1
            scene = scenes.sample_scene(options.seed, index, options.split)
            while getattr(scene, options.by) != value:
                index += 1
                scene = scenes.sample_scene(options.seed, index, options.split)
            picture.paste(render.render(scene, tile), (column * tile, row * tile))
    data = io.BytesIO()
    picture.save(data, "PNG")
    files.write_atomic(options.out, data.getvalue())
    return options.out


def _png(scene: scenes.Scene, size: int) -> bytes:
    """The bytes of the picture's file, the same on every run."""
    from ldm_toolkit.storybook import render

    data = io.BytesIO()
    render.render(scene, size).save(data, "PNG", compress_level=3)
    return data.getvalue()


if __name__ == "__main__":
    sys.exit(main())
