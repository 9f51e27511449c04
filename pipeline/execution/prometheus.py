"""What the actors tell Prometheus, through Ray's own exporter; docs/report.md lists it.

Ray puts `ray_` before the names and `_total` behind those of counters. No label says more of a run than the
beginning of its configuration's hash, for whoever reaches the port can read them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kintsugi.pipeline.execution.rows import Result
from kintsugi.pipeline.execution.stage import Restored
from kintsugi.pipeline.execution.worker import Observer


class Counts(Observer):
    """Tells what a worker on Ray did with every batch, and how long it had a unit in hand at its end.

    These are counts of work: what is done a second time, because somebody was slow, died or failed, counts
    twice; what was found done, or is kept, does not count.
    """

    def __init__(self, config_hash: str):
        from ray.util import metrics

        def labelled(kind: Any, name: str, about: str, *labels: str) -> Any:
            metric = kind(f"kintsugi_{name}", about, ("run", *labels))
            return metric.set_default_tags({"run": config_hash[:12]})

        self.samples = labelled(metrics.Counter, "samples", "Samples that were done.", "status")
        self.spent = labelled(metrics.Counter, "seconds", "Wall-clock time of the actor.", "part")
        self.evaluations = labelled(
            metrics.Counter, "evaluations", "Network evaluations, times samples.", "kind"
        )
        self.batch = labelled(metrics.Gauge, "batch_size", "Samples in the last batch that was restored.")

    def on_batch(self, results: Sequence[Result], seconds: Mapping[str, float]) -> None:
        """Count samples, evaluations and the stage's seconds."""
        count(self.spent, "part", seconds)
        restored = [result for result in results if isinstance(result, Restored)]
        ok = sum(not isinstance(result, str) and result.error is None for result in results)
        count(self.samples, "status", {"ok": ok, "failed": len(results) - ok})
        forwards, vjps = sum(r.forwards for r in restored), sum(r.vjps for r in restored)
        count(self.evaluations, "kind", {"forward": forwards, "vjp": vjps})
        if restored:
            self.batch.set(restored[-1].batch_size)

    def on_unit(self, seconds: float) -> None:
        """Count the seconds of all parts together."""
        count(self.spent, "part", {"total": seconds})


def count(counter: Any, label: str, values: Mapping[str, float]) -> None:
    """Add to a counter; Ray refuses to add nothing."""
    for name, value in values.items():
        if value > 0:
            counter.inc(value, {label: name})
