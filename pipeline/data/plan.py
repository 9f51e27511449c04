"""The plan: the job's samples divided into units of work, written once and followed ever after."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kintsugi.ahead import map_ahead
from kintsugi.errors import JobError
from kintsugi.pipeline.data import shards
from kintsugi.pipeline.data.indexing import Indexed, find, find_all, reading
from kintsugi.pipeline.data.names import IMAGE_SUFFIXES, NAMES, SUFFIXES, kind_of, stem_of
from kintsugi.pipeline.data.pairs import Pairing
from kintsugi.pipeline.data.pictures import suffix_of
from kintsugi.pipeline.data.shards import SHA256SUMS, Place
from kintsugi.pipeline.data.units import (
    GROUP,
    IN_FLIGHT,
    NAMED,
    PAIRED,
    RULE,
    SCHEMA,
    SUMMARY,
    PlanSummary,
    Unit,
    link_rows,
    pair_row,
    rows_of,
    unit_name,
)
from kintsugi.pipeline.parts import Data, Restoration, Subset
from kintsugi.pipeline.storage.files import file_sizes
from kintsugi.pipeline.storage.location import Location, at, is_remote
from kintsugi.pipeline.storage.publish import publish
from kintsugi.pipeline.wanted import IMAGE_ONLY, Wanted

MAX_NAME = 255  # bytes of a file's name, on all usual file systems
TUNING = b"kintsugi tuning"  # salt of the hash by which keys are for tuning; never to be changed


def make_plan(
    data: Data,
    paths: Sequence[Location],
    unit_size: int,
    target: Location,
    on_unit: Callable[[Unit], None] = lambda unit: None,
    restoration: Restoration | None = None,
    wanted: Wanted = IMAGE_ONLY,
) -> PlanSummary:
    """Index the shards and write the plan to `target`; memory grows by 8 bytes a sample.

    Shards beyond `data.limit` are neither read nor checked.

    Args:
        on_unit: called with each unit, and with the last one of a shard again when its checksum was compared.
        restoration: what will be written of each sample, if the data are measurements.
        wanted: which files of a sample are read.

    Raises:
        JobError: missing or damaged shards (unless salvaged), a key that occurs twice, restorations that
            cannot have names of their own, or no samples.
    """
    refuse_no_image(wanted)
    summary, hashes = PlanSummary([str(path) for path in paths], 0, 0, {}, []), array("q")
    last: dict[str, Unit] = {}  # of each shard
    pairing = Pairing(data, partial(belongs, subset=data.subset)) if data.kind == "restored" else None
    schema = SCHEMA if pairing is None else PAIRED
    with publish(target) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer:
            found = divide(paths, unit_size, data, summary, pairing, wanted)
            while group := list(islice(found, GROUP)):
                writer.write_table(pa.Table.from_pylist([row for _, row in group], schema))
                for unit, row in group:
                    hashes.extend(map(hash, row["keys"]))  # of this process; keys with the same are compared
                    summary.units, summary.samples = summary.units + 1, summary.samples + unit.samples
                    last[unit.shard] = unit
                    on_unit(unit)
            if data.checksums == "check":
                compare_checksums(paths, last, summary, on_unit)
            summary.empty = [shard for shard in summary.empty if shard not in summary.damaged]
            if pairing is not None:
                pairing.name_left_out(summary)
            writer.add_key_value_metadata({SUMMARY: summary.text(), RULE: str(NAMES)})
        refuse_unusable(summary, data)
        refuse_duplicates(temporary, np.frombuffer(hashes, np.int64))
        if restoration is not None:
            refuse_names(temporary, restoration, data.channels, wanted)
    return summary


def refuse_no_image(wanted: Wanted) -> None:
    """Raise a JobError for a member that is named as an image, and is none by its suffix."""
    images = {"data.truth": (wanted.truth and wanted.truth.member, IMAGE_SUFFIXES)}
    for field, (name, suffixes) in {"data": (wanted.member, SUFFIXES), **images}.items():
        if name is not None and kind_of(name) not in suffixes:
            raise JobError(
                f"{field}.member: {name!r} is no image; its suffix is none of {', '.join(suffixes)}"
            )


def refuse_unusable(summary: PlanSummary, data: Data) -> None:
    """Raise a JobError if shards are damaged, unless they are to be salvaged, or if there are no samples."""
    if summary.damaged and data.damaged == "refuse":
        listed = "\n  ".join(f"{shard}: {what}" for shard, what in summary.damaged.items())
        raise JobError(
            "data.shards: damaged; fetch them again, or set data.damaged=salvage to restore what is "
            f"readable in them:\n  {listed}"
        )
    if summary.samples == 0:
        part = "" if data.subset is None else f" of data.subset.part={data.subset.part}"
        others = "".join(
            f"\n  left out {shard}: {name}: {why}" for shard, name, why in summary.left_out_first
        )
        raise JobError(f"data.shards: no samples{part} in {', '.join(summary.shards)}{others}")


def compare_checksums(
    paths: Sequence[Location], last: dict[str, Unit], summary: PlanSummary, on_unit: Callable[[Unit], None]
) -> None:
    """Compare the shards that were read with the checksums that are stated beside them.

    Notes say what was not compared: checksums of files that are not there, shards without one.

    Args:
        last: unit of each shard that has any. on_unit: called with it when its shard was compared.
    """
    stated = {folder: shards.stated_checksums(folder) for folder in dict.fromkeys(p.parent for p in paths)}
    for folder, lines in stated.items():
        here = {path.name for path in paths if path.parent == folder} if lines else set()
        without = sorted(here - lines.keys())
        nowhere = sorted(lines.keys() - here - file_sizes(folder).keys()) if lines else []
        for what, names in (("names files that are not there", nowhere), ("names not all shards", without)):
            if names:
                summary.notes.append(f"{folder / SHA256SUMS} {what}, {len(names)}: {', '.join(names[:3])}")
    read = {*last, *summary.damaged, *summary.empty}
    checked = [path for path in paths if str(path) in read and path.name in stated[path.parent]]
    for path, now in zip(checked, map_ahead(checksum, checked, IN_FLIGHT), strict=True):
        if now != (said := stated[path.parent][path.name]):
            what = f"its SHA-256 is {now}, {SHA256SUMS} says {said}"
            summary.damaged.setdefault(str(path), what)
        if str(path) in last:
            on_unit(last[str(path)])
    sums = [stated[path.parent][path.name] for path in checked if str(path) in last]
    if last and len(sums) == len(last):
        summary.shards_sha256 = hashlib.sha256(
            "".join(f"{one}\n" for one in sorted(sums)).encode()
        ).hexdigest()


def checksum(shard: Location) -> str:
    """SHA-256 of a shard; raises as `reading`."""
    with reading(shard):
        return shards.checksum(shard)


def divide(
    paths: Sequence[Location],
    unit_size: int,
    data: Data,
    summary: PlanSummary,
    pairing: Pairing | None,
    wanted: Wanted,
) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Units and their rows in order; what is wrong with shards goes into `summary`."""
    first, limit = 0, data.limit
    places = indexed(paths, data, summary, pairing, wanted)
    for number, (shard, (size, found)) in enumerate(zip(paths, places, strict=True)):
        start = 0
        samples = islice(found, None if limit is None else limit - first)
        while batch := list(islice(samples, unit_size)):
            unit = Unit(
                unit=unit_name(number, start),
                shard=str(shard),
                shard_size=size,
                first=first,
                start=start,
                samples=len(batch),
                offset=batch[0].offset,
                end=max(sample.end for sample in batch),  # of a.1.png, a.2.png, a.1.cls not that of the last
            )
            keys = [shards.checked_key(shard, sample.key) for sample in batch]
            files = [sample.file for sample in batch] if batch[0].file is not None else None
            links = link_rows([link for sample in batch for link in sample.links])
            pairs = [pair_row(sample.pair) for sample in batch if sample.pair is not None]
            yield unit, {**asdict(unit), "keys": keys, "files": files, "links": links, "pairs": pairs}
            start, first = start + len(batch), first + len(batch)
        if first == limit:
            return


