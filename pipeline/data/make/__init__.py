"""Make WebDataset shards from the images of a folder, a zip or an LMDB.

Shard i holds images i·per_shard … of the listing, less those left out, and depends on these alone. Each is
recorded in .manifest.json when it is finished, which becomes manifest.json when all are. So an interrupted
command can continue, and gives the same bytes as one that was not.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import PIL

from kintsugi.errors import JobError
from kintsugi.pipeline.data.make.choosing import Listed, Options, choose
from kintsugi.pipeline.data.make.sources import Source, open_source, shown
from kintsugi.pipeline.data.make.writing import DECODERS, store_in_order, write_shard
from kintsugi.pipeline.data.shards import SHA256SUMS
from kintsugi.pipeline.storage import make_folder, publish, temporary_name

MANIFEST, UNFINISHED = "manifest.json", ".manifest.json"
T = TypeVar("T")


@dataclass(frozen=True)
class Sharded:
    """What is there now; `left_out` are (name, reason) of images, `others` of what is none by its name."""

    shards: list[Path]
    images: int
    left_out: list[tuple[str, str]]
    others: list[tuple[str, str]]


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
