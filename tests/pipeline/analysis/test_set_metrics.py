"""Metrics of sets in a run: features with clean-fid's networks from files in their official layouts."""

import hashlib
import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from kit.shards import SIZE, encode, picture, write_tar
from torch import nn
from typer.testing import CliRunner

from kintsugi.errors import JobError
from kintsugi.jobs.cli import app
from kintsugi.pipeline.analysis.set_metrics import set_metrics
from kintsugi.pipeline.execution.commit import read_features
from kintsugi.pipeline.execution.directory import REPORT, commit_file, features_file
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.local import in_process
from kintsugi.pipeline.execution.open import open_or_plan, plan
from kintsugi.pipeline.execution.reference import reference_of
from kintsugi.pipeline.execution.run import Part
from kintsugi.pipeline.execution.verify import Finding, repair, verify
from kintsugi.pipeline.job import config_hash
from kintsugi.pipeline.metrics import SETS, weights
from kintsugi.pipeline.metrics.features import Extractor, arrays
from kintsugi.pipeline.metrics.sets import evaluate
from kintsugi.pipeline.storage.records import sealed, unsealed


class Inception(nn.Module):
    """A small network with the interface of the published TorchScript: `layers`; `forward` resizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 2048, 1), nn.ReLU()
        )

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = nn.functional.interpolate(x, size=[299, 299], mode="bilinear", align_corners=False)
        return self.layers((x - 128) / 128).flatten(1)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Both Inception files, random, in torch hub's folder."""
    import torchvision

    home = tmp_path_factory.mktemp("torch")
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.jit.script(Inception().eval()).save(str(folder / weights.INCEPTION.name))
    model = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1 / 6)  # what torch's own initialisation and a ReLU leave of the variance
    torch.save(model.state_dict(), folder / weights.PT_INCEPTION.name)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCH_HOME", str(home))
        yield folder


def finished(job):
    run = open_or_plan(job)
    for _ in in_process([Part(run, list(run.outstanding()))], Live()):
        pass
    return run


def kintsugi(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], standalone_mode=False)


