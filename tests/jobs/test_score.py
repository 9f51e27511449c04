"""`kintsugi score`: what is paired, what is said, and that a score is a run as any other."""

import json
import re
import shutil
from itertools import islice
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kit.jobs import digests, execute, kintsugi, rows
from kit.shards import SIZE, encode, picture, png, write_tar
from PIL import Image

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.report.stored import schema
from kintsugi.pipeline.data.units import read_members, read_summary
from kintsugi.pipeline.execution.directory import PLAN, REPORT, data_file
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.local import in_process
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part, Run
from kintsugi.pipeline.job import Job, config_hash
from kintsugi.pipeline.metrics.scoring import Scorer
from kintsugi.pipeline.storage.location import at
from kintsugi.pipeline.storage.publish import publish


def theirs(number):
    """A picture as another method restores it."""
    return (picture(number) // 2 + 40).astype(np.uint8)


def write(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.png").write_bytes(content)
    return folder


@pytest.fixture
def sets(tmp_path):
    """Five restored images and their truth."""
    numbers = range(5)
    restored = write(tmp_path / "restored", **{f"i{n}": encode(theirs(n)) for n in numbers})
    return restored, write(tmp_path / "truth", **{f"i{n}": encode(picture(n)) for n in numbers})


def scoring(sets, output, **fields):
    """A job of restored images in units of two; `data` adds fields to its data."""
    data = {"kind": "restored", "shards": str(sets[0]), "truth": str(sets[1])} | fields.pop("data", {})
    compute = {"unit_size": 2, "cpus_per_actor": 1, "attempts": 1}
    return Job.model_validate({"data": data, "compute": compute, "output": str(output)} | fields)


def score(sets, out, *options):
    return kintsugi("score", *sets, "--metrics", "psnr,ssim", "--out", out, *options)


def table(folder):
    return pq.read_table(folder / REPORT / "rows.parquet").to_pylist()


def on_unit_scale(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1


# What is measured


def test_the_figures_are_those_of_the_pictures_and_no_sampler_is_told_of(sets, tmp_path):
    said = score(sets, tmp_path / "s")
    assert said.exit_code == 0
    assert "5 compared, 0 failed" in said.output
    run = Run.open(tmp_path / "s")
    for number, row in enumerate(rows(run)):
        exact = Scorer(["psnr", "ssim"])(on_unit_scale(theirs(number)), on_unit_scale(picture(number)))
        assert (row["psnr"], row["ssim"]) == (exact["psnr"][0], exact["ssim"][0])
        assert {row[name] for name in ("residual", "forwards", "vjps", "batch_size", "spread")} == {None}
    assert {row["seconds"] for row in table(tmp_path / "s")} == {None}
    report = (tmp_path / "s" / REPORT / "report.md").read_text()
    assert "5 images compared with the truth" in report
    assert "None failed." in report
    assert "vector-Jacobian" not in report
    assert "| waiting for scores |" in report
    assert "5 of 5 samples, 1 of 1 units, 0 failed · complete" in kintsugi("status", run.folder).output
    assert "5" in kintsugi("query", run.folder, "select count(*) from rows").output


def test_the_results_of_a_score_can_be_sent_and_state_what_is_known(sets, tmp_path):
    score(sets, tmp_path / "s")
    results = json.loads((tmp_path / "s" / REPORT / "metrics.json").read_text())
    jsonschema.validate(results, schema())
    protocol = results["protocol"]
    assert (protocol["operator"], protocol["noise"], protocol["evaluations"]) == (None, None, None)
    assert (protocol["images"]["count"], protocol["best_of"]) == (5, 1)
    assert results["values"]["key"] == [f"i{n}" for n in range(5)]
    said = kintsugi(
        "compare", tmp_path / "s", tmp_path / "s" / REPORT / "metrics.json", "--out", tmp_path / "c"
    )
    assert said.exit_code == 0
    assert "5 images compared" in said.output


@pytest.mark.slow
def test_figures_are_those_of_a_run_but_for_its_rounding(make_job, tmp_path):
    run = execute(make_job(images="all"))
    for row in rows(run):
        write(tmp_path / "restored", **{row["key"]: row["restored"]})
        write(tmp_path / "truth", **{row["key"]: row["truth"]})
    found = rows(execute(scoring((tmp_path / "restored", tmp_path / "truth"), tmp_path / "s")))
    for ours, again in zip(rows(run), found, strict=True):
        assert ours["key"] == again["key"]
        assert again["psnr"] == pytest.approx(ours["psnr"], abs=0.01)
        assert again["ssim"] == pytest.approx(ours["ssim"], abs=1e-3)
    assert kintsugi("compare", run.folder, tmp_path / "s", "--out", tmp_path / "c").exit_code == 0
    page = (tmp_path / "c" / "compare.md").read_text()
    assert "PSNR: of runs it is of restorations before rounding" in page
    assert "s scores images that were given: whether they were restored from the same" in page


# What is paired


@pytest.mark.parametrize(
    ("restored", "truth", "patterns", "keys"),
    [
        (["0001_out.png", "0002_out.png"], ["0001.png", "0002.jpg"], ["{key}_out.png"], ["0001", "0002"]),
        (["x4/0001_out.jpg"], ["0001.png"], ["x4/{key}_out"], ["0001"]),
        (["a.out.png"], ["a.png"], ["{key}.out.png"], ["a"]),
        (["00001_run0000.png"], ["00001.png"], ["{key}_run0000.png", "{key}"], ["00001"]),
        (["img_001.png"], ["img_001_SRF_4_HR.png"], ["{key}", "{key}_SRF_4_HR.png"], ["img_001"]),
        (["a.png", "a_out.png"], ["a.png"], ["{key}_out.png"], ["a"]),
    ],
)
@pytest.mark.parametrize("tars", [False, True])
def test_names_are_paired_by_patterns_in_folders_and_in_tars(tmp_path, restored, truth, patterns, keys, tars):
    for folder, names in (("r", restored), ("t", truth)):
        contents = [(name, encode(Image.new("RGB", (32, 32), (9 * len(name), 0, 0)))) for name in names]
        if tars:
            write_tar(tmp_path / folder / "s.tar", contents)
        for name, content in () if tars else contents:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(content)
    sets = [tmp_path / f / "*.tar" if tars else tmp_path / f for f in "rt"]
    named = zip(("--restored-pattern", "--truth-pattern"), patterns, strict=False)
    outcome = score(sets, tmp_path / "s", *(part for both in named for part in both))
    assert outcome.exit_code == 0, outcome.output
    assert [row["key"] for row in table(tmp_path / "s")] == keys
    assert [row["status"] for row in table(tmp_path / "s")] == ["ok"] * len(keys)
    left = len(restored) - len(keys)
    assert ("not like {key}_out.png, not compared: 1, the first a" in outcome.output) == bool(left)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pattern", "out_*.png"), r"--restored-pattern: .*must have \{key\} in it, once"),
        (("--truth-pattern", "{key}{key}"), "--truth-pattern: .*once"),
        (("--pattern", "{key}_no.png"), "--restored-pattern: no name is like '{key}_no.png'; one is 'i0'"),
        (("--truth-pattern", "{key}_no"), "--truth-pattern: no name is like"),
        (("--pattern", "i{key}"), r"no key is in both: RESTORED has '0', TRUTH has 'i0'; .*--restored-patt"),
        (("--metrics", " , "), "--metrics: names none"),
        (("--metrics", "psnr,best"), "metrics: no metric 'best'; choose from"),
        (
            ("--out", "truth/out"),
            "--out: .*truth/out lies in .*truth, one of TRUTH: its pictures would count",
        ),
        (("--reference", "{name: x}"), r"--reference\.split: Field required"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_the_words_of_the_command(
    sets, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match=f"^{message}"):
        score(sets, tmp_path / "s", *options)
    assert not (tmp_path / "s" / "job.yaml").exists()


def test_images_without_a_partner_are_named_and_are_no_rows(sets, tmp_path):
    write(sets[0], extra=encode(theirs(9)))
    write(sets[1], **{f"other{n:02d}": encode(picture(9)) for n in range(22)})
    said = score(sets, tmp_path / "s")
    assert said.exit_code == 2
    assert "no truth for: extra\n" in said.output
    assert "not restored: other19\nnot restored: and 2 more" in said.output
    assert "5 compared, 0 failed" in said.output
    found = json.loads((tmp_path / "s" / REPORT / "metrics.json").read_text())
    assert (found["without_truth"], len(found["without_restored"])) == (["extra"], 22)
    again = score(sets, tmp_path / "s")
    assert (again.exit_code, again.output.count("not restored: ")) == (2, 21), "and it stays so"


def test_two_restored_images_of_one_key_are_refused(sets, tmp_path):
    Image.fromarray(theirs(0)).save(sets[0] / "i0.jpg")
    with pytest.raises(JobError, match=r"(?s)^RESTORED: 1 keys occur more than once .*'i0' in .*i0\.jpg"):
        score(sets, tmp_path / "s")
    (sets[0] / "i0.jpg").rename(sets[1] / "i0.jpg")
    with pytest.raises(JobError, match=r"^TRUTH: the key 'i0' occurs twice"):
        score(sets, tmp_path / "s")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["i0_x.png", "i1_x.png", "i0_x.json"], r"must be adjacent.*\n  i0_x\.png, i0_x\.json$"),
        (["i0_x.png", "i1_x.png", "i0_x.png"], r"1 keys occur more .*\n  'i0' in .*s\.tar, there 'i0_x', "),
    ],
    ids=["a sample in two parts", "two samples"],
)
def test_what_is_twice_in_a_tar_is_named_as_it_is_there(sets, tmp_path, names, said):
    image = encode(theirs(0))
    tar = write_tar(tmp_path / "s.tar", [(name, image) for name in names])
    both = scoring((tar, sets[1]), tmp_path / "s", data={"pattern": "{key}_x.png"})
    with pytest.raises(JobError, match=f"(?s){said}"):
        open_or_plan(both)


def test_the_subset_and_the_limit_are_of_pairs(sets, tmp_path):
    write(sets[0], **{f"a{n}": encode(theirs(n)) for n in range(5)})
    first = open_or_plan(scoring(sets, tmp_path / "first", data={"limit": 2}))
    keys = [key for unit in first.units() for key in read_members(first.folder / PLAN, unit).keys]
    assert keys == ["i0", "i1"], "images without a truth do not count"
    assert first.summary.without_restored == [], "the others were not looked at"
    keys = set()
    for part in ("tune", "evaluate"):
        data = {"subset": {"part": part, "fraction": 0.5}}
        run = open_or_plan(scoring(sets, tmp_path / part, data=data))
        mine = {key for unit in run.units() for key in read_members(run.folder / PLAN, unit).keys}
        assert not keys & mine
        assert run.summary.without_restored == []
        keys |= mine
    assert keys == {f"i{n}" for n in range(5)}


# What is a failed row


@pytest.mark.parametrize(
    ("restored", "truth", "error"),
    [
        (encode(picture(0, 30)), None, "UnreadableImage: it has 30x30 pixels, its truth 32x32"),
        (b"no picture", None, "UnreadableImage: the restored image: UnidentifiedImageError: "),
        (None, b"no picture", "UnreadableImage: the true image: UnidentifiedImageError: "),
        (png(12_000, 12_000), None, "the restored image: UnreadableImage: 12000x12000 pixels, more than"),
        (None, png(12_000, 12_000), "the true image: UnreadableImage: 12000x12000 pixels, more than"),
        (encode(picture(0, 4)), encode(picture(0, 4)), "a metric needs sides of at least 6 pixels"),
    ],
    ids=["size", "restored", "truth", "huge", "huge truth", "small"],
)
def test_an_image_that_cannot_be_compared_is_a_failed_row(sets, tmp_path, restored, truth, error):
    write(sets[0], **({"i1": restored} if restored else {}))
    write(sets[1], **({"i1": truth} if truth else {}))
    said = score(sets, tmp_path / "s")
    assert said.exit_code == 2
    assert "4 compared, 1 failed" in said.output
    assert f"1 failed: {error.partition(': ')[0]}" in said.output or error in said.output
    found = {row["key"]: row for row in table(tmp_path / "s")}
    assert [row["status"] for row in found.values()].count("ok") == 4
    assert error in found["i1"]["error"]
    assert found["i1"]["psnr"] is None


def test_what_failed_is_tried_again_when_it_is_asked_for(sets, tmp_path):
    write(sets[0], i1=b"no picture")
    assert score(sets, tmp_path / "s").exit_code == 2
    write(sets[0], i1=encode(theirs(1)))
    assert score(sets, tmp_path / "s").exit_code == 2, "a failed row is a result"
    assert score(sets, tmp_path / "s", "--retry-failed").exit_code == 0
    assert score(sets, tmp_path / "at once").exit_code == 0
    assert digests(Run.open(tmp_path / "s")) == digests(Run.open(tmp_path / "at once"))


def test_storage_that_fails_is_no_failed_row(sets, tmp_path):
    run = open_or_plan(scoring(sets, tmp_path / "s"))
    shutil.rmtree(sets[1])
    with pytest.raises(JobError, match="storage: "):
        list(in_process([Part(run, list(run.outstanding()))], Live()))
    assert run.progress().rows == 0


# A run as any other


def test_a_score_that_was_ended_goes_on_to_the_same_bytes(sets, tmp_path):
    job = scoring(sets, tmp_path / "s", metrics=["psnr", "ssim", "swd"])
    run = open_or_plan(job)
    commits = in_process([Part(run, list(run.outstanding()))], Live())
    list(islice(commits, 1))
    commits.close()
    assert run.progress().units == 1
    before = data_file(run.folder, "00000-0000000").stat().st_mtime_ns
    assert kintsugi("run", run.folder / "job.yaml", "--address", "none").exit_code == 0
    assert data_file(run.folder, "00000-0000000").stat().st_mtime_ns == before, "what is done is not redone"
    whole = execute(scoring(sets, tmp_path / "whole", metrics=["psnr", "ssim", "swd"]))
    assert len(digests(whole)) == 3
    assert digests(run) == digests(whole)


def test_damage_is_found_repaired_and_done_again(sets, tmp_path):
    score(sets, tmp_path / "s")
    run = Run.open(tmp_path / "s")
    whole = digests(run)
    assert "A rerun does nothing." in kintsugi("verify", run.folder).output
    data = data_file(run.folder, "00000-0000000")
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    (run.folder / PLAN).write_bytes(b"")
    assert kintsugi("verify", run.folder, "--repair").exit_code == 0
    assert score(sets, tmp_path / "s").exit_code == 0
    assert digests(run) == whole


def test_other_true_images_are_refused_and_found(sets, tmp_path):
    score(sets, tmp_path / "s")
    write(sets[1], i5=encode(picture(5)))
    with pytest.raises(JobError, match=r"was begun with other files.*\n  TRUTH: SHA-256 "):
        score(sets, tmp_path / "s")
    found = kintsugi("verify", tmp_path / "s")
    assert found.exit_code == 1
    assert re.search("data.truth, .*truth, is gone, or has changed", found.output)


def test_other_metrics_are_another_run(sets, tmp_path):
    score(sets, tmp_path / "s")
    with pytest.raises(JobError, match="holds a run of another job"):
        kintsugi("score", *sets, "--metrics", "psnr", "--out", tmp_path / "s")


def test_a_relative_score_continues_from_anywhere(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    score(("restored", "truth"), "s")
    assert "5 samples done before" in score(sets, tmp_path / "s").output
    monkeypatch.chdir("/")
    job = tmp_path / "s" / "job.yaml"
    assert "5 samples done before" in kintsugi("run", job, "--address", "none").output
    planned = kintsugi("plan", job).output
    assert "holds this run: 5 of 5 samples are done" in planned
    assert "prior" not in planned


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pairs: pairs[:1], "its pairs are not 2"),
        (lambda pairs: [None, *pairs[1:]], "its pairs are not 2"),
        (lambda pairs: [pairs[0] | {"shard": None}, *pairs[1:]], "a pair lacks something"),
        (lambda pairs: [pairs[0] | {"offset": -512}, *pairs[1:]], "a pair lies nowhere"),
        (lambda pairs: [pairs[0] | {"links": [{"name": "a", "data": -1, "size": 1}]}, *pairs[1:]], "a link"),
    ],
)
def test_a_plan_whose_pairs_are_none_is_refused(sets, tmp_path, change, words):
    run = open_or_plan(scoring(sets, tmp_path / "s"))
    plan, unit = pq.read_table(run.folder / PLAN), next(run.units())
    listed = plan.to_pylist()
    listed[0]["pairs"] = change(listed[0]["pairs"])
    pq.write_table(pa.Table.from_pylist(listed, plan.schema), run.folder / PLAN)
    with pytest.raises(JobError, match=f"cannot be read as a plan: .*{words}"):
        read_members(run.folder / PLAN, unit)


