"""Sweeps: images for tuning that are not evaluated, halving, resumption, and what is called best."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from kit.jobs import kintsugi
from kit.shards import encode, picture, write_tar
from PIL import Image

from kintsugi.errors import JobError
from kintsugi.jobs.files import load_job
from kintsugi.jobs.trials import combinations, parse_vary
from kintsugi.pipeline.analysis.figures import draw_trials
from kintsugi.pipeline.analysis.rows import committed
from kintsugi.pipeline.analysis.sweep import (
    Measured,
    Outcome,
    Result,
    Trial,
    climb,
    difference,
    result_of,
)
from kintsugi.pipeline.analysis.sweep_settings import Range, Rung, grid, name_of, random_settings, rungs
from kintsugi.pipeline.analysis.sweep_tables import trials_csv
from kintsugi.pipeline.data.plan import belongs, make_plan
from kintsugi.pipeline.data.units import read_members, read_units
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.worker import Worker
from kintsugi.pipeline.job import config_hash
from kintsugi.pipeline.parts import Data, Subset

SIDE, COUNT = 16, 48
KEYS = [f"{i:03d}" for i in range(COUNT)]


# ---- the parts of the data


def keys_of(plan: Path) -> list[str]:
    return [key for unit in read_units(plan) for key in read_members(plan, unit).keys]


def write_shards(folder: Path, keys: list[str], count: int, content: bytes = b"") -> list[Path]:
    return [
        write_tar(folder / f"{i}.tar", [(f"{key}.png", content) for key in keys[i::count]])
        for i in range(count)
    ]


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_parts_are_disjoint_and_the_same_for_every_layout(tmp_path, fraction):
    rng = np.random.default_rng(0)
    keys = [f"image_{i}" for i in range(300)]
    found = {}
    for layout, (count, unit_size) in enumerate([(1, 64), (3, 7), (40, 1000)]):
        shards = write_shards(tmp_path / str(layout), list(rng.permutation(keys)), count)
        for part in ("tune", "evaluate"):
            target = tmp_path / f"{layout}-{part}"
            data = Data(shards="unused", subset={"part": part, "fraction": fraction})
            summary = make_plan(data, shards, unit_size, target)
            found[layout, part] = keys_of(target)
            assert summary.samples == len(found[layout, part])
            assert summary.empty == [], "a shard without a sample of the part is not empty"
        assert sorted(found[layout, "tune"] + found[layout, "evaluate"]) == sorted(keys)
        assert {*found[layout, "tune"]} == {*found[0, "tune"]}
    assert found[0, "tune"]


def test_the_share_for_tuning_is_the_fraction_and_grows_with_it():
    keys = [f"ILSVRC2012_val_{i:08d}" for i in range(10_000)]
    parts = [{key for key in keys if belongs(key, Subset(part="tune", fraction=f))} for f in (0.05, 0.1, 0.3)]
    assert parts[0] < parts[1] < parts[2]
    for part, fraction in zip(parts, (0.05, 0.1, 0.3), strict=True):
        assert abs(len(part) / 10_000 - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / 10_000)


def test_which_keys_are_for_tuning_never_changes():
    subset = Subset(part="tune", fraction=0.1)
    chosen = [i for i in range(100) if belongs(f"{i:05d}", subset)]
    assert chosen == [6, 9, 24, 31, 32, 33, 47, 49, 70, 85, 90, 92]


@pytest.mark.parametrize("limit", [1, 4, 1000])
def test_a_limit_counts_within_the_part(tmp_path, limit):
    shards = write_shards(tmp_path, KEYS, 2)
    data = {"shards": "unused", "subset": {"part": "tune", "fraction": 0.5}}
    make_plan(Data(**data), shards, 5, tmp_path / "all")
    make_plan(Data(**data, limit=limit), shards, 5, tmp_path / "some")
    assert keys_of(tmp_path / "some") == keys_of(tmp_path / "all")[:limit]


def test_a_part_without_samples_is_refused(tmp_path):
    shards = write_shards(tmp_path, ["a"], 1)
    part = "evaluate" if belongs("a", Subset(part="tune")) else "tune"
    with pytest.raises(JobError, match=rf"no samples of data\.subset\.part={part}"):
        make_plan(Data(shards="unused", subset={"part": part}), shards, 5, tmp_path / "plan")


# ---- settings


def test_grid_and_names():
    settings = grid({"sampler.w": [5, 10], "sampler.init": ["pinv", "lmmse"]})
    assert settings[1] == {"sampler.w": 5, "sampler.init": "lmmse"}
    assert len({name_of(it) for it in settings}) == 4
    assert name_of(settings[1]).startswith("w=5_init=lmmse-")
    long = {"sampler": {"name": "conjugate", "steps": 5, "w": 15, "note": "../" * 100}}
    assert "/" not in name_of(long)
    assert len(name_of(long)) < 80


def test_random_settings_are_a_function_of_the_seed_alone():
    vary = {"a": Range(-0.2, 0.2), "b": Range(1, 100, log=True), "c": ["x", "y", "z"]}
    many = random_settings(vary, 500, seed=3)
    assert many[:20] == random_settings(vary, 20, seed=3)
    assert many != random_settings(vary, 500, seed=4)
    assert all(-0.2 <= it["a"] <= 0.2 and 1 <= it["b"] <= 100 for it in many)
    assert Counter(it["c"] for it in many).keys() == {"x", "y", "z"}
    assert abs(np.mean([it["b"] < 10 for it in many]) - 0.5) < 0.1, "even in the logarithm"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sampler.w=5,10.5", ("sampler.w", [5, 10.5])),
        ("sampler.init=pinv, lmmse", ("sampler.init", ["pinv", "lmmse"])),
        (
            "sampler={name: ddnm},{name: pigdm, w: 2}",
            ("sampler", [{"name": "ddnm"}, {"name": "pigdm", "w": 2}]),
        ),
        ("sampler.lam=-.2..0.2", ("sampler.lam", Range(-0.2, 0.2))),
        ("sampler.w=1..3e1:log", ("sampler.w", Range(1, 30, log=True))),
    ],
)
def test_values_of_a_field(text, expected):
    assert parse_vary(text) == expected


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["sampler.w"], "expected key.path=value"),
        (["sampler.w="], "expected key.path=value"),
        (["sampler.w=[5"], "not valid YAML"),
        (["sampler.w=5..2"], "a range goes up"),
        (["sampler.w=0..2:log"], "from above 0"),
        (["sampler.w=1..2"], "add --random N"),
        (["sampler.w=1,2", "sampler.w=3"], "is there twice"),
    ],
)
def test_a_bad_list_of_values_is_named(vary, message):
    with pytest.raises(JobError, match=message):
        combinations(vary, None, 0)


# ---- halving


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((9, 64, 2, 8), [(9, 8), (5, 16), (3, 32), (2, 64)]),
        ((9, 64, 2, 16), [(9, 16), (5, 32), (3, 64)]),
        ((9, 50, 2, 8), [(9, 8), (5, 16), (3, 32), (2, 50)]),
        ((20, 64, 4, 8), [(20, 16), (5, 64)]),
        ((4, 64, 2, 8), [(4, 32), (2, 64)]),
        ((9, 10, 2, 8), [(9, 10)]),
        ((9, 17, 2, 16), [(9, 16), (5, 17)]),
        ((9, 64, 1, 8), [(9, 64)]),
        ((1, 64, 2, 8), [(1, 64)]),
        ((2, 64, 2, 8), [(2, 64)]),
    ],
)
def test_rungs(arguments, expected):
    assert rungs(*arguments) == [Rung(*rung) for rung in expected]


# ---- which is best

PSNR, LPIPS, SPECTRUM = Measured("psnr"), Measured("lpips"), Measured("spectrum_ratio")


def result(
    name: float, values, by=PSNR, failed: int = 0, evaluations: int = 15, then: float = 1.0, **more
) -> Result:
    trial = Trial({"sampler.w": name, **more}, None)
    by_key = {f"{i}": v for i, v in enumerate(values)}
    return Result(trial, by, by_key, failed, then, evaluations, 0.1, {})


def outcome(*results: Result, within: float = 0.0, last: int | None = None) -> Outcome:
    order = sorted(range(len(results)), key=lambda i: results[i].rank)
    return Outcome(results[0].by, list(results), order[:last], SPECTRUM, within)


def chosen(*results: Result, **more) -> float:
    return outcome(*results, **more).chosen.trial.settings["sampler.w"]


RNG = np.random.default_rng(0)
IMAGES = RNG.normal(25, 5, 40)  # images differ far more than trials do


def test_trials_are_compared_in_pairs():
    better, worse = result(1, IMAGES + 0.3), result(2, IMAGES + RNG.normal(0, 0.1, 40))
    both = outcome(worse, better)
    assert both.best is better
    assert both.alike == {1}
    low, high = better.interval
    assert low < worse.mean < high, "unpaired, they cannot be told apart"
    differs = both.differences[0]
    assert differs.low < -0.3 < differs.high < 0
    # Dropped after ten images: compared on these.
    early = difference(result(3, IMAGES[:10]), better)
    assert early.mean == pytest.approx(-0.3)


def test_of_trials_that_are_alike_the_cheapest_is_chosen_then_the_second_metric():
    noise = RNG.normal(0, 0.5, 40)
    best, alike, cheap = (
        result(1, IMAGES + 0.01),
        result(2, IMAGES + noise - noise.mean()),
        result(3, IMAGES + noise - noise.mean() - 0.01, evaluations=5),
    )
    worse = result(4, IMAGES - 1, evaluations=1)
    assert chosen(worse, alike, best) == 1
    assert chosen(worse, alike, best, cheap) == 3
    assert outcome(worse, alike, best, cheap).alike == {1, 2, 3}
    assert outcome(worse, alike, best, cheap, last=2).alike == {1, 2}, "one that was dropped is no finalist"
    textured = replace(alike, then=0.2)
    assert chosen(worse, textured, best) == 2
    assert chosen(worse, textured, best, replace(cheap, then=2.0)) == 3
    assert chosen(worse, replace(alike, then=math.nan), best) == 1


def test_a_tolerance_makes_more_trials_alike():
    blurred, textured = result(1, IMAGES, then=1.2), result(2, IMAGES - 0.25, then=0.3)
    noisy = result(3, IMAGES - 0.4, then=0.0)
    assert chosen(blurred, textured, noisy) == 1
    assert chosen(blurred, textured, noisy, within=0.3) == 2
    assert chosen(blurred, textured, noisy, within=0.5) == 3


def test_failures_count_before_the_mean():
    fails = result(1, IMAGES[5:] + 3, failed=5)
    whole = result(2, IMAGES)
    assert chosen(fails, whole) == 2
    assert chosen(result(1, [], failed=40), whole) == 2
    with pytest.raises(JobError, match=r"no trial has a PSNR(.|\n)*kintsugi report"):
        outcome(result(1, [], failed=40))


def test_values_that_have_no_mean():
    """An infinite PSNR counts as 100 dB, so that the other images still decide; what is undefined fails."""
    assert PSNR.distances(np.array([25.0, math.inf, math.nan])) == pytest.approx(
        [25, 100, math.nan], nan_ok=True
    )
    assert SPECTRUM.distances(np.array([0.0, -1.0])) == pytest.approx([math.nan] * 2, nan_ok=True)
    perfect = [PSNR.distances(np.array([math.inf, *(IMAGES[1:] + more)])) for more in (-5, 5, 0)]
    assert chosen(*(result(w, values) for w, values in enumerate(perfect))) == 1


def test_metrics_that_are_better_when_small_or_near_one():
    assert chosen(result(1, IMAGES, LPIPS), result(2, IMAGES - 1, LPIPS)) == 2
    assert SPECTRUM.distances(np.array([0.5, 2.0, 1.2])) == pytest.approx(
        [0.693147, 0.693147, 0.182322], rel=1e-5
    )
    assert SPECTRUM.sign == -1
    with pytest.raises(JobError, match="--by: 'fid' is no metric of single images"):
        Measured("fid")
    with pytest.raises(JobError, match="--by: of total_variation neither"):
        Measured("total_variation")


def test_a_best_value_at_the_edge_is_said_in_words():
    results = [result(w, IMAGES + w) for w in (5, 10, 15)]
    assert outcome(*results).edges() == [
        "sampler.w = 15 is the largest that was tried; the best may lie above it"
    ]
    assert outcome(*results, result(20, IMAGES)).edges() == []
    assert outcome(*results[:2]).edges() == [], "two values have no middle"
    named = [result(w, IMAGES + i) for i, w in enumerate(({"name": "a"}, "b", 3))]
    assert outcome(*named).edges() == []


@pytest.mark.parametrize("fields", [1, 2, 3])
def test_plots(fields):
    """A line, a map, a panel each; the same bytes every time; every field is named."""
    more = [{}] if fields == 1 else [{"sampler.lam": v, "sampler.init": "pinv"} for v in (-0.2, 0.2)]
    kept = [dict(list(it.items())[: fields - 1]) for it in more]
    both = outcome(*(result(w, IMAGES + RNG.normal(0, 1, 40), **it) for w in (5, 10, 15) for it in kept))
    svg, again = (draw_trials(both).decode() for _ in range(2))
    assert svg == again
    for field in both.best.trial.settings:
        assert f"<!-- {field} -->" in svg
    rows = list(csv.DictReader(io.StringIO(trials_csv(both))))
    assert [row["trial"] for row in rows] == [it.trial.name for it in both.results]
    assert [row["sampler.w"] for row in rows if row["chosen"] == "1"] == [
        str(both.chosen.trial.settings["sampler.w"])
    ]


def test_the_better_trials_go_on_each_with_more_images_of_its_own():
    done = []

    def do(numbers: Sequence[int], images: int) -> list[Result]:
        done.append((list(numbers), images))
        worth = {0: 3, 1: 1, 2: 4, 3: 2} if images == 8 else {2: -2, 0: 0}  # more images, another order
        return [result(number, [worth[number]] * images) for number in numbers]

    results, last = climb([Rung(4, 8), Rung(2, 16)], do)
    assert done == [([0, 1, 2, 3], 8), ([2, 0], 16)]
    assert last == [0, 2]
    assert [len(it.values) for it in results] == [16, 8, 16, 8]
    alike, order = climb(
        [Rung(3, 8)], lambda numbers, images: [result(number, [1.0] * images) for number in numbers]
    )
    assert (len(alike), order) == (3, [0, 1, 2]), "of equal ones the first"


# ---- the command


@pytest.fixture(scope="module")
def job_file(tmp_path_factory) -> Path:
    """A small job: 16 images for tuning or more among 48."""
    folder = tmp_path_factory.mktemp("sweep")
    for i in range(3):
        members = [(f"{key}.png", encode(picture(int(key), SIDE))) for key in KEYS[i::3]]
        write_tar(folder / "in" / f"{i}.tar", members)
    job = {
        "data": {"shards": f"{folder}/in/*.tar", "size": SIDE, "subset": {"fraction": 0.5}},
        "degradation": {"operator": {"name": "average_pool", "factor": 4}},
        "sampler": {"name": "conjugate", "steps": 1},
        "metrics": ["ssim", "swd"],
        "compute": {"batch_size": 4, "unit_size": 16, "cpus_per_actor": 1},
        "output": str(folder / "run"),
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


VARY = ("--vary", "sampler.w=1,5,20", "--vary", "sampler.init=pinv,lmmse", "--tune", "16")


def sweep(job_file: Path, out: Path, *more: str):
    return kintsugi("sweep", job_file, *(more or VARY), "--address", "none", "--out", out)


@pytest.fixture(scope="module")
def swept(job_file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("swept") / "out"
    result = sweep(job_file, out)
    assert result.exit_code == 0, result.output
    assert "6 trials, 6 on 8 images, then 3 on 16 images" in result.output
    assert "linear MMSE" in result.output
    return out


def table(out: Path) -> list[dict[str, str]]:
    """sweep.csv without the times."""
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def rows_of(folder: Path) -> dict[str, float]:
    tables = (table for table, _ in committed(Run.open(folder), ["key", "psnr"]))
    return {row["key"]: row["psnr"] for table in tables for row in table.to_pylist()}


@pytest.mark.slow
def test_the_better_half_goes_on_and_rows_are_what_the_table_says(swept):
    rows = table(swept)
    assert sorted(int(row["images"]) for row in rows) == [8, 8, 8, 16, 16, 16]
    at_first = {}
    for row in rows:
        values = rows_of(swept / "trials" / row["trial"])
        assert len(values) == int(row["images"]), "no image beyond its rung"
        assert float(row["psnr"]) == pytest.approx(np.mean(list(values.values())), abs=1e-12)
        at_first[row["trial"]] = np.mean([values[key] for key in first(swept)])
    better = sorted(at_first, key=at_first.get, reverse=True)[:3]
    assert {row["trial"] for row in rows if row["images"] == "16"} == set(better)


def test_what_needs_no_network_stands_beside_the_trials(swept):
    rows = table(swept)
    whole = [row for row in rows if row["images"] == "16"]
    columns = ["key", "psnr_pinv", "psnr_lmmse"]
    tables = [of for of, _ in committed(Run.open(swept / "trials" / whole[0]["trial"]), columns)]
    for column in columns[1:]:
        values = [value for of in tables for value in of[column].to_pylist()]
        assert [float(row[column]) for row in whole] == pytest.approx([np.mean(values)] * 3, abs=1e-12)
    assert "without a network: H⁺y" in (swept / "sweep.svg").read_text()


def first(out: Path) -> list[str]:
    """The keys of the first rung: in every trial the same."""
    plans = [keys_of(trial / "plan.parquet") for trial in (out / "trials").iterdir()]
    assert all(plan == plans[0] for plan in plans)
    return plans[0][:8]


def test_best_is_a_job_on_other_images_with_the_best_settings(swept, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # it runs from anywhere
    best = load_job(str(swept / "best.yaml"), [])
    row = next(row for row in table(swept) if row["chosen"] == "1")
    assert (str(best.sampler["w"]), best.sampler["init"]) == (row["sampler.w"], row["sampler.init"])
    assert (best.metrics, best.compute.unit_size, best.data.limit) == (["ssim", "swd"], 16, None)
    assert kintsugi("run", swept / "best.yaml", "--address", "none", "--set", "metrics=[psnr]").exit_code == 0
    tuned = keys_of(swept / "trials" / row["trial"] / "plan.parquet")
    evaluated = set(rows_of(swept / "best"))
    assert not evaluated & set(tuned)
    assert evaluated == {key for key in KEYS if not belongs(key, Subset(part="tune", fraction=0.5))}
    head = (swept / "best.yaml").read_text().splitlines()
    assert head[0].startswith("# Chosen of 6 trials of ")
    assert "on 16 images for tuning, seed 0; H⁺y, without a network, " in head[1]


@pytest.mark.slow
def test_a_part_is_restored_as_in_the_whole(job_file, tmp_path):
    """In batches of one, to the bit: what a sample's neighbours are does not matter."""
    common = ("--address", "none", "--set", "compute.batch_size=1", "--set", "metrics=[psnr]")
    for name, subset in (("whole", "null"), ("part", "{part: tune, fraction: 0.3}")):
        places = ("--set", f"output={tmp_path / name}", "--set", f"data.subset={subset}")
        assert kintsugi("run", job_file, *common, *places).exit_code == 0
    whole, part = rows_of(tmp_path / "whole"), rows_of(tmp_path / "part")
    assert 0 < len(part) < len(whole) == COUNT
    assert {key: whole[key] for key in part} == part


