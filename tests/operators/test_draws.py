"""Draws: functions of the generator alone, on their stated ranges, and refused where a spec is wrong."""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from kintsugi.operators import draws, files_of
from kintsugi.operators.masks import LAMA, freeform

SPECS = {
    "uniform": {"low": 0.5, "high": 3},
    "loguniform": {"low": 0.5, "high": 3},
    "integer": {"low": -1, "high": 4},
    "choice": {"values": [1, 2.5, 4]},
    "random": {"keep": [0.2, 0.4]},
    "freeform": {"holes": [0.3, 0.4]},
    "box": {"sides": [0.2, 0.5], "margin": 0.1},
    "thin": {},
    "medium": {},
    "thick": {},
    "motion": {},
    "gaussian": {"sigma": [1, 3]},
    "from_file": {"kernels": "SET"},
}
SIZE = (64, 96)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@pytest.fixture(params=SPECS)
def spec(request, tmp_path):
    """A spec of every draw."""
    values = {"draw": request.param, **SPECS[request.param]}
    if "kernels" in values:
        values["kernels"] = kernel_set(tmp_path)
    return values


def kernel_set(folder) -> str:
    path = str(folder / "set.npz")
    np.savez(path, a=np.ones((3, 5)), b=np.eye(7), c=np.arange(9.0).reshape(3, 3))
    return path


def drawn(spec, count=40, size=SIZE):
    return [draws.draw(spec, generator(seed), size) for seed in range(count)]


def test_every_draw_has_a_spec_here():
    assert SPECS.keys() == draws.REGISTRY.keys()


def test_a_draw_is_a_function_of_the_generator(spec):
    one, same = drawn(spec, 8), drawn(spec, 8)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, same, strict=True))
    assert any(
        torch.as_tensor(a).shape != torch.as_tensor(one[0]).shape
        or not torch.equal(torch.as_tensor(a), torch.as_tensor(one[0]))
        for a in one[1:]
    )


@pytest.mark.parametrize("size", [SIZE, (8, 8), (33, 7), (300, 280)])
def test_a_draw_is_what_its_kind_says(spec, size):
    kind = draws.REGISTRY[spec["draw"]].kind
    for value in drawn(spec, 5, size):
        if kind == "mask":
            assert value.dtype == torch.bool
            assert value.shape == size
            assert not value.all()
        elif kind == "kernel":
            assert value.dtype == torch.float64
            assert value.ndim == 2
            assert value.sum() == pytest.approx(1, abs=1e-12)
            assert (value >= 0).all()
        else:
            assert isinstance(value, int | float)


def test_numbers_fill_their_range():
    uniform = drawn({"draw": "uniform", "low": 0.5, "high": 3}, 2000)
    assert min(uniform) < 0.52 < 2.98 < max(uniform) <= 3
    assert np.mean(uniform) == pytest.approx(1.75, abs=4 * 2.5 / 12**0.5 / 2000**0.5)
    logs = np.log(drawn({"draw": "loguniform", "low": 0.01, "high": 100}, 2000))
    assert np.mean(logs) == pytest.approx(0, abs=4 * np.log(1e4) / 12**0.5 / 2000**0.5)
    integers = drawn({"draw": "integer", "low": -1, "high": 1}, 100)
    assert {type(i) for i in integers} == {int}
    assert set(integers) == {-1, 0, 1}
    assert set(drawn({"draw": "choice", "values": [1, 2.5]}, 50)) == {1, 2.5}
    assert set(drawn({"draw": "loguniform", "low": 0.3, "high": 0.3}, 5)) == {0.3}


def test_masks_cover_what_they_say():
    for known in drawn({"draw": "freeform", "holes": [0.5, 0.6]}, 20):
        assert 0.5 <= 1 - known.double().mean() <= 0.6
    kept = [known.double().mean() for known in drawn({"draw": "random", "keep": [0.2, 0.8]}, 100)]
    assert min(kept) < 0.3 < 0.7 < max(kept)
    assert 0.15 < min(kept) < max(kept) < 0.85


def test_freeform_is_the_mask_of_the_operator():
    mask = draws.draw({"draw": "freeform", "holes": [0.1, 0.2]}, generator(3), SIZE)
    assert torch.equal(mask, freeform(*SIZE, (0.1, 0.2), 3))


