"""What a picture file says about itself, in the words that each format has: XMP and EXIF.

Level 1: Pillow's Exif writer and the standard library's XML parser, no pixels. `images` decides
what is written; PNG text chunks need nothing from here but the origin's XMP packet.

The recipe is a property of our own XMP namespace. A JPEG segment holds 64 KB; a longer recipe goes
into extended XMP segments (XMP specification part 3, 1.1.3.1), so that it is never cut.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import ExifTags, Image

__all__ = [
    "JPEG_SEGMENT",
    "comment_exif",
    "insert_segments",
    "jpeg_sha256",
    "jpeg_xmp",
    "recipe_in_xmp",
    "without_notes",
    "xmp_packet",
]

JPEG_SEGMENT = 65_533
"""The most bytes that a JPEG segment holds."""

_NAMESPACE = "urn:ldm-toolkit:xmp/1.0/"
_NOTE = "http://ns.adobe.com/xmp/note/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_MAX_XMP = 8 * 2**20

# IPTC's term for "made by a trained model", the form that viewers look for.
_ORIGIN = (
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    "Iptc4xmpExt:DigitalSourceType="
    '"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"'
)

_STANDARD = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_PNG = b"\x89PNG\r\n\x1a\n"
_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_EXTENSION_HEAD = len(_EXTENSION) + 32 + 8  # name, GUID, whole length and offset


def xmp_packet(recipe: str | None = None) -> str:
    """The XMP packet that says that a model made the picture, and holds its recipe's JSON.

    ``recipe`` is JSON in ASCII, which has none of the characters that XML cannot hold.
    """
    return _wrapped(_ORIGIN) if recipe is None else _wrapped(_ORIGIN, recipe)


def jpeg_xmp(recipe: str | None) -> tuple[bytes, list[bytes]]:
    """A JPEG's standard packet, and the segments of the extended one where that is too small."""
    packet = xmp_packet(recipe).encode()
    if recipe is None or len(_STANDARD) + len(packet) <= JPEG_SEGMENT:
        return packet, []
    extended = _document("", recipe).encode()
    guid = hashlib.md5(extended, usedforsecurity=False).hexdigest().upper()
    step = JPEG_SEGMENT - _EXTENSION_HEAD
    segments = []
    for offset in range(0, len(extended), step):
        place = guid.encode() + struct.pack(">II", len(extended), offset)
        body = _EXTENSION + place + extended[offset : offset + step]
        segments.append(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body)
    note = f'{_ORIGIN} xmlns:xmpNote="{_NOTE}" xmpNote:HasExtendedXMP="{guid}"'
    return _wrapped(note).encode(), segments


def insert_segments(jpeg: bytes, segments: Sequence[bytes]) -> bytes:
    """A JPEG file with further application segments behind those that it has."""
    end = _behind_segments(jpeg)
    return b"".join([jpeg[:end], *segments, jpeg[end:]])


def jpeg_sha256(jpeg: bytes) -> str:
    """SHA-256 of a JPEG file behind its application segments: of the picture, not what it says."""
    return hashlib.sha256(memoryview(jpeg)[_behind_segments(jpeg) :]).hexdigest()


def _behind_segments(jpeg: bytes) -> int:
    """Where the application segments at the beginning of a JPEG file end."""
    end = 2
    while len(jpeg) > end + 3 and jpeg[end] == 0xFF and 0xE0 <= jpeg[end + 1] <= 0xEF:
        end += 2 + struct.unpack_from(">H", jpeg, end + 2)[0]
    return end


def recipe_in_xmp(packet: bytes, segments: Sequence[bytes] = ()) -> str | None:
    """The recipe's JSON in an XMP packet of a stranger, or in a JPEG's extended XMP; else None.

    ``segments`` are the bodies of the JPEG's APP1 segments. Other programs may have written the
    property as an element or as an attribute.
    """
    root = _parsed(packet)
    found = _property(root, f"{{{_NAMESPACE}}}Recipe")
    if found is not None:
        return found
    guid = _property(root, f"{{{_NOTE}}}HasExtendedXMP")
    if guid is None or not guid.isascii():
        return None
    return _property(_parsed(_extended(guid.encode(), segments)), f"{{{_NAMESPACE}}}Recipe")


def comment_exif(text: str) -> bytes:
    """An EXIF block whose UserComment is ``text``, as the web UIs and CivitAI read it.

    Big-endian UTF-16 behind the prefix "UNICODE", the form of the tools that the web UIs use.
    ``text`` has no half surrogates.
    """
    exif = Image.Exif()
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    # Pillow types bytes as BYTE, which other readers refuse; a bytearray becomes UNDEFINED, as
    # the standard asks.
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = [bytearray(comment)]
    return exif.tobytes()


def without_notes(data: bytes, keywords: Sequence[bytes]) -> bytes:
    """A PNG without colour profile and without texts but of these keywords; other data as they are.

    Pillow unpacks them all and refuses the picture where one is large, as a workflow of ComfyUI is.
    """
    if not data.startswith(_PNG):
        return data
    read = tuple(keyword + b"\0" for keyword in keywords)
    kept, start = [_PNG], len(_PNG)
    while start + 12 <= len(data):  # length, kind, content, checksum
        end = start + 12 + struct.unpack_from(">I", data, start)[0]
        if data[start + 4 : start + 8] not in _NOTES or data.startswith(read, start + 8):
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


def _wrapped(attributes: str, recipe: str | None = None) -> str:
    """A packet with the frame that lets programs find it in a file of unknown format."""
    head = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    return f'{head}{_document(attributes, recipe)}<?xpacket end="r"?>'


def _document(attributes: str, recipe: str | None) -> str:
    """The RDF of one packet: properties as attributes, the recipe as an element."""
    separator = " " if attributes else ""
    about = f'<rdf:Description rdf:about=""{separator}{attributes}'
    if recipe is None:
        description = f"{about}/>"
    else:
        description = (
            f'{about} xmlns:ldm="{_NAMESPACE}"><ldm:Recipe>{escape(recipe)}</ldm:Recipe>'
            "</rdf:Description>"
        )
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">{description}</rdf:RDF>'
        "</x:xmpmeta>"
    )


def _parsed(packet: bytes) -> ElementTree.Element | None:
    """A packet's XML; None for what is broken, too long, or declares entities (XML bombs)."""
    if len(packet) > _MAX_XMP:
        return None
    try:
        text = packet.decode()
        if "<!DOCTYPE" in text:
            return None
        return ElementTree.fromstring(text.strip("\0\ufeff \t\r\n"))
    except (UnicodeDecodeError, ElementTree.ParseError):
        return None


def _property(root: ElementTree.Element | None, name: str) -> str | None:
    """A simple property's text, whichever of its two forms it has."""
    for element in root.iter() if root is not None else ():
        if element.tag == name:
            return element.text
        if name in element.attrib:
            return element.attrib[name]
    return None


def _extended(guid: bytes, segments: Sequence[bytes]) -> bytes:
    """The extended packet ``guid`` out of its chunks; empty when one is missing or damaged."""
    packet = b"".join(data for _, data in sorted(_chunks(guid, segments)))
    digest = hashlib.md5(packet, usedforsecurity=False).hexdigest()
    return packet if digest.upper().encode() == guid.upper() else b""


def _chunks(guid: bytes, segments: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every chunk of the extended packet ``guid``."""
    for segment in segments:
        if segment.startswith(_EXTENSION + guid) and len(segment) > _EXTENSION_HEAD:
            yield (
                struct.unpack_from(">I", segment, _EXTENSION_HEAD - 4)[0],
                segment[_EXTENSION_HEAD:],
            )
