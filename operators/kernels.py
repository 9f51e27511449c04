"""Kernels of blurs, (h, w) float64: from files that may come from anybody, or from numbers."""

import struct
import zlib
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kintsugi.operators.arrays import array_of_zip, content_of, names_of_zip, read_array

SUFFIXES = (".npy", ".npz", ".mat", ".png")
SETS = (".npy", ".npz", ".mat")
"""Of files of several kernels."""
MAX_SIDE = 1023
MAX_KERNELS = 1024
MAX_VALUES = MAX_SIDE**2
MAX_BYTES = 1 << 26
SUMS_TO_ZERO = 1e-6  # relative to the sum of the absolute values
NUMERIC = (
    "double",
    "single",
    "logical",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
"""Classes of MATLAB's arrays that are read."""
COMPRESSED = 15  # the type of an element of a .mat file


def kernel_of(source: Tensor | str | list[list[float]], variable: str | None, normalise: bool) -> Tensor:
    """The kernel of a tensor, a file or rows of numbers.

    Args:
        variable: the array of a .mat or .npz file. normalise: divide by the sum.

    Raises:
        ValueError: it is none, holds what is not finite, or sums to zero and is to be normalised.
    """
    name = source if isinstance(source, str) else "the kernel"
    if variable is not None and not name.lower().endswith((".mat", ".npz")):
        raise ValueError(f"variable: {variable!r} is for the arrays of a .mat or .npz file")
    if isinstance(source, str):
        if name.lower().endswith(".png") and not normalise:
            raise ValueError("normalise: the grey levels of a PNG have no scale; use true")
        kernel = from_file(source, variable)
    elif isinstance(source, Tensor):
        kernel = source.detach().to("cpu", torch.float64)
    elif len({len(row) for row in source}) > 1:
        raise ValueError("kernel: rows of different lengths")
    else:
        kernel = torch.tensor(source, dtype=torch.float64)
    if kernel.ndim != 2 or not 1 <= min(kernel.shape) <= max(kernel.shape) <= MAX_SIDE:
        raise ValueError(
            f"kernel: {name} has shape {tuple(kernel.shape)}, expected (h, w), 1 to {MAX_SIDE} each"
        )
    if not kernel.isfinite().all():
        raise ValueError(f"kernel: {name} has values that are not finite")
    total, size = kernel.sum(), kernel.abs().sum()
    if size == 0:
        raise ValueError(f"kernel: {name} is zero everywhere")
    if not normalise:
        return kernel
    if total.abs() <= SUMS_TO_ZERO * size:
        raise ValueError(f"normalise: {name} sums to zero, and cannot be made to sum to 1; use false")
    return kernel / total


def kernels_of(path: str) -> list[Tensor]:
    """The kernels of a file of one of `SETS`, each (h, w) and of sum 1, in their order.

    Raises:
        ValueError: it is no such file, or one of its kernels is none.
    """
    try:
        if not path.lower().endswith(SETS):
            raise ValueError(f"not a file of one of {', '.join(SETS)}")
        content = content_of(path, MAX_BYTES)
        names = names_of(path, content)
        if not 1 <= len(names) <= MAX_KERNELS:
            raise ValueError(f"{len(names)} arrays; a set of kernels has 1 to {MAX_KERNELS}")
    except Exception as error:  # also what scipy makes of a broken file
        raise ValueError(f"kernels: {path}: {error}") from error
    arrays = [from_content(path, content, name) for name in names]
    if len(arrays) == 1 and arrays[0].ndim == 3:
        arrays = list(arrays[0])
    if not 1 <= len(arrays) <= MAX_KERNELS:
        raise ValueError(f"kernels: {path} has {len(arrays)} kernels; a set has 1 to {MAX_KERNELS}")
    return [kernel_of(array, None, normalise=True) for array in arrays]


def names_of(path: str, content: bytes) -> list[str] | list[None]:
    """The names of the arrays in a file of several kernels, in their order; an .npy has one, unnamed."""
    if path.lower().endswith(".npz"):
        return names_of_zip(content)
    if path.lower().endswith(".npy"):
        return [None]
    from scipy.io import whosmat

    found = whosmat(BytesIO(inflated(content)))
    return [name for name, shape, kind in found if kind in NUMERIC and len(shape) == 2]


def from_file(path: str, variable: str | None) -> Tensor:
    """As `from_content`, of the file at a path."""
    try:
        if not path.lower().endswith(SUFFIXES):
            raise ValueError(f"not a file of one of {', '.join(SUFFIXES)}")
        content = content_of(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise ValueError(f"kernel: {path}: {error}") from error
    return from_content(path, content, variable)


def from_content(name: str, content: bytes, variable: str | None) -> Tensor:
    """The array in an .npy, .npz or .mat file, or the grey levels of a PNG.

    Raises:
        ValueError: it is no such file, or broken, or too large; the message names it.
    """
    suffix = name.rpartition(".")[2].lower()
    try:
        if suffix == "npy":
            values = read_array(content, MAX_VALUES)
        elif suffix == "npz":
            values = array_of_zip(content, variable, MAX_BYTES, MAX_VALUES)
        elif suffix == "mat":
            values = array_of_mat(content, variable)
        else:
            values = grey_levels(content)
        if values.dtype.kind not in "buif":
            raise ValueError(f"values of type {values.dtype}; a kernel is of real numbers")
        return torch.from_numpy(values.astype(np.float64))
    except Exception as error:  # also what Pillow and scipy make of a broken file
        raise ValueError(f"kernel: {name}: {error}") from error


def grey_levels(content: bytes) -> np.ndarray:
    """The grey levels of a PNG, 8 or 16 bits, (h, w).

    Raises:
        Exception: it is none, or too large. ValueError: it has colours, transparency or several images.
    """
    with Image.open(BytesIO(content), formats=("PNG",)) as image:
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"{image.width}×{image.height} pixels, a side of more than {MAX_SIDE}")
        if getattr(image, "is_animated", False) or image.has_transparency_data:
            raise ValueError("transparent, or several images in one file; a kernel is one grey image")
        if image.mode == "I" or image.mode.startswith("I;16"):
            return np.asarray(image).astype(np.uint16)
        colours = np.asarray(image.convert("RGB"))
    if (colours != colours[..., :1]).any():
        raise ValueError("has colours; a kernel is a grey image")
    return colours[..., 0]


def array_of_mat(content: bytes, variable: str | None) -> np.ndarray:
    """The array `variable` of a .mat file of versions 4 to 7, or its only one of numbers in two dimensions.

    Raises:
        Exception: the file is broken. ValueError: there is none or several, or one of another kind or size.
    """
    from scipy.io import loadmat, whosmat  # takes as long to import as all the rest

    content = inflated(content)
    found = whosmat(BytesIO(content))
    kinds = {name: (shape, kind) for name, shape, kind in found}
    if len(kinds) < len(found):
        raise ValueError("two arrays of the same name")
    names = [name for name, (shape, kind) in kinds.items() if kind in NUMERIC and len(shape) == 2]
    listed = ", ".join(sorted(names)[:20]) or "none"
    if variable is None:
        if len(names) != 1:
            raise ValueError(f"{len(names)} arrays of numbers ({listed}); name one by `variable`")
        (variable,) = names
    if variable not in names:
        raise ValueError(f"no array of numbers in two dimensions is called {variable!r}; there are: {listed}")
    height, width = kinds[variable][0]
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ValueError(f"{variable} has shape {(height, width)}, more than {MAX_SIDE}, or nothing")
    array: np.ndarray = loadmat(BytesIO(content), variable_names=[variable])[variable]
    return array


def inflated(content: bytes) -> bytes:
    """A .mat file whose compressed elements, of `MAX_BYTES` together at most, are inflated.

    Raises:
        ValueError: it would be larger, or is cut, or is of MATLAB 7.3. zlib.error: it is broken.
    """
    from scipy.io.matlab import matfile_version

    major, _ = matfile_version(BytesIO(content))
    if major == 2:
        raise ValueError("a file of MATLAB 7.3, which is HDF5; save it with -v7")
    if major == 0:
        return content
    order = "<" if content[126:128] == b"IM" else ">"
    parts, at, room = [content[:128]], 128, MAX_BYTES
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        if at + 8 + size > len(content):
            raise ValueError("cut: its last element is not whole")
        element = content[at : at + 8 + size]
        if kind == COMPRESSED:
            element = zlib.decompressobj().decompress(element[8:], room + 1)
            room -= len(element)
            if room < 0:
                raise ValueError(f"more than {MAX_BYTES:,} bytes when inflated")
        parts.append(element)
        at += 8 + size
    return b"".join(parts)
