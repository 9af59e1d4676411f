"""The options of ``ldm-eval``: those of its measures, the picture's and the model's of ldm-gen."""

import argparse
from collections.abc import Iterable, Sequence

from ldm_toolkit.cli.measures import MEASURES, Option
from ldm_toolkit.cli.options import (
    Parser,
    Print,
    add_machine_options,
    add_picture_options,
    versions,
)
from ldm_toolkit.errors import UserError, suggestion

__all__ = ["build_parser", "own_options", "parse"]

_EXAMPLES = """\
examples:
  ldm-eval adherence --model storybook --prompts 500 --seed 0     pictures are drawn, then judged
  ldm-eval fid kid clip --images mine/ --reference photos/ --features inception \\
      --inception-weights pt_inception-2015-12-05-6726825d.pth --clip-model clip/
  ldm-eval recon --images photos/ --model ./my-model --size 512
  ldm-eval nll --images photos/ --timesteps 1000 --dtype float32
  ldm-eval compare storybook storybook,lora=mine.safetensors:0.8,steps=20 --prompts 100
  ldm-eval speed --against diffusers --steps 20
  torchrun --nproc_per_node 2 -m ldm_toolkit.cli.evaluate fid ...   processes share the work

Without --seed the seed is 0, so that the same command measures the same; it carries on what was
interrupted. Scores stand on stdout as a table (or as JSON with --json) and in OUTPUT/scores.json,
with all that makes them comparable.

exit codes: 0 done, 1 failed, 2 wrong use or bad input, 74 cannot write, 129, 130, 143 stopped
"""

_COLUMNS = {
    "--image-column": "column of the pictures in tables; found by itself where it has a usual name",
    "--caption-column": "column of the captions, or their key in the .json of shards; as above",
    "--data-split": "split of a data set that has several (default: train)",
}


def build_parser() -> Parser:
    """The parser of ``ldm-eval``. Values stay text: `check` reads them, to report all at once."""
    measures = "\n".join(f"  {name:<12}{row.about}" for name, row in MEASURES.items())
    alone = [
        f"       ldm-eval {' '.join((name, *row.operands))} [options]\n"
        for name, row in MEASURES.items()
        if row.alone
    ]
    parser = Parser(
        prog="ldm-eval",
        usage="ldm-eval MEASURE [MEASURE ...] --images PLACE [options]\n"
        "       ldm-eval MEASURE [MEASURE ...] --prompts N|FILE [options]\n" + "".join(alone),
        description=f"Measure pictures and models, each score with its error bar.\n\nmeasures:\n"
        f"{measures}",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("words", metavar="MEASURE", nargs="*", help="what to measure, see above")
    parser.set_defaults(prompt=None, strength=None)  # what ldm-gen takes and this does not
    _add_sources(parser.add_argument_group("which pictures"))
    own = parser.add_argument_group("of single measures")
    for option in own_options(MEASURES):
        _add_option(own, option)
    add_picture_options(parser.add_argument_group("how pictures are drawn"))
    add_machine_options(parser.add_argument_group("model and machine"))
    _add_output(parser.add_argument_group("output"))
    return parser


def own_options(measures: Iterable[str]) -> list[Option]:
    """The options of measures, each once."""
    found = [option for name in measures for option in MEASURES[name].options]
    return list(dict.fromkeys(found))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Take the words apart; ``measures`` and ``operands`` are settled, no value is looked at yet.

    Raises UserError.
    """
    parser = build_parser()
    parser.refuse_unknown(arguments)
    namespace = parser.parse_intermixed_args(list(arguments))
    words: list[str] = namespace.words
    if not words:
        raise UserError(f"say what to measure: {', '.join(MEASURES)} (--help shows more)")
    first = MEASURES.get(words[0])
    if first is not None and first.alone:
        namespace.measures, namespace.operands = words[:1], words[1:]
        if len(namespace.operands) != len(first.operands):
            wanted = " ".join(first.operands) or "no further words"
            raise UserError(f"ldm-eval {words[0]} takes {wanted}, not {' '.join(words[1:])!r}")
        return namespace
    for word in words:
        if word not in MEASURES:
            raise UserError(
                f"unknown measure {word!r:.80}; expected some of {', '.join(MEASURES)}"
                f"{suggestion(word, MEASURES)}"
            )
        if MEASURES[word].alone:
            raise UserError(f"{word} is measured alone: ldm-eval {word} ...")
    namespace.measures, namespace.operands = list(dict.fromkeys(words)), []
    return namespace


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    """An option of a measure; which ones have it stands in its help."""
    users = [name for name, row in MEASURES.items() if option in row.options]
    about = f"{option.about} ({', '.join(users)})"
    if option.kind is bool:
        group.add_argument(option.flag, dest=option.name, action="store_true", help=about)
        return
    if option.default is not None:
        about += f" (default: {option.default})"
    metavar = option.metavar or {int: "N", float: "X"}.get(option.kind, "TEXT")
    default = None if option.default is None else str(option.default)
    group.add_argument(
        option.flag,
        dest=option.name,
        default=default,
        metavar=metavar,
        help=about.replace("%", "%%"),
    )


def _add_sources(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--images",
        metavar="PLACE",
        help="pictures that are there: a folder, shards (.tar), tables (.parquet, .arrow), "
        "owner/name of a data set on the hub, or storybook for scenes that are rendered",
    )
    group.add_argument(
        "--prompts",
        metavar="N|FILE",
        help="pictures that --model draws into OUTPUT/pictures: N held-out captions of the "
        "storybook world, or a prompt file as ldm-gen takes it",
    )
    group.add_argument(
        "--reference",
        metavar="PLACE",
        help="what the pictures are compared with, as for --images",
    )
    group.add_argument(
        "--count",
        metavar="N",
        help="look at the first N pictures of each place only (default: all; 500 of storybook, or "
        "as many as there are on the other side)",
    )
    group.add_argument(
        "--size",
        metavar="PIXELS",
        help="bring pictures of --images and --reference to squares first: shrunk with Lanczos's "
        "filter, cut in the middle (default: as they are)",
    )
    for option, what in _COLUMNS.items():
        group.add_argument(option, metavar="NAME", help=what)
    group.add_argument(
        "--per-prompt",
        metavar="K",
        default="1",
        help="draw K pictures of each prompt; adherence is of the first and tells the diversity of "
        "the K (default: 1)",
    )
    group.add_argument(
        "--batch-size",
        metavar="N",
        default="1",
        help="pictures that are drawn at once (default: 1)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-o",
        "--output",
        metavar="FOLDER/",
        help="for pictures, features and scores (default: ldm-eval-... by what is measured, so "
        "that the same command goes on)",
    )
    group.add_argument("--json", action="store_true", help="print scores.json, not the table")
    group.add_argument("--quiet", action="store_true", help="no progress; errors only")
    group.add_argument("-h", "--help", action="help", help="show this and exit")
    group.add_argument("--version", action=Print, text=versions, help="versions in use")
    group.add_argument("--debug", action="store_true", help="tracebacks and library warnings")
