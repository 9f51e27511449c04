"""Units of work, as they are read from a plan."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from kintsugi.ahead import map_ahead
from kintsugi.errors import JobError
from kintsugi.pipeline.data import shards
from kintsugi.pipeline.data.names import NAMES
from kintsugi.pipeline.data.shards import Pair, Place
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.files import parquet, storage_failed
from kintsugi.pipeline.storage.location import Location, at, is_remote
from kintsugi.pipeline.storage.records import MAX_TABLE, UNIT

SUMMARY = "kintsugi.summary"  # key of the plan file's metadata
RULE = "kintsugi.names"  # `NAMES` when the plan was made, by itself: every unit asks for it
NAMED = 10  # files that are no samples, in the summary
GROUP = 64  # units per row group: how much of the plan is in memory at a time
IN_FLIGHT = 8  # shards read at once where storage is far away, or where all of it is read
LINK = ("name", "data", "size")
SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("shard", pa.string()),
        ("shard_size", pa.int64()),
        ("first", pa.int64()),
        ("start", pa.int64()),
        ("samples", pa.int64()),
        ("offset", pa.int64()),
        ("end", pa.int64()),
        ("keys", pa.list_(pa.string())),
        ("files", pa.list_(pa.string())),  # where the shard is a folder
        ("links", pa.list_(pa.struct(dict(zip(LINK, (pa.string(), pa.int64(), pa.int64()), strict=True))))),
    ]
)
TRUTH = {"name": pa.string(), "shard": pa.string(), "key": pa.string()}
TRUTH |= {"offset": pa.int64(), "end": pa.int64(), "file": pa.string(), "links": SCHEMA.field("links").type}
PAIRED = SCHEMA.append(pa.field("pairs", pa.list_(pa.struct(TRUTH))))  # of restored images
BEFORE_LINKS = pa.schema([column for column in SCHEMA if column.name != "links"])  # of earlier versions


@dataclass(frozen=True)
class Unit:
    """A range of samples of one shard, restored and committed as one.

    Attributes:
        unit: its name, `unit_name` of the shard's position and `start`.
        shard_size: `shards.fingerprint` of the shard.
        first: position of its first sample in the job; start: in the shard, or in what `data.subset` leaves
            of it.
        offset, end: the bytes of the shard that hold its samples.
    """

    unit: str
    shard: str
    shard_size: int
    first: int
    start: int
    samples: int
    offset: int
    end: int


@dataclass
class PlanSummary:
    """What a plan holds: its shards, of which `damaged` says what is wrong, and `empty` hold nothing.

    Those beyond `data.limit` are among the shards, and nothing is known of them.

    Attributes:
        left_out: how many files in the shards are no samples. left_out_first: shard, name and reason of some.
        notes: what else the user should know.
        without_truth, without_restored: keys of restored and true images that have no partner.
        shards_sha256: of the sorted checksums of the shards that hold samples, a line each; "" unless all of
            them were compared with one.
    """

    shards: list[str]
    units: int
    samples: int
    damaged: dict[str, str]
    empty: list[str]
    left_out: int = 0
    left_out_first: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    without_truth: list[str] = field(default_factory=list)
    without_restored: list[str] = field(default_factory=list)
    shards_sha256: str = ""

    def warn(self, shard: Location, what: str) -> None:
        """Note what may be damage."""
        if len(self.notes) < NAMED:
            self.notes.append(f"{shard}: {what}")

    def leave_out(self, shard: Location, name: str, why: str) -> None:
        """Count a file that is no sample."""
        self.left_out += 1
        if len(self.left_out_first) < NAMED:
            self.left_out_first.append([str(shard), name, why])

    def add(self, other: "PlanSummary") -> None:
        """Take over what is wrong with another shard."""
        self.damaged |= other.damaged
        self.empty += other.empty
        self.left_out += other.left_out
        self.left_out_first = (self.left_out_first + other.left_out_first)[:NAMED]
        self.notes = (self.notes + other.notes)[:NAMED]
        self.without_truth += other.without_truth

    def text(self) -> str:
        """As the plan holds it; without what not all plans have, where that is empty."""
        found = asdict(self)
        return json.dumps({k: v for k, v in found.items() if v or not k.startswith(("without_", "shards_"))})


SUMMARY_TYPE = TypeAdapter(PlanSummary)


@dataclass(frozen=True)
class Members:
    """The keys of a unit's samples in order.

    Attributes:
        files: where the shard is a folder. links: `Place.links` of all samples. names: the rule for keys.
        pairs: of restored images.
    """

    keys: list[str]
    files: list[str] | None
    links: Sequence[tuple[str, int, int]] = ()
    names: int = NAMES
    pairs: list[Pair] | None = None


def unit_name(number: int, start: int) -> str:
    """The name of a unit, and of its files: the shard's position, and that of its first sample in it."""
    return f"{number:05d}-{start:07d}"


