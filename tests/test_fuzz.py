"""Fuzzing, a few hundred inputs of each kind; `python benchmarks/fuzz.py` tries more."""

from itertools import islice

import pytest
from fuzz import MEMORY, failure, inputs, memory, targets

COUNTS = {"images": 350, "npy": 300, "masks.png": 150, "masks.npy": 150, "masks.npz": 150, "tars": 60}


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is broken in the files
@pytest.mark.parametrize("name", COUNTS)
def test_whatever_is_in_a_file_there_is_an_answer(name):
    target = targets()[name]
    before = memory()
    for number, content in enumerate(islice(inputs(target, seed=0), COUNTS[name])):
        assert failure(target, content) is None, f"input {number} of {name}: {content[:200]!r}"
    assert memory() - before < MEMORY


def test_good_files_are_read():
    """Else the mutations would be of what fails anyway."""
    for name, target in targets().items():
        for content in target.seeds:
            assert failure(target, content) is None, name
