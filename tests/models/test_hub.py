"""Models of the hub over real HTTP: only what is read is asked for, and every failure is a line."""

import dataclasses
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, serving
from huggingface_hub import constants

from ldm_toolkit.cli.model import choose_model
from ldm_toolkit.cli.options import parse
from ldm_toolkit.errors import ModelError
from ldm_toolkit.models.hub import fetch_lora, fetch_model, is_hub_id, on_hub
from ldm_toolkit.models.load import load_components
from ldm_toolkit.models.tokenizer import model_tokenizer
from ldm_toolkit.pipeline import LatentPipeline

UNET = "unet/diffusion_pytorch_model.safetensors"
DECOYS = (
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "pipeline.py",
    "unet/my_unet.py",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_flax_model.msgpack",
    "unet/model.onnx",
    "text_encoder/pytorch_model.bin",
    "text_encoder/model.fp16.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "safety_checker/model.safetensors",
    "safety_checker/config.json",
    "feature_extractor/preprocessor_config.json",
    "README.md",
    "tokenizer/tokenizer.py",
    "scheduler/other.json",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; nothing of the person's own login or settings."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return folder


@pytest.fixture
def hub(tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the tiny model, among much else."""
    made = Hub(tiny_model)
    made.files |= dict.fromkeys(DECOYS, b"decoy")
    with serving(made) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts take no time."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, whatever opens a socket fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    def forbid() -> None:
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket.socket, "connect_ex", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setattr(socket, "create_connection", refuse)

    return forbid


def assert_explained(error: pytest.ExceptionInfo[ModelError], *words: str) -> None:
    text = str(error.value)
    assert all(word in text for word in words), text
    assert "owner/name" in text
    assert "\n" not in text
    assert len(text) < 500


def test_only_what_is_read_is_asked_for(
    hub: Hub, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ldm_toolkit"):
        found = load_components("owner/name", device="cpu", dtype="float32")
    asked = hub.asked()
    assert not set(asked) & set(DECOYS)
    assert not set(hub.asked("HEAD")) & set(DECOYS)
    assert sorted(asked) == sorted(
        path.relative_to(tiny_model).as_posix() for path in tiny_model.rglob("*") if path.is_file()
    )
    # What it is comes first, then the size, then the weights.
    weights = [name for name in asked if name.endswith(".safetensors")]
    assert asked[-len(weights) :] == weights
    total = sum(len(hub.files[name]) for name in weights) / 1e6
    assert f"downloading {total:.1f} MB of owner/name, commit {COMMIT[:12]}" in caplog.text
    # The branch is asked for once; every file comes from its commit.
    revisions = [p for _, p, _ in hub.requests if "/revision/" in p or p.endswith("owner/name")]
    assert len(revisions) == 1
    assert found.identity == dataclasses.replace(
        load_components(tiny_model, device="cpu").identity, name="owner/name", revision=COMMIT
    )


def test_a_second_time_nothing_is_downloaded(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    first = fetch_model("owner/name")
    hub.requests.clear()
    assert fetch_model("owner/name") == first
    assert hub.asked() == hub.asked("HEAD") == []
    hub.requests.clear()
    assert fetch_model("owner/name", revision=COMMIT) == first
    assert hub.requests == []
    assert caplog.text.count("downloading") == 1
    assert fetch_model("owner/name", revision="v1") == first


def test_the_tokenizer_alone(
    hub: Hub, tiny_model: Path, no_sockets: Callable[[], None], cache: Path
) -> None:
    expected = model_tokenizer(tiny_model)("a dog").input_ids
    assert model_tokenizer("owner/name")("a dog").input_ids == expected
    names = [f"tokenizer/{path.name}" for path in (tiny_model / "tokenizer").iterdir()]
    assert sorted(hub.asked()) == sorted(names)
    with pytest.raises(ModelError, match="no revision 'v9'"):
        model_tokenizer("owner/name", revision="v9")
    no_sockets()
    assert model_tokenizer("owner/name", offline=True)("a dog").input_ids == expected
    assert model_tokenizer("owner/other", tokenizer=tiny_model)("a dog").input_ids == expected
    shutil.rmtree(cache)
    with pytest.raises(ModelError) as caught:
        model_tokenizer("owner/name", offline=True)
    assert_explained(caught, "run once with a network")


def test_a_model_without_a_tokenizer(hub: Hub) -> None:
    for name in [name for name in hub.files if name.startswith("tokenizer/")]:
        del hub.files[name]
    with pytest.raises(ModelError) as caught:
        model_tokenizer("owner/name")
    assert_explained(caught, "lacks a folder tokenizer")


def test_the_hash_without_loading(hub: Hub, tiny_model: Path) -> None:
    choice, _ = choose_model(parse(["x", "--model", "owner/name"]), None)
    local, _ = choose_model(parse(["x", "--model", str(tiny_model)]), None)
    assert choice.weights_sha256() == local.weights_sha256()
    assert UNET in hub.asked()


def test_variants(hub: Hub, tiny_model: Path) -> None:
    weights = [name for name in hub.files if name.endswith("model.safetensors") and "/" in name]
    for name in (UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert name in weights
        hub.files[name.replace(".safetensors", ".fp16.safetensors")] = hub.files.pop(name)
    with pytest.raises(ModelError) as caught:
        fetch_model("owner/name")
    assert_explained(caught, "choose with variant")
    assert not any(name.endswith(".safetensors") for name in hub.asked())
    found = load_components("owner/name", device="cpu", dtype="float32", variant="fp16")
    assert found.identity.revision == COMMIT
    assert sum(name.endswith(".fp16.safetensors") for name in hub.asked()) == 3


def test_shards(hub: Hub) -> None:
    hub.files["unet/part-1.safetensors"] = hub.files.pop(UNET)
    index = {"metadata": {}, "weight_map": {"conv_in.bias": "part-1.safetensors"}}
    hub.files[f"{UNET}.index.json"] = json.dumps(index).encode()
    found = load_components("owner/name", device="cpu", dtype="float32")
    assert found.identity.name == "owner/name"
    assert "unet/part-1.safetensors" in hub.asked()


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "*.safetensors", "x.bin"]
)
def test_shards_that_lead_elsewhere(name: str, hub: Hub) -> None:
    del hub.files[UNET]
    index = {"weight_map": {"conv_in.bias": name}}
    hub.files[f"{UNET}.index.json"] = json.dumps(index).encode()
    with pytest.raises(ModelError) as caught:
        fetch_model("owner/name")
    assert_explained(caught, "beside it")
    assert not any(asked.endswith((".safetensors", ".bin")) for asked in hub.asked())


def test_pickles_only_when_allowed(hub: Hub) -> None:
    del hub.files[UNET], hub.files["unet/diffusion_pytorch_model.non_ema.safetensors"]
    with pytest.raises(ModelError) as caught:
        fetch_model("owner/name")
    assert_explained(caught, "only pickled weights", "allow pickles")
    assert "unet/diffusion_pytorch_model.bin" not in hub.asked()
    found = fetch_model("owner/name", allow_pickle=True)
    assert (found.folder / "unet/diffusion_pytorch_model.bin").read_bytes() == b"decoy"
    assert "text_encoder/pytorch_model.bin" not in hub.asked()  # has safetensors


def test_another_model_is_refused_before_its_weights(hub: Hub) -> None:
    index = json.loads(hub.files["model_index.json"])
    index["_class_name"] = "StableDiffusionXLPipeline"
    hub.files["model_index.json"] = json.dumps(index).encode()
    with pytest.raises(ModelError) as caught:
        fetch_model("owner/name")
    assert_explained(caught, "Stable Diffusion XL")
    assert not any(name.endswith(".safetensors") for name in hub.asked())


# --- failures ---


def test_a_broken_download_resumes(
    hub: Hub, impatient: None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what is written at once
    hub.breaks[UNET] = 1000
    found = fetch_model("owner/name")
    assert (found.folder / UNET).read_bytes() == (tiny_model / UNET).read_bytes()
    ranges = [r for m, path, r in hub.requests if m == "GET" and path.endswith(UNET)]
    assert ranges == ["", "bytes=1000-"]


def test_a_download_that_stays_broken(hub: Hub, impatient: None) -> None:
    hub.breaks[UNET], hub.always_breaks = 0, True
    with pytest.raises(ModelError) as caught:
        fetch_model("owner/name")
    assert_explained(caught, "could not be fetched", "try again")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    hub.breaks.clear()
    hub.requests.clear()
    fetch_model("owner/name")
    assert hub.asked() == [UNET]  # what was whole is kept


@pytest.mark.parametrize(
    ("token", "words"),
    [(None, ("or it is private", "HF_TOKEN")), ("hf_wrong", ("(401)", "valid token"))],
)
def test_401(
    token: str | None, words: tuple[str, ...], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_right"
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelError) as caught:
        fetch_model("owner/name")
    assert_explained(caught, *words)
    assert token is None or token not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert fetch_model("owner/name").commit == COMMIT


def test_404(hub: Hub) -> None:
    with pytest.raises(ModelError, match="there is no folder owner/other here, and the hub has no"):
        fetch_model("owner/other")
    with pytest.raises(ModelError) as caught:
        fetch_model("owner/name", revision="v9")
    assert_explained(caught, "no revision 'v9'")
    assert "no folder" not in str(caught.value)
    with pytest.raises(ModelError):
        fetch_model("owner/name", revision="../../x")
    del hub.files["unet/config.json"]
    with pytest.raises(ModelError) as caught:
        fetch_model("owner/name")
    assert_explained(caught, "lacks unet/config.json")


def test_the_hub_is_ill(hub: Hub, impatient: None) -> None:
    hub.status = 403
    with pytest.raises(ModelError) as caught:
        fetch_model("owner/name")
    assert_explained(caught, "403")
    hub.status = 500
    with pytest.raises(ModelError) as caught:
        fetch_model("owner/name")
    assert_explained(caught, "try again")


def test_no_network(
    hub: Hub, impatient: None, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    found = fetch_model("owner/name")
    closed = "http://127.0.0.1:1"
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    template = closed + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert fetch_model("owner/name") == found  # the cache serves
    shutil.rmtree(cache)
    with pytest.raises(ModelError) as caught:
        fetch_model("owner/name")
    assert_explained(caught, "cannot be reached", "check the network", "no folder owner/name here")


class TestOffline:
    def test_full_cache(self, hub: Hub, no_sockets: Callable[[], None]) -> None:
        fetch_model("owner/name")
        no_sockets()
        hub.requests.clear()
        found = load_components("owner/name", device="cpu", dtype="float32", offline=True)
        assert found.identity.revision == COMMIT
        assert hub.requests == []

    def test_half_cache(self, hub: Hub, no_sockets: Callable[[], None], tiny_model: Path) -> None:
        folder = fetch_model("owner/name").folder
        (folder / UNET).unlink()
        no_sockets()
        with pytest.raises(ModelError) as caught:
            fetch_model("owner/name", offline=True)
        assert_explained(caught, "not all of it", "run once with a network")

    def test_half_cache_of_an_older_client(
        self, hub: Hub, no_sockets: Callable[[], None], cache: Path
    ) -> None:
        """Without its list of files nobody knows what lacks; the check of the folder does."""
        folder = fetch_model("owner/name").folder
        (folder / UNET).unlink()
        shutil.rmtree(cache / "models--owner--name/trees")
        from huggingface_hub import _tree_cache

        _tree_cache._IN_MEMORY_TREE_CACHE.clear()
        no_sockets()
        with pytest.raises(ModelError, match=f"lacks {UNET}"):
            load_components("owner/name", device="cpu", dtype="float32", offline=True)

    @pytest.mark.parametrize("name", [UNET, "unet/config.json", "tokenizer/vocab.json"])
    def test_damaged_cache(self, name: str, hub: Hub, cache: Path) -> None:
        file = fetch_model("owner/name").folder / name
        file.resolve().write_bytes(file.read_bytes()[:40])
        with pytest.raises(ModelError) as caught:
            load_components("owner/name", device="cpu", dtype="float32", offline=True)
        assert_explained(caught, Path(name).name)
        if name == UNET:
            assert str(cache / "models--owner--name") in str(caught.value)

    @pytest.mark.parametrize("revision", [None, "v1", COMMIT])
    def test_empty_cache(
        self, revision: str | None, cache: Path, no_sockets: Callable[[], None]
    ) -> None:
        no_sockets()
        with pytest.raises(ModelError) as caught:
            fetch_model("owner/name", revision=revision, offline=True)
        assert_explained(caught, "run once with a network", "no folder owner/name here")

    def test_the_environment_decides_where_nobody_says(
        self, cache: Path, no_sockets: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        no_sockets()
        with pytest.raises(ModelError) as caught:
            fetch_model("owner/name")
        assert_explained(caught, "run once with a network")


def test_the_clients_own_environment(hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME and HF_TOKEN, as a fresh process reads them; torch is not needed."""
    hub.token = "hf_right"
    code = (
        "import sys; from ldm_toolkit.models.hub import fetch_model; "
        "print(fetch_model('owner/name').folder); sys.exit('torch' in sys.modules)"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_right",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / f"home/hub/models--owner--name/snapshots/{COMMIT}"
    assert Path(done.stdout.strip()).samefile(folder)


def test_hub_ids() -> None:
    for name in ("owner/name", "stabilityai/stable-diffusion-2-1", "a/b_c.d"):
        assert is_hub_id(name)
    for name in (
        "storybook",
        "./x/y",
        "../x",
        "a/b/c",
        "/a/b",
        "a\\b",
        "a/",
        "-/x",
        "https://x/y",
        Path("a/b"),
    ):
        assert not is_hub_id(name)


def test_a_name_that_begins_with_a_folder_is_a_path(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert on_hub("owner/name")
    (tmp_path / "owner" / "game").mkdir(parents=True)
    assert not on_hub("owner/name")
    with pytest.raises(ModelError) as caught:
        load_components("owner/name", device="cpu", dtype="float32")
    told = "'owner' is a folder and holds no 'name', so the hub is not asked; did you mean 'game'?"
    assert_explained(caught, "no model 'owner/name'", told)
    assert hub.requests == []


def test_folders_win_over_the_hub(
    hub: Hub, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    found = load_components("owner/name", device="cpu", dtype="float32")
    assert found.identity.revision == ""
    assert hub.requests == []


class TestLoras:
    FILE = "pytorch_lora_weights.safetensors"

    def test_the_usual_name_is_fetched_alone(self, hub: Hub) -> None:
        hub.files |= {self.FILE: b"lora", "other.safetensors": b"other"}
        assert Path(fetch_lora("owner/name")).read_bytes() == b"lora"
        assert hub.asked() == [self.FILE]

    def test_a_file_by_its_name(self, hub: Hub) -> None:
        hub.files |= {self.FILE: b"lora", "styles/ink.safetensors": b"ink"}
        assert Path(fetch_lora("owner/name/styles/ink.safetensors")).read_bytes() == b"ink"
        assert hub.asked() == ["styles/ink.safetensors"]

    def test_the_only_one(self, hub: Hub) -> None:
        hub.files = {"README.md": b"", "ink.safetensors": b"ink"}
        assert Path(fetch_lora("owner/name")).read_bytes() == b"ink"

    @pytest.mark.parametrize("asked", ["", "/none.safetensors", "/a/none.safetensors"])
    def test_nothing_that_could_be_meant(self, asked: str, hub: Hub) -> None:
        hub.files = {"a.safetensors": b"", "b.safetensors": b""}
        with pytest.raises(ModelError) as caught:
            fetch_lora(f"owner/name{asked}")
        assert_explained(caught, "there is no", "a.safetensors, b.safetensors")

    def test_paths_are_not_asked_for(self, hub: Hub, tmp_path: Path) -> None:
        places = ("loras/ink.safetensors", "ink.safetensors", tmp_path / "x", "ink", "")
        odd = ("q/b/*", "q/b/../c.safetensors", "q/b//c.safetensors", "q/b/c.bin", "q/b/")
        for place in (*places, *odd):
            assert fetch_lora(place) == place
        assert hub.requests == []

    @pytest.mark.parametrize("kind", [str, Path])
    def test_a_folder_stands_for_the_file_in_it(self, kind: type, hub: Hub, tmp_path: Path) -> None:
        place = kind(tmp_path)
        assert fetch_lora(place) == place
        (tmp_path / self.FILE).write_bytes(b"lora")
        assert fetch_lora(place) == tmp_path / self.FILE
        assert hub.requests == []

    def test_it_must_be_a_lora(self, hub: Hub, pipe: LatentPipeline) -> None:
        hub.files |= {self.FILE: b"no safetensors"}
        with pytest.raises(ModelError, match="pytorch_lora_weights"):
            pipe.load_lora("owner/name")
        assert pipe.components.loras == ()
