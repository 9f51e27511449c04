"""Features of a data set's images, kept in the cache folder: runs on the same images extract them once."""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from kintsugi.cache import cache_folder

BUCKETS, PLACES = 1 << 16, 4  # records in a file: 2 GiB of 2,048 features each, and no more
SUM = hashlib.sha256().digest_size


class Kept:
    """Features that were extracted on this machine before, by what they were extracted from, and how.

    A file of records of one size. A key decides in which bucket of a few records its own is, so that the
    file never grows beyond these. A record is the features behind the SHA-256 of its key and them: one that
    is damaged, half written, or another's is none. So nothing is locked, and writers that meet cost an
    extraction. Where the folder cannot be written, nothing is kept.

    Args:
        width: features of an image.
    """

    def __init__(self, width: int):
        self.size = SUM + 4 * width
        self.file: int | None = None
        with suppress(OSError):
            path = cache_folder() / "features" / str(width)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def __del__(self) -> None:
        if self.file is not None:
            os.close(self.file)

    def of(
        self,
        pictures: Sequence[np.ndarray],
        made_by: str,
        extract: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
    ) -> list[np.ndarray]:
        """The features (width,) float32 of each picture, those that are not kept by `extract`.

        Args:
            made_by: all beside a picture that decides the bits of its features.
        """
        keys = [key_of(picture, made_by) for picture in pictures]
        found = {key: kept for key in keys if (kept := self.find(key)) is not None}
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in found}
        for key, features in zip(new, extract(list(new.values())), strict=True):
            found[key] = features
            self.keep(key, features)
        return [found[key] for key in keys]

    def find(self, key: bytes) -> np.ndarray | None:
        """The features of a key, if they are kept."""
        for record in self.records(key):
            if record[:SUM] == hashlib.sha256(key + record[SUM:]).digest():
                return np.frombuffer(record, np.float32, offset=SUM)
        return None

    def keep(self, key: bytes, features: np.ndarray) -> None:
        """Keep features, in place of others where there is no room."""
        if self.file is None:
            return
        values = features.astype(np.float32).tobytes()
        free = (place for place, record in enumerate(self.records(key)) if not any(record[:SUM]))
        place = next(free, key[-1] % PLACES)
        with suppress(OSError):  # a full disk; what it leaves of a record is none
            at = self.bucket(key) + place * self.size
            os.pwrite(self.file, hashlib.sha256(key + values).digest() + values, at)

    def records(self, key: bytes) -> list[bytes]:
        """What lies in the bucket of a key, zeros where nothing was written; none where nothing is kept."""
        content = b""
        if self.file is not None:
            with suppress(OSError):
                content = os.pread(self.file, PLACES * self.size, self.bucket(key))
        content = content.ljust(PLACES * self.size, b"\0")
        return [content[i * self.size : (i + 1) * self.size] for i in range(PLACES)]

    def bucket(self, key: bytes) -> int:
        """Where in the file the bucket of a key begins."""
        return int.from_bytes(key[:8], "big") % BUCKETS * PLACES * self.size


def key_of(picture: np.ndarray, made_by: str) -> bytes:
    """What decides the features of a picture (H, W, C) uint8."""
    about = f"{picture.shape} {made_by}".encode()
    return hashlib.sha256(len(about).to_bytes(8, "big") + about + picture.tobytes()).digest()
