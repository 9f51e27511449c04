"""Runs whose rows are made up."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kintsugi.pipeline.data.units import read_members
from kintsugi.pipeline.execution.commit import commit, schema_of
from kintsugi.pipeline.execution.directory import PLAN
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.worker import provenance
from kintsugi.pipeline.job import Job


def made_up(
    job: Job, columns: Mapping[str, Sequence[Any]], failed: Sequence[int] = (), units: int | None = None
) -> Run:
    """A run of a job, as planned, with these values in its rows.

    Args:
        columns: of each sample, in order; `seconds` are of the records. failed: which samples have failed.
        units: how many are committed; None: all.
    """
    run = open_or_plan(job)
    schema = schema_of(run.job)
    for unit in list(run.units())[:units]:
        found = []
        for i, key in enumerate(read_members(run.folder / PLAN, unit).keys, unit.first):
            row = dict.fromkeys(schema.names) | {"key": key, "shard": unit.shard, "index": i, "status": "ok"}
            row |= {name: of[i] for name, of in columns.items() if name != "seconds"}
            if i in failed:
                row |= dict.fromkeys(columns) | {"status": "failed", "error": "UnreadableImage: <cut>"}
            found.append({name: row[name] for name in schema.names})
        seconds = columns.get("seconds", [0.1] * run.summary.samples)[unit.first : unit.first + unit.samples]
        commit(
            run.folder,
            unit.unit,
            found,
            time.perf_counter(),
            {"sample": float(sum(seconds))},
            schema=schema,
            config_hash=run.config_hash,
            prior_sha256=run.prior.sha256,
            attempt=1,
            sample_seconds=list(seconds),
            made_by=provenance(torch.device("cpu")),
        )
    return run
