"""The table of scores."""

from ldm_toolkit.evaluation.intervals import Interval
from ldm_toolkit.evaluation.report import Report, table


def test_the_table_has_values_bars_and_what_makes_them_comparable() -> None:
    reports = {
        "fid": Report(
            {"fid": Interval(12.3456, 11, 13.5, 500)},
            {"features_sha256": "a" * 64, "pictures": 500, "spread": 0.123456},
        ),
        "adherence": Report({"subject": Interval(1, 0.96, 1.0, 90)}),
    }
    lines = table(reports).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["measure", "value", "95", "%", "interval", "samples"],
        ["fid", "12.35", "11", "..", "13.5", "500"],
        ["adherence:", "subject", "1", "0.96", "..", "1", "90"],
    ]
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3] == f"fid with features sha256 {'a' * 12}, pictures 500, spread 0.1235"
    assert len(lines) == 4  # nothing to say of the other
