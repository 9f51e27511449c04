"""The stage of restored images, whatever method made them: each is compared with its truth."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from kintsugi.device import sent
from kintsugi.numerics import at_once
from kintsugi.pipeline.data.decode import Convert, Decoded
from kintsugi.pipeline.data.pairs import Both
from kintsugi.pipeline.execution.stage import Scored, features_of, measuring
from kintsugi.pipeline.execution.timing import timed
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics import REGISTRY
from kintsugi.pipeline.metrics.registry import TRUTH


class ScoringStage:
    """Scores images of any size; there is no prior. Their features are extracted by the batch.

    Attributes: as of `worker.UnitStage`.

    Raises:
        JobError: weights of a metric are missing.
    """

    prior_sha256: str | None = None

    def __init__(self, job: Job, device: str | torch.device):
        self.device = torch.device(device)
        self.batch_size = at_once(self.device)
        self.scorer, self.extractor = measuring(job, self.device)
        smallest = max((REGISTRY[name].smallest for name in job.metrics), default=1)
        self.convert: Convert = Both(smallest, job.data.channels)
        self.seen = {"": 0, TRUTH: 1} if job.reference == "truth" else {"": 0}
        self.seconds = {"score": 0.0, "scoring": 0.0}
        self.notes: list[str] = []

    def begin(self, samples: Sequence[Decoded]) -> Callable[[], list[Scored]]:
        """What scores pairs, as `run`: there is nothing to be done before."""
        return partial(self.scores, "scoring", samples)

    def run(self, samples: Sequence[Decoded]) -> list[Scored]:
        """The metrics of pairs (2, H, W, C) uint8, restored and true; raises what a metric raised."""
        return self.scores("score", samples)

    def scores(self, part: str, samples: Sequence[Decoded]) -> list[Scored]:
        """As `run`, noting the time as a part's."""
        with timed(self.seconds, part, self.device):
            metrics = [self.metrics(sample.array) for sample in samples]
            seen = {of: [sample.array[place] for sample in samples] for of, place in self.seen.items()}
            features = features_of(self.extractor, [sample.key for sample in samples], seen)
        return [Scored(metrics=m, features=f) for m, f in zip(metrics, features, strict=True)]

    def metrics(self, pair: np.ndarray) -> dict[str, float]:
        """Those of one pair: images of a unit have sizes of their own."""
        images = sent(torch.from_numpy(pair), self.device).permute(0, 3, 1, 2) / 127.5 - 1
        return {name: values[0] for name, values in self.scorer(images[:1], images[1:]).items()}
