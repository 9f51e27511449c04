"""Of operators for one sample each, one for their batch: each sample is treated as it is alone."""

import pytest
import torch
from kit.operators import KERNELS, PER_SAMPLE, SHAPE, draw

from kintsugi import operators
from kintsugi.operators import Linear, Mask, NotStackable, Solved, stack
from kintsugi.testing import check_linear, check_solved

SQUARE = (3, 12, 12)
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


def build(specs, dtype=torch.float64):
    shape = SQUARE if specs[0]["name"] == "gaussian_blur_rediff" else SHAPE
    return [operators.build(spec, shape, dtype=dtype) for spec in specs]


def label(specs):
    return "-".join(
        f"{part['name']}.{'.'.join(sorted(set(part) - {'name'}))}"
        for part in specs[0].get("operators", specs[:1])
    )


BATCHES = pytest.mark.parametrize("specs", PER_SAMPLE, ids=label)


def test_every_registered_operator_is_stacked():
    assert {specs[0]["name"] for specs in PER_SAMPLE} == set(operators.REGISTRY)


def share(s):
    """A function of singular values that is not 0 at 0."""
    return (s**2 + 0.2) / (s**2 + 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LIMITS)
@BATCHES
def test_every_sample_is_treated_as_by_its_own_operator(specs, dtype):
    alone = build(specs, dtype)
    whole = stack(alone)
    assert type(whole) is type(alone[0])
    for name in ("image_shape", "measurement_shape", "border", "pixels", "linear", "decomposed"):
        assert getattr(whole, name) == getattr(alone[0], name), name
    x = draw(whole, whole.image_shape)
    y, v = whole.forward(x), draw(whole, whole.measurement_shape, seed=1)
    limit = LIMITS[dtype] if not isinstance(whole, Solved) or dtype == torch.float64 else 1e-4
    calls = [
        ("forward", (x,)),
        ("pinv", (v,)),
        ("project", (x,)),
        ("impose", (x, v)),
        ("impose", (x, y)),
        ("vjp", (x, v)),
        *([("adjoint", (v,))] if whole.linear else []),
    ]
    for i, one in enumerate(alone):
        for name, arguments in calls:
            expected = getattr(one, name)(*(argument[i : i + 1] for argument in arguments))
            found = getattr(whole, name)(*arguments)[i : i + 1]
            assert (found - expected).abs().max() <= limit * expected.abs().max().clamp_min(1), name
        expected = one.spectral_map(share, x[i : i + 1])
        torch.testing.assert_close(whole.spectral_map(share, x)[i : i + 1], expected, rtol=limit, atol=limit)
        back = whole.from_spectral(whole.to_spectral(x))[i : i + 1]
        torch.testing.assert_close(
            back, one.from_spectral(one.to_spectral(x[i : i + 1])), rtol=limit, atol=limit
        )
        # What fills a lower rank up has no singular value, and nothing comes into it.
        values, c = one.singular_values, one.to_spectral(x[i : i + 1])
        ours = whole.singular_values.expand(3, *whole.to_spectral(x).shape[1:])[i].flatten()
        assert_same_multiset(ours, values.expand(c.shape[1:]).flatten(), limit)
        assert_same_multiset(whole.to_spectral(x)[i].flatten(), c.flatten(), limit)


def assert_same_multiset(found, expected, limit):
    """But for further zeros."""
    filled = torch.cat([expected, expected.new_zeros(len(found) - len(expected))])
    torch.testing.assert_close(found.sort().values, filled.sort().values, rtol=limit, atol=limit)


@pytest.mark.parametrize("dtype", LIMITS)
@BATCHES
def test_a_linear_one_has_all_the_properties_of_one_operator(specs, dtype):
    whole = stack(build(specs, dtype))
    if isinstance(whole, Linear):
        (check_linear if whole.decomposed else check_solved)(whole, dtype)


@pytest.mark.parametrize("specs", [[{"name": "hdr", "factor": f} for f in (1.5, 3.0)]])
def test_numbers_that_differ_are_a_number_for_each_sample(specs):
    whole = stack(build(specs))
    assert whole.lipschitz.flatten().tolist() == [1.5, 3.0]
    assert whole.lipschitz.shape == (2, 1, 1, 1)


def test_one_operator_many_times_is_itself():
    (one,) = build([{"name": "bicubic"}])
    assert stack([one, one, one]) is one
    assert stack([one]) is one


def test_stacking_changes_nothing_of_what_is_stacked():
    alone = build([{"name": "gaussian_blur", "sigma": sigma} for sigma in (0.7, 3.0)])
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in alone]
    whole = stack(alone)
    whole.singular_values.zero_()
    for one, old in zip(alone, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in one.state_dict().items())


class Unknown(Mask):
    """What says nothing of itself, as an operator of a plug-in may."""

    per_sample = None


@pytest.mark.parametrize(
    ("alone", "message"),
    [
        ([{"name": "denoise"}, {"name": "bicubic", "factor": 1}], r"several kinds \(Identity, Separable\)"),
        ([{"name": "bicubic", "factor": 2}, {"name": "bicubic", "factor": 4}], "measurement_shape differs"),
        (
            [{"name": "blur", "kernel": KERNELS[0]}, {"name": "blur", "kernel": [[1.0, 2.0]]}],
            r"several kinds \(Convolution, Separable\)",
        ),
        (
            [{"name": "blur", "kernel": KERNELS[0], "boundary": edge} for edge in ("zero", "reflect")],
            "Bordered operators whose edge differs",
        ),
        (
            [{"name": "blur", "kernel": KERNELS[0], "boundary": "zero", "threshold": t} for t in (0.1, 0.2)],
            "Bordered operators whose ridge differs",
        ),
        ([{"name": "jpeg", "subsampling": s} for s in ("4:2:0", "4:4:4")], "subsampled differs"),
        (
            [
                {"name": "compose", "operators": [{"name": "hdr"}] * n + [{"name": "quantize"}]}
                for n in (1, 2)
            ],
            "different parts",
        ),
        ([Unknown(torch.ones(SHAPE)), Unknown(torch.zeros(SHAPE))], "Unknown does not say"),
    ],
)
def test_what_differs_in_more_than_numbers_is_refused(alone, message):
    if isinstance(alone[0], dict):
        alone = build(alone)
    with pytest.raises(NotStackable, match=message):
        stack(alone)
