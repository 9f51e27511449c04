"""`kintsugi sweep`: which settings of a job are best, on images that the job is not evaluated on."""

from __future__ import annotations

from typing import Annotated

import typer

from kintsugi.jobs.options import JobArgument
from kintsugi.jobs.terminal import EXIT_SOME_FAILED, console

VaryOption = Annotated[
    list[str],
    typer.Option(
        metavar="FIELD=VALUES",
        help="A field and its values: 5,10,15 or, with --random, a range -0.2..0.2 or 1..30:log; repeatable.",
    ),
]
ByOption = Annotated[str, typer.Option(help="The metric of single images that decides.")]
WithinOption = Annotated[
    float, typer.Option(min=0, help="Trials whose mean is this near to the best one's are alike.")
]
ThenOption = Annotated[
    str | None,
    typer.Option(metavar="METRIC", help="Decides among trials that are alike. [default: that of --by]"),
]
TuneOption = Annotated[int, typer.Option(min=2, help="Images for tuning, at most.")]
HalveOption = Annotated[
    int,
    typer.Option(min=1, help="From rung to rung 1/N of the trials go on with N times the images; 1: all."),
]
RandomOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="N combinations at random, by the job's seed, not the whole grid."),
]
OutOption = Annotated[
    str | None, typer.Option(help="The folder of the sweep, a path or URL. [default: the job's output-sweep]")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the job; repeatable."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="auto, ray://HOST:10001, local or none: as of `kintsugi run`."),
]


def sweep(
    job: JobArgument,
    vary: VaryOption,
    by: ByOption = "psnr",
    within: WithinOption = 0.0,
    then: ThenOption = None,
    tune: TuneOption = 64,
    halve: HalveOption = 2,
    random: RandomOption = None,
    out: OutOption = None,
    sets: SetOption = None,
    address: AddressOption = None,
) -> None:
    """Find the best settings of a job on images for tuning; the same command again does what is left.

    The images for tuning are a tenth of all (data.subset.fraction), chosen by a hash of their keys;
    best.yaml, the job with the best settings, evaluates only the others. Trials are runs in OUT/trials.

    Examples:

        kintsugi sweep quickstart --vary sampler.w=5,10,15,20 --set data.subset.fraction=0.5

        kintsugi sweep imagenet-sr4 --vary sampler.w=2,5,10,15,20 --vary sampler.lam=-0.2,0,0.2 --by lpips

        kintsugi sweep imagenet-sr4 --vary sampler.w=2,5,10,15,20 --within 0.3 --then spectrum_ratio --halve 1

        kintsugi sweep job.yaml --vary sampler.w=1..30:log --vary sampler.start=0.2..0.6 --random 20
    """
    from kintsugi.jobs import trials
    from kintsugi.pipeline.analysis.sweep import Measured, Outcome

    deciding = Measured(by), Measured(then or by)
    base = trials.read_base(job, sets or [], out)
    tried = trials.combinations(vary, random, base.job.seed)
    made = trials.make_trials(base, tried, tune, [measure.name for measure in deciding])
    results, last = trials.run_trials(made, deciding, tune, halve, address, base.folder)
    outcome = Outcome(deciding[0], results, last, deciding[1], within)
    trials.show(outcome)
    console.print(f"kintsugi run {trials.write(outcome, base)}")
    if any(result.failed for result in results):
        raise typer.Exit(EXIT_SOME_FAILED)
