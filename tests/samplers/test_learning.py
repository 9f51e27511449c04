"""Learned extrapolation: what is written in a spec, and what is learned from images."""

import numpy as np
import pytest
import torch
from kit.posterior import natural_texture

from kintsugi import operators, samplers
from kintsugi.errors import SpecError
from kintsugi.pipeline.job import config_hash
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.descent import Denoiser, Stepwise
from kintsugi.samplers.extrapolation import rows_of
from kintsugi.samplers.learning import RIDGE, Lesson, grams, learn, texture, total
from kintsugi.samplers.problem import Problem
from kintsugi.testing import draw, mixture, suited

SHAPE, STEPS = (1, 8, 8), 4
IDENTITY = [[0.0] * i + [1.0] for i in range(STEPS)]
SPEC = {"name": "ddnm", "steps": STEPS, "start": 0.9, "eta": 0.5}
OPERATOR = operators.build({"name": "bicubic", "factor": 2}, SHAPE, dtype=torch.float64)
STEPWISE = [
    name for name, of in samplers.BUILTIN.items() if isinstance(of, type) and issubclass(of, Stepwise)
]
GAUSSIAN = natural_texture()


def images(count, seed):
    return GAUSSIAN.draw(count, torch.Generator().manual_seed(seed))


def lessons(seed=0, batches=(5, 7), operator=OPERATOR):
    truths = images(sum(batches), seed).split(batches)
    keys = [f"{seed} {i}" for i in range(sum(batches))]
    found = []
    for truth in truths:
        noise = KeyedNoise(0, keys[: len(truth)])
        keys = keys[len(truth) :]
        problem = Problem(operator, operator.forward(truth), noise, 0.0)
        found.append(Lesson(problem, truth, Denoiser(GAUSSIAN.prior, None)))
    return found


def written(learned):
    return [[list(one.row.measured), list(one.row.free)] for one in learned]


def restored(lesson, **parameters):
    problem = lesson.problem
    noise = KeyedNoise(0, problem.noise.keys)
    sampler = samplers.build(SPEC | parameters)
    return sampler(GAUSSIAN.prior, problem.operator, problem.y, noise, sigma_y=0.0).image


def rmse(found, seed, **parameters):
    squares = [(restored(one, **parameters) - one.truth).square() for one in lessons(seed, (40,))]
    return torch.cat(squares).mean().sqrt().item()


@pytest.mark.parametrize("rows", [IDENTITY, [[row, row] for row in IDENTITY]], ids=["plain", "split"])
@pytest.mark.parametrize("name", STEPWISE)
def test_the_identity_is_the_sampler_bit_for_bit(name, rows):
    y = OPERATOR.forward(0.5 * draw(2, *SHAPE, seed=3))
    used = [
        samplers.build({"name": name, "steps": STEPS, "start": 0.9, "extrapolate": given})
        for given in (0.0, rows)
    ]
    plain, same = (
        sampler(suited(mixture(), sampler, OPERATOR), OPERATOR, y, KeyedNoise(0, ["a", "b"]))
        for sampler in used
    )
    assert torch.equal(plain.image, same.image)
    assert (plain.forwards, plain.vjps) == (same.forwards, same.vjps)


