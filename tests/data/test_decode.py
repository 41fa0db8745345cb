"""One image as RGB pixels: every mode becomes what it means or is refused, and no header is believed too late."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from lkca.data import decode
from lkca.data.files import DataError

RNG = np.random.default_rng(0)
GREY, COLOUR = RNG.integers(0, 256, (8, 8), np.uint8), RNG.integers(0, 256, (8, 8, 3), np.uint8)


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(content):
    return decode.pixels(content, "it", (8, 8))


def with_alpha(alpha):
    return Image.fromarray(np.dstack([COLOUR, np.asarray(alpha, np.uint8)]), "RGBA")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_grey_and_colour_are_as_they_are(kind):
    assert np.array_equal(read(saved(Image.fromarray(COLOUR), kind)), COLOUR)
    assert np.array_equal(read(saved(Image.fromarray(GREY), kind)), np.repeat(GREY[..., None], 3, 2))


@pytest.mark.parametrize("factor", [256, 257])
def test_sixteen_bits_are_scaled_and_not_cut_off(factor):
    deep = GREY.astype(np.uint16) * factor
    for content in (saved(Image.fromarray(deep)), b"P5 8 8 65535\n" + deep.astype(">u2").tobytes()):
        assert np.array_equal(read(content), np.repeat(GREY[..., None], 3, 2))


def test_sixteen_bits_a_colour_are_scaled():
    rows = b"".join(b"\0" + row.tobytes() for row in (COLOUR.astype(np.uint16) * 257).astype(">u2"))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    assert np.array_equal(read(content), COLOUR)


def test_palettes_black_and_white_and_other_colour_spaces():
    few = Image.fromarray(COLOUR).quantize(16)
    assert np.array_equal(read(saved(few)), np.asarray(few.convert("RGB")))
    bits = Image.fromarray(GREY > 127)
    assert np.array_equal(read(saved(bits))[..., 0], np.where(GREY > 127, 255, 0))
    flat = Image.new("RGB", (8, 8), (200, 100, 50))
    assert np.abs(read(saved(flat.convert("CMYK"), "JPEG", quality=100)).astype(int) - (200, 100, 50)).max() < 4


def test_an_alpha_channel_is_dropped_only_where_it_says_nothing():
    assert np.array_equal(read(saved(with_alpha(np.full((8, 8), 255)))), COLOUR)
    for image in (with_alpha(GREY), with_alpha(GREY).convert("LA")):
        with pytest.raises(DataError, match="it has transparent pixels: an image without them is wanted"):
            read(saved(image))
    few = Image.fromarray(COLOUR).quantize(16)
    with pytest.raises(DataError, match="transparent pixels"):
        read(saved(few, transparency=3))
    with pytest.raises(DataError, match="transparent pixels"):
        read(saved(Image.fromarray(COLOUR), transparency=tuple(map(int, COLOUR[3, 3]))))


@pytest.mark.parametrize("mode, kind", [("I", "TIFF"), ("F", "TIFF"), ("LAB", "TIFF"), ("F", "PPM")])
def test_what_has_no_known_black_and_white_is_refused(mode, kind):
    with pytest.raises(DataError, match=f"it has pixels of mode {mode}, whose black and white are not known"):
        read(saved(Image.new(mode, (8, 8)), kind))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_several_frames_are_refused(kind):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    with pytest.raises(DataError, match="it has several frames"):
        read(saved(frames[0], kind, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("side", [9, 5_000, 12_000, 40_000])
def test_a_size_is_looked_at_before_anything_is_decoded(side, monkeypatch):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    content += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + struct.pack(">I", 10) + b"IDAT" + bytes(14)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with decode.guarded(), pytest.raises(DataError, match=f"it is {side} x {side} pixels, not 8 x 8|exceeds limit"):
        read(content)


@pytest.mark.parametrize("content", [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", bytes(160)])
def test_what_is_no_image_is_named(content):
    with pytest.raises(DataError, match="it cannot be read .*: a sound image of 8 x 8 is wanted there"):
        read(content)
