"""Malicious and broken inputs: each is a folder of its own, a command, and what a user then sees."""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from kit.jobs import told
from kit.shards import SIZE, encode, npy, png, special, tar_of, zip_of
from PIL import Image, ImageCms

SECONDS, MEMORY = 60, 3 << 30  # of a case at most
OUT = "out"  # the only place in a case's folder where a command may write
SECRET = "wJalrXUtnFEMI"

Make = Callable[[Path], list[str]]
"""Puts the input into a folder, which is the current one of the command; returns the command's arguments."""
Content = bytes | Callable[[], bytes]
"""Of a file; a function where it takes time or memory to make."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        code: the exit code, None if the command did not end by itself.
        output: all that it printed. rows: key, status, error and source of the samples it recorded.
        made: files outside of OUT that were not there before. mebibytes: beyond those of an idle process.
    """

    code: int | None
    output: str
    rows: list[dict[str, Any]]
    made: list[str]
    seconds: float = 0.0
    mebibytes: float = 0.0

    @property
    def crashed(self) -> bool:
        return self.code is None or "Traceback" in self.output or bool(self.made)


CASES: dict[str, dict[str, Make]] = {}
"""By group and name."""


# What cases are made of


def put(file: Path, content: Content) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content())


def header(name: bytes, kind: bytes, size: bytes) -> bytes:
    """The block of a tar header with any size that it claims."""
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[:100] = name.ljust(100, b"\0")
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def npy_header(text: str, version: bytes = b"\1\0") -> bytes:
    """An .npy file that ends after its header, which may be any text."""
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode()


