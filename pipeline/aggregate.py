"""From committed rows to numbers: one pass over the units, memory independent of their number."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit import PICTURES, ROWS, Commit, read_rows
from pipeline.run import Run
from pipeline.storage import Location, publish

MEASURES = ("psnr", "ssim", "ms_ssim", "lpips", "residual", "spread", "seconds")
FAILURES_LISTED = 50

FLAT_ROWS = pa.schema([f for f in ROWS if f.name not in PICTURES] + [pa.field("seconds", pa.float64())])


@dataclass
class Mean:
    """A running mean and variance (Chan et al. 1979); infinite values are counted apart."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    infinite: int = 0

    def add(self, values: np.ndarray) -> None:
        finite = values[np.isfinite(values)]
        self.infinite += int(np.isinf(values).sum())
        if not len(finite):
            return
        n, mean = len(finite), finite.mean()
        delta = mean - self.mean
        total = self.n + n
        self.squares += ((finite - mean) ** 2).sum() + delta**2 * self.n * n / total
        self.mean += delta * n / total
        self.n = total

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / (self.n - 1)) if self.n > 1 else math.nan

    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean (Student's t)."""
        from scipy.special import stdtrit

        if self.n < 2:
            return math.nan, math.nan
        half = float(stdtrit(self.n - 1, 0.975)) * self.deviation / math.sqrt(self.n)
        return self.mean - half, self.mean + half


@dataclass
class Summary:
    """What a run's committed rows amount to.

    Attributes:
        planned, rows, failed: samples. units, units_done: units of work.
        seconds: wall-clock time of all units by part.
        made_by: every distinct value of each provenance field.
    """

    planned: int
    units: int
    rows: int = 0
    failed: int = 0
    units_done: int = 0
    forwards: int = 0
    vjps: int = 0
    means: dict[str, Mean] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    made_by: dict[str, set[str]] = field(default_factory=dict)

    def add(self, table: pa.Table, commit: Commit) -> None:
        self.units_done += 1
        self.rows += table.num_rows
        self.failed += commit.failed
        self.seconds.update(commit.seconds)
        provenance = {**commit.made_by, "prior_sha256": commit.prior_sha256 or "none"}
        for name, value in provenance.items():
            self.made_by.setdefault(name, set()).add(value)
        for failure in table.filter(pc.equal(table["status"], "failed")).to_pylist():
            self.errors[failure["error"].split(":")[0]] += 1
            if len(self.failures) < FAILURES_LISTED:
                self.failures.append((failure["key"], failure["shard"], failure["error"]))
        good = table.filter(pc.equal(table["status"], "ok"))
        for name in MEASURES:
            values = good[name].drop_null().to_numpy()
            if len(values):
                self.means.setdefault(name, Mean()).add(values)
        if good.num_rows:
            self.forwards = max(self.forwards, pc.max(good["forwards"]).as_py())
            self.vjps = max(self.vjps, pc.max(good["vjps"]).as_py())


def committed(run: Run, columns: list[str]) -> Iterator[tuple[pa.Table, Commit]]:
    """The rows of every committed unit, in order, with `seconds` from the commit record if asked for.

    Raises:
        JobError: a data file is not the one that was committed.
    """
    stored = [c for c in columns if c != "seconds"]
    for _, commit in run.commits():
        if commit is None:
            continue
        table = read_rows(run.folder, commit, stored)
        if "seconds" in columns:
            seconds = pa.array(commit.sample_seconds, pa.float64())
            ok = pc.equal(table["status"], "ok")
            table = table.append_column("seconds", pc.if_else(ok, seconds, None))
        yield table, commit


def summarise(run: Run, rows_file: Location) -> Summary:
    """Aggregate a run, and write its rows without the pictures as one flat table."""
    summary = Summary(planned=run.summary.samples, units=run.summary.units)
    with publish(rows_file) as temporary, pq.ParquetWriter(temporary, FLAT_ROWS) as writer:
        for table, commit in committed(run, FLAT_ROWS.names):
            summary.add(table, commit)
            writer.write_table(table.select(FLAT_ROWS.names).cast(FLAT_ROWS))
    return summary


def gallery(run: Run, most: int) -> list[dict[str, Any]]:
    """Those of the first `most` rows that are restored."""
    first: list[dict[str, Any]] = []
    for table, _ in committed(run, ROWS.names):
        first += table.slice(0, most - len(first)).to_pylist()
        if len(first) == most:
            break
    return [row for row in first if row["status"] == "ok"]
