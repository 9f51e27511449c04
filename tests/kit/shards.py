"""Pictures and files of them, whole and strange, and measurements."""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from skimage import data
from skimage.transform import resize

from kintsugi import operators
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.data.pictures import array_file

SIZE = 32


@cache
def photograph() -> np.ndarray:
    """(128, 128, 3) on [0, 1]."""
    return resize(data.astronaut(), (128, 128), anti_aliasing=True)


def picture(number: int, size: int = SIZE) -> np.ndarray:
    """A crop of a photograph, (size, size, 3) uint8, different for each number."""
    top, left = np.random.default_rng(number).integers(0, 128 - size + 1, 2)
    return (photograph()[top : top + size, left : left + size] * 255).round().astype(np.uint8)


def samples(keys: Iterable[str], images: Iterable[np.ndarray]) -> list[Decoded]:
    """What a stage restores."""
    return [Decoded(key, i, image) for i, (key, image) in enumerate(zip(keys, images, strict=True))]


def encode(image: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, colour: int = 2) -> bytes:
    """A PNG of a few bytes that claims a size, with these chunks, or with pixels of none."""
    head = b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = () if any(kind == b"IDAT" for kind, _ in chunks) else ((b"IDAT", zlib.compress(b"")),)
    parts = (head, *chunks, *pixels, (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    """A link, a pipe or a device as a member of a tar."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_parquet(
    path: Path,
    rows: Sequence[tuple[bytes | None, str | None]],
    labels: Sequence[Any] | None = None,
    **options: Any,
) -> Path:
    """(image, path) of each row as Hugging Face's `datasets` write them; options: of `write_table`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array([{"bytes": image, "path": name} for image, name in rows], kind)}
    pq.write_table(pa.table(columns | ({} if labels is None else {"label": labels})), path, **options)
    return path


def write_tar(path: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(*members))
    return path


def zip_of(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def measured(image: np.ndarray, operator: dict) -> np.ndarray:
    """H x of an image (H, W, 3) uint8, (C, h, w) float32."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    return operators.build(operator, tuple(x.shape[1:])).forward(x)[0].numpy()


def tar_of_arrays(path: Path, arrays: list[np.ndarray]) -> Path:
    return write_tar(path, [(f"image_{i:03d}.npy", array_file(a)) for i, a in enumerate(arrays)])
