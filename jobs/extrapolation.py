"""`kintsugi sweep --extrapolate`: coefficients for a job's sampler, from its images for tuning."""

from collections.abc import Sequence

from kintsugi import samplers
from kintsugi.errors import JobError
from kintsugi.jobs.display import progress_bar
from kintsugi.jobs.terminal import console, to_rich
from kintsugi.pipeline.analysis.sweep import Trial
from kintsugi.pipeline.analysis.sweep_settings import Settings
from kintsugi.pipeline.analysis.tables import Table
from kintsugi.pipeline.execution.lessons import lessons_of
from kintsugi.pipeline.execution.memory import lacks_memory
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.priors.base import autoencoder_of
from kintsugi.samplers.descent import Stepwise
from kintsugi.samplers.learning import Learned, learn

FIELD = "sampler.extrapolate"
MOST_STEPS = 50  # of which all predictions of all images are in memory


def stepwise(trial: Trial) -> Stepwise:
    """The sampler of a trial, its own extrapolation left out, for it is learned.

    Raises:
        JobError: it has none, has too many steps, or the trials vary it.
    """
    if FIELD in trial.settings:
        raise JobError(f"--vary {FIELD}: is what --extrapolate learns; leave one out")
    spec = {name: value for name, value in trial.job.sampler.items() if name != "extrapolate"}
    sampler = samplers.build(spec)
    if not isinstance(sampler, Stepwise):
        known = [
            name for name, of in samplers.BUILTIN.items() if isinstance(of, type) and issubclass(of, Stepwise)
        ]
        raise JobError(
            f"--extrapolate: {spec['name']!r} does not go from prediction to prediction; "
            f"choose a sampler.name of {', '.join(known)}"
        )
    if sampler.steps > MOST_STEPS:
        raise JobError(
            f"--extrapolate: sampler.steps: {sampler.steps}; of more than {MOST_STEPS} none is learned"
        )
    return sampler


def learn_rows(trial: Trial, texture: float) -> list[Learned]:
    """The row of each step, learned from a trial's images in this process; said in a table.

    Raises:
        JobError: as `lessons_of`, a prior of latents, or memory is lacking.
    """
    sampler = stepwise(trial)
    with console.status(f"reading the prior and the images of {trial.name}"):
        lessons = lessons_of(open_or_plan(trial.job))
    if autoencoder_of(lessons[0].denoise.prior) is not None:
        raise JobError("--extrapolate: coefficients are learned on pixels, and the prior is of latents")
    images = sum(len(lesson.truth) for lesson in lessons)
    console.print(f"extrapolation of {sampler.steps} steps, learned from {images} images in this process")
    try:
        with progress_bar(console, sampler.steps * len(lessons), "batches") as advance:
            learned = learn(sampler, lessons, texture, advance)
    except Exception as error:
        if lacks_memory(error):
            raise JobError("--extrapolate: memory is lacking; lower compute.batch_size or --tune") from error
        raise
    title = "extrapolation, on the images that it is learned from"
    console.print(to_rich(steps_table(learned), left=0, title=title))
    return learned


def steps_table(learned: Sequence[Learned]) -> Table:
    """By step, before and after: the error, and the texture relative to the truth's."""
    rows = [
        [str(i), *(f"{value:.4f}" for value in step.error), *(f"{value:.3f}" for value in step.texture)]
        for i, step in enumerate(learned)
    ]
    return Table(["step", "RMSE", "extrapolated", "texture", "extrapolated"], rows)


def settings_of(learned: Sequence[Learned]) -> Settings:
    """The field of the job, as `samplers.extrapolation` reads it."""
    rows = [
        [list(one.row.measured), list(one.row.free)] if one.row.split else list(one.row.free)
        for one in learned
    ]
    return {FIELD: rows}


def why(trial: Trial, learned: Sequence[Learned], texture: float) -> list[str]:
    """The sentences at the head of best.yaml."""
    last = learned[-1]
    return [
        f"{FIELD} is learned by `kintsugi sweep --extrapolate --texture {texture:g}` from at most "
        f"{trial.job.data.limit} images for tuning:",
        f"the last prediction's RMSE on [-1, 1] {last.error[0]:.4f} → {last.error[1]:.4f}, its texture "
        f"relative to the truth's {last.texture[0]:.3f} → {last.texture[1]:.3f} on these.",
    ]
