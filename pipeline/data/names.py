"""Names: which files are samples, and the keys of these."""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from pathlib import PurePosixPath

from kintsugi.pipeline.wanted import Wanted

SKIPPED = re.compile(r"__[^/]*__($|/)")  # webdataset's rule for metadata members
FRAME = re.compile(r"[0-9]{0,18}\Z")
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

Note = Callable[[str, str], None]
"""Called with the name of what is no sample, and why it is none."""


def ignore(name: str, why: str) -> None:
    """For who does not want to know."""


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


def is_plain(name: str) -> bool:
    """Whether a path is written in the one way that needs no look at its parts, and not hidden; quickly."""
    if "/" in name and ("//" in name or "/." in name or "__MACOSX" in name or name[-1] == "/"):
        return False
    return name.isascii() and name[:1] not in "._/"


def suffix_of(name: str) -> str:
    """What follows the last dot, in lower case; "" without one."""
    return PurePosixPath(name).suffix.lower()[1:]


def kind_of(member: str) -> str:
    """The suffix of files by what follows their key, `hr.png` or `png`."""
    return suffix_of(f"key.{member}")


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


def frame_of(key: str) -> tuple[str, int]:
    """The clip that a key is a frame of, and its number: the key without the digits at its end, and these.

    Of more than 18 the last 18; a key that ends with none is frame 0.
    """
    digits = FRAME.search(key)
    assert digits is not None
    return key[: digits.start()], int(digits[0] or 0)


def wanted_as(name: str, wanted: Wanted) -> tuple[str, str] | None:
    """The key of a file that is wanted by what follows the key in its name, and this; None of others."""
    path = str(PurePosixPath(name))
    ends = [end for end in (*wanted.files, wanted.member) if end and path.endswith(f".{end}")]
    if not ends:
        return None
    end = max(ends, key=len)
    stem = path[: -len(end) - 1]
    return (as_key(stem), end) if PurePosixPath(stem).name and not stem.endswith("/") else None


def key_in(name: str, wanted: Wanted) -> str:
    """The key of a sample by the name of its image."""
    return key_of(name) if wanted.member is None else as_key(stem_of(name, wanted))


def stem_of(name: str, wanted: Wanted) -> str:
    """What the names of a sample's files begin with, by the name of its image."""
    end = PurePosixPath(name).suffix if wanted.member is None else f".{wanted.member}"
    return name.removesuffix(end)


def with_member(names: Iterable[str], wanted: Wanted) -> list[str]:
    """Of files whose names are the same up to the first dot: those that are the images of samples.

    `a.png` is the member png of a; where there is none, `a.1.png` is that of a.1.
    """
    found = [name for name in names if (wanted_as(name, wanted) or ("", ""))[1] == wanted.member]
    return [name for name in found if PurePosixPath(name).name.partition(".")[2] == wanted.member] or found


def accompanies(name: str, keys: Collection[str]) -> bool:
    """Whether a file is one of a sample with one of these keys: its name is the key, a dot, and more."""
    path = str(PurePosixPath(name))
    dots = (dot for dot in range(path.rfind("/") + 1, len(path)) if path[dot] == ".")
    return any(as_key(path[:dot]) in keys for dot in dots)


def lacks(wanted: Wanted) -> str:
    """Why a file belongs to no sample that otherwise would."""
    return f"its key has no {'image' if wanted.member is None else wanted.member} next to it"


def told_apart(names: Collection[str]) -> str:
    """Names that make the same key; such as look the same are written in ASCII."""
    alike = len({unicodedata.normalize("NFC", name) for name in names}) < len(names)
    return " and ".join(map(ascii, names) if alike else names)
