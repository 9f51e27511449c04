"""What the actors tell Prometheus, through Ray's own exporter; docs/report.md lists it.

Ray puts `ray_` before the names and `_total` behind those of counters. No label says more of a run than the
beginning of its configuration's hash, for whoever reaches the port can read them.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.commit import Commit
from pipeline.read import Decoded
from pipeline.restore import Restored
from pipeline.worker import Task, Worker


class TellingWorker(Worker):
    """A worker on Ray: evaluations and batch sizes are told with every batch, the rest with every unit.

    A unit that is done a second time, because somebody was slow, counts twice: these are counts of work.
    """

    def __init__(self, *arguments: Any):
        from ray.util.metrics import Counter, Gauge

        super().__init__(*arguments)

        def labelled(kind: Any, name: str, about: str, *labels: str) -> Any:
            metric = kind(f"kintsugi_{name}", about, ("run", *labels))
            return metric.set_default_tags({"run": self.config_hash[:12]})

        self.samples = labelled(Counter, "samples", "Samples in committed units.", "status")
        self.spent = labelled(Counter, "seconds", "Wall-clock time in committed units.", "part")
        self.evaluations = labelled(Counter, "evaluations", "Network evaluations, times samples.", "kind")
        self.batch = labelled(Gauge, "batch_size", "Samples in the last batch that was restored.")

    def restore(self, batch: list[Decoded]) -> list[Restored | str]:
        results = super().restore(batch)
        restored = [result for result in results if isinstance(result, Restored)]
        if restored:
            forwards, vjps = sum(r.forwards for r in restored), sum(r.vjps for r in restored)
            count(self.evaluations, "kind", {"forward": forwards, "vjp": vjps})
            self.batch.set(restored[-1].batch_size)
        return results

    def process(self, task: Task) -> Commit:
        commit = super().process(task)
        count(self.samples, "status", {"ok": commit.rows - commit.failed, "failed": commit.failed})
        count(self.spent, "part", commit.seconds)
        return commit


def count(counter: Any, label: str, values: Mapping[str, float]) -> None:
    """Add to a counter; Ray refuses to add nothing."""
    for name, value in values.items():
        if value > 0:
            counter.inc(value, {label: name})