@dataclass(frozen=True)
class Kept:
    """Of a plan: its footer, and the places of the first units of groups, as far as these were asked for."""

    footer: pq.FileMetaData
    begins: dict[int, tuple[int, ...]]


@contextmanager
def opened(plan: Location, known: Kept | None = None) -> Iterator[pq.ParquetFile]:
    """A plan for reading.

    Args:
        known: of one that is asked for a little at a time: its footer grows with it, and is read once.

    Raises:
        FileNotFoundError: there is none.
        JobError: it is not a plan, or what is read of it is not as it should be.
    """
    length = records.regular(plan, MAX_TABLE)
    with reading(plan), parquet(plan, footer=known and known.footer) as file:
        if not any(map(file.schema_arrow.equals, (SCHEMA, BEFORE_LINKS, PAIRED))):
            raise ValueError("its columns are not those of a plan")
        if file.metadata.num_rows > length:  # a few bytes may claim any number
            raise ValueError("it claims more units than it has bytes")
        yield file


@contextmanager
def reading(plan: Location) -> Iterator[None]:
    """Turns errors of what is read of a plan into a JobError; those of storage stay what they are."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if storage_failed(error, plan):
            raise
        raise JobError(f"{plan} cannot be read as a plan: {error}; {advice(plan.parent)}") from error


def kept_of(plan: Location) -> Kept | None:
    """What is kept of a plan as long as the file is the same by its stamp; None of an object."""
    if is_remote(plan):
        return None
    found = plan.lstat()
    return kept(plan, (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=4)
def kept(plan: Path, stamp: tuple[int, int, int]) -> Kept:
    """Of the file that has this stamp."""
    return Kept(pq.read_metadata(plan), {})


def rows_of(file: pq.ParquetFile, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a plan, of which a group at a time is in memory."""
    for batch in file.iter_batches(GROUP, columns=columns):
        yield from batch.to_pylist()


def advice(folder: Location) -> str:
    """What to do where a run's plan cannot be read."""
    return f"`kintsugi verify {folder} --repair` makes it again from the shards"


def read_summary(plan: Location) -> PlanSummary:
    """What a plan says that it holds; raises as `opened`."""
    with opened(plan) as file:
        return summary_of(file)


def summary_of(file: pq.ParquetFile) -> PlanSummary:
    """As `read_summary`; raises a ValueError, KeyError or TypeError if it says nothing of the kind."""
    found = SUMMARY_TYPE.validate_json(file.metadata.metadata[SUMMARY.encode()], strict=True)
    if not 0 < found.units == file.metadata.num_rows <= found.samples:
        raise ValueError("its summary has another number of units")
    return found


def read_units(plan: Location) -> Iterator[Unit]:
    """The units in order, without their keys.

    Raises:
        JobError: their names are not those that planning gives, or they do not follow each other.
    """
    columns = [field.name for field in fields(Unit)]
    with opened(plan) as file:
        summary = summary_of(file)
        before: Unit | None = None
        for unit in (Unit(**row) for row in rows_of(file, columns)):
            if (what := misplaced(unit, before, summary)) is not None:
                raise ValueError(f"unit {unit.unit!r}: {what}")
            yield unit
            before = unit
        if before is None or before.first + before.samples != summary.samples:
            raise ValueError("its units have another number of samples than its summary says")


def misplaced(unit: Unit, before: Unit | None, summary: PlanSummary) -> str | None:
    """What of a unit does not follow from the one before it, if anything."""
    if None in vars(unit).values():
        return "a field is null"
    number = place(unit.unit)[0] if UNIT.fullmatch(unit.unit) else -1
    if number < 0 or unit.unit != unit_name(number, unit.start):
        return "its name is not that of its place, such as 00000-0000256"
    if number >= len(summary.shards) or summary.shards[number] != unit.shard:
        return f"shard: {unit.shard} is not the one of this number"
    if unit.samples < 1 or unit.shard_size < 0 or unit.offset < 0 or unit.end < 0:
        return "a size or a place is negative"
    same = before is not None and before.shard == unit.shard
    if before is not None and not same and place(before.unit)[0] >= number:
        return "it comes after one of a later shard"
    if unit.start != (before.start + before.samples if before is not None and same else 0):
        return "start: it does not begin where the one before it ends"
    if unit.first != (before.first + before.samples if before is not None else 0):
        return "first: it does not begin where the one before it ends"
    return None


