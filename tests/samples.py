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

# Brackets, weights and characters that mean something to other parsers, compel's among them.
HOSTILE_PROMPTS = [
    "(", ")", "[", "]", "((", "))", "()", "[]", ")(", "][", "([)]", "(a", "a)", "[a", "a]",
    "(((a", "a)))", "(a [b) c]", "(" * 40 + "a", "(" * 300, ")" * 300, "[" * 300 + "a",
    "(" * 50 + "[" * 50 + "a", "(:1.3)", "(:)", ":1.3)", "(a:)", "(a:nan)", "(a:inf)", "(a:1e9)",
    "(a:1000000000)", "(a:-1)", "(a:0)", "(a:1.2.3)", "(a:0x10)", "(a:\u0663)", "(a:1,3)",
    "((a:1.3):0.7)", "((((a:2):2):2):2)", "(a:" + "9" * 400 + ")", "\\", "\\(", "\\\\(a)", "(a\\",
    "a\\)b", "(\\)", "(\u72d7:1.3)", "(\U0001f436\U0001f436:1.2)", "(\u202e:1.1)", "(\x00:1.1)",
    "(\n:1.1)", "(a <|endoftext|> b:1.2)", "(<|startoftext|>:1.3) a",
    "[<|startoftext|><|startoftext|>a]", "(<|endoftext|>:0.5)", "a+", "a- b++", '"a b"1.3',
    '("a","b").and()', '("a","b").blend(0.5,0.5)', "a.swap(b)", "withLora(x,1)", "a,b,c",
    "(a)1.3", "(a)+ (b)-", "(a.and():1.2)", "(a:1.1)" * 80, "[a]" * 80 + "(b:0.3)",
    "word " * 5000, "(word:1.2) " * 700, "(word " * 63,
]  # fmt: skip
