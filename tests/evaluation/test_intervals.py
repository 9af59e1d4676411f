"""Error bars against scipy and against what they promise."""

import numpy as np
import pytest
from scipy import stats

from ldm_toolkit.evaluation.intervals import (
    Interval,
    around,
    bootstrap,
    jackknife,
    mean,
    paired_difference,
    share,
)


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (1, 2), (40, 100), (481, 500)])
def test_a_share_has_the_score_interval(hits: int, count: int) -> None:
    found = share(hits, count)
    expected = stats.binomtest(hits, count).proportion_ci(0.95, "wilson")
    assert found.value == hits / count
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.low < found.high <= 1


def test_a_mean_has_the_interval_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(3, 2, 50)
    found = mean(list(values))
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert mean([1.0]).high == float("inf")


@pytest.mark.parametrize("measure", [lambda: share(0, 0), lambda: mean([])])
def test_nothing_has_no_interval(measure) -> None:
    with pytest.raises(ValueError, match="no samples"):
        measure()


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    inside = {"share": 0, "mean": 0, "bootstrap": 0}
    for _ in range(400):
        hits, values = rng.random(200) < 0.8, rng.normal(1, 3, 60)
        intervals = {
            "share": (share(int(hits.sum()), 200), 0.8),
            "mean": (mean(list(values)), 1.0),
            "bootstrap": (bootstrap(60, lambda i, v=values: float(v[i].mean()), rounds=200), 1.0),
        }
        for name, (found, truth) in intervals.items():
            inside[name] += found.low <= truth <= found.high
    assert all(365 <= count <= 395 for count in inside.values()), inside


def test_pairs_are_compared_with_each_other() -> None:
    rng = np.random.default_rng(2)
    prompt = rng.normal(0, 10, 300)
    first, second = prompt + rng.normal(0, 0.1, 300), prompt + 0.5 + rng.normal(0, 0.1, 300)
    found = paired_difference(list(first), list(second))
    assert found.value == pytest.approx(float((second - first).mean()))
    assert 0.45 < found.low < found.high < 0.55
    assert found == paired_difference(list(first), list(second))
    assert found.as_dict()["count"] == 300


def test_the_interval_of_a_paired_difference_is_the_normal_one_for_many_pairs() -> None:
    """McNemar's: of right and wrong answers whose difference is -1, 0 or 1."""
    first = [1.0] * 700 + [0.0] * 300
    second = [0.0] * 60 + [1.0] * 640 + [1.0] * 40 + [0.0] * 260
    lost, won, count = 60, 40, 1000
    deviation = ((lost + won) / count - ((won - lost) / count) ** 2) ** 0.5 / count**0.5
    found = paired_difference(first, second)
    assert found.value == pytest.approx((won - lost) / count)
    low, high = stats.norm.interval(0.95, found.value, deviation)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.3 * deviation)
    alone = mean(second)  # without the pairs it would be wider
    assert found.high - found.low < 0.8 * (alone.high - alone.low)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    """With groups of one sample each; and of larger ones near it."""
    data = np.random.default_rng(0).normal(3, 2, 200)

    def without(groups: int) -> Interval:
        def mean_without(group: int | None) -> float:
            kept = data if group is None else data[np.arange(200) % groups != group]
            return float(kept.mean())

        return jackknife(200, mean_without, groups=groups)

    expected = mean(data.tolist())
    exact, grouped = without(200), without(20)
    assert (exact.value, exact.count) == (pytest.approx(expected.value), 200)
    assert exact.high == pytest.approx(expected.high)
    assert exact.low == pytest.approx(expected.low)
    assert grouped.high - grouped.value == pytest.approx(expected.high - expected.value, rel=0.4)


def test_a_bar_ends_where_values_do() -> None:
    assert around(1.0, 2.0, 5, least=0.0).low == 0.0
    assert around(1.0, 2.0, 5).low == pytest.approx(1 - 2 * 1.959964)
