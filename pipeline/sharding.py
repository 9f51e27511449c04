"""Make shards from a folder or a zip of images."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image

from pipeline.builtin import png
from pipeline.commit import publish
from pipeline.job import JobError
from pipeline.read import IMAGE_SUFFIXES, resize_crop, to_rgb


@dataclass
class Sharded:
    """What was written; `failed` are (file name, error) of images left out."""

    shards: list[Path] = field(default_factory=list)
    written: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def make_shards(
    source: Path, out: Path, size: int | None, per_shard: int, on_image: Callable[[int, int], None]
) -> Sharded:
    """Write OUT/NAME-000000.tar … with the images in order of their paths.

    Args:
        size: resize the shorter side to it (bicubic, antialiased), crop the centre, store as PNG;
            None stores every file as it is.
        on_image: called with (done, total).

    Raises:
        JobError: no images in the source, or two that would get the same key.
    """
    from webdataset import TarWriter

    names, read = open_source(source)
    keys = {name: key_of(name) for name in names}
    if not names:
        raise JobError(f"{source}: no images ({', '.join(IMAGE_SUFFIXES)})")
    if len(set(keys.values())) < len(keys):
        seen: dict[str, str] = {}
        first, second = next((seen[k], n) for n, k in keys.items() if seen.setdefault(k, n) != n)
        raise JobError(f"{source}: {first} and {second} would get the same key {keys[first]!r}")
    result = Sharded()
    for start in range(0, len(names), per_shard):
        target = out / f"{source.stem}-{start // per_shard:06d}.tar"
        with publish(target) as temporary, TarWriter(str(temporary), mtime=0) as writer:
            for position, name in enumerate(names[start : start + per_shard], start + 1):
                try:
                    suffix, content = as_stored(name, read(name), size)
                    writer.write({"__key__": keys[name], suffix: content})
                    result.written += 1
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                    result.failed.append((name, f"{type(error).__name__}: {error}"))
                on_image(position, len(names))
        result.shards.append(target)
    return result


def open_source(source: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """The sorted names of the images in a folder or zip, and how to read one."""
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]

        def read(name: str) -> bytes:
            return (source / name).read_bytes()

    elif zipfile.is_zipfile(source):
        archive = zipfile.ZipFile(source)
        names, read = archive.namelist(), archive.read
    else:
        raise JobError(f"{source}: neither a folder nor a zip file")
    return sorted(n for n in names if PurePosixPath(n).suffix.lower()[1:] in IMAGE_SUFFIXES), read


def key_of(name: str) -> str:
    """The path without its suffix; webdataset ends a key at the first dot, so other dots are replaced."""
    return str(PurePosixPath(name).with_suffix("")).replace(".", "_")


def as_stored(name: str, content: bytes, size: int | None) -> tuple[str, bytes]:
    """Suffix and bytes to store. The image is decoded either way, so that shards hold no broken ones."""
    with Image.open(BytesIO(content)) as image:
        image.load()
        if size is None:
            return PurePosixPath(name).suffix.lower()[1:], content
        return "png", png(resize_crop(to_rgb(image), size))