# The job


GOOD = {"data": {"kind": "restored", "shards": "a", "truth": "b"}, "output": "o"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"kind": "restored", "shards": "a"}}, "data.truth: missing"),
        ({"degradation": {"operator": {"name": "denoise"}}}, "degradation: restored images are compared as"),
        ({"sampler": {"name": "dps"}}, "sampler: restored images are compared as they are; leave it out"),
        ({"data": GOOD["data"] | {"fit": "resize_crop"}}, "data.fit: "),
        ({"data": GOOD["data"] | {"range": "[0,1]"}}, "data.range: "),
        ({"restoration": {"format": "png16"}}, "restoration: restored images are compared"),
        (
            {"data": {"shards": "a", "truth": "b"}, "degradation": {"operator": {"name": "denoise"}}},
            "data.truth: is for data.kind=restored; leave it out",
        ),
    ],
)
def test_what_a_job_of_restored_images_has_no_use_for_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Job.model_validate(GOOD | change)


def test_a_job_of_restored_images_is_read_as_it_is_written_and_no_other_one_changes(make_job):
    job = Job.model_validate(GOOD)
    assert job.metrics == ["psnr", "ssim"]
    assert not {"degradation", "prior", "sampler"} & job.model_dump().keys()
    again = Job.model_validate(job.model_dump(mode="json"))
    assert (again, config_hash(again)) == (job, config_hash(job))
    other = make_job().model_dump()
    assert {"degradation", "prior", "sampler"} <= other.keys()
    assert not {"truth", "pattern", "truth_pattern"} & other["data"].keys()


