"""Suites: which jobs a file means, tuning before evaluating, growth, and going on after anything."""

import json
import os
import signal
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from kit.jobs import digests, kintsugi, rows, told
from kit.models import save_trunk
from kit.plugins import SITE
from kit.shards import SIZE, encode, picture, write_tar

from kintsugi.errors import JobError
from kintsugi.jobs import suite_run
from kintsugi.jobs.suite_file import groups, read_suite, without_effect
from kintsugi.jobs.suite_run import check_all, others_in, part_of, trials_of
from kintsugi.pipeline.execution import cluster, local
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.stage import Stage
from kintsugi.pipeline.storage.publish import publish_bytes
from kintsugi.samplers.external import CONSENT

AXES: dict[str, Any] = {
    "operator": {"pool": {}, "mask": {"degradation.operator": {"name": "inpaint", "mask": "box"}}},
    "sampler": [{"name": "ddnm"}, {"name": "conjugate"}],
    "sampler.steps": [1, 2],
}
TUNE = {"grid": {"sampler": {"conjugate": {"sampler.w": [5, 15]}}}, "images": 4}


@pytest.fixture
def suite_of(make_job, tmp_path, monkeypatch):
    """Writes a suite file on small shards; keyword arguments are its other fields."""

    monkeypatch.syspath_prepend(str(SITE))

    def write(**fields: Any) -> Path:
        quick = {"metrics": ["psnr", "spectrum_ratio"], "prior": {"name": "gaussian"}, "output": "unused"}
        base = make_job(**quick).model_dump(mode="json")
        values = {"base": base, "output": str(tmp_path / "suite"), "axes": AXES} | fields
        file = tmp_path / "suite.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        return file

    return write


def tried(field: str, *values: Any) -> dict[str, Any]:
    return {"tune": {"grid": {"sampler": {"ddnm": {field: list(values)}}}}}


def names(file: Path) -> list[str]:
    suite = read_suite(str(file), [])
    return [f"{task}/{method}" for (task, method), cells in groups(suite) for _ in cells]


# ---- which jobs


def test_axes_are_multiplied_and_told_apart_by_what_they_change(suite_of):
    suite = read_suite(str(suite_of(axes=AXES | {"seed": [0, 1]})), [])
    assert (suite.task, suite.method, suite.seed) == (("operator",), ("sampler", "sampler.steps"), ("seed",))
    assert len(suite.cells) == 16
    assert [key for key, _ in groups(suite)][:2] == [("pool", "ddnm,steps=1"), ("pool", "ddnm,steps=2")]
    cell = suite.cells[-1]
    _, job = suite.job(cell, "x", {})
    assert (job.sampler, job.seed) == ({"name": "conjugate", "steps": 2}, 1)
    assert job.degradation.operator["name"] == "inpaint"
    assert suite.cells[0].fields["sampler"] == {"name": "ddnm"}, "cells do not write into each other's fields"


def test_exclude_and_include(suite_of):
    file = suite_of(
        exclude=[{"operator": "mask", "sampler.steps": ["steps=2"]}, {"sampler": "ddnm", "operator": "pool"}],
        include=[
            {
                "operator": "pool",
                "sampler": {"best": {"sampler": {"name": "dps"}}},
                "sampler.steps": "steps=2",
            }
        ],
    )
    assert names(file) == [
        "pool/conjugate,steps=1",
        "pool/conjugate,steps=2",
        "mask/ddnm,steps=1",
        "mask/conjugate,steps=1",
        "pool/best,steps=2",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"axes": {"a": {"b c": {}}}}, "axes.a: 'b c' is no name of a point"),
        ({"axes": {"a": {"../x": {}}}}, "is no name of a point"),
        ({"axes": {"a": {"..": {}}}}, r"'\.\.' is no name of a point"),
        ({"axes": {"a": {"b": {"output": "x"}}}}, "axes.a.b: output is the same in all jobs; set it in base"),
        ({"axes": {"sampler.stepz": {}}}, "axes: sampler.stepz: an axis without points"),
        ({"axes": {"nonsense": [1]}}, "axes: nonsense: a list is of the values of a field"),
        (
            {"exclude": [{"operator": "poll"}]},
            r"exclude\[0\]: no point 'poll' on operator; did you mean pool",
        ),
        ({"exclude": [{"op": "pool"}]}, "no axis 'op'"),
        ({"include": [{"sampler": "dps"}]}, "include: no point 'dps' on sampler"),
        (
            {"include": [{"sampler": {"ddnm": {"sampler": {"name": "dps"}}}}]},
            "include: pool ddnm steps=1 is there already, with other fields",
        ),
        ({"tune": {"grid": {"sampler": {"dps": {"sampler.w": [1]}}}}}, "tune.grid: no point 'dps'"),
        (tried("degradation.sigma", 0, 1), r"sampler.ddnm.degradation.sigma: .* the same images, measure"),
        (tried("compute.actors", 1), "compute.actors: the jobs of a suite share their actors"),
        (tried("sampler.eta"), "tune.grid.sampler.ddnm.sampler.eta: no values to choose from"),
        (
            {"tune": {"grid": {}, "fields": {"data.limit": 4}}},
            "fields: data.limit: of tuning that is by tune.i",
        ),
        ({"exclude": [{"operator": ["pool", "mask"]}]}, "exclude leaves no job"),
        ({"nothing": 1}, "nothing: no such field"),
        ({"base": "no-such-job"}, "no job file 'no-such-job'"),
    ],
)
def test_what_does_not_fit_is_named(suite_of, fields, message):
    with pytest.raises(JobError, match=message):
        read_suite(str(suite_of(**fields)), [])


