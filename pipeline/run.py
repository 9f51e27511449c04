"""A run: a directory that holds a job, its plan, what is done of it, and its report."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline import builtin
from pipeline.commit import Commit, publish, read_commit
from pipeline.job import Job, JobError, config_hash, differences
from pipeline.plan import PlanSummary, Unit, changed_shards, make_plan, read_summary, read_units
from pipeline.shards import expand


@dataclass(frozen=True)
class Run:
    """An existing run directory.

    Raises (on `open`):
        JobError: the directory is not a run.
    """

    folder: Path
    job: Job
    summary: PlanSummary

    @staticmethod
    def open(folder: Path) -> "Run":
        try:
            job = Job.model_validate(yaml.safe_load((folder / "job.yaml").read_text()))
            return Run(folder, job, read_summary(folder / "plan.parquet"))
        except FileNotFoundError as error:
            raise JobError(f"{folder} is not a run directory: {error.filename} is missing") from error

    @property
    def config_hash(self) -> str:
        return config_hash(self.job)

    def units(self) -> Iterator[Unit]:
        return read_units(self.folder / "plan.parquet")

    def commits(self) -> Iterator[tuple[Unit, Commit | None]]:
        """Every unit with its valid commit record, or None where it is still to be done."""
        hashed = self.config_hash
        for unit in self.units():
            yield unit, read_commit(self.folder, unit.unit, hashed)

    def outstanding(self) -> Iterator[Unit]:
        return (unit for unit, commit in self.commits() if commit is None)


def open_or_plan(job: Job, on_unit: Callable[[Unit], None] = lambda unit: None) -> Run:
    """The run of this job: an existing one to be continued, or a new one with its plan made.

    Raises:
        JobError: the directory holds a run of another job, its shards have changed, or the plan
            cannot be made.
    """
    folder = Path(job.output)
    if (folder / "job.yaml").exists():
        run = Run.open(folder)
        if changed := differences(run.job, job):
            listed = "\n".join(f"  {field}: {before!r} → {now!r}" for field, before, now in changed)
            raise JobError(
                f"{folder} holds a run of another job; choose another output, delete it, or undo:\n{listed}"
            )
        if gone := changed_shards(folder / "plan.parquet"):
            raise JobError("shards have changed since the plan was made:\n  " + "\n  ".join(gone))
        return run
    try:
        summary = plan(job, folder, on_unit)
        with publish(folder / "job.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
    except OSError as error:
        raise JobError(f"output: cannot write to {folder}: {error}") from error
    return Run(folder, job, summary)


def plan(job: Job, folder: Path, on_unit: Callable[[Unit], None]) -> PlanSummary:
    """Make the plan of a job in a folder."""
    shards = job.data.shards
    if shards == builtin.SCIKIT_IMAGE:
        paths = [builtin.scikit_image_shard(folder / "shards", job.data.size)]
    else:
        paths = expand(shards)
    return make_plan(job.data, paths, job.compute.unit_size, folder / "plan.parquet", on_unit)
