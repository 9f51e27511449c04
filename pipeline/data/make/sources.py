"""Where the images for shards come from: a folder, a zip, an LMDB, or Parquet of Hugging Face."""

import errno
import glob
import os
import stat
import sys
import threading
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kintsugi.errors import JobError, UnreadableImage, error_text
from kintsugi.pipeline.data import parquet
from kintsugi.pipeline.data.decode import Content
from kintsugi.pipeline.data.names import IMAGE_SUFFIXES, SUFFIXES, key_of, why_none
from kintsugi.pipeline.data.shards import called, samples_of, why_unsafe
from kintsugi.pipeline.data.tar import DamagedShard
from kintsugi.pipeline.storage.files import anchored

MAX_BYTES = 1 << 28  # of one encoded image: 89 megapixels of RGB without any compression
OF_ONE_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EINVAL}


@dataclass(frozen=True)
class Source:
    """An open source: the bytes of each image by name, how to read one, and what is left out unread.

    in_order: whether samples have the order of `images`, in which it reads fast, and not that of the names.
    """

    images: dict[str, int]
    read: Callable[[str], bytes]
    left_out: Sequence[tuple[str, str]] = ()  # name (of a folder: with a slash at its end), reason
    others: Sequence[tuple[str, str]] = ()  # the same of files that are no images by their names
    labels: Mapping[str, int | None] = field(default_factory=dict)  # classes of images, by name
    in_order: bool = False


def open_source(source: Path) -> AbstractContextManager[Source]:
    """A folder, a zip, an LMDB or Parquet, whichever it is."""
    if found := parquet_files(source):
        return open_parquet(source, *found)
    if (source / "data.mdb").is_file() or (source.suffix in (".mdb", ".lmdb") and source.is_file()):
        return open_lmdb(source)
    if source.is_dir():
        return open_folder(source)
    if source.is_file() and zipfile.is_zipfile(source):
        return open_zip(source)
    raise JobError(
        f"{source}: {'neither a folder, a zip, an LMDB nor Parquet' if source.exists() else 'no such file'}"
    )


def parquet_files(source: Path) -> tuple[list[Path], list[tuple[str, str]]] | None:
    """The files of Parquet that a source is: one, what a glob stands for, or a folder without images has.

    With them what else is there, and why it is left out. None: it is no Parquet.
    """
    if parquet.is_parquet(source) and source.is_file():
        return [source], []
    if not source.exists():
        folder, rest = anchored(str(source))
        found = [folder / name for name in sorted(glob.glob(rest, root_dir=folder, recursive=True))]
        files = [path for path in found if parquet.is_parquet(path)]
        others = [(path.name, "no Parquet by its name") for path in found if path not in files]
        return (files, others) if files else None
    if not source.is_dir() or (source / "data.mdb").is_file():
        return None
    others = []
    names = samples_of(source, ("parquet",), lambda name, why: others.append((name, why)))
    if not names or any(why_none(name, IMAGE_SUFFIXES) is None for name, _ in others):
        return None  # beside images it is named as what is none
    unsafe = {name: why for name in names if (why := why_unsafe(source, name))}
    others += [(name, f"{why}; name the file itself, or by a glob") for name, why in unsafe.items()]
    return [source / name for name in names if name not in unsafe], others


@contextmanager
def open_folder(source: Path) -> Iterator[Source]:
    """Files below a folder; links that stay in it are followed."""
    root = Path(os.path.realpath(source))
    images: dict[str, int] = {}
    left_out: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []

    def note(name: str, why: str) -> None:
        (left_out if name.endswith("/") and why != "hidden" else others).append((name, why))

    for name in samples_of(root, IMAGE_SUFFIXES, note):
        try:
            if why := why_unsafe(root, name):
                left_out.append((name, why))
            else:
                images[name] = (root / name).stat().st_size
        except OSError as error:
            left_out.append((name, reason(error)))

    def read(name: str) -> bytes:
        with (root / name).open("rb") as file:
            return file.read(MAX_BYTES)

    yield Source(images, read, left_out, others)


