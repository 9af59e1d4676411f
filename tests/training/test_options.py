"""One definition an option: command line, YAML, help and check agree."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ldm_toolkit.errors import InputError, UserError
from ldm_toolkit.training.config import JudgeConfig, TextEncoderConfig, UNetConfig, VAEConfig
from ldm_toolkit.training.options import parse

REPO = Path(__file__).parents[2]
KINDS = {
    "finetune_unet": UNetConfig,
    "finetune_vae": VAEConfig,
    "train_judge": JudgeConfig,
    "train_text_encoder": TextEncoderConfig,
}
NEEDED = ["--data", "d", "--output", "o"]
DREAMBOOTH = ["--method", "dreambooth", "--class-prompt", "a dog"]
WORD = ["--method", "textual-inversion", "--token", "<x>"]


def test_flags_with_dashes_underscores_and_equals():
    expected = UNetConfig(data="d", output="o-p_q", batch_size=3, lr_schedule="linear")
    for words in (
        ["--batch-size", "3", "--lr-schedule=linear"],
        ["--batch_size", "3", "--lr_schedule=linear"],
        ["--batch_size=3", "--lr-schedule", "linear"],
    ):
        assert parse(UNetConfig, ["--data", "d", "--output=o-p_q", *words]) == expected


def test_the_file_is_overridden_by_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: d\noutput: o\nlr: 5e-4\nsteps: 7\nsample_prompts: [a cat, a dog]\n")
    config = parse(UNetConfig, ["--config", str(file), "--steps", "9"])
    assert (config.lr, config.steps, config.sample_prompts) == (5e-4, 9, ["a cat", "a dog"])


def test_the_options_of_the_objective():
    words = ["--debiased", "true", "--input-perturbation", "0.1", "--zero-terminal-snr=true"]
    words += ["--timesteps", "logit_normal", "--timestep-mean", "-0.5", "--timestep-scale=0.8"]
    config = parse(UNetConfig, [*NEEDED, *words])
    assert (config.debiased, config.zero_terminal_snr) == (True, True)
    assert config.input_perturbation == 0.1
    shape = (config.timesteps, config.timestep_mean, config.timestep_scale)
    assert shape == ("logit_normal", -0.5, 0.8)
    default = parse(UNetConfig, NEEDED)
    assert (default.debiased, default.zero_terminal_snr) == (False, False)
    assert (default.input_perturbation, default.timesteps) == (0.0, "uniform")
    assert parse(VAEConfig, [*NEEDED, "--reconstruction", "l2"]).reconstruction == "l2"
    assert parse(VAEConfig, NEEDED).reconstruction == "l1"


def test_the_options_of_methods_reach_them():
    words = [*DREAMBOOTH, "--instance-prompt", "a photo of sks dog: red", "--class-data", "c"]
    config = parse(UNetConfig, [*NEEDED, *words, "--class-count=7", "--prior-weight", "0.5"])
    assert (config.instance_prompt, config.class_prompt) == ("a photo of sks dog: red", "a dog")
    assert (config.class_data, config.class_count, config.prior_weight) == ("c", 7, 0.5)
    lora = ["--method", "dreambooth-lora", "--class-prompt", "a dog", "--rank", "4"]
    assert parse(UNetConfig, [*NEEDED, *lora]).rank == 4
    words = [*WORD, "--vectors", "3", "--initial", "a cat", "--sample-every", "5"]
    config = parse(UNetConfig, [*NEEDED, *words, "--sample-prompts", '["a <x>", "a dog"]'])
    assert (config.token, config.vectors, config.initial) == ("<x>", 3, "a cat")
    encoder = parse(UNetConfig, [*NEEDED, "--train-text-encoder", "--text-encoder-lr", "5e-6"])
    assert (encoder.train_text_encoder, encoder.text_encoder_lr) == (True, 5e-6)
    assert config.sample_prompts == ["a <x>", "a dog"]


def test_switches_need_no_value():
    for words in (["--check-data", "--skip-bad"], ["--check_data=true", "--skip-bad", "true"]):
        config = parse(UNetConfig, [*words, *NEEDED, "--buckets"])
        assert (config.check_data, config.skip_bad, config.buckets) == (True, True, True)
        assert config.resume
    config = parse(UNetConfig, [*NEEDED, "--resume", "false", "--compile"])
    assert (config.resume, config.compile, config.check_data) == (False, True, False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batchsize", "3"], "unknown option --batchsize; did you mean 'batch-size'?"),
        (["--stepz=3"], "unknown option --stepz; did you mean 'steps'?"),
        (
            ["--stepz=3", "--learning-rate", "1"],
            "unknown option --stepz; did you mean 'steps'?; unknown option --learning-rate",
        ),
        (["--steps", "many"], "--steps must be a whole number, not many"),
        (["--steps", "1.5"], "--steps must be a whole number, not 1.5"),
        (["--lr", "nan"], "--lr must be a number, not nan"),
        (["--mixed-precision", "bf1"], "must be one of no, bf16, fp16, not bf1; did you mean 'bf1"),
        (["--resume", "maybe"], "--resume must be true or false, not maybe"),
        (["--sample-prompts", "a"], '--sample-prompts must be a list such as ["a dog", "a cat"],'),
        (["--lr"], "argument --lr: expected one argument"),
        (
            ["--steps", "many", "--lr", "--rank=x", "--keep", "1"],
            "--steps must be a whole number, not many; argument --lr: expected one argument; see "
            "--help; --rank must be a whole number, not x; --keep must be at least 2",
        ),
        (
            ["--method", "ful"],
            "must be one of full, lora, dreambooth, dreambooth-lora, textual-inversion, not 'ful'; "
            "did you mean 'full'?",
        ),
        (["--method", "textual_inversion"], "did you mean 'textual-inversion'?"),
        (
            ["--rank", "4", "--dora", "true"],
            "only --method lora and --method dreambooth-lora know --rank, --dora",
        ),
        (
            [*DREAMBOOTH, "--rank", "4"],
            "only --method lora and --method dreambooth-lora know --rank",
        ),
        (
            ["--class-prompt", "a dog", "--class-count", "5"],
            "only --method dreambooth and --method dreambooth-lora know --class-prompt, "
            "--class-count",
        ),
        (["--method", "dreambooth"], "--method dreambooth needs --class-prompt, such as a photo"),
        (["--method", "dreambooth-lora"], "--method dreambooth-lora needs --class-prompt"),
        ([*DREAMBOOTH, "--batch-size", "3"], "--batch-size must be even"),
        (
            [*WORD, "--validate-every", "5", "--validation-count", "1"],
            "--method textual-inversion has no loss to validate: pass --validate-every 0",
        ),
        ([*DREAMBOOTH, "--buckets"], "--method dreambooth takes squares only: leave --buckets out"),
        ([*DREAMBOOTH, "--class-count", "0"], "--class-count must be at least 1"),
        ([*DREAMBOOTH, "--prior-weight", ".nan"], "--prior-weight must not be negative"),
        ([*DREAMBOOTH, "--instance-prompt", " "], "--instance-prompt must be words"),
        ([*DREAMBOOTH, "--token", "<x>"], "only --method textual-inversion knows --token"),
        (
            [*DREAMBOOTH, "--from-config", "x", "--vae", "y", "--text-encoder", "z"],
            "--method dreambooth needs trained weights: pass --model, not --from-config",
        ),
        (
            ["--token", "<x>", "--vectors", "2"],
            "only --method textual-inversion knows --token, --v",
        ),
        (
            [*WORD, "--train-text-encoder"],
            "only --method full and --method lora and --method dreambooth and --method "
            "dreambooth-lora know --train-text-encoder",
        ),
        (["--text-encoder-lr", "1e-5"], "belongs to --train-text-encoder: pass it too"),
        (["--train-text-encoder", "--text-encoder-lr", "0"], "--text-encoder-lr must be positive"),
        (
            ["--train-text-encoder", "--text-encoder-lr", "1", "--optimizer", "prodigy"],
            "prodigy finds one learning rate for all: leave --text-encoder-lr out",
        ),
        (["--method", "textual-inversion"], "needs --token, a new word such as <my-cat>"),
        ([*WORD, "--vectors", "0"], "--vectors must be from 1 to 64"),
        ([*WORD, "--vectors", "65"], "--vectors must be from 1 to 64"),
        ([*WORD, "--initial", " "], "--initial must be words"),
        ([*WORD[:-1], "emb_params"], "--token emb_params means something else in embedding files"),
        ([*WORD, "--sample-every", "5"], "--sample-prompts without <x> show nothing"),
        ([*WORD, "--instance-prompt", "x"], "only --method dreambooth and --method dreambooth-l"),
        (
            [*WORD, "--from-config", "x", "--vae", "y", "--text-encoder", "z"],
            "--method textual-inversion needs trained weights",
        ),
        (["--method", "lora", "--rank", "0"], "--rank must be from 1 to 4096"),
        (["--method", "lora", "--alpha", ".nan"], "--alpha must be positive"),
        (["--method", "lora", "--alpha", "nan"], "--alpha must be a number, not nan"),
        (["--method", "lora", "--alpha", "1e30"], "--alpha must be positive and at most 65504"),
        (["--method", "lora", "--lora-targets", "to_q,,to_v"], "--lora-targets must be names"),
        (
            ["--method", "lora", "--from-config", "x", "--vae", "y", "--text-encoder", "z"],
            "--method lora needs trained weights: pass --model, not --from-config",
        ),
        (["stray"], "stray"),
        (["--config", "none.yaml"], "--config: File does not exist"),
        (["--steps", "0", "--lr", "-1", "--keep", "1"], "--steps must be at least 1; --lr must"),
        (["--seed", "18446744073709551616"], "--seed must be at most 9223372036854775807"),
        (["--threads", "2147483648"], "--threads must be at most 65536"),
        (["--sample-every", "1", "--sample-prompts", "[]"], "--sample-every needs --sample-prom"),
        (["--size", "100000"], "--size must be a multiple of 8 and from 64 to 4096"),
        (["--accumulate", "0"], "--accumulate must be at least 1"),
        (["--validate-every", "5"], "needs --validation-data FOLDER or --validation-count N"),
        (["--validate-every", "-1"], "--validate-every must not be negative"),
        (["--validation-data", "v"], "is not looked at: pass --validate-every too"),
        (
            ["--validation-data", "d", "--validate-every", "5"],
            "is what is trained on: pass",
        ),
        (["--validation-data", "v", "--validation-count", "3"], "both hold out: pass one"),
        (["--trackers", "wandb,tensorbord"], "not 'tensorbord'; did you mean 'tensorboard'?"),
        (["--trackers", "wandb,"], "--trackers knows tensorboard, wandb, trackio, not ''"),
        (["--lr-schedule", "sine"], "--lr-schedule must be one of constant, "),
        (["--lr-cycles", "2"], "--lr-cycles belongs to --lr-schedule cosine_with_restarts"),
        (["--lr-power", "2"], "--lr-power belongs to --lr-schedule polynomial"),
        (["--lr-power", ".nan"], "--lr-power must be positive"),
        (["--lr-schedule", "polynomial", "--lr", "1e-8"], "polynomial ends at 1e-7: pass a larger"),
        (["--optimizer", "adam"], "schedule-free, not 'adam'; did you mean 'adamw'?"),
        (["--optimizer", "prodigy"], "finds the learning rate itself, --lr is a factor of it"),
        (["--optimizer", "schedule-free"], "itself: pass --ema 0; --optimizer schedule-free needs"),
        (["--lr", ".nan"], "--lr must be positive"),
        (["--min-snr-gamma", ".nan"], "--min-snr-gamma must not be negative"),
        (["--offset-noise", "-0.1"], "--offset-noise must not be negative"),
        (["--input-perturbation", "-0.1"], "--input-perturbation must not be negative"),
        (["--input-perturbation", ".inf"], "--input-perturbation must not be negative"),
        (["--min-snr-gamma", "5", "--debiased", "true"], "--min-snr-gamma and --debiased both"),
        (["--debiased", "maybe"], "--debiased must be true or false"),
        (["--zero-terminal-snr", "maybe"], "--zero-terminal-snr must be true"),
        (["--timesteps", "normal"], "timesteps"),
        (["--timestep-mean", "1"], "--timesteps logit_normal: pass it too"),
        (["--timesteps", "logit_normal", "--timestep-mean", ".nan"], "--timestep-mean must be fin"),
        (["--timesteps", "logit_normal", "--timestep-scale", "0"], "--timestep-scale must be pos"),
        (["--latents", "mode"], "latents"),
        (["--size", "65"], "--size must be a multiple of 8"),
        (["--ema", "1"], "--ema must be at least 0 and below 1"),
        (["--check-data", "maybe"], "--check-data must be true or false"),
        (["--max-bad", "1.5"], "--max-bad must lie between 0 and 1"),
        (["--max-bad", ".nan"], "--max-bad must lie between 0 and 1"),
        (["--count", "0"], "--count must be at least 1"),
        (["--caption-dropout", "1.5"], "--caption-dropout must lie between 0 and 1"),
        (["--from-config", "x"], "--from-config needs --vae and --text-encoder"),
    ],
)
def test_mistakes_are_told(words, told):
    with pytest.raises(UserError) as caught:
        parse(UNetConfig, [*NEEDED, *words])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "<class" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "64", "--crop", "128"], "--crop 128 must be .* at most --size 64"),
        (
            ["--crop", "600"],
            "--crop 600 must be a multiple of 8, at least 32 and",
        ),
        (["--from-config", "x"], "--from-config makes fresh weights: pass --train all"),
        (["--auto-batch", "--adversarial-weight", "1"], "--auto-batch would change the weight of"),
        (["--crops", "0"], "--crops must be at least 1"),
        (["--kl-weight", "-1"], "--kl-weight must not be negative"),
        (["--perceptual", "judge"], "perceptual"),
        (["--perceptual-weight", "2"], "weights --perceptual encoder or lpips: pass one"),
        (
            ["--perceptual", "encoder", "--perceptual-weight", "-1"],
            "--perceptual-weight must not be negative",
        ),
        (
            ["--perceptual", "encoder", "--train", "all", "--from-config", "x"],
            "--perceptual encoder needs a trained one: pass --model instead",
        ),
        (["--reconstruction", "l3"], "reconstruction"),
    ],
)
def test_mistakes_in_vae_options_are_told(words, told):
    with pytest.raises(UserError, match=told):
        parse(VAEConfig, [*NEEDED, *words])


def test_crops_fit_the_pictures_where_nothing_is_said():
    for size, crop in ((64, 64), (128, 128), (512, 128)):
        assert parse(VAEConfig, [*NEEDED, "--size", str(size)]).crop == crop
    assert parse(VAEConfig, [*NEEDED, "--size", "512", "--crop", "256"]).crop == 256


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--data and --output must be given; see --help"),
        (["--output", "o"], "--data must be given; see --help"),
        (["--check-data"], "--data must be given; see --help"),
        (["--data", "d", "--check-data", "false"], "--output must be given; see --help"),
        (
            ["--data", "d", "--steps", "x", "--rank", "0"],
            "--steps must be a whole number, not x; --output must be given; see --help; "
            "only --method lora and --method dreambooth-lora know --rank; --rank must be from",
        ),
    ],
)
def test_what_is_needed_is_named(words, told):
    with pytest.raises(UserError) as caught:
        parse(UNetConfig, words)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("form", ["words", "file"])
def test_a_look_at_the_data_needs_no_output(form, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("data: d\ncheck_data: true\n")
    words = ["--data", "d", "--check-data"] if form == "words" else ["--config", str(file)]
    for kind in (UNetConfig, VAEConfig):
        config = parse(kind, words)
        assert (config.check_data, config.output) == (True, "")


@pytest.mark.parametrize("text", ["null", "~", "1.0", "yes", "[a]", "{a: b}", "a: b # c", "'q'"])
@pytest.mark.parametrize("form", ["two words", "one word"])
def test_text_is_taken_as_it_is_written(text, form):
    def given(name):
        return [f"--{name}", text] if form == "two words" else [f"--{name}={text}"]

    subject = [*DREAMBOOTH[:2], *given("class-prompt"), *given("instance-prompt")]
    config = parse(UNetConfig, [*NEEDED, *subject, *given("class-data"), *given("cache")])
    found = (config.instance_prompt, config.class_prompt, config.class_data, config.cache)
    assert found == (text,) * 4
    word = parse(UNetConfig, [*NEEDED, *WORD[:2], *given("token"), *given("initial")])
    assert (word.token, word.initial) == (text, text)


def test_null_in_a_file_is_nothing_and_the_last_word_counts(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("cache: null\nvae: null\ntext_encoder: t\n")
    words = ["--config", str(file), "--vae", "v", "--vae", "null"]
    config = parse(UNetConfig, [*NEEDED, *words])
    assert (config.cache, config.vae, config.text_encoder) == (None, "null", "t")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("batchsize: 3", "unknown option batchsize in the configuration file; did you mean 'batch"),
        ("steps: many", "--steps must be a whole number, not many"),
        ("steps: [", "config"),
        ("just words", "config"),
        ("steps: 0", "--steps must be at least 1"),
    ],
)
def test_mistakes_in_the_file_are_told(text, told, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(f"{text}\n")
    with pytest.raises(UserError) as caught:
        parse(UNetConfig, ["--config", str(file), *NEEDED])
    assert told in str(caught.value)


def test_print_config_is_a_file_that_makes_the_same_run(capsys, tmp_path):
    words = [*NEEDED, "--lr", "2e-4", "--sample-every", "5"]
    with pytest.raises(SystemExit) as caught:
        parse(UNetConfig, [*words, "--print_config"])
    assert caught.value.code in (0, None)
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse(UNetConfig, ["--config", str(file)]) == parse(UNetConfig, words)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_help_explains_every_option(kind, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(kind, ["--help"])
    assert caught.value.code in (0, None)
    text = " ".join(capsys.readouterr().out.split())
    for option in dataclasses.fields(kind):
        places = text.split(f"--{option.name.replace('_', '-')} ")[1:]
        explained = [shown.partition("(")[0].split(" ", 1)[-1] for shown in places]
        assert any(len(one.split()) >= 3 for one in explained), option.name
    needed = {TextEncoderConfig: "--from-config FROM_CONFIG", JudgeConfig: "--output OUTPUT"}
    needed = needed.get(kind, "--data DATA")
    assert re.search(rf"^usage: .*{needed}.*\[options\]", text)
    titles = ["Options of this command alone:", "Options that every training command has:"]
    assert [title in text for title in titles] == [True, True]
    assert "_" not in "".join(re.findall(r"--\S+", text))
    assert "Attributes:" not in text
    assert "<class" not in text


WITHOUT_TORCH = """
import runpy, sys
file, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_path(file, run_name="__main__")
except SystemExit as error:
    code = error.code or 0
