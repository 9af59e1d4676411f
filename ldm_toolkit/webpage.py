"""Web pages in one file that open offline: pictures embedded, texts escaped, no address.

Level 1: no torch. A page allows itself nothing from outside, by its Content-Security-Policy too.
"""

import base64
import html
import io

from PIL import Image

__all__ = ["data_uri", "escaped", "image_tag", "page"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.8rem; text-align: left; border-bottom: 1px solid #8886; }
figure { margin: 1.5rem 0; }
figcaption { color: GrayText; }
"""


def data_uri(image: Image.Image, *, quality: int | None = None) -> str:
    """A picture as text: ``data:image/png;base64,...``, or as JPEG of a ``quality`` of 1 .. 95."""
    buffer = io.BytesIO()
    if quality is None:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=quality)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def escaped(text: str) -> str:
    """A text of a stranger as it may stand in a page's text and in quoted attributes.

    Characters that are neither space nor printable, which can turn the order of what follows or
    are no text at all, become U+FFFD.
    """
    shown = "".join(c if c.isprintable() or c in " \n\t" else "\ufffd" for c in text)
    return html.escape(shown, quote=True)


def image_tag(image: Image.Image, alt: str, *, quality: int | None = None) -> str:
    """An embedded picture of its own size; ``alt`` is escaped here, ``quality`` see data_uri."""
    return (
        f'<img src="{data_uri(image, quality=quality)}" alt="{escaped(alt)}" '
        f'width="{image.width}" height="{image.height}">'
    )


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole page around ``body``, which is HTML already; ``title`` is escaped here.

    ``style`` follows the pages' common one; ``script`` runs after the body and is the caller's own
    constant text, never made of input.
    """
    code = f"<script>\n{script}</script>\n" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{_STYLE}{style}</style>\n</head>\n"
        f"<body>\n{body}\n{code}</body>\n</html>\n"
    )
