"""Colour: an embedded ICC profile other than sRGB is converted to sRGB, by Pillow's ImageCms (LittleCMS)."""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from kintsugi.errors import UnreadableImage

MAX_PROFILE = 1 << 24  # bytes; those of printing presses have two million
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # PIL's modes of what profiles are of
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
SAME = 2  # levels: profiles of sRGB differ by 1, Rec. 709's curve from sRGB's by 10


def in_srgb(image: Image.Image) -> Image.Image:
    """An image of 8 bits, converted to sRGB if need be; raises an UnreadableImage for a bad profile."""
    if (transform := transform_of(image)) is None:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if alpha is not None and image.mode not in GREY:
        image = image.convert("RGBA").convert("RGB")
    elif image.mode == "LA":
        image = image.getchannel("L")
    source = image if image.mode == transform.input_mode else image.convert(transform.input_mode)
    converted = ImageCms.applyTransform(source, transform)
    assert converted is not None  # only in place it returns nothing
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def transform_of(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """What takes an image's colours to sRGB, None where they are sRGB's; raises as `in_srgb`."""
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE:
        raise UnreadableImage(f"an ICC profile that is none, or larger than {MAX_PROFILE:,} bytes; remove it")
    return to_srgb(profile, "CMYK" if image.mode == "CMYK" else "L" if image.mode in GREY else "RGB")


@lru_cache(maxsize=16)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """`transform_of`, by the profile and the channels of the image: L, RGB or CMYK.

    A profile is known as sRGB's by what it does, as its name says little: there are dozens.
    """
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = SPACES.get(source.profile.xcolor_space.strip())
        if space == "RGB" and mode == "L":  # common; grey is then three equal channels
            mode = "RGB"
        if space != mode:  # left behind by a conversion, as Pillow's are; it says nothing of these values
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "CMYK":
            return transform
        levels = np.linspace(0, 255, 256 if mode == "L" else 9).round().astype(np.uint8)
        colours = (
            levels[:, None] if mode == "L" else np.stack(np.meshgrid(*[levels] * 3), -1).reshape(-1, 9, 3)
        )
        probe = Image.fromarray(colours)
        converted = ImageCms.applyTransform(probe, transform)
        change = np.asarray(converted, int) - np.asarray(probe.convert("RGB"), int)
    except Exception as error:  # what LittleCMS refuses
        raise UnreadableImage("an ICC profile that cannot be read; remove or mend it") from error
    return None if np.abs(change).max() <= SAME else transform
