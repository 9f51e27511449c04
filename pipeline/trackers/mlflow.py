"""MLflow: a run of the experiment MLFLOW_EXPERIMENT_NAME, or "kintsugi", at MLFLOW_TRACKING_URI."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow

from kintsugi.pipeline.trackers import Outcome, Tracked

LONGEST = 6000  # characters of a parameter
AT_ONCE = 100  # parameters


class MLflow:
    """A run that is continued is found by its tag `kintsugi.id`."""

    def begin(self, run: Tracked) -> str:
        """Log the configuration as parameters, which cannot change, of a new run."""
        self.client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "kintsugi")
        experiment = mlflow.set_experiment(name).experiment_id
        found = self.client.search_runs([experiment], f"tags.`kintsugi.id` = '{run.id}'", max_results=1)
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, "RUNNING")
        else:
            tags = {"kintsugi.id": run.id, "kintsugi.folder": run.folder, "mlflow.note.content": run.title}
            made = self.client.create_run(experiment, tags=tags, run_name=run.name)
            self.id = made.info.run_id
            fields = [(field, str(value)[:LONGEST]) for field, value in run.config.items()]
            for first in range(0, len(fields), AT_ONCE):
                mlflow.log_params(dict(fields[first : first + AT_ONCE]), run_id=self.id)
        return f"experiment {name}, run {self.id}"

    def progress(self, done: int, values: Mapping[str, float]) -> None:
        """Metrics, whose step is the samples that are done."""
        mlflow.log_metrics(dict(values), step=done, run_id=self.id)

    def finish(self, done: int, outcome: Outcome | None) -> None:
        """The pictures and the report as artefacts."""
        if outcome is not None:
            self.progress(done, outcome.values)
            with TemporaryDirectory() as folder:
                for name, content in {**outcome.files, "pictures.png": outcome.pictures}.items():
                    if content is not None:
                        Path(folder, name).write_bytes(content)
                mlflow.log_artifacts(folder, run_id=self.id)
        self.client.set_terminated(self.id, "KILLED" if outcome is None else "FINISHED")


TRACKER = MLflow
