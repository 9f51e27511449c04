"""`docs/grafana.json`: a dashboard of what the code tells Prometheus, and of nothing else."""

import json
import re
from pathlib import Path

import pytest

from kintsugi.pipeline.execution.prometheus import Counts

FILE = Path(__file__).parents[3] / "docs" / "grafana.json"
BOARD = json.loads(FILE.read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
LABELS = {
    "status": {"ok", "failed"},
    "part": {"degrade", "sample", "forward", "vjp", "score", "total"},
    "kind": {"forward", "vjp"},
}


@pytest.fixture
def exported(monkeypatch) -> dict[str, set[str]]:
    """The names of metrics as Ray exports them, with their labels."""
    found: dict[str, set[str]] = {}

    def recorder(end):
        class Metric:
            def __init__(self, name, about, tag_keys):
                found[f"ray_{name}{end}"] = set(tag_keys)

            def set_default_tags(self, tags):
                return self

        return Metric

    monkeypatch.setattr("ray.util.metrics.Counter", recorder("_total"))
    monkeypatch.setattr("ray.util.metrics.Gauge", recorder(""))
    Counts("0" * 64)
    return found


def test_it_shows_every_metric_that_there_is_by_labels_that_it_has(exported):
    used = set()
    for text in (*EXPRESSIONS, BOARD["templating"]["list"][1]["query"]["query"]):
        for name, selector in re.findall(r"\b(\w*kintsugi\w*)\b(?:\{([^}]*)\})?", text):
            used.add(name)
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', selector):
                assert label in exported[name]
                assert label == "run" or set(values.split("|")) <= LABELS[label]
    assert used == exported.keys()


def test_it_is_a_dashboard_that_grafana_can_import():
    assert BOARD["title"] == "Kintsugi"
    assert BOARD["schemaVersion"] >= 36, "of Grafana 9, the first with data sources as {type, uid}"
    assert "id" not in BOARD, "Grafana gives it"
    variables = {variable["name"]: variable["type"] for variable in BOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "run": "query"}
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert all(0 <= x < 24 for x, _ in cells)
        assert not cells & taken, panel["title"]
        taken |= cells
    for text in EXPRESSIONS:
        assert text.count("(") == text.count(")")
        assert set(re.findall(r"\$(\w+)", text)) <= {"run", "__rate_interval"}
