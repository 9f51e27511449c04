"""Masks: what they keep, their seeds and their files."""

import numpy as np
import pytest
import torch
from PIL import Image

import operators
from operators import SpecError
from operators.masks import freeform


def known_pixels(mask, height=64, width=96, **parameters):
    spec = {"name": "inpaint", "mask": mask, **parameters}
    return operators.build(spec, (3, height, width)).singular_values.bool()


def test_box_is_centred_and_of_the_stated_size():
    known = known_pixels("box", box=0.25)
    unknown = torch.zeros(64, 96, dtype=torch.bool)
    unknown[24:40, 36:60] = True
    assert torch.equal(known, (~unknown).expand(3, -1, -1))


def test_half_hides_the_right_half():
    known = known_pixels("half")
    assert known[..., :48].all()
    assert not known[..., 48:].any()


def test_random_mask_keeps_whole_pixels_at_the_stated_rate():
    known = known_pixels("random", keep=0.3)
    assert abs(known.double().mean() - 0.3) < 4 * (0.3 * 0.7 / known[0].numel()) ** 0.5
    assert (known == known[0]).all()


@pytest.mark.parametrize("holes", [(0.1, 0.2), (0.4, 0.5)])
def test_freeform_covers_a_share_within_the_range(holes):
    for seed in range(5):
        share = 1 - known_pixels("freeform", holes=holes, seed=seed).double().mean()
        assert holes[0] <= share <= holes[1]


@pytest.mark.parametrize("mask", ["random", "freeform"])
def test_masks_are_functions_of_their_seed(mask):
    assert torch.equal(known_pixels(mask, seed=1), known_pixels(mask, seed=1))
    assert not torch.equal(known_pixels(mask, seed=1), known_pixels(mask, seed=2))


def test_freeform_refuses_a_range_it_cannot_meet():
    with pytest.raises(ValueError, match="holes"):
        freeform(8, 8, (0.9, 0.1), seed=0)


@pytest.fixture
def mask_files(tmp_path):
    """The same mask as a PNG and two .npz files; true = white."""
    white = torch.rand(16, 24, generator=torch.Generator().manual_seed(0)) < 0.5
    png, npz, named = (str(tmp_path / name) for name in ("mask.png", "mask.npz", "named.npz"))
    Image.fromarray(np.where(white, 255, 0).astype(np.uint8)).save(png)
    np.savez(npz, white.numpy())
    np.savez(named, other=np.zeros((2, 2)), m=white.numpy().astype(np.uint8) * 255)
    return white, [png, npz, named]


def test_mask_files_keep_what_known_names(mask_files):
    white, files = mask_files
    for file in files:
        assert (known_pixels(file, 16, 24, known="white") == white).all()
        assert (known_pixels(file, 16, 24, known="black") == ~white).all()


def test_mask_files_are_resized_by_nearest_neighbour(mask_files):
    white, files = mask_files
    larger = white.repeat_interleave(2, 0).repeat_interleave(2, 1)
    for file in files:
        assert (known_pixels(file, 32, 48, known="white") == larger).all()


def test_mask_files_without_polarity_or_with_other_proportions_are_refused(mask_files):
    for file in mask_files[1]:
        with pytest.raises(SpecError, match="known"):
            known_pixels(file, 16, 24)
        with pytest.raises(SpecError, match=r"mask.*16×24"):
            known_pixels(file, 24, 24, known="white")