def test_a_sweep_of_restored_images_is_refused(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(GOOD))
    with pytest.raises(JobError, match=r"data\.kind: images are restored for tuning, and these are"):
        kintsugi("sweep", file, "--vary", "compute.unit_size=1,2", "--out", tmp_path / "x")


# Compared


def earlier(folder: Path, values: dict[str, float]) -> Path:
    """What `kintsugi score` made when it was no run."""
    folder.mkdir()
    columns = {"key": list(values), "source": [None] * len(values), "status": ["ok"] * len(values)}
    errors = pa.array([None] * len(values), pa.string())
    pq.write_table(
        pa.table(columns | {"error": errors, "psnr": list(values.values())}), folder / "rows.parquet"
    )
    means = {"psnr": {"mean": float(np.mean(list(values.values())))}}
    (folder / "metrics.json").write_text(json.dumps({"title": "theirs", "metrics": means, "sets": {}}))
    return folder


def test_scores_are_compared_with_each_other_and_with_those_of_earlier_versions(sets, tmp_path):
    score(sets, tmp_path / "s")
    values = {row["key"]: row["psnr"] for row in table(tmp_path / "s")}
    old = earlier(tmp_path / "old", values)
    said = kintsugi("compare", tmp_path / "s", old, "--out", tmp_path / "c")
    assert said.exit_code == 0
    assert "5 images compared" in said.output
    assert "before rounding" not in said.output, "both are of 8 bits"
    found = json.loads((tmp_path / "c" / "compare.json").read_text())
    (pair,) = found["paired"]
    assert (pair["n"], pair["difference"], pair["wins"]) == (5, 0.0, 0.5)
    assert [set(run["cost"].values()) for run in found["runs"]] == [{None}, {None}]
    page = (tmp_path / "c" / "compare.html").read_text()
    assert page.count("Not known: these images were made by another program.") == 2
    assert page.count('data-kind="run0"') == page.count('data-kind="truth"') == 5, "the first keep pictures"
    assert "5" in kintsugi("query", old, "select count(*) from rows").output


@pytest.mark.slow
def test_the_plan_of_a_score_is_read_from_an_object_store(s3, tmp_path):
    for name, make in (("r", theirs), ("t", picture)):
        tar = write_tar(tmp_path / f"{name}.tar", [(f"i{n}.png", encode(make(n))) for n in range(3)])
        with publish(at(f"{s3}/score/{name}.tar")) as temporary:
            temporary.write_bytes(tar.read_bytes())
    sets = [f"{s3}/score/{name}.tar" for name in "rt"]
    remote = execute(scoring(sets, f"{s3}/score/run"))
    local = execute(scoring([tmp_path / f"{name}.tar" for name in "rt"], tmp_path / "s"))
    assert [row["psnr"] for row in rows(remote)] == [row["psnr"] for row in rows(local)]
    assert read_summary(remote.folder / PLAN).samples == 3
    assert rows(local)[0]["source"] == f"PNG RGB {SIZE}x{SIZE}"