@contextmanager
def open_zip(source: Path) -> Iterator[Source]:
    """Names of members become keys, and never paths of files."""
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise JobError(f"{source}: not a readable zip: {error}") from error
    with archive:
        members: dict[str, zipfile.ZipInfo] = {}
        left_out: list[tuple[str, str]] = []
        others: list[tuple[str, str]] = []
        for member in archive.infolist():
            if member.is_dir():
                continue
            if why := why_none(member.filename, IMAGE_SUFFIXES):
                others.append((member.filename, why))
            elif stat.S_ISLNK(member.external_attr >> 16):
                left_out.append((member.filename, "a link, which is not followed"))
            elif member.filename in members:
                raise JobError(f"{source}: {shown(member.filename)} is in it twice")
            else:
                members[member.filename] = member
        lock = threading.Lock()  # a ZipFile counts its open members without one

        def read(name: str) -> bytes:
            member = members[name]
            if member.flag_bits & 1:
                raise ValueError("it is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # zipfile unpacks these without a bound, whatever size the member says it has.
                raise ValueError(f"compression method {member.compress_type}: only deflate is read")
            with lock, archive.open(member) as file:
                return file.read(member.file_size)

        yield Source({name: member.file_size for name, member in members.items()}, read, left_out, others)


@contextmanager
def open_lmdb(source: Path) -> Iterator[Source]:
    """LSUN's (key → encoded image), or StyleGAN2's, where "length" is the number of images.

    LMDB trusts the file, which it maps into memory: a forged one can crash the process.
    """
    try:
        import lmdb
    except ImportError:
        raise JobError(f"{source}: an LMDB needs a package more: pip install 'kintsugi[lmdb]'") from None
    file = source / "data.mdb" if source.is_dir() else source
    try:
        with lmdb.open(str(file), subdir=False, readonly=True, lock=False, readahead=False) as environment:
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if file.stat().st_size < needed:  # a page beyond the end would kill the process
                raise JobError(f"{source}: cut at {file.stat().st_size} of {needed} bytes; fetch it again")
            with environment.begin(buffers=True) as listing:
                images = {
                    bytes(key).decode("utf-8", "surrogateescape"): len(value)
                    for key, value in listing.cursor()
                    if bytes(key) != b"length"
                }

            def read(name: str) -> bytes:
                with environment.begin() as transaction:
                    return bytes(transaction.get(name.encode("utf-8", "surrogateescape")) or b"")

            yield Source(images, read)
    except lmdb.Error as error:
        raise JobError(f"{source}: not a readable LMDB: {error}") from error


@contextmanager
def open_parquet(source: Path, files: list[Path], others: list[tuple[str, str]]) -> Iterator[Source]:
    """Rows of Parquet, as `parquet.Table.rows` names them; where two files share a name, by their numbers."""
    found, others = [], list(others)
    for file in files:
        rows, size, other = listed_rows(source, file)
        found += [(file, number, row, size) for number, row in enumerate(rows)]
        if other is not None:
            others.append((f"{file.name}: label", f"a column of {other}; classes are integers"))
    names = [row.name for _, _, row, _ in found]
    if len(set(map(key_of, names))) < len(names):
        names = [parquet.numbered(file, number) for file, number, _, _ in found]
        if len(set(names)) < len(names):
            raise JobError(f"{source}: files of one name, whose rows have no names; make shards of each")
    images = {name: size for name, (*_, size) in zip(names, found, strict=True)}
    labels = {name: row.label for name, (_, _, row, _) in zip(names, found, strict=True)}
    places = {name: (file, number) for name, (file, number, *_) in zip(names, found, strict=True)}
    with closing(Rows()) as rows_in_order:
        yield Source(images, lambda name: rows_in_order.read(*places[name]), (), others, labels, True)


def listed_rows(source: Path, file: Path) -> tuple[list[parquet.Row], int, str | None]:
    """Rows of a file, the bytes of one in the mean, and the type of a `label` that is none.

    Raises:
        JobError: the file has no images, or is damaged.
    """
    try:
        with called(str(source)), parquet.opened(file) as table:
            rows = table.rows()
            return rows, min(file.stat().st_size // max(len(rows), 1), MAX_BYTES), table.other
    except DamagedShard as error:
        raise JobError(f"{source}: {file.name}: {error}") from error


class Rows:
    """Images of rows, fast where they are asked for nearly in order; from any thread."""

    KEPT = 16  # rows that were passed, for threads that come later

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.file: Path | None = None
        self.rows: Generator[tuple[int, str | None, Content], None, None] | None = None
        self.passed: dict[int, Content] = {}
        self.next = 0

    def read(self, file: Path, number: int) -> bytes:
        """The image of a row; raises what there is in its place."""
        with self.lock:
            if file != self.file or (number < self.next and number not in self.passed):
                self.close()
                self.file, self.next = file, number
                self.rows = parquet.read_rows(file, number, sys.maxsize)
            while number not in self.passed:
                assert self.rows is not None
                found, _, content = next(
                    self.rows, (number, None, UnreadableImage("not in the file any more"))
                )
                self.passed[found], self.next = content, found + 1
                if len(self.passed) > self.KEPT:
                    del self.passed[min(self.passed)]
            content = self.passed.pop(number)
        if isinstance(content, Exception):
            raise content
        image = next(content[suffix] for suffix in SUFFIXES if suffix in content)
        if len(image) > MAX_BYTES:
            raise ValueError(f"{len(image):,} bytes, more than {MAX_BYTES:,}")
        return image

    def close(self) -> None:
        """Close the file that is open, if one is."""
        if self.rows is not None:
            self.rows.close()
        self.rows, self.passed = None, {}


def reason(error: Exception) -> str:
    """Why one image is left out, in words that are the same each time.

    Raises:
        OSError: it is the storage that fails, and would for every image.
    """
    if isinstance(error, OSError) and error.errno is not None:  # PIL's have no number
        if error.errno not in OF_ONE_FILE:
            raise error
        return f"{type(error).__name__}: {error.strerror}"  # without the path, which is private
    return shown(error_text(error))


def shown(text: str) -> str:
    """The text with escapes for what no terminal should get, and no JSON can hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
