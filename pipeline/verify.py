"""Verify: is what a run directory holds what the plan asks for?"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import export, storage
from pipeline.commit import ROWS, Commit, commit_file, data_file, features_file, valid
from pipeline.metrics import BASELINE_COLUMNS, IMAGE, SETS
from pipeline.plan import Unit, changed_shards, read_members
from pipeline.run import Run


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        unit: the unit of work, None where it is something else.
        what: in words.
        repairable: whether `repair` removes it.
        shard: whose restorations are to be written again.
    """

    unit: Unit | None
    what: str
    repairable: bool = True
    shard: str | None = None


def verify(run: Run) -> Iterator[Finding | Unit]:
    """Check every unit against its files and the plan; a unit without fault is itself returned.

    Units that were never committed are no finding: a rerun does them.
    """
    names: set[str] = set()
    doubtful: set[str] = set()  # shards with damaged units
    good = 0
    for unit in run.units():
        names.add(unit.unit)
        record, data = commit_file(run.folder, unit.unit), data_file(run.folder, unit.unit)
        if not record.exists():
            continue  # rows without a record were never committed
        features = features_file(run.folder, unit.unit)
        rows, more = (each.read_bytes() if each.exists() else None for each in (data, features))
        what = fault(run, unit, record.read_bytes(), rows, more)
        good += what is None
        if what is not None:
            doubtful.add(unit.shard)
        yield unit if what is None else Finding(unit, what)
    for folder, suffix in (("commits", ".json"), ("data", ".parquet"), ("features", ".parquet")):
        for name in storage.sizes(run.folder / folder):
            if not name.endswith(suffix) or name.removesuffix(suffix) not in names:
                yield Finding(None, f"{folder}/{name} belongs to no unit of the plan", repairable=False)
    for shard in changed_shards(run.folder / "plan.parquet"):
        yield Finding(None, f"{shard} is gone, or has changed since the plan was made", repairable=False)
    if run.job.measured:
        for shard, what in export.faults(run, doubtful, complete=good == run.summary.units):
            yield Finding(None, f"{what}; a rerun writes it again", shard=shard)


def fault(run: Run, unit: Unit, record: bytes, data: bytes | None, features: bytes | None) -> str | None:
    """What is wrong with a committed unit, None if nothing is."""
    if data is None:
        return "there is a commit record, and no data"
    commit = valid(record, unit.unit, run.config_hash, len(data))
    if commit is None:
        return "the commit record is torn, of another job, or of data of another size"
    if hashlib.sha256(data).hexdigest() != commit.data_sha256:
        return "the data is not what was committed: its SHA-256 differs"
    try:
        table = pq.read_table(BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        return f"the data cannot be read: {error}"
    return fault_of_rows(run, unit, commit, table) or fault_of_features(run, commit, table, features)


def fault_of_features(run: Run, commit: Commit, rows: pa.Table, content: bytes | None) -> str | None:
    if commit.features_sha256 is None:
        needed = commit.failed < commit.rows and any(name in SETS for name in run.job.metrics)
        return "there are no features, which metrics of sets are computed from" if needed else None
    if content is None or hashlib.sha256(content).hexdigest() != commit.features_sha256:
        return "the features are not what was committed: they are gone, or their SHA-256 differs"
    restored = rows.filter(pc.equal(rows["status"], "ok"))["key"]
    if pq.read_table(BytesIO(content), columns=["key"])["key"] != restored:
        return "the features are not those of the restored samples, each once and in order"
    return None


def fault_of_rows(run: Run, unit: Unit, commit: Commit, table: pa.Table) -> str | None:
    # Metrics that the job does not name may be newer than the rows, or gone from the registry.
    newer = IMAGE.keys() - set(run.job.metrics) | set(BASELINE_COLUMNS)
    needed = set(ROWS.names) - newer
    if missing := needed - set(table.column_names):
        return f"the rows lack columns: {', '.join(sorted(missing))}"
    if table["key"].to_pylist() != read_members(run.folder / "plan.parquet", unit).keys:
        return "the rows are not the plan's samples, each once and in order"
    failed = pc.sum(pc.equal(table["status"], "failed")).as_py()
    if (table.num_rows, failed) != (commit.rows, commit.failed):
        return f"{table.num_rows} rows, {failed} failed; the record says {commit.rows} and {commit.failed}"
    if commit.prior_sha256 not in (run.prior.sha256, None):
        return "it was restored with another prior"
    return None


def repair(run: Run, finding: Finding) -> None:
    """Drop a damaged unit, its record first, so that a rerun does it again."""
    if finding.unit is not None and finding.repairable:
        commit_file(run.folder, finding.unit.unit).unlink(missing_ok=True)
        data_file(run.folder, finding.unit.unit).unlink(missing_ok=True)
        features_file(run.folder, finding.unit.unit).unlink(missing_ok=True)