def test_of_axes_that_set_one_field_the_later_counts(suite_of):
    axes = {"a": {"x": {"sampler.steps": 3}}, "b": {"y": {"sampler": {"name": "ddnm"}}}}
    suite = read_suite(str(suite_of(axes=axes | {"c": {"z": {"sampler.steps": 5}}})), [])
    assert suite.job(suite.cells[0], "x", {})[1].sampler == {"name": "ddnm", "steps": 5}


def test_a_field_that_an_axis_sets_in_vain_is_told(suite_of):
    axes = {"a": {"x": {"sampler.project": True}, "y": {}}, "b": {"z": {"sampler": {"name": "ddnm"}}}}
    file = suite_of(axes=axes, exclude=[{"a": "y"}])
    assert without_effect(read_suite(str(file), []).cells) == [
        "sampler.project has no effect in 1 of 1 jobs: an axis behind sets the whole sampler; "
        "put the axis that sets sampler.project behind it"
    ]
    assert "has no effect in 1 of 1" in " ".join(kintsugi("suite", file, "--dry-run").stderr.split())
    file = suite_of(axes=dict(reversed(axes.items())))
    assert without_effect(read_suite(str(file), []).cells) == []


def test_jobs_are_not_the_same_under_two_names(suite_of):
    file = suite_of(axes={"sampler.steps": [3, 5], "sampler": [{"name": "ddnm"}]})
    with pytest.raises(JobError, match=r"steps=3 ddnm and steps=5 ddnm are the same job: .* sampler\.steps"):
        check_all(read_suite(str(file), []))


@pytest.mark.parametrize(
    "field", ["sampler.steps", "sampler.eta", "sampler.w", "degradation.operator", "output"]
)
def test_what_is_set_has_an_effect_or_is_refused(suite_of, field):
    file = suite_of(tune=TUNE)
    with pytest.raises(JobError, match=f"--set {field}: "):
        read_suite(str(file), [f"{field}=2"])
    assert read_suite(str(file), ["data.limit=2"]).values["data"]["limit"] == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler.w": [5, "much"]}, r"tune.grid with sampler.w=much:\s+sampler.w"),
        ({"sampler.w": [5, -1]}, r"tune.grid with sampler.w=-1:\s+sampler.*w"),
        ({"sampler.strength": [5]}, r"tune.grid with sampler.strength=5:\s+sampler.*strength"),
        ({"sampler.steps.x": [5]}, "tune.grid: sampler.steps.x: 'steps' is a value"),
    ],
)
def test_a_bad_value_of_the_grid_is_named_before_anything_runs(suite_of, tmp_path, values, message):
    file = suite_of(tune={"grid": {"sampler": {"conjugate": values}}})
    with pytest.raises(JobError, match=f"pool conjugate steps=1, {message}"):
        kintsugi("suite", file, "--dry-run")
    assert not (tmp_path / "suite").exists()


def test_a_value_that_is_twice_in_the_grid_is_one_trial(suite_of):
    suite = read_suite(str(suite_of(**tried("sampler.eta", 0.5, 1, 0.5))), [])
    assert [[it.settings["sampler.eta"] for it in of] for of in trials_of(suite).values()] == [[0.5, 1]] * 4


