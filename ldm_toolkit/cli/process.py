"""What every command does around its work: signals, errors as one line, quiet libraries."""

import atexit
import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from ldm_toolkit.allocation import keep_freed_memory
from ldm_toolkit.cli.terminal import Stop, Stopped, called, note, stoppable
from ldm_toolkit.errors import LdmToolkitError, is_out_of_memory

__all__ = ["prepare_process", "run_command"]


def run_command(
    program: str, argv: Sequence[str] | None, work: Callable[[list[str], Stop, bool], int]
) -> int:
    """Run a command with ``argv`` (default: the process's own) and return its exit code.

    ``work`` gets the arguments, what stops it between two steps, and whether ``--debug`` is among
    them. Whatever it raises becomes a line on stderr that begins with ``program``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in ours
    with called(program), stoppable() as stop:
        try:
            return work(arguments, stop, debug)
        except SystemExit as exit_:  # --help, --version, --list-...
            return exit_.code if isinstance(exit_.code, int) else 0
        except (Stopped, KeyboardInterrupt):
            note("stopped")
            return stop.code or 130
        except Exception as error:  # noqa: BLE001 - the last place where it can become one line
            if stop.code is not None:  # a library made another error of the signal
                note("stopped")
                return stop.code
            if debug:
                traceback.print_exc()
            return _report(error, debug=debug)


def _report(error: Exception, *, debug: bool) -> int:
    """Say what happened in one line; return the exit code."""
    if isinstance(error, LdmToolkitError):
        code, text = error.exit_code, str(error)
    elif is_out_of_memory(error):
        code = 1
        text = (
            "out of memory; try a smaller --width and --height (or --dim), --dtype bfloat16, "
            "or --device cpu"
        )
    else:
        code, text = 1, f"unexpected {type(error).__name__}: {error}"
        if not debug:
            text += "; run again with --debug for the traceback"
    note(f"error: {text}")
    return code


def prepare_process(
    program: str, *, online: bool, threads: int | None, told: int | None, debug: bool
) -> None:
    """Settle what libraries read when they are imported: no network, no code of strangers.

    ``told`` is the level from which the package's own log is shown, None for --quiet.
    """
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Waiting threads that spin take the cores from what else runs: 98 s for a picture, not 11.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    # On its way out Python looks through all that the libraries made for garbage, for a second.
    atexit.register(gc.freeze)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if debug:
        logging.basicConfig(level=logging.INFO)
        return
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler says when it starts
    os.environ["TRANSFORMERS_VERBOSITY"] = os.environ["DIFFUSERS_VERBOSITY"] = "error"
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.ERROR, format=f"{program}: %(message)s")
    if told is not None:
        logging.getLogger("ldm_toolkit").setLevel(told)
