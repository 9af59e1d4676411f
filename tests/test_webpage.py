"""Pages in one file: what is embedded decodes, what is escaped stays text, nothing from outside."""

import base64
import io
from html.parser import HTMLParser

import pytest
from PIL import Image
from samples import HOSTILE_PROMPTS, HOSTILE_TEXTS

from ldm_toolkit.webpage import data_uri, escaped, image_tag, page

PICTURE = Image.effect_noise((24, 16), 60).convert("RGB")


class _Seen(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2], validate=True)))


def test_a_picture_comes_back_pixel_by_pixel() -> None:
    found = _decoded(data_uri(PICTURE))
    assert found.format == "PNG"
    assert found.tobytes() == PICTURE.tobytes()


def test_quality_makes_a_jpeg_also_of_a_picture_with_transparency() -> None:
    found = _decoded(data_uri(PICTURE.convert("RGBA"), quality=80))
    assert (found.format, found.size) == ("JPEG", PICTURE.size)


@pytest.mark.parametrize("index", range(len(HOSTILE_TEXTS + HOSTILE_PROMPTS)))
def test_hostile_texts_stay_text(index: int) -> None:
    text = (HOSTILE_TEXTS + HOSTILE_PROMPTS)[index]
    tag = image_tag(PICTURE, text)
    whole = page(text, f"<p>{escaped(text)}</p>{tag}")
    plain = page("x", f"<p>x</p>{image_tag(PICTURE, 'x')}")
    seen, expected = _Seen(whole), _Seen(plain)
    assert [name for name, _ in seen.tags] == [name for name, _ in expected.tags]
    assert all(attributes.keys() == others.keys() for (_, attributes), (_, others) in zip(
        seen.tags, expected.tags, strict=True
    ))  # fmt: skip
    whole.encode()


def test_what_could_turn_a_line_round_is_replaced() -> None:
    assert escaped("a\u202eb\x00c\ud800<\n") == "a\ufffdb\ufffdc\ufffd&lt;\n"


def test_a_page_names_no_address_and_forbids_all() -> None:
    whole = page("A title", image_tag(PICTURE, "a"), style="p { }\n", script="var a = 1;\n")
    assert "http:" not in whole.replace("http-equiv", "")
    assert "https:" not in whole
    assert "//" not in whole.replace(data_uri(PICTURE), "")
    assert "default-src 'none'" in whole
    assert whole.index("p { }") < whole.index("<body>") < whole.index("var a = 1;")
    assert _Seen(whole).text.count("A title") == 1