def test_a_folder_of_too_long_a_name_is_told_by_its_axis(suite_of):
    long = {letter: {f"{letter * 59}é": {"sampler.steps": 1}} for letter in "abcd"}
    axes = {"sampler": [{"name": "conjugate"}], **long}
    name = len(",".join(["conjugate", *(next(iter(of)) for of in long.values())]).encode())
    with pytest.raises(JobError, match=rf"axes\.a\.a+é: the folder conjugate,.* of {name} bytes, and 255"):
        check_all(read_suite(str(suite_of(axes=axes)), []))
    axes["d"] = {"d" * 30: {"sampler.steps": 1}}
    check_all(read_suite(str(suite_of(axes=axes)), []))
    grid = {"sampler": {"conjugate": {"sampler.project": [True, False], "sampler.w": [5.125, 15.125]}}}
    suite = read_suite(str(suite_of(axes=axes, tune={"grid": grid})), [])
    with pytest.raises(JobError, match=r"a+.* bytes, and 255"):  # by the settings that are chosen
        check_all(suite)


def test_strange_runs_are_found_in_a_folder_with_any_name(place):
    folder = place / "a [b] *" / "suite"
    for name in ("mine", "other"):
        (folder / "runs" / "t" / name).mkdir(parents=True)
        publish_bytes(folder / "runs" / "t" / name / "job.yaml", b"")
    assert others_in(folder, {folder / "runs" / "t" / "mine"}) == [folder / "runs" / "t" / "other"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"page": {"distortion": "ssim"}}, "page.distortion: no run has ssim; choose from psnr"),
        ({"page": {"family": ["psnr", "lpips"]}}, r"page.family\.1: no run has lpips"),
        ({"page": {"against": "ddnm"}}, "page.against: no method 'ddnm'; choose from ddnm steps=1"),
        ({"tune": {"grid": {}, "by": "swd"}}, "tune.by: 'swd' is no metric of single images"),
        ({"tune": {"grid": {}, "then": "pnsr"}}, "tune.then: 'pnsr' is no metric"),
    ],
)
def test_what_is_compared_is_there_before_anything_runs(suite_of, fields, message):
    with pytest.raises(JobError, match=message):
        check_all(read_suite(str(suite_of(**fields)), []))


def test_images_for_tuning_are_others_than_those_that_are_evaluated(suite_of):
    def parts(**fields: Any) -> list[Any]:
        suite = read_suite(str(suite_of(tune=TUNE | {"fields": fields})), [])
        return [part_of(suite, suite.cells[0], part) for part in ("tune", "evaluate")]

    apart = [{"data.subset": {"part": part}} for part in ("tune", "evaluate")]
    assert parts() == apart
    assert parts(seed=1) == apart, "what does not name other data does not say which images"
    halves = parts(**{"data.subset": {"part": "evaluate", "fraction": 0.5}})
    assert halves == [{"data.subset": {"part": part, "fraction": 0.5}} for part in ("tune", "evaluate")]
    assert parts(**{"data.shards": "other.tar"}) == [{}, {}]


def test_restored_images_are_methods_by_their_folders_and_tasks_by_their_truth(suite_of):
    base = {"data": {"kind": "restored", "shards": "a", "truth": "b"}, "metrics": ["psnr"]}
    axes = {"scale": {"x2": {"data.truth": "2"}, "x4": {"data.truth": "4"}}, "data.shards": ["a", "b"]}
    file = suite_of(base=base, axes=axes)
    suite = read_suite(str(file), [])
    assert (suite.task, suite.method) == (("scale",), ("data.shards",))
    assert len(check_all(suite)) == 4


def test_a_job_that_cannot_be_is_named_by_its_points_before_anything_runs(suite_of, tmp_path):
    axes = AXES | {"sampler": {"good": {"sampler": {"name": "ddnm"}}, "bad": {"sampler": {"name": "ddnn"}}}}
    code, said = told("suite", suite_of(axes=axes), "--address", "none")
    assert code == 1
    assert "pool bad steps=1" in said
    assert "ddnn" in said
    assert not (tmp_path / "suite").exists()


def test_jobs_share_their_actors(suite_of):
    axes = {"threads": {"one": {"compute.cpus_per_actor": 1}, "two": {"compute.cpus_per_actor": 2}}}
    code, said = told("suite", suite_of(axes=axes), "--address", "none")
    assert code == 1
    assert "compute.cpus_per_actor: the jobs of a suite share their actors" in said


