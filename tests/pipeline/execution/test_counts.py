"""Evaluations that differ per sample: counted of each, from the sampler through rows to the report."""

import json

import pytest
import torch
from kit.jobs import execute, rows

from kintsugi import operators, samplers
from kintsugi.pipeline.analysis.measures import count_of
from kintsugi.pipeline.analysis.report import write_report
from kintsugi.samplers import KeyedNoise, blind
from kintsugi.testing import draw, mixture

SAMPLER = {"name": "cdim", "steps": 2, "start": 0.4, "projections": 3, "margin": 0.5}


def test_rows_have_the_counts_of_each_and_the_report_their_mean(make_job, tmp_path):
    """The same in batches of one and of all; of two samples for an image both."""
    data, counts = make_job().data.model_dump() | {"limit": 6}, []
    for place, (batch, several) in enumerate([(1, 1), (6, 1), (6, 2)]):
        compute = make_job().compute.model_dump() | {"batch_size": batch}
        job = make_job(
            data=data,
            sampler=SAMPLER,
            compute=compute,
            restoration={"samples_per_image": several},
            output=str(tmp_path / str(place)),
        )
        run = execute(job)
        counts.append({row["key"]: (row["forwards"], row["vjps"]) for row in rows(run)})
    alone, together, twice = counts
    assert alone == together
    assert len(set(alone.values())) > 1, "no sample needs more than another"
    assert all(forwards == 2 + vjps for forwards, vjps in alone.values())
    assert all(twice[key][0] > alone[key][0] for key in alone)
    write_report(run)
    metrics = json.loads((run.folder / "report" / "metrics.json").read_text())
    mean = round(sum(forwards for forwards, _ in twice.values()) / 6, 1)
    assert metrics["cost"]["forwards"] == mean
    assert metrics["protocol"]["evaluations"]["forwards"] == mean


def test_the_parts_of_a_batch_that_cannot_be_stacked_keep_their_counts():
    """A mask and an interpolation after one another."""
    specs = [{"name": "inpaint", "mask": "random"}] * 2 + [{"name": "gaussian_blur"}]
    each = [operators.build(spec, (1, 8, 8), dtype=torch.float64) for spec in specs]
    y = torch.cat([one.forward(draw(1, 1, 8, 8, seed=i)) for i, one in enumerate(each)])
    for spec in ({**SAMPLER, "projections": 9}, {"name": "ddnm", "steps": 2}):
        sampler, found = samplers.build(spec), []
        for operator, one, key in zip(each, y, "abc", strict=True):
            found.append(sampler(mixture(), operator, one[None], KeyedNoise(0, [key])))
        whole = blind.restored(sampler, mixture(), each, y, KeyedNoise(0, list("abc")), 0.0, None)
        expected = torch.cat([torch.as_tensor(one.forwards).view(1) for one in found])
        assert torch.equal(torch.as_tensor(whole.forwards).expand(3), expected)
        assert isinstance(whole.forwards, int) == (spec["name"] == "ddnm")


@pytest.mark.parametrize(
    ("counts", "expected"), [([5, 5], 5), ([5, 6], 5.5), ([1, 1, 2], 1.3), ([float("nan"), 4], 4), ([], None)]
)
def test_a_count_is_whole_or_a_mean_of_those_that_are_known(counts, expected):
    found = count_of(counts)
    assert found == expected
    assert isinstance(found, type(expected))
