"""What of a task of a suite must be read with care, in words."""

from collections.abc import Sequence

from kintsugi.pipeline.analysis.compare_inputs import Input, differing_fields
from kintsugi.pipeline.analysis.compare_runs import RunNumbers, left_out_images
from kintsugi.pipeline.analysis.measures import badness_of, bare


def without_ranks(runs: Sequence[RunNumbers], names: Sequence[str]) -> list[str]:
    """Which methods have no value of a measure of the ranks."""
    found = []
    for name in names:
        if missing := [run.label for run in runs if run.estimate(name)[0] is None]:
            found.append(f"{bare(name)} is not known, and there is no rank in it, of {', '.join(missing)}")
    return found


def left_out_of(runs: Sequence[RunNumbers], images: int) -> list[str]:
    """As `left_out_images`, but what is the same of several methods is said once."""
    labels: dict[str, list[str]] = {}
    for run in runs:
        for line in left_out_images([run], images):
            labels.setdefault(line.removeprefix(f"{run.label}: "), []).append(run.label)
    return [
        f"{'all methods' if len(of) == len(runs) > 1 else ', '.join(of)}: {line}"
        for line, of in labels.items()
    ]


def other_measurements(inputs: Sequence[Input]) -> list[str]:
    """Why methods may have restored other measurements than the first: differing fields, and other seeds."""
    found = []
    first = inputs[0]
    for other in inputs[1:]:
        if first.restoring is None or other.restoring is None:
            what = "whether they were restored from the same measurements is not known"
            found.append(f"{other.label} scores images that were given: {what}")
            continue
        found += [
            f"{other.label}: {field} is {given!r}, of {first.label} {expected!r}: "
            "they did not restore the same measurements"
            for field, expected, given in differing_fields(first.restoring, other.restoring)
            if field != "seed"
        ]
    seeds: dict[str, set[int]] = {}
    for one in inputs:
        if one.restoring is not None:
            seeds.setdefault(one.label, set()).add(one.restoring.job.seed)
    if len({frozenset(of) for of in seeds.values()}) > 1:
        of_each = ", ".join(f"{label} {', '.join(map(str, sorted(of)))}" for label, of in seeds.items())
        found.append(f"not all have the same seeds, and so the same noise: {of_each}")
    return list(dict.fromkeys(found))


def worse_than_nothing(
    runs: Sequence[RunNumbers], baselines: Sequence[RunNumbers], names: Sequence[str]
) -> list[str]:
    """Where the mean of a baseline is better than a method's."""
    found = []
    for name in names:
        values = {run.label: badness_of(name, run.estimate(name)[0]) for run in runs}
        for baseline in baselines:
            bar = badness_of(name, baseline.estimate(name)[0])
            worse = [of for of, v in values.items() if v is not None and bar is not None and v > bar]
            if worse:
                better_than = f"is better than {', '.join(worse)}"
                found.append(f"{bare(name)}: {baseline.label}, which needs no network, {better_than}")
    return found