sys.exit(99 if "torch" in sys.modules else code)
"""


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        *((name, ["--help"], None) for name in KINDS),
        ("finetune_unet", [*NEEDED, "--steps", "0"], ["--steps must be"]),
        (
            "finetune_unet",
            [*NEEDED, "--model", "storyboook", "--validation-data", "v", "--validate-every", "2"],
            [
                *("--data d is not a folder", "did you mean 'storybook'?"),
                *("--validation-data v is not", "; the current folder is /"),
            ],
        ),
        (
            "finetune_unet",
            ["--data", "storybook", "--output", "file/below", "--vae", ".", "--text-encoder", "x"],
            [". holds no config.json", "x/text_encoder holds no", "file is not a folder"],
        ),
        ("finetune_vae", [*NEEDED, "--model", "."], ["--data d is", "vae holds no config.json"]),
        ("finetune_vae", ["--data", "storybook", "--output", ""], ["--output is empty; expected"]),
        (
            "train_text_encoder",
            ["--from-config", "x", "--output", "o"],
            ["x/text_encoder holds no config.json"],
        ),
    ],
)
def test_help_and_mistakes_come_at_once_without_torch(name, words, told, tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(REPO / "examples" / f"{name}.py"), *words],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == (0 if told is None else 2), done.stderr
    for one in told or []:
        assert one in done.stderr
    assert done.stderr.count("\n") == (told is not None)
    assert os.listdir(tmp_path) == ["file"]


def test_every_shipped_configuration_parses(monkeypatch):
    monkeypatch.chdir(REPO)
    files = sorted((REPO / "examples" / "storybook").glob("*.yaml"))
    for file in files:
        first, second = file.read_text().splitlines()[:2]
        assert first.startswith("# Stage")
        script = second.split("examples/")[1].split(".py")[0]
        assert second == (
            f"# accelerate launch examples/{script}.py --config {file.relative_to(REPO)}"
        )
        config = parse(KINDS[script], ["--config", str(file)])
        written = yaml.safe_load(file.read_text())
        assert {name: type(getattr(config, name))(value) for name, value in written.items()} == {
            name: getattr(config, name) for name in written
        }
    assert len(files) == 16


LAUGHS = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'sample_prompts: ["caf\xe9"]\n', "is not UTF-8"),
        ("steps: 3\n".encode("utf-16"), "is not UTF-8"),
        (b"\xff\x00\x80" * 40, "is not UTF-8"),
        (b" \n", "is empty"),
        (b"steps: " + b"1" * 5000, "5000 digits"),
        (b"steps: " + b"[" * 50_000 + b"]" * 50_000, "nested too deep"),
        (LAUGHS.encode(), "repeats by reference"),
        (b"#" * (2 << 20), "larger than"),
        (b"steps: [1", "is not YAML"),
        (b"- a\n- b\n", "holds no options"),
        (b"nothing\n", "holds no options"),
    ],
)
@pytest.mark.parametrize("form", ["two words", "one word"])
def test_files_of_options_that_would_break_the_parser(data, told, form, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(data)
    words = ["--config", str(file)] if form == "two words" else [f"--config={file}"]
    with pytest.raises(InputError, match=told) as caught:
        parse(UNetConfig, [*NEEDED, *words])
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [UNetConfig, VAEConfig])
def test_null_is_told_wherever_it_can_not_be(kind, tmp_path):
    """Or it means that nothing was said, where that is what the option is without it."""
    for field in dataclasses.fields(kind):
        if field.name in ("data", "output"):
            continue
        file = tmp_path / "a.yaml"
        file.write_text(f"{field.name}: null\n")
        words = [*NEEDED, "--config", str(file)]
        if field.default is None:
            assert getattr(parse(kind, words), field.name) is None
            continue
        flag = "--" + field.name.replace("_", "-")
        with pytest.raises(UserError, match=rf"^{flag} must not be null: "):
            parse(kind, words)


def test_a_file_of_options_may_begin_with_a_mark_and_hold_text(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("sample_prompts: [caf\u00e9, '\u96e8']\nsteps: 7\n", "utf-8-sig")
    config = parse(UNetConfig, [*NEEDED, "--config", str(file)])
    assert (config.steps, config.sample_prompts) == (7, ["caf\u00e9", "\u96e8"])


@pytest.mark.parametrize("word", ["--help", "--print-config"])
def test_a_full_stdout_is_told(word):
    script = REPO / "examples" / "finetune_unet.py"
    command = [sys.executable, str(script), *NEEDED, word]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(REPO)},
        )  # fmt: skip
    assert done.returncode == 74
    assert "cannot write to standard output" in done.stderr
    assert "Traceback" not in done.stderr
