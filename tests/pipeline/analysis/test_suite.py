"""A suite: numbers against independent computations, what takes no part, files, and the page in a browser."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from kit.browser import assert_self_contained
from kit.runs import made_up
from kit.shards import SIZE, encode, picture, write_tar

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis import suite_pictures, suite_task
from kintsugi.pipeline.analysis.figures import pareto
from kintsugi.pipeline.analysis.intervals import mean_interval, paired_p_value
from kintsugi.pipeline.analysis.measures import badness_of
from kintsugi.pipeline.analysis.ranks import fronts, ranks
from kintsugi.pipeline.analysis.suite import Entry, Wanted, summarize
from kintsugi.pipeline.analysis.suite_page import write_suite
from kintsugi.pipeline.analysis.suite_plane import plane
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics.sets import SetResult

IMAGES = 12
WANTED = Wanted("Three <methods>")
HOSTILE = '<img src=x onerror="alert(1)">|_$'


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a run of 12 images with these columns, of which one may be any picture."""
    folder = tmp_path_factory.mktemp("suite")
    shard = write_tar(folder / "set.tar", [(f"image_{i:02d}.png", encode(picture(i))) for i in range(IMAGES)])

    def run(name, columns, *, failed=(), units=None, metrics=("psnr", "spectrum_ratio"), **fields):
        job = {
            "data": {"shards": str(shard), "size": SIZE},
            "degradation": {"operator": {"name": "average_pool", "factor": 4}, "sigma": 0.02},
            "sampler": {"name": "conjugate", "steps": 2, "w": 15},
            "metrics": list(metrics),
            "compute": {"unit_size": 8},
            "output": str(folder / name),
        }
        values = {name: np.asarray(of).tolist() for name, of in columns.items()}
        return made_up(Job.model_validate(job | fields), values, failed, units)

    return run


def columns(psnr, ratio, evaluations=(2, 0), seconds=0.1, **others):
    forwards, vjps = ([count] * IMAGES for count in evaluations)
    found = {"psnr": psnr, "spectrum_ratio": ratio, "forwards": forwards, "vjps": vjps}
    return found | {"seconds": [seconds] * IMAGES} | others


@pytest.fixture(scope="module")
def values():
    """PSNR and ratio of each image, by run."""
    random = np.random.default_rng(0)
    easy = random.normal(25, 3, IMAGES)
    names = ("good", "seed 0", "seed 1", "cheap", "alone")
    return {
        name: (easy - i + random.normal(0, 1.5, IMAGES), random.lognormal(-0.2 * i, 0.2, IMAGES))
        for i, name in enumerate(names)
    }


@pytest.fixture(scope="module")
def entries(make, values):
    """A task of three methods, of which one has two seeds and one lost an image; and one of one method."""
    shown = {"restored": [encode(picture(i)) for i in range(IMAGES)]}
    given = dict.fromkeys(("truth", "measurement"), shown["restored"])
    easy = {"psnr_pinv": np.full(IMAGES, 20.0), "psnr_lmmse": np.full(IMAGES, 24.0)}
    good = make("good", columns(*values["good"], (4, 4), 0.9, **easy, **shown, **given))
    seeds = [
        make(f"seed{seed}", columns(*values[f"seed {seed}"], (4, 0), 0.4, **easy), seed=seed)
        for seed in (0, 1)
    ]
    cheap = make("cheap", columns(*values["cheap"], (2, 0), 0.2, **easy, **shown), failed=(5,))
    alone = make("alone", columns(*values["alone"]))
    methods = (("good", good), *(("seeds", run) for run in seeds), (HOSTILE, cheap))
    return [*(Entry(HOSTILE, name, run) for name, run in methods), Entry("other", "good", alone)]


@pytest.fixture(scope="module")
def suite(entries):
    return summarize(entries, WANTED)


def test_ranks_of_equal_ones_are_the_mean_of_their_places():
    assert ranks([3.0, 1.0, None, 1.0, 2.0]) == [4, 1.5, None, 1.5, 3]
    assert ranks([]) == []
    assert ranks([math.inf, 0.0]) == [2, 1]


def test_the_front_at_a_cost_is_that_of_what_costs_no_more():
    random = np.random.default_rng(0)
    costs, first, second = random.integers(0, 6, (3, 80)).astype(float)
    found = fronts(costs.tolist(), first.tolist(), second.tolist())
    for i, on in enumerate(found):
        afforded = np.flatnonzero(costs <= costs[i])
        assert on == (i in afforded[pareto(first[afforded], second[afforded])])
    assert any(found)
    assert not all(found)


def test_what_has_no_cost_or_quality_is_on_no_front_and_keeps_none_from_it():
    assert fronts([1, None, 1, 2], [1, 0, None, 2], [1, 0, 0, 2]) == [True, None, None, False]