def indexed(
    paths: Sequence[Location], data: Data, summary: PlanSummary, pairing: Pairing | None, wanted: Wanted
) -> Iterator[Indexed]:
    """Size and samples of each shard, in order. Of remote ones several are read at once, up to the limit."""
    salvage = data.damaged == "salvage"

    def read(path: Location) -> tuple[Indexed, PlanSummary]:
        its = PlanSummary([], 0, 0, {}, [])  # which count when it is the shard's turn, if that comes
        size, samples = chosen(path, find(path, salvage, wanted, its), data, its, pairing)
        return (size, list(islice(samples, data.limit))), its

    if any(map(is_remote, paths)):
        for found, its in map_ahead(read, paths, IN_FLIGHT, IN_FLIGHT):
            summary.add(its)
            yield found
        return
    # With a limit it is not known how many shards there are to read.
    with closing(find_all(paths, salvage, wanted, summary, data.limit is None)) as every:
        for path, indexed in zip(paths, every, strict=True):
            yield chosen(path, indexed, data, summary, pairing)


def chosen(
    path: Location, indexed: Indexed, data: Data, summary: PlanSummary, pairing: Pairing | None
) -> Indexed:
    """A shard with those samples that are in `data.subset`; what is wrong with it goes into `summary`."""
    size, samples = indexed
    with reading(path):
        begin = list(islice(samples, 1))
        every: Iterable[Place] = chain(begin, samples)
        if pairing is not None:
            every = pairing.of(every, summary)
        if data.subset is not None:
            every = (one for one in every if belongs(one.key, data.subset))
        if not begin and str(path) not in summary.damaged:
            summary.empty.append(str(path))
        return size, every


