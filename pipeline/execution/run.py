"""A run: a directory that holds a job, its plan, what is done of it, and its report."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from kintsugi import priors
from kintsugi.errors import JobError
from kintsugi.operators import SpecError
from kintsugi.pipeline import storage
from kintsugi.pipeline.data import photographs as builtin
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.shards import expand, from_root
from kintsugi.pipeline.data.units import PlanSummary, Unit, advice, changed_shards, read_summary, read_units
from kintsugi.pipeline.execution.checkpoints import on_this_node
from kintsugi.pipeline.execution.claim import claimed, clear
from kintsugi.pipeline.execution.commit import Commit, read_commits
from kintsugi.pipeline.execution.identity import FILES, keep_to, record
from kintsugi.pipeline.execution.reference import refuse_missing
from kintsugi.pipeline.job import Job, as_before, config_hash, differences
from kintsugi.pipeline.storage import Location, publish, records
from kintsugi.pipeline.storage.records import JOB, PLAN, PRIOR
from kintsugi.priors import Examined

RESTORED = "restored"
KEPT = (JOB, PRIOR, FILES, PLAN)  # what a run is begun with, whose digests it has
DEPTH = 50  # of a job's YAML at most
EXAMINED = TypeAdapter(Examined)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Progress:
    """Committed units, and their rows, of which some failed."""

    units: int
    rows: int
    failed: int


@dataclass(frozen=True)
class Run:
    """An existing run directory.

    Raises (on `open`):
        JobError: the directory is not a run, or not what was written.
    """

    folder: Location
    job: Job
    prior: Examined
    summary: PlanSummary

    @staticmethod
    def open(folder: Location) -> "Run":
        try:
            records.refuse_links(folder)
            records.regular(folder / JOB)
            refuse_damaged(folder)
            return Run(folder, recorded_job(folder), recorded_prior(folder), read_summary(folder / PLAN))
        except FileNotFoundError as error:
            missing = str(error.filename or error)
            known = f"; {advice(folder)}" if missing.endswith(PLAN) else ""
            raise JobError(f"{folder} is not a run directory: {missing} is missing{known}") from error
        except OSError as error:
            raise JobError(f"{folder} cannot be read as a run directory: {error}") from error

    @property
    def config_hash(self) -> str:
        return config_hash(self.job)

    def units(self) -> Iterator[Unit]:
        return read_units(self.folder / PLAN)

    def commits(self) -> Iterator[tuple[Unit, Commit | None]]:
        """Every unit with its valid commit record, or None where it is still to be done."""
        names = (unit.unit for unit in self.units())
        records = read_commits(self.folder, names, self.config_hash)
        for unit, (_, commit) in zip(self.units(), records, strict=True):
            yield unit, commit

    def progress(self) -> Progress:
        """How much is committed; memory does not grow with the run."""
        units = rows = failed = 0
        for _, commit in self.commits():
            if commit is not None:
                units, rows, failed = units + 1, rows + commit.rows, failed + commit.failed
        return Progress(units, rows, failed)

    def outstanding(self) -> Iterator[Unit]:
        return (unit for unit, commit in self.commits() if commit is None)

    def with_failures(self) -> Iterator[Unit]:
        return (unit for unit, commit in self.commits() if commit is not None and commit.failed)


def open_or_plan(job: Job, on_unit: Callable[[Unit], None] = lambda unit: None) -> Run:
    """The run of this job: an existing one to be continued, or a new one with its plan made.

    Raises:
        JobError: the directory holds a run of another job, or another one is planned in it; files or
            shards have changed; or the plan cannot be made.
    """
    folder = storage.at(job.output)
    records.refuse_links(folder)
    job = with_absolute_shards(job)
    prior = examine_prior(job)
    if (folder / JOB).exists():
        return continued(folder, job, prior)
    with claimed(folder, job, prior.sha256):
        if (folder / JOB).exists():  # since a moment ago
            return continued(folder, job, prior)
        summary = plan(job, folder, on_unit)
        job = job.model_copy(update={"output": str(folder)})
        if storage.sizes(folder / "commits"):  # somebody has removed its job.yaml, and its rows stay
            keep_to(folder, job)
        record(folder, job)
        with publish(folder / PRIOR) as temporary:
            temporary.write_text(prior_text(prior))
        text = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)
        sums = {name: records.digest(folder / name) for name in KEPT if name != JOB}
        records.write_sums(folder, {JOB: hashlib.sha256(text.encode()).hexdigest(), **sums})
        with publish(folder / JOB) as temporary:  # which makes it a run
            temporary.write_text(text)
        return Run(folder, job, prior, summary)


def continued(folder: Location, job: Job, prior: Examined) -> Run:
    """The run in a directory, which must be of this job.

    Raises:
        JobError: it is of another one, or its files or shards have changed.
    """
    run = Run.open(folder)
    refuse_another(run, job, prior)
    clear(folder)
    if storage.there(folder / FILES):
        keep_to(folder, job)
    else:  # an earlier version has begun it, which did not ask
        record(folder, job)
    now, planned = shard_paths(job, folder), list(map(storage.at, run.summary.shards))
    if now != planned:
        fresh = sorted(map(str, set(now) ^ set(planned)))
        raise JobError(
            f"{folder} was planned with other shards; choose another output, or restore them:\n  "
            + "\n  ".join(fresh[:10])
        )
    if gone := changed_shards(folder / PLAN):
        raise JobError("shards have changed since the plan was made:\n  " + "\n  ".join(gone))
    if not storage.there(folder / records.SUMS):  # of an earlier version, and from now on as others
        records.write_sums(folder, {name: records.digest(folder / name) for name in KEPT})
    # As they were written: commit records name the configuration by them.
    return Run(folder, as_written(run.job, job), prior, run.summary)


def refuse_another(run: Run, job: Job, prior: Examined) -> None:
    """Raise a JobError if a run is not one of this job, as `from_anywhere` gives it, and prior."""
    if changed := differences(with_absolute_shards(run.job), job):
        listed = "\n".join(f"  {field}: {before!r} → {now!r}" for field, before, now in changed)
        raise JobError(
            f"{run.folder} holds a run of another job; choose another output, delete it, or undo:\n{listed}"
        )
    if run.prior.sha256 != prior.sha256:
        raise JobError(
            f"{run.folder} was begun with another prior; choose another output, or restore it:\n"
            f"  {run.prior.title}, SHA-256 {run.prior.sha256}\n"
            f"  now {prior.title}, SHA-256 {prior.sha256}"
        )


def with_absolute_shards(job: Job) -> Job:
    """The job with shards that are the same from any folder, so that job.yaml works from there."""
    shards = job.data.shards
    return job if shards == builtin.SCIKIT_IMAGE else with_shards(job, from_root(shards))


def as_written(before: Job, now: Job) -> Job:
    """A job with what is the same as before in the words it had then."""
    operator = as_before(before.degradation.operator, now.degradation.operator)
    specs = {
        "degradation": now.degradation.model_copy(update={"operator": operator}),
        "prior": as_before(before.prior, now.prior),
        "sampler": as_before(before.sampler, now.sampler),
    }
    return with_shards(now, before.data.shards).model_copy(update=specs)


def with_shards(job: Job, shards: str | list[str]) -> Job:
    return job.model_copy(update={"data": job.data.model_copy(update={"shards": shards})})


def examine_prior(job: Job) -> Examined:
    """What the job's prior is, found before any work starts.

    Raises:
        JobError: it cannot be used; the message names the field and what is wrong.
    """
    try:
        return priors.examine(on_this_node(job.prior), job.image_shape)
    except (SpecError, OSError) as error:
        raise JobError(str(error)) from error


def refuse_damaged(folder: Location) -> None:
    """Raise a JobError if what a run was begun with is not what was written; runs may be too old to know."""
    try:
        what = records.changed_file(folder, KEPT)
    except records.DamagedSums as error:
        what = str(error)
    if what is not None:
        raise JobError(f"{what}; `kintsugi verify {folder} --repair` makes it again, or says what does")


def recorded_job(folder: Location) -> Job:
    """The job of a run.

    Raises:
        JobError: the file is no job; the message names the field.
    """
    file = folder / JOB
    try:
        return Job.model_validate(plain_yaml(records.read(file).decode()))
    except ValidationError as error:
        raise JobError(f"{file}: {records.problems(error)}") from None
    except ValueError as error:
        raise JobError(f"{file}: {error}") from None


def plain_yaml(text: str) -> Any:
    """YAML without aliases, of which a few lines may stand for gigabytes, and of a bounded depth.

    Raises:
        ValueError: it is something else.
    """
    depth = 0
    try:
        for event in yaml.parse(text, LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases (*name) are not read")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise ValueError("nested too deep")
        return yaml.load(text, LOADER)
    except Exception as error:  # what PyYAML makes of 2024-99-99, of !!int x and of 5,000 digits
        raise ValueError(f"not valid YAML: {error}") from error


def recorded_prior(folder: Location) -> Examined:
    """The prior with which the run in a directory was begun."""
    return records.typed(EXAMINED, records.read(folder / PRIOR), folder / PRIOR)


def prior_text(prior: Examined) -> str:
    return json.dumps(asdict(prior), indent=2) + "\n"


def shard_paths(job: Job, folder: Location) -> list[Location]:
    """The shards of a job; built-in ones are made in the folder if they are not there."""
    if job.data.shards == builtin.SCIKIT_IMAGE:
        return [builtin.scikit_image_shard(folder / "shards", job.data.size)]
    return expand(job.data.shards)


def plan(job: Job, folder: Location, on_unit: Callable[[Unit], None]) -> PlanSummary:
    """Make the plan of a job in a folder.

    Raises:
        JobError: as `make_plan` and `refuse_missing`, input and output lie in each other, or restorations
            cannot have the names of their shards.
    """
    refuse_missing(job.metrics, job.reference)
    paths = shard_paths(job, folder)
    output = storage.at(job.output)
    for path in paths:
        if lies_in(output, path):
            raise JobError(
                f"output: {output} lies in {path}, one of data.shards: its pictures would count as samples; "
                "choose another output"
            )
        if job.from_measurements and lies_in(path, output / RESTORED):
            raise JobError(
                f"data.shards: {path} lies where restorations are written; move it, or choose another output"
            )
    if job.from_measurements:
        refuse_shard_names([path.name for path in paths])
    restoration = job.restoration if job.from_measurements else None
    return make_plan(job.data, paths, job.compute.unit_size, folder / PLAN, on_unit, restoration)


def lies_in(location: Location, folder: Location) -> bool:
    """Whether a location is the folder, or below it."""
    if isinstance(location, Path) and isinstance(folder, Path):
        return Path(os.path.realpath(location)).is_relative_to(os.path.realpath(folder))
    return f"{location}/".startswith(f"{folder}/")


def refuse_shard_names(names: list[str]) -> None:
    """Raise a JobError for shards after which no file or folder of restorations can be named."""
    if nameless := [name for name in names if name in ("", "..")]:
        raise JobError(
            f"data.shards: a folder without a name ({nameless[0] or '/'}), and so would be its restorations; "
            "name the folders in it"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise JobError(
            f"data.shards: two shards are named {twice[0]}, and so would be their restorations; "
            "rename one, or restore them by two jobs"
        )