def test_numbers_are_those_of_the_images_that_all_restored(suite, values):
    task, other = suite.tasks
    kept = np.arange(IMAGES) != 5
    psnr = {
        "good": values["good"][0][kept],
        "seeds": (values["seed 0"][0] + values["seed 1"][0])[kept] / 2,
        HOSTILE: values["cheap"][0][kept],
    }
    assert (task.images, other.images) == (IMAGES - 1, IMAGES)
    found = {one.numbers.label: one for one in task.standings}
    for label, of in psnr.items():
        mean, low, high = found[label].numbers.estimate("psnr")
        assert mean == pytest.approx(of.mean(), rel=1e-12)
        assert (low, high) == pytest.approx(mean_interval(of), rel=1e-9)
    order = sorted(psnr, key=lambda label: -psnr[label].mean())
    assert [one.numbers.label for one in task.standings] == order
    assert [one.distortion for one in task.standings] == [1, 2, 3]
    assert (found["seeds"].runs, found["seeds"].numbers.cost.evaluations) == (2, 4)
    assert found["seeds"].numbers.cost.seconds == pytest.approx(0.4)
    assert [run.estimate("psnr")[0] for run in task.baselines] == pytest.approx([20, 24])


def test_p_values_are_corrected_over_all_tasks_and_measures(make, values):
    runs = {name: make(f"holm-{name}", columns(*values[name])) for name in ("good", "cheap", "alone")}
    tasks = {"a": {"x": "good", "y": "cheap", "z": "alone"}, "b": {"x": "cheap", "y": "good", "z": "alone"}}
    entries = [Entry(task, name, runs[run]) for task, of in tasks.items() for name, run in of.items()]
    found = summarize(entries, Wanted("", against="x"))
    assert found.tests == 2 * 2 * 2
    for task in found.tasks:
        of = tasks[task.name]
        for pair in task.paired:
            column = ("psnr", "spectrum_ratio").index(pair.measure)
            differences = values[of[pair.other]][column] - values[of["x"]][column]
            assert pair.difference == pytest.approx(differences.mean())
            assert pair.p == paired_p_value(differences)
    pairs = [pair for task in found.tasks for pair in task.paired]
    # By Holm's own words: the smallest p times their number, the next times one less, none below one before.
    ordered = sorted(pairs, key=lambda pair: pair.p)
    least = 0.0
    for place, pair in enumerate(ordered):
        least = max(least, min(1.0, pair.p * (len(ordered) - place)))
        assert pair.corrected == pytest.approx(least)
    only = summarize(entries, Wanted("", family=("psnr",), against="x"))
    assert only.tests == 4


def test_draws_are_enough_for_the_family():
    differences = np.random.default_rng(1).normal(3, 1, 50)
    assert paired_p_value(differences) == 1e-4
    assert paired_p_value(differences, 99_999) == 1e-5


def test_against_is_the_best_of_each_task_or_the_one_that_is_named(entries, suite):
    assert suite.tasks[0].against == suite.tasks[0].standings[0].numbers.label
    named = summarize(entries, replace(WANTED, against="seeds"))
    assert {pair.baseline for pair in named.tasks[0].paired} == {"seeds"}
    assert named.tasks[1].paired == []
    assert "nothing is compared with seeds, which is not there" in named.tasks[1].notes
    with pytest.raises(JobError, match="against: no method 'x'; choose from good, seeds"):
        summarize(entries, replace(WANTED, against="x"))


def test_methods_that_miss_tasks_stand_below(suite):
    assert (suite.overall[0].method, suite.overall[0].tasks) == ("good", 2)
    assert [one.tasks for one in suite.overall] == [2, 1, 1]
    good = suite.overall[0]
    of_good = [one for task in suite.tasks for one in task.standings if one.numbers.label == "good"]
    assert good.distortion == np.mean([one.distortion for one in of_good])
    assert good.by_evaluations == sum(one.by_evaluations for one in of_good)
    (alone,) = suite.tasks[1].standings
    assert (alone.distortion, alone.perception, alone.by_evaluations, alone.by_seconds) == (1, 1, True, True)
    assert suite.tasks[1].paired == []


