"""A batch without samples, to find how many have room on a device."""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from kintsugi.errors import JobError
from kintsugi.pipeline.execution.problems import Prepared, Problems
from kintsugi.samplers import KeyedNoise


def rehearse(
    problems: Problems,
    device: torch.device,
    count: int,
    score: Callable[[Prepared, Tensor, Tensor, Tensor], object],
) -> None:
    """The first step of the sampler on a batch and the evaluation after it, and the batch's scores.

    It needs the memory of a whole run, and little time.

    Raises:
        JobError: no image of about `data.size` fits the operator.
    """
    if problems.typical is None:
        raise JobError("compute: the operator fits no image of data.size; give batch_size as a number")
    problem = problems.of_images(problems.typical.image)
    truth = torch.zeros(count, *problem.operator.image_shape, device=device)
    noise = KeyedNoise(0, [str(i) for i in range(count)])
    problem.begin([0] * count, [""] * count, count)
    y = problem.operator.forward(truth)
    with suppress(RehearsedError):
        problem.restore(y, noise, end_of_rehearsal)
    with suppress(ValueError, ArithmeticError):  # of a metric to which a flat image is none
        score(problem, y, truth, truth)


class RehearsedError(Exception):
    """Ends a sampler's run early."""


def end_of_rehearsal(step: int, x: Tensor, prediction: Tensor) -> None:
    """A sampler's callback: raise RehearsedError after the second evaluation."""
    if step == 1:
        raise RehearsedError
