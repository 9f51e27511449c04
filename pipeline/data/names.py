"""Names: which files are samples, and the keys of these."""

import re
import unicodedata
from collections.abc import Collection
from pathlib import PurePosixPath

SKIPPED = re.compile(r"__[^/]*__($|/)")  # webdataset's rule for metadata members
# fmt: off
SUFFIXES = (
    "png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm", "npy",
    "jfif", "jpe", "pgm", "gif", "avif", "heic",
)
# fmt: on
IMAGE_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix != "npy")
FIRST_SUFFIXES = SUFFIXES[: SUFFIXES.index("jfif")]
NAMES = 2
"""The rule by which names become keys, and files samples; plans say with which they were made.

1: in a tar, `./a.png` has the key `./a`, and folders keep their dots; links in it, and what webdataset makes
no key of, are passed over. In a folder only names of files are hidden, and `FIRST_SUFFIXES` count.
2: `key_of` everywhere. What lies in a hidden folder is hidden. A link in a tar is the file that it leads to.
"""


def why_none(name: str, suffixes: Collection[str]) -> str | None:
    """Why a file is no sample, by its name, if so. Links to folders have a slash at the end."""
    if hidden(name):
        return "hidden"
    if name.endswith("/"):
        return "a link to a folder, which is not followed"
    suffix = suffix_of(name)
    if suffix in suffixes:
        return None
    if suffix == "parquet":
        return "Parquet is not looked for in folders; name the files, as in FOLDER/*.parquet"
    return f".{suffix} files are not read" if suffix else "a name without a suffix"


def hidden(name: str) -> bool:
    """Whether a file or a folder that it lies in is hidden. macOS puts files `._NAME` into zips and tars,
    and such files into a folder __MACOSX.
    """
    parts = (part for part in PurePosixPath(name).parts if part != "..")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def suffix_of(name: str) -> str:
    """What follows the last dot, in lower case; "" without one."""
    return PurePosixPath(name).suffix.lower()[1:]


def key_of(name: str) -> str:
    """The path without its suffix, `./` and doubled slashes, in Unicode's form NFC.

    webdataset ends a key at the first dot of a file's name, so other dots are replaced.
    """
    path = PurePosixPath(name)
    if suffix_of(name) in SUFFIXES:
        path = path.with_suffix("")
    return as_key(str(path))


def as_key(path: str) -> str:
    """A path without its suffix as a key."""
    return unicodedata.normalize("NFC", path).replace(".", "_")


def told_apart(names: Collection[str]) -> str:
    """Names that make the same key; such as look the same are written in ASCII."""
    alike = len({unicodedata.normalize("NFC", name) for name in names}) < len(names)
    return " and ".join(map(ascii, names) if alike else names)