def test_infinite_values_count_and_undefined_ones_do_not(make):
    psnr = np.full(IMAGES, 30.0)
    psnr[0] = math.inf
    ratio = np.ones(IMAGES)
    ratio[1] = math.nan
    runs = [make(f"odd{i}", columns(psnr + i, ratio), seed=i) for i in range(2)]
    one = summarize([Entry("t", "odd", runs[0])], WANTED).tasks[0]
    assert one.standings[0].numbers.estimate("psnr")[0] == pytest.approx((100 + 30 * 11) / 12)
    assert one.standings[0].numbers.estimate("spectrum_ratio")[0] == 1
    assert "odd: 1 values of psnr are infinite" in one.notes
    both = summarize([Entry("t", "odd", run) for run in runs], WANTED).tasks[0]
    assert both.standings[0].numbers.estimate("psnr")[0] == pytest.approx((100 + 30.5 * 11) / 12)
    assert "odd: 2 values of psnr are infinite" in both.notes
    equal = summarize([Entry("t", "a", runs[0]), Entry("t", "b", runs[0])], WANTED).tasks[0]
    assert [one.distortion for one in equal.standings] == [1.5, 1.5]
    assert [one.by_evaluations for one in equal.standings] == [True, True]
    assert [pair.p for pair in equal.paired] == [1, 1]


