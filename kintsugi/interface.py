"""The whole program from Python, for notebooks and scripts. What is heavy is imported by what needs it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from kintsugi.errors import JobError, SpecError, UnreadableImage

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL import Image
    from torch import Tensor

    from kintsugi.pipeline.analysis.tables import Table
    from kintsugi.pipeline.execution import run as runs
    from kintsugi.pipeline.job import Job
    from kintsugi.pipeline.storage.location import Location
    from kintsugi.priors.base import NetworkPrior

Images = TypeVar("Images", "Image.Image", "list[Image.Image]", "np.ndarray", "Tensor")
Picture = Literal["restored", "measurement", "truth"]
Spec = str | Mapping[str, Any]


def run(
    job: str | os.PathLike[str] | Mapping[str, Any] | Job,
    *,
    sets: Mapping[str, Any] = {},
    address: str | None = "none",
    limit: int | None = None,
    track: Sequence[str] = (),
) -> Run:
    """Run a job, or continue it: the same call again does what is left, and writes the report.

    An interrupt (Ctrl-C, a notebook's stop) finishes the units in hand and ends; a second one ends at once.
    Nothing is lost. What is said meanwhile is what `kintsugi run` says, with a progress bar.

    Args:
        job: a job file, the name of a ready job, its fields as a dict, or a Job.
        sets: fields that take other values, {"sampler.w": 8}.
        address: "none": in this process. None: a Ray of its own; "auto" or "ray://HOST:10001": a cluster.
        limit: only the first samples. track: trackers, "wandb", "mlflow" or "tensorboard", that are told.

    Raises:
        JobError: the job cannot run; the message names the cause and the fix. Failed samples are no error:
            see `Run.results()["samples"]`.
        KeyboardInterrupt: it was interrupted.
    """
    with job_errors():
        import typer

        from kintsugi.jobs.execution import do_job
        from kintsugi.jobs.files import job_of
        from kintsugi.jobs.tracking import tracked
        from kintsugi.pipeline.analysis.report import write_report

        with tracked(track) as tracking:
            try:
                this = do_job(job_of(job, sets, limit), address, tracking=tracking)
            except typer.Exit:  # it has said how far it came
                raise KeyboardInterrupt("interrupted; the same job continues") from None
            tracking.finish(write_report(this))
        found = Run(this)
        samples = found.results()["samples"]
        if missing := samples["planned"] - samples["done"]:
            raise this.incomplete(missing)
        return found


def open_run(path: str | os.PathLike[str]) -> Run:
    """The run in a directory, complete or not: a path or an s3:// or gs:// URL.

    Raises:
        JobError: it is no run, or not what was written.
    """
    with job_errors():
        from kintsugi.jobs import execution

        return Run(execution.open_run(os.fspath(path)))


def restore(
    images: Images,
    operator: Spec,
    *,
    prior: Spec = "natural",
    sampler: Spec = "conjugate",
    sigma: float = 0.0,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> Images:
    """Restore measurements: images that are degraded already, of any size, on a GPU where there is one.

    What comes in says what the values are, and comes back of the same kind:

    * a PIL image, or a list of them (of any sizes): 8-bit RGB comes back, or grey if all are grey
      and the operator does not make grey of colours;
    * an array (B, H, W, C) of uint8 on 0 … 255, or of floating point on [0, 1], clipped to that;
    * a tensor (B, C, H, W) on [-1, 1], as the operators have it; the only kind for a measurement that is no
      image. What comes back has its type and device, and is not clipped.

    Noise may lead out of these ranges. The result is that of a run with `data.kind: measurements` and the
    same keys and seed.

    Args:
        operator, prior, sampler: names or specs, {"name": "bicubic", "factor": 4}; see `kintsugi list`.
        sigma: standard deviation of the Gaussian noise in the images, in units of the range from black to
            white ([0, 1]), whatever kind they are.
        keys: one for each image, by which its noise is drawn; "0", "1", … where there are none.

    Raises:
        JobError: a spec, or images that do not fit; the message says what to change.
    """
    with job_errors():
        from kintsugi.jobs.files import job_of
        from kintsugi.restoring import channels_of, restore_images

        of = spec_of(operator)
        fields = {
            "data": {"kind": "measurements", "shards": "images", "channels": channels_of(images, of)},
            "degradation": {"operator": of, "sigma": sigma},
            "prior": spec_of(prior),
            "sampler": spec_of(sampler),
            "seed": seed,
            "output": "restored",
        }
        return restore_images(job_of(fields, {}, None, "restore"), images, keys)


def load_prior(prior: Spec = "natural", *, device: str | None = None) -> NetworkPrior:
    """A network, frozen: prior(x, t) → u for x (B, C, H, W) on [-1, 1] at times t of `prior.path`.

    Args:
        prior: a name or a spec, {"name": "adm", "path": "model.pt"}.
        device: the GPU, where there is one, if it is left out.

    Raises:
        JobError: it cannot be loaded; the message names the field.
    """
    with job_errors():
        from kintsugi import priors
        from kintsugi.device import default_device

        return priors.load(spec_of(prior), device=device or default_device())


class Run:
    """A run directory and what came out. A notebook shows it as a table, a terminal by `repr`."""

    def __init__(self, run: runs.Run):
        self._run = run

    @property
    def folder(self) -> Location:
        """The run directory."""
        return self._run.folder

    @property
    def job(self) -> Job:
        """The job it is of."""
        return self._run.job

    def rows(self) -> pa.Table:
        """One row for each sample that is done, failed ones too, with its measures and without pictures.

        Raises:
            JobError: a file is not the one that was committed.
        """
        from kintsugi.pipeline.analysis.query import rows_of
        from kintsugi.pipeline.storage.files import parquet

        with job_errors(), rows_of(self.folder) as file, parquet(file) as table:
            return table.read()

    @property
    def report(self) -> Location:
        """The page of the report, which is made anew where it is missing or older than the rows.

        Raises:
            JobError: as `rows`; a reference of a metric is missing.
        """
        from kintsugi.pipeline.analysis.query import rows_file

        with job_errors():
            rows_file(self.folder)
            return self.folder / "report" / "report.html"

    def results(self) -> dict[str, Any]:
        """What the report states, as in its metrics.json: "samples", "metrics", "sets", "cost", "time", ….

        Each of "metrics" has its mean, the ends of its 95 % interval as low and high, and n.

        Raises:
            JobError: as `report`.
        """
        from kintsugi.pipeline.analysis.report.stored import read_metrics
        from kintsugi.pipeline.execution.directory import METRICS

        with job_errors():
            return read_metrics(self.report.parent / METRICS)

    def picture(self, key: str, kind: Picture = "restored") -> Image.Image:
        """A picture that a sample's row keeps, 8 bits of grey or RGB.

        Of many channels it shows the first three, of two the first.

        Raises:
            JobError: there is no such sample, or no such picture of it; the message says why.
        """
        from kintsugi.pipeline.analysis.query import rows_of
        from kintsugi.pipeline.analysis.report.gallery import rows_at
        from kintsugi.pipeline.data.pictures import shown
        from kintsugi.pipeline.storage.files import parquet

        if kind not in ("restored", "measurement", "truth"):
            raise JobError(f"picture: no kind {kind!r}; restored, measurement or truth")
        with job_errors():
            with rows_of(self.folder) as file, parquet(file) as table:
                keys = table.read(["key"])["key"].to_pylist()
            if key not in keys:
                raise JobError(f"picture: no sample {key!r} is done in {self.folder}")
            ((_, row),) = rows_at(self._run, [keys.index(key)], ["key", "error", kind])
            if row[kind] is None:
                why = row["error"] or "the job keeps no such pictures: see its field `images`"
                raise JobError(f"picture: there is no {kind} of {key!r}: {why}")
            return shown(row[kind])

    def __repr__(self) -> str:
        from kintsugi.jobs.terminal import to_text

        table = self._table()
        return self._progress() + ("" if table is None else f"\n{to_text(table)}")

    def _repr_html_(self) -> str:
        """For notebooks. Names are from files that may be of others: all text is escaped."""
        import html

        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        table = self._table()
        head = f"<p>{html.escape(self._progress())}</p>"
        if table is None:
            return head
        rows = "".join(line(row, "td") for row in table.rows)
        return f"{head}<table><thead>{line(table.columns, 'th')}</thead><tbody>{rows}</tbody></table>"

    def _progress(self) -> str:
        done = self._run.progress()
        return f"{self.folder}: {done.rows} of {self._run.summary.samples} samples, {done.failed} failed"

    def _table(self) -> Table | None:
        """The measures, if the report is there and of now: looking at a run computes and writes nothing."""
        from kintsugi.jobs.execution import results_table
        from kintsugi.pipeline.analysis.query import kept_rows

        return None if kept_rows(self.folder) is None else results_table(self.results())


def spec_of(given: Spec) -> dict[str, Any]:
    """A spec, of which the name alone may be given."""
    from kintsugi.jobs.files import plain

    return {"name": given} if isinstance(given, str) else plain(given)


@contextmanager
def job_errors() -> Iterator[None]:
    """Turns what users can mend into JobErrors."""
    try:
        yield
    except (SpecError, UnreadableImage) as error:
        raise JobError(str(error)) from error
    except OSError as error:
        raise JobError(f"storage: {error}") from error
