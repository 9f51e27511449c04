"""Arrays from .npy and .npz files that may come from anybody: nothing is unpickled, sizes are bounded."""

import os
import stat
import zlib
from collections.abc import Callable
from io import BytesIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import numpy as np

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_array(
    content: bytes,
    limit: int,
    check: Callable[[tuple[int, ...], np.dtype], None] = lambda shape, kind: None,
) -> np.ndarray:
    """The array in the bytes of an .npy file.

    Args:
        limit: values at most.
        check: called with shape and type before any memory is taken; may raise.

    Raises:
        ValueError: it is none, is cut, or holds Python objects.
    """
    stream = BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"an .npy file of version {version}; write it with numpy.save")
    try:
        shape, _, kind = HEADERS[version](stream)
    except Exception as error:  # numpy's own message advises to trust the file
        raise ValueError("an .npy file with a header that numpy.save does not write") from error
    check(shape, kind)
    if kind.hasobject:
        raise ValueError("an array of Python objects, which are not read")
    if np.prod(shape, dtype=float) > limit:
        raise ValueError(f"an array of shape {shape}: more than {limit:,} values")
    if min(shape, default=0) < 0 or stream.tell() + np.prod(shape, dtype=float) * kind.itemsize > len(
        content
    ):
        raise ValueError(f"cut: {len(content):,} bytes do not hold an array of shape {shape}")
    array: np.ndarray = np.load(BytesIO(content), allow_pickle=False)
    return array


def content_of(path: str, limit: int) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: there is none. ValueError: it is no regular file, or of more than `limit` bytes.
    """
    check_file(path, limit)
    with open(path, "rb") as file:
        return file.read(limit)


def check_file(path: str, limit: int) -> None:
    """Raise an OSError or a ValueError, as `content_of`, without opening the file."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("no regular file")  # opening a FIFO would wait for ever
    if status.st_size > limit:
        raise ValueError(f"{status.st_size:,} bytes, more than {limit:,}")


def array_of_zip(content: bytes, name: str | None, max_bytes: int, max_values: int) -> np.ndarray:
    """The array `name` of an .npz of these bytes, or its only one.

    Raises:
        ValueError: there is none, or several without one of that name, or it is broken or too large.
    """
    try:
        with ZipFile(BytesIO(content)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if name not in members and len(members) != 1:
                none = f"none of them is called {name}" if name else "none is named"
                raise ValueError(f"{len(members)} arrays and {none}")
            member = members.get(name or "") or next(iter(members.values()))
            if member.file_size > max_bytes or member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                raise ValueError(f"an array of more than {max_bytes:,} bytes, or compressed in another way")
            with archive.open(member) as file:
                found = file.read(member.file_size)
    except (BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(f"holds no array: {error}") from error
    return read_array(found, max_values)


def names_of_zip(content: bytes) -> list[str]:
    """The names of the arrays of an .npz, in their order. Raises a BadZipFile if it is none."""
    with ZipFile(BytesIO(content)) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]
