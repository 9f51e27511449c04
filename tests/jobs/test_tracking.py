"""`--track`: what each tracker has afterwards, read back by its own reader, and that none harms the job."""

import json
import struct
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from kit.jobs import digests, told, write_job
from kit.plugins import SITE, write

from kintsugi.jobs import tracking
from kintsugi.pipeline import trackers
from kintsugi.pipeline.execution.directory import commit_file
from kintsugi.pipeline.execution.run import Run

WIDTH, HEIGHT = "pictures/width", "pictures/height"
TRACKERS = ("tensorboard", "mlflow", "wandb")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Trackers write here and nowhere else, and every unit's progress is told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    yield
    if (wandb := sys.modules.get("wandb")) is not None:  # a test may have hidden it
        wandb.teardown()  # it keeps the folder of its first run


@pytest.fixture
def job_file(finished: Run, tmp_path: Path) -> Path:
    """Of a run of which one unit is still to be done."""
    commit_file(finished.folder, next(finished.units()).unit).unlink()
    return write_job(tmp_path / "job.yaml", finished.job.model_copy(update={"output": str(finished.folder)}))


class Recorder:
    """What a plug-in is told. `fails`: the method in which it raises; `waits`: for this, in `begin`."""

    told: list = []  # noqa: RUF012
    fails = ""
    waits: threading.Event | None = None

    def note(self, method, *what):
        assert threading.current_thread() is not threading.main_thread()
        self.told.append((method, *what))
        if self.fails == method:
            raise ConnectionError("no network: https://me:hunter2@server/api")

    def begin(self, run):
        self.note("begin", run)
        if self.waits is not None:
            self.waits.wait(60)
        return "here"

    def progress(self, done, values):
        self.note("progress", done, values)

    def finish(self, done, outcome):
        self.note("finish", done, outcome)


@pytest.fixture
def recorder(monkeypatch, tmp_path):
    """A tracker of another package, `recorder`."""
    monkeypatch.setattr(Recorder, "told", [])
    monkeypatch.setitem(sys.modules, "kintsugi_recorder", sys.modules[__name__])
    groups = {"kintsugi.trackers": {"recorder": "kintsugi_recorder:Recorder"}}
    monkeypatch.syspath_prepend(write(tmp_path / "site", "kintsugi-recorder", "1.0", groups))
    monkeypatch.setattr(trackers.REGISTRY, "loaded", {})
    return Recorder


def of_tensorboard(folder: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    steps = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    texts = [e.tensor_proto.string_val[0].decode() for e in events.Tensors("report/text_summary")]
    config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    shown = [(e.width, e.height) for e in events.Images("pictures")]
    return 1, steps, config, texts[-1], shown[-1]


def of_mlflow(folder: Path):
    client = pytest.importorskip("mlflow").MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'kintsugi'")
    runs = client.search_runs([experiment.experiment_id])
    first = runs[0]
    assert (first.info.status, first.data.tags["kintsugi.folder"]) == ("FINISHED", str(folder))
    steps = {
        name: [(m.step, m.value) for m in client.get_metric_history(first.info.run_id, name)]
        for name in first.data.metrics
    }
    files = Path(client.download_artifacts(first.info.run_id, "."))
    assert (files / "report.html").read_bytes() == (folder / "report/report.html").read_bytes()
    return len(runs), steps, str(first.data.params), (files / "report.md").read_text(), size_of(files)


def of_wandb(folder: Path):
    pytest.importorskip("wandb")
    logs = sorted(Path("wandb").glob("offline-run-*/*.wandb"))
    found = [(kind, getattr(record, kind)) for log in logs for kind, record in wandb_records(log)]
    lines = [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in one.item}
        for kind, one in found
        if kind == "history"
    ]
    steps: dict = {}
    for line in lines:
        for name in line.keys() - {"done"}:
            steps.setdefault(name, []).append((line["done"], line[name]))
    artifact = [one for kind, one in found if kind == "artifact"][-1]
    staged = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    runs = {one.run_id: str(one) for kind, one in found if kind == "run"}
    (shown,) = {(line[WIDTH], line[HEIGHT]) for line in lines if WIDTH in line}
    return len(runs), steps, "".join(runs.values()), staged["report.md"].read_text(), shown


