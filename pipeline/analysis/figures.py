"""Quality against cost: a figure of several runs with the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

GREY = "#808080"  # lines, which are seen on white and on black; text needs more contrast
TEXT = "text{fill:#5c5c5c!important}@media(prefers-color-scheme:dark){text{fill:#b0b0b0!important}}"
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito 2008
MARKERS = "osD^vP"


@dataclass(frozen=True)
class Cost:
    """What an image costs; None where it is not known, as of images made by another program.

    Attributes:
        forwards, vjps: of the network. seconds: of the sampler, mean.
    """

    forwards: int | None
    vjps: int | None
    seconds: float | None

    @property
    def evaluations(self) -> int | None:
        """Forwards and VJPs together.

        A VJP leads back through a forward that is counted already; with respect to the image alone, and not
        to the weights, it takes about as long as that (README: 47.0 % of the time, forwards 49.8 %).
        """
        return None if self.forwards is None else self.forwards + (self.vjps or 0)


@dataclass(frozen=True)
class Quality:
    """One number for each run, None where it has none.

    Attributes:
        badness: the values so that lower is better, which is what the front is of.
    """

    title: str
    values: Sequence[float | None]
    badness: Sequence[float | None]


def pareto(costs: np.ndarray, badness: np.ndarray) -> list[int]:
    """Which points no other is at least as good as in both and better in one; by rising cost."""
    front: list[int] = []
    for i in np.lexsort((badness, costs)).tolist():
        best = front[-1] if front else i
        if not front or badness[i] < badness[best] or (badness[i], costs[i]) == (badness[best], costs[best]):
            front.append(i)
    return front


def draw(
    names: Sequence[str],
    costs: Sequence[Cost],
    qualities: Sequence[Quality],
    narrow: bool = False,
    ranked: bool = True,
) -> bytes:
    """An SVG without background: a row for each quality; over evaluations, and over seconds per image.

    Runs whose cost is not known are lines across. The same runs give the same bytes.

    Args:
        names: of the runs, without control characters, which XML does not have.
        narrow: the plots one below the other, for a phone.
        ranked: whether there is a Pareto front: the runs did the same.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    settings = {
        "svg.hashsalt": "kintsugi",
        "svg.fonttype": "none",
        "text.parse_math": False,  # names of runs are no formulae
        "font.family": "sans-serif",
        "font.size": 9,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY
        ),
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    axes_of: tuple[tuple[str, Sequence[float | None]], ...] = (
        ("network evaluations per image, forwards + VJPs", [cost.evaluations for cost in costs]),
        ("seconds per image", [cost.seconds for cost in costs]),
    )
    with matplotlib.rc_context(settings):
        columns = 1 if narrow else 2
        rows = len(qualities) * 2 // columns
        size = (3.9, 2.4 * rows + 0.2 * len(names)) if narrow else (9, 3 * rows + 0.2 * len(names))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey="row").reshape(-1, 2)
        for line, quality in zip(panels, qualities, strict=True):
            for panel, (title, spent) in zip(line, axes_of, strict=True):
                panel.set_xlabel(title)
                fill(panel, spent, quality, ranked)
            for panel in line[: 3 - columns]:
                panel.set_ylabel(quality.title)
        # A label that begins with an underscore would be left out.
        handles = [
            Line2D([], [], linestyle="", label=f" {name}", **style(i))
            if any(spent[i] is not None for _, spent in axes_of)
            else Line2D([], [], linestyle=":", label=f" {name}", color=style(i)["color"])
            for i, name in enumerate(names)
        ]
        if ranked:
            handles.append(Line2D([], [], color=GREY, linewidth=1, label=" Pareto front"))
        figure.legend(handles=handles, loc="outside lower left", frameon=False)
        buffer = BytesIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue().replace(b"</style>", f"{TEXT}</style>".encode(), 1)


def style(i: int) -> dict[str, Any]:
    """Of the i-th run: colours first, then other markers."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}


def fill(panel: Any, costs: Sequence[float | None], quality: Quality, ranked: bool) -> None:
    """Draw the runs and their Pareto front into one plot."""
    from matplotlib.ticker import LogLocator

    known = []
    for i, (x, y, bad) in enumerate(zip(costs, quality.values, quality.badness, strict=True)):
        if y is None:
            continue
        if x is None:
            panel.axhline(y, color=style(i)["color"], linestyle=":")
        else:
            panel.plot(x, y, linestyle="", zorder=3, **style(i))
            known.append((x, y, bad))
    panel.grid(color=GREY, alpha=0.2)
    if not known:
        return
    points = np.array(known, float)
    spent, reached, badness = points.T
    if ranked:
        front = pareto(spent, badness)
        panel.step(spent[front], reached[front], where="post", color=GREY, linewidth=1)
    if spent.min() > 0 and spent.max() > 4 * spent.min():
        # The ticks of a logarithmic axis would be formulae.
        panel.set_xscale("log", subs=())
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if spent.max() < 100 * spent.min() else (1,)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel(f"{panel.get_xlabel()} (logarithmic)")
