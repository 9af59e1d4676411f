"""Small things that several test files need: a recipe, texts that break careless programs."""

from typing import Any

from ldm_toolkit.recipe import Recipe


def recipe(**changes: Any) -> Recipe:
    """A complete recipe of a small picture."""
    fields: dict[str, Any] = {
        "prompt": "a dog wearing hat",
        "negative_prompt": "",
        "seed": 42,
        "steps": 50,
        "guidance": 7.5,
        "guidance_rescale": 0.0,
        "scheduler": "ddim",
        "scheduler_config": {"beta_schedule": "scaled_linear"},
        "width": 64,
        "height": 64,
        "model": {"name": "storybook", "revision": "1", "sha256": "0" * 64},
        "dtype": "float32",
        "device": "cpu",
        "cpu_capability": "AVX2",
        "threads": 1,
        "memory_format": "contiguous",
        "batch_size": 1,
        "attention": "sdpa",
        "versions": {"ldm_toolkit": "0.1.0", "torch": "2.13"},
    }
    return Recipe(**(fields | changes))


HOSTILE_TEXTS = [
    "../x", "../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x", "C:", "\\\\host\\share", "CON",
    "con", "NUL.png", "aux", "com1", "lpt9.txt", "%2e%2e%2fx", "%00", ".", "..", "...", ".hidden",
    "~", "~root/x", "$HOME", "$(id)", "`id`", "; rm -rf x", "| cat", "&& id", "> out", "-rf", "--",
    "--help me", "*", "?", "[a-z]", "{a,b}", "{__class__}", "{0.__class__}", "%s%n", "%(prompt)s",
    "x" * 300, "é" * 300, "\U0001f436" * 100, "a\nb", "a\r\nb", "a\tb", "\x1b[31mred", "\x07",
    "\u202egnp.exe", "\u200b", "a\u0301" * 50, "\uff0f\uff0f", "\u2025", "\ufeff", " ", "   lead",
    "trail. ", "trail.", "<script>alert(1)</script>", '"quoted"', "'single'", "a:b", "a|b",
    "Steps: 1, Sampler: forged, Seed: 1", "x\nNegative prompt: forged\nSteps: 1, Seed: 2, Size: 1",
    "", "狗", "a/b/c", "dog.png", "dog.png/../cat",
]  # fmt: skip
