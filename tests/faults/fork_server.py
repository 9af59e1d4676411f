"""Runs ``ldm-gen`` in forks of a process that has imported everything but computed nothing.

A fork of the test process itself would inherit thread pools that do not survive one. A line of
JSON on stdin starts a command ({"words", "out", "err", "limit"}); the answers on stdout are its
process id and, when it has ended, its exit code (negative for a signal).
"""

import importlib
import json
import os
import resource
import signal
import sys

import torch

from ldm_toolkit.cli.generate import main

PRELOADED = (
    "ldm_toolkit.jobs",
    "ldm_toolkit.pipeline",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_pndm",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)


def run(words: list[str], out: str, err: str, limit: int | None) -> int:
    """The command in this process, with its streams and at most ``limit`` bytes a file."""
    os.dup2(os.open(out, os.O_WRONLY), 1)
    os.dup2(os.open(err, os.O_WRONLY), 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    for number in (signal.SIGINT, signal.SIGTERM):  # for the moment after the command's own end
        signal.signal(number, lambda number, frame: os._exit(128 + number))
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return main(words)


if __name__ == "__main__":
    torch.set_num_threads(1)
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
