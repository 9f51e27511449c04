"""Verify: is what a run directory holds what the plan asks for?"""

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc

from kintsugi.errors import JobError
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.units import Unit, changed_shards, read_members, read_units
from kintsugi.pipeline.execution.commit import (
    Commit,
    read_features,
    read_rows,
    schema_of,
    valid,
)
from kintsugi.pipeline.execution.committed import read_commits
from kintsugi.pipeline.execution.directory import (
    COMMITS,
    FILES,
    JOB,
    KEPT,
    PLAN,
    PRIOR,
    SUFFIXES,
    commit_file,
    data_file,
    refuse_links,
)
from kintsugi.pipeline.execution.identity import differing, of_job, of_truth, recorded, text_of
from kintsugi.pipeline.execution.open import examine_prior, shard_paths
from kintsugi.pipeline.execution.restored import faults
from kintsugi.pipeline.execution.run import Run, recorded_job, recorded_prior
from kintsugi.pipeline.job import Job, config_hash
from kintsugi.pipeline.metrics import SETS
from kintsugi.pipeline.metrics.registry import columns, is_baseline
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.files import file_sizes, lexists
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish, publish_bytes
from kintsugi.pipeline.storage.records import MAX_TABLE, SUMS, DamagedSums, digest, read, regular


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
        if not lexists(commit_file(run.folder, unit.unit)):
            continue  # rows without a record were never committed
        try:
            what = fault(run, unit)
        except JobError as error:
            what = str(error)
        good += what is None
        if what is not None:
            doubtful.add(unit.shard)
        yield unit if what is None else Finding(unit, what)
    for folder, suffix in SUFFIXES.items():
        for name in file_sizes(run.folder / folder):
            if not name.endswith(suffix) or name.removesuffix(suffix) not in names:
                yield Finding(None, f"{folder}/{name} belongs to no unit of the plan", repairable=False)
    for shard in [*changed_shards(run.folder / PLAN), *changed_truth(run)]:
        yield Finding(None, f"{shard} is gone, or has changed since the plan was made", repairable=False)
    if run.job.from_measurements:
        for shard, what in faults(run, doubtful, complete=good == run.summary.units):
            yield Finding(None, f"{what}; a rerun writes it again", shard=shard)


def changed_truth(run: Run) -> list[str]:
    """What names the true images of a run, if they are others than when the plan was made."""
    try:
        same = not set(differing(recorded(run.folder), of_truth(run.job)))
    except JobError:
        same = False
    return [] if same else [f"data.truth, {run.job.data.truth},"]


def fault(run: Run, unit: Unit) -> str | None:
    """What is wrong with a committed unit, None if nothing is; raises a JobError that says so, too."""
    data = data_file(run.folder, unit.unit)
    try:
        length = regular(data, MAX_TABLE)
    except FileNotFoundError:
        return "there is a commit record, and no data"
    commit = valid(read(commit_file(run.folder, unit.unit)), unit.unit, run.config_hash, length)
    if commit is None:
        return "the commit record is torn, of another job, not what was written, or of data of another size"
    table = read_rows(run.folder, commit)
    return fault_of_rows(run, unit, commit, table) or fault_of_features(run, commit, table)


def fault_of_features(run: Run, commit: Commit, rows: pa.Table) -> str | None:
    """What is wrong with the features of a committed unit, which has these rows."""
    if commit.features_sha256 is None:
        needed = commit.failed < commit.rows and any(name in SETS for name in run.job.metrics)
        return "there are no features, which metrics of sets are computed from" if needed else None
    try:
        table = read_features(run.folder, commit)
    except FileNotFoundError:
        return "the features are gone"
    restored = rows.filter(pc.equal(rows["status"], "ok"))["key"]
    if table is None or "key" not in table.column_names or table["key"] != restored:
        return "the features are not those of the restored samples, each once and in order"
    return None


def fault_of_rows(run: Run, unit: Unit, commit: Commit, table: pa.Table) -> str | None:
    """What is wrong with the rows of a committed unit."""
    # Metrics that the job does not name may be newer than the rows, or gone from the registry.
    names = {name for name in schema_of(run.job).names if not is_baseline(name)}
    needed = names - (set(columns(run.job.metrics)) - set(run.job.metrics))
    if missing := needed - set(table.column_names):
        return f"the rows lack columns: {', '.join(sorted(missing))}"
    if table["key"].to_pylist() != read_members(run.folder / PLAN, unit).keys:
        return "the rows are not the plan's samples, each once and in order"
    if commit.prior_sha256 not in (run.prior.sha256, None):
        return "it was restored with another prior"
    return None