def test_what_takes_no_part_is_named(make, values, tmp_path):
    whole = make("whole", columns(*values["good"]))
    begun = make("begun", columns(*values["good"]), units=1)
    lost = make("lost", columns(*values["good"]), failed=range(IMAGES))
    damaged = make("damaged", columns(*values["good"]))
    file = next((damaged.folder / "data").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    named = (("whole", whole), ("begun", begun), ("lost", lost), ("damaged", damaged))
    entries = [
        *(Entry("t", name, run) for name, run in named),
        Entry("t", "none", None),
        Entry("u", "none", None),
    ]
    found = summarize(entries, WANTED)
    assert [one.numbers.label for one in found.tasks[0].standings] == ["whole"]
    reasons = {(one.task, one.method): one.left_out for one in found.runs}
    assert reasons["t", "whole"] == ""
    assert reasons["t", "begun"] == "unfinished: 8 of 12 images are done"
    assert reasons["t", "lost"] == "none of its 12 images is restored"
    assert "is not the file that was committed" in reasons["t", "damaged"]
    assert reasons["u", "none"] == "not begun"
    assert found.tasks[1].notes == ["no run is finished"]
    page = write_suite(found, entries, tmp_path / "page").read_text()
    for text in (page, (tmp_path / "page" / "suite.md").read_text()):
        assert all(reason in text for reason in ("8 of 12 images are done", "not begun", "none of its 12"))
    nothing = summarize([Entry("t", "begun", begun)], WANTED)
    assert (nothing.overall, nothing.perception) == ([], None)
    assert (
        "begun: unfinished" in write_suite(nothing, [Entry("t", "begun", begun)], tmp_path / "p").read_text()
    )


def test_measures_that_are_asked_for_must_be_there(entries):
    with pytest.raises(JobError, match="distortion: no run has ssim; choose from psnr"):
        summarize(entries, replace(WANTED, distortion="ssim"))
    with pytest.raises(JobError, match=r"family\.1: no run has lpips"):
        summarize(entries, replace(WANTED, family=("psnr", "lpips")))


def test_other_degradations_and_seeds_are_said(make, values):
    a, b = (
        make(f"other{factor}", columns(*values["good"]), seed=factor, degradation=degradation)
        for factor, degradation in (
            (n, {"operator": {"name": "average_pool", "factor": n}, "sigma": 0.02}) for n in (2, 4)
        )
    )
    notes = summarize([Entry("t", "a", a), Entry("t", "b", b)], WANTED).tasks[0].notes
    assert "b: degradation.operator.factor is 4, of a 2: they did not restore the same measurements" in notes
    assert "not all have the same seeds, and so the same noise: a 2, b 4" in notes


def test_a_metric_of_the_set_ranks_and_is_not_tested(make, values, monkeypatch, tmp_path):
    runs = [make(f"set{i}", columns(*values["good"]), metrics=("psnr", "swd")) for i in range(2)]
    measured = {runs[i].folder: SetResult(0.2 + i / 2, None, None, IMAGES, (), "truth", {}) for i in range(2)}
    monkeypatch.setattr(suite_task, "set_metrics", lambda run: {"swd": measured[run.folder]})
    entries = [Entry("t", f"m{i}", run) for i, run in enumerate(runs)]
    found = summarize(entries, replace(WANTED, perception="swd"))
    assert {one.numbers.label: one.perception for one in found.tasks[0].standings} == {"m0": 1, "m1": 2}
    assert found.family == ("psnr",)
    assert found.tests == 1
    page = write_suite(found, entries, tmp_path / "page").read_text()
    assert "sliced Wasserstein is of the whole set: nothing is paired, and there is no test" in page
    with pytest.raises(
        JobError, match=r"family\.0: sliced Wasserstein ↓ is of the set, and no test is paired"
    ):
        summarize(entries, replace(WANTED, family=("swd",)))
    assert badness_of("precision", 0.7) < badness_of("precision", 0.2)
    assert badness_of("spectrum_ratio", -1.0) is None, "a ratio of somebody else's, which would have a rank"


@pytest.fixture(scope="module")
def page(suite, entries, tmp_path_factory):
    return write_suite(suite, entries, tmp_path_factory.mktemp("page"))


def test_files_are_escaped_and_self_contained(page, suite, entries):
    html = page.read_text()
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html
    assert_self_contained(html)
    assert "<methods>" not in html + page.with_name("suite.md").read_text()
    assert r"\textless{}img" in page.with_name("suite.tex").read_text()
    stored = json.loads(page.with_name("suite.json").read_text())
    for entry, run in zip(entries, stored["runs"], strict=True):
        assert run["config_hash"] == entry.run.config_hash
        assert run["prior_sha256"] == entry.run.prior.sha256
        assert Job.model_validate(run["job"]) == entry.run.job
        assert entry.run.config_hash in html
        assert entry.run.config_hash in page.with_name("suite.tex").read_text()
    rows = list(csv.DictReader(page.with_name("suite.csv").open()))
    seeds = next(row for row in rows if row["method"] == "seeds")
    assert seeds["config_hash"].split() == [entries[i].run.config_hash for i in (1, 2)]
    standing = next(one for one in suite.tasks[0].standings if one.numbers.label == "seeds")
    assert float(seeds["psnr"]) == standing.numbers.estimate("psnr")[0]
    pair = next(pair for pair in suite.tasks[0].paired if pair.other == "seeds" and pair.measure == "psnr")
    assert float(seeds["psnr_p_holm"]) == pair.corrected


def test_pictures_are_those_that_are_kept_within_the_budget(suite, entries, monkeypatch):
    found, form = suite_pictures.encoded(suite, entries)
    assert form.startswith("lossless")
    key = next(iter(suite.tasks[0].shown))
    labels = [one.label for one in found if one.key == key]
    assert {"truth", "measurement", "good", HOSTILE} <= set(labels)
    assert "seeds" not in labels, "it kept none"
    assert {one.key for one in found} == set(suite.tasks[0].shown)
    assert "image_05" not in suite.tasks[0].shown, "which one of them did not restore"
    monkeypatch.setattr(suite_pictures, "BUDGET", sum(len(one.content) for one in found) // 2)
    smaller, form = suite_pictures.encoded(suite, entries)
    assert form.startswith("WebP of quality")
    assert [(one.key, one.label) for one in smaller] == [(one.key, one.label) for one in found]
    assert sum(len(one.content) for one in smaller) <= suite_pictures.BUDGET
    monkeypatch.setattr(suite_pictures, "PICTURES", 1)
    assert len({one.key for one in suite_pictures.encoded(suite, entries)[0]}) == 2


def test_the_plane_keeps_order_and_room(suite):
    shapes = plane(suite.tasks[0], "psnr", "spectrum_ratio")
    numbers = {one.numbers.label: one.numbers for one in suite.tasks[0].standings}
    by_x = sorted(shapes.points, key=lambda point: point.x)
    assert [point.label for point in by_x] == sorted(numbers, key=lambda of: numbers[of].estimate("psnr")[0])
    by_y = sorted(shapes.points, key=lambda point: -point.y)
    ratio = {label: of.estimate("spectrum_ratio")[0] for label, of in numbers.items()}
    assert [point.label for point in by_y] == sorted(ratio, key=ratio.__getitem__)
    for point in shapes.points:
        assert 0 <= point.across[0] <= point.x <= point.across[1] <= 360
        assert 0 <= point.up[1] <= point.y <= point.up[0] <= 240
    assert 2 <= len(shapes.across) <= 6
    assert plane(suite.tasks[1], "psnr", "spectrum_ratio").points, "a single point has room, too"
    assert plane(suite.tasks[1], "psnr", "lpips") is None


def test_the_page_in_a_browser(page, browser):
    browser.open(page, width=390)
    assert browser.console == []
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    spot = "getComputedStyle(document.querySelector('.spot img')).transform"
    before = browser.evaluate(spot)
    browser.evaluate(
        "(() => { const zoom = document.querySelector('.pictures select'); zoom.value = '4';"
        " zoom.dispatchEvent(new Event('change')); document.querySelector('.same').focus(); })()"
    )
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        for kind in ("keyDown", "keyUp"):
            browser("Input.dispatchKeyEvent", type=kind, key=key, code=key)
    assert (before, browser.evaluate(spot)) == ("matrix(1, 0, 0, 1, 0, 0)", "matrix(4, 0, 0, 4, 0, 0)")
    style = "document.querySelector('.same').style.getPropertyValue"
    assert [browser.evaluate(f"{style}('--{axis}')") for axis in "xy"] == ["60%", "55%"]
    others = "[...document.querySelectorAll('.same')].slice(1).some((row) => row.style.length)"
    assert not browser.evaluate(others), "other images stay where they are"
    assert browser.evaluate("document.activeElement.className") == "same"
