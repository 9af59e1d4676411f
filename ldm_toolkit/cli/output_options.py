"""The options of ``ldm-gen`` for what it writes."""

import argparse

from ldm_toolkit.files import PICTURE_SUFFIXES

__all__ = ["FORMATS", "add_output_options"]

FORMATS = tuple(dict.fromkeys(PICTURE_SUFFIXES.values()))


def add_output_options(group: argparse._ArgumentGroup) -> None:
    """Where pictures go, and what is told about them."""
    group.add_argument(
        "-o",
        "--output",
        metavar="FILE.png|FOLDER/",
        help="where to put the picture (default: PROMPT-SEED.png in the current folder)",
    )
    group.add_argument(
        "--format",
        metavar="|".join(FORMATS),
        help="of the picture's file; png and webp are lossless, jpg has quality 95 "
        "(default: what -o ends in, or png; with --replay the picture's own)",
    )
    group.add_argument(
        "--strip-metadata",
        dest="strip",
        action="store_true",
        help="leave out how the picture was made; only the note that a model made it stays",
    )
    group.add_argument("--overwrite", action="store_true", help="replace files that exist")
    group.add_argument(
        "--save-intermediates",
        dest="every",
        metavar="EVERY",
        help="also write what the model sees at each EVERY-th step, and a contact sheet, "
        "into PICTURE-steps/",
    )
    group.add_argument(
        "--preview-vae",
        metavar="FOLDER|FILE",
        help="a small decoder (diffusers' AutoencoderTiny, such as TAESD) that draws the "
        "intermediates in place of the model's VAE, in a fraction of its time",
    )
    group.add_argument(
        "--profile",
        metavar="FILE.json",
        help="tell where the time went since the command began, as a table on stderr and in a file",
    )
    group.add_argument(
        "--trace",
        metavar="FILE.json",
        help="record every operation of the first picture for Perfetto and other viewers of "
        "chrome's traces; a few --steps say enough, and drawing is slower meanwhile",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print a line of JSON a picture: path, seed, recipe, seconds",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print as JSON what would be done, with the values that the model "
        "gives where you said nothing, and do nothing",
    )
    group.add_argument("--quiet", action="store_true", help="no progress; errors only")