# ---- the runs


def runs_of(folder: Path) -> dict[str, dict[str, str]]:
    """The digests of all runs, by their folders."""
    return {
        str(file.parent.relative_to(folder)): digests(Run.open(file.parent))
        for file in sorted(folder.glob("*/*/*/**/job.yaml"))
    }


@pytest.fixture
def small(suite_of):
    """Writes a suite of two tasks and two methods, of which one is tuned, with other axes."""

    def write(**axes: Any) -> Path:
        wanted = {"operator": AXES["operator"], "sampler": AXES["sampler"]} | axes
        return suite_of(axes=wanted, tune=TUNE)

    return write


def do(file: Path, *more: str) -> tuple[int, str]:
    return told("suite", file, "--address", "none", "--set", "data.subset={part: tune, fraction: 0.5}", *more)


def test_a_suite_tunes_evaluates_grows_and_is_the_same_after_an_end_at_any_unit(small, tmp_path, monkeypatch):
    folder = tmp_path / "suite"
    process = local.Workplace.of
    calls = []

    def interrupted(place, job, run):
        calls.append(str(run))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return process(place, job, run)

    monkeypatch.setattr(local.Workplace, "of", interrupted)
    code, said = do(small())
    assert code == 130, said
    monkeypatch.undo()
    assert not (folder / "runs").exists(), "nothing is evaluated before all is tuned"
    code, said = do(small())
    assert code == 0, said
    found = runs_of(folder)
    assert len(found) == 2 * 2 + 2 * 2, "two trials in two tasks, then four runs"
    tuned = [Run.open(folder / name) for name in found if name.startswith("tuning")]
    evaluated = [Run.open(folder / name) for name in found if name.startswith("runs")]
    assert {run.job.data.subset.part for run in tuned} == {"tune"}
    assert {run.job.data.subset.part for run in evaluated} == {"evaluate"}
    listed = json.loads((folder / "suite.json").read_text())
    assert {"pool", "mask"} == {task["name"] for task in listed["tasks"]}
    assert (folder / "index.html").exists()
    # Another point: what is there stays, byte by byte, and only what is missing is done.
    stamps = {name: (folder / name / "job.yaml").stat().st_mtime_ns for name in found}
    code, said = do(small(sampler=[*AXES["sampler"], {"name": "diffpir"}]))
    assert code == 0, said
    assert "2 of them to be done" in said
    grown = runs_of(folder)
    assert len(grown) == len(found) + 2
    assert {name: grown[name] for name in found} == found
    code, said = do(small())
    assert code == 0, said
    assert "2 runs in its folder are none of the suite's" in said
    assert {name: (folder / name / "job.yaml").stat().st_mtime_ns for name in found} == stamps


def test_seeds_are_runs_of_one_method(suite_of, tmp_path):
    axes = {"sampler": [{"name": "ddnm", "steps": 1}], "seed": [0, 1]}
    code, said = told("suite", suite_of(axes=axes), "--address", "none")
    assert code == 0, said
    listed = json.loads((tmp_path / "suite" / "suite.json").read_text())
    assert len(listed["runs"]) == 2
    assert {path.name for path in (tmp_path / "suite" / "runs" / "all").iterdir()} == {
        "ddnm,seed=0",
        "ddnm,seed=1",
    }


def test_a_dry_run_counts_and_writes_nothing(suite_of, tmp_path):
    shown = kintsugi("suite", suite_of(exclude=[{"operator": "mask"}]), "--dry-run", "--gpus", "2").stdout
    # 12 images; ddnm makes one forward a step, conjugate a VJP, too.
    assert f"{12 * (1 + 2 + 2 * (1 + 2)):,}" in shown
    assert "1 × 4" in shown
    assert not (tmp_path / "suite").exists()


ONE = {"sampler": [{"name": "ddnm", "steps": 1}]}


def test_a_finished_suite_starts_no_ray(suite_of, monkeypatch):
    file = suite_of(axes=ONE)
    assert told("suite", file, "--address", "none")[0] == 0
    monkeypatch.setattr(cluster, "connected", lambda address: pytest.fail("it connects to Ray"))
    code, said = told("suite", file)
    assert code == 0, said
    assert "1 runs, 0 of them to be done" in said


