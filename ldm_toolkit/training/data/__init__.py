"""Pictures with captions from folders, shards, tables and the hub, or drawn on the fly.

``places`` finds out what ``--data`` names and lists it, ``inspection`` looks at every picture once,
``report`` says what was found, ``source`` gives pictures by index. No torch.
"""

import logging
import sys
from pathlib import Path

from ldm_toolkit.errors import InputError
from ldm_toolkit.training.config import DataConfig
from ldm_toolkit.training.data.geometry import Geometry
from ldm_toolkit.training.data.inspection import inspect, refuse_bad
from ldm_toolkit.training.data.places import list_data
from ldm_toolkit.training.data.report import Plan, TokenCounts, report_text
from ldm_toolkit.training.data.source import ImageFolder, Pictures, Source
from ldm_toolkit.training.data.storybook import StorybookScenes
from ldm_toolkit.values import counted

__all__ = [
    "ImageFolder",
    "Plan",
    "Source",
    "StorybookScenes",
    "TokenCounts",
    "check_data",
    "open_source",
]

logger = logging.getLogger(__name__)
_STORYBOOK = "storybook"


def open_source(
    config: DataConfig,
    *,
    captions: int = 1,
    seed: int = 0,
    plan: Plan | None = None,
    memory: Path | None = None,
    quiet: bool = False,
    caption: str | None = None,
    masks: bool = False,
) -> Source:
    """The source that ``--data`` names, after a look at every picture and a report of it.

    ``captions`` and ``seed`` are those of drawn scenes. ``memory`` is a file in which looking is
    remembered; ``quiet`` is for all processes but the first, which find the same. ``caption`` is
    that of all pictures of a folder, "" for none; with ``masks`` their masks are read too. Raises
    InputError for bad pictures unless ``--skip-bad`` leaves them out.
    """
    if _drawn(config, caption, masks):
        return StorybookScenes(config.count, config.size, captions, seed)
    plan = plan if plan is not None else Plan(Geometry.square(config.size))
    inspection = inspect(list_data(config, caption, masks=masks), memory, remember=not quiet)
    refuse_bad(inspection, skip_bad=config.skip_bad, max_bad=config.max_bad)
    if not quiet:
        logger.info("%s", report_text(inspection, plan))
        if inspection.problems:
            bad = counted(len(inspection.problems), "bad picture")
            logger.warning("left out: the %s above", bad)
    return Pictures(inspection, plan.geometry)


def _drawn(config: DataConfig, caption: str | None, masks: bool) -> bool:
    """Whether ``--data`` means scenes that are drawn. Raises InputError where masks are wanted."""
    drawn = config.data == _STORYBOOK and caption is None
    if drawn and masks:
        raise InputError("--masked-loss needs masks, which the scenes of storybook have none of")
    return drawn


def check_data(
    config: DataConfig, plan: Plan, *, caption: str | None = None, masks: bool = False
) -> None:
    """Write the report of ``--check-data`` to stdout. Raises InputError where a picture is bad."""
    if _drawn(config, caption, masks):
        sys.stdout.write(f"{config.count} scenes are drawn on the fly; nothing can be bad\n")
        return
    inspection = inspect(list_data(config, caption, masks=masks))
    sys.stdout.write(report_text(inspection, plan, readable=True) + "\n")
    sys.stdout.flush()
    if inspection.problems:
        found = counted(inspection.found, "picture")
        raise InputError(f"bad: {len(inspection.problems)} of {found}; see the report")
    refuse_bad(inspection, skip_bad=False, max_bad=0.0)
