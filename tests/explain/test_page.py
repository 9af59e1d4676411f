"""The page: everything is in it, it decodes, nothing comes from outside; a browser shows it."""

import base64
import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from ldm_toolkit.explain import page, picture
from ldm_toolkit.explain.observed import observe
from ldm_toolkit.pipeline import LatentPipeline

PROMPT = """<script>alert(1)</script> "a dog' <img src=x onerror=alert(2)> &amp;"""
OTHER = "</figcaption><b onclick='x'>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Writes into the page how wide each picture is: 0 where it did not load.
WIDTHS = """<script>
document.body.setAttribute("data-widths",
  Array.from(document.images, one => one.complete ? one.naturalWidth : 0).join(" "));
</script>
"""


class Seen(HTMLParser):
    """Tags, and text by the tag around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.tags[-1][0] if self.tags else "", []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_page(pipe: LatentPipeline, folder: Path, **options: object) -> Path:
    observed = observe(pipe, PROMPT, steps=2, seed=1, **options)
    subject = page.Subject(pipe, observed, OTHER, Image.new("RGBA", (90, 50), "teal"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, "_DPI", 36)  # the tests look at no detail
        page.write_page(folder, subject, page.pictures(subject))
    return folder / page.PAGE


@pytest.fixture(scope="module")
def made(pipe: LatentPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_page(pipe, tmp_path_factory.mktemp("page"), guidance=1.0)


@pytest.fixture(scope="module")
def seen(made: Path) -> Seen:
    return Seen(made.read_text("utf-8"))


def test_every_figure_is_embedded_and_is_its_file(made: Path, seen: Seen) -> None:
    images = seen.of("img")
    names = [attributes["id"] for attributes in seen.of("figure")]
    assert len(images) == len(names) == len(set(names)) == page.COUNT
    assert {path.name for path in made.parent.iterdir()} == {
        page.PAGE, *(f"{name}.png" for name in names),
    }  # fmt: skip
    for name, attributes in zip(names, images, strict=True):
        kind, _, data = (attributes["src"] or "").partition(";base64,")
        assert kind == "data:image/png"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as embedded:
            embedded.load()
            assert len(embedded.getcolors(1 << 24) or []) > 50, "an empty picture"
            with Image.open(made.parent / f"{name}.png") as file:
                assert file.convert("RGB").tobytes() == embedded.convert("RGB").tobytes()
        assert attributes["alt"]
    assert len([text for text in seen.texts["figcaption"] if text.strip()]) == page.COUNT


def test_nothing_comes_from_outside(made: Path, seen: Seen) -> None:
    text = made.read_text("utf-8")
    code = re.sub(r'src="data:image/png;base64,[A-Za-z0-9+/=]*"', "", text)
    assert not re.search(r"https?:|//|url\(|@import|<link|<iframe|<script", code)
    assert len(text) > 10 * len(code)
    for tag, attributes in seen.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "srcset", "style") or (tag, name) == ("img", "src")
            assert name != "href" or (value or "").startswith("#")


def test_links_lead_to_sections(seen: Seen) -> None:
    places = [attributes.get("id") for _, attributes in seen.tags if attributes.get("id")]
    assert len(places) == len(set(places))
    links = [(attributes["href"] or "")[1:] for attributes in seen.of("a")]
    assert len(links) == len(page._SECTIONS)
    assert set(links) <= set(places)


def test_prompts_are_text(seen: Seen) -> None:
    assert "".join(seen.texts["h1"]).strip() == PROMPT
    assert any(OTHER in caption for caption in seen.texts["figcaption"])
    assert not seen.of("script")
    assert not seen.of("b")


def test_the_style_knows_dark_and_light_and_small_screens(made: Path) -> None:
    text = made.read_text("utf-8")
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_the_bundled_model_has_a_page_too(tmp_path: Path) -> None:
    pipe = LatentPipeline.from_pretrained("storybook", device="cpu")
    found = Seen(make_page(pipe, tmp_path, width=64, height=64).read_text("utf-8"))
    assert len(found.of("img")) == page.COUNT
    assert "48 times fewer" in "".join(found.texts["figcaption"])


def browser() -> str | None:
    """A browser that can run without a screen."""
    named = os.environ.get("CHROME")
    found = [shutil.which(name) for name in ((named,) if named else BROWSERS)]
    return next((path for path in found if path), None)


@pytest.mark.skipif(browser() is None, reason="no chromium on the PATH or in $CHROME")
def test_every_figure_loads_in_a_browser(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "page.html"
    text = made.read_text("utf-8")
    copy.write_text(text.replace("</body>", f"{WIDTHS}</body>"), "utf-8")
    command = [
        browser() or "",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=10000",
        "--dump-dom",
        copy.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    widths = Seen(done.stdout).of("body")[0]["data-widths"]
    assert widths is not None, done.stdout[-2000:]
    assert len(widths.split()) == page.COUNT
    assert all(int(width) > 100 for width in widths.split())
