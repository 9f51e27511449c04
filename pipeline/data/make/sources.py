"""Where the images for shards come from: a folder, a zip or an LMDB."""

import errno
import os
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kintsugi.errors import JobError, error_text
from kintsugi.pipeline.data.names import IMAGE_SUFFIXES, why_none
from kintsugi.pipeline.data.shards import samples_of, why_unsafe

MAX_BYTES = 1 << 28  # of one encoded image: 89 megapixels of RGB without any compression
OF_ONE_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EINVAL}


@dataclass(frozen=True)
class Source:
    """An open source: the bytes of each image by name, how to read one, and what is left out unread."""

    images: dict[str, int]
    read: Callable[[str], bytes]
    left_out: Sequence[tuple[str, str]] = ()  # name (of a folder: with a slash at its end), reason
    others: Sequence[tuple[str, str]] = ()  # the same of files that are no images by their names


def open_source(source: Path) -> AbstractContextManager[Source]:
    """A folder, a zip or an LMDB, whichever it is."""
    if (source / "data.mdb").is_file() or (source.suffix in (".mdb", ".lmdb") and source.is_file()):
        return open_lmdb(source)
    if source.is_dir():
        return open_folder(source)
    if source.is_file() and zipfile.is_zipfile(source):
        return open_zip(source)
    raise JobError(
        f"{source}: {'neither a folder, a zip nor an LMDB' if source.exists() else 'no such file'}"
    )


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
