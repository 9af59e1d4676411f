"""What can compute a model's networks in torch's place. Level 1: no torch."""

from collections.abc import Mapping
from importlib.util import find_spec

from ldm_toolkit.errors import install_hint, suggestion

__all__ = ["BACKENDS", "backend_problems", "frozen_problems"]

BACKENDS = ("torch", "openvino")


def backend_problems(backend: str, *, compile: bool, attention: str) -> list[str]:
    """Why a backend cannot be had, or not with the rest of what was asked; a line a problem."""
    if backend not in BACKENDS:
        hint = suggestion(str(backend), BACKENDS)
        return [f"backend must be one of {', '.join(BACKENDS)}, not {backend!r:.80}{hint}"]
    if backend == "torch":
        return []
    problems = []
    if compile:
        problems.append(f"compile is torch's, and {backend} compiles by itself; leave one away")
    if attention not in ("auto", "sdpa"):
        problems.append(
            f"attention {attention!r:.80} is torch's, and {backend} has its own; leave it away"
        )
    if find_spec(backend) is None:
        problems.append(
            f"the backend {backend} needs the package {backend}: {install_hint(backend)}, or go on "
            "with the backend torch"
        )
    return problems


def frozen_problems(backend: str, frozen: Mapping[str, float]) -> dict[str, str]:
    """Why attention layers cannot keep their answers from step to step; by field a line.

    ``frozen`` has the values of the fields that ask for it; 1 is none.
    """
    if backend != "openvino":
        return {}
    return {
        name: f"{name} must be 1 with the backend openvino; the backend torch knows it"
        for name, value in frozen.items()
        if value != 1
    }
