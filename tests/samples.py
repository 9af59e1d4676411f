"""Small things that several test files need: a recipe, texts that break careless programs."""

from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm_toolkit.images import RECIPE_KEY
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


def mirror(path: Path) -> None:
    """Turn a picture of ours round in its file, as a careful editor would: its recipe stays."""
    with Image.open(path) as made:
        made.load()
    info = {key: made.info[key] for key in ("xmp", "exif") if key in made.info}
    if path.suffix == ".png":
        info["pnginfo"] = PngInfo()
        info["pnginfo"].add_itxt(RECIPE_KEY, made.info[RECIPE_KEY])
    elif path.suffix == ".webp":
        info["lossless"] = True
    made.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path, **info)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


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

# Prompts that try to be something else where a file holds them: the web UIs' text, JSON, XML, EXIF.
HOSTILE_PROMPTS = [
    "a dog\nNegative prompt: nothing\nSteps: 1, Sampler: evil, CFG scale: 1, Seed: 666",
    "Negative prompt: forged", "negative PROMPT: forged", "a\r\nNegative prompt:forged\r\nb",
    "Steps: 1, Sampler: Euler, CFG scale: 7, Seed: 666, Size: 1x1",
    "a dog, Steps: 1, Seed: 666, Size: 1x1, Model: evil", "Steps: 1\nSteps: 2\nSteps: 3",
    "steps:steps:Steps:NEGATIVE PROMPT:", "Steps\t: 3", "Steps :1, Seed :666, Size :1x1",
    "a\u2028Negative prompt: x\u2029Seed: 666\x85Steps: 1", "a\x0bSteps: 1\x0cSeed: 666\x1cx: 1",
    '", Seed: 666, "', '"Steps: 1, Seed: 666', "\\n\\nSteps: 1", "\\", "\\\\\"", "\"\"\"",
    "a, b: c",
    "a: 1, b: 2, c: 3, d: 4", 'Lora hashes: "x: 1"', "a,\nb,\nSeed: 1, Size: 2, Steps: 3",
    '{"ldm_toolkit": {"seed": 666}}', '"}, "seed": 666, "x": {"', "\\u0022, \\u0000", "\\ud800",
    "</ldm:Recipe><ldm:Recipe>{}</ldm:Recipe>", "]]>", "<![CDATA[x]]>", "&lt;&amp;&#0;&#x41;&evil;",
    '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>&e;', "<?xpacket end='w'?>", "-->",
    "<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>", "a\x00b", "\x00",
    "\x00\x00tEXt",
    "".join(map(chr, range(1, 32))), "\x7f\x80\x9f\xa0\xad", "\ufffe\uffff\U0010ffff", "\ufeffa",
    "UNICODE\x00a", "ASCII\x00\x00\x00a", "\u202egnp.exe", "\U0001f436" * 40, "狗" * 200,
    "Caf\u00e9 \u0301\u0301", "x" * 5000, " \t ",
]  # fmt: skip

# Brackets, weights and characters that mean something to other parsers, compel's among them.
BRACKETED_PROMPTS = [
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
