"""What a sweep says: the table of its trials, for a reader and for programs, and why one was chosen."""

from kintsugi.pipeline.analysis.sweep import Outcome, Result, difference, mean_of
from kintsugi.pipeline.analysis.tables import Table, csv_text
from kintsugi.pipeline.metrics.registry import baseline_column
from kintsugi.pipeline.storage.location import Location


def trials_table(outcome: Outcome) -> Table:
    """The best trial first, at the end what needs no network; ★ and ≈ as of `Outcome.mark`."""
    fields = list(outcome.best.trial.settings)
    short = [field.rpartition(".")[2] for field in fields]
    then = [] if outcome.then == outcome.by else [outcome.then.title]

    def rank(place: int) -> tuple[int, float]:
        return outcome.results[place].failed, -outcome.by.sign * outcome.differences[place].mean

    rows = [
        [
            *(str(value) for value in result.trial.settings.values()),
            str(len(result.values)) + (f" + {result.failed} failed" if result.failed else ""),
            *estimates(result, outcome.best),
            *(f"{result.then:.3g}" for _ in then),
            f"{result.seconds:.2g}",
            outcome.mark(place),
        ]
        for place in sorted(range(len(outcome.results)), key=rank)
        for result in [outcome.results[place]]
    ]
    for label, result in outcome.without_network.items():
        cells = [str(len(result.values)), *estimates(result, outcome.best)]
        rows.append([label, *[""] * (len(fields) - 1), *cells, *[""] * (len(then) + 2)])
    heads = fields if len(set(short)) < len(short) else short
    return Table([*heads, "images", "mean", "from the best", *then, "s/image", ""], rows)


def estimates(result: Result, best: Result) -> tuple[str, str]:
    """The mean with its interval, and the difference from the best one's."""
    low, high = result.interval
    mean = f"{result.mean:.4g} ({low:.4g}…{high:.4g})"
    if result is best:
        return mean, "best"
    differs = difference(result, best)
    return mean, f"{differs.mean:+.2g} ({differs.low:+.2g}…{differs.high:+.2g})"


def trials_csv(outcome: Outcome) -> str:
    """A line for each trial, in the order of the trials."""
    by, then = outcome.by.name, outcome.then.name
    rows = [
        {
            "trial": result.trial.name,
            **result.trial.settings,
            "images": len(result.values) + result.failed,
            "failed": result.failed,
            by: result.mean,
            **dict(zip(("low", "high"), result.interval, strict=True)),
            "difference": differs.mean,
            "difference_low": differs.low,
            "difference_high": differs.high,
            **({} if then == by else {then: result.then}),
            "alike": int(place in outcome.alike),
            "chosen": int(result is outcome.chosen),
            "evaluations": result.evaluations,
            "seconds": result.seconds,
            **{
                baseline_column(by, name): mean_of(result.without_network.get(name, {}))
                for name in outcome.best.without_network
            },
        }
        for place, (result, differs) in enumerate(zip(outcome.results, outcome.differences, strict=True))
    ]
    return csv_text([list(rows[0]), *(list(row.values()) for row in rows)])


def why_chosen(outcome: Outcome, source: str, folder: Location) -> list[str]:
    """The sentences at the head of best.yaml."""
    chosen, by = outcome.chosen, outcome.by
    low, high = chosen.interval
    listed = ", ".join(f"{field} = {value}" for field, value in chosen.trial.settings.items())
    beside = outcome.without_network.items()
    others = len(outcome.alike) - 1
    near = f", or are within {outcome.within:g}" if outcome.within else ""
    return [
        f"Chosen of {len(outcome.results)} trials of {source}: {listed}.",
        f"{by.title} {chosen.mean:.4g} ({low:.4g} … {high:.4g}, 95 %) on {len(chosen.values)} images for "
        f"tuning, seed {chosen.trial.job.seed}"
        + "".join(f"; {label}, without a network, {it.mean:.4g}" for label, it in beside)
        + ";",
        "those are none of the images that this job evaluates: data.subset.",
        f"Finalists that cannot be told from the best (paired 95 % interval){near}: {others}"
        + (f"; chosen is the cheapest, {chosen.evaluations} evaluations, then the best " if others else ".")
        + (f"{outcome.then.title}." if others else ""),
        *(f"At the edge: {sentence}." for sentence in outcome.edges()),
        f"All trials: {folder / 'sweep.csv'}, by `kintsugi sweep`.",
    ]
