"""One image as RGB pixels, or a refusal: its size is looked at before it is decoded, no value is cut off silently.

What has one meaning in 8-bit RGB is turned into it: greyscale, palettes, black and white, CMYK and YCbCr by Pillow's
formulas, 16-bit greyscale of PNG and PPM by the upper byte (as Pillow reads 16-bit colour), an alpha channel that is
opaque everywhere. What has not is refused: transparent pixels, 32-bit and floating-point grey, several frames.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lkca.data import files
from lkca.data.files import UNREADABLE, DataError

FORMATS = sorted({*files.IMAGES.values()})
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_PLAIN = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_WITH_ALPHA = ("LA", "PA", "RGBA")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Pillow's warning of an image too large becomes an error: around threads that decode, not in them."""
    Image.init()  # knows all formats from here on, so that no thread has to look for them
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextlib.contextmanager
def opened(source: Path | bytes, where: str, wanted: str = "a sound image") -> Iterator[Image.Image]:
    """An image whose header has been read and no more; what goes wrong with it becomes a DataError."""
    try:
        content = io.BytesIO(source) if isinstance(source, bytes) else files.checked(source)
        with Image.open(content, formats=FORMATS) as image:
            yield image
    except DataError:
        raise
    except (*UNREADABLE, *_BOMBS) as error:
        raise DataError(f"{where} cannot be read ({error}): {wanted} is wanted there") from error


def size(source: Path | bytes, where: str) -> tuple[int, int]:
    """Width and height, from the header alone; raises DataError if there is no image."""
    with opened(source, where) as image:
        return image.size


def pixels(source: Path | bytes, where: str, wanted: tuple[int, int] | None = None) -> np.ndarray:
    """RGB pixels, uint8 (H, W, 3).

    Args:
        source: the file, or its bytes.
        where: what it is called in messages.
        wanted: width and height; an image of another size is refused before it is decoded.

    Raises:
        DataError: on what is no image of `FORMATS`, is damaged or of another size, or has no one meaning in RGB.
    """
    size = f"{wanted[0]} x {wanted[1]}" if wanted else ""
    with opened(source, where, f"a sound image{f' of {size}' if wanted else ''}") as image:
        if wanted and image.size != wanted:
            raise DataError(f"{where} is {image.width} x {image.height} pixels, not {size}")
        return _rgb(image, where)


def _rgb(image: Image.Image, where: str) -> np.ndarray:
    mode, sixteen = image.mode, image.format in ("PNG", "PPM") and (image.mode == "I" or image.mode[:4] == "I;16")
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a telephone's JPEG with views
        raise DataError(f"{where} has several frames: an image of one is wanted")
    if sixteen and "transparency" not in image.info:
        grey = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if mode not in (*_PLAIN, *_WITH_ALPHA):
        raise DataError(
            f"{where} has pixels of mode {mode}, whose black and white are not known: 8 bits a channel are wanted"
        )
    if mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        low, _ = image.getchannel("A").getextrema()
        if low != 255:
            raise DataError(f"{where} has transparent pixels: an image without them is wanted, as RGB")
    return np.asarray(image.convert("RGB"))
