"""`kintsugi sweep`: which settings of a job are best, on images that the job is not evaluated on."""

from __future__ import annotations

from typing import Annotated

import typer

from kintsugi.errors import JobError
from kintsugi.jobs.options import JobArgument
from kintsugi.jobs.terminal import EXIT_SOME_FAILED, console

VaryOption = Annotated[
    list[str] | None,
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
ExtrapolateOption = Annotated[
    bool,
    typer.Option("--extrapolate", help="Learn sampler.extrapolate of the best settings, in this process."),
]
TextureOption = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="SHARE",
        help="With --extrapolate: of the truth's fine texture predictions have this share or more; 0: "
        "squared error alone decides.",
    ),
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
    vary: VaryOption = None,
    by: ByOption = "psnr",
    within: WithinOption = 0.0,
    then: ThenOption = None,
    tune: TuneOption = 64,
    halve: HalveOption = 2,
    random: RandomOption = None,
    extrapolate: ExtrapolateOption = False,
    texture: TextureOption = 0.0,
    out: OutOption = None,
    sets: SetOption = None,
    address: AddressOption = None,
) -> None:
    """Find the best settings of a job on images for tuning; the same command again does what is left.

    The images for tuning are a tenth of all (data.subset.fraction), chosen by a hash of their keys;
    best.yaml, the job with the best settings, evaluates only the others. Trials are runs in OUT/trials.

    Examples:

        kintsugi sweep quickstart --vary sampler.eta=0,0.5,0.85 --set data.subset.fraction=0.5

        kintsugi sweep imagenet-sr4 --vary sampler.w=2,5,10,15,20 --vary sampler.lam=-0.2,0,0.2 --by lpips

        kintsugi sweep imagenet-sr4 --vary sampler.w=2,5,10,15,20 --within 0.3 --then spectrum_ratio --halve 1

        kintsugi sweep job.yaml --vary sampler.w=1..30:log --vary sampler.start=0.2..0.6 --random 20

        kintsugi sweep job.yaml --set sampler='{name: ddnm, steps: 5, start: 0.4}' --extrapolate
    """
    from kintsugi.jobs import extrapolation, trials
    from kintsugi.pipeline.analysis.sweep import Measured, Outcome
    from kintsugi.pipeline.analysis.sweep_tables import why_chosen

    if not (vary or extrapolate):
        raise JobError("--vary: missing; name a field and its values, or learn: --extrapolate")
    deciding = Measured(by), Measured(then or by)
    base = trials.read_base(job, sets or [], out)
    tried = trials.combinations(vary or [], random, base.job.seed)
    made = trials.make_trials(base, tried, tune, [measure.name for measure in deciding])
    for trial in made if extrapolate else []:
        extrapolation.stepwise(trial)
    chosen, comments, failed = made[0], [], False
    if vary:
        results, last = trials.run_trials(made, deciding, tune, halve, address, base.folder)
        outcome = Outcome(deciding[0], results, last, deciding[1], within)
        trials.show(outcome)
        trials.write(outcome, base.folder)
        chosen, comments = outcome.chosen.trial, why_chosen(outcome, base.source, base.folder)
        failed = any(result.failed for result in results)
    settings = chosen.settings
    if extrapolate:
        learned = extrapolation.learn_rows(chosen, texture)
        settings = settings | extrapolation.settings_of(learned)
        comments = comments + extrapolation.why(chosen, learned, texture)
    console.print(f"kintsugi run {trials.write_best(settings, comments, base)}")
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
