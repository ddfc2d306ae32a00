"""Open images as a viewer shows them: turned by their EXIF tag, with 8 bits a channel, transparent parts white."""

import io
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repstitch.errors import InputError, one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFile:
    """An image that is read only when an encoder loads it. Messages call it `name`."""

    name: str
    read: Callable[[], bytes]


def open_image(item: Any) -> Any:
    """Open an image as a PIL image of mode L or RGB. Raises InputError if it cannot be read.

    `item` is a path, bytes, an ImageFile, a PIL image or a uint8 array (h, w, 3). The image is turned as its EXIF tag
    says, 16 bits of grey are scaled to 8, and transparent parts show white. Of an animation, the first frame is taken,
    with a warning.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(item, str | os.PathLike):
        item = ImageFile(str(item), Path(item).read_bytes)
    elif isinstance(item, bytes):
        item = ImageFile(f"an image of {len(item)} bytes", partial(bytes, item))
    name = item.name if isinstance(item, ImageFile) else "an image in memory"
    try:
        if isinstance(item, ImageFile):
            image = Image.open(io.BytesIO(item.read()))
            image.load()
        else:
            image = Image.fromarray(item) if isinstance(item, np.ndarray) else item
        return _as_shown(image, name)
    except InputError:
        raise
    except Exception as error:  # the readers of image formats and archives raise nearly every exception
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise InputError(f"`data`: {name} must be an image that can be read; {reason}. Repair or remove it.") from None


def _as_shown(image: Any, name: str) -> Any:
    from PIL import Image

    if getattr(image, "is_animated", False) and image.format != "MPO":  # a photo with a second picture for its depth
        log.warning("%s has %d frames; only the first is embedded.", name, image.n_frames)
    image = _turned(image, name)
    if image.mode.startswith("I;16"):
        return _scaled(image)
    if image.mode in ("I", "F"):
        raise InputError(
            f"`data`: {name} must have 8 or 16 bits a channel; got mode {image.mode}, whose range is not stated. "
            "Convert it to 8 bits."
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _turned(image: Any, name: str) -> Any:
    """Return the image, turned or mirrored as its EXIF tag says."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # metadata that cannot be read raises nearly every exception
        log.warning("%s is not turned, because its EXIF data cannot be read: %s", name, one_line(error))
        return image


def _scaled(image: Any) -> Any:
    """Return an image of 16 bits of grey as one of 8 bits. Its transparent value, if it states one, becomes white."""
    from PIL import Image

    grey = np.asarray(image).astype(np.uint32)
    shown = ((grey * 255 + 32767) // 65535).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        shown[grey == image.info["transparency"]] = 255
    return Image.fromarray(shown)
