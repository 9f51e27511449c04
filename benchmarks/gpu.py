"""What a GPU makes of the networks and samplers: images a second, share of its peak, memory.

    python benchmarks/gpu.py --peak 989  # of the card in bf16, dense, TFLOP/s; an H100 SXM
    python benchmarks/gpu.py --peak 989 --write docs/checkpoints.md
    python benchmarks/gpu.py --device cpu --tiny --batch 2 --modes 0,1  # whether it runs

Networks of the sizes of ADM for ImageNet 256 and of DPS for FFHQ, with random weights, which take as long as
trained ones. Each restores a batch from 4× super-resolution by 5 steps of `conjugate`, with vector-Jacobian
products and without. Operations are counted, not estimated; the share is of the time that sampling takes
altogether. Memory is beside the weights. With --write the table takes the place of the one in a page.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from kit.timing import seconds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kintsugi import operators, samplers
from kintsugi.device import default_device, name_of
from kintsugi.priors import speed
from kintsugi.priors.base import NetworkPrior
from kintsugi.priors.classes import Conditioning
from kintsugi.priors.formats import adm
from kintsugi.priors.formats.adm_training import Known
from kintsugi.samplers import KeyedNoise

NETWORKS = {
    "ADM, ImageNet 256": adm.Layout(256, (256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5), None, 6, Known(64)),
    "FFHQ of DPS": adm.Layout(128, (128, 128, 256, 256, 512, 512), 1, (4,), None, 6, Known(64)),
}
TINY = {"tiny": adm.Layout(32, (32, 64), 1, (1,), None, 6, Known(32))}
MODES: list[tuple[str, torch.dtype | None, speed.CompileMode | None]] = [
    ("float32", None, None),
    ("bf16", torch.bfloat16, None),
    ("bf16, compiled", torch.bfloat16, "default"),
    ("bf16, CUDA graphs", torch.bfloat16, "reduce-overhead"),
    ("bf16, cuDNN autotuned", torch.bfloat16, None),
]
AUTOTUNED = 4
"""The mode that no job has: which convolution is fastest, and so the last digits, may differ by worker."""
SAMPLERS = {"5 steps": {}, "5 steps, no VJP": {"vjp_steps": 0}}
COLUMNS = ["network", "how", "batch", "compiling, s"]
MARKS = ("<!-- benchmarks/gpu.py -->\n", "<!-- end of benchmarks/gpu.py -->\n")


class RandomPrior(adm.AdmPrior):
    """A network of a layout with random weights that keep activations in range."""

    def __init__(self, layout: adm.Layout, device: str):
        super(adm.AdmPrior, self).__init__(None, Conditioning())
        self.training, self.sha256 = layout.known.training, ""
        self.path = layout.known.training.path()
        self.network = adm.build(layout).to_empty(device=device).eval().requires_grad_(False)
        torch.manual_seed(0)
        for name, weight in self.network.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5)
            else:
                weight.fill_(float("norm" in name and name.endswith("weight")))
        speed.drop_idle(self.network)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return super().__call__(x.view_as(x), t)  # the counter of operations takes no leaf


def restore(prior: NetworkPrior, size: int, batch: int, device: str, settings: dict[str, Any]) -> Any:
    """A function that restores a batch by 5 steps."""
    operator = operators.build({"name": "bicubic", "factor": 4}, (3, size, size), device=device)
    sampler = samplers.build({"name": "conjugate", "steps": 5, "w": 15} | settings)
    y = operator.forward(torch.zeros(batch, 3, size, size, device=device))
    noise = KeyedNoise(0, [str(i) for i in range(batch)])
    return lambda: sampler(prior, operator, y, noise)


def operations(work: Callable[[], object]) -> float:
    """Floating-point operations, those of vector-Jacobian products among them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def reserved(device: str) -> int:
    """Bytes of a GPU that are needed now; the most is counted from here on."""
    if device != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_reserved()


def measured(
    layout: adm.Layout, mode: int, size: int, batch: int, device: str, repeats: int, peak: float | None
) -> Iterator[str]:
    """The cells of a row behind its network and its mode, or those until memory runs out."""
    _, dtype, compile_mode = MODES[mode]
    prior = RandomPrior(layout, device)
    work = [operations(restore(prior, size, 1, device, settings)) for settings in SAMPLERS.values()]
    if dtype is not None:
        speed.half_precision(prior, dtype)
        if device == "cuda":
            speed.channels_last(prior)
    yield str(batch)
    before = reserved(device)
    started = time.perf_counter()
    if compile_mode is None:
        yield ""
    else:
        warm_up = restore(prior, size, batch, device, {})
        why = speed.compiled(prior, compile_mode, batch, warm_up)
        yield why or f"{time.perf_counter() - started:.0f}"
    for each, settings in zip(work, SAMPLERS.values(), strict=True):
        reserved(device)
        rate = batch / seconds(restore(prior, size, batch, device, settings), device, repeats)
        yield f"{rate:.2f}"
        yield f"{rate * each / peak / 1e10:.0f} %" if peak else ""
        most = torch.cuda.max_memory_reserved() if device == "cuda" else 0
        yield f"{(most - before) / batch / 2**30:.2f}" if most else ""


def table(rows: list[list[str]], device: str) -> str:
    """In Markdown, with what was measured on."""
    columns = [*COLUMNS]
    for name in SAMPLERS:
        columns += [f"{name}, images/s", "share of peak", "GiB an image"]
    lines = [columns, ["---"] * len(columns), *(row + [""] * (len(columns) - len(row)) for row in rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{name_of(torch.device(device))}, torch {torch.__version__}:\n\n{text}\n"


def put(page: Path, text: str) -> None:
    """In the place of what is between the marks in a page; raises a ValueError if it has none."""
    before, first, rest = page.read_text().partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not last:
        raise ValueError(f"{page}: no line {MARKS[0].strip()}, or none {MARKS[1].strip()} behind it")
    page.write_text(f"{before}{first}{text}{last}{after}")


def main(
    device: str = default_device(),
    batch: int = 16,
    modes: Annotated[str, typer.Option(help="Rows, comma-separated, by number from 0.")] = "0,1,2,3,4",
    peak: Annotated[float | None, typer.Option(help="Of the card in bf16, TFLOP/s.")] = None,
    repeats: int = 3,
    tiny: Annotated[bool, typer.Option(help="A network of a test's size.")] = False,
    write: Annotated[Path | None, typer.Option(help="A page that has the marks.")] = None,
) -> None:
    # As workers have it.
    torch.backends.cudnn.deterministic = True
    rows = []
    for name, layout in (TINY if tiny else NETWORKS).items():
        for mode in map(int, modes.split(",")):
            torch.backends.cudnn.allow_tf32 = MODES[mode][1] is not None
            torch.backends.cudnn.benchmark = mode == AUTOTUNED
            rows.append([name, MODES[mode][0]])
            try:
                for cell in measured(layout, mode, 32 if tiny else 256, batch, device, repeats, peak):
                    rows[-1].append(cell)
            except torch.OutOfMemoryError:
                rows[-1].append("does not fit")
            print(" | ".join(rows[-1]), flush=True)
    text = table(rows, device)
    if write is None:
        print(f"\n{text}")
    else:
        put(write, text)


if __name__ == "__main__":
    typer.run(main)
