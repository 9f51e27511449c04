"""Make WebDataset shards from the images of a folder, a zip or an LMDB.

Shard i holds images i·per_shard … of the listing, less those left out, and depends on these alone. Each is
recorded in .manifest.json when it is finished, which becomes manifest.json when all are. So an interrupted
command can continue, and gives the same bytes as one that was not.
"""

import errno
import hashlib
import json
import os
import re
import stat
import tarfile
import threading
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
import PIL
from PIL import Image

from kintsugi.errors import JobError, error_text
from kintsugi.pipeline.data.pictures import encode
from kintsugi.pipeline.data.read import FORMATS, MAX_PIXELS, open_image, resize_crop, to_rgb
from kintsugi.pipeline.data.shards import (
    IMAGE_SUFFIXES,
    SHA256SUMS,
    SKIPPED,
    key_of,
    samples_of,
    told_apart,
    why_none,
)
from kintsugi.pipeline.storage import make_folder, publish, temporary_name

MANIFEST, UNFINISHED = "manifest.json", ".manifest.json"
MAX_BYTES = 1 << 28  # of one encoded image: 89 megapixels of RGB without any compression
MAX_LINE = 4096  # characters of a list's line: the work on one grows with the square of its folders
DECODERS = 4
AHEAD = 2 * DECODERS  # images being decoded, or waiting for their turn to be written

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}
LABEL = re.compile(r"[0-9]{1,18}")  # what pipeline.read takes for a label
NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters; bytes that are not UTF-8
OF_ONE_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EINVAL}

T = TypeVar("T")
Stored = tuple[str, bytes] | str
"""Suffix and bytes of an image, or the reason why it is left out."""


@dataclass(frozen=True)
class Options:
    """Which images, how they are stored, and how many to a shard.

    Attributes:
        size: pixels; images are resized to it and stored as PNG. None: every file is stored as it is.
        filter: PIL's of that name, antialiased.
        crop: "center": shorter side to `size`, then the central square. "adm": the same, but halved by a box
            filter before while the shorter side is at least 2·size, as guided-diffusion does with the bicubic
            filter (Dhariwal & Nichol 2021, arXiv 2105.05233). "none": shorter side to `size`, no crop.
        labels: "folders": the position of an image's first folder among all of them, sorted. Else a file of
            lines NAME LABEL. None: no labels, or those of `names`.
        names: a file of lines NAME or NAME LABEL: these images in this order.
    """

    size: int | None = None
    filter: Literal["bicubic", "box", "lanczos"] = "bicubic"
    crop: Literal["center", "adm", "none"] = "center"
    per_shard: int = 1000
    labels: str | None = None
    names: Path | None = None

    def described(self) -> dict[str, Any]:
        """For the manifest: without the folders of files, which are private."""
        resized = self.size is not None
        return {
            "size": self.size,
            "filter": self.filter if resized else None,
            "crop": self.crop if resized else None,
            "per_shard": self.per_shard,
            "labels": self.labels and Path(self.labels).name,
            "list": self.names and self.names.name,
        }