def test_boxes_are_whole_and_keep_to_the_margin():
    corners = set()
    for known in drawn({"draw": "box", "sides": [0.2, 0.5], "margin": 0.125}, 100):
        rows, columns = (~known).any(1).nonzero()[:, 0], (~known).any(0).nonzero()[:, 0]
        assert (~known).sum() == len(rows) * len(columns)
        assert 13 <= len(rows) <= 32
        assert 19 <= len(columns) <= 48
        assert rows[0] >= 8
        assert rows[-1] < 56
        assert columns[0] >= 12
        assert columns[-1] < 84
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > 50


@pytest.mark.parametrize(("name", "share"), [("thin", 0.26), ("medium", 0.20), ("thick", 0.23)])
def test_masks_of_lama_cover_their_share_at_every_size(name, share):
    for n in (64, 256):
        holes = [1 - known.double().mean() for known in drawn({"draw": name}, 100, (n, n))]
        assert np.mean(holes) == pytest.approx(share, abs=0.05)
        assert max(holes) <= 0.5
    assert max(1 - m.double().mean() for m in drawn({"draw": name, "most": 0.2}, 30)) <= 0.2


def test_thick_masks_have_wider_holes_than_thin_ones():
    def deepest(name):
        """How far the deepest hidden pixel is from a known one, in the mean."""
        from scipy.ndimage import distance_transform_cdt

        drawn_masks = drawn({"draw": name}, 20, (256, 256))
        return np.mean([distance_transform_cdt(~mask.numpy()).max() for mask in drawn_masks])

    assert deepest("thin") < 20 < deepest("medium") < deepest("thick")
    assert all(brushes[0].side == 256 and brushes[1].side == 512 for brushes in LAMA.values())


def test_motion_paths_are_centred_and_longer_and_wider_with_intensity():
    axis = torch.arange(61) - 30.0

    def spread(intensity):
        kernels = drawn({"draw": "motion", "intensity": intensity}, 100)
        for k in kernels:
            whole = k[0].max() + k[-1].max() + k[:, 0].max() + k[:, -1].max() == 0
            if whole:  # else the path was cut
                assert abs((k.sum(1) * axis).sum()) < 1e-9
                assert abs((k.sum(0) * axis).sum()) < 1e-9
        return np.mean([(k > 0.05 * k.max()).sum() for k in kernels])

    assert spread(0.0) < spread(0.5) < spread(1.0)


def test_straight_paths_are_as_long_as_the_source_says():
    """At intensity 0 the length is uniform, up to ¾ of the diagonal; a line's variance is length²/12."""
    axis = torch.arange(201) - 100.0
    lengths = [
        (12 * sum((k.sum(d) * axis**2).sum() for d in (0, 1)) - 4).clamp_min(0) ** 0.5
        for k in drawn({"draw": "motion", "intensity": 0.0, "size": 201}, 300)
    ]
    assert np.mean(lengths) == pytest.approx(0.375 * 201 * 2**0.5, rel=0.08)


def test_gaussians_have_their_width():
    (k,) = drawn({"draw": "gaussian", "sigma": 2.0, "size": 41}, 1)
    axis = torch.arange(41) - 20.0
    assert (k.sum(0) * axis**2).sum() == pytest.approx(4, rel=1e-6)


def test_kernels_of_a_file_are_all_drawn_and_one_by_its_index(tmp_path):
    path = kernel_set(tmp_path)
    assert {tuple(k.shape) for k in drawn({"draw": "from_file", "kernels": path})} == {(3, 5), (7, 7), (3, 3)}
    for kernel in drawn({"draw": "from_file", "kernels": path, "index": 1}, 5):
        assert torch.equal(kernel, torch.eye(7, dtype=torch.float64) / 7)


