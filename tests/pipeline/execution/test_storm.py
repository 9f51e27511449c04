"""Runs in process through faults at random points, and on disks that are full, read-only or gone."""

import json
import signal
import subprocess

import pytest
from kit import faults
from kit.faults import MOUNTED, NAMESPACE, Outcome, why_no_mounts

RUNS, DISKS = 24, 1


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[Outcome]:
    """Of `RUNS` runs through random faults, then `DISKS` for each fault of a disk, where one is mounted."""
    folder = tmp_path_factory.mktemp("faults")
    mounting = why_no_mounts() is None
    storm = [*faults.PROGRAM, "storm", folder, "--runs", str(RUNS), "--seed", "0"]
    disks = ["--disks", str(DISKS if mounting else 0)]
    subprocess.run([*(NAMESPACE if mounting else ()), *storm, *disks], check=True, timeout=600)
    return [Outcome(**outcome) for outcome in json.loads((folder / "outcomes.json").read_text())]


def test_runs_through_random_faults_end_as_an_undisturbed_one(outcomes):
    stormy = outcomes[:RUNS]
    assert not [outcome for outcome in stormy if not outcome.clean]
    assert sum(outcome.began is not None for outcome in stormy) > 0.8 * RUNS, "the faults fall into the runs"
    codes = {code for outcome in stormy for code in outcome.codes}
    assert {0, 1, 130, -signal.SIGKILL} <= codes, "and some of them end it"
    assert -signal.SIGTERM not in codes, "which is taken as Ctrl-C, also before any unit is in hand"


@pytest.mark.parametrize("fault", MOUNTED)
def test_a_run_outlives_its_disk(outcomes, fault):
    """Full, read-only, unmounted: for a moment or until the command has given up."""
    if (why := why_no_mounts()) is not None:
        pytest.skip(f"nothing can be mounted here: {why}")
    found = [outcome for outcome in outcomes[RUNS:] if outcome.faults == [fault]]
    assert len(found) == DISKS
    assert not [outcome for outcome in found if not outcome.clean]
