"""TensorBoard: event files in the run's own folder `tensorboard`, by torch's writer."""

from collections.abc import Mapping
from io import BytesIO

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from kintsugi.pipeline.trackers import Outcome, Tracked


class TensorBoard:
    """A run that is continued writes another file, and TensorBoard shows them as one.

    `tensorboard --logdir runs` shows all runs in `runs`.
    """

    def begin(self, run: Tracked) -> str:
        """Write the configuration as a table."""
        folder = f"{run.folder}/tensorboard"
        self.writer = SummaryWriter(folder)
        lines = (f"| {field} | {value} |" for field, value in run.config.items())
        self.writer.add_text("config", "\n".join(["| field | value |", "|---|---|", *lines]))
        return folder

    def progress(self, done: int, values: Mapping[str, float]) -> None:
        """Scalars over the samples that are done."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, done)
        self.writer.flush()

    def finish(self, done: int, outcome: Outcome | None) -> None:
        """The report as text, as HTML is not shown."""
        if outcome is not None:
            self.progress(done, outcome.values)
            for name, content in outcome.files.items():
                if name.endswith(".md"):
                    self.writer.add_text(name.removesuffix(".md"), content.decode(), done)
            if outcome.pictures is not None:
                with Image.open(BytesIO(outcome.pictures)) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                self.writer.add_image("pictures", pixels, done, dataformats="HWC")
        self.writer.close()


TRACKER = TensorBoard
