"""fid and kid of pictures, against scipy and the sums written out, and their error bars."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from albums import Album, noise
from scipy.linalg import sqrtm

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed; pip install '.[eval]'")

from ldm_toolkit.errors import InputError, ModelError, UserError
from ldm_toolkit.evaluation import extractors
from ldm_toolkit.evaluation.distances import fid, frechet, kid
from ldm_toolkit.evaluation.extractors import open_extractor
from ldm_toolkit.evaluation.subject import Subject
from ldm_toolkit.files import sha256_file
from ldm_toolkit.storybook.judge import Judge


def features(seed: int, count: int, shift: float = 0.0, width: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, width)) + shift).astype(np.float32)


def direct_frechet(a: np.ndarray, b: np.ndarray) -> float:
    means = a.mean(0) - b.mean(0)
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(means @ means + np.trace(c + d - 2 * sqrtm(c @ d).real))


def direct_kernel(a: np.ndarray, b: np.ndarray) -> float:
    """Bińkowski et al. 2018, eq. 4, unbiased, of all samples."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    n, m = len(a), len(b)
    own = (kernel(a, a).sum() - np.trace(kernel(a, a))) / (n * (n - 1))
    other = (kernel(b, b).sum() - np.trace(kernel(b, b))) / (m * (m - 1))
    return float(own + other - 2 * kernel(a, b).mean())


def test_fid_and_kid_of_pictures(subject: Callable[..., Subject], judge_file: Path) -> None:
    pictures, reference = Album(noise(40, 1)), Album(noise(30, 2, level=180))
    one = subject(pictures, reference=reference)
    choice = {"features": str(judge_file), "inception_weights": None}
    judge = Judge.load(judge_file)
    a, b = (judge.features(album.images).double().numpy() for album in (pictures, reference))
    found = fid(one, **choice)
    assert found.scores["fid"].value == pytest.approx(direct_frechet(a, b), rel=1e-4)
    assert found.scores["fid"].low <= found.scores["fid"].value <= found.scores["fid"].high
    assert found.settings["features_sha256"] == open_extractor(str(judge_file), None).sha256
    assert found.settings["reference_pictures"] == 30
    assert "few for 32 features" in found.notes[0]
    kernel = kid(one, **choice)
    spread = kernel.settings["subset_deviation"]
    assert kernel.settings["subset_size"] == 15
    # The mean of 100 halves is the whole's value but for their own error.
    value = kernel.scores["kid"].value
    assert value == pytest.approx(direct_kernel(a, b), abs=4 * spread / 10)
    assert kernel.scores["kid"].low < value < kernel.scores["kid"].high


def test_bars_of_the_distances_are_as_wide_as_their_spread(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over repeated samples the deviation that is told is that which there is."""
    values, bars = [], []
    for seed in range(24):
        found = frechet(features(seed, 200), features(100 + seed, 200, 0.5))
        values.append(found.value)
        bars.append((found.high - found.value) / 1.96)
    assert np.mean(bars) == pytest.approx(np.std(values), rel=0.5)
    values, bars = [], []
    for seed in range(24):
        sets = [features(seed, 60), features(100 + seed, 60, 0.5)]
        monkeypatch.setattr(Subject, "features", lambda *_, sets=sets: sets.pop())
        one = subject(Album(noise(1)), reference=Album(noise(1)))
        monkeypatch.setattr(
            "ldm_toolkit.evaluation.distances.open_extractor", lambda *_: _Nothing()
        )
        score = kid(one, features="x", inception_weights=None).scores["kid"]
        values.append(score.value)
        bars.append((score.high - score.value) / 1.96)
    assert np.mean(bars) == pytest.approx(np.std(values), rel=0.5)


class _Nothing:
    settings: dict = {}  # noqa: RUF012


def test_equal_sets_are_near_and_others_are_not() -> None:
    same = frechet(features(0, 300), features(1, 300))
    apart = frechet(features(0, 300), features(1, 300, 1.0))
    assert same.value < 0.2 < 3 < apart.low
    assert apart.value == pytest.approx(4, rel=0.2)  # four dimensions, each one apart


@pytest.mark.parametrize("measure", [fid, kid])
def test_too_few_pictures(
    measure: Callable, subject: Callable[..., Subject], judge_file: Path
) -> None:
    one = subject(Album(noise(3)), reference=Album(noise(30)))
    with pytest.raises(InputError, match="at least"):
        measure(one, features=str(judge_file), inception_weights=None)


def test_inception_wants_the_weights_that_define_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--inception-weights"):
        open_extractor("inception", None)
    (tmp_path / "x.pth").write_bytes(b"other weights")
    with pytest.raises(ModelError, match="begins with"):
        open_extractor("inception", tmp_path / "x.pth")


@pytest.fixture
def random_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The usual network's file with random weights; the true ones are 95 MB from outside."""
    fidelity = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is not installed"
    )
    kind = fidelity.FeatureExtractorInceptionV3
    with monkeypatch.context() as empty:
        empty.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        empty.setattr(kind, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = kind("x", ["2048"])
    path = tmp_path / "x.pth"
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha256_file(path)[:8])
    return path


def test_inception_is_that_of_torch_fidelity(random_inception: Path) -> None:
    from torch_fidelity import FeatureExtractorInceptionV3

    images = noise(2, size=40)
    found = open_extractor("inception", random_inception, "cpu").compute(images)
    network = FeatureExtractorInceptionV3(
        "x", ["2048"], feature_extractor_weights_path=str(random_inception)
    )
    levels = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in images])
    np.testing.assert_allclose(found, network(levels)[0].numpy(), rtol=1e-3, atol=1e-5)
    assert found.shape == (2, 2048)
    assert found.std() > 0


def test_a_pickle_of_weights_runs_nothing(
    random_inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = tmp_path / "hostile.pth"
    torch.save({"x": Harmful(tmp_path / "ran")}, hostile)
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha256_file(hostile)[:8])
    with pytest.raises(ModelError, match="refused by torch's weights-only loader"):
        open_extractor("inception", hostile)
    assert not (tmp_path / "ran").exists()


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)
