"""The first signal is remembered, the second interrupts; each has its exit code."""

import signal
import threading

import pytest
from training_tools import Line, line_config, steps_of

from ldm_toolkit.training import loop, options
from ldm_toolkit.training.config import UNetConfig
from ldm_toolkit.training.signals import Interrupted, SignalFlag

CODES = [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_the_first_is_remembered(number, code):
    before = [signal.getsignal(one) for one, _ in CODES]
    with SignalFlag() as flag:
        assert flag.received is None
        signal.raise_signal(number)
        assert flag.received == number
        assert flag.exit_code == code
    assert [signal.getsignal(one) for one, _ in CODES] == before


@pytest.mark.parametrize(("number", "code"), CODES)
def test_the_second_interrupts_at_once(number, code):
    with SignalFlag():
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(Interrupted, match="at once by a second signal") as caught:
            signal.raise_signal(number)
    assert caught.value.code == code


def test_another_thread_trains_without_them(accelerator, tmp_path):
    thread = threading.Thread(
        target=loop.train, args=(Line(), line_config(tmp_path, steps=3), accelerator)
    )
    thread.start()
    thread.join()
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2, 3]


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(("number", "code"), CODES)
def test_the_step_is_finished_and_saved(number, code, resume, accelerator, tmp_path):
    class Signalled(Line):
        def loss(self, outputs, step):
            if step == 5:
                signal.raise_signal(number)
            return super().loss(outputs, step)

    with pytest.raises(Interrupted) as caught:
        loop.train(Signalled(), line_config(tmp_path, resume=resume), accelerator)
    assert caught.value.code == code
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "checkpoints" / "step-00000006" / "manifest.json").is_file()
    told = str(caught.value)
    assert told.endswith(f"goes on from {tmp_path / 'checkpoints'}")
    assert ("the same command with --resume true" in told) == (not resume)
    assert caught.value.words == (() if resume else ("--resume", "true"))


def test_the_command_that_goes_on_is_printed(capsys, monkeypatch):
    words = ["examples/finetune_unet.py", "--data", "my pictures", "--output", "o"]

    def run(config):
        raise Interrupted(143, "stopped", ("--resume", "true"))

    monkeypatch.setattr(options, "check_inputs", lambda config: None)
    monkeypatch.setattr("sys.argv", [*words, "--resume", "false"])
    with pytest.raises(SystemExit) as caught:
        options.command(UNetConfig, run)
    assert caught.value.code == 143
    line = capsys.readouterr().err.splitlines()[-1].strip()
    told = "examples/finetune_unet.py --data 'my pictures' --output o --resume false --resume true"
    assert line == f"python {told}"
    config = options.parse(UNetConfig, [*words[1:], "--resume", "false", "--resume", "true"])
    assert config.resume is True
