"""Scores of whole batches: the same digits in any batch, no host reads, no torchmetrics."""

import sys
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kintsugi.pipeline.metrics import IMAGE
from kintsugi.pipeline.metrics.metric import Batched, batched, plain
from kintsugi.pipeline.metrics.registry import BUILTIN
from kintsugi.pipeline.metrics.scoring import Scorer, of_unit, residual

OTHERS = {"lpips", "lpips_vgg", "vif", "noise", "blur", "niqe", "brisque"}
"""Those of networks and of other libraries."""
BATCHED = sorted(set(IMAGE) - OTHERS)


def pairs(count: int, height: int = 177, width: int = 179) -> tuple[torch.Tensor, torch.Tensor]:
    """Restored and true images on [-1, 1], of which one is equal, one flat and one NaN."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(count, 3, height, width, generator=generator) * 2 - 1
    restored = truth + 0.3 * torch.randn(truth.shape, generator=generator)
    restored[1], restored[2], restored[3:4] = truth[1], 0.9, torch.nan
    return restored, truth


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "threads"),
    [*((name, 1) for name in BATCHED), ("total_variation", 2)],
    indirect=["threads"],
)
def test_a_value_is_that_of_the_image_alone_to_the_last_digit(name, threads):
    metric = IMAGE[name]
    measure, images = metric.load(torch.device("cpu")), [of_unit(x) for x in pairs(5)]
    images = images[: 1 + (metric.needs_truth or metric.needs_prior)]
    assert isinstance(measure, Batched)
    together = measure(*images)
    assert together.shape == (5,)
    assert together.isfinite().sum() >= 3, "all but the equal and the unknown one"
    alone = torch.cat([measure(*(x[i : i + 1] for x in images)) for i in range(5)])
    reverse = measure(*(x.flip(0) for x in images)).flip(0)
    for others in (alone, reverse):
        assert torch.equal(together.nan_to_num(-1), others.nan_to_num(-1))


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_a_residual_is_that_of_the_image_alone_to_the_last_digit(threads):
    one, other = pairs(9)
    one[3] = 0
    alone = [residual(one[i : i + 1], other[i : i + 1])[0] for i in range(9)]
    assert residual(one, other) == alone
    assert alone[0] == pytest.approx((one[0] - other[0]).square().mean().sqrt().item(), rel=1e-5)


class HostReads(TorchDispatchMode):
    """Counts values that the host reads from a tensor one by one: on a GPU it would wait for each."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_host_reads_no_value_before_all_are_computed(monkeypatch):
    restored, truth = pairs(3)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # whose import takes seconds
    scorer = Scorer(BATCHED)
    expected = scorer(restored, truth, truth)
    with HostReads() as reads:
        found = scorer(restored, truth, truth)
        residual(restored, truth)
    assert reads.count == 0
    assert repr(found) == repr(expected)


@pytest.fixture
def stated(monkeypatch):
    """Makes a metric of a function."""

    def state(measure, batch):
        metric = replace(IMAGE["psnr"], load=(batched if batch else plain)(measure))
        monkeypatch.setitem(BUILTIN, "mine", metric)
        return Scorer(["mine"])

    return state


@pytest.mark.parametrize("as_number", [float, lambda value: value, lambda value: value.view(1, 1)])
def test_a_metric_that_takes_no_batch_sees_each_image_alone(stated, as_number):
    restored, truth = pairs(3)
    seen = []

    def mine(one, other):
        seen.append(one.shape)
        return as_number((one - other).abs().max())

    expected = (of_unit(restored) - of_unit(truth)).abs().amax((1, 2, 3)).tolist()
    assert stated(mine, False)(restored, truth) == {"mine": expected}
    assert seen == [(1, *restored.shape[1:])] * 3


@pytest.mark.parametrize(
    ("measure", "batch", "what"),
    [
        (lambda one, other: one.mean(), True, r"it gives \(\), and not a number for each of 1 images"),
        (lambda one, other: 0.5, True, "it gives float, and not a number for each"),
        (lambda one, other: one.mean((2, 3)), False, r"it gives \(1, 3\), and not one number"),
        (lambda one, other: "high", False, "it gives str, and not one number"),
        (lambda one, other: 1e91, False, r"it gives 1e\+91, which is beyond"),
        (lambda one, other: one[:, 0, 0, 0] * 0 - 1e91, True, r"it gives -1e\+91, which is beyond"),
    ],
)
def test_what_is_no_number_is_refused_with_the_metrics_name(stated, measure, batch, what):
    with pytest.raises(ValueError, match=what) as error:
        stated(measure, batch)(*(x[:1] for x in pairs(4)))
    assert error.value.__notes__ == ["in the metric mine"]
