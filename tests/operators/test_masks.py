"""Masks: what they keep, their seeds and their files."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from kintsugi import operators
from kintsugi.operators import SpecError
from kintsugi.operators.masks import freeform


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


HOLE = np.zeros((16, 24), bool)
HOLE[4:10, 6:15] = True


def rgba(colour, alpha) -> Image.Image:
    grey = np.broadcast_to(np.uint8(colour), HOLE.shape)
    return Image.fromarray(np.stack([grey] * 3 + [np.broadcast_to(np.uint8(alpha), HOLE.shape)], -1))


def indexed(transparency: int | None = None) -> Image.Image:
    """A palette whose entry 7 is white, and 3 black."""
    image = Image.fromarray(np.where(HOLE, 3, 7).astype(np.uint8), "L")
    image.putpalette([v for i in range(8) for v in [255 * (i == 7)] * 3])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


IMAGES_OF_THE_HOLE = {
    "grey": ("png", Image.fromarray(np.where(HOLE, 0, 255).astype(np.uint8))),
    "soft": ("png", Image.fromarray(np.where(HOLE, 120, 140).astype(np.uint8))),
    "zero and one": ("png", Image.fromarray(np.where(HOLE, 0, 1).astype(np.uint8))),
    "one bit": ("png", Image.fromarray(~HOLE)),
    "16 bits": ("png", Image.fromarray(np.where(HOLE, 300, 65535).astype(np.uint16))),
    "16 bits, zero and one": ("png", Image.fromarray(np.where(HOLE, 0, 1).astype(np.uint16))),
    "alpha over white": ("png", rgba(255, np.where(HOLE, 0, 255))),
    "alpha over black": ("png", rgba(0, np.where(HOLE, 0, 255))),
    "opaque": ("png", rgba(np.where(HOLE, 0, 255), 255)),
    "palette": ("png", indexed()),
    "palette with a transparent colour": ("png", indexed(3)),
    "JPEG": ("jpg", Image.fromarray(np.where(HOLE, 0, 255).astype(np.uint8))),
    "BMP": ("BMP", Image.fromarray(np.where(HOLE, 0, 255).astype(np.uint8))),
}
ARRAYS_OF_THE_HOLE = {
    "bool": ~HOLE,
    "was a JPEG": np.where(HOLE, 3, 252).astype(np.uint8),
    "16 bits": np.where(HOLE, 300, 65000).astype(np.uint16),
    "zero and one of 64 bits": (~HOLE).astype(np.int64),
    "soft": np.where(HOLE, 0.02, 0.98).astype(np.float32),
    "per channel": np.stack([~HOLE] * 3),
}
REFUSED: dict[str, tuple[np.ndarray, str]] = {
    "0 and 255 of 64 bits": (
        np.where(HOLE, 0, 255),
        "integers of a mask are uint8 or uint16, or only 0 and 1",
    ),
    "floats to 255": (np.where(HOLE, 0.0, 255.0), "between 0 and 1"),
    "negative": (np.where(HOLE, -1.0, 1.0), "none below 0"),
    "NaN": (np.where(HOLE, np.nan, 1.0), "none below 0 and none that is not finite"),
    "complex": (HOLE.astype(complex), "values of type complex128"),
    "objects": (HOLE.astype(object), "Python objects"),
    "empty": (np.zeros((0, 0)), "no values"),
    "of one dimension": (HOLE[0], "expected .H, W."),
    "white everywhere": (np.ones_like(HOLE), "white everywhere, so that every pixel is known"),
    "black everywhere": (np.zeros_like(HOLE), "black everywhere, so that every pixel is unknown"),
    "dark everywhere": (np.where(HOLE, 0, 100).astype(np.uint8), "black everywhere"),
}


@pytest.mark.parametrize("name", IMAGES_OF_THE_HOLE)
def test_the_hole_of_an_image_is_found_however_it_is_stored(name, tmp_path):
    suffix, image = IMAGES_OF_THE_HOLE[name]
    image.save(path := tmp_path / f"mask.{suffix}", **({"quality": 100} if suffix == "jpg" else {}))
    known = known_pixels(str(path), 16, 24, known="white")
    assert (known == ~torch.from_numpy(HOLE)).all()


@pytest.mark.parametrize("name", ARRAYS_OF_THE_HOLE)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_the_hole_of_an_array_is_found_whatever_its_type(name, suffix, tmp_path):
    path = tmp_path / f"mask.{suffix}"
    if suffix == "npy":
        np.save(path, ARRAYS_OF_THE_HOLE[name])
    else:
        np.savez_compressed(path, m=ARRAYS_OF_THE_HOLE[name], other=np.zeros(3))
    assert (known_pixels(str(path), 16, 24, known="white") == ~torch.from_numpy(HOLE)).all()


@pytest.mark.parametrize("name", REFUSED)
def test_masks_that_say_nothing_clear_are_refused(name, tmp_path):
    array, message = REFUSED[name]
    np.save(path := tmp_path / "mask.npy", array)
    with pytest.raises(SpecError, match=message):
        known_pixels(str(path), 16, 24, known="white")


def test_mask_files_that_are_broken_or_ambiguous_are_refused_in_words(tmp_path):
    np.savez(tmp_path / "two.npz", a=HOLE, b=HOLE)
    (tmp_path / "text.npz").write_bytes(b"hello")
    (tmp_path / "text.npy").write_bytes(b"hello")
    (tmp_path / "text.png").write_bytes(b"hello")
    frame = Image.fromarray(np.where(HOLE, 0, 255).astype(np.uint8))
    frame.save(tmp_path / "two.png", save_all=True, append_images=[frame.rotate(180)])
    np.savez(tmp_path / "cut.npz", m=HOLE)
    content = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:100] + bytes(20) + content[120:])
    for name, message in {
        "two.npz": "2 arrays and none of them is called m",
        "text.npz": "holds no array",
        "text.npy": "mask: .*text.npy: ",
        "text.png": "mask: .*cannot identify image file",
        "two.png": "several images in one file",
        "cut.npz": "mask: .*cut.npz",
        "missing.png": "mask: .*No such file",
        "mask.tif": "is none of box, random, half, freeform, nor a file",
    }.items():
        with pytest.raises(SpecError, match=message):
            known_pixels(str(tmp_path / name), 16, 24, known="white")


def test_mask_files_without_polarity_or_with_other_proportions_are_refused(mask_files):
    for file in mask_files[1]:
        with pytest.raises(SpecError, match="known"):
            known_pixels(file, 16, 24)
        with pytest.raises(SpecError, match=r"mask.*16×24"):
            known_pixels(file, 24, 24, known="white")


@pytest.mark.parametrize("suffix", ["png", "npy", "npz"])
def test_a_mask_that_is_no_regular_file_is_refused_without_opening_it(tmp_path, suffix):
    os.mkfifo(tmp_path / f"m.{suffix}")
    with pytest.raises(SpecError, match="no regular file"):
        known_pixels(str(tmp_path / f"m.{suffix}"), known="white")
