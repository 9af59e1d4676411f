"""Runs training scripts in forks of a process that has imported everything but computed nothing.

A line of JSON on stdin starts a script; the answers on stdout are its process id and, when it has
ended, its exit code (negative for a signal). ``die`` = [module, function, n] makes the process
kill itself with SIGKILL at the n-th call of that function: a kill at a known place. ``limit`` is
the most bytes that a file may get; ``full`` = [folder, n] fills the folder's disk up after n files
or folders: both as on a disk without room.
"""

import errno
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import traceback
from collections.abc import Sequence

import torch

PRELOADED = (
    "ldm_toolkit.training.run",
    "ldm_toolkit.training.methods.dreambooth",
    "ldm_toolkit.training.methods.full",
    "ldm_toolkit.training.methods.lora",
    "ldm_toolkit.training.methods.textual_inversion",
    "ldm_toolkit.training.text",
    "ldm_toolkit.pipeline",
    "peft",
    "diffusers.schedulers.scheduling_ddpm",
    "diffusers.schedulers.scheduling_pndm",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)


def die_at(module: str, name: str, number: int) -> None:
    """Replace a function by one that ends this process at its n-th call."""
    home = importlib.import_module(module)
    real, calls = getattr(home, name), [0]

    def counting(*arguments: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(home, name, counting)


def fill_up(folder: str, number: int) -> None:
    """From now on let this process make ``number`` files and folders below ``folder``, no more."""
    count = [0]

    def watch(event: str, arguments: tuple) -> None:
        made = event == "os.mkdir" or (event == "open" and (arguments[2] or 0) & os.O_ACCMODE)
        if made and str(arguments[0]).startswith(folder):
            count[0] += 1
            if count[0] > number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])

    sys.addaudithook(watch)


def run(
    script: str,
    words: list[str],
    out: str,
    err: str,
    die: Sequence | None,
    report: str | None,
    limit: int | None,
    full: Sequence | None,
) -> int:
    """The script in this process, with its streams; its exit code. ``report`` names a function."""
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT, 0o600), 1)
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if die is not None:
        die_at(*die)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if full is not None:
        fill_up(*full)
    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:  # noqa: BLE001 - the answer is the exit code
        traceback.print_exc()
        return 99
    finally:
        if report is not None:
            module, name = report.rsplit(".", 1)
            print(f"{report}: {getattr(sys.modules[module], name)()}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is pytest's
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = run(**json.loads(line))
            finally:
                os._exit(code)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
