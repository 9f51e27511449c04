"""What is stored of each image, and the tars."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from kintsugi.pipeline.data.decode import FORMATS, crop_centre, open_image, resize, to_rgb
from kintsugi.pipeline.data.make.choosing import Listed, Options
from kintsugi.pipeline.data.make.sources import MAX_BYTES, Source, reason
from kintsugi.pipeline.data.names import IMAGE_SUFFIXES, suffix_of
from kintsugi.pipeline.data.pictures import encode
from kintsugi.pipeline.storage.publish import publish

DECODERS = 4
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}
Stored = dict[str, bytes] | str
"""The images of a sample by what follows its key, or the reason why it is left out."""


def store_all(source: Source, sample: Listed, options: Options) -> Stored:
    """What is stored of a sample."""
    if not options.members:
        stored = store(source, sample.name, options)
        return stored if isinstance(stored, str) else dict([stored])
    kept: dict[str, bytes] = {}
    for end, name in zip(options.members, (sample.name, *sample.beside), strict=True):
        stored = store(source, name, options)
        if isinstance(stored, str):
            return f"{end}: {stored}"
        kept[end] = stored[1]
    return kept


def store(source: Source, name: str, options: Options) -> tuple[str, bytes] | str:
    """Suffix and bytes of an image, or the reason why it is left out.

    It is decoded either way, so that shards hold no broken ones.
    """
    try:
        if source.images[name] > MAX_BYTES:
            raise ValueError(f"{source.images[name]:,} bytes, more than {MAX_BYTES:,}")
        content = source.read(name)
        with open_image(content) as image:
            if options.size is not None:
                fitted = fit(to_rgb(image), options.size, options.filter, options.crop)
                return "png", encode(np.asarray(fitted))
            image.load()
            suffix = suffix_of(name)
            # Keys of an LMDB have none. JPEGs of several pictures have a format of their own, MPO.
            return (suffix if suffix in IMAGE_SUFFIXES else FORMATS.get(image.format or "", "jpg")), content
    except Exception as error:  # one bad image is one left out
        return reason(error)


def fit(image: Image.Image, size: int, filter: str, crop: str) -> Image.Image:
    """Resized, and cropped as `Options` says; raises as `resize`."""
    if crop == "adm":
        while min(image.size) >= 2 * size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    image = resize(image, size, FILTERS[filter])
    return image if crop == "none" else crop_centre(image, size)


def write_shard(
    target: Path, stored: Iterator[tuple[Listed, Stored]]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Write one tar; its entry for the manifest, and (name, reason) of what was left out."""
    from webdataset import TarWriter

    samples, left_out = 0, []
    with publish(target) as temporary, temporary.open("wb") as file:
        tar = Hashed(file)
        with TarWriter(tar, mtime=0) as writer:
            for sample, content in stored:
                if isinstance(content, str):
                    left_out.append((sample.name, content))
                    continue
                label = {} if sample.label is None else {"cls": str(sample.label).encode()}
                writer.write({"__key__": sample.key, **content, **label})
                samples += 1
    shard = {"name": target.name, "samples": samples, "bytes": tar.bytes, "sha256": tar.sha256.hexdigest()}
    return shard, left_out


class Hashed:
    """A file for writing that knows the size and the SHA-256 of what went into it."""

    def __init__(self, file: BinaryIO):
        self.file, self.bytes, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """As a file's."""
        self.bytes += len(data)
        self.sha256.update(data)
        return self.file.write(data)
