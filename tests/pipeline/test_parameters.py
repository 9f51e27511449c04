"""Parameters of samples: the mappings of a job, what is wrong with them, and their values."""

import numpy as np
import pytest
import torch
from kit.shards import encode, npy
from pydantic import ValidationError

from kintsugi.pipeline.parameters import parameters_of, with_values

SIZE = (16, 16)
BLUR = {"name": "gaussian_blur", "taps": 5}
INPAINT = {"name": "inpaint", "known": "white"}


def parameters(operator, sigma=0.0):
    return list(parameters_of({"operator": operator, "sigma": sigma}))


def test_they_are_found_wherever_a_mapping_stands_for_a_value():
    parts = [
        BLUR | {"sigma": {"draw": "uniform", "low": 1, "high": 2}},
        INPAINT | {"mask": {"member": "m.png"}},
    ]
    found = parameters({"name": "compose", "operators": parts}, {"member": "sigma.txt"})
    assert [(each.field, each.column, each.kind) for each in found] == [
        ("degradation.sigma", "sigma", "number"),
        ("degradation.operator.operators.0.sigma", "operator_0_sigma", "number"),
        ("degradation.operator.operators.1.mask", "operator_1_mask", "mask"),
    ]
    assert parameters(BLUR, 0.1) == []


def test_values_come_in_their_places_and_the_job_stays():
    parts = [BLUR | {"sigma": {"value": 2}}, {"name": "blur", "kernel": {"member": "k.mat"}, "variable": "k"}]
    degradation = {"operator": {"name": "compose", "operators": parts}, "sigma": {"value": 0.1}}
    first, second, third = parameters_of(degradation)
    kernel = torch.ones(3, 3)
    found = with_values(degradation, {first: 0.2, second: 1.5, third: kernel})
    assert found["sigma"] == 0.2
    assert found["operator"]["operators"] == [BLUR | {"sigma": 1.5}, {"name": "blur", "kernel": kernel}]
    assert parts[0]["sigma"] == {"value": 2}
    assert parts[1]["variable"] == "k"


def test_a_draw_belongs_to_seed_key_and_parameter():
    mapping = {"draw": "uniform", "low": 1, "high": 3}
    blur, sigma = parameters({**BLUR, "sigma": mapping}, mapping)[::-1]
    drawn = {
        (parameter.field, seed, key): parameter.of_sample(seed, key, {}, SIZE)
        for parameter in (blur, sigma)
        for seed in (0, 1)
        for key in ("a", "b")
    }
    assert len(set(drawn.values())) == 8
    assert all(1 <= value <= 3 for value in drawn.values())
    assert blur.of_sample(0, "a", {}, SIZE) == drawn[blur.field, 0, "a"]


@pytest.mark.parametrize(
    ("operator", "name", "content", "expected"),
    [
        (BLUR | {"sigma": {"member": "w.txt"}}, "w.txt", b" 2.5\n", 2.5),
        (BLUR | {"sigma": {"member": "w.json"}}, "w.json", b"3", 3),
        (
            INPAINT | {"mask": {"member": "m.png"}},
            "m.png",
            encode(np.eye(16, dtype=np.uint8) * 255),
            torch.eye(16) > 0,
        ),
        (
            {"name": "blur", "kernel": {"member": "k.npy"}},
            "k.npy",
            npy(np.ones((2, 3))),
            torch.ones(2, 3, dtype=torch.float64),
        ),
    ],
)
def test_a_member_is_what_its_file_holds(operator, name, content, expected):
    (parameter,) = parameters(operator)
    parameter.check(from_measurements=False)
    found = parameter.of_sample(0, "a", {name: content}, SIZE)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))
    with pytest.raises(ValueError, match=f"{parameter.field}: there is no file a.{name}"):
        parameter.of_sample(0, "a", {}, SIZE)


@pytest.mark.parametrize("content", [b"", b"two", b"true", b"[1]", b"NaN", b"1e999", b"\xff", b"1" * 5000])
def test_a_file_that_holds_no_number_is_named(content):
    (parameter,) = parameters(BLUR | {"sigma": {"member": "w.txt"}})
    with pytest.raises(ValueError, match=r"degradation.operator.sigma: a.w.txt: "):
        parameter.of_sample(0, "a", {"w.txt": content}, SIZE)


MEASURED = {"data": {"shards": "x", "kind": "measurements"}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"operator": BLUR | {"sigma": {"draw": "no"}}},
            r"operator.sigma.draw: 'no' is no draw; choose .*uniform",
        ),
        ({"operator": BLUR | {"sigma": {"draw": "motion"}}}, "operator.sigma.draw: 'motion' draws a kernel"),
        ({"operator": BLUR | {"sigma": {"draw": "uniform", "low": 1}}}, "operator.sigma.high"),
        (
            {"operator": BLUR | {"sigma": {"member": "w.txt", "value": 3}}},
            "sigma: member and value; a value comes",
        ),
        (
            {"operator": BLUR | {"sigma": {"member": "w.png"}}},
            "sigma: member: 'w.png'; .*sigma.json of KEY.sigma.json",
        ),
        ({"operator": BLUR | {"sigma": {"member": "../w.txt"}}}, "sigma: member: '../w.txt'"),
        ({"operator": BLUR | {"sigma": {"member": "w.txt", "low": 3}}}, "sigma: low: unknown"),
        ({"operator": BLUR | {"sigma": {"value": -3}}}, "operator.sigma: .*greater than 0"),
        (
            {"operator": {"name": "blur", "kernel": {"draw": "motion", "estimate": 31}}},
            "kernel: estimate: a free kernel cannot be estimated",
        ),
        ({"operator": BLUR | {"sigma": {"estimate": [1, 2]}}}, "sigma: estimate: add value, draw or member"),
        (
            {"operator": BLUR | {"sigma": {"value": 1, "estimate": [2, 1]}}},
            r"estimate: two numbers, \[low, high\]",
        ),
        ({"operator": {"name": "inpaint", "mask": {"member": "m.png"}}}, "mask: member: add known: white or"),
        (
            {"operator": {"name": "denoise"}, "sigma": {"draw": "uniform", "low": -1, "high": -0.5}},
            "sigma: -0.*negative",
        ),
        ({"operator": {"name": "denoise"}, "sigma": -1}, "degradation.sigma.*greater than or equal to 0"),
        (
            {"operator": BLUR | {"sigma": {"draw": "uniform", "low": 1, "high": 2}}, **MEASURED},
            "sigma: draw: measurem",
        ),
    ],
)
def test_what_is_wrong_with_a_mapping_is_said_with_its_field(make_job, fields, message):
    data = {"data": fields.pop("data")} if "data" in fields else {}
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        make_job(degradation=fields, metrics=[], **data)
