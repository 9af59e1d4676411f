"""What ``ldm-gen`` tells of a run beside its pictures: intermediates, --profile, --trace."""

import argparse
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ldm_toolkit.cli.problems import Problems
from ldm_toolkit.errors import CannotWrite, UserError
from ldm_toolkit.models.preview_vae import check_preview_vae

__all__ = ["Reports", "check_reports"]


@dataclass(frozen=True, kw_only=True)
class Reports:
    """Checked places; None for what was not asked for."""

    preview_vae: str | None
    profile: Path | None
    trace: Path | None


def check_reports(arguments: argparse.Namespace, problems: Problems) -> Reports:
    """Look at --preview-vae, --profile and --trace, and note what is wrong."""
    found: dict[str, Path | None] = dict.fromkeys(("profile", "trace"))
    given = [name for name in found if getattr(arguments, name) is not None]
    for name in given:
        with problems.collected():
            found[name] = _file(f"--{name}", getattr(arguments, name), arguments.overwrite)
    if given and (arguments.dry_run or arguments.show_tokens):
        problems.errors.append(UserError(f"--{given[0]} is for pictures that are drawn"))
    if len(given) == 2 and found["profile"] == found["trace"] is not None:
        problems.errors.append(UserError("--profile and --trace are two files; name another one"))
    if arguments.preview_vae is not None:
        if arguments.every is None:
            problems.errors.append(
                UserError("--preview-vae draws intermediates; add --save-intermediates EVERY")
            )
        with problems.collected():
            check_preview_vae(Path(arguments.preview_vae))
    return Reports(preview_vae=arguments.preview_vae, **found)


def _file(option: str, text: str, overwrite: bool) -> Path:
    """The place of a report. Raises UserError and CannotWrite."""
    path = Path(text)
    if path.suffix.lower() != ".json" or re.search(r"[\0-\x1f\x7f]", text):
        raise UserError(f"{option} {text!r:.120}: say FILE.json")
    try:
        if path.is_dir() or (os.path.lexists(path) and not overwrite):
            raise UserError(f"{option}: {path} exists already; choose another name")
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise CannotWrite(f"{option}: cannot write {path}: {error.strerror or error}") from error
