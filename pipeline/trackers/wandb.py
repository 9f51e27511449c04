"""Weights & Biases: a run of the project WANDB_PROJECT, or "kintsugi"."""

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import wandb
from PIL import Image

from kintsugi.pipeline.trackers import Outcome, Tracked

QUIET = {"silent": True, "console": "off", "x_disable_meta": True, "disable_git": True, "save_code": False}
"""It leaves the terminal alone, and sends neither the words of the command nor the code."""


class WeightsAndBiases:
    """A run that is continued has the same id, and goes on; offline, `wandb sync` puts it together."""

    def begin(self, run: Tracked) -> str:
        """Log the configuration; raises a RuntimeError where wandb would ask at the terminal who it is."""
        settings = wandb.Settings(**QUIET)
        if wandb.setup(settings).settings.mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError("not logged in: `wandb login`, WANDB_API_KEY, or WANDB_MODE=offline")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kintsugi"),
            id=run.id,
            name=run.name,
            notes=run.title,
            config=dict(run.config),
            resume="allow",
            allow_val_change=True,
            settings=settings,
        )
        self.run.define_metric("*", step_metric="done")
        return self.run.url or str(Path(self.run.dir).parent)

    def progress(self, done: int, values: Mapping[str, float]) -> None:
        """A line of the history."""
        self.run.log({"done": done, **values})

    def finish(self, done: int, outcome: Outcome | None) -> None:
        """Numbers in the summary too, the contact sheet as media, the report as an artefact."""
        if outcome is not None:
            self.progress(done, outcome.values)
            if outcome.pictures is not None:
                with Image.open(BytesIO(outcome.pictures)) as picture:
                    self.run.log({"done": done, "pictures": wandb.Image(picture)})
            report = wandb.Artifact(f"report-{self.run.id}", "report")
            for name, content in outcome.files.items():
                with report.new_file(name, "wb") as file:
                    file.write(content)
            self.run.log_artifact(report)
        self.run.finish(exit_code=int(outcome is None))


TRACKER = WeightsAndBiases
