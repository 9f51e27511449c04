"""Metrics of sets: exact sums, distances against clean-fid's own functions and closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from kintsugi.pipeline.metrics import REGISTRY, distances, sets
from kintsugi.pipeline.metrics.distances import Estimate, FeatureSet
from kintsugi.pipeline.metrics.moments import Gaussian, Moments, frechet, on_grid
from kintsugi.pipeline.metrics.reference import Reference
from kintsugi.pipeline.metrics.sets import evaluate, gather, share


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


def in_parts(x: np.ndarray, count: int = distances.GROUPS) -> tuple[Moments, ...]:
    """The sums of consecutive parts of a set."""
    return tuple(summed([part]) for part in np.array_split(x, count))


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


def test_a_few_rows_at_a_time_are_summed_together(monkeypatch):
    """The d² products are touched once for many rows; a run of small units would take hours otherwise."""
    from scipy.linalg import blas

    calls, dsyrk = [], blas.dsyrk
    monkeypatch.setattr(blas, "dsyrk", lambda *a, **k: calls.append(1) or dsyrk(*a, **k))
    x = features(600, 8, 0)
    assert np.array_equal(summed(np.array_split(x, 300)).products, summed([x]).products)
    calls.clear()
    moments = Moments(8)
    for piece in np.array_split(x, 300):
        moments.add(piece)
    assert np.allclose(moments.gaussian.covariance, moments_of(x).covariance, rtol=0, atol=1e-12)
    assert len(calls) == 2


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


@pytest.mark.parametrize("n", [40, 120], ids=["fewer samples than features", "more"])
def test_fid_is_clean_fids_on_the_same_features(n):
    from cleanfid.fid import fid_from_feats, frechet_distance

    x, y = features(n, 60, 0), features(n + 50, 60, 1, 0.5)
    a, b = summed([x]).gaussian, summed([y]).gaussian
    assert np.allclose(a.covariance, moments_of(x).covariance, rtol=0, atol=1e-12)
    expected = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet(a, b) == pytest.approx(fid_from_feats(x.astype(float), y.astype(float)), rel=1e-6)
    for paired in (False, True):
        z = y[:n].astype(float)
        other = FeatureSet(n, features=z, parts=in_parts(z), paired=True) if paired else FeatureSet(n, b)
        theirs = fid_from_feats(x.astype(float), z) if paired else expected
        for parts in ((), in_parts(x)):
            value = distances.fid(FeatureSet(n, features=x, parts=parts), other).value
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
    value = distances.kid(FeatureSet(150, features=x), FeatureSet(150, features=y)).value
    assert value == pytest.approx(kernel_distance(x, y, num_subsets=1, max_subset_size=150), rel=1e-9)
    y = y[:90]
    k = [(a @ b.T / 40 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    direct = [(each.sum() - np.trace(each)) / (n * (n - 1)) for each, n in zip(k, (150, 90), strict=False)]
    value = distances.kid(FeatureSet(150, features=x), FeatureSet(90, features=y)).value
    assert value == pytest.approx(sum(direct) - 2 * k[2].mean(), rel=1e-9)


@pytest.mark.parametrize("paired", [False, True])
def test_kid_is_unbiased_and_its_interval_covers(paired):
    """Of Gaussians with means m and m', E (xᵀy/d + 1)³ is a polynomial of their moments.

    xᵀy = s of independent N(m, I) and N(m', I): s | x is N(xᵀm', |x|²), so with a = xᵀm' and q = |x|²,
    E s = E a, E s² = E a² + E q, E s³ = E a³ + 3 E a q.
    """
    d, shift, n = 10, 0.5, 60

    def expected(m, other):
        cross, ours, theirs = m @ other, m @ m, other @ other
        s1 = cross
        s2 = cross**2 + theirs + (d + ours)
        s3 = cross**3 + 3 * cross * theirs + 3 * (cross * (d + ours) + 2 * cross)
        return s3 / d**3 + 3 * s2 / d**2 + 3 * s1 / d + 1

    zero, moved = np.zeros(d), np.full(d, shift)
    truth = expected(moved, moved) + expected(zero, zero) - 2 * expected(moved, zero)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        y, other = rng.normal(0, 1, (2, n, d))
        x = (0.9 * y + np.sqrt(1 - 0.9**2) * other if paired else other) + shift
        found.append(distances.kid(FeatureSet(n, features=x), FeatureSet(n, features=y, paired=paired)))
    values = np.array([each.value for each in found])
    assert values.mean() == pytest.approx(truth, abs=3 * values.std() / np.sqrt(len(values)))
    covering = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.88 <= covering <= 1


def test_precision_and_recall_of_known_sets(monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 7)
    line = np.arange(20.0)[:, None]
    near, far = line + 0.25, line + 1000
    half = np.concatenate([line[:10], line[:10] + 1000])
    for restored, precision, recall in ((near, 1, 1), (far, 0, 0), (half, 0.5, 0.5)):
        a, b = FeatureSet(20, features=restored), FeatureSet(20, features=line)
        assert distances.precision(a, b).value == pytest.approx(precision, abs=0.16)
        assert distances.recall(a, b).value == pytest.approx(recall, abs=0.16)


def test_precision_and_recall_are_those_of_all_distances():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (80, 5)), rng.normal(0.7, 0.6, (70, 5))

    def share_inside(points: np.ndarray, centres: np.ndarray) -> float:
        own = np.sort(np.linalg.norm(centres[:, None] - centres, axis=-1), axis=1)[:, 3]
        return (np.linalg.norm(points[:, None] - centres, axis=-1) <= own).any(1).mean()

    a, b = FeatureSet(80, features=x), FeatureSet(70, features=y)
    for measure, expected in (
        (distances.precision, share_inside(x[:70], y)),
        (distances.recall, share_inside(y, x[:70])),
    ):
        found = measure(a, b)
        assert (found.value, found.n) == (expected, 70), "of equally many of both"


@pytest.mark.parametrize("paired", [False, True])
def test_fid_infinity_has_less_bias(paired):
    """Restorations are 1.1 y + 0.1 + noise, y normal: the Fréchet distance has a closed form."""
    size, n, noise = 12, 600, 0.3
    rng = np.random.default_rng(0)
    gaussian = Gaussian(np.zeros(size), np.eye(size))
    truth = size * (0.1**2 + (np.hypot(1.1, noise) - 1) ** 2)
    values, extrapolated = [], []
    for _ in range(40):
        y, other = rng.normal(0, 1, (2, n, size))
        x = 1.1 * y + 0.1 + noise * other
        reference = FeatureSet(n, parts=in_parts(y), paired=True) if paired else FeatureSet(None, gaussian)
        found = distances.fid(FeatureSet(n, parts=in_parts(x)), reference)
        values.append(found.value)
        extrapolated.append(found.extra["infinity"])
    biased, unbiased = np.mean(values) - truth, np.mean(extrapolated) - truth
    assert biased > 0.005
    assert abs(unbiased) < 0.25 * biased + 2 * np.std(extrapolated) / np.sqrt(40)


@pytest.mark.parametrize(
    ("per_feature", "apart", "given"), [(1.5, 0.05, 0), (8, 0, 0), (4, 0.15, 1), (8, 0.15, 1)]
)
def test_fid_infinity_is_given_only_where_it_is_near_the_truth(per_feature, apart, given):
    """Half-normal features: of 1.5 samples each it would be far below zero, of equal sets as often as not."""
    size = 24
    rng = np.random.default_rng(3)
    mixing = 0.15 * rng.normal(size=(size, size))

    def drawn(n, shift):
        return on_grid(np.abs(rng.normal(size=(n, size)) @ mixing * (1 + shift)) + 0.4 + shift)

    truth, reference = (moments_of(drawn(100_000, shift)) for shift in (apart, 0.0))
    exact = frechet(truth, reference)
    n = int(per_feature * size)
    found = []
    for _ in range(30):
        x = FeatureSet(n, parts=in_parts(drawn(n, apart)))
        estimate = distances.fid(x, FeatureSet(None, gaussian=reference))
        assert estimate.low >= 0
        assert bool(estimate.extra) != bool(estimate.warnings)
        found += estimate.extra.values()
    assert (len(found) > 20) == bool(given)
    assert all(value > 0 for value in found)
    if given:
        assert np.mean(found) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("n", [40, 90], ids=["from products", "from parts of unequal size"])
@pytest.mark.parametrize("paired", [False, True])
def test_the_interval_of_fid_covers_what_fid_is_at_this_many_samples(n, paired):
    rng = np.random.default_rng(0)
    gaussian = Gaussian(np.zeros(6), np.eye(6))
    ends = np.cumsum(rng.multinomial(n, np.full(distances.GROUPS, 1 / distances.GROUPS)))[:-1]
    found = []
    for _ in range(100):
        y, other = rng.normal(0, 1, (2, n, 6))
        x = 0.8 * y + 0.3 * other + 0.2
        px, py = (tuple(summed([p]) for p in np.split(z, ends)) if n > 40 else () for z in (x, y))
        reference = FeatureSet(n, features=y, parts=py, paired=True) if paired else FeatureSet(None, gaussian)
        found.append(distances.fid(FeatureSet(n, features=x, parts=px), reference))
    mean = np.mean([each.value for each in found])
    assert np.mean([each.low <= mean <= each.high for each in found]) >= 0.89
    widths = np.mean([each.high - each.low for each in found]) / (2 * 2.365)  # Student's, of 8 groups
    assert widths == pytest.approx(np.std([each.value for each in found]), rel=0.3)


def in_blocks(columns_of, keys, pieces):
    def blocks(columns):
        first = 0
        for count in pieces:
            part = slice(first, first + count)
            yield keys[part], {name: columns_of[name][part] for name in columns}
            first += count

    return blocks


def test_results_do_not_depend_on_how_rows_are_divided_into_units(monkeypatch):
    from kintsugi.pipeline.metrics import features as spaces

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
    assert "not extrapolated to infinitely many samples: the bias" in found[0]["fid"].warnings[-1]
    assert found[0]["fid"].low < found[0]["fid"].value < found[0]["fid"].high
    assert found[0]["fid"].value == pytest.approx(frechet(*map(moments_of, values.values())), rel=1e-9)
    assert "200 samples, fewer than 2,048" in found[0]["kid"].warnings[0]


def test_of_very_many_samples_those_with_the_smallest_hashes_are_kept(monkeypatch):
    monkeypatch.setattr(sets, "PAIRS_MOST", 50)
    keys = [f"{i}" for i in range(200)]
    values = {"clean": features(200, 8, 0), "clean_truth": features(200, 8, 1)}
    chosen = sorted(range(200), key=lambda i: share(keys[i]))[:50]
    for pieces in ([200], [80, 120], [1] * 200):
        restored, truth = gather("clean", 200, in_blocks(values, keys, pieces), True)
        assert np.array_equal(restored.features, values["clean"][chosen])
        assert np.array_equal(truth.features, values["clean_truth"][chosen])
    found = evaluate(["fid", "kid"], 200, in_blocks(values, keys, [200]), Reference("t", paired=True), 8, [])
    assert (found["fid"].n, found["kid"].n) == (200, 50)
    assert "of 50 of the 200 samples, chosen by the hash of their keys" in found["kid"].warnings


def test_too_few_images_have_no_number_and_a_reason():
    values = {"clean": features(3, 8, 0), "clean_truth": features(3, 8, 1)}
    names, reference = ["fid", "kid", "precision", "recall"], Reference("t", paired=True)
    for count, absent, reason in (
        (0, names, "needs at least 2 restored images, there are 0"),
        (1, names, "needs at least 2 restored images, there are 1"),
        (3, names[2:], "needs at least 4 samples of each set, there are 3"),
    ):
        found = evaluate(names, count, in_blocks(values, list("abc"), [count]), reference, 8, [])
        assert [name for name in names if found[name].value is None] == absent
        assert all(reason in found[name].warnings[-1] for name in absent)


def test_rounded_sums_of_the_truth_and_images_without_features_are_warned_of():
    large = np.full((800, 8), 255, np.float32)  # of which 33 are too many for exact sums
    large[::3] -= 100
    values = {"clean": features(800, 8, 0), "clean_truth": large}
    blocks = in_blocks(values, [f"{i}" for i in range(800)], [800])
    found = evaluate(["fid"], 803, blocks, Reference("t", paired=True), 8, [])["fid"]
    assert found.n == 800
    assert "3 of 803 restored images have no features, and are left out" in found.warnings
    assert any("sums of features were rounded" in warning for warning in found.warnings)


def test_a_number_that_fails_is_absent_and_the_others_are_there(monkeypatch):
    values = {"clean": features(20, 8, 0), "clean_truth": features(20, 8, 1)}
    monkeypatch.setitem(REGISTRY.builtin, "kid", replace(REGISTRY["kid"], compare=lambda a, b: 1 / 0))
    monkeypatch.setitem(
        REGISTRY.builtin, "recall", replace(REGISTRY["recall"], compare=lambda a, b: Estimate(np.inf, 20))
    )
    blocks = in_blocks(values, [f"{i}" for i in range(20)], [20])
    found = evaluate(["fid", "kid", "recall"], 20, blocks, Reference("t", paired=True), 8, [])
    assert found["fid"].value > 0
    assert found["kid"].value is found["recall"].value is None
    assert found["kid"].warnings[-1] == "not computed: ZeroDivisionError: division by zero"
    assert found["recall"].warnings[-1] == "not computed: the number is not finite"


def test_the_interval_of_swd_covers_what_it_is_at_this_many_samples():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):  # images differ in contrast, and in how much of it is lost
        textures = rng.normal(size=(24, 588)) * rng.lognormal(0, 0.6, (24, 1))
        sets = textures * rng.lognormal(-0.3, 0.15, (24, 1)), textures + rng.normal(0, 0.2, (24, 588))
        found.append(distances.swd(*(FeatureSet(24, features=each) for each in sets)))
    mean = np.mean([each.value for each in found])
    assert np.mean([each.low <= mean <= each.high for each in found]) >= 0.85
    widths = np.mean([each.high - each.low for each in found]) / (2 * 2.365)
    assert widths == pytest.approx(np.std([each.value for each in found]), rel=0.3)
    few = distances.swd(*(FeatureSet(15, features=each[:15]) for each in sets))
    assert few.value > 0
    assert few.low is few.high is None


def test_swd_of_a_flat_truth_is_finite():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1 / 255, (5, 4704)).astype(np.float16), np.zeros((5, 4704), np.float16)
    # One level of deviation is the unit; the mean of |N(0, 1)| is 0.798.
    assert distances.swd(FeatureSet(5, features=a), FeatureSet(5, features=b)).value == pytest.approx(
        0.798, rel=0.02
    )
