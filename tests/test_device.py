"""What goes to a GPU goes out of pinned memory, and nothing waits for it; on a CPU all stays where it is."""

import pytest
import torch

from kintsugi.device import sent

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Told(torch.Tensor):
    """Notes what is asked of it about memory and devices, and does none of it."""

    asked: list

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("pin_memory", "to"):
            args[0].asked.append((name, *args[1:], *(kwargs or {}).items()))
            return args[0]
        return super().__torch_function__(function, types, args, kwargs)


@pytest.fixture
def told():
    x = torch.arange(3.0).as_subclass(Told)
    x.asked = []
    return x


def test_to_a_gpu_it_goes_pinned_and_does_not_block(told):
    sent(told, GPU)
    assert told.asked == [("pin_memory",), ("to", GPU, ("non_blocking", True))]


def test_elsewhere_nothing_is_pinned(told):
    sent(told, CPU)
    sent(told, torch.device("meta"))
    assert [name for name, *_ in told.asked] == ["to", "to"]
    x = torch.ones(2)
    assert sent(x, CPU) is x
    assert sent(torch.empty(2, device="meta"), torch.device("meta")).device.type == "meta"
