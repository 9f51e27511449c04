"""Clips: noise that their frames share, and restored frames in order."""

import tarfile

import numpy as np
import pytest
import torch
from kit.jobs import execute, rows
from kit.shards import SIZE, encode, picture, write_tar
from pydantic import ValidationError

from kintsugi.pipeline.data.names import frame_of
from kintsugi.pipeline.data.pictures import decoded
from kintsugi.pipeline.execution.ledger import Task
from kintsugi.pipeline.execution.restored import write_restored
from kintsugi.pipeline.execution.samples import noise_of
from kintsugi.pipeline.execution.worker import Worker
from kintsugi.pipeline.job import config_hash, deciding

KEYS = ["a/1", "b/1", "a/2", "b/2", "a/03"]
PER_CLIP = {"noise": "per_clip"}


@pytest.fixture
def clips_job(make_job, tmp_path):
    """A job on frames of two clips, all the same picture, with noise between steps."""

    def make(keys=KEYS, **fields):
        shard = write_tar(tmp_path / "clips.tar", [(f"{key}.png", encode(picture(0))) for key in keys])
        values = {
            "data": {"shards": str(shard), "size": SIZE},
            "degradation": {"operator": {"name": "average_pool", "factor": 4}},
            "sampler": {"name": "ddnm", "steps": 2, "eta": 1.0},
            "images": "all",
            "restoration": PER_CLIP,
        }
        return make_job(**values | fields)

    return make


def pictures(run, of: str = "restored") -> dict[str, bytes]:
    return {row["key"]: row[of] for row in rows(run)}


def levels(run) -> dict[str, np.ndarray]:
    return {key: decoded(content).astype(int) for key, content in pictures(run).items()}


@pytest.mark.parametrize(
    ("key", "frame"),
    [
        ("clip/0001", ("clip/", 1)),
        ("clip_0010", ("clip_", 10)),
        ("2024/take3-9", ("2024/take3-", 9)),
        ("0007", ("", 7)),
        ("photo", ("photo", 0)),
        ("a/1b", ("a/1b", 0)),
        ("a٣", ("a٣", 0)),
        ("9" * 5000, ("9" * 4982, int("9" * 18))),
    ],
)
def test_a_clip_is_the_key_without_the_digits_at_its_end(key, frame):
    assert frame_of(key) == frame


def test_noise_is_the_same_along_a_clip_and_another_in_others(clips_job):
    job = clips_job()
    first, second = (noise_of(job, KEYS, number).normal("start", (4,)) for number in (0, 1))
    for drawn in (first, second):
        assert torch.equal(drawn[0], drawn[2])
        assert torch.equal(drawn[0], drawn[4])
        assert torch.equal(drawn[1], drawn[3])
        assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(first, second), "several samples of a frame have noise of their own"
    other = noise_of(clips_job(seed=1), KEYS).normal("start", (4,))
    assert not torch.equal(first, other)


@pytest.mark.slow
def test_equal_frames_of_a_clip_are_restored_alike_and_those_of_another_not(clips_job, tmp_path):
    """In units, batches and an order of one's own, and by one sample at a time."""
    alone = {"batch_size": 1, "unit_size": 1, "cpus_per_actor": 1}
    backwards = clips_job(KEYS[::-1], compute=alone, output=str(tmp_path / "alone"))
    found = [levels(execute(job)) for job in (backwards, clips_job())]
    a, b = found[0]["a/1"], found[0]["b/1"]
    for frames in found:
        for key, frame in frames.items():
            assert np.abs(frame - (a if key.startswith("a") else b)).max() <= 1, key  # level, of rounding
    assert np.abs(a - b).mean() > 1
    own = levels(execute(clips_job(restoration={}, output=str(tmp_path / "own"))))
    assert np.abs(own["a/1"] - own["a/2"]).mean() > 1


@pytest.mark.slow
def test_measurement_noise_is_each_frame_s_own(clips_job, tmp_path):
    noisy = {"operator": {"name": "average_pool", "factor": 4}, "sigma": 0.1}
    runs = [
        execute(clips_job(degradation=noisy, restoration=noise, output=str(tmp_path / str(i))))
        for i, noise in enumerate((PER_CLIP, {}))
    ]
    shared, own = (pictures(run, "measurement") for run in runs)
    assert shared == own
    assert len(set(shared.values())) == len(KEYS)


def test_jobs_with_noise_per_sample_are_what_they_were(clips_job):
    job = clips_job(restoration={"noise": "per_sample"})
    assert config_hash(job) == config_hash(clips_job(restoration={}))
    assert "restoration.noise" not in deciding(job)
    assert "per_sample" not in job.model_dump_json()
    assert config_hash(clips_job()) != config_hash(job)
    assert torch.equal(noise_of(job, KEYS).normal("start", (4,)), noise_of(job, KEYS).normal("start", (4,)))
    assert noise_of(job, KEYS).keys == KEYS


def test_images_that_are_scored_have_no_noise(make_job):
    data = {"kind": "restored", "shards": "here", "truth": "there"}
    with pytest.raises(ValidationError, match="restoration: restored images are compared as they are"):
        type(make_job()).model_validate(
            {"data": data, "metrics": ["psnr"], "restoration": PER_CLIP, "output": "out"}
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_restored_frames_of_a_clip_are_in_order(make_job, tmp_path, kind):
    """Whatever the order in which units are done; a resumed run's, too."""
    keys = [f"{clip}/{number:02d}" for clip in ("a", "b") for number in range(8, 12)]
    members = [(f"{key}.png", encode(picture(i, 8))) for i, key in enumerate(keys)]
    if kind == "tar":
        shard = write_tar(tmp_path / "clips.tar", members)
    else:
        shard = tmp_path / "clips"
        for name, content in members:
            (shard / name).parent.mkdir(parents=True, exist_ok=True)
            (shard / name).write_bytes(content)
    job = make_job(
        data={"kind": "measurements", "shards": str(shard), "size": SIZE},
        degradation={"operator": {"name": "average_pool", "factor": 4}},
        metrics=[],
        restoration=PER_CLIP,
    )

    def backwards(parts, live):
        (part,) = parts
        worker = Worker(job, part.run.folder, "cpu")
        yield from (worker.process(Task(unit)) for unit in reversed(part.units))

    run = execute(job, backwards)
    write_restored(run)
    if kind == "tar":
        with tarfile.open(run.folder / "restored" / "clips.tar") as tar:
            names = tar.getnames()
    else:
        folder = run.folder / "restored" / "clips"
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png"))
    assert names == [f"{key}.png" for key in keys]
    numbers = [frame_of(name.removesuffix(".png")) for name in names]
    assert numbers == sorted(numbers)
