"""Arrays from .npy files that may come from anybody: nothing is unpickled, and sizes are bounded."""

from collections.abc import Callable
from io import BytesIO

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