def repair(run: Run, finding: Finding) -> None:
    """Drop a damaged unit, its record first, so that a rerun does it again."""
    if finding.unit is not None and finding.repairable:
        for folder, suffix in SUFFIXES.items():
            (run.folder / folder / f"{finding.unit.unit}{suffix}").unlink(missing_ok=True)


def mend(folder: Location) -> list[str]:
    """Make again what a run was begun with, where it is damaged; returns the names of the files.

    A plan of the shards as they are now is taken if it is the one that was written, byte by byte, or if all
    committed rows are those that it asks for.

    Raises:
        JobError: it cannot be; the message says what to do.
    """
    refuse_links(folder)
    try:
        regular(folder / JOB)
        stated = records.stated_sums(folder, KEPT)
        suspects = [name for name in KEPT if damaged(folder, name, stated.get(name))]
        if JOB in suspects:
            raise JobError(
                f"{folder / JOB} is not what was written, and nothing else says what it was: put back a "
                "copy. Or remove it and run the same job again, which makes the plan anew and keeps what "
                f"fits; `kintsugi verify {folder}` then says what does not. If it was you who changed it, "
                f"remove {SUMS}"
            )
    except FileNotFoundError:
        return []  # no run at all
    except DamagedSums:
        stated, suspects = {}, [PRIOR, FILES, PLAN, SUMS]
    if not suspects:
        return []
    job = recorded_job(folder)
    made = {PRIOR: lambda: text_of(asdict(examine_prior(job))), FILES: lambda: text_of(of_job(job))}
    for name in (name for name in made if name in suspects):
        file, content = folder / name, made[name]()
        # What is there may be right, and the digest damaged.
        now = digest(file) if lexists(file) else None
        if hashlib.sha256(content).hexdigest() not in (stated.get(name, now), now):
            raise JobError(
                f"{file} is not what was written, and the files that the job names are others now; put back "
                "these, or a copy of it"
            )
        publish_bytes(file, content)
    if PLAN in suspects:
        plan_again(folder, job, recorded_prior(folder).sha256, stated.get(PLAN))
    if all(lexists(folder / name) for name in KEPT):  # else it is of a version without
        records.write_sums(folder, {name: digest(folder / name) for name in KEPT})
    return suspects


def damaged(folder: Location, name: str, stated: str | None) -> bool:
    """Whether a file of a run is not what was written, as far as that is known, or cannot be read."""
    file = folder / name
    try:
        regular(file, MAX_TABLE)
        if stated is None or digest(file) == stated:
            if name == PRIOR:
                recorded_prior(folder)
            elif name == FILES:
                recorded(folder)
            elif name == PLAN:
                deque(read_units(file), 0)
            return False
    except FileNotFoundError:
        return name != FILES or stated is not None  # the first versions had none
    except JobError:
        pass
    return True


def plan_again(folder: Location, job: Job, prior: str, stated: str | None) -> None:
    """Make the plan of a run from its shards.

    Args:
        prior: SHA-256 of the run's. stated: that of the plan that was written, if it is known.

    Raises:
        JobError: the shards are not as they were.
    """
    restoration = job.restoration if job.from_measurements else None
    with publish(folder / PLAN) as temporary:
        try:
            paths = shard_paths(job, folder)
            size, wanted = job.compute.unit_size, job.wanted
            make_plan(job.data, paths, size, temporary, restoration=restoration, wanted=wanted)
            if digest(temporary) != stated:
                refuse_unfit(folder, temporary, config_hash(job), prior)
        except JobError as error:
            raise JobError(
                f"{folder / PLAN} is damaged, and cannot be made again from the shards: {error}\n"
                "put back the shards as they were, or a copy of the plan"
            ) from error


def refuse_unfit(folder: Location, plan: Location, job_hash: str, prior: str) -> None:
    """Raise a JobError if a run holds committed rows that a plan does not ask for."""
    units = {unit.unit: unit for unit in read_units(plan)}
    for name in file_sizes(folder / COMMITS, links=False):
        if name.removesuffix(".json") not in units:
            raise JobError(f"commits/{name} would belong to no unit")
    for name, commit in read_commits(folder, units, job_hash):
        if commit is None:
            continue
        if commit.prior_sha256 not in (prior, None):
            raise JobError(f"unit {name} was restored with another prior")
        try:
            keys = read_rows(folder, commit, ["key"])["key"].to_pylist()
        except JobError:  # which `verify` finds, and `repair` drops
            continue
        if keys != read_members(plan, units[name]).keys:
            raise JobError(f"unit {name} would have other samples than those that are committed")