def test_restored_shards_that_were_not_written_yet_are_when_a_suite_goes_on(
    suite_of, make_job, tmp_path, monkeypatch
):
    members = [(f"{i}.{end}", encode(picture(i))) for i in range(2) for end in ("png", "truth.png")]
    shard = write_tar(tmp_path / "noisy.tar", members)
    truth = {"member": "truth.png"}
    data = {"kind": "measurements", "shards": str(shard), "truth": truth, "size": SIZE}
    noise = {"operator": {"name": "denoise"}, "sigma": 0.02}
    job = make_job(
        data=data, degradation=noise, prior={"name": "gaussian"}, metrics=["psnr", "spectrum_ratio"]
    )
    base = job.model_dump(mode="json")
    file = suite_of(base=base, axes=ONE)

    def ended(run):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(suite_run, "write_restored", ended)
        code, said = told("suite", file, "--address", "none")
    assert code == 130, said
    (run,) = (tmp_path / "suite" / "runs" / "all").iterdir()
    assert not list(Run.open(run).outstanding())
    assert not (run / "restored").exists()
    told("suite", file, "--address", "none")
    assert [tar.name for tar in (run / "restored").iterdir()] == ["noisy.tar"]


def test_only_failed_samples_are_done_again(suite_of, tmp_path, monkeypatch):
    original, seen = Stage.in_batches, []

    def run(self, samples, work):
        seen.extend(sample.key for sample in samples)
        if len(samples) > 1 or samples[0].key == "image_001":
            raise RuntimeError("a transient fault")
        return original(self, samples, work)

    file = suite_of(axes=ONE | {"seed": [0, 1]})
    retry = ("suite", file, "--address", "none", "--retry-failed")
    code, said = told(*retry)
    assert code == 1
    assert "--retry-failed: there is no run in" in said
    assert not (tmp_path / "suite").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "in_batches", run)
        assert told("suite", file, "--address", "none")[0] == 2
    seen.clear()
    monkeypatch.setattr(
        Stage, "in_batches", lambda s, of, work: seen.extend(x.key for x in of) or original(s, of, work)
    )
    assert told("suite", file, "--address", "none")[0] == 2, "a rerun alone keeps failures"
    assert not seen
    file = suite_of(axes=ONE | {"seed": [0, 1, 2]})
    code, said = told(*retry)
    assert code == 0, said
    assert seen == ["image_001"] * 2
    assert "2 failed samples again" in said
    assert "1 runs are still to be done: the same command without --retry-failed" in said


def test_a_suite_runs_programs_with_consent_alone(suite_of, tmp_path, monkeypatch):
    monkeypatch.delenv(CONSENT, raising=False)
    script = tmp_path / "copy.py"
    script.write_text("import shutil, sys\nshutil.copytree(*sys.argv[1:], dirs_exist_ok=True)\n")
    command = [sys.executable, "-S", str(script), "{measurements}", "{restored}"]
    axes = {"sampler": [{"name": "external", "command": command}]}
    file = suite_of(axes={"task": {"noise": {"degradation.operator": {"name": "denoise"}}}, **axes})
    code, said = told("suite", file, "--address", "none")
    assert code == 1
    assert "--allow-commands" in said
    monkeypatch.setenv(CONSENT, "")  # undone after the test, as the command sets it
    code, said = told("suite", file, "--address", "none", "--allow-commands")
    assert code == 0, said


@pytest.mark.slow
def test_lpips_chooses_where_its_weights_are_and_is_refused_where_not(suite_of, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    grid = {"sampler": {"conjugate": {"sampler.w": [0.05, 1, 50]}}}
    file = suite_of(
        axes={"sampler": [{"name": "conjugate", "steps": 2}]}, tune={"grid": grid, "by": "lpips", "images": 4}
    )
    code, said = do(file)
    assert code == 1
    assert "the weights of torchvision's AlexNet, LPIPS's trunk are missing" in " ".join(said.split())
    assert not list(tmp_path.glob("suite/**/job.yaml")), "before any work"
    save_trunk(tmp_path / "torch" / "hub" / "checkpoints", "alexnet")
    code, said = do(file)
    assert code == 0, said
    trials = [Run.open(path.parent) for path in (tmp_path / "suite" / "tuning").glob("**/job.yaml")]
    means = {run.job.sampler["w"]: fmean(row["lpips"] for row in rows(run)) for run in trials}
    assert len(set(means.values())) == 3
    (evaluated,) = (tmp_path / "suite" / "runs").glob("*/*/job.yaml")
    assert Run.open(evaluated.parent).job.sampler["w"] == min(means, key=means.__getitem__)