def test_rows_are_the_formula_and_do_not_depend_on_the_batch():
    """β as rows is β; split rows are P of one sum and the rest of the other; a sample alone is the same."""
    beta = 0.3
    along = [[1.0], [-beta, 1 + beta], [0.0, -beta, 1 + beta], [0.0, 0.0, -beta, 1 + beta]]
    (lesson,) = lessons(batches=(3,))
    assert torch.equal(restored(lesson, extrapolate=along), restored(lesson, extrapolate=beta))
    past = dict(enumerate(draw(STEPS, 3, *SHAPE)))
    measured, free = ([0.5, -1.0, 0.2, 2.0], [0.1, 0.0, -0.3, 1.0])
    row = rows_of([*IDENTITY[:3], [measured, free]], STEPS)[3]
    one, other = (sum(w * past[j] for j, w in enumerate(of)) for of in (measured, free))
    expected = OPERATOR.project(one) + other - OPERATOR.project(other)
    torch.testing.assert_close(past[3] + row.change(past, OPERATOR), expected)
    rows = [*IDENTITY[:3], [measured, free]]
    alone = lessons(batches=(1, 2))[1]
    torch.testing.assert_close(
        restored(alone, extrapolate=rows), restored(lesson, extrapolate=rows)[1:], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (IDENTITY[:3], "3 rows for 4 steps"),
        ([*IDENTITY[:3], [0.0, 1.0]], "row 3: expected the coefficients of 4 predictions"),
        ([*IDENTITY[:3], [[0.0] * 4, [0.0] * 3]], "row 3: expected"),
        ([*IDENTITY[:3], [0.0, 0.0, 0.0, float("nan")]], "row 3: expected .* finite"),
        ([*IDENTITY[:3], [0.0, 0.0, 0.0, "1"]], "row 3: expected"),
        (float("inf"), "a finite number"),
        ("much", "a finite number"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_field(make_job, rows, message):
    with pytest.raises(SpecError, match=rf"^sampler\.extrapolate: .*{message}"):
        samplers.build(SPEC | {"extrapolate": rows})
    with pytest.raises(ValueError, match=message):
        make_job(sampler=SPEC | {"extrapolate": rows})


def test_a_job_is_another_one_with_other_coefficients(make_job):
    hashes = [
        config_hash(make_job(sampler=SPEC | more))
        for more in ({}, {"extrapolate": IDENTITY}, {"extrapolate": [*IDENTITY[:3], [0.0, 0.0, 0.1, 0.9]]})
    ]
    assert len(set(hashes)) == 3


def test_a_non_linear_operator_has_no_measured_part_and_is_learned_without():
    operator = operators.build({"name": "hdr"}, SHAPE, dtype=torch.float64)
    split = samplers.build(SPEC | {"extrapolate": [[row, row[::-1]] for row in IDENTITY]})
    with pytest.raises(ValueError, match=r"^extrapolate: a non-linear operator"):
        split.prepare(GAUSSIAN.prior, operator, 0.0, images(1, 0))
    learned = learn(samplers.build(SPEC), lessons(operator=operator), 0.0)
    assert not any(one.row.split for one in learned)
    assert learned[-1].error[1] < learned[-1].error[0]


def test_greedy_least_squares_lower_the_error_of_every_step():
    told = []
    learned = learn(samplers.build(SPEC), lessons(), 0.0, lambda: told.append(1))
    errors = [one.error[1] for one in learned]
    assert all(after <= before + 1e-9 for before, after in (one.error for one in learned))
    assert errors == sorted(errors, reverse=True), "what was predicted before is among the predictions"
    assert len(told) == STEPS * 2
    rows = written(learned)
    assert rmse(learned, 1, extrapolate=rows) < 0.99 * rmse(learned, 1), "on other images, too"
    # What was learned is what a run does: the last row's error is that of the restored images.
    squares = [(restored(one, extrapolate=rows) - one.truth).square() for one in lessons()]
    assert torch.cat(squares).mean().sqrt().item() == pytest.approx(errors[-1], rel=1e-4)


def test_a_step_is_the_least_squares_solution_of_stacked_predictions():
    """numpy's, of all images' predictions in one matrix, with the ridge as rows beneath it."""
    sampler, taught = samplers.build(SPEC | {"name": "pigdm_discrete"}), lessons()
    learned = learn(sampler, taught, 0.0)
    for part, of in ((0, lambda x: OPERATOR.project(x)), (1, lambda x: x - OPERATOR.project(x))):
        columns = np.stack(
            [torch.cat([of(one.past[j]) for one in taught]).flatten().numpy() for j in range(STEPS)], 1
        )
        true = torch.cat([one.truth for one in taught]).flatten().numpy()
        ridge = (RIDGE * np.square(columns).sum() / STEPS) ** 0.5
        stacked = np.concatenate([columns, ridge * np.eye(STEPS)])
        expected = np.linalg.lstsq(stacked, np.concatenate([true, ridge * np.eye(STEPS)[-1]]), rcond=None)[0]
        assert written(learned)[-1][part] == pytest.approx(expected.tolist(), abs=1e-5)


def test_where_predictions_agree_nothing_is_changed():
    """The measured part of a sampler that imposes y is y's in every step."""
    for i, one in enumerate(learn(samplers.build(SPEC), lessons(), 1.0)):
        assert one.row.measured == pytest.approx(IDENTITY[i], abs=1e-5)


@pytest.mark.parametrize("tau", [0.3, 0.9])
def test_texture_is_what_is_demanded_at_the_least_error(tau):
    """Held against SLSQP; less is demanded of nobody who has it; the first step is free of it."""
    from scipy.optimize import minimize

    taught = lessons(batches=(12,))
    learned = learn(samplers.build(SPEC), taught, tau)
    plain = learn(samplers.build(SPEC), lessons(batches=(12,)), 0.0)
    assert learned[0] == plain[0]
    assert all(one.texture[1] >= tau - 1e-4 for one in learned[1:])
    assert any(one.texture[1] < tau for one in plain[1:])
    parts = total([of for one in taught for of in grams(one.columns(), one.truth)])
    found = np.array([*learned[-1].row.measured, *learned[-1].row.free])
    fixed = found[:STEPS]

    def both(free):
        return np.concatenate([fixed, free])

    best = minimize(
        lambda free: 100 * parts.error(both(free)) ** 2,
        found[STEPS:] * 1.1,
        constraints={"type": "ineq", "fun": lambda free: parts.share(both(free)) - tau},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert learned[-1].error[1] == pytest.approx((best.fun / 100) ** 0.5, rel=1e-3)
    assert learned[-1].error[1] >= plain[-1].error[1] - 1e-6


def test_texture_is_the_energy_of_the_upper_half_of_frequencies():
    assert texture(torch.ones(1, 8, 8)).abs().max() < 1e-6
    checks = (torch.arange(8)[:, None] + torch.arange(8)).double() % 2 - 0.5
    assert texture(checks[None]).square().sum() > 0.9 * checks.square().sum()
    x = draw(2, *SHAPE)
    slow = torch.cos(torch.pi * (torch.arange(8) + 0.5) / 8).double().expand(2, 1, 8, 8)
    torch.testing.assert_close(texture(x + slow), texture(x), rtol=0, atol=1e-6)