@dataclass(frozen=True)
class Sharded:
    """What is there now; `left_out` are (name, reason) of images, `others` of what is none by its name."""

    shards: list[Path]
    images: int
    left_out: list[tuple[str, str]]
    others: list[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """An open source: the bytes of each image by name, how to read one, and what is left out unread."""

    images: dict[str, int]
    read: Callable[[str], bytes]
    left_out: list[tuple[str, str]]  # name (of a folder: with a slash at its end), reason
    others: list[tuple[str, str]]  # the same of files that are no images by their names


class Listed(NamedTuple):
    name: str
    key: str
    label: int | None


@dataclass
class Manifest:
    """manifest.json: `head` says what was asked for, the rest what has been done of it."""

    head: dict[str, Any]
    shards: dict[str, dict[str, Any]]  # by name: name, samples, bytes, sha256
    left_out: list[dict[str, Any]]  # shard (None: not read at all), name, reason

    @property
    def images(self) -> int:
        return sum(shard["samples"] for shard in self.shards.values())

    def write(self, path: Path) -> None:
        content = {
            **self.head,
            "images": self.images,
            "shards": [self.shards[name] for name in sorted(self.shards)],
            "left_out": sorted(self.left_out, key=lambda entry: entry["shard"] or ""),
        }
        with publish(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


def make_shards(
    source: Path, out: Path, options: Options, on_image: Callable[[int, int], None] = lambda done, total: None
) -> Sharded:
    """Write OUT/NAME-000000.tar …, OUT/manifest.json and OUT/SHA256SUMS, or what is missing of them.

    Args:
        on_image: called with (done, total), the first time with what was there before.

    Raises:
        JobError: no images; two that would get the same key; a list or labels that do not fit the source; an
            `out` that holds other shards.
        OSError: the storage fails; the same call continues.
    """
    if options.size is None and (options.filter, options.crop) != (Options.filter, Options.crop):
        raise JobError("--filter and --crop say how to resize; give --size too")
    for place in (source, out):
        if re.match(r"[a-zA-Z][\w+.-]+:/", str(place)):  # pathlib leaves one slash of two
            raise JobError(f"shard: {place}: only files of this machine; copy them to or from a store")
    source = Path(os.path.abspath(source))  # so that "." has a name
    stem = re.sub(r"[^\w .-]", "_", source.stem) or "images"
    with open_source(source) as opened, ThreadPoolExecutor(DECODERS) as decoders:
        samples, classes, left_out = choose(opened, source, options)
        # With a list, the rest was not asked for.
        others = [] if options.names else sorted((shown(name), shown(why)) for name, why in opened.others)
        parts = {
            f"{stem}-{start // options.per_shard:06d}.tar": samples[start : start + options.per_shard]
            for start in range(0, len(samples), options.per_shard)
        }
        head = {
            "source": shown(source.name),
            "options": options.described(),
            "pillow": PIL.__version__,
            "listing": {"images": len(samples), "sha256": listing_hash(samples, opened)},
            "classes": classes,
        }
        manifest = recorded(out, head)
        make_folder(out)
        manifest.left_out += [{"shard": None, "name": name, "reason": why} for name, why in left_out + others]
        manifest.write(out / UNFINISHED)
        done = sum(len(part) for name, part in parts.items() if name in manifest.shards)
        on_image(done, len(samples))

        def counted(items: Iterator[T]) -> Iterator[T]:
            nonlocal done
            for item in items:
                yield item
                done += 1
                on_image(done, len(samples))

        for name, part in parts.items():
            if name in manifest.shards:
                continue
            stored = store_in_order(opened, part, options, decoders)
            manifest.shards[name], missing = write_shard(out / name, counted(stored))
            manifest.left_out += missing
            manifest.write(out / UNFINISHED)
    with publish(out / SHA256SUMS) as temporary:
        temporary.write_text(
            "".join(f"{manifest.shards[name]['sha256']}  {name}\n" for name in parts), "utf-8"
        )
    manifest.write(out / MANIFEST)
    (out / UNFINISHED).unlink()
    for file in list(out.iterdir()):
        if temporary_name(file.name):  # left by a killed process
            file.unlink()
    found = [(entry["name"], entry["reason"]) for entry in manifest.left_out if entry["shard"] is not None]
    return Sharded([out / name for name in parts], manifest.images, left_out + found, others)


def recorded(out: Path, head: dict[str, Any]) -> Manifest:
    """What an earlier call that asked for the same has finished in `out`."""
    file = next((out / name for name in (MANIFEST, UNFINISHED) if (out / name).exists()), None)
    if file is None:
        if next(out.glob("*.tar"), None):
            raise JobError(f"{out}: holds tars, and no {MANIFEST} that says of what; choose another folder")
        return Manifest(head, {}, [])
    try:
        content = json.loads(file.read_text())
        old, new = content | content["options"], head | head["options"]
        fields = ["source", *head["options"], "pillow"]
        changed = [f"{f} was {old[f]}, now is {new[f]}" for f in fields if old[f] != new[f]]
        if not changed and old["listing"] != new["listing"]:
            were, are = old["listing"]["images"], new["listing"]["images"]
            changed = [f"{were} images were listed, now {are}, or their names, sizes or labels changed"]
        shards = {shard["name"]: shard for shard in content["shards"] if is_there(out, shard)}
        left_out = [entry for entry in content["left_out"] if entry["shard"] in shards]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(f"{file}: not a manifest of `kintsugi shard`; choose another folder") from error
    if changed:
        raise JobError(
            f"{out}: holds other shards: {'; '.join(changed)}. Choose another folder, or remove it"
        )
    return Manifest(head, shards, left_out)


def is_there(out: Path, shard: dict[str, Any]) -> bool:
    file = out / shard["name"]
    return file.is_file() and file.stat().st_size == shard["bytes"]


def listing_hash(samples: list[Listed], source: Source) -> str:
    """Of names, sizes in bytes and labels, in order: what decides the contents of the shards."""
    digest = hashlib.sha256()
    for name, _, label in samples:
        digest.update(json.dumps([name, source.images[name], label]).encode())
    return digest.hexdigest()


# Sources


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
    root = Path(os.path.realpath(source))
    images: dict[str, int] = {}
    left_out: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []

    def note(name: str, why: str) -> None:
        (left_out if name.endswith("/") and why != "hidden" else others).append((name, why))

    for name in samples_of(root, IMAGE_SUFFIXES, note):
        try:
            status = (root / name).stat()
            if not Path(os.path.realpath(root / name)).is_relative_to(root):
                left_out.append((name, "a link that leads out of the source"))
            elif stat.S_ISREG(status.st_mode):
                images[name] = status.st_size
            else:
                left_out.append((name, "not a regular file"))
        except FileNotFoundError:
            left_out.append((name, "a link that leads nowhere"))
        except OSError as error:  # a link to itself
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

            yield Source(images, read, [], [])
    except lmdb.Error as error:
        raise JobError(f"{source}: not a readable LMDB: {error}") from error


# Names, keys and labels


def unsafe(key: str) -> str | None:
    """Why no tar should have members of this key, if so. A key has no dots, so there is no `..` in it."""
    if NOT_TEXT.search(key):
        return "a name with control characters, or not in UTF-8"
    if key.startswith("/") or "\\" in key:
        return "a name that is an absolute path or has a backslash"
    if SKIPPED.match(f"{key}.png"):
        return "a name in __underscores__, by which webdataset marks what is no sample"
    member = f"{key}.jpeg"
    if len(member.encode()) > tarfile.LENGTH_NAME:  # else there is no need for the slow way to find out
        try:
            tarfile.TarInfo(member).tobuf(tarfile.USTAR_FORMAT)
        except ValueError:
            return "a name too long for a tar"
    return None


def choose(
    source: Source, path: Path, options: Options
) -> tuple[list[Listed], list[str] | None, list[tuple[str, str]]]:
    """The samples in order, the classes if folders are, and (name, reason) of what is left out unread."""
    names: dict[str, str] = {}  # by key
    left_out = list(source.left_out)
    for name in sorted(source.images):
        key = key_of(name)
        if why := unsafe(key):
            left_out.append((name, why))
        elif key in names:
            raise JobError(f"{path}: {told_apart((names[key], name))} would get the same key {key!r}")
        else:
            names[key] = name
    left_out = sorted((shown(name), why) for name, why in left_out)
    unread = left_out + [(shown(name), shown(why)) for name, why in source.others]
    also = f" ({len(unread)} left out: {unread[0][0]}: {unread[0][1]}; …)" if unread else ""
    labels: dict[str, int | None] = dict.fromkeys(names)
    if options.names is not None:
        where = f"--list {options.names}"
        lines = read_lines(where, options.names, names)
        refuse(where, f"not in {path}{also}", [name for name, key, _ in lines if key is None])
        labels = {key: label for _, key, label in lines if key is not None}
        left_out = []  # the rest was not asked for
        without = [name for name, _, label in lines if label is None]
        if len(without) < len(lines):
            refuse(where, "without a label, which others have", without)
            if options.labels is not None:
                raise JobError(f"{where}: has labels itself; leave --labels away")
    if not labels:
        raise JobError(f"{path}: no images ({', '.join(IMAGE_SUFFIXES)}){also}")
    classes = None
    if options.labels == "folders":
        refuse("--labels folders", "in no folder", [names[key] for key in labels if "/" not in key])
        # Folders of which everything is left out count too, so that the others keep their positions.
        listed = [*names.values(), *(name for name, _ in source.left_out)]
        classes = sorted({PurePosixPath(name).parts[0] for name in listed if "/" in name})
        position = {name: i for i, name in enumerate(classes)}
        labels = {key: position[PurePosixPath(names[key]).parts[0]] for key in labels}
        classes = [shown(name) for name in classes]
    elif options.labels is not None:
        where = f"--labels {options.labels}"
        lines = read_lines(where, Path(options.labels), names)
        refuse(where, "without a label", [name for name, _, label in lines if label is None])
        given = {key: label for _, key, label in lines if key is not None}
        refuse(where, f"in {path} and not in it", [names[key] for key in labels if key not in given])
        labels = {key: given[key] for key in labels}
    return [Listed(names[key], key, label) for key, label in labels.items()], classes, left_out


def read_lines(where: str, file: Path, keys: Iterable[str]) -> list[tuple[str, str | None, int | None]]:
    """(name, key or None if there is no such image, label or None) of each line NAME or NAME LABEL.

    A name means the image with that path, both without their suffixes. If there is none, it means the one
    image of which the path is the end of the name, or the other way round, such as the file name alone.
    """
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{where}: cannot be read: {error}") from error
    lines: list[tuple[str, int | None]] = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        if len(line) > MAX_LINE:
            raise JobError(f"{where}: a line of {len(line):,} characters; it has lines NAME or NAME LABEL")
        name, *label = line.rsplit(maxsplit=1)
        labelled = label and LABEL.fullmatch(label[0])
        lines.append((name, int(label[0])) if labelled else (line, None))
    places: dict[str, list[str]] = {end: [] for name, _ in lines for end in ends(key_of(name))}
    for key in keys:
        for end in ends(key):
            if end in places:
                places[end].append(key)

    def meant(name: str) -> list[str]:
        wanted = key_of(name)
        found = places[wanted]
        if wanted in found:
            return [wanted]
        return found or next((places[end] for end in ends(wanted) if end in places[end]), [])

    found = [meant(name) for name, _ in lines]
    refuse(where, "ambiguous", [name for (name, _), keys in zip(lines, found, strict=True) if len(keys) > 1])
    times = Counter(keys[0] for keys in found if keys)
    read = [(name, key[0] if key else None, label) for (name, label), key in zip(lines, found, strict=True)]
    refuse(where, "there twice", [name for name, key, _ in read if key is not None and times[key] > 1])
    return read


def ends(key: str) -> list[str]:
    """The key, and what is left of it without its first folders."""
    parts = key.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def refuse(where: str, what: str, names: list[str]) -> None:
    if names:
        some = ", ".join(map(shown, names[:3])) + (", …" if len(names) > 3 else "")
        raise JobError(f"{where}: {len(names)} {'names are' if len(names) > 1 else 'name is'} {what}: {some}")


# Storing


def store_in_order(
    source: Source, samples: list[Listed], options: Options, decoders: ThreadPoolExecutor
) -> Iterator[tuple[Listed, Stored]]:
    """Each sample with what is to be stored of it; a few are read and decoded ahead."""
    ahead: deque[tuple[Listed, Future[Stored]]] = deque()
    for sample in samples:
        ahead.append((sample, decoders.submit(store, source, sample.name, options)))
        if len(ahead) > AHEAD:
            first, future = ahead.popleft()
            yield first, future.result()
    for sample, future in ahead:
        yield sample, future.result()


def store(source: Source, name: str, options: Options) -> Stored:
    """Suffix and bytes to store. The image is decoded either way, so that shards hold no broken ones."""
    try:
        if source.images[name] > MAX_BYTES:
            raise ValueError(f"{source.images[name]:,} bytes, more than {MAX_BYTES:,}")
        content = source.read(name)
        with open_image(content) as image:
            if options.size is not None:
                fitted = fit(to_rgb(image), options.size, options.filter, options.crop)
                return "png", encode(np.asarray(fitted))
            image.load()
            suffix = PurePosixPath(name).suffix.lower()[1:]
            # Keys of an LMDB have none. JPEGs of several pictures have a format of their own, MPO.
            return (suffix if suffix in IMAGE_SUFFIXES else FORMATS.get(image.format or "", "jpg")), content
    except Exception as error:  # one bad image is one left out
        return reason(error)


def fit(image: Image.Image, size: int, filter: str, crop: str) -> Image.Image:
    """Resized, and cropped as `Options` says.

    Raises:
        ValueError: so long and thin that there would be more than MAX_PIXELS.
    """
    if crop == "adm":
        while min(image.size) >= 2 * size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if width * height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} would become {width}x{height} pixels")
    image = image.resize((width, height), FILTERS[filter])
    return image if crop == "none" else resize_crop(image, size)  # which has nothing left to resize


def write_shard(
    target: Path, stored: Iterator[tuple[Listed, Stored]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write one tar; its entries for the manifest, as a shard and of what was left out."""
    from webdataset import TarWriter

    samples, left_out = 0, []
    with publish(target) as temporary, temporary.open("wb") as file:
        tar = Hashed(file)
        with TarWriter(tar, mtime=0) as writer:
            for sample, content in stored:
                if isinstance(content, str):
                    left_out.append({"shard": target.name, "name": sample.name, "reason": content})
                    continue
                suffix, image = content
                label = {} if sample.label is None else {"cls": str(sample.label).encode()}
                writer.write({"__key__": sample.key, suffix: image, **label})
                samples += 1
    shard = {"name": target.name, "samples": samples, "bytes": tar.bytes, "sha256": tar.sha256.hexdigest()}
    return shard, left_out


class Hashed:
    """A file for writing that knows the size and the SHA-256 of what went into it."""

    def __init__(self, file: BinaryIO):
        self.file, self.bytes, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        self.sha256.update(data)
        return self.file.write(data)


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
