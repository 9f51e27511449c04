"""A run: a directory that holds a job, its plan, what is done of it, and its report."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from kintsugi.errors import JobError
from kintsugi.pipeline.data.units import PlanSummary, Unit, advice, read_summary, read_units
from kintsugi.pipeline.execution.commit import Commit
from kintsugi.pipeline.execution.committed import Counts, forget, read_commits, read_counts
from kintsugi.pipeline.execution.directory import JOB, KEPT, PLAN, PRIOR, refuse_links
from kintsugi.pipeline.job import Job, config_hash
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.location import Location
from kintsugi.priors import Examined

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
class Part:
    """What is to be done of a run.

    Attributes:
        failed_only: of committed units, only what failed.
    """

    run: "Run"
    units: Sequence[Unit]
    failed_only: bool = False


@dataclass(frozen=True)
class Run:
    """An existing run directory."""

    folder: Location
    job: Job
    prior: Examined
    summary: PlanSummary

    @staticmethod
    def open(folder: Location) -> "Run":
        """The run in a directory; raises a JobError if it is none, or not what was written."""
        try:
            refuse_links(folder)
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
        """SHA-256 of the fields on which results depend, by which commit records name them."""
        return config_hash(self.job)

    def units(self) -> Iterator[Unit]:
        """All units of the plan, in order."""
        return read_units(self.folder / PLAN)

    def commits(self) -> Iterator[tuple[Unit, Commit | None]]:
        """Every unit with its valid commit record, or None where it is still to be done."""
        yield from read_commits(self.folder, self.units(), self.config_hash, attrgetter("unit"))

    def counts(self) -> Iterator[tuple[Unit, Counts | None]]:
        """As `commits`, of each record its counts; one that this machine has read is not read again."""
        yield from read_counts(self.folder, self.units(), self.config_hash, attrgetter("unit"))

    def progress(self) -> Progress:
        """How much is committed; memory does not grow with the run, but for a line of each unit."""
        return progress_of(counts for _, counts in self.counts())

    def to_do(self, retry_failed: bool = False) -> tuple[Progress, list[Unit]]:
        """How much is committed, and the units that are to be done, by one look.

        retry_failed: of the committed ones those some of whose samples failed, and no others.
        """
        every = list(self.counts())
        if retry_failed:
            left = [unit for unit, counts in every if counts is not None and counts.failed]
        else:
            left = [unit for unit, counts in every if counts is None]
        return progress_of(counts for _, counts in every), left

    def incomplete(self, missing: int) -> JobError:
        """For a run that should be done, and lacks the rows of so many samples."""
        forget(self.folder, self.config_hash)
        return JobError(f"{missing} samples have no valid commit record; run the same command again")

    def outstanding(self) -> Iterator[Unit]:
        """The units that are still to be done."""
        return (unit for unit, counts in self.counts() if counts is None)

    def with_failures(self) -> Iterator[Unit]:
        """The committed units some of whose samples failed."""
        return (unit for unit, counts in self.counts() if counts is not None and counts.failed)


def progress_of(counts: Iterable[Counts | None]) -> Progress:
    """Of units, of which some are not committed."""
    units = rows = failed = 0
    for found in counts:
        if found is not None:
            units, rows, failed = units + 1, rows + found.rows, failed + found.failed
    return Progress(units, rows, failed)


def together(progress: Sequence[Progress]) -> Progress:
    """Of several runs."""
    return Progress(*(sum(of) for of in zip(*(vars(one).values() for one in progress), strict=True)))


def refuse_damaged(folder: Location) -> None:
    """Raise a JobError if what a run was begun with is not what was written; runs may be too old to know."""
    try:
        what = records.changed_file(folder, KEPT)
    except records.DamagedSums as error:
        what = str(error)
    if what is not None:
        raise JobError(f"{what}; `kintsugi verify {folder} --repair` makes it again, or says what does")


def recorded_job(folder: Location) -> Job:
    """The job of a run; raises a JobError that names the field if the file is none."""
    file = folder / JOB
    try:
        return Job.model_validate(plain_yaml(records.read(file).decode()))
    except ValidationError as error:
        raise JobError(f"{file}: {records.problems(error)}") from None
    except ValueError as error:
        raise JobError(f"{file}: {error}") from None


def plain_yaml(text: str) -> Any:
    """YAML without aliases, which may stand for gigabytes, of bounded depth; else raises a ValueError."""
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
