"""The scripts that tell how good the bundled model is, on tiny models and made-up records."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldm_toolkit.evaluation.intervals import mean, share
from ldm_toolkit.images import open_image
from ldm_toolkit.storybook import scenes
from ldm_toolkit.storybook.judge import ATTRIBUTES, Judge, JudgeNet, Verdict

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "storybook"


@pytest.fixture
def script(monkeypatch):
    """``script(name)``: a module of examples/storybook/; ``run`` its main with a command line."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name):
        return importlib.import_module(name)

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        return load(name).main()

    load.run = run
    yield load
    for name in [one for one, module in sys.modules.items() if _is_ours(module)]:
        del sys.modules[name]


def _is_ours(module):
    return Path(getattr(module, "__file__", None) or "").parent == SCRIPTS


# --- what a text asks for ---


def test_texts_are_read_as_they_were_written(script):
    """Plain captions of scenes of which everything is known."""
    named = script("by_eye").named
    for index in range(400):
        scene = scenes.sample_scene(3, index, "all")
        shown = {"subject": scene.subject, "colour": scene.colour, "setting": scene.setting}
        if scene.accessory is not None:
            shown["accessory"] = scene.accessory
        if scene.weather is not None:
            shown["weather"] = scene.weather
        if scene.size == "small":
            shown["size"] = "small"
        if scene.place != "middle":
            shown["place"] = scene.place
        assert named(scenes.canonical_caption(scene)) == shown


def test_captions_of_all_kinds_are_read(script):
    """What a caption names is found in it, however it says so."""
    named = script("by_eye").named
    for index in range(400):
        scene = scenes.sample_scene(5, index, "all")
        caption = scenes.caption(scene, 5)
        found = named(caption.text)
        for name in caption.mentions & {"subject", "colour", "accessory"}:
            assert found.get(name) == getattr(scene, name), caption.text


