"""Images of a folder or of shards, by key, in the size they have."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from kintsugi.ahead import map_ahead
from kintsugi.errors import JobError, UnreadableImage
from kintsugi.pipeline.data.convert import array_of, eight_bits_of, refuse_channels
from kintsugi.pipeline.data.decode import Content, Decoded, decode, image_of
from kintsugi.pipeline.data.depth import rounded
from kintsugi.pipeline.data.read import DECODERS, content_at
from kintsugi.pipeline.data.shards import Place, called, checked_key, checksum, expand, index
from kintsugi.pipeline.data.tar import DamagedShard
from kintsugi.pipeline.metrics.metric import GREY_OR_RGB
from kintsugi.pipeline.storage.location import Location, is_remote

READERS = 16  # files read at once where all are read


class Collection:
    """The images of a folder or of shards.

    Keys are the paths without suffix, as everywhere.

    Args:
        field: what the patterns are called in errors. patterns: as `data.shards`.

    Raises:
        JobError: no such folder or shard, a damaged one, no images in it, or a key that occurs twice.
    """

    def __init__(self, field: str, patterns: str | list[str]):
        self.name = str(patterns)
        self.places: dict[str, tuple[Location, Place]] = {}
        with called(field):
            try:
                for shard in expand(patterns):
                    for sample in index(shard):
                        if sample.key in self.places:
                            raise JobError(f"{field}: the key {sample.key!r} occurs twice")
                        self.places[checked_key(shard, sample.key)] = (shard, sample)
            except DamagedShard as error:
                raise JobError(f"{field}: {shard}: {error}") from error
        if not self.places:
            raise JobError(f"{field}: there are no images in {patterns}")

    def __len__(self) -> int:
        return len(self.places)

    def digest(self) -> str:
        """SHA-256 of which images these are: keys, files and sizes, not contents."""

        def place(shard: Location, sample: Place) -> tuple[str | int, ...]:
            if sample.file is None:
                return str(shard), sample.offset, sample.end
            # A file of a bucket is asked for by itself, which takes too long for many.
            size = -1 if is_remote(shard) else (shard / sample.file).stat().st_size
            return str(shard), sample.file, size

        places = [(key, *place(*self.places[key])) for key in sorted(self.places)]
        return hashlib.sha256(json.dumps(places).encode()).hexdigest()

    def contents(self) -> str:
        """SHA-256 of the images: of the bytes of tars, of keys and bytes of files; raises as `open`."""
        tars = {shard for shard, sample in self.places.values() if sample.file is None}
        keys = [key for key in sorted(self.places) if self.places[key][1].file is not None]
        # Each tar in one go, not once for each image.
        of_tars, of_files = (map_ahead(checksum, tars, READERS), map_ahead(self.checksum, keys, READERS))
        sums = sorted(of_tars), keys, list(of_files)
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()

    def checksum(self, key: str) -> str:
        """SHA-256 of the file of one image in a folder, or why it cannot be read."""
        content = self.content(key)
        return (
            str(content) if isinstance(content, Exception) else hashlib.sha256(*content.values()).hexdigest()
        )

    def content(self, key: str) -> Content:
        """The files of one image by suffix, or why there are none."""
        return content_at(*self.places[key])

    def read(self, key: str) -> Decoded:
        """One image, (H, W, 3) uint8, or why there is none."""
        _, sample = self.places[key]
        return decode(key, sample.offset, self.content(key), as_it_is, sample.file)

    def read_all(self, keys: Iterable[str]) -> Iterator[Decoded]:
        """Images in the order of the keys, a few of them decoded ahead."""
        return map_ahead(self.read, keys, DECODERS)


def as_it_is(content: dict[str, Any], note: Callable[[str], None], channels: int = 3) -> np.ndarray:
    """Of any size, (H, W, channels) of 8 bits; of neither 1 nor 3 channels perhaps of an array."""
    if "npy" in content and channels not in GREY_OR_RGB:
        planes = array_of(content["npy"], note, channels, None)
        refuse_channels(len(planes), channels, f"an array of {len(planes)} channels")
        return (planes if planes.dtype == np.uint8 else rounded(planes)).transpose(1, 2, 0)
    if "npy" in content:
        raise UnreadableImage("an array; metrics are of images")
    with image_of(content, note) as image:
        return eight_bits_of(image, channels)
