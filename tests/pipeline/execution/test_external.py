"""The sampler `external`: a program of the user's restores, as the job says and with consent only."""

import hashlib
import os
import re
import signal
import sys
import textwrap
import time
from functools import partial

import numpy as np
import pytest
import torch
from kit.jobs import execute, forked, kintsugi, rows, told, write_job
from PIL import Image

from kintsugi import operators, samplers
from kintsugi.errors import JobError, SpecError
from kintsugi.jobs import cluster, options
from kintsugi.pipeline.data.pictures import decoded
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Run
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.external import CONSENT

FACTOR = {"name": "bicubic", "factor": 4}
BICUBIC = """
import sys
from pathlib import Path
from PIL import Image
for file in sorted(Path(sys.argv[1]).iterdir()):
    image = Image.open(file)
    image.resize((4 * image.width, 4 * image.height), 3).save(Path(sys.argv[2], file.name))
"""
COPY = """
import sys
from pathlib import Path
import numpy as np
for file in sorted(Path(sys.argv[1]).iterdir()):
    values = np.load(file)
    {what}
    np.save(Path(sys.argv[2], file.name), values)
"""


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setenv(CONSENT, "1")


@pytest.fixture
def program(tmp_path):
    """Writes a script, and gives the command that runs it."""

    def made(text: str, **fields) -> dict:
        script = tmp_path / "restore.py"
        script.write_text(textwrap.dedent(text))
        command = [sys.executable, "-S" if "numpy" not in text and "PIL" not in text else "-I", str(script)]
        return {"name": "external", "command": [*command, "{measurements}", "{restored}"], **fields}

    return made


def restored(spec: dict, count: int = 2, operator=None):
    operator = operator or operators.build({"name": "denoise"}, (3, 8, 8))
    y = torch.linspace(-1.5, 1.5, count * 192).reshape(count, *operator.measurement_shape)
    return y, samplers.build(spec)(None, operator, y, KeyedNoise(0, ["a"] * count))


def test_values_go_through_npy_as_they_are(program):
    y, outcome = restored(program(COPY.format(what="values = values[:, ::-1] / 2")))
    assert torch.equal(outcome.image, y.flip(2) / 2)
    assert (outcome.forwards, outcome.vjps) == (0, 0)