@pytest.mark.slow
@pytest.mark.parametrize("after", [5, 14])
def test_an_interrupted_sweep_continues_and_does_nothing_twice(job_file, swept, tmp_path, monkeypatch, after):
    """Ctrl-C after some units, then the same command: the same table, and every unit done once."""
    process, done = Worker.process, []

    def counted(self, task):
        if len(done) == after and not resumed:
            raise KeyboardInterrupt
        commit = process(self, task)
        done.append((self.folder.name, task.unit.unit))
        return commit

    resumed = False
    monkeypatch.setattr(Worker, "process", counted)
    interrupted = sweep(job_file, tmp_path / "out")
    assert interrupted.exit_code == 130
    assert "the same command continues" in interrupted.output
    assert not (tmp_path / "out" / "best.yaml").exists()
    resumed = True
    assert sweep(job_file, tmp_path / "out").exit_code == 0
    assert table(tmp_path / "out") == table(swept)
    assert len(done) == len(set(done))
    again = len(done)
    assert sweep(job_file, tmp_path / "out").exit_code == 0
    assert len(done) == again
    assert (tmp_path / "out" / "sweep.svg").read_bytes() == (swept / "sweep.svg").read_bytes()


def test_a_changed_sweep_in_the_same_folder_is_refused(job_file, swept):
    with pytest.raises(JobError, match=r"holds a run of another job(.|\n)*data\.limit: 16 → 12"):
        sweep(job_file, swept, *VARY[:-1], "12")


