"""Why samples failed is said where one looks: by run, status and score, with one key for each reason."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from kit.jobs import kintsugi
from kit.shards import SIZE, encode, picture, write_tar

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.failures import Reason, reasons
from kintsugi.pipeline.execution.directory import data_file
from kintsugi.pipeline.execution.run import Run


def test_errors_that_differ_in_numbers_and_names_are_one_reason():
    failed = [
        ("a", "UnreadableImage: it has 40x30 pixels, not 32x32"),
        ("b", "ValueError: no"),
        ("c", "UnreadableImage: it has 31x7 pixels, not 32x32"),
        ("d", "ValueError: cut inside 'd.png' at 1,024"),
        ("e", "ValueError: cut inside 'e.png' at 7"),
        ("f", "UnreadableImage: it has 1x1 pixels, not 32x32"),
    ]
    assert reasons(failed) == [
        Reason(3, failed[0][1], "a"),
        Reason(2, failed[3][1], "d"),
        Reason(1, failed[1][1], "b"),
    ]
    assert reasons([]) == []


@pytest.fixture
def mixed(make_job, tmp_path) -> Path:
    """A job of five images, three of which fail for two reasons."""
    members = [
        ("a.png", encode(picture(0))),
        ("b.png", encode(picture(1, 20))),
        ("c.png", b"no"),
        ("d.png", encode(picture(2, 24))),
        ("e.png", encode(picture(3))),
    ]
    shard = write_tar(tmp_path / "s.tar", members)
    job = make_job(data={"shards": str(shard), "size": SIZE}, metrics=["psnr"])
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json")))
    return tmp_path / "job.yaml"


def test_run_report_and_status_say_why(mixed, tmp_path):
    said = kintsugi("run", mixed, "--address", "none")
    assert said.exit_code == 2
    for text in (said.output, kintsugi("status", tmp_path / "run").output):
        assert re.search(
            r"^2 failed: UnreadableImage: .*20x20.*data\.fit=resize_crop.* \(b\)$", text, re.MULTILINE
        )
        assert "1 failed: UnidentifiedImageError: cannot identify image file" in text
        assert "every sample" not in text
    found = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())["failures"]["reasons"]
    assert [(reason["count"], reason["key"]) for reason in found] == [(2, "b"), (1, "c")]
    assert "2 failed: UnreadableImage" in (tmp_path / "run" / "report" / "report.html").read_text()


def test_a_reason_for_which_every_sample_fails_is_the_error(mixed, tmp_path):
    shard = write_tar(tmp_path / "small.tar", [(f"{i}.png", encode(picture(i, 16 + i))) for i in range(3)])
    said = kintsugi("run", mixed, "--address", "none", "--set", f"data.shards={shard}")
    assert said.exit_code == 2
    for text in (said.output, kintsugi("status", tmp_path / "run").output):
        assert re.search(
            r"^error: every sample failed: UnreadableImage: .*16x16.* \(0\)$", text, re.MULTILINE
        )
        assert "3 failed:" not in text


def test_score_says_why(tmp_path):
    for folder, sizes in (("r", (30, 31, 32)), ("t", (32, 32, 32))):
        (tmp_path / folder).mkdir()
        for number, size in enumerate(sizes):
            content = encode(np.full((size, size, 3), 90, np.uint8))
            (tmp_path / folder / f"{number}.png").write_bytes(content)
    said = kintsugi("score", tmp_path / "r", tmp_path / "t", "--metrics", "psnr", "--out", tmp_path / "s")
    assert said.exit_code == 2
    assert "2 failed: UnreadableImage: it has 30x30 pixels, its truth 32x32 (0)" in said.output


def test_status_of_a_run_whose_rows_are_damaged_is_an_error_in_words(mixed, tmp_path):
    kintsugi("run", mixed, "--address", "none")
    run = Run.open(tmp_path / "run")
    file = data_file(run.folder, next(run.with_failures()).unit)
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(JobError, match=r"cannot be read: .*kintsugi verify"):
        kintsugi("status", tmp_path / "run")