def test_pictures_are_of_eight_bits(program):
    copy = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)"
    y, outcome = restored(program(copy, format="png"))
    assert (outcome.image - y.clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-6
    sampler = samplers.build(program(copy, format="png"))
    with pytest.raises(ValueError, match="format: png holds images of 1 or 3 channels"):
        sampler.prepare(None, operators.build({"name": "denoise"}, (4, 8, 8)), 0.0, torch.zeros(1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import sys; print('a'); sys.exit('no GPU')", "the command ended with 1: a / no GPU"),
        ("import os; os.abort()", "the command ended with -6: "),
        ("", "the command wrote no 0000.npy"),
        (COPY.format(what="values = values[:, 1:]"), "float32 of shape (3, 7, 8), not floats of (3, 8, 8)"),
        (COPY.format(what="values = values.astype(int)"), "the command wrote int64 of shape (3, 8, 8), not"),
        (COPY.format(what="values = np.array([print] * 3)"), "the command wrote object of shape (3,), not"),
        ("import sys; print(sys.argv[1]); sys.exit(3)", "the command ended with 3: …/measurements"),
    ],
)
def test_what_goes_wrong_is_said(program, text, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        restored(program(text), 1)


def test_one_that_takes_too_long_is_ended_with_what_it_started(program, tmp_path):
    beat = tmp_path / "beat"
    child = f"import time; [(open({str(beat)!r}, 'a').write('.'), time.sleep(0.05)) for _ in range(400)]"
    text = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    started = time.monotonic()
    with pytest.raises(ValueError, match="took more than 1 s"):
        restored(program(text, timeout_s=1), 1)
    assert time.monotonic() - started < 10
    time.sleep(0.2)
    size = beat.stat().st_size if beat.exists() else 0
    time.sleep(0.3)
    assert (beat.stat().st_size if beat.exists() else 0) == size


@pytest.mark.parametrize(
    "command", ["restore", "python r.py {measurements}", ["{measurements}{restored}"], ""]
)
def test_a_command_names_both_folders(command):
    with pytest.raises(SpecError, match=r"sampler.command: .*does not say where"):
        samplers.build({"name": "external", "command": command})


def test_nothing_is_run_without_consent(program, make_job, monkeypatch, tmp_path):
    monkeypatch.delenv(CONSENT)
    made = tmp_path / "made"
    job = make_job(sampler=program(f"open({str(made)!r}, 'w')"))
    file = write_job(tmp_path / "job.yaml", job)
    for arguments in (("run", file, "--address", "none"), ("plan", file)):
        code, output = told(*arguments)
        if arguments[0] == "run":
            assert (code, "--allow-commands" in output, CONSENT in output) == (1, True, True)
        else:
            assert (code, "run for every batch" in output) == (0, True)
    with pytest.raises(JobError, match="--allow-commands"):
        open_or_plan(job)
    with pytest.raises(ValueError, match="--allow-commands"):
        restored(job.sampler)
    assert not made.exists()
    assert not job.folder.exists()
    # What another has run is looked at, reported and compared without it.
    monkeypatch.setenv(CONSENT, "1")
    open_or_plan(job)
    monkeypatch.delenv(CONSENT)
    assert Run.open(job.folder).job.sampler == job.sampler
    assert kintsugi("status", job.folder).exit_code == 0
    monkeypatch.setattr(os, "environ", {})
    options.consent(True)
    assert os.environ == {CONSENT: "1"}


def test_a_program_that_is_not_there_ends_the_job_and_no_row_is_lost(make_job, tmp_path):
    command = "no-such-program {measurements} {restored}"
    file = write_job(tmp_path / "job.yaml", make_job(sampler={"name": "external", "command": command}))
    code, output = told("run", file, "--address", "none")
    assert code == 1
    assert "sampler.command: there is no program 'no-such-program' on this machine" in output


def test_a_job_by_a_program_is_what_the_program_makes(program, make_job, tmp_path):
    """Bicubic by Pillow. An image that it leaves out fails alone, and says why."""
    compute = {"batch_size": 3, "unit_size": 12, "cpus_per_actor": 1}
    job = partial(make_job, degradation={"operator": FACTOR}, compute=compute, images="all")
    whole = job(sampler=program(BICUBIC, format="png"))
    code, output = told("run", write_job(tmp_path / "job.yaml", whole), "--address", "none")
    assert code == 0, output
    report = (whole.folder / "report/report.md").read_text()
    assert "restored by a command, whose own cost is not known" in report
    assert "natural" not in report.splitlines()[0], "no prior was asked"
    done = rows(Run.open(whole.folder))
    assert len(done) == 12
    for row in done:
        given, made = decoded(row["measurement"]), decoded(row["restored"])
        wanted = Image.fromarray(given).resize(made.shape[:2], Image.Resampling.BICUBIC)
        assert np.abs(made.astype(int) - np.asarray(wanted, int)).max() <= 1
        assert (row["forwards"], row["vjps"], row["status"]) == (0, 0, "ok")
    unwanted = hashlib.sha256(decoded(done[4]["measurement"]).tobytes()).hexdigest()
    picky = f"if hashlib.sha256(image.tobytes()).hexdigest() == {unwanted!r}: continue"
    text = "import hashlib\n" + BICUBIC.replace("image.resize", f"{picky}\n    image.resize")
    failing = rows(execute(job(sampler=program(text, format="png"), output=str(tmp_path / "picky"))))
    assert [row["error"] for row in failing if row["status"] == "failed"] == [
        "ValueError: the command wrote no 0000.png"
    ]
    for before, now in zip(done, failing, strict=True):
        assert now["error"] or now["restored"] == before["restored"]


def test_killed_in_the_middle_it_goes_on(program, make_job, tmp_path):
    """The third call of the program hangs; its worker is killed, and the same command does the rest."""
    calls = tmp_path / "calls"
    hang = (
        f"""
import sys, time
from pathlib import Path
with open({str(calls)!r}, "a") as file: file.write("x")
if len(Path({str(calls)!r}).read_text()) == 3: time.sleep(60)
"""
        + BICUBIC
    )
    compute = {"batch_size": 3, "unit_size": 3, "cpus_per_actor": 1}
    job = make_job(sampler=program(hang, format="png"), degradation={"operator": FACTOR}, compute=compute)
    file = write_job(tmp_path / "job.yaml", job)
    child = forked(tmp_path / "log", "run", file, "--address", "none")
    deadline = time.monotonic() + 60
    while not (calls.exists() and len(calls.read_text()) >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert Run.open(job.folder).progress().units == 2
    code, _ = told("run", file, "--address", "none")
    progress = Run.open(job.folder).progress()
    assert (code, progress.units, progress.rows, progress.failed) == (0, 6, 12, 0)
    assert len(calls.read_text()) == 3 + 4, "what is done is not done again"


def test_consent_goes_with_a_job_that_is_sent():
    assert sent_with() == {CONSENT: "1"}


def test_without_consent_a_job_is_sent_without_it(monkeypatch):
    monkeypatch.delenv(CONSENT)
    assert sent_with() == {}


def sent_with() -> dict[str, str]:
    """What of the environment of a job that is sent is about consent."""
    asked = {}

    class Client:
        def submit_job(self, **options):
            asked.update(options["runtime_env"]["env_vars"])
            return "id"

    cluster.submit(Client(), "true", "folder", {})
    return {name: value for name, value in asked.items() if name == CONSENT}