def belongs(key: str, subset: Subset | None) -> bool:
    """Whether a sample is in a part of the data: for tuning are the keys whose hash is below a threshold.

    So the two parts are disjoint and make up the whole, and each is the same however the samples are spread
    over shards. The keys for tuning of a smaller fraction are among those of a larger one.
    """
    if subset is None:
        return True
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8, salt=TUNING).digest()
    tuning = int.from_bytes(digest, "little") < subset.fraction * 2**64
    return tuning == (subset.part == "tune")


class Found(NamedTuple):
    """Where a key is: a shard, of a folder the file in it, and what the key is there by the name alone."""

    shard: str
    file: str | None
    name: str

    def in_words(self, key: str) -> str:
        """The place of a key; as names may look alike, those of files in ASCII."""
        if self.file is not None:
            return f"{self.shard}/{ascii(self.file)[1:-1]}"
        return self.shard if self.name == key else f"{self.shard}, there {self.name!r}"


def refuse_duplicates(plan: Path, hashes: np.ndarray) -> None:
    """Raise a JobError that names keys occurring more than once, and where."""
    ordered = np.sort(hashes)
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not suspects:
        return
    places: dict[str, list[Found]] = {}
    file = pq.ParquetFile(plan)
    columns = [name for name in ("shard", "keys", "files", "pairs") if name in file.schema_arrow.names]
    for row in rows_of(file, columns):
        keys = row["keys"]
        names = [pair["name"] for pair in row.get("pairs") or ()] or keys
        for key, name, of in zip(keys, names, row["files"] or [None] * len(keys), strict=True):
            if hash(key) in suspects:
                places.setdefault(key, []).append(Found(row["shard"], of, name))
    twice = {key: found for key, found in places.items() if len(found) > 1}
    if not twice:  # two keys with the same 64-bit hash, which is no fault
        return
    some = dict(list(twice.items())[:NAMED])
    # Of a folder each has its file.
    tars = {found[0].shard for found in some.values() if len(set(found)) == 1}
    for tar in tars:
        names = [found[0].name for found in some.values() if {one.shard for one in found} == {tar}]
        if apart := shards.scattered(at(tar), names):
            listed = "\n  ".join(", ".join(names) for names in apart)
            raise JobError(
                f"data.shards: {tar}: the members of a sample must be adjacent, and some are not; write the "
                f"tar again in the order of the names, as `tar --sort=name` does:\n  {listed}"
            )
    listed = "\n  ".join(
        f"{key!r} in {', '.join(one.in_words(key) for one in found)}" for key, found in some.items()
    )
    raise JobError(
        f"data.shards: {len(twice)} keys occur more than once (noise and rows belong to keys); "
        f"rename them, for instance with `kintsugi shard`:\n  {listed}"
    )


def restored_names(stem: PurePosixPath, restoration: Restoration, channels: int) -> list[str]:
    """The files of one restored sample: the restoration; of several samples each, and their deviation."""
    suffix, count = suffix_of(restoration.format, channels), restoration.samples_per_image
    if count == 1:
        return [f"{stem}.{suffix}"]
    samples = [f"{stem}.sample{number:02d}.{suffix}" for number in range(count)]
    return [f"{stem}.{suffix}", *samples, f"{stem}.std.npy"]


def refuse_names(plan: Path, restoration: Restoration, channels: int, wanted: Wanted) -> None:
    """Raise a JobError for files of a folder whose restorations cannot be written beside each other.

    In a tar they can: its keys are unique and have no dots, and its names any length.
    """
    files: dict[str, list[str]] = {}
    for row in rows_of(pq.ParquetFile(plan), ["shard", "files"]):
        files.setdefault(row["shard"], []).extend(row["files"] or ())
    for shard, names in files.items():
        stems = {PurePosixPath(stem_of(name, wanted)): name for name in names}
        restored = {restored_names(stem, restoration, channels)[0]: name for stem, name in stems.items()}
        for stem, name in stems.items():
            for one in restored_names(stem, restoration, channels):
                if (length := len(PurePosixPath(one).name.encode())) > MAX_NAME:
                    raise JobError(
                        f"data.shards: {shard}: the restoration of {name!r} would have a name of {length} "
                        f"bytes, and files have {MAX_NAME} at most; rename it"
                    )
                if (other := restored.get(one, name)) != name:
                    raise JobError(
                        f"data.shards: {shard}: {one!r} would be a sample of {name!r} and the restoration of "
                        f"{other!r}; rename one, or set restoration.samples_per_image=1"
                    )
