"""Skipping of ``gpu`` and ``slow`` tests, with the reason in pytest's summary.

conftest.py calls `skip_unasked` from its ``pytest_collection_modifyitems``.
"""

from collections.abc import Iterable

import pytest

_REASONS = {
    "slow": "takes minutes; run with -m slow",
    "gpu": "needs an accelerator; run with -m gpu",
}


def skip_unasked(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Skip tests marked ``slow`` or ``gpu`` unless -m or their node id asks for them."""
    asked = config.getoption("markexpr", "") or ""
    named = [argument for argument in config.args if "::" in argument]
    for item in items:
        if any(item.nodeid.endswith(name.rsplit("/", 1)[-1]) for name in named):
            continue
        for mark, reason in _REASONS.items():
            if item.get_closest_marker(mark) and mark not in asked:
                item.add_marker(pytest.mark.skip(reason=reason))