def test_failed_samples_are_counted_and_end_with_2(job_file, tmp_path):
    members = [
        (f"{key}.png", b"no" if belongs_to_tune(key) and key < "010" else encode(picture(1, SIDE)))
        for key in KEYS
    ]
    shard = write_tar(tmp_path / "s.tar", members)
    more = ("--vary", "sampler.w=1,2", "--set", f"data.shards={shard}", "--by", "ssim", "--tune", "12")
    result = sweep(job_file, tmp_path / "out", *more)
    assert result.exit_code == 2, result.output
    failed = sum(belongs_to_tune(key) and key < "010" for key in KEYS)
    assert [int(row["failed"]) for row in table(tmp_path / "out")] == [failed] * 2


def test_what_a_metric_leaves_undefined_has_failed(swept):
    run = Run.open(next((swept / "trials").iterdir()))
    undefined = result_of(run, Trial({}, run.job), Measured("vif"), Measured("vif"), 8)
    assert (undefined.values, undefined.failed) == ({}, 8)
    assert math.isnan(undefined.then)


def test_files_of_the_best_job_are_found_from_anywhere(job_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.tile(np.uint8([0, 255]), (SIDE, SIDE // 2))).save("mask.png")
    mask = "degradation.operator={name: inpaint, mask: mask.png, known: white}"
    assert (
        sweep(job_file, tmp_path / "out", "--vary", "sampler.w=1", "--tune", "2", "--set", mask).exit_code
        == 0
    )
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert best["degradation"]["operator"]["mask"] == str(tmp_path / "mask.png")


def belongs_to_tune(key: str) -> bool:
    return belongs(key, Subset(part="tune", fraction=0.5))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--vary", "sampler.w=1,nonsense"), r"with sampler.w=nonsense:\n  sampler\.w: .*number"),
        (("--vary", "sampler.v=1"), "sampler.v: 'conjugate' has no such parameter"),
        (
            ("--vary", "compute.compile.x=1", "--set", "compute.compile=default"),
            "--vary compute.compile.x: 'compile' is a value",
        ),
        *(
            (("--vary", f"{field}=1,2"), f"--vary {field}: trials are compared on the same images")
            for field in ("data", "data.subset.part", "data.shards", "seed", "metrics", "output", "compute")
        ),
        (("--vary", "degradation.sigma=0,0.2"), "on the same images, measurements and noise"),
        (("--vary", "sampler.w=1..5,7"), "a range stands alone"),
        (("--vary", "sampler.w=1", "--by", "nothing"), "--by: 'nothing' is no metric"),
        (
            ("--vary", "sampler.w=1", "--set", "data.kind=measurements", "--set", "metrics=[]"),
            "with the truth",
        ),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_before_anything_runs(job_file, tmp_path, more, message):
    with pytest.raises(JobError, match=message):
        sweep(job_file, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


# ---- reproduction


def test_published_numbers_decide_nothing(make_job):
    row = {"method": "DDNM", "nfe": 5, "values": {"lpips": 0.2, "fid": None}, "source": "a paper"}
    assert config_hash(make_job(published=[row])) == config_hash(make_job())
    with pytest.raises(ValueError, match="'lpisp' is no metric"):
        make_job(published=[row | {"values": {"lpisp": 0.2}}])
