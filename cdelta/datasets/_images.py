"""One image file as what a viewer would show: 8-bit RGB, upright, on white."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cdelta._extras import optional

# what Pillow raises on broken files
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)


class BrokenImage(ValueError):
    """An image file that cannot be read as what the list promises."""


def read(path: Path) -> Any:
    r"""The picture at ``path`` as a Pillow image of mode RGB.

    Turned as its EXIF orientation says; of several frames the first; what is transparent lies on
    white, :math:`\alpha c + (1 - \alpha)\,255`; 16-bit grey v of a PNG or PGM is
    :math:`255\,v/65535`, rounded.

    Raises BrokenImage (a ValueError) when it does not decode, and for values whose white the format
    does not tell: real numbers, or more than 8 bits a channel in other formats.
    """
    Image = optional("PIL.Image")
    if not path.is_file():
        raise BrokenImage(
            f"{path} is not there any more" if not path.exists() else f"{path} is no file"
        )
    try:
        with Image.open(path) as picture:
            return _rgb(picture)
    except (*_BROKEN, Image.DecompressionBombError) as error:
        reason = str(error).replace(str(path), path.name)
        raise BrokenImage(f"{path} does not decode: {reason}") from error


def _rgb(picture: Any) -> Any:
    Image, ImageOps = optional("PIL.Image"), optional("PIL.ImageOps")
    form = picture.format  # which a turned copy does not know
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray(_eight_bits(picture, form))
    # convert("RGB") would drop the opacity, and show the colours that nobody was to see
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture.convert("RGBA"))
    return picture.convert("RGB")


def _eight_bits(picture: Any, form: str) -> UInt8[np.ndarray, "height width"]:
    """16-bit grey on a scale of 255: convert("RGB") would cut all that is above 255 to white."""
    if picture.mode == "F" or form not in ("PNG", "PPM"):
        raise ValueError(
            f"nothing says which of its values is white (Pillow's mode {picture.mode}, {form}); "
            f"save it with 8 bits a channel"
        )
    values = np.asarray(picture).astype(np.int64)
    values[values == picture.info.get("transparency", -1)] = 65535
    return ((255 * values + 32767) // 65535).astype(np.uint8)