def read_members(plan: Location, unit: Unit) -> Members:
    """The keys, and files, of one unit.

    Raises:
        JobError: there is no such unit, or not as many different keys as it has samples.
    """
    records.regular(plan, MAX_TABLE)
    with reading(plan):
        known = kept_of(plan)
    with opened(plan, known) as file:
        # Not by the statistics of the groups: where these are damaged, pyarrow ends the process.
        groups = range(file.num_row_groups)
        seen = {} if known is None else known.begins

        def begins(group: int) -> tuple[int, ...]:
            if group not in seen:
                seen[group] = place(str(file.read_row_group(group, ["unit"])["unit"][0]))
            return seen[group]

        first = bisect_right(groups, place(unit.unit), key=begins)
        table = file.read_row_group(
            max(first - 1, 0), ["unit", "keys", "files", "links", "pairs"]
        )  # but those it lacks
        found = table.filter(pc.equal(table["unit"], unit.unit)).to_pylist()
        if found:
            return members_of(unit, found[0], rule(file))
    raise JobError(f"{plan} has no unit {unit.unit}; was it replaced while the run went on?")


def rule(plan: pq.ParquetFile) -> int:
    """By which rule names became keys when the plan was made; the first versions do not say."""
    found = int(plan.metadata.metadata.get(RULE.encode(), 1))
    if not 1 <= found <= NAMES:
        raise ValueError("its keys are made by a rule of a later version")
    return found


def place(name: str) -> tuple[int, ...]:
    """Where a unit is in the order of all."""
    return tuple(map(int, name.split("-")))


def members_of(unit: Unit, row: dict[str, Any], names: int) -> Members:
    """What a row of the plan holds of its samples; raises a ValueError if it does not fit the unit."""
    keys, files, links = row["keys"], row["files"], row.get("links") or []
    if keys is None or None in keys or len(keys) != unit.samples or len(set(keys)) != unit.samples:
        raise ValueError(f"unit {unit.unit}: its keys are not {unit.samples} different ones")
    if files is not None and (None in files or len(files) != unit.samples):
        raise ValueError(f"unit {unit.unit}: its files are not {unit.samples}")
    pairs = row.get("pairs")
    if pairs is not None and (None in pairs or len(pairs) != unit.samples):
        raise ValueError(f"unit {unit.unit}: its pairs are not {unit.samples}")
    found = None if pairs is None else [pair_of(unit, pair) for pair in pairs]
    return Members(keys, files, links_of(unit, links), names, found)


def links_of(unit: Unit, links: Sequence[dict[str, Any]]) -> tuple[tuple[str, int, int], ...]:
    """Links as places have them; raises ValueError for one that leads nowhere."""
    if any(link is None or None in link.values() or min(link["data"], link["size"]) < 0 for link in links):
        raise ValueError(f"unit {unit.unit}: a link leads nowhere")
    return tuple((link["name"], link["data"], link["size"]) for link in links)


def link_rows(links: Sequence[tuple[str, int, int]]) -> list[dict[str, Any]] | None:
    """Links as a row of the plan has them; None where there are none."""
    return [dict(zip(LINK, link, strict=True)) for link in links] or None


def pair_of(unit: Unit, row: dict[str, Any]) -> Pair:
    """A pair of a row of the plan; raises ValueError if it is none."""
    if None in (row[name] for name in ("name", "shard", "key", "offset", "end")):
        raise ValueError(f"unit {unit.unit}: a pair lacks something")
    if min(row["offset"], row["end"]) < 0:
        raise ValueError(f"unit {unit.unit}: a pair lies nowhere")
    links = links_of(unit, row["links"] or [])
    return Pair(row["name"], row["shard"], Place(row["key"], row["offset"], row["end"], row["file"], links))


def pair_row(pair: Pair) -> dict[str, Any]:
    """A pair as a row of the plan has it."""
    return {
        "name": pair.name,
        "shard": pair.shard,
        **pair.truth._asdict(),
        "links": link_rows(pair.truth.links),
    }


def changed_shards(plan: Location) -> list[str]:
    """Shards that are gone, or of another size than when the plan was made."""
    sizes = {unit.shard: unit.shard_size for unit in read_units(plan)}
    with opened(plan) as file:
        names = rule(file)

    def changed(shard: str) -> bool:
        try:
            return shards.fingerprint(at(shard), names) != sizes[shard]
        except FileNotFoundError:
            return True

    return [shard for shard, gone in zip(sizes, map_ahead(changed, sizes, IN_FLIGHT), strict=True) if gone]