def test_the_recipe_for_the_kernels_of_levin_makes_a_set_of_files_in_their_format(tmp_path, monkeypatch):
    """That of docs/operators.md, as it stands there: each .mat has images x and y beside its kernel f."""
    sides = (19, 17, 15, 27, 13, 21, 23, 23)
    made = [generator(n).random((side, side)) for n, side in enumerate(sides)]
    for number, kernel in enumerate(made, 1):
        image = np.full((255, 255), number / 9)
        scipy.io.savemat(tmp_path / f"im05_flit{number:02}.mat", {"x": image, "y": image, "f": kernel})
    text = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
    (code,) = re.findall(r"Levin et al\..*?```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {"numpy": np, "scipy": scipy})
    for index, kernel in enumerate(made):
        (found,) = drawn({"draw": "from_file", "kernels": "levin09.npz", "index": index}, 1)
        assert np.allclose(found, kernel / kernel.sum(), rtol=1e-14)
    assert {len(kernel) for kernel in drawn({"draw": "from_file", "kernels": "levin09.npz"}, 64)} == {*sides}


def test_sets_come_as_stacks_and_mat_files_too(tmp_path):
    stack = generator(0).random((3, 5, 4))
    np.save(npy := str(tmp_path / "set.npy"), stack)
    scipy.io.savemat(mat := str(tmp_path / "set.mat"), {f"k{i}": k for i, k in enumerate(stack)})
    for path in (npy, mat):
        for index, kernel in enumerate(stack):
            (found,) = drawn({"draw": "from_file", "kernels": path, "index": index}, 1)
            assert np.allclose(found, kernel / kernel.sum(), rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.npz", None, "none.npz"),
        ("set.txt", b"1 2", "not a file of one of"),
        ("set.npz", b"PK", "set.npz"),
        ("set.mat", b"MATLAB", "set.mat"),
        ("zero.npy", np.zeros((2, 3, 3)), "zero everywhere"),
        ("deep.npy", np.ones((1, 1, 3, 3)), "shape"),
        ("none.npy", np.ones((0, 3, 3)), "0 kernels"),
        ("set.npy", np.ones((2, 3, 3)), "index: .* has 2 kernels, 0 to 1"),
    ],
)
def test_files_that_are_no_sets_are_refused(name, content, said, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(draws.SpecError, match=said):
        draws.check({"draw": "from_file", "kernels": str(path), "index": 2}, "kernel")


def test_files_that_draws_name_are_found(tmp_path):
    kernel = {"draw": "from_file", "kernels": "levin09.mat"}
    spec = {"name": "compose", "operators": [{"name": "blur", "kernel": kernel}]}
    assert list(files_of(spec, "operator")) == [("operator.operators.0.kernel.kernels", kernel, "kernels")]


BAD = [
    (
        {"draw": "freefrom"},
        "mask",
        "'freefrom' is no draw; choose one of a mask: random",
    ),
    ({"draw": "uniform", "low": 0, "high": 1}, "mask", "draws a number"),
    ({"draw": 3}, "mask", "3 is no draw"),
    ({}, "mask", "None is no draw"),
    ({"draw": "freeform", "hole": [0, 1]}, "mask", "operator.mask.hole: 'freeform' has no such parameter"),
    ({"draw": "freeform", "name": "x"}, "mask", "operator.mask.name: 'freeform' has no such parameter"),
    ({"draw": "freeform", "holes": [0.4, 0.3]}, "mask", "operator.mask.holes.*larger number comes second"),
    ({"draw": "freeform", "holes": [0.4, 1.3]}, "mask", "operator.mask.holes"),
    ({"draw": "uniform", "low": 0}, "number", "operator.mask.high"),
    ({"draw": "uniform", "low": 2, "high": 1}, "number", "larger number comes second"),
    ({"draw": "uniform", "low": 0, "high": float("inf")}, "number", "operator.mask.high"),
    ({"draw": "loguniform", "low": 0, "high": 1}, "number", "operator.mask.low"),
    ({"draw": "integer", "low": 0.5, "high": 1}, "number", "operator.mask.low"),
    ({"draw": "choice", "values": []}, "number", "operator.mask.values"),
    ({"draw": "motion", "size": 60}, "kernel", "operator.mask.size.*odd"),
    ({"draw": "motion", "size": 5001}, "kernel", "operator.mask.size"),
    ({"draw": "gaussian"}, "kernel", "operator.mask.sigma"),
    ({"draw": "gaussian", "sigma": [0, 1]}, "kernel", "operator.mask.sigma"),
]


@pytest.mark.parametrize(("spec", "kind", "said"), BAD)
def test_bad_specs_are_refused_with_the_field(spec, kind, said):
    with pytest.raises(draws.SpecError, match=said):
        draws.check(spec, kind, "operator.mask")


def test_what_no_mask_can_be_is_refused():
    with pytest.raises(ValueError, match="margin"):
        draws.draw({"draw": "box", "sides": 0.9, "margin": 0.2}, generator(0), SIZE)
    with pytest.raises(ValueError, match="most"):
        draws.draw({"draw": "thick", "most": 0.0}, generator(0), SIZE)
