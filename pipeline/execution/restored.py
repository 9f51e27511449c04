"""Export: restored measurements as shards with the names and keys of those they came from.

A tar becomes RUN/restored/NAME.tar with KEY.png for each restored sample (or .jpg, .webp, .npy), Parquet
too; a folder becomes RUN/restored/NAME/ with the same files. Where there are several samples per image,
KEY.sample00.png … and KEY.std.npy lie beside it. Failed samples are left out: they are in the rows.

All of it is a function of the committed rows, whose checksums are in their records. So what lies there is
compared with them, byte by byte, and written again where it differs.
"""

import io
import tarfile
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import IO, Any, cast

from kintsugi.ahead import map_ahead
from kintsugi.errors import JobError
from kintsugi.pipeline.data.names import stem_of
from kintsugi.pipeline.data.plan import restored_names
from kintsugi.pipeline.data.shards import stays_inside
from kintsugi.pipeline.data.units import Unit, read_members
from kintsugi.pipeline.execution.commit import READERS, Commit, read_rows
from kintsugi.pipeline.execution.directory import PLAN, RESTORED
from kintsugi.pipeline.execution.open import refuse_shard_names, restored_name
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.storage.files import lexists
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish, publish_bytes
from kintsugi.pipeline.storage.records import is_regular

COLUMNS = ["key", "status", "file", "restored", "samples", "deviation"]
Units = list[tuple[Unit, Commit]]  # of one shard, committed


class Different(Exception):
    """Bytes are not those that were expected."""


class Comparison:
    """A file to write to that holds the bytes already, else `write` raises Different."""

    def __init__(self, file: IO[bytes]):
        self.file = file

    def tell(self) -> int:
        """Bytes compared so far."""
        return self.file.tell()

    def write(self, content: bytes) -> int:
        """Compare the next bytes; raises Different."""
        if self.file.read(len(content)) != content:
            raise Different
        return len(content)


def write_restored(run: Run, shards: Collection[str] | None = None) -> list[Location]:
    """Write what is committed and not there, or not as it is committed; returns the shards it is in.

    Of a shard that is not finished it is what is done of it.

    Args:
        shards: only these.

    Raises:
        JobError: committed rows are damaged, or restorations would be written through a link.
    """
    written: list[Location] = []
    for shard, units in committed_shards(run):
        if shards is not None and shard not in shards:
            continue
        target = target_of(run, shard)
        if in_folder(run, units):
            wrong = 0
            for name, content, _ in wrong_files(run, target, units):
                write_file(target, name, content)
                wrong += 1
            if wrong:
                written.append(target)
        elif fault_of_tar(run, target, units) is not None:
            with publish(target) as temporary, temporary.open("wb") as file:
                pack(run, units, file)
            written.append(target)
    return written


def faults(run: Run, doubtful: Collection[str], complete: bool) -> Iterator[tuple[str, str]]:
    """The shards whose restorations are not as they are committed, and what is wrong with them.

    Args:
        doubtful: shards of which nothing can be said, since rows are damaged.
        complete: whether all units are committed; before, what is not written yet is no fault.
    """
    for shard, units in committed_shards(run):
        if shard in doubtful:
            continue
        target = target_of(run, shard)
        place = f"{RESTORED}/{target.name}"
        if in_folder(run, units):
            found = (name for name, _, there in wrong_files(run, target, units) if there or complete)
            if (first := next(found, None)) is not None:
                number = 1 + sum(1 for _ in found)
                yield shard, f"{number} files of {place} are gone or not what was committed, such as {first}"
        elif (lexists(target) or complete) and (what := fault_of_tar(run, target, units)) is not None:
            yield shard, f"{place} {what}"


def drop_restored(run: Run, units: Iterable[Unit]) -> None:
    """Remove the restored tars of shards some of whose units are to be done."""
    for shard in {unit.shard for unit in units}:
        if run.job.from_measurements and is_regular(target := target_of(run, shard)):
            target.unlink()


def committed_shards(run: Run) -> Iterator[tuple[str, Units]]:
    """The shards with committed units, and these, in order."""
    for shard, found in groupby(run.commits(), key=lambda pair: pair[0].shard):
        if units := [(unit, commit) for unit, commit in found if commit is not None]:
            yield shard, units


def target_of(run: Run, shard: str) -> Location:
    """Where the restorations of a shard lie; raises a JobError for one that has no name."""
    name = restored_name(PurePosixPath(shard).name)
    refuse_shard_names([name])
    return run.folder / RESTORED / name


def in_folder(run: Run, units: Units) -> bool:
    """Whether a shard is a folder, which need not be there any more."""
    return read_members(run.folder / PLAN, units[0][0]).files is not None


def pack(run: Run, units: Units, file: IO[bytes] | Comparison) -> None:
    """Write the restored samples of a shard as a tar, the same bytes every time."""
    with tarfile.open(fileobj=cast(IO[bytes], file), mode="w") as tar:
        for unit in units:
            for name, content in restored_files(run, unit, by_file=False):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def fault_of_tar(run: Run, target: Location, units: Units) -> str | None:
    """What is wrong with a restored tar, as the end of a sentence."""
    if not lexists(target):
        return "is gone, or was never written"
    if not is_regular(target):
        return "is not a regular file"
    with target.open("rb") as file:
        try:
            pack(run, units, Comparison(file))
        except Different:
            return "is not what was committed"
        return "goes on behind its end" if file.read(1) else None


def wrong_files(run: Run, target: Location, units: Units) -> Iterator[tuple[str, bytes, bool]]:
    """Names and contents of the files that are not as they are committed, and whether there is something."""

    def right(file: tuple[str, bytes]) -> bool:
        name, content = file
        place = target / name
        plain = behind_link(target, name) is None and is_regular(place, len(content))
        return plain and place.read_bytes() == content

    for unit in units:
        files = list(restored_files(run, unit, by_file=True))
        for (name, content), good in zip(files, map_ahead(right, files, READERS), strict=True):
            if not good:
                yield name, content, lexists(target / name)


def write_file(target: Location, name: str, content: bytes) -> None:
    """Write a file below a folder; raises a JobError where that leads through a link."""
    if (link := behind_link(target, name)) is not None:
        raise JobError(f"{link} is a link, through which nothing is written; remove it")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    publish_bytes(target / name, content)


def behind_link(target: Location, name: str) -> Location | None:
    """The folder on the way to a file that is a link."""
    folders = (target / str(folder) for folder in PurePosixPath(name).parents)
    return next((folder for folder in folders if folder.is_symlink()), None)


def restored_files(run: Run, unit: tuple[Unit, Commit], *, by_file: bool) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of a unit's restored samples.

    Args:
        by_file: named after the files they came from, else by their keys.

    Raises:
        JobError: the rows are damaged, or hold a name that leads out of its folder.
    """
    _, commit = unit
    for row in read_rows(run.folder, commit, COLUMNS).to_pylist():
        if row["status"] == "ok":
            name = str(row["file"] if by_file else row["key"])
            if not stays_inside(name):
                raise JobError(f"unit {commit.unit}: {name!r} is not the name of a file in a folder")
            stem = PurePosixPath(stem_of(name, run.job.wanted) if by_file else name)
            yield from members(stem, row, run.job)


def members(stem: PurePosixPath, row: dict[str, Any], job: Job) -> Iterator[tuple[str, bytes]]:
    """The files of one restored sample: name and content."""
    several = [] if row["deviation"] is None else [*row["samples"], row["deviation"]]
    names = restored_names(stem, job.restoration, job.data.channels)
    return zip(names, [row["restored"], *several], strict=True)
