"""Metrics of sets: exact sums, distances against clean-fid's own functions and closed forms."""

import numpy as np
import pytest
import torch

from pipeline.metrics import distances
from pipeline.metrics.distances import Sample
from pipeline.metrics.moments import Gaussian, Moments, frechet, on_grid
from pipeline.metrics.reference import Reference
from pipeline.metrics.sets import evaluate, gather, share


def features(n: int, size: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Like those of Inception: not negative, correlated."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(0, 1 / np.sqrt(size), (size, size))
    return on_grid(np.abs(rng.normal(shift, 1, (n, size)) @ mixing + 0.3))


def moments_of(x: np.ndarray) -> Gaussian:
    return Gaussian(x.mean(0, dtype=np.float64), np.cov(x.astype(np.float64), rowvar=False))


def summed(pieces: list[np.ndarray]) -> Moments:
    total = Moments(pieces[0].shape[1])
    for piece in pieces:
        part = Moments(piece.shape[1])
        part.add(piece)
        total.merge(part)
    return total


def test_sums_and_fid_are_the_same_bits_for_any_split_and_order():
    x, reference = features(700, 96, 0), moments_of(features(500, 96, 1))
    order = np.random.default_rng(5).permutation(len(x))
    splits = [[x], np.array_split(x, 7), np.split(x, [1, 3, 300]), np.array_split(x[order], 41)]
    totals = [summed(list(pieces)) for pieces in splits]
    first = totals[0]
    assert first.exact
    for other in totals[1:]:
        assert other.n == first.n
        assert np.array_equal(other.total, first.total)
        assert np.array_equal(other.products, first.products)
        assert frechet(other.gaussian, reference) == frechet(first.gaussian, reference)
    # They are the sums of integers, which Python adds without any rounding.
    whole = [int(v) for v in x[:, 3].astype(np.float64) * 2**16]
    assert first.products[3, 3] * 2**32 == sum(v * v for v in whole)


def test_sums_that_are_too_large_to_be_exact_are_noticed():
    moments = Moments(3)
    moments.add(np.full((32, 3), 255.0, np.float32))
    assert moments.exact
    moments.add(np.full((1, 3), 255.0, np.float32))
    assert not moments.exact


def test_the_grid_moves_a_feature_by_half_a_step_at_most_and_fid_by_nothing_to_see():
    rng = np.random.default_rng(0)
    x, y = (np.abs(rng.normal(0.4, 0.4, (400, 64))) for _ in range(2))
    assert np.abs(on_grid(x) - x).max() <= 2**-17
    assert (on_grid(x).astype(np.float64) * 2**16 % 1 == 0).all()
    exact, rounded = (frechet(moments_of(f(x)), moments_of(f(y))) for f in (lambda v: v, on_grid))
    assert rounded == pytest.approx(exact, rel=1e-5)
    for bad in (np.inf, np.nan, 300.0):
        with pytest.raises(ValueError, match="not finite, or not below 256"):
            on_grid(np.array([bad]))


@pytest.mark.parametrize("n", [60, 300], ids=["fewer samples than features", "more"])
def test_fid_is_clean_fids_on_the_same_features(n):
    from cleanfid.fid import fid_from_feats, frechet_distance

    x, y = features(n, 100, 0), features(n + 50, 100, 1, 0.5)
    a, b = summed([x]).gaussian, summed([y]).gaussian
    assert np.allclose(a.covariance, moments_of(x).covariance, rtol=0, atol=1e-12)
    expected = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet(a, b) == pytest.approx(fid_from_feats(x.astype(float), y.astype(float)), rel=1e-6)
    for paired in (False, True):
        z = y[:n].astype(float)
        other = Sample(n, b if not paired else moments_of(z), features=z, paired=paired)
        value = distances.fid(Sample(n, a, features=x), other).value
        theirs = fid_from_feats(x.astype(float), z) if paired else expected
        assert value == pytest.approx(theirs, rel=1e-6)


def test_fid_of_gaussians_with_diagonal_covariances_has_a_closed_form():
    rng = np.random.default_rng(0)
    s, t, mean = rng.uniform(0.5, 2, 20), rng.uniform(0.5, 2, 20), rng.normal(0, 1, 20)
    a, b = Gaussian(mean, np.diag(s**2)), Gaussian(np.zeros(20), np.diag(t**2))
    assert frechet(a, b) == pytest.approx(mean @ mean + ((s - t) ** 2).sum(), rel=1e-12)


def test_kid_is_clean_fids_and_the_direct_sum(monkeypatch):
    from cleanfid.fid import kernel_distance

    monkeypatch.setattr(distances, "BLOCK", 37)
    x, y = features(150, 40, 0).astype(float), features(150, 40, 1, 0.5).astype(float)
    value = distances.kid(Sample(150, features=x), Sample(150, features=y)).value
    assert value == pytest.approx(kernel_distance(x, y, num_subsets=1, max_subset_size=150), rel=1e-9)
    y = y[:90]
    k = [(a @ b.T / 40 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    direct = [(each.sum() - np.trace(each)) / (n * (n - 1)) for each, n in zip(k, (150, 90), strict=False)]
    value = distances.kid(Sample(150, features=x), Sample(90, features=y)).value
    assert value == pytest.approx(sum(direct) - 2 * k[2].mean(), rel=1e-9)


def test_kid_is_unbiased_and_its_interval_covers():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        x, y = rng.normal(0, 1, (2, 60, 10))
        found.append(distances.kid(Sample(60, features=x), Sample(60, features=y + 0.5)))
    values = np.array([each.value for each in found])
    # E (xᵀy/d + 1)³ of independent normals with means m and m': by the moments of xᵀy.
    many = rng.normal(0, 1, (2, 4000, 10))
    truth = distances.kid(Sample(4000, features=many[0]), Sample(4000, features=many[1] + 0.5)).value
    assert values.mean() == pytest.approx(truth, abs=3 * values.std() / 10 + 0.01)
    covering = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.88 <= covering <= 1


def test_precision_and_recall_of_known_sets(monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 7)
    line = np.arange(20.0)[:, None]
    near, far = line + 0.25, line + 1000
    half = np.concatenate([line[:10], line[:10] + 1000])
    for restored, precision, recall in ((near, 1, 1), (far, 0, 0), (half, 0.5, 0.5)):
        a, b = Sample(20, features=restored), Sample(20, features=line)
        assert distances.precision(a, b).value == pytest.approx(precision, abs=0.16)
        assert distances.recall(a, b).value == pytest.approx(recall, abs=0.16)


def test_precision_and_recall_are_those_of_all_distances():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (80, 5)), rng.normal(0.7, 0.6, (70, 5))

    def share_inside(points: np.ndarray, centres: np.ndarray) -> float:
        own = np.sort(np.linalg.norm(centres[:, None] - centres, axis=-1), axis=1)[:, 3]
        return (np.linalg.norm(points[:, None] - centres, axis=-1) <= own).any(1).mean()

    a, b = Sample(80, features=x), Sample(70, features=y)
    assert distances.precision(a, b).value == share_inside(x, y)
    assert distances.recall(a, b).value == share_inside(y, x)


def test_fid_infinity_has_less_bias():
    size = 12
    rng = np.random.default_rng(0)
    errors = {"fid": [], "fid_infinity": []}
    reference = Sample(None, Gaussian(np.zeros(size), np.eye(size)))
    for _ in range(40):
        parts = []
        for _ in range(distances.PARTS):
            parts.append(Moments(size))
            parts[-1].add(rng.normal(0.1, 1.1, (30, size)))
        total = Moments(size)
        for part in parts:
            total.merge(part)
        found = distances.fid(Sample(total.n, total.gaussian, tuple(parts)), reference)
        truth = size * (0.1**2 + 0.1**2)
        errors["fid"].append(found.value - truth)
        errors["fid_infinity"].append(found.extra["fid_infinity"] - truth)
    biased, unbiased = (np.mean(errors[name]) for name in ("fid", "fid_infinity"))
    assert biased > 0.1
    assert abs(unbiased) < 0.25 * biased


def test_the_bootstrap_interval_of_fid_is_as_wide_as_fids_vary():
    rng = np.random.default_rng(0)
    reference = Sample(None, Gaussian(np.zeros(4), np.eye(4)))
    found = []
    for _ in range(60):
        x = rng.normal(0.5, 1, (100, 4))
        found.append(distances.fid(Sample(100, moments_of(x), features=x), reference))
    spread = np.std([each.value for each in found])
    widths = np.mean([each.high - each.low for each in found]) / (2 * 1.96)
    assert widths == pytest.approx(spread, rel=0.25)


def in_blocks(columns_of, keys, pieces):
    def blocks(columns):
        first = 0
        for count in pieces:
            part = slice(first, first + count)
            yield keys[part], {name: columns_of[name][part] for name in columns}
            first += count

    return blocks


def test_results_do_not_depend_on_how_rows_are_divided_into_units(monkeypatch):
    from pipeline.metrics import features as spaces

    monkeypatch.setitem(spaces.SIZES, "clean", 48)
    n = 200
    keys = [f"image-{i}" for i in range(n)]
    values = {"clean": features(n, 48, 0), "clean_truth": features(n, 48, 1)}
    order = np.random.default_rng(1).permutation(n)
    mixed = {name: column[order] for name, column in values.items()}
    names = ["fid", "kid", "precision", "recall"]
    found = [
        evaluate(names, n, blocks, Reference("the truth", paired=True), 64, [])
        for blocks in (
            in_blocks(values, keys, [n]),
            in_blocks(values, keys, [1, 99, 60, 40]),
            in_blocks(mixed, [keys[i] for i in order], [50] * 4),
        )
    ]
    assert found[0] == found[1] == found[2]
    assert list(found[0]) == names
    assert found[0]["fid"].extra.keys() == {"fid_infinity"}
    assert found[0]["fid"].value == pytest.approx(frechet(*map(moments_of, values.values())), rel=1e-9)
    assert "200 samples, fewer than 2,048" in found[0]["kid"].warnings[0]


def test_of_very_many_samples_some_are_chosen_by_their_keys(monkeypatch):
    from pipeline.metrics import sets

    monkeypatch.setattr(sets, "PAIRS_MOST", 50)
    keys = [f"{i}" for i in range(200)]
    values = {"clean": features(200, 8, 0), "clean_truth": features(200, 8, 1)}
    restored, truth = gather("clean", 200, in_blocks(values, keys, [80, 120]), True)
    chosen = [i for i in sorted(range(200), key=lambda i: keys[i]) if share(keys[i]) < 0.25]
    assert np.array_equal(restored.features, values["clean"][chosen])
    assert np.array_equal(truth.features, values["clean_truth"][chosen])
    assert 30 < len(chosen) < 70
    found = evaluate(["fid", "kid"], 200, in_blocks(values, keys, [200]), Reference("t", paired=True), 8, [])
    assert any("about 50 samples" in warning for warning in found["kid"].warnings)
    assert found["fid"].low is None  # no interval where not all features are at hand


def test_one_restored_image_has_no_set_metrics():
    blocks = in_blocks({"clean": features(1, 8, 0), "clean_truth": features(1, 8, 1)}, ["a"], [1])
    assert evaluate(["fid"], 1, blocks, Reference("t", paired=True), 8, []) == {}


def test_swd_is_zero_of_equal_sets_and_near_the_distance_of_all_patches():
    from pipeline.metrics.features import patches
    from pipeline.metrics.texture import sliced_wasserstein

    rng = np.random.default_rng(0)
    truth = (128 + 40 * rng.standard_normal((40, 32, 40, 3))).clip(0, 255).astype(np.uint8)
    blurred = (64 + truth / 2).astype(np.uint8)
    keys = [str(i) for i in range(40)]
    a, b = (np.stack([patches(*each) for each in zip(keys, x, strict=True)]) for x in (blurred, truth))
    assert distances.swd(Sample(40, features=b), Sample(40, features=b)).value == 0
    tensors = (torch.from_numpy(x).permute(0, 3, 1, 2).double() / 255 for x in (blurred, truth))
    value = distances.swd(Sample(40, features=a), Sample(40, features=b)).value
    assert value == pytest.approx(sliced_wasserstein(*tensors), rel=0.05)
