"""Quality against cost: a figure of several runs with the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

GREY = "#808080"  # is seen on white and on black
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
    """One number for each run, None where it has none."""

    title: str
    higher: bool
    values: Sequence[float | None]


def pareto(costs: np.ndarray, values: np.ndarray, higher: bool) -> list[int]:
    """Which points no other is at least as good as in both and better in one; by rising cost."""
    gains = values if higher else -values
    front: list[int] = []
    for i in np.lexsort((-gains, costs)).tolist():
        best = front[-1] if front else i
        if not front or gains[i] > gains[best] or (gains[i], costs[i]) == (gains[best], costs[best]):
            front.append(i)
    return front


def draw(names: Sequence[str], costs: Sequence[Cost], qualities: Sequence[Quality]) -> bytes:
    """An SVG without background: a row for each quality; over evaluations, and over seconds per image.

    Runs whose cost is not known are lines across. The same runs give the same bytes.
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
        figure = Figure(figsize=(9, 3 * len(qualities) + 0.35 * len(names)), layout="constrained")
        panels = figure.subplots(len(qualities), 2, squeeze=False, sharey="row")
        for line, quality in zip(panels, qualities, strict=True):
            for panel, (title, spent) in zip(line, axes_of, strict=True):
                fill(panel, spent, quality)
                panel.set_xlabel(title)
            line[0].set_ylabel(f"{quality.title} {'↑' if quality.higher else '↓'}")
        # A label that begins with an underscore would be left out.
        handles = [Line2D([], [], linestyle="", label=f" {name}", **style(i)) for i, name in enumerate(names)]
        handles.append(Line2D([], [], color=GREY, linewidth=1, label=" Pareto front"))
        figure.legend(handles=handles, loc="outside lower left", frameon=False)
        buffer = BytesIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def style(i: int) -> dict[str, Any]:
    """Of the i-th run: colours first, then other markers."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}


def fill(panel: Any, costs: Sequence[float | None], quality: Quality) -> None:
    """Draw the runs and their Pareto front into one plot."""
    known = []
    for i, (x, y) in enumerate(zip(costs, quality.values, strict=True)):
        if y is None:
            continue
        if x is None:
            panel.axhline(y, color=style(i)["color"], linestyle=":")
        else:
            panel.plot(x, y, linestyle="", zorder=3, **style(i))
            known.append((x, y))
    panel.grid(color=GREY, alpha=0.2)
    if not known:
        return
    points = np.array(known, float)
    front = points[pareto(points[:, 0], points[:, 1], quality.higher)]
    panel.step(*front.T, where="post", color=GREY, linewidth=1)
    if points[:, 0].min() > 0 and points[:, 0].max() > 4 * points[:, 0].min():
        panel.set_xscale("log")
