"""Make WebDataset shards from the images of a folder, a zip, an LMDB or Parquet.

Shard i holds images i·per_shard … of the listing, less those left out, and depends on these alone. Each is
recorded in .manifest.json when it is finished, which becomes manifest.json when all are. So an interrupted
command can continue, and gives the same bytes as one that was not.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import PIL

from kintsugi.ahead import map_ahead
from kintsugi.errors import JobError
from kintsugi.pipeline.data.make.choosing import Listed, Options, choose, complete
from kintsugi.pipeline.data.make.manifest import MANIFEST, UNFINISHED, Manifest, listing_hash, recorded
from kintsugi.pipeline.data.make.sources import Source, open_source, shown
from kintsugi.pipeline.data.make.writing import DECODERS, Stored, store_all, write_shard
from kintsugi.pipeline.data.names import IMAGE_SUFFIXES, kind_of
from kintsugi.pipeline.data.shards import SHA256SUMS
from kintsugi.pipeline.storage.publish import temporary_name
from kintsugi.pipeline.storage.records import write_sums


@dataclass(frozen=True)
class Sharded:
    """What is there now; `left_out` are (name, reason) of images, `others` of what is none by its name."""

    shards: list[Path]
    images: int
    left_out: list[tuple[str, str]]
    others: list[tuple[str, str]]


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
    source = checked_source(source, out, options)
    with open_source(source) as opened:
        samples, classes, left_out = choose(complete(opened, options), source, options)
        # With a list, the rest was not asked for.
        others = [] if options.names else sorted((shown(name), shown(why)) for name, why in opened.others)
        stem = re.sub(r"[^\w .-]", "_", source.stem) or "images"
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
        out.mkdir(parents=True, exist_ok=True)
        manifest.leave_out(None, left_out + others)
        manifest.write(out / UNFINISHED)
        write_missing(out, manifest, parts, opened, options, on_image)
    finish(out, manifest, list(parts))
    found = [(entry["name"], entry["reason"]) for entry in manifest.left_out if entry["shard"] is not None]
    return Sharded([out / name for name in parts], manifest.images, left_out + found, others)


def checked_source(source: Path, out: Path, options: Options) -> Path:
    """The source from the root, so that "." has a name.

    Raises:
        JobError: options that say nothing, or a place on another machine.
    """
    if options.size is None and (options.filter, options.crop) != (Options.filter, Options.crop):
        raise JobError("--filter and --crop say how to resize; give --size too")
    if options.members and options.size is not None:
        raise JobError("--member: images that belong to each other are stored as they are; leave --size out")
    for name in options.members:
        if kind_of(name) not in IMAGE_SUFFIXES or name.startswith(".") or "/" in name:
            raise JobError(f"--member {name}: what follows the key in the name of an image, such as hr.png")
    for place in (source, out):
        if re.match(r"[a-zA-Z][\w+.-]+:/", str(place)):  # pathlib leaves one slash of two
            raise JobError(f"shard: {place}: only files of this machine; copy them to or from a store")
    return Path(os.path.abspath(source))


def write_missing(
    out: Path,
    manifest: Manifest,
    parts: dict[str, list[Listed]],
    source: Source,
    options: Options,
    on_image: Callable[[int, int], None],
) -> None:
    """Write the shards that are not in the manifest, by name, each into it when it is finished.

    Images are read and decoded ahead, also those of the next shard.
    """
    missing = {name: part for name, part in parts.items() if name not in manifest.shards}
    total = sum(map(len, parts.values()))
    done = total - sum(map(len, missing.values()))
    on_image(done, total)

    def stored(sample: Listed) -> tuple[Listed, Stored]:
        return sample, store_all(source, sample, options)

    def counted(items: Iterator[tuple[Listed, Stored]]) -> Iterator[tuple[Listed, Stored]]:
        nonlocal done
        for item in items:
            yield item
            done += 1
            on_image(done, total)

    with closing(map_ahead(stored, chain.from_iterable(missing.values()), DECODERS)) as images:
        for name, part in missing.items():
            manifest.shards[name], left_out = write_shard(out / name, counted(islice(images, len(part))))
            manifest.leave_out(name, left_out)
            manifest.write(out / UNFINISHED)


def finish(out: Path, manifest: Manifest, names: list[str]) -> None:
    """Write the checksums and the manifest of all shards, and remove what was needed to get there."""
    write_sums(out, {name: manifest.shards[name]["sha256"] for name in names}, SHA256SUMS)
    manifest.write(out / MANIFEST)
    (out / UNFINISHED).unlink()
    for file in list(out.iterdir()):
        if temporary_name(file.name):  # left by a killed process
            file.unlink()
