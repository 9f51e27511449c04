"""All that Matplotlib draws, as SVG: quality against cost of several runs, and the trials of a sweep.

The same numbers give the same bytes. Matplotlib takes long to import: import this module where it is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from kintsugi.pipeline.analysis.compare_runs import Cost
from kintsugi.pipeline.analysis.sweep import Outcome, difference, is_number

GREY = "#808080"  # lines, which are seen on white and on black; text needs more contrast
TEXT = "text{fill:#5c5c5c!important}@media(prefers-color-scheme:dark){text{fill:#b0b0b0!important}}"
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito 2008
MARKERS = "osD^vP"
STYLE = {"svg.hashsalt": "kintsugi", "font.size": 9}
STYLE_OF_PAGES = STYLE | {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of runs are no formulae
    "font.family": "sans-serif",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def as_svg(figure: Figure) -> bytes:
    """The figure as it is drawn now, without the date."""
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


@dataclass(frozen=True)
class Quality:
    """One number for each run, None where it has none."""

    title: str
    values: Sequence[float | None]
    badness: Sequence[float | None]  # the values so that lower is better, which is what the front is of


def pareto(costs: np.ndarray, badness: np.ndarray) -> list[int]:
    """Which points no other is at least as good as in both and better in one; by rising cost."""
    front: list[int] = []
    for i in np.lexsort((badness, costs)).tolist():
        best = front[-1] if front else i
        if not front or badness[i] < badness[best] or (badness[i], costs[i]) == (badness[best], costs[best]):
            front.append(i)
    return front


def draw_costs(
    names: Sequence[str],
    costs: Sequence[Cost],
    qualities: Sequence[Quality],
    narrow: bool = False,
    ranked: bool = True,
) -> bytes:
    """An SVG without background: a row for each quality; over evaluations, and over seconds per image.

    Runs whose cost is not known are lines across.

    Args:
        names: of the runs, without control characters, which XML does not have.
        narrow: the plots one below the other, for a phone.
        ranked: whether there is a Pareto front: the runs did the same.
    """
    axes_of: tuple[tuple[str, Sequence[float | None]], ...] = (
        ("network evaluations per image, forwards + VJPs", [cost.evaluations for cost in costs]),
        ("seconds per image", [cost.seconds for cost in costs]),
    )
    with matplotlib.rc_context(STYLE_OF_PAGES):
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
        return as_svg(figure).replace(b"</style>", f"{TEXT}</style>".encode(), 1)


def style(i: int) -> dict[str, Any]:
    """Of the i-th run: colours first, then other markers."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}


def fill(panel: Axes, costs: Sequence[float | None], quality: Quality, ranked: bool) -> None:
    """Draw the runs and their Pareto front into one plot."""
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


def draw_trials(outcome: Outcome) -> bytes:
    """An SVG of differences from the best trial: a line for one field, a map for two, else a panel each.

    Differences are paired, so trials that stopped early are shown on the same footing as the others.
    """
    fields = list(outcome.best.trial.settings)
    tried = [distinct_values(result.trial.settings[field] for result in outcome.results) for field in fields]
    as_map = len(fields) == 2 and len(outcome.results) == math.prod(map(len, tried))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5 if as_map else 4 * len(fields), 3.5), layout="constrained")
        if as_map:
            draw_map(figure.subplots(), outcome, fields, tried)
        else:
            panels = np.atleast_1d(figure.subplots(1, len(fields)))
            for axes, field, values in zip(panels, fields, tried, strict=True):
                draw_field(axes, outcome, field, values)
        beside = [
            f"{label} {difference(it, outcome.best).mean:+.3g}"
            for label, it in outcome.without_network.items()
        ]
        without = f"\nwithout a network: {', '.join(beside)}" if beside else ""
        figure.suptitle(f"{outcome.by.title}, paired difference from the best{without}")
        return as_svg(figure)


def distinct_values(values: Any) -> list[Any]:
    """Each value once: numbers in order, others as they come."""
    found = list({str(value): value for value in values}.values())
    return sorted(found) if all(map(is_number, found)) else found


def draw_field(axes: Axes, outcome: Outcome, field: str, values: list[Any]) -> None:
    """Difference against the values of a field, with intervals; a ring marks the chosen trial."""
    numeric = all(map(is_number, values))
    place = {str(value): value if numeric else i for i, value in enumerate(values)}
    x = np.array([place[str(result.trial.settings[field])] for result in outcome.results], float)
    y = np.array([[it.mean, it.low, it.high] for it in outcome.differences])
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    ends = np.nan_to_num(np.stack([y[:, 0] - y[:, 1], y[:, 2] - y[:, 0]]))
    joined = "-" if len(outcome.results) == len(values) else ""  # where other fields vary, it says nothing
    axes.errorbar(x, y[:, 0], ends, fmt=f"o{joined}", markersize=4, capsize=3, linewidth=1)
    ring = place[str(outcome.chosen.trial.settings[field])], difference(outcome.chosen, outcome.best).mean
    axes.plot(*ring, "o", markersize=11, fillstyle="none", color="tab:red")
    axes.axhline(0, linewidth=0.5, color="grey")
    if not numeric:
        axes.set_xticks(range(len(values)), [str(value)[:20] for value in values])
    axes.set_xlabel(field)


def draw_map(axes: Axes, outcome: Outcome, fields: list[str], tried: list[list[Any]]) -> None:
    """Difference for every pair of values; ★ marks the chosen trial, ≈ those that are like the best."""
    columns, rows = tried
    shown = np.full((len(rows), len(columns)), np.nan)
    for place, (result, differs) in enumerate(zip(outcome.results, outcome.differences, strict=True)):
        x, y = (values.index(result.trial.settings[it]) for values, it in zip(tried, fields, strict=True))
        shown[y, x] = differs.mean
        behind = {"boxstyle": "round", "facecolor": "white", "alpha": 0.7, "linewidth": 0}
        text = f"{differs.mean:.3g}{outcome.mark(place)}"
        axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=behind)
    good = "viridis" if outcome.by.sign > 0 else "viridis_r"
    axes.imshow(shown, cmap=good, aspect="auto", origin="lower")
    axes.set_xticks(range(len(columns)), [str(value)[:20] for value in columns])
    axes.set_yticks(range(len(rows)), [str(value)[:20] for value in rows])
    axes.set_xlabel(fields[0])
    axes.set_ylabel(fields[1])