TEXTS = {
    "a purple dog with a yellow scarf": {
        "subject": "dog", "colour": "purple", "accessory": "scarf", "accessory_colour": "yellow",
    },
    "A gray Kitten wearing red sunglasses, at home": {
        "subject": "cat", "colour": "grey", "accessory": "glasses", "accessory_colour": "red",
        "setting": "room",
    },
    "a red car in the city at night": {
        "subject": "car", "colour": "red", "setting": "city", "weather": "night",
    },
    "green bird with a crown at night": {
        "subject": "bird", "colour": "green", "accessory": "crown", "setting": "night",
    },
    "a small white boat on the right at night": {
        "subject": "boat", "colour": "white", "size": "small", "place": "right",
        "setting": "night",
    },
    "something": {},
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_people(text, script):
    assert script("by_eye").named(text) == TEXTS[text]


def test_all_that_the_committed_prompts_ask_for_is_read(script):
    by_eye = script("by_eye")
    for line in by_eye.PROMPTS.read_text().splitlines():
        asked = by_eye.named(line)
        words = set(line.split()) & {*scenes.COLOURS, "black"}
        assert "subject" in asked, line
        assert words == {asked.get("colour"), asked.get("accessory_colour")} - {None}, line
        for name, value in asked.items():
            assert value in ATTRIBUTES[name], line


def test_night_is_a_setting_and_a_time_of_day(script):
    agreement = script("reporting").agreement
    seen = {"subject": "boat", "setting": "beach", "weather": "night"}
    assert agreement({"subject": "boat", "weather": "night"}, seen) == {
        "subject": True, "weather": True,
    }  # fmt: skip
    assert agreement({"setting": "night"}, seen) == {"setting": True}
    assert agreement({"setting": "night", "weather": "rain"}, seen) == {
        "setting": False, "weather": False,
    }  # fmt: skip
    assert agreement({"weather": "night"}, {"setting": "night"}) == {"weather": True}
    assert agreement({"setting": "night"}, {"setting": "beach"}) == {"setting": False}


# --- pictures that are drawn ---

FEW = ("--steps", 2)


def test_a_report_of_phrases_goes_on_where_it_was(script, tiny_model, tmp_path, capsys):
    phrases, judge, output = tmp_path / "p.jsonl", tmp_path / "judge.safetensors", tmp_path / "out"
    torch.manual_seed(3)
    Judge(JudgeNet("residual", (8, 16)), threshold=0.0).save(judge)
    # An untrained judge sees the same in everything; so one of these is right, and one is wrong.
    seen = Judge.load(judge).verdicts([Image.new("RGB", (64, 64), "grey")])[0].values["subject"]
    other = next(one for one in ATTRIBUTES["subject"] if one != seen)
    rows = [{"prompt": "a dog", "subject": seen}, {"prompt": "a cat", "subject": other}]
    phrases.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--phrases", phrases, "--judge", judge, "--model", tiny_model, "--output", output]
    script.run("phrases", *words, "--seeds", 2, *FEW)
    told = capsys.readouterr().out
    pictures = sorted((output / "drawn").glob("*.png"))
    assert len(pictures) == 4
    judged = [
        verdict.values["subject"]
        for verdict in Judge.load(judge).verdicts([open_image(path) for path in pictures])
    ]
    right = sum(one == seen for one in judged[:2]), sum(one == other for one in judged[2:])
    assert f"| `a dog` | {seen} | {right[0]} of 2 |" in told
    assert f"| `a cat` | {other} | {right[1]} of 2 |" in told
    assert f"Right pictures: {script('phrases').percent(mean([n / 2 for n in right]))}" in told
    assert Image.open(output / "sheet.png").width > 4 * 192
    before = [path.stat().st_mtime_ns for path in pictures]
    script.run("phrases", *words, "--seeds", 2, *FEW)
    assert capsys.readouterr().out == told
    assert [path.stat().st_mtime_ns for path in pictures] == before


def test_phrases_that_no_judge_could_judge_are_refused(script, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "x", "subject": "dog"}\n{"prompt": "y", "subject": "unicorn"}\n')
    with pytest.raises(SystemExit, match=r"p\.jsonl:2: nothing is judged by subject 'unicorn'"):
        script("phrases").read_phrases(file)
    phrases = script("phrases")
    assert len(phrases.read_phrases(phrases.PHRASES)) == 40


def test_what_is_wrong_with_a_phrase_is_told(script):
    told = script("phrases").told
    asked = {"subject": "dog", "setting": "night"}
    values = {"subject": "cat", "setting": "beach", "weather": "night"}
    assert told(asked, Verdict(True, values, {})) == "cat"
    assert told(asked, Verdict(True, values | {"subject": "dog"}, {})) == ""
    assert told(asked, Verdict(False, values, {})) == "refused"


def test_pictures_for_the_eye_tell_nothing_of_their_prompts(script, tiny_model, tmp_path, capsys):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out"
    lines = ["a red dog", "a blue cat", "a boat at night"]
    prompts.write_text("\n".join(lines) + "\n")
    words = ["--prompts", prompts, "--model", tiny_model, "--output", output, *FEW]
    script.run("by_eye", *words)
    key = json.loads((output / "key.json").read_text())
    assert sorted(key.values()) == sorted(lines)
    assert list(key) == sorted(key)
    shown = sorted((output / "blind").iterdir())
    assert [path.stem for path in shown] == sorted(key)
    drawn = dict(zip(lines, sorted((output / "drawn").glob("*.png")), strict=True))
    for path in shown:
        assert open_image(path).tobytes() == open_image(drawn[key[path.stem]]).tobytes()
        assert not any(line.encode() in path.read_bytes() for line in lines)
    assert capsys.readouterr().out.splitlines() == [str(output / "sheet-1.png")]
    script.run("by_eye", *words)  # names that were given stay
    assert json.loads((output / "key.json").read_text()) == key
    capsys.readouterr()

    names = {prompt: name for name, prompt in key.items()}
    answers = tmp_path / "answers.txt"
    answers.write_text(
        f"{names['a red dog']}: puppy, red\n\n{names['a blue cat']}: a blue lion\n"
        f"{names['a boat at night']}: a ship on the beach in the dark\n"
    )
    script.run("by_eye", *words, "--answers", answers)
    told = capsys.readouterr().out
    assert told.startswith("2 of 3 agree in everything")
    assert f"| {names['a blue cat']} | a blue cat | a blue lion | subject |" in told
    assert f"| {names['a red dog']} | a red dog | puppy, red |  |" in told
    assert told.index(names["a blue cat"]) < told.index(names["a red dog"])


@pytest.mark.parametrize(
    ("text", "message"),
    [("zz: a dog\n", "no picture is called 'zz'"), ("ab: a dog\n", "no answer for cd")],
)
def test_answers_that_do_not_fit_the_key(text, message, script, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(SystemExit, match=message):
        script("by_eye").read_answers(tmp_path / "a.txt", {"ab": "a dog", "cd": "a cat"})


# --- pages out of scores ---


def write_scores(folder, **others):
    """scores.json as ldm-eval leaves it."""
    scores = {"everything right": share(80, 100), "subject": share(96, 100)}
    folder.mkdir(parents=True, exist_ok=True)
    scores |= {name.replace("_", " "): one for name, one in others.items()}
    told = {
        "scores": {name: one.as_dict() for name, one in scores.items()},
        "settings": {
            "features_sha256": "a" * 64, "split": 1, "pictures": 100,
            "second_judge_sha256": "b" * 64, "training_renders": 7, "training_seed": 4,
        },
        "notes": [],
    }  # fmt: skip
    text = json.dumps({"measures": {"adherence": told}})
    (folder / "scores.json").write_text(text)
    return folder


def cells_of(table, folder, **about):
    """A folder of scores for each cell of the tables, all of one model unless ``about`` differs."""
    names = []
    for settings in (
        *({"scheduler": name, "steps": n} for name in table.SCHEDULERS for n in table.STEPS),
        *({"guidance": g, "steps": n} for g in table.GUIDANCE for n in table.STEPS),
        *({"dtype": name} for name in table.DTYPES),
    ):
        asked = {**table.DEFAULT, **settings}
        name = "-".join(map(str, asked.values())).replace("+", "p")
        write_scores(folder / name)
        file = folder / name / "scores.json"
        told = json.loads(file.read_text())
        model = {"name": "storybook", "revision": "7", "sha256": "c" * 64}
        told["pictures"] = {"drawing": {"model": model}}
        file.write_text(json.dumps(told))
        names.append(name)
    return sorted(set(names))


def test_a_table_takes_the_cells_that_are_there(script, tmp_path, capsys, monkeypatch):
    table = script("table")
    monkeypatch.setattr(table, "ldm_eval", lambda words: pytest.fail(f"drawn anew: {words}"))
    names = cells_of(table, tmp_path / "cells")
    words = ["--output", tmp_path / "cells", "--default-prompts", 100]
    script.run("table", *words)
    told = capsys.readouterr().out
    assert told.count("80.0 (71.1 to 86.7)") == 3 * 14 + 3
    assert "storybook, revision 7 (cccccccccccc)" in told
    assert "by the judge aaaaaaaaaaaa" in told

    with pytest.raises(SystemExit, match="number of prompts"):
        script.run("table", *words, "--prompts", 50)
    file = tmp_path / "cells" / names[5] / "scores.json"
    file.write_text(file.read_text().replace("c" * 64, "d" * 64))
    with pytest.raises(SystemExit, match=r"another model.*take it away"):
        script.run("table", *words)


@pytest.mark.parametrize(("hits", "code"), [(77, 0), (83, 0), (84, 1), (76, 1)])
def test_two_judges_agree_within_three_points(hits, code, script, tmp_path, capsys):
    second = {"second judge: everything right": share(hits, 100)}
    folder = write_scores(
        tmp_path / "scores", **second, **{"second judge: subject": share(95, 100)}
    )
    assert script.run("judges", folder) == code
    told = capsys.readouterr().out
    assert f"| everything right | 80.0 (71.1 to 86.7) | {hits}.0 (" in told
    assert f"| {hits - 80:+.1f} | 100 |" in told
    assert "| -1.0 | 100 |" in told
    assert ("more than 3 points in: everything right." in told) == bool(code)


def test_a_second_judge_must_be_there(script, tmp_path):
    folder = write_scores(tmp_path / "scores")
    text = (folder / "scores.json").read_text().replace("second_judge_sha256", "x")
    (folder / "scores.json").write_text(text)
    with pytest.raises(SystemExit, match="no second judge"):
        script.run("judges", folder)
    with pytest.raises(SystemExit, match="no neighbours"):
        script.run("memory", folder)


def test_the_page_about_copies(script, tmp_path):
    near = "nearest training render"
    scores = {near: [1.0, 2.0], f"{near}, of renders": [2.0, 3.0], f"{near} by pixels": [0.1, 0.2],
              f"{near} by pixels, of renders": [0.2, 0.4]}  # fmt: skip
    folder = write_scores(tmp_path / "scores", **{name: mean(one) for name, one in scores.items()})
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1600, 1700, 3), generator=rng, dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(folder / "nearest.png")
    page, sheet = tmp_path / "docs" / "MEMORY.md", tmp_path / "assets" / "nearest.jpg"
    page.parent.mkdir()
    sheet.parent.mkdir()
    script.run("memory", folder, "--page", page, "--sheet", sheet)
    told = page.read_text()
    assert "| the judge's features | 1.5 (0.52 to 2.48) | 2.5 (1.52 to 3.48) |" in told
    assert "| pixels | 0.15 (" in told
    assert "7 renders of a training with seed 4" in " ".join(told.split())
    assert "](../assets/nearest.jpg)" in told
    assert 100_000 < sheet.stat().st_size <= 300_000
    assert Image.open(sheet).format == "JPEG"


def write_run(folder, steps, **config):
    """The records of a run of which the last steps were computed twice, after a kill."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"batch_size": 8, "seed": 3, **config}))
    numbers = [*range(1, steps + 1), *range(steps - 4, steps + 1)]
    lines = [{"step": n, "loss": 2.0 ** (-10 * n / steps), "seconds": 36.0} for n in numbers]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": ')
    return folder


def test_the_card_says_what_the_records_say(script, tiny_v_model, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(tiny_v_model, model)
    (model / "ldm_toolkit.json").write_text('{"name": "storybook", "revision": "9"}')
    runs = [
        write_run(tmp_path / "text_2", 100, caption_count=20000),
        write_run(tmp_path / "vae_2", 50, count=4000, size=512, crop=128, accumulate=2),
    ]
    scores = write_scores(tmp_path / "scores", diversity=mean([1.0, 2.0]))
    recon = tmp_path / "recon"
    recon.mkdir()
    measured = {"scores": {"psnr": mean([31.0, 35.0]).as_dict()}, "settings": {}, "notes": []}
    (recon / "scores.json").write_text(json.dumps({"measures": {"recon": measured}}))
    script.run("card", *runs, "--scores", scores, "--recon", recon, "--model", model,
               "--machine", "two cores")  # fmt: skip
    told = (model / "README.md").read_text()
    assert capsys.readouterr().out == f"{model / 'README.md'}\n"
    assert told.startswith("---\nlicense: apache-2.0\n")
    assert "# storybook, revision 9\n" in told
    assert "| `text_2` |  | 100 x 8 | 1.0 | 0.697 to " in told
    assert "| `vae_2` | 128 px of 512 px | 50 x 16 | 0.5 |" in told
    assert "`text_2` 20,000 of seed 3, `vae_2` 4,000 of seed 3" in told
    assert f"split version\n  {scenes.SPLIT_VERSION}:" in told
    assert "**Machine**: two cores." in told
    assert "| everything right | 80.0 (71.1 to 86.7) | 80 | 100 |" in told
    assert "| subject | 96.0 (90.2 to 98.4) | 95 | 100 |" in told
    assert "| reconstruction: psnr | 33 (29.1 to 36.9) | 32 | 2 |" in told
    assert "| diversity | 1.5 (" in told
    count = sum(one.numel() for one in _tensors(model / "unet"))
    assert f"unet {count / 1e6:.1f} M (" in told
    assert "v_prediction" in told
    assert (SCRIPTS / "failures.md").read_text().strip() in told
    assert str(tmp_path) not in told


def _tensors(folder):
    return load_file(folder / "diffusion_pytorch_model.safetensors").values()


def test_a_curve_falls_as_its_losses_do(script):
    curve = script("card").curve
    assert curve([2.0**-n for n in range(8)]) == "█▇▆▅▄▃▂▁"
    assert curve([1.0] * 100) == "▁" * 32
    assert len(curve([3.0, 1.0])) == 2


# --- the judge's threshold ---


def test_the_threshold_accepts_what_it_should(script):
    largest = script("threshold").largest
    sure = torch.linspace(0, 1, 1000, dtype=torch.float64)
    found = largest(sure, 0.995)
    assert float((sure >= found).double().mean()) >= 0.995
    assert float((sure >= found + 2e-3).double().mean()) < 0.995
    assert largest(torch.tensor([0.9, 0.8, 0.99995]), 1.0) == 0.8
    assert largest(torch.full((60,), 1.0), 0.995) == 0.9999


def test_a_judges_weights_keep_their_bits_under_another_threshold(script, tiny_model, tmp_path):
    torch.manual_seed(1)
    file = tmp_path / "judge.safetensors"
    Judge(JudgeNet("residual", (8, 16))).save(file)
    before, sure = load_file(file), Judge.load(file)
    script.run("threshold", "--judge", file, "--model", tiny_model, "--renders", 30,
               "--decoded", 2, "--bad", 2)  # fmt: skip
    after = load_file(file)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype == torch.float16
        assert value.view(torch.int16).equal(after[name].view(torch.int16))
    threshold = script("threshold")
    drawn = [scenes.sample_scene(threshold.SEED, k, "all") for k in range(30)]
    pictures = [threshold.render(one, 256) for one in drawn]
    found = Judge.load(file)
    assert found.threshold != sure.threshold
    assert all(one.valid for one in found.verdicts(pictures))


def test_the_judges_report(script, tiny_model, tmp_path, capsys):
    """Its numbers are those of the judge on the very pictures."""
    torch.manual_seed(1)
    file = tmp_path / "judge.safetensors"
    Judge(JudgeNet("residual", (8, 16)), threshold=0.25).save(file)
    script.run("judge_report", "--judge", file, "--model", tiny_model, "--renders", 12,
               "--decoded", 2, "--bad", 4)  # fmt: skip
    told = capsys.readouterr().out
    report, judge = script("judge_report"), Judge.load(file)
    drawn = [scenes.sample_scene(report.SEED, k, "test") for k in range(12)]
    verdicts = judge.verdicts([report.render(one, 256) for one in drawn])
    hits = sum(v.values["size"] == s.size for v, s in zip(verdicts, drawn, strict=True))
    assert f"| size | {report.percent(share(hits, 12))} | " in told
    assert "threshold 0.25, SHA-256" in told
    for kind in (*report.SPOILED, "half denoised"):
        assert f"\n| {kind} | " in told
    shown, seen = drawn[0].subject, verdicts[0].values["subject"]
    row = next(one for one in told.splitlines() if one.startswith(f"| {shown} | "))
    head = next(
        one for one in told.splitlines() if one.startswith("| subject | ") and "(" not in one
    )
    names = [cell.strip() for cell in head.strip("|").split("|")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    same = [v.values["subject"] for v, s in zip(verdicts, drawn, strict=True) if s.subject == shown]
    assert cells[names.index(seen)] == f"{100 * same.count(seen) / len(same):.1f}"
