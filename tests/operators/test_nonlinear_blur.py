"""The blur by a published network: against its own code, and what its files may be."""

import re
import sys

import numpy as np
import pytest
import torch
from kit.operators import SMALL, blur_file, blur_weights
from safetensors.torch import save_file

from kintsugi import operators
from kintsugi.errors import SpecError
from kintsugi.operators.nonlinear_blur import INNERMOST, MEANS, Network, Sizes

SHAPE = (3, 256, 128)
GOLDEN = Sizes(image=3, features=2, code=16, last=64, before=2, behind=3)


def build(weights, shape=SHAPE, **parameters):
    spec = {"name": "nonlinear_blur", "weights": str(weights), **parameters}
    return operators.build(spec, shape, dtype=torch.float64)


def image(*shape, seed=7):
    return torch.from_numpy(np.random.RandomState(seed).rand(*shape) * 1.6 - 0.8)


def test_it_is_the_published_network(tmp_path):
    """Figures of VinAIResearch/blur-kernel-space-exploring at f2fe73e: `KernelWizard.adaptKernel` in float64,
    with these weights (nf 2, front_RBs 2, back_RBs 3, kernel_dim 16, all else as for generate_blur), of
    (x + 1) / 2 and the code that DAPS draws; twice the result less one, clipped."""
    torch.save(blur_weights(GOLDEN), tmp_path / "w.pth")
    y = build(tmp_path / "w.pth").float().forward(image(2, *SHAPE).float())
    expected = torch.tensor(FIGURES)
    found = torch.stack([*y[0, :, 200, 3], y[1, 2, 0, 0], y.mean(), y.std()])
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)


FIGURES = [
    *(-0.4704739886849113, -0.23874645077937784, -0.4384375446395189),
    *(0.29911148686808087, -0.23936232040305017, 0.48793229653910847),
]


def test_the_code_is_that_of_daps_and_belongs_to_the_job():
    operator = build(blur_file(), (3, 256, 256))
    code = 1.2 * np.random.RandomState(0).randn(1, SMALL.code, 2, 2)
    assert torch.equal(operator.code, torch.from_numpy(code[0]).float().double())
    x = image(3, 3, 256, 256)
    torch.testing.assert_close(operator.forward(x)[1:2], operator.forward(x[1:2]), rtol=0, atol=1e-12)
    assert (build(blur_file(), (3, 256, 256), seed=1).forward(x) - operator.forward(x)).abs().max() > 1e-3


def test_sides_are_extended_by_their_last_pixel():
    x = image(1, 3, 100, 150)
    whole = torch.nn.functional.pad(x, (0, 106, 0, 28), mode="replicate")
    expected = build(blur_file(), (3, 128, 256)).forward(whole)[..., :100, :150]
    assert torch.equal(build(blur_file(), (3, 100, 150)).forward(x), expected)


def test_what_h_does_not_explain_is_added_as_in_dps():
    operator, x, y = build(blur_file(), (3, 8, 16)), image(2, 3, 8, 16), image(2, 3, 8, 16, seed=8)
    assert torch.equal(operator.pinv(y), y)
    torch.testing.assert_close(operator.impose(x, y), x + y - operator.forward(x))


def test_its_gain_is_found_when_it_is_asked_for_alone_as_in_a_batch(monkeypatch):
    monkeypatch.setattr(sys.modules[Network.__module__], "ITERATIONS", 2)
    alone = [build(blur_file(), (3, 8, 8), seed=seed) for seed in (0, 1)]
    chain = {
        "name": "compose",
        "operators": [{"name": "nonlinear_blur", "weights": blur_file()}, {"name": "hdr"}],
    }
    both = operators.build(chain, (3, 8, 8), dtype=torch.float64)
    together = operators.stack(alone)
    assert not any("lipschitz" in vars(one) for one in (*alone, both, both.operators[0], together))
    values = torch.tensor([one.lipschitz for one in alone], dtype=torch.float64)
    torch.testing.assert_close(together.lipschitz, values.view(2, 1, 1, 1))
    assert values[0] != values[1]
    assert both.lipschitz == 2 * alone[0].lipschitz
    torch.testing.assert_close(operators.stack(alone).lipschitz, values.view(2, 1, 1, 1))


def test_networks_of_several_files_make_no_batch(tmp_path):
    torch.save(blur_weights(SMALL), tmp_path / "other.pth")
    with pytest.raises(operators.NotStackable, match="weights differ"):
        operators.stack([build(blur_file()), build(tmp_path / "other.pth")])


def test_files_with_the_encoder_and_in_other_forms_are_the_same(tmp_path):
    state = blur_weights(SMALL) | {
        MEANS: torch.ones(2 * SMALL.code, 4, 3, 3),
        "kernel_extractor.b": torch.ones(1),
    }
    save_file(state, tmp_path / "w.safetensors")
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "half.pt")
    x = image(1, 3, 8, 16)
    expected = build(blur_file(), (3, 8, 16)).forward(x)
    assert torch.equal(build(tmp_path / "w.safetensors", (3, 8, 16)).forward(x), expected)
    torch.testing.assert_close(
        build(tmp_path / "half.pt", (3, 8, 16)).forward(x), expected, rtol=0, atol=1e-2
    )


FIRST = "feature_extractor.0.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FIRST: None}, "is no network of Tran et al. (CVPR 2021): no 'feature_extractor.0.weight'"),
        ({FIRST: torch.ones(3)}, "'feature_extractor.0.weight' has shape (3,)"),
        ({INNERMOST: torch.ones(8, 8, 4, 4)}, "leaves no channel to a code"),
        ({"adapter.model.up.1.bias": None}, "no 'adapter.model.up.1.bias' of shape (1,)"),
        (
            {"adapter.model.up.1.weight": torch.ones(2, 3, 4, 4)},
            "has shape (2, 3, 4, 4), expected (2, 1, 4, 4)",
        ),
        ({"adapter.more": torch.ones(2)}, "unexpected 'adapter.more' of shape (2,)"),
        ({"feature_extractor.0.bias": torch.tensor([torch.nan])}, "'feature_extractor.0.bias' holds NaN"),
        ({MEANS: torch.ones(8, 4, 3, 3)}, "was trained without the VAE"),
    ],
    ids=[
        *("no network", "no weight", "no code", "missing", "shape", "unknown", "NaN", "without the VAE"),
    ],
)
def test_other_weights_are_refused_by_name(change, message, tmp_path):
    state = {name: value for name, value in (blur_weights(SMALL) | change).items() if value is not None}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        SpecError, match=rf"^operator 'nonlinear_blur': weights: .*w\.pth.*{re.escape(message)}"
    ):
        build(tmp_path / "w.pth")


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"no weights")
    for weights, shape, message in (
        (tmp_path / "absent.pth", SHAPE, "weights: no file"),
        (tmp_path / "w.pth", SHAPE, "weights: .* is damaged or no checkpoint"),
        (tmp_path / "w", SHAPE, r"weights: .*/w' is not a file of one of \.pth"),
        (blur_file(), (1, 8, 8), "weights: a network for 3 channels; images have 1"),
    ):
        with pytest.raises(SpecError, match=message):
            build(weights, shape)


def test_a_job_keeps_the_checksum_of_its_file():
    field = "degradation.operator"
    spec = {"name": "nonlinear_blur", "weights": "w.pth"}
    assert [one[0] for one in operators.files_of(spec, field)] == [f"{field}.weights"]
    assert not list(operators.files_of({"name": "colorize", "weights": "luma"}, field))
