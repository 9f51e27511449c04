"""What the actors tell Prometheus, through Ray's own exporter; docs/report.md lists it.

Ray puts `ray_` before the names and `_total` behind those of counters. No label says more of a run than the
beginning of its configuration's hash, for whoever reaches the port can read them.
"""

import time
from collections.abc import Mapping
from typing import Any

from kintsugi.errors import error_text
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.execution.commit import Commit
from kintsugi.pipeline.execution.stage import Restored
from kintsugi.pipeline.execution.worker import LEFT_OUT, Task, Worker


class TellingWorker(Worker):
    """A worker on Ray: what it did is told with every batch, and how long it had a unit in hand at its end.

    These are counts of work: what is done a second time, because somebody was slow, died or failed, counts
    twice; what was found done, or is kept, does not count.
    """

    def __init__(self, *arguments: Any):
        from ray.util import metrics

        super().__init__(*arguments)

        def labelled(kind: Any, name: str, about: str, *labels: str) -> Any:
            metric = kind(f"kintsugi_{name}", about, ("run", *labels))
            return metric.set_default_tags({"run": self.config_hash[:12]})

        self.samples = labelled(metrics.Counter, "samples", "Samples that were done.", "status")
        self.spent = labelled(metrics.Counter, "seconds", "Wall-clock time of the actor.", "part")
        self.evaluations = labelled(
            metrics.Counter, "evaluations", "Network evaluations, times samples.", "kind"
        )
        self.batch = labelled(metrics.Gauge, "batch_size", "Samples in the last batch that was restored.")

    def restore(self, batch: list[Decoded]) -> list[Restored | str]:
        before = dict(self.stage.seconds)
        results = super().restore(batch)
        count(self.spent, "part", {part: now - before[part] for part, now in self.stage.seconds.items()})
        done = [result for result in results if result != error_text(LEFT_OUT)]
        failed = sum(isinstance(result, str) or result.error is not None for result in done)
        count(self.samples, "status", {"ok": len(done) - failed, "failed": failed})
        restored = [result for result in done if isinstance(result, Restored)]
        if restored:
            forwards, vjps = sum(r.forwards for r in restored), sum(r.vjps for r in restored)
            count(self.evaluations, "kind", {"forward": forwards, "vjp": vjps})
            self.batch.set(restored[-1].batch_size)
        return results

    def process(self, task: Task) -> Commit:
        started = time.perf_counter()
        try:
            return super().process(task)
        finally:
            count(self.spent, "part", {"total": time.perf_counter() - started})


def count(counter: Any, label: str, values: Mapping[str, float]) -> None:
    """Add to a counter; Ray refuses to add nothing."""
    for name, value in values.items():
        if value > 0:
            counter.inc(value, {label: name})
