"""Fuzzing, a few inputs of each kind; `python benchmarks/fuzz.py` tries more."""

from itertools import islice

import pytest
from kit.fuzz import MEMORY, TARGETS, Tally, inputs, memory

COUNTS = {
    "images": 250,
    "npy": 200,
    "masks.png": 100,
    "masks.npy": 100,
    "masks.npz": 100,
    "kernels.mat": 100,
    "headers of tars": 600,
    "tars": 60,
    "zips": 60,
    "checkpoints": 60,
    "checkpoints of flows": 40,
    "checkpoints of lucidrains": 30,
    "pickles of EDM": 150,
    "safetensors": 30,
    "model_index.json": 15,
    "unet/config.json": 15,
    "scheduler_config.json": 15,
    "job files": 10,
    "commit records": 3,
    "rows": 3,
    "plans": 3,
    "job.yaml of a run": 2,
    "prior.json of a run": 2,
    "whole runs": 5,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is broken in the files
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_in_a_file_there_is_an_answer(name):
    """Good files are read, or refused for what they are: else the mutations would be of what fails anyway."""
    target, good = TARGETS[name](), Tally()
    for content in target.seeds:
        good.add(target, content)
    assert not good.faults
    assert good.read or name == "checkpoints of flows"
    before, tally = memory(), Tally()
    for content in islice(inputs(target, seed=0), COUNTS[name]):
        tally.add(target, content)
    assert [why for why, _ in tally.faults] == []
    assert memory() - before < MEMORY