def fid_of(a, b):
    """clean-fid's own takes half a minute for 2,048 features; of a dozen samples this is the same number."""
    n, m = len(a) - 1, len(b) - 1
    common = np.linalg.norm((a - a.mean(0)) @ (b - b.mean(0)).T, "nuc") / np.sqrt(n * m)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() - 2 * common


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six images as PNG files."""
    found = tmp_path_factory.mktemp("images")
    for i in range(6):
        (found / f"{i}.png").write_bytes(encode(picture(i, 64)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch", "legacy_tensorflow"])
def test_features_are_clean_fids_of_the_same_files(mode, networks, folder):
    from cleanfid.features import build_feature_extractor
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    if mode == "legacy_pytorch":
        model = build_feature_extractor(mode, torch.device("cpu"), use_dataparallel=False)
    else:
        model = InceptionV3W(str(networks), download=False, resize_inside=mode == "legacy_tensorflow")
    some = sorted(folder.glob("*.png"))[:3]
    expected = get_folder_features(
        str(folder), model, num_workers=0, num=3, mode=mode, device=torch.device("cpu"), verbose=False
    )
    extract = Extractor([mode])
    keys = [path.stem for path in some]
    found = np.stack([each[mode] for each in extract(keys, [picture(int(key), 64) for key in keys])])
    # Half a step of the grid, and what a batch changes in the last digits.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2**-17 + 1e-5)
    assert expected.std(0).max() > 1e-3


def test_fid_of_a_run_is_clean_fids_of_its_files(networks, make_job, tmp_path):
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    run = finished(make_job(metrics=["psnr", "fid", "kid", "precision", "recall", "swd"], images="all"))
    found = set_metrics(run)
    assert list(found) == ["fid", "kid", "precision", "recall", "swd"]
    model = InceptionV3W(str(networks), download=False)
    features = []
    for name in ("restored", "truth"):
        (tmp_path / name).mkdir()
        for file in sorted(run.folder.glob("data/*.parquet")):
            for row in pq.read_table(file, columns=["key", name]).to_pylist():
                (tmp_path / name / f"{row['key']}.png").write_bytes(row[name])
        features.append(
            get_folder_features(
                str(tmp_path / name), model, num_workers=0, device=torch.device("cpu"), verbose=False
            ).astype(np.float64)
        )
    assert found["fid"].value == pytest.approx(fid_of(*features), rel=1e-3)
    assert found["fid"].n == 12
    assert found["fid"].low is None, "of so few there is no interval"
    assert found["fid"].reference == "the true images of this run"
    assert any("fewer than 2,048" in warning for warning in found["fid"].warnings)
    assert not found["swd"].warnings
    assert found["swd"].value > 0


@pytest.mark.slow
def test_sets_and_files_are_the_same_for_other_units(networks, make_job, tmp_path):
    metrics = ["fid", "swd"]
    results = []
    for size in (2, 4, 12):
        compute = {"batch_size": 1, "unit_size": size, "cpus_per_actor": 1}
        job = make_job(metrics=metrics, compute=compute, output=str(tmp_path / f"{size}"))
        results.append(set_metrics(finished(job)))
    assert results[0] == results[1] == results[2]


@pytest.mark.slow
def test_the_record_vouches_for_the_features(networks, make_job):
    run = finished(make_job(metrics=["fid"]))
    unit, commit = next(run.commits())
    file = features_file(run.folder, unit.unit)
    table = read_features(run.folder, commit)
    assert table["key"].to_pylist() == ["image_000", "image_001", "image_002"]
    assert {name: values.shape for name, values in arrays(table).items()} == {
        "clean": (3, 2048),
        "clean_truth": (3, 2048),
    }
    assert commit.features_bytes == file.stat().st_size
    record = commit_file(run.folder, unit.unit)
    whole = record.read_bytes()
    without = {"features_sha256": None, "features_bytes": None}
    record.write_bytes(sealed(json.loads(unsealed(whole)) | without))
    (found,) = (found for found in verify(run) if isinstance(found, Finding))
    assert found.what == "there are no features, which metrics of sets are computed from"
    record.write_bytes(whole)
    assert commit.made_by["weights of fid"].startswith("inception-2015-12-05.pt, SHA-256 ")
    assert not [found for found in verify(run) if isinstance(found, Finding)]
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    (found,) = (found for found in verify(run) if isinstance(found, Finding))
    assert "is not the file that was committed" in found.what
    with pytest.raises(JobError, match="is not the file that was committed"):
        set_metrics(run)
    file.write_bytes(content[:-1])
    assert [each.unit for each in run.outstanding()] == [unit.unit]
    repair(run, found)
    assert not file.exists()
    assert not commit_file(run.folder, unit.unit).exists()
    again = finished(run.job)
    assert not [found for found in verify(again) if isinstance(found, Finding)]


def test_failed_samples_done_again_keep_the_features_of_the_others(networks, make_job, tmp_path):

    shard = tmp_path / "s.tar"
    members = [(f"{i}.png", encode(picture(i))) for i in range(3)]
    write_tar(shard, members)
    clean = make_job(
        data={"shards": str(shard), "size": SIZE},
        metrics=["fid", "swd"],
        compute={"batch_size": 1, "cpus_per_actor": 1},
        output=str(tmp_path / "a"),
    )
    expected = set_metrics(finished(clean))
    size = len(members[1][1])
    write_tar(shard, [members[0], ("1.png", b"x" * size), members[2]])
    broken = clean.model_copy(update={"output": str(tmp_path / "b")})
    run = finished(broken)
    assert set_metrics(run)["fid"].n == 2
    write_tar(shard, members)
    for _ in in_process([Part(run, list(run.with_failures()), failed_only=True)], Live()):
        pass
    found = set_metrics(run)
    assert found["swd"] == expected["swd"]
    assert found["fid"].n == 3
    assert found["fid"].value == pytest.approx(expected["fid"].value, rel=1e-6)


@pytest.mark.slow
def test_statistics_in_a_file_are_a_reference(networks, make_job, folder, tmp_path):
    out = tmp_path / "reference.npz"
    outcome = kintsugi("stats", folder, out)
    assert outcome.exception is None, outcome.exception
    assert "statistics of 6 images, mode clean" in outcome.output
    stored = dict(np.load(out))
    assert (int(stored["n"]), str(stored["mode"]), int(stored["size"])) == (6, "clean", 64)
    assert stored["features"].shape == (6, 2048)
    assert str(stored["weights"]) == weights.INCEPTION.digest()
    metrics = ["fid", "kid", "precision", "recall"]
    by_file = set_metrics(finished(make_job(metrics=metrics, reference=str(out))))
    assert by_file["fid"].reference_sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    job = make_job(metrics=metrics, reference=str(folder), output=str(tmp_path / "folder"))
    run = finished(job)
    by_folder = set_metrics(run)
    assert {name: each.value for name, each in by_file.items()} == {
        name: each.value for name, each in by_folder.items()
    }
    columns = [arrays(read_features(run.folder, commit))["clean"] for _, commit in run.commits()]
    assert not any("truth" in name for name in read_features(run.folder, next(run.commits())[1]).column_names)
    restored = np.concatenate(columns).astype(np.float64)
    assert by_file["fid"].value == pytest.approx(fid_of(restored, stored["features"].astype(float)), rel=1e-6)
    care = " ".join(by_file["fid"].warnings)
    assert "images of 32 pixels are compared with a reference of 64 pixels" in care
    assert "the reference has 6 samples" in care


def test_missing_files_are_named_before_anything_runs(networks, make_job, tmp_path, monkeypatch):
    published = {"name": "ffhq", "split": "trainval70k", "resolution": 256}
    cases = {
        "ffhq_clean_trainval70k_256.npz, which are missing": make_job(metrics=["fid"], reference=published),
        "no such file": make_job(metrics=["fid"], reference=str(tmp_path / "none.npz")),
        "reference: no such file": make_job(metrics=["fid"], reference=str(tmp_path / "none")),
    }
    for what, job in cases.items():
        with pytest.raises(JobError, match=what):
            plan(job, tmp_path, lambda unit: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(JobError, match=r"metrics: lpips: .*alexnet-owt-7be5be79.pth"):
        open_or_plan(make_job(metrics=["lpips"]))
    assert not (tmp_path / "run" / "plan.parquet").exists()


def test_statistics_of_another_mode_are_refused(networks, make_job, tmp_path):
    file = tmp_path / "other.npz"
    np.savez(file, mu=np.zeros(2048), sigma=np.eye(2048), mode="legacy_pytorch")
    with pytest.raises(JobError, match="was made with --mode legacy_pytorch, and fid needs clean"):
        plan(make_job(metrics=["fid"], reference=str(file)), tmp_path, lambda unit: None)
    np.savez(file, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(JobError, match="holds no features"):
        plan(make_job(metrics=["kid"], reference=str(file)), tmp_path, lambda unit: None)


def test_jpeg_inputs_are_warned_of(networks, make_job, tmp_path):
    shard = write_tar(tmp_path / "j.tar", [(f"{i}.jpg", encode(picture(i), "JPEG")) for i in range(2)])
    found = set_metrics(finished(make_job(data={"shards": str(shard), "size": SIZE}, metrics=["swd"])))
    assert any("2 of the inputs were compressed as JPEG" in warning for warning in found["swd"].warnings)


def test_a_job_without_reference_has_the_hash_it_had_before_there_was_one(make_job):
    from kintsugi.pipeline.job import deciding

    assert "reference" not in deciding(make_job())
    assert config_hash(make_job(reference="a/b")) != config_hash(make_job())


@pytest.mark.slow
def test_score_measures_images_of_another_method(networks, folder, tmp_path):
    from kintsugi.pipeline.metrics.scoring import Scorer

    restored = tmp_path / "other"
    (restored / "sub").mkdir(parents=True)
    for i in range(5):
        blurred = (picture(i, 64) // 2 + 30).astype(np.uint8)
        (restored / f"{i}.png").write_bytes(encode(blurred))
    (restored / "sub" / "extra.png").write_bytes(encode(picture(9, 64)))
    out = tmp_path / "scores"
    outcome = kintsugi("score", restored, folder, "--metrics", "psnr,ssim,fid,swd", "--out", out)
    assert outcome.return_value == 2
    assert "no truth for: sub/extra" in outcome.output
    assert "not restored: 5" in outcome.output
    rows = pq.read_table(out / REPORT / "rows.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["0", "1", "2", "3", "4"]
    a, b = (
        torch.from_numpy(x).permute(2, 0, 1)[None] / 127.5 - 1
        for x in ((picture(3, 64) // 2 + 30).astype(np.uint8), picture(3, 64))
    )
    assert rows[3]["psnr"] == Scorer(["psnr"])(a, b)["psnr"][0]
    metrics = json.loads((out / REPORT / "metrics.json").read_text())
    assert metrics["samples"] == {"planned": 5, "done": 5, "ok": 5, "failed": 0}
    assert metrics["metrics"]["psnr"]["mean"] == pytest.approx(np.mean([row["psnr"] for row in rows]))
    assert metrics["sets"]["fid"]["n"] == 5
    stored = arrays(pq.read_table(features_file(out, "00000-0000000")))
    seen = [
        np.stack([Extractor(["clean"])([str(i)], [images(i)])[0]["clean"] for i in range(5)])
        for images in (lambda i: (picture(i, 64) // 2 + 30).astype(np.uint8), lambda i: picture(i, 64))
    ]
    assert metrics["sets"]["fid"]["value"] == pytest.approx(
        fid_of(*(x.astype(float) for x in seen)), rel=1e-6
    )
    assert np.array_equal(stored["clean_truth"], seen[1])
    assert metrics["without_truth"] == ["sub/extra"]


@pytest.mark.slow
def test_score_with_another_reference_does_not_use_the_statistics_of_the_first(networks, tmp_path):
    for place, numbers in (("restored", (0, 1)), ("first", (2, 3)), ("second", (4, 5, 6))):
        (tmp_path / place).mkdir()
        for i in numbers:
            (tmp_path / place / f"{i}.png").write_bytes(encode(picture(i, 64)))
    images, out = tmp_path / "restored", tmp_path / "second run"
    found = []
    for name in ("first", "second"):
        given = ("--reference", tmp_path / name, "--out", tmp_path / f"{name} run")
        kintsugi("score", images, images, "--metrics", "fid", *given)
        found.append(json.loads((given[-1] / REPORT / "metrics.json").read_text())["sets"]["fid"])
    refused = kintsugi("score", images, images, "--metrics", "fid", *given[:-1], tmp_path / "first run")
    assert "holds a run of another job" in str(refused.exception)
    extract = Extractor(["clean"])
    seen, second = (
        np.stack([extract([f"{i}"], [picture(i, 64)])[0]["clean"] for i in numbers]).astype(float)
        for numbers in ((0, 1), (4, 5, 6))
    )
    assert found[1]["value"] == pytest.approx(fid_of(seen, second), rel=1e-6)
    assert found[0]["reference_sha256"] != found[1]["reference_sha256"]
    (tmp_path / "second" / "4.png").unlink()  # other images under the same name
    reference = reference_of(str(tmp_path / "second"), out)
    assert "the reference has 2 samples, fewer than features" in reference.warnings("clean", 64)
    digest = reference.digest(SETS["fid"])
    assert digest != found[1]["reference_sha256"]
    shutil.rmtree(tmp_path / "second")
    lost = reference_of(str(tmp_path / "second"), out)
    assert lost.digest(SETS["fid"]) == digest
    assert any("not there any more" in warning for warning in lost.warnings("clean", 64))


def test_a_reference_that_cannot_be_read_leaves_the_number_out_and_says_so(make_job, tmp_path, monkeypatch):
    """What is found at planning is refused; this is one that was lost later."""
    values = {"clean": np.ones((5, 2048), np.float32)}
    found = evaluate(
        ["fid"],
        5,
        lambda columns: [(list("abcde"), values)],
        reference_of(str(tmp_path / "none"), tmp_path),
        8,
        [],
    )["fid"]
    assert found.value is None
    assert found.warnings[-1].startswith("not computed: reference: no such file")


BAD = {
    "no npz": (lambda file: file.write_bytes(b"PK\x03\x04 and nothing more"), "cannot be read as an .npz"),
    "one array": (lambda file: np.save(file.open("wb"), np.eye(3)), "cannot be read as an .npz"),
    "objects": (lambda file: np.savez(file, mu=np.array([{}] * 2048)), "cannot be read as an .npz"),
    "a vector": (
        lambda file: np.savez(file, mu=np.zeros(2048), sigma=np.zeros(2048)),
        "does not hold mu and sigma",
    ),
    "asymmetric": (lambda file: np.savez(file, mu=np.zeros(2048), sigma=np.tri(2048)), "it is not symmetric"),
    "not finite": (
        lambda file: np.savez(file, mu=np.full(2048, np.nan), sigma=np.eye(2048)),
        "are not all finite numbers",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_of_statistics_is_refused_at_planning(kind, tmp_path, monkeypatch):
    from kintsugi.pipeline.execution import reference

    monkeypatch.setattr(reference, "refuse_missing_weights", lambda metrics: None)
    make, words = BAD[kind]
    file = tmp_path / "bad.npz"
    make(file)
    with pytest.raises(JobError, match=f"^reference: .*{words}"):
        reference.refuse_missing(["fid"], str(file))


def test_the_reference_must_not_hold_secrets(make_job):
    with pytest.raises(ValueError, match="reference"):
        make_job(metrics=[], reference="s3://key:secret@bucket/ffhq.npz")


@pytest.mark.slow
def test_score_takes_clean_fids_published_statistics(networks, folder, tmp_path, monkeypatch):
    from kintsugi.pipeline.execution import reference

    bad = kintsugi("score", folder, folder, "--metrics", "fid", "--reference", "{name: ffhq}")
    assert re.match(r"--reference\.split: Field required", str(bad.exception))
    given = "{name: ffhq, split: trainval70k, resolution: 64}"
    outcome = kintsugi("score", folder, folder, "--metrics", "fid", "--reference", given, "--out", tmp_path)
    assert "ffhq_clean_trainval70k_64.npz, which are missing" in str(outcome.exception)
    monkeypatch.setattr(reference, "published", lambda *_: tmp_path / "published.npz")
    np.savez(tmp_path / "published.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    kintsugi("score", folder, folder, "--metrics", "fid", "--reference", given, "--out", tmp_path)
    found = json.loads((tmp_path / REPORT / "metrics.json").read_text())["sets"]["fid"]
    assert found["reference"] == "clean-fid's statistics of ffhq, trainval70k, 64"
    assert found["value"] > 0


def test_score_goes_on_after_an_image_whose_truth_has_no_features(folder, tmp_path, monkeypatch):
    original, calls = Extractor.__call__, []

    def faulty(self, keys, images, of_data):
        calls.extend(keys)
        if "1" in keys and calls.count("1") % 2 == 0:  # its truth, which is seen once more
            raise RuntimeError("no features")
        return original(self, keys, images, of_data)

    with monkeypatch.context() as context:
        context.setattr(Extractor, "__call__", faulty)
        kintsugi("score", folder, folder, "--metrics", "psnr,swd", "--out", tmp_path)
    rows = pq.read_table(tmp_path / REPORT / "rows.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "failed", "ok", "ok", "ok", "ok"]
    assert rows[1]["psnr"] is None
    assert rows[1]["error"] == "RuntimeError: no features"
    stored = pq.read_table(features_file(tmp_path, "00000-0000000"))
    assert stored["key"].to_pylist() == ["0", "2", "3", "4", "5"]
    found = json.loads((tmp_path / REPORT / "metrics.json").read_text())
    assert found["sets"]["swd"]["n"] == 5
    assert found["metrics"]["psnr"]["infinite"] == 5

    def broken(self, keys, images, of_data):
        raise torch.AcceleratorError("the device is gone")

    monkeypatch.setattr(Extractor, "__call__", broken)
    outcome = kintsugi("score", folder, folder, "--metrics", "psnr,swd", "--out", tmp_path / "broken")
    assert isinstance(outcome.exception, torch.AcceleratorError)


def test_score_counts_values_that_are_not_defined(tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("a", "b"):
        (images / f"{name}.png").write_bytes(encode(np.zeros((64, 64, 3), np.uint8)))
    (images / "c.png").write_bytes(encode(picture(1, 64)))
    outcome = kintsugi("score", images, images, "--metrics", "vif", "--out", out)
    found = json.loads((out / REPORT / "metrics.json").read_text())["metrics"]["vif"]
    assert (found["n"], found["undefined"]) == (1, 2)
    assert found["mean"] == pytest.approx(1, abs=1e-5)
    assert "1 + 2 undefined" in outcome.output


def test_a_second_report_takes_the_set_metrics_that_are_kept(make_job, monkeypatch):
    run = finished(make_job(metrics=["swd"]))
    first = set_metrics(run)
    with monkeypatch.context() as context:
        context.setattr(
            "kintsugi.pipeline.analysis.set_metrics.evaluate", lambda *_: pytest.fail("computed again")
        )
        assert set_metrics(run) == first
    computed = []

    def anew(*given):
        computed.append(given)
        return evaluate(*given)

    kept = run.folder / "report" / "sets.json"
    unit = next(run.units()).unit
    for stale in (
        lambda: kept.write_text("{"),
        lambda: monkeypatch.setattr("kintsugi.pipeline.analysis.set_metrics.VERSION", 0),
        lambda: commit_file(run.folder, unit).unlink(),
    ):
        stale()
        with monkeypatch.context() as context:
            context.setattr("kintsugi.pipeline.analysis.set_metrics.evaluate", anew)
            again = set_metrics(run)
    assert len(computed) == 3
    assert again["swd"].n == 9