def wandb_records(log: Path):
    """The records of an offline run: as in LevelDB's logs, in blocks of 32 KiB, behind a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = log.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record.FromString(parts)
            yield record.WhichOneof("record_type"), record
            parts = b""


def size_of(folder: Path):
    from PIL import Image

    with Image.open(folder / "pictures.png") as sheet:
        return sheet.size


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_has_the_job_its_progress_and_what_came_out(name, job_file, finished):
    pytest.importorskip(name)
    read = globals()[f"of_{name}"]
    code, output = told("run", job_file, "--address", "none", "--track", name)
    assert (code, f"{name}: " in output, "goes on without" in output) == (0, True, False), output
    before, *_ = read(finished.folder)
    code, output = told("report", finished.folder, "--track", name)
    assert (code, "goes on without" in output) == (0, False), output
    count, steps, config, report, shown = read(finished.folder)
    assert before == count == 1, "a run that is continued is one run"
    results = json.loads((finished.folder / "report/metrics.json").read_text())
    for metric, of in results["metrics"].items():
        for end, part in (("", "mean"), ("_low", "low"), ("_high", "high")):
            step, value = steps[metric + end][-1]
            assert (step, value) == (12, pytest.approx(of[part], rel=1e-6))
    assert steps["psnr_lmmse"][-1][1] == pytest.approx(
        results["metrics"]["psnr"]["baselines"]["lmmse"]["value"], rel=1e-6
    )
    assert [step for step, _ in steps["progress/psnr"]] == [12]
    assert steps["samples_failed"][-1] == (12, 0)
    assert finished.config_hash in config
    assert "average_pool" in config
    assert report.rstrip() == (finished.folder / "report/report.md").read_text().rstrip()
    assert shown == size_of(finished.folder / "report")


def test_what_a_plug_in_is_told(recorder, job_file, finished):
    known = digests(finished)
    code, output = told("run", job_file, "--address", "none", "--track", "recorder", "--track", "recorder")
    assert (code, output.count("recorder: here")) == (0, 1)
    assert [call[0] for call in recorder.told] == ["begin", "progress", "finish"]
    (_, run), (_, done, values), (_, total, outcome) = recorder.told
    assert (done, total) == (12, 12)
    assert run.config["data.size"] == finished.job.data.size
    assert run.config["config_hash"] == finished.config_hash
    # The unit that was left is the first one, of three samples.
    rows = finished_rows(finished, 3)
    assert values["progress/psnr"] == pytest.approx(sum(rows) / 3)
    assert {"progress/failed", "progress/images_per_second", "progress/devices_busy"} < values.keys()
    assert outcome.files["metrics.json"] == (finished.folder / "report/metrics.json").read_bytes()
    assert digests(finished) == known
    recorder.told.clear()
    told("report", finished.folder, "--track", "recorder")
    assert [call[0] for call in recorder.told] == ["begin", "finish"]
    assert recorder.told[0][1].id == run.id


def finished_rows(run: Run, count: int) -> list[float]:
    import pyarrow.parquet as pq

    return pq.read_table(run.folder / "report/rows.parquet")["psnr"].to_pylist()[:count]


@pytest.mark.parametrize("method", ["begin", "progress", "finish"])
def test_one_that_fails_is_named_once_and_the_job_goes_on(method, recorder, job_file, finished, monkeypatch):
    monkeypatch.setattr(recorder, "fails", method)
    known = digests(finished)
    code, output = told("run", job_file, "--address", "none", "--track", "recorder")
    assert (code, digests(finished)) == (0, known)
    assert output.count("goes on without it") == 1
    assert "recorder: ConnectionError: no network: https://…@server/api" in output
    assert recorder.told[-1][0] == method, "and is told no more"
    assert (finished.folder / "report/report.html").is_file()


def test_one_that_does_not_answer_is_not_waited_for(recorder, job_file, monkeypatch):
    hanging = threading.Event()
    monkeypatch.setattr(recorder, "waits", hanging)
    monkeypatch.setattr(tracking, "LEAVE_SECONDS", 0.1)
    code, output = told("run", job_file, "--address", "none", "--track", "recorder")
    hanging.set()
    assert code == 0
    assert "recorder: no answer for 0 s, not waited for" in output


def test_a_job_that_cannot_go_on_ends_without_an_outcome(recorder, job_file, finished, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("kintsugi.jobs.execution.write_restored", broken)
    code, _ = told("run", job_file, "--address", "none", "--track", "recorder")
    assert code == 1
    assert recorder.told[-1] == ("finish", 12, None)


def test_what_cannot_be_is_said_before_anything_is_done(job_file, finished, monkeypatch):
    libraries = {"mlflow": "mlflow", "wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}
    for name, module in libraries.items():
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, f"kintsugi.pipeline.trackers.{name}", raising=False)
        code, output = told("run", job_file, "--address", "none", "--track", name)
        assert (code, f"pip install 'kintsugi[{name}]'" in output) == (1, True), output
    code, output = told("score", "a", "b", "--track", "neptune")
    assert code == 1
    assert "--track neptune: no such tracker; choose from mlflow, tensorboard, wandb" in output
    assert sum(1 for _ in finished.outstanding()) == 1


def test_no_secret_of_a_job_is_told(finished):
    source = "https://me:hunter2@host/x?token=hunter2"
    published = [{"method": "theirs", "nfe": 5, "source": source, "values": {"psnr": 20}}]
    job = finished.job.model_validate(finished.job.model_dump() | {"published": published})
    about = tracking.about_run(Run(finished.folder, job, finished.prior, finished.summary))
    assert "hunter2" not in str(about)
    assert "https://…@host" in about.config["published"]


# ---- suites


@pytest.fixture
def suite_of(make_job, tmp_path, monkeypatch):
    """Writes a suite file of one task and these samplers."""
    monkeypatch.syspath_prepend(str(SITE))

    def write(*samplers: str) -> Path:
        base = make_job(metrics=["psnr"], prior={"name": "gaussian"}, output="unused").model_dump(mode="json")
        base["data"]["limit"] = 3
        axes = {"sampler": [{"name": name, "steps": 1} for name in samplers]}
        file = tmp_path / "suite.yaml"
        file.write_text(yaml.safe_dump({"base": base, "output": str(tmp_path / "suite"), "axes": axes}))
        return file

    return write


def do_suite(file: Path, *names: str) -> str:
    code, output = told("suite", file, "--address", "none", *(f"--track={name}" for name in names))
    assert code == 0, output
    return output


def begun(recorder) -> list[str]:
    return [call[1].name for call in recorder.told if call[0] == "begin"]


def test_a_suite_tells_of_each_run_and_of_its_page_once(recorder, suite_of, tmp_path):
    folder = tmp_path / "suite"
    do_suite(suite_of("ddnm", "conjugate"))
    do_suite(suite_of("ddnm", "conjugate"), "recorder", "recorder")
    assert [call[0] for call in recorder.told] == ["begin", "finish"] * 3
    assert begun(recorder) == ["all/ddnm", "all/conjugate", "suite"]
    about, outcome = recorder.told[2][1], recorder.told[3][2]
    run = Run.open(folder / "runs/all/conjugate")
    assert about == replace(tracking.about_run(run), name="all/conjugate", config=about.config), (
        "that of `report --track`"
    )
    assert about.config.items() >= {"config_hash": run.config_hash, "suite": str(folder)}.items()
    results = json.loads((run.folder / "report/metrics.json").read_text())
    assert outcome.values["psnr"] == results["metrics"]["psnr"]["mean"]
    assert recorder.told[5][1:] == (6, recorder.told[5][2])
    assert recorder.told[5][2].files["index.html"] == (folder / "index.html").read_bytes()
    recorder.told.clear()
    do_suite(suite_of("ddnm", "conjugate"), "recorder")
    assert recorder.told == [], "nothing is new"
    do_suite(suite_of("ddnm", "conjugate", "diffpir"), "recorder")
    assert begun(recorder) == ["all/diffpir", "suite"]
    recorder.told.clear()
    commit_file(run.folder, next(run.units()).unit).unlink()
    do_suite(suite_of("ddnm", "conjugate"), "recorder")
    assert begun(recorder) == ["all/conjugate", "suite"], "its report is another one"
    assert recorder.told[0][1] == about, "of the same run"


def test_what_a_tracker_of_a_suite_was_not_told_it_is_told_the_next_time(recorder, suite_of, monkeypatch):
    monkeypatch.setattr(recorder, "fails", "finish")
    output = do_suite(suite_of("ddnm", "conjugate"), "recorder")
    assert (output.count("goes on without it"), begun(recorder)) == (1, ["all/ddnm"])
    monkeypatch.setattr(recorder, "fails", "")
    recorder.told.clear()
    do_suite(suite_of("ddnm", "conjugate"), "recorder")
    assert begun(recorder) == ["all/ddnm", "all/conjugate", "suite"]


def test_one_that_does_not_answer_a_suite_is_not_waited_for_again(recorder, suite_of, monkeypatch):
    hanging = threading.Event()
    monkeypatch.setattr(recorder, "waits", hanging)
    monkeypatch.setattr(tracking, "LEAVE_SECONDS", 0.1)
    output = do_suite(suite_of("ddnm", "conjugate"), "recorder")
    hanging.set()
    assert (output.count("not waited for"), begun(recorder)) == (1, ["all/ddnm"])


def test_a_suite_without_a_trackers_library_says_so_before_anything_runs(suite_of, tmp_path):
    code, output = told("suite", suite_of("ddnm"), "--track", "neptune")
    assert (code, "--track neptune: no such tracker" in output) == (1, True), output
    assert not (tmp_path / "suite").exists()


def suite_in_tensorboard(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for place in ("runs/all/ddnm", "runs/all/conjugate", "."):
        (file,) = (folder / place / "tensorboard").iterdir()
        events = EventAccumulator(str(file)).Reload()
        psnr = [e.value for e in events.Scalars("psnr")] if place != "." else []
        found[place.removeprefix("runs/").replace(".", "suite")] = psnr
        tag = "suite" if place == "." else "report"
        (text,) = events.Tensors(f"{tag}/text_summary")
        assert text.tensor_proto.string_val[0].decode().startswith("# ")
    return found


def suite_in_mlflow(folder: Path):
    client = pytest.importorskip("mlflow").MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'kintsugi'")
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "psnr")
        found[run.info.run_name] = [m.value for m in history]
        page = "index.html" if run.info.run_name == "suite" else "report.html"
        assert page in {file.path for file in client.list_artifacts(run.info.run_id)}
    return found


def suite_in_wandb(folder: Path):
    found = {}
    for log in Path("wandb").glob("offline-run-*/*.wandb"):
        records = [(kind, getattr(record, kind)) for kind, record in wandb_records(log)]
        (name,) = {one.display_name for kind, one in records if kind == "run"}
        assert name not in found, "a run is told of once"
        items = [item for kind, one in records if kind == "history" for item in one.item]
        found[name] = [
            json.loads(item.value_json) for item in items if "psnr" in (item.key, *item.nested_key)
        ]
        (artifact,) = [one for kind, one in records if kind == "artifact"]
        page = "index.html" if name == "suite" else "report.html"
        assert page in {entry.path for entry in artifact.manifest.contents}
    return found


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_has_every_run_of_a_suite_and_its_page(name, suite_of, tmp_path):
    pytest.importorskip(name)
    folder = tmp_path / "suite"
    output = do_suite(suite_of("ddnm", "conjugate"), name)
    assert (output.count(f"{name}: "), "goes on without" in output) == (3, False), output
    found = globals()[f"suite_in_{name}"](folder)
    for place, psnr in found.items():
        if place != "suite":
            results = json.loads((folder / "runs" / place / "report/metrics.json").read_text())
            assert psnr == [pytest.approx(results["metrics"]["psnr"]["mean"], rel=1e-6)]
    assert found.keys() == {"all/ddnm", "all/conjugate", "suite"}
    assert f"{name}: " not in do_suite(suite_of("ddnm", "conjugate"), name)
    assert globals()[f"suite_in_{name}"](folder) == found, "and nothing twice"