def npy_claims(shape: str, kind: str = "<f4") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}"


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))
GREY, CMYK = PICTURE.convert("L"), PICTURE.convert("CMYK")
DEEP = np.asarray(GREY).astype(np.uint16)
GOOD = encode(PICTURE)
MEASURED = np.zeros((3, SIZE // 4, SIZE // 4), np.float32)


@cache
def bomb() -> bytes:
    """200 MiB of zeros, packed."""
    return zlib.compress(bytes(200 << 20), 9)


def fields(shards: str | list[str] = "s.tar", **others: Any) -> dict[str, Any]:
    """A small job."""
    data = {"shards": shards, "size": SIZE} | others.pop("data", {})
    measured = data.get("kind") == "measurements"
    return {
        "data": data,
        "degradation": {"operator": {"name": "average_pool", "factor": 4}},
        "sampler": {"name": "conjugate", "steps": 1},
        "metrics": [] if measured else ["psnr"],
        "compute": {"cpus_per_actor": 1},
        "output": OUT,
    } | others


def job(folder: Path, *arguments: str, **others: Any) -> list[str]:
    (folder / "job.yaml").write_text(yaml.safe_dump(fields(**others)))
    return ["run", "job.yaml", "--address", "none", *arguments]


def sample(content: Content, suffix: str, folder: Path, **others: Any) -> list[str]:
    """A job on the sample b between two good ones."""
    content = content if isinstance(content, bytes) else content()
    measured = others.get("data", {}).get("kind") == "measurements"
    good = ("npy", npy(MEASURED)) if measured else ("png", GOOD)
    members = [(f"a.{good[0]}", good[1]), (f"b.{suffix}", content), (f"c.{good[0]}", good[1])]
    return shard(tar_of(*members), folder, **others)


def shard(content: Content, folder: Path, **others: Any) -> list[str]:
    """A job on a shard."""
    put(folder / "s.tar", content)
    return job(folder, **others)


MEASUREMENTS = {"data": {"kind": "measurements"}}
UNIT = {"data": {"range": "[0,1]"}}
CROPPED = {"data": {"fit": "resize_crop"}}
SALVAGE = {"data": {"damaged": "salvage"}}

# Images

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(evil) run\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
PSD = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, SIZE, SIZE, 8, 3) + bytes(1000)
FRAMES = {"save_all": True, "append_images": [PICTURE.rotate(90)]}
ROTATED = Image.Exif()
ROTATED[0x0112] = 6

PREVIEW = {"save_all": True, "append_images": [PICTURE.resize((8, 8))]}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BEYOND = SRGB[:136] + struct.pack(">II", 1 << 31, 1 << 31) + SRGB[144:]

IMAGES: dict[str, tuple[Any, ...]] = {
    "a good image, for comparison": ("png", GOOD),
    "not an image": ("png", b"hello"),
    "zero bytes": ("png", b""),
    "a web page instead of the image": ("jpg", b"<!DOCTYPE html><title>404</title>"),
    "JPEG, truncated": ("jpg", encode(PICTURE, "JPEG")[:-300]),
    "PNG, truncated": ("png", GOOD[:-500]),
    "WebP, truncated": ("webp", encode(PICTURE, "WEBP")[:-100]),
    "PNG with a wrong checksum": ("png", GOOD[:60] + bytes([GOOD[60] ^ 1]) + GOOD[61:]),
    "PNG of no pixels": ("png", png(0, 0)),
    "bomb: PNG that claims 65535×65535": ("png", png(65535, 65535), CROPPED),
    "bomb: PNG that claims 12000×12000": ("png", png(12000, 12000), CROPPED),
    "bomb: 9990×9990 in 12 kB, decoded": (
        "png",
        lambda: encode(Image.new("1", (9990, 9990), 1), optimize=True),
        CROPPED,
    ),
    "bomb: WebP of 16383×16383 in 35 kB": (
        "webp",
        lambda: encode(Image.new("RGB", (16383, 16383)), "WEBP", lossless=True, quality=0, method=0),
        CROPPED,
    ),
    "bomb: zTXt chunk of 200 MiB": ("png", lambda: png(SIZE, SIZE, (b"zTXt", b"a\0\0" + bomb()))),
    "bomb: iCCP chunk of 200 MiB": ("png", lambda: png(SIZE, SIZE, (b"iCCP", b"a\0\0" + bomb()))),
    "huge thin picture, 20000×1": ("png", encode(Image.new("L", (20000, 1))), CROPPED),
    "GIF named .png": ("png", encode(PICTURE, "GIF")),
    "TIFF named .png": ("png", encode(PICTURE, "TIFF")),
    "EPS, which would start Ghostscript, named .png": ("png", EPS),
    "SVG with a script, named .png": ("png", SVG),
    "PDF named .png": ("png", encode(PICTURE, "PDF")),
    "PSD named .png": ("png", PSD),
    "animated WebP": ("webp", encode(PICTURE, "WEBP", **FRAMES)),
    "animated PNG": ("png", encode(PICTURE, **FRAMES)),
    "TIFF of two pages": ("tif", encode(PICTURE, "TIFF", **FRAMES)),
    "animated GIF": ("gif", encode(PICTURE, "GIF", **FRAMES)),
    "animated AVIF": ("avif", lambda: encode(PICTURE, "AVIF", **FRAMES)),
    "JPEG of two pictures (MPO), of one size": ("jpg", encode(PICTURE, "MPO", **FRAMES)),
    "JPEG of a phone: a small picture behind it": ("jpg", encode(PICTURE, "MPO", **PREVIEW)),
    "HEIC": ("heic", b"\0\0\0\x18ftypheic" + bytes(100)),
    "ICC profile: bytes that are none": ("jpg", encode(PICTURE, "JPEG", icc_profile=b"evil" * 100)),
    "ICC profile of RGB left behind in CMYK": ("jpg", encode(CMYK, "JPEG", icc_profile=SRGB)),
    "ICC profile that is cut": ("png", encode(PICTURE, icc_profile=SRGB[:200])),
    "ICC profile with tags beyond its end": ("png", encode(PICTURE, icc_profile=BEYOND)),
    "12 bits in 16": ("png", encode(DEEP * 16)),
    "32 bits": ("tif", encode(DEEP.astype(np.int32) * 9999, "TIFF")),
    "TIFF of floats, data.range=[0,1]": ("tif", encode(GREY.convert("F"), "TIFF"), UNIT),
    "CMYK JPEG": ("jpg", encode(CMYK, "JPEG")),
    "16-bit grey": ("png", encode(DEEP * 257)),
    "palette": ("png", encode(PICTURE.quantize(16))),
    "alpha": ("png", encode(PICTURE.convert("RGBA"))),
    "one bit": ("png", encode(PICTURE.convert("1"))),
    "EXIF rotation": ("jpg", encode(PICTURE, "JPEG", exif=ROTATED)),
    "broken EXIF": ("jpg", encode(PICTURE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(9))),
    "TIFF of floating point numbers": ("tif", encode(GREY.convert("F"), "TIFF")),
    "PFM named .ppm": ("ppm", b"Pf\n32 32\n-1\n" + bytes(4 * SIZE * SIZE)),
    "wrong size": ("png", encode(PICTURE.resize((40, 30)))),
    "wrong size, data.fit=resize_crop": ("png", encode(PICTURE.resize((40, 30))), CROPPED),
    "one pixel, data.fit=resize_crop": ("png", encode(PICTURE.resize((1, 1))), CROPPED),
}
CASES["Images"] = {
    name: partial(sample, content, suffix, **dict(*others))
    for name, (suffix, content, *others) in IMAGES.items()
}

# Tars

SHARD = tar_of(("a.png", GOOD), ("b.png", GOOD), ("c.png", GOOD))
BOUNDARY = 512 + -(-len(GOOD) // 512) * 512  # where the second sample begins
ENDING = bytes(1024)
HTML = '<img src=x onerror="alert(1)">|`</td>'
LONGNAME = b"".join(header(b"././@LongLink", b"L", b"00000001000\0") + bytes(512) for _ in range(200))
PAX = b"1000000000 path=x\n"
SPARSE = tarfile.TarInfo("b.png")
SPARSE.pax_headers = {
    f"GNU.sparse.{name}": n for name, n in (("major", "1"), ("minor", "0"), ("realsize", "9" * 11))
}


def named(name: str) -> bytes:
    return tar_of((f"{name}.png", GOOD), ("c.png", GOOD))


def pax_named(name: str) -> bytes:
    info = tarfile.TarInfo("b.png")
    info.pax_headers = {"path": name}
    return tar_of((info, GOOD), ("c.png", GOOD))


def many_suffixes() -> bytes:
    """One sample of 60,000 members."""
    member = [header(f"a.{i}".encode(), b"0", b"00000000000\0") for i in range(60_000)]
    return b"".join(member) + SHARD


C = ("c.png", GOOD)
TARS: dict[str, Content | tuple[bytes, dict[str, Any]]] = {
    "member ../../evil.png": named("../../evil"),
    "measurement ../../evil.png": (named("../../evil"), MEASUREMENTS),
    "measurement /tmp/kintsugi-evil.png": (named("/tmp/kintsugi-evil"), MEASUREMENTS),
    "measurement ./a/../../evil.png": (named("./a/../../evil"), MEASUREMENTS),
    "name with a zero byte": pax_named("b\0.png"),
    "name with line breaks": named("b\n\r\nc"),
    "name of 10 kB": named("n" * 10_000),
    "name of 20 kB": named("n" * 20_000),
    "name that turns the writing direction": named("b\u202egnp.exe"),
    "name that steers the terminal, twice": tar_of(("\x1b[2J.png", GOOD), ("\x1b[2J.png", GOOD)),
    "name of HTML and Markdown": tar_of((f"{HTML}.png", b"<script>"), C),
    "name that is not UTF-8": tar_of(("\udcff.png", GOOD), C),
    "symbolic link to /etc/passwd": tar_of(special("b.png", tarfile.SYMTYPE, "/etc/passwd"), C),
    "hard link to ../../x": tar_of(special("b.png", tarfile.LNKTYPE, "../../x"), C),
    "devices and pipes": tar_of(
        special("b.png", tarfile.CHRTYPE),
        special("d.png", tarfile.BLKTYPE),
        special("e.png", tarfile.FIFOTYPE),
        C,
    ),
    "links to each other and to themselves": tar_of(
        special("b.png", tarfile.SYMTYPE, "d.png"),
        special("d.png", tarfile.SYMTYPE, "b.png"),
        special("e.png", tarfile.LNKTYPE, "e.png"),
        C,
    ),
    "links to members": tar_of(
        special("b.png", tarfile.SYMTYPE, "./c.png"), C, special("d.png", tarfile.LNKTYPE, "c.png")
    ),
    "hidden files, metadata, a name without a suffix": tar_of(
        ("._c.png", GOOD), ("__MACOSX/c.png", GOOD), ("__m__/c.png", GOOD), C, ("README", b"")
    ),
    "an image and its label far apart": tar_of(("b.png", GOOD), C, ("b.cls", b"1")),
    "sparse member of 100 GB": tar_of((SPARSE, b"1\n0\n1\n".ljust(512, b"\0"))),
    "member that claims 8 GiB": header(b"b.png", b"0", b"77777777777\0") + ENDING,
    "member of negative size": header(b"b.png", b"0", b"\xff" * 12) + ENDING,
    "PAX record that claims 1 GB": header(b"p", b"x", b"00000001000\0") + PAX.ljust(512, b"\0") + SHARD,
    "PAX header that claims 8 GiB": header(b"p", b"x", b"77777777777\0") + SHARD,
    "GNU long names, 200 in a row": LONGNAME + SHARD,
    "a sample of 60,000 members": many_suffixes,
    "gzip-compressed tar": lambda: gzip.compress(SHARD),
    "a zip named .tar": lambda: zip_of({"a.png": GOOD}),
    "random bytes": np.random.default_rng(1).bytes(5000),
    "empty file": b"",
    "empty tar": tar_of(),
    "tar without images": tar_of(("notes.txt", b"hello")),
    "the same key twice": tar_of(("a.png", GOOD), ("b.png", GOOD), ("a.png", GOOD)),
    "member without a key (.png)": tar_of((".png", GOOD), C),
    "broken b.json beside the image": tar_of(("b.png", GOOD), ("b.json", b"{"), C),
    "b.cls that is no number": tar_of(("b.png", GOOD), ("b.cls", b"cat; rm -rf"), C),
    "b.cls of 10⁶ digits": tar_of(("b.png", GOOD), ("b.cls", b"9" * 10**6), C),
}
HOLED = SHARD[: BOUNDARY - 600] + bytes(700) + SHARD[BOUNDARY + 100 :]
for _name, _broken in {
    "two tars joined": tar_of(("z.png", GOOD)) + SHARD,
    "a hole of zeros from one image into the next": HOLED,
    "a whole member of zeros": SHARD[:BOUNDARY] + bytes(BOUNDARY) + SHARD[2 * BOUNDARY :],
    "the last image ends in 2 MiB of zeros": SHARD[: 2 * BOUNDARY + 600] + bytes(2 << 20),
    "cut between two members": SHARD[: 2 * BOUNDARY],
    "cut inside a header": SHARD[: 2 * BOUNDARY + 100],
    "cut inside an image": SHARD[: 2 * BOUNDARY + 1000],
}.items():
    TARS |= {_name: _broken, f"{_name}, data.damaged=salvage": (_broken, SALVAGE)}


def two_shards(folder: Path) -> list[str]:
    for name in ("s.tar", "t.tar"):
        (folder / name).write_bytes(SHARD)
    return job(folder, shards=["s.tar", "t.tar"])


def pipe_as_shard(folder: Path) -> list[str]:
    os.mkfifo(folder / "s.tar")
    return job(folder, shards="*.tar")


def checksums(text: bytes, folder: Path) -> list[str]:
    (folder / "SHA256SUMS").write_bytes(text)
    return shard(SHARD, folder)


TARGETS = {
    "outside": "../secret.png",
    "loop": "loop.png",
    "zeros": "/dev/zero",
    "nowhere": "nothing",
    "folder": "..",
}


def folder_of(names: list[str], folder: Path, **others: Any) -> list[str]:
    """A job on a folder of images, of which the hostile ones are links or pipes."""
    (folder / "secret.png").write_bytes(GOOD)
    (folder / "in").mkdir()
    (folder / "in" / "c.png").write_bytes(GOOD)
    for name in names:
        file = folder / "in" / f"{name}.png"
        if name == "pipe":
            os.mkfifo(file)
        elif name in TARGETS:
            file.symlink_to(TARGETS[name])
        else:
            file.touch()
            os.truncate(file, 2 << 30)
    return job(folder, shards="in", **others)


def folder_named_tar(folder: Path) -> list[str]:
    (folder / "s.tar").mkdir()
    return job(folder)


CASES["Tars"] = {
    name: partial(shard, it[0], **it[1]) if isinstance(it, tuple) else partial(shard, it)
    for name, it in TARS.items()
} | {
    "the same key in two shards": two_shards,
    "missing shard": job,
    "a pipe among the shards": pipe_as_shard,
    "an empty folder as a shard": folder_named_tar,
    "SHA256SUMS of another file": partial(checksums, b"0" * 64 + b"  s.tar\n"),
    "SHA256SUMS that names other files": partial(checksums, b"0" * 64 + b"  in/s.tar\n"),
    "SHA256SUMS that is no text": partial(checksums, b"\xff\xfe\0"),
}
FILES = {
    "link out of the folder": "outside",
    "link to itself": "loop",
    "link to nothing": "nowhere",
    "link to /dev/zero": "zeros",
    "link to the folder above": "folder",
    "pipe": "pipe",
    "file of 2 GiB": "large",
}
CASES["Folders of images"] = {
    name: partial(folder_of, [file], **MEASUREMENTS) for name, file in FILES.items()
}

# Measurements


class Code:
    """What a pickle runs when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


ARRAYS: dict[str, bytes] = {
    "float64, fine": npy(MEASURED.astype(float)),
    "pickled objects with code": npy(np.array([Code()] * 3, object), allow_pickle=True),
    "wrong shape": npy(np.zeros((8, 8, 3), np.float32)),
    "two dimensions": npy(np.zeros((8, 8), np.float32)),
    "one channel where the operator has three": npy(MEASURED[:1]),
    "integers": npy(np.zeros((3, 8, 8), np.int64)),
    "NaN": npy(np.full_like(MEASURED, np.nan)),
    "values on [0, 255]": npy(np.full_like(MEASURED, 200)),
    "values on [0, 1]": npy(np.full_like(MEASURED, 0.7)),
    "truncated": npy(MEASURED)[:-100],
    "zero bytes": b"",
    "header that claims 10¹² values": npy_header(npy_claims("(3, 1000000, 1000000)")),
    "header that claims 1 GiB": npy_header(npy_claims("(3, 6688, 6688)", "<f8")),
    "header of negative shape": npy_header(npy_claims("(3, -8, -8)")),
    "header of 60 kB": npy_header(npy_claims("(3, 8, 8)") + " " * 60000),
    "header with code": npy_header("__import__('os').system('touch executed')"),
    "header of 9,000 brackets": npy_header("(" * 9000),
    "version 9": npy_header("{}", version=b"\x09\0"),
}
CASES["Measurements (.npy)"] = {
    name: partial(sample, content, "npy", **MEASUREMENTS) for name, content in ARRAYS.items()
}

# Masks


def masked(content: Content, suffix: str, folder: Path) -> list[str]:
    """A job that inpaints with a mask."""
    put(folder / f"m.{suffix}", content)
    operator = {"name": "inpaint", "mask": f"m.{suffix}", "known": "white"}
    return shard(SHARD, folder, degradation={"operator": operator})


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


HOLE = np.tri(SIZE, dtype=np.uint8)
MASKS: dict[str, tuple[str, Content]] = {
    "0 and 1, fine": ("png", encode(Image.fromarray(HOLE))),
    "not an image": ("png", b"hello"),
    "white everywhere": ("png", encode(Image.new("L", (SIZE, SIZE), 255))),
    "0 and 100 of 255": ("png", encode(Image.fromarray(HOLE * 100))),
    "animated PNG": ("png", encode(PICTURE, **FRAMES)),
    "bomb: PNG that claims 65535×65535": ("png", png(65535, 65535)),
    "floats to 255": ("npy", npy(HOLE * 255.0)),
    "pickled objects with code, .npy": ("npy", npy(np.array([Code()] * 3, object), allow_pickle=True)),
    "two arrays, none called m": ("npz", npz(a=HOLE, b=HOLE)),
    "bomb: 1 GiB in 1 MB": ("npz", lambda: npz(m=np.zeros((1 << 15, 1 << 15), np.uint8))),
    "no zip": ("npz", b"hello"),
}
CASES["Masks"] = {name: partial(masked, content, suffix) for name, (suffix, content) in MASKS.items()}

# kintsugi shard


def shard_zip(content: Content, folder: Path) -> list[str]:
    put(folder / "set.zip", content)
    return ["shard", "set.zip", OUT]


def patched(content: bytes, offset: int, value: bytes) -> bytes:
    """A zip whose last member's entry in the central directory is another at a place."""
    entry = content.rindex(b"PK\1\2")
    return content[: entry + offset] + value + content[entry + offset + len(value) :]


def listed(text: str, folder: Path) -> list[str]:
    (folder / "names.txt").write_text(text)
    return [*shard_zip(zip_of({"a.png": GOOD}), folder), "--list", "names.txt"]


def links(folder: Path) -> list[str]:
    folder_of(["outside", "loop", "zeros", "pipe"], folder)
    return ["shard", "in", OUT]


def forged_lmdb(content: bytes, folder: Path) -> list[str]:
    (folder / "set.lmdb").mkdir()
    (folder / "set.lmdb" / "data.mdb").write_bytes(content)
    return ["shard", "set.lmdb", OUT]


def cut_lmdb(folder: Path) -> list[str]:
    import lmdb

    environment = lmdb.open(str(folder / "set.lmdb"), map_size=1 << 24)
    with environment, environment.begin(write=True) as transaction:
        for i in range(50):
            transaction.put(b"%d.png" % i, GOOD)
    file = folder / "set.lmdb" / "data.mdb"
    file.write_bytes(file.read_bytes()[:20_000])
    return ["shard", "set.lmdb", OUT]


TWO = {"a.png": GOOD, "b.png": GOOD}
SLIPS = ("../../evil.png", "/tmp/kintsugi-evil.png", "..\\evil.png", "\x1b[2J.png", "__meta__/x.png")
ALL_SLIPS = dict.fromkeys(("a.png", *SLIPS, "n" * 300 + ".png"), GOOD)
CASES["kintsugi shard: zips, folders, LMDBs, lists"] = {
    "zip bomb: 255 MiB of zeros in 260 kB": partial(
        shard_zip, lambda: zip_of({"a.png": GOOD, "b.png": bytes(255 << 20)})
    ),
    "zip bomb: member that claims 4 GiB": partial(shard_zip, patched(zip_of(TWO), 24, b"\xfe\xff\xff\xff")),
    "zip bomb: 1 GiB that claims 1 kB": partial(
        shard_zip, lambda: patched(zip_of({"a.png": GOOD, "b.png": bytes(1 << 30)}), 24, b"\0\4\0\0")
    ),
    "zip slip: ../, /tmp, \\, ESC, __meta__, 300 characters": partial(shard_zip, zip_of(ALL_SLIPS)),
    "encrypted zip": partial(shard_zip, patched(zip_of(TWO), 8, b"\1\0")),
    "zip with bzip2": partial(shard_zip, lambda: zip_of(TWO, zipfile.ZIP_BZIP2)),
    "zip cut in the middle": partial(shard_zip, zip_of(TWO)[:2000]),
    "zip with one name twice": partial(shard_zip, zip_of(TWO).replace(b"b.png", b"a.png")),
    "folder with links out of it, to /dev/zero, to itself, and a pipe": links,
    "list with an unknown name": partial(listed, "a.png\nb.png\n"),
    "list with a name twice": partial(listed, "a.png\na\n"),
    "list with a line of 200,000 folders": partial(listed, "a/" * 200_000 + "\n"),
    "list that is no text": lambda folder: [*listed("", folder)[:-1], "set.zip"],
    "LMDB, cut": cut_lmdb,
    "LMDB that is none": partial(forged_lmdb, b"hello"),
    "no images": partial(shard_zip, zip_of({"notes.txt": b"hello"})),
    "no such source": lambda folder: ["shard", "nowhere", OUT],
    "output as a URL with a secret": lambda folder: [
        *shard_zip(zip_of(TWO), folder)[:2],
        f"s3://AKIA:{SECRET}@bucket/x",
    ],
}
# Checkpoints


@cache
def adm_state() -> dict[str, torch.Tensor]:
    """A small guided-diffusion network that predicts no noise."""
    from kintsugi.priors.formats import adm

    layout = adm.Layout(32, (32, 32), 1, (1,), None, 6, adm.Known(32), file=Path("x"))
    return {entry.file: torch.zeros(entry.shape) for entry in adm.entries(layout)}


def torch_file(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def repacked(content: bytes, change: Callable[[str, bytes], bytes], method: int) -> bytes:
    """A zip again, with changed and compressed records."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return zip_of({name: change(name, archive.read(name)) for name in archive.namelist()}, method)


def changed(**values: Any) -> dict[str, Any]:
    return adm_state() | {key.replace("__", "."): value for key, value in values.items()}


def pickle_bomb() -> bytes:
    def grow(name: str, content: bytes) -> bytes:
        return content + bytes(1 << 30) if name.endswith("data.pkl") else content

    return repacked(torch_file({"a": torch.zeros(3)}), grow, zipfile.ZIP_DEFLATED)


def zeros_inside() -> bytes:
    content = torch_file(adm_state() | {"out.2.weight": torch.ones(6, 32, 3, 3)})
    place = content.index(torch.ones(100).numpy().tobytes())
    return content[: place + 40] + bytes(40) + content[place + 80 :]


def checkpoint(content: Content | None, folder: Path, name: str = "adm", file: str = "x.pt") -> list[str]:
    if content is not None:
        put(folder / file, content)
    parameters = {"head_channels": 32} if name == "adm" else {}
    return shard(SHARD, folder, prior={"name": name, "path": file, **parameters})


TENSORS = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
STEERING = TENSORS.replace(b"F32", rb"\u001b[2J")


def saved_as(make: Callable[[], Any], name: str = "adm", **options: Any) -> Make:
    """A prior of what torch saved."""
    return partial(checkpoint, lambda: torch_file(make(), **options), name=name)


def safetensors(size: int, rest: bytes) -> Make:
    """A prior of a header's size and all that follows."""
    return partial(checkpoint, struct.pack("<Q", size) + rest, file="x.safetensors")


CASES["Checkpoints"] = {
    "a good one, for comparison": saved_as(adm_state),
    "pickle with code, in torch's zip": saved_as(lambda: {"a": Code()}),
    "pickle with code, in torch's old format": saved_as(
        lambda: {"a": Code()}, _use_new_zipfile_serialization=False
    ),
    "bare pickle with code": partial(checkpoint, pickle.dumps({"model": Code()}, 2)),
    "a pickled network, as EDM's": partial(
        checkpoint, lambda: pickle.dumps({"ema": torch.nn.Conv2d(3, 8, 3)}, 4)
    ),
    "a pointer of Git LFS": partial(
        checkpoint, b"version https://git-lfs.github.com/spec/v1\noid sha256:d8\nsize 4\n"
    ),
    "two networks, neither an average": saved_as(lambda: {"a": adm_state(), "b": changed()}),
    "a web page": partial(checkpoint, b"<!DOCTYPE html><title>Sign in</title>"),
    "zero bytes": partial(checkpoint, b""),
    "missing": partial(checkpoint, None),
    "a folder": lambda folder: ((folder / "x.pt").mkdir(), checkpoint(None, folder))[1],
    "cut": partial(checkpoint, lambda: torch_file(adm_state())[:-5000]),
    "40 bytes lost inside": partial(checkpoint, zeros_inside),
    "NaN among the weights": saved_as(lambda: changed(out__2__bias=torch.full((6,), torch.nan))),
    "format of another name": saved_as(adm_state, name="rectified_flow"),
    "no such format": saved_as(adm_state, name="evil"),
    "weight of another shape": saved_as(lambda: changed(time_embed__0__bias=torch.zeros(7))),
    "a list": saved_as(lambda: [1, 2]),
    "key that steers the terminal": saved_as(lambda: adm_state() | {"\x1b[2J": torch.zeros(1)}),
    "bomb: record of 1 GiB in 1 MB": partial(checkpoint, pickle_bomb),
    "bomb: 10¹² values from one": saved_as(lambda: changed(out__2__bias=torch.zeros(1).expand(10**12))),
    "safetensors with a header of 2⁶³ bytes": safetensors(1 << 63, TENSORS),
    "safetensors that ends early": safetensors(len(TENSORS), TENSORS + bytes(4)),
    "safetensors whose header steers the terminal": safetensors(70, STEERING.ljust(70) + bytes(12)),
}

# Job files


def job_text(text: str | bytes) -> Make:
    """A job file."""

    def make(folder: Path) -> list[str]:
        put(folder / "job.yaml", text if isinstance(text, bytes) else text.encode())
        return ["run", "job.yaml", "--address", "none"]

    return make


def setting(pair: str) -> Make:
    return lambda folder: [*shard(SHARD, folder), "--set", pair]


TAG = "!!python/object/apply:os.system ['touch executed']"
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghij"))
CASES["Job files and settings"] = {
    "tag that calls a function": job_text("data: !!python/object/apply:os.system ['touch executed']\n"),
    "tag that makes an object": job_text("data: !!python/object:pathlib.Path {}\n"),
    "aliases that grow (billion laughs)": job_text(LAUGHS),
    "a field twice": job_text(yaml.safe_dump(fields()) + "seed: 1\nseed: 2\n"),
    "tabs": job_text("data:\n\tshards: s.tar\n"),
    "empty file": job_text(""),
    "binary file": job_text(bytes(range(256))),
    "UTF-16": job_text("data: 3\n".encode("utf-16")),
    "characters that steer the terminal": job_text('data: "\\e[2J\\u202e"\n'),
    "list at the top": job_text("- data\n- degradation\n"),
    "two documents": job_text("seed: 1\n---\nseed: 2\n"),
    "10,000 brackets": job_text("data: " + "[" * 10_000),
    "a list as a key": job_text("? [data]\n: 3\n"),
    "a number as a key": job_text("1: 2\n"),
    "date that there is none of": job_text("seed: 2024-99-99\n"),
    "number of 5,000 digits": setting("seed=" + "9" * 5000),
    "mask of measurements, `known` forgotten": lambda folder: job(
        folder, **MEASUREMENTS, degradation={"operator": {"name": "inpaint", "mask": "m.png"}}
    ),
    "output named `exp #2`": setting(f"output={OUT}/exp #2"),
    "shards named *.tar and {a,b}.tar": setting("data.shards={s,t}*.tar"),
    "seed 010": setting("seed=010"),
    "tag of a date": job_text("seed: !!timestamp 2024-01-01\n"),
    "!!int of text": setting("seed=!!int x"),
    "unknown field": setting("data.sice=3"),
    "text for a number": setting("data.size=big"),
    "a list for a name": setting("sampler.name=[a]"),
    "sigma NaN": setting("degradation.sigma=.nan"),
    "sigma infinite": setting("degradation.sigma=.inf"),
    "sigma negative": setting("degradation.sigma=-1"),
    "size of 10¹²": setting("data.size=1000000000000"),
    "seed of 10⁴⁰": setting(f"seed={10**40}"),
    "10¹¹ shards": setting("data.shards='{1..100000000000}.tar'"),
    "1,200 nested braces": setting(f"data.shards='{'{' * 1200}{'}' * 1200}'"),
    "unbalanced braces": setting("data.shards='{1..3'"),
    "zero byte in a path": setting('data.shards="a\\0b"'),
    "no such job": lambda folder: ["run", "nowhere.yaml"],
    "a folder as the job": lambda folder: ["run", "."],
    "--limit 0": lambda folder: [*shard(SHARD, folder), "--limit", "0"],
}
# URLs

URLS = {
    f"data.shards: {url}": setting(f"data.shards={url!r}")
    for url in (
        f"s3://AKIA:{SECRET}@bucket/x.tar",
        f"s3://bucket/x.tar?X-Amz-Signature={SECRET}",
        f"gs://{SECRET}@bucket/x.tar",
        f"https://user:{SECRET}@host/x.tar",
        "https://host/x.tar",
        "file:///etc/passwd",
        "ftp://host/x.tar",
        "s3:/bucket/x.tar",
        "s3://",
        f"{{s3:/,x}}/AKIA:{SECRET}@bucket/x.tar",
    )
} | {
    "output: with a secret": setting(f"output=s3://AKIA:{SECRET}@bucket/run"),
    "prior.path: with a secret": setting(f"prior={{name: adm, path: 's3://AKIA:{SECRET}@bucket/x.pt'}}"),
    "prior: a URL with a secret for a group of fields": setting(
        f"prior='s3://{SECRET}:{SECRET}@bucket/with/a/long/path/x.pt'"
    ),
    "mask: a URL with a signature": setting(
        f"degradation.operator={{name: inpaint, mask: 'https://host/m?sig={SECRET}.png', known: white}}",
    ),
    "kintsugi run URL, with a secret": lambda folder: ["run", f"https://user:{SECRET}@host/job.yaml"],
    "kintsugi status URL, with a secret": lambda folder: ["status", f"s3://AKIA:{SECRET}@bucket/run"],
}
CASES["URLs"] = {name.replace(SECRET, "SECRET"): make for name, make in URLS.items()}

# Run directories


@cache
def finished() -> Path:
    """A finished run to be copied; its shard stays where it is."""
    folder = Path(os.environ.get("KINTSUGI_BAD_INPUT") or tempfile.mkdtemp()) / "finished" / "work"
    folder.mkdir(parents=True)
    (folder / "s.tar").write_bytes(SHARD)
    arguments = job(folder, shards=str(folder / "s.tar"))
    outcome = forked(arguments, folder)
    assert outcome.code == 0, outcome.output
    return folder


def damaged(change: Callable[[Path], object], command: str, folder: Path, *arguments: str) -> list[str]:
    """A command on a run directory that somebody has changed."""
    shutil.copytree(finished() / OUT, folder / OUT)
    change(folder / OUT)
    if command != "run":
        return [command, OUT, *arguments]
    return job(folder, shards=str(finished() / "s.tar"))


def after(change: Callable[[Path], object], command: str, *arguments: str) -> Make:
    return lambda folder: damaged(change, command, folder, *arguments)


def edit(name: str, change: bytes | Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Another content of a file, or what is made of it."""

    def apply(run: Path) -> None:
        (file,) = run.glob(name)
        file.write_bytes(change if isinstance(change, bytes) else change(file.read_bytes()))

    return apply


def moved(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))
    run.symlink_to("elsewhere")


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit(content: bytes) -> bytes:
    return content[:90] + bytes([content[90] ^ 1]) + content[91:]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes(b ^ 255 for b in content[middle : middle + 40]) + content[middle + 40 :]


def rows_changed(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    """Rows of nonsense, and a commit record that vouches for them."""

    def apply(run: Path) -> None:
        (data,), (record,) = run.glob("data/*.parquet"), run.glob("commits/*.json")
        pq.write_table(change(pq.read_table(data)), data)
        content, said = data.read_bytes(), json.loads(record.read_bytes())
        del said["sha256"]
        digest = hashlib.sha256(content).hexdigest()
        record.write_text(json.dumps(said | {"data_bytes": len(content), "data_sha256": digest}))
        shutil.rmtree(run / "report")

    return apply


def column(name: str, value: object, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.set_column(
        rows.schema.get_field_index(name), name, pa.array([value] * len(rows), kind)
    )


def with_column(name: str, value: object, kind: pa.DataType) -> Callable[[Path], object]:
    return rows_changed(column(name, value, kind))


def link_to(target: str) -> Callable[[Path], object]:
    return lambda place: place.symlink_to(target)


def unit_elsewhere(run: Path) -> None:
    """A plan whose unit leads out of the run, well hashed."""
    from kintsugi.pipeline.execution.directory import KEPT

    table, file = pq.read_table(run / "plan.parquet"), run / "plan.parquet"
    metadata = pq.read_metadata(file).metadata
    with pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(column("unit", "../../victim", pa.string())(table))
        writer.add_key_value_metadata({k: v for k, v in metadata.items() if k.startswith(b"kintsugi")})
    digests = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in KEPT}
    (run / "kintsugi.sha256").write_text("".join(f"{sum_}  {name}\n" for name, sum_ in digests.items()))


def instead(name: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else in place of a file or folder of a run."""

    def apply(run: Path) -> None:
        if (run / name).is_dir():
            shutil.rmtree(run / name)
        else:
            (run / name).unlink()
        change(run / name)

    return apply


def with_mask(folder: Path) -> list[str]:
    """A run that is half done, and a mask that changed since."""
    operator = {"name": "inpaint", "mask": str(folder / "mask.png"), "known": "white"}
    half_known = np.indices((SIZE, SIZE))[1] < SIZE // 2
    Image.fromarray(np.uint8(255) * half_known).save(folder / "mask.png")
    arguments = job(folder, shards=str(finished() / "s.tar"), degradation={"operator": operator})
    assert forked(arguments, folder).code == 0
    next((folder / OUT / "commits").iterdir()).unlink()
    Image.fromarray(np.uint8(255) * ~half_known).save(folder / "mask.png")
    return arguments


def after_restoring(change: Callable[[Path, bytes], object], command: str) -> Make:
    return lambda folder: restored(change, command, folder)


def restored(change: Callable[[Path, bytes], object], command: str, folder: Path) -> list[str]:
    """A command on a run of measurements, of whose restored tar somebody has made something else."""
    (folder / "s.tar").write_bytes(tar_of(("a.npy", npy(MEASURED)), ("b.npy", npy(MEASURED))))
    arguments = job(folder, data={"kind": "measurements"})
    assert forked(arguments, folder).code == 0
    file = folder / OUT / "restored" / "s.tar"
    content = file.read_bytes()
    file.unlink()
    change(file, content)
    return arguments if command == "run" else [command, OUT]


def claimed(folder: Path, content: bytes | None = None) -> list[str]:
    """An output in which another driver makes the plan of another job."""
    ours = {**fields(), "seed": 7}
    claim = {"job": ours, "prior_sha256": "0" * 64, "host": "other", "process": 1, "since": "2026-01-01"}
    (folder / OUT).mkdir()
    file = folder / OUT / f"claim-{'0' * 8}-1-{'0' * 8}.json"
    file.write_bytes(json.dumps(claim).encode() if content is None else content)
    return job(folder, shards=str(finished() / "s.tar"))


CASES["Run directories"] = {
    "torn commit record, run again": after(edit("commits/*.json", half), "run"),
    "torn commit record, verify": after(edit("commits/*.json", half), "verify"),
    "commit record of wrong types, run again": after(edit("commits/*.json", b'{"unit": 3}'), "run"),
    "rows changed after the commit, report": after(edit("data/*.parquet", flipped), "report"),
    "rows changed after the commit, verify": after(edit("data/*.parquet", flipped), "verify"),
    "foreign files among the commits, verify": after(
        lambda run: (run / "commits" / "evil.json").write_text("{}"), "verify"
    ),
    "job.yaml changed, run again": after(
        edit("job.yaml", lambda text: text.replace(b"steps: 1", b"steps: 2")), "run"
    ),
    "job.yaml with a tag, status": after(edit("job.yaml", TAG.encode()), "status"),
    "job.yaml empty, status": after(edit("job.yaml", b""), "status"),
    "plan cut, status": after(edit("plan.parquet", half), "status"),
    "prior.json broken, status": after(edit("prior.json", half), "status"),
    "prior.json of another checkpoint, run again": after(
        edit("prior.json", lambda text: re.sub(rb"[0-9a-f]{64}", b"0" * 64, text)), "run"
    ),
    "files.json empty, run again": after(edit("files.json", b""), "run"),
    "files.json of another mask, run again": with_mask,
    "another job is planned in the output": claimed,
    "a claim of an output that is none": partial(claimed, content=b"[" * 100_000),
    "a restored tar cut, verify": after_restoring(
        lambda file, content: file.write_bytes(half(content)), "verify"
    ),
    "a restored tar is gone, verify": after_restoring(lambda file, content: None, "verify"),
    "a restored tar is a pipe, verify": after_restoring(lambda file, content: os.mkfifo(file), "verify"),
    "a restored tar is a link that leads out, run again": after_restoring(
        lambda file, _: file.symlink_to("/etc/passwd"), "run"
    ),
    "one bit of the plan has flipped, status": after(edit("plan.parquet", one_bit), "status"),
    "one bit of the plan has flipped, verify --repair": after(
        edit("plan.parquet", one_bit), "verify", "--repair"
    ),
    "a unit's name leads out of the run, verify --repair": after(unit_elsewhere, "verify", "--repair"),
    "a unit's name leads out of the run, run again": after(unit_elsewhere, "run"),
    "report/ is a link that leads out, report": after(instead("report", link_to("/tmp")), "report"),
    "commits/ is a link that leads out, run again": after(instead("commits", link_to("/tmp")), "run"),
    "job.yaml is a pipe, status": after(instead("job.yaml", os.mkfifo), "status"),
    "plan.parquet is a link to /dev/zero, status": after(
        instead("plan.parquet", link_to("/dev/zero")), "status"
    ),
    "job.yaml of 2 TiB, status": after(lambda run: os.truncate(run / "job.yaml", 2 << 40), "status"),
    "rows with text in a number's column, report": after(with_column("psnr", "=1+1", pa.string()), "report"),
    "rows without keys, query": after(with_column("key", None, pa.string()), "query", "select * from rows"),
    "rows with a doubled column, report": after(
        rows_changed(lambda rows: rows.append_column("key", rows["key"])), "report"
    ),
    "no rows, verify": after(rows_changed(lambda rows: rows[:0]), "verify"),
    "rows with 1e308, report": after(with_column("psnr", 1e308, pa.float64()), "report"),
    "a picture of 20000×20000 in the rows, report": after(
        with_column("restored", png(20_000, 20_000), pa.binary()), "report"
    ),
    "metrics.json nested 100,000 deep, compare": lambda folder: (
        damaged(edit("report/metrics.json", b"[" * 100_000), "compare", folder),
        ["compare", OUT, str(finished() / OUT), "--out", f"{OUT}/compared"],
    )[1],
    "run directory is a link, run again": after(moved, "run"),
    "a file in place of the run directory": lambda folder: (
        (folder / OUT).write_text("hello"),
        shard(SHARD, folder),
    )[1],
    "no run directory, status": lambda folder: ["status", "nowhere"],
}

# Running


def tree(folder: Path) -> set[str]:
    """All in the folder around a case's, but for what is in OUT or in a run directory that was moved."""
    around = folder.parent
    free = {folder / OUT, folder / "elsewhere", around / "modules"}
    return {
        str(path.relative_to(around)) for path in around.rglob("*") if free.isdisjoint({path, *path.parents})
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    file = folder / OUT / "report" / "rows.parquet"
    names = ["key", "status", "error", "source"]
    return pq.read_table(file, columns=names).to_pylist() if file.is_file() else []


def forked(arguments: list[str], folder: Path) -> Outcome:
    """The command in a process of its own, of bounded time and memory; files are looked at here."""
    before, outside = tree(folder), Path("/tmp/kintsugi-evil.png")
    started = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code, output, used = None, "", 0.0
        try:
            os.chdir(folder)
            space, resident = (4096 * int(n) for n in Path("/proc/self/statm").read_text().split()[:2])
            resource.setrlimit(resource.RLIMIT_AS, (space + MEMORY, space + MEMORY))
            code, output = told(*arguments)
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - resident / 2**20
            (folder.parent / "modules").write_text("\n".join(sys.modules))
        except BaseException:
            output = traceback.format_exc()
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump((code, output, used), pipe)
        os._exit(0)
    os.close(writer)
    timer = signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(SECONDS)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, timer)
    seconds = time.monotonic() - started
    code, output, used = pickle.loads(answer) if answer else (None, "killed: too slow, or crashed", 0.0)
    made = sorted(tree(folder) - before) + [str(outside)] * outside.exists()
    return Outcome(code, output, rows_of(folder), made, seconds, max(used, 0.0))


def seen(found: Outcome, folder: Path) -> str:
    """What matters of it to a user: the error, warnings, and the samples that are not good ones."""
    lines = [line.strip() for line in found.output.splitlines() if line.strip()]
    if found.code == 1:
        start = next((i for i, line in enumerate(lines) if line.startswith("error: ")), 0)
        said = [" ".join(lines[start:])]
    elif found.rows:
        said = [line for line in lines if line.startswith(("damaged", "holds no"))]
        for row in found.rows:
            if row["key"] not in ("a", "c"):
                what = row["error"] or f"restored ({row['source']})"
                said.append(f"{shorten(ascii(row['key'])[1:-1], 60)}: {what}")
        said = said or ["restored: " + ", ".join(row["key"] for row in found.rows)]
    else:
        said = [line for line in lines if not re.search(r"━|─", line)]
    text = " · ".join(said).replace(f"{folder}/", "").replace(str(folder), ".").replace(SECRET, "**LEAK**")
    if os.environ.get("KINTSUGI_BAD_INPUT"):
        text = text.replace(os.environ["KINTSUGI_BAD_INPUT"], "…")
    return shorten(text, 300)


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def cell(text: str) -> str:
    """For a table in Markdown."""
    from kintsugi.pipeline.analysis.report.write import plain

    return plain(text)
