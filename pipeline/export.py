"""Export: restored measurements as shards with the names and keys of those they came from.

A tar becomes RUN/restored/NAME.tar with KEY.png for each restored sample (or .jpg, .webp); a folder becomes
RUN/restored/NAME/ with the same files. Where there are several samples per image, KEY.sample00.png … and
KEY.std.npy lie beside it. Failed samples are left out: they are in the rows.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.commit import ROWS, Commit, read_rows
from pipeline.job import Restoration
from pipeline.plan import Unit, restored_names
from pipeline.run import RESTORED, Run
from pipeline.storage import Location, publish


def write_restored(run: Run) -> list[Location]:
    """Write what is not there yet of the shards whose units are all committed; returns where."""
    written: list[Location] = []
    restoration = run.job.restoration
    for shard, found in groupby(run.commits(), key=lambda pair: pair[0].shard):
        units = list(found)
        target = target_of(run, shard)
        if any(commit is None for _, commit in units):
            continue
        rows = restored_rows(run, units)
        if storage.at(shard).is_dir():
            for row in rows:
                for name, content in members(PurePosixPath(row["file"]).with_suffix(""), row, restoration):
                    if not (target / name).exists():
                        storage.make_folder((target / name).parent)
                        with publish(target / name) as temporary:
                            temporary.write_bytes(content)
        elif not target.exists():
            with publish(target) as temporary, tarfile.open(temporary, "w") as tar:
                for row in rows:
                    for name, content in members(PurePosixPath(row["key"]), row, restoration):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        else:
            continue
        written.append(target)
    return written


def drop_restored(run: Run, units: Iterable[Unit]) -> None:
    """Remove the restored tars of shards some of whose units are to be done."""
    for shard in {unit.shard for unit in units}:
        if run.job.measured and (target := target_of(run, shard)).is_file():
            target.unlink()


def target_of(run: Run, shard: str) -> Location:
    return run.folder / RESTORED / storage.at(shard).name


def restored_rows(run: Run, units: list[tuple[Unit, Commit | None]]) -> Iterator[dict[str, Any]]:
    for _, commit in units:
        if commit is not None:
            table = read_rows(run.folder, commit, ROWS.names)
            yield from (row for row in table.to_pylist() if row["status"] == "ok")


def members(
    stem: PurePosixPath, row: dict[str, Any], restoration: Restoration
) -> Iterator[tuple[str, bytes]]:
    """The files of one restored sample: name and content."""
    several = [] if row["deviation"] is None else [*row["samples"], row["deviation"]]
    return zip(restored_names(stem, restoration), [row["restored"], *several], strict=True)
