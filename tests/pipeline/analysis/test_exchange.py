"""Results in one JSON: what a run states, what others write, what is refused, and how they compare."""

import copy
import hashlib
import json
import math
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from kit.jobs import kintsugi

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.compare import compare
from kintsugi.pipeline.analysis.compare_inputs import open_inputs
from kintsugi.pipeline.analysis.compare_page import best_runs, runs_table, write_page
from kintsugi.pipeline.analysis.report import write_report
from kintsugi.pipeline.analysis.report.stored import read_exchange, schema
from kintsugi.pipeline.analysis.stated import operator_of, start_of, values_of
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.units import read_summary
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.storage.location import at

SPEC = {"name": "average_pool", "factor": 4}
SHA256 = hashlib.sha256(b'{"factor":4,"name":"average_pool"}').hexdigest()
BICUBIC = {"spec": {"name": "bicubic", "factor": 4}, "sha256": None}
KEYS = ["a", "b", "é", "z"]
THEIRS = {
    "title": "a tool of somebody else",
    "metrics": {"psnr": {"mean": 24.5, "low": 20.0, "high": 29.0, "n": 4}},
    "sets": {"fid": {"value": 31.5, "n": 4}},
    "protocol": {
        "version": 1,
        "images": {
            "count": 4,
            "keys_sha256": hashlib.sha256("a\nb\nz\né\n".encode()).hexdigest(),
            "size": 256,
        },
        "operator": {"spec": SPEC, "sha256": SHA256},
        "noise": {"sigma": 0.05, "range": "[0,1]"},
        "evaluations": {"forwards": 5, "vjps": 5, "total": 10},
        "best_of": 1,
    },
    "values": {"key": KEYS, "psnr": [23.0, 25.0, 24.0, 26.0]},
}
VALIDATOR = jsonschema.Draft202012Validator(schema())


def changed(path, value, results=THEIRS):
    """The results with one field set, or without it where the value is None."""
    found = copy.deepcopy(results)
    *parents, last = path.split(".")
    group = found
    for parent in parents:
        group = group[parent]
    if value is None:
        del group[last]
    else:
        group[last] = value
    return found


@pytest.fixture
def written(tmp_path):
    def write(results, name="theirs.json"):
        (tmp_path / name).write_text(json.dumps(results))
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="module")
def done(first_run, tmp_path_factory):
    folder = Path(shutil.copytree(first_run, tmp_path_factory.mktemp("exchange") / "run"))
    write_report(Run.open(folder))
    return Run.open(folder)


@pytest.fixture(scope="module")
def own(done):
    return json.loads((done.folder / "report" / "metrics.json").read_text())


def test_the_metrics_of_a_run_fit_the_schema_and_are_read(done, own):
    VALIDATOR.validate(own)
    again = read_exchange(done.folder / "report" / "metrics.json")
    assert again["protocol"] == own["protocol"]


def test_the_protocol_of_a_run_is_what_others_compute(done, own):
    protocol, job = own["protocol"], done.job
    keys = sorted(own["values"]["key"], key=str.encode)
    assert protocol["images"]["count"] == len(keys) == own["samples"]["done"]
    lines = "".join(f"{key}\n" for key in keys)
    assert protocol["images"]["keys_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    text = json.dumps(protocol["operator"]["spec"], sort_keys=True, separators=(",", ":"))
    assert protocol["operator"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert protocol["operator"]["spec"].items() >= job.degradation.operator.items()
    assert protocol["evaluations"]["total"] == own["cost"]["forwards"] + own["cost"]["vjps"]
    assert (protocol["best_of"], protocol["seeds"], protocol["images"]["size"]) == (
        1,
        [job.seed],
        job.data.size,
    )
    assert protocol["prior"]["sha256"] == done.prior.sha256
    assert any(one.startswith("torch ") for one in protocol["software"])
    psnr = own["values"]["psnr"]
    assert math.isclose(np.mean(psnr), own["metrics"]["psnr"]["mean"])


def test_of_many_images_the_values_are_left_to_the_rows(done, monkeypatch):
    rows = Path(str(done.folder / "report" / "rows.parquet"))
    summary = type("Summary", (), {"measures": {"psnr": None}})
    assert values_of(rows, summary).keys() == {"key", "psnr"}
    monkeypatch.setattr("kintsugi.pipeline.analysis.stated.FEW", 1)
    assert values_of(rows, summary) == {}


def test_a_run_and_its_own_results_are_a_draw(done, tmp_path):
    sent = tmp_path / "sent.json"
    shutil.copy(str(done.folder / "report" / "metrics.json"), sent)
    inputs = open_inputs([str(done.folder), str(sent)])
    found = compare(inputs)
    assert found.ranked
    assert {(one.measure, one.difference) for one in found.paired} >= {("psnr", 0.0)}
    assert all("needs no network" in line for line in found.warnings), "nothing is said of the protocol"
    assert found.runs[0].cost.evaluations == found.runs[1].cost.evaluations
    assert "sent.json" in (write_page(found, inputs, at(str(tmp_path / "page")))).read_text()


def test_the_operator_is_told_by_what_is_in_its_files_wherever_they_lie():
    def of(path, sum_):
        spec = {"name": "inpaint", "mask": path, "known": "white"}
        return operator_of(spec, {"degradation.operator.mask": sum_})["sha256"]

    assert of("/home/a/mask.png", "0" * 64) == of("/home/b/other.png", "0" * 64)
    assert of("/home/a/mask.png", "0" * 64) != of("/home/a/mask.png", "1" * 64)


def test_defaults_and_whole_numbers_do_not_make_another_operator():
    assert operator_of({"name": "average_pool"}, {}) == operator_of(SPEC, {})
    assert operator_of({"name": "average_pool"}, {})["sha256"] == SHA256
    short = {"name": "blur", "kernel": {"draw": "motion"}}
    long = {"name": "blur", "kernel": {"draw": "motion", "size": 61, "intensity": 0.5}, "threshold": 0.03}
    assert operator_of(short, {})["sha256"] == operator_of(long, {})["sha256"]
    assert short["kernel"] == {"draw": "motion"}, "the job stays as it is"


def test_where_a_sampler_starts():
    """VP with β from 0.1 to 20: a² = exp(−0.1 t − 9.95 t²), s² = 1 − a²."""
    level = lambda t: math.sqrt(math.expm1(0.1 * t + 9.95 * t**2))  # noqa: E731
    assert start_of({"name": "ddnm", "start": 1})["sigma"] == pytest.approx(level(1))
    assert start_of({"name": "conjugate"}) == {
        "time": None,
        "init": "pinv",
        "sigma": pytest.approx(level(0.4)),
    }
    assert start_of({"name": "pigdm", "start": 0.7, "path": "flow"})["sigma"] == pytest.approx(0.3 / 0.7)
    assert start_of({"name": "pigdm", "start": 0.4})["sigma"] is None, "of a path that the prior knows"


def test_shards_that_were_checked_are_told_by_their_checksums(make_job, shards, tmp_path):
    files = [Path(shutil.copy(path, tmp_path)) for path in shards]
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    data = make_job().data
    assert make_plan(data, files, 3, tmp_path / "without.parquet").shards_sha256 == ""
    lines = [f"{sum_}  {file.name}\n" for sum_, file in zip(sums, files, strict=True)]
    (tmp_path / "SHA256SUMS").write_text("".join(lines[1:]))
    assert make_plan(data, files, 3, tmp_path / "some.parquet").shards_sha256 == "", "of one nothing is known"
    (tmp_path / "SHA256SUMS").write_text("".join(lines))
    make_plan(data, files, 3, tmp_path / "all.parquet")
    expected = hashlib.sha256("".join(f"{sum_}\n" for sum_ in sorted(sums)).encode()).hexdigest()
    assert read_summary(tmp_path / "all.parquet").shards_sha256 == expected


def test_results_of_others_fit_the_schema_and_are_read(written):
    VALIDATOR.validate(THEIRS)
    assert read_exchange(at(written(THEIRS)))["values"]["psnr"] == THEIRS["values"]["psnr"]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("protocol.best_of", 4, "protocol.best_of: the best of 4"),
        ("protocol.best_of", True, "protocol.best_of: the best of True"),
        ("protocol.best_of", None, "protocol.best_of: Field required"),
        ("protocol", None, "protocol: Field required"),
        ("metrics", None, "metrics: Field required"),
        ("metrics.psnr.n", None, "metrics.psnr.n: Field required"),
        ("metrics.psnr.mean", 1e300, "metrics.psnr.mean: "),
        ("protocol.evaluations.total", 5, "protocol.evaluations: total is 5"),
        ("protocol.noise.range", "[0,16]", "protocol.noise.range: "),
        ("protocol.operator.sha256", "xyz", "protocol.operator.sha256: "),
        ("protocol.operator.sha256", "0" * 64, "protocol.operator.sha256 is 0"),
        ("protocol.sigma", 0.1, "protocol.sigma: Extra inputs"),
        ("results", {}, "results: Extra inputs"),
        ("values.key", ["a", "b", "b", "z"], "a key occurs twice"),
        ("values.key", ["a", "b"], "has 4 values, of 2 keys"),
        ("values.key", [1, 2, 3, 4], 'a column "key"'),
        ("values.psnr", [1.0, 2.0, 3.0, "much"], "a text that is no number"),
        ("values", {"key": ["a"], "psnr": [1.0]}, "count is 4, of values it is 1"),
        ("values", {"key": [*"abcd"], "psnr": [1.0] * 4}, "keys_sha256"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(written, path, value, says):
    with pytest.raises(JobError) as error:
        read_exchange(at(written(changed(path, value))))
    assert says in str(error.value)
    assert "theirs.json" in str(error.value)


@pytest.mark.parametrize("path", ["protocol.best_of", "protocol.images.count", "metrics.psnr.mean"])
def test_the_schema_refuses_what_the_reader_does(path):
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(changed(path, "many"))
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(changed("protocol.best_of", 2))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"protocol": NaN}', b"\xff", b"[" * 10_000])
def test_what_is_no_json_of_results_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(JobError, match=r"bad\.json"):
        read_exchange(at(str(tmp_path / "bad.json")))


def test_what_is_large_is_not_read(tmp_path):
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 26)
    with pytest.raises(JobError, match="more than the"):
        read_exchange(at(str(tmp_path / "large.json")))


def test_the_same_noise_on_any_range_is_the_same(written):
    noises = [{"sigma": 0.1, "range": "[-1,1]"}, {"sigma": 12.75, "range": "[0,255]"}]
    others = [written(changed("protocol.noise", of), f"{i}.json") for i, of in enumerate(noises)]
    found = compare(open_inputs([written(THEIRS), *others]))
    assert found.ranked
    assert not [line for line in found.warnings if "sigma" in line]


@pytest.mark.parametrize(
    ("path", "value", "says", "ranked"),
    [
        (
            "protocol.operator",
            {"spec": {"name": "bicubic"}, "sha256": None},
            "operator is 'name=bicubic (",
            False,
        ),
        ("protocol.noise.sigma", 0.1, "sigma on [-1, 1] is 0.2, of theirs.json 0.1", False),
        ("protocol.images.size", 512, "images.size is 512, of theirs.json 256", False),
        ("protocol.images", {"count": 4, "keys_sha256": None, "shards_sha256": "1" * 64}, None, True),
    ],
)
def test_another_protocol_is_named_by_its_field_and_not_ranked(written, path, value, says, ranked):
    found = compare(open_inputs([written(THEIRS), written(changed(path, value), "other.json")]))
    assert found.ranked == ranked
    assert bool(found.paired) == ranked
    named = [line for line in found.warnings if line.startswith("other.json: ")]
    assert (says is None and not named) or (len(named) == 1 and says in named[0]), found.warnings


def test_other_images_are_named_and_those_of_both_compared(written):
    fewer = changed("values", {"key": KEYS[:3], "psnr": [23.5, 25.5, 24.5]})
    fewer["protocol"]["images"] = {
        "count": 3,
        "keys_sha256": hashlib.sha256("a\nb\né\n".encode()).hexdigest(),
    }
    found = compare(open_inputs([written(THEIRS), written(fewer, "fewer.json")]))
    assert found.images == 3
    assert [one.difference for one in found.paired] == [0.5]
    assert any("images.count is 3, of theirs.json 4" in line for line in found.warnings)


def test_means_alone_are_listed_without_difference_and_rank(written, tmp_path):
    alone = changed("metrics.psnr.mean", 99.0, changed("values", None))
    inputs = open_inputs([written(THEIRS), written(alone, "alone.json")])
    found = compare(inputs)
    assert [run.label for run in found.listed] == ["alone.json"]
    assert not [one for one in found.differences if "alone.json" in (one.baseline, one.other)]
    assert any("alone.json has means alone" in line for line in found.warnings)
    assert [row[:3] for row in runs_table(found).rows][-1] == ["alone.json", "4", "99.000 (20.000 … 29.000)"]
    assert best_runs(found).get("psnr") == 0, "the listed one has more, and no rank"
    page = write_page(found, inputs, at(str(tmp_path / "page"))).read_text()
    assert "means alone, 4 images" in page
    assert (
        json.loads((tmp_path / "page" / "compare.json").read_text())["listed"][0]["measures"]["psnr"][0] == 99
    )


def test_the_command_lists_means_and_names_what_differs_before_its_tables(written, tmp_path):
    alone = changed("protocol.noise.sigma", 0.1, changed("values", None))
    said = kintsugi("compare", written(THEIRS), written(alone, "alone.json"), "--out", tmp_path / "page")
    assert said.exit_code == 0
    assert said.output.index("sigma on [-1, 1] is 0.2") < said.output.index("PSNR")
    assert "4 images compared" in said.output
    assert "alone.json,4,24.5,20.0,29.0" in (tmp_path / "page" / "runs.csv").read_text()


def test_means_alone_of_all_are_an_error(written):
    alone = changed("values", None)
    with pytest.raises(JobError, match="means alone"):
        open_inputs([written(alone), written(alone, "other.json")])


def test_an_image_without_a_value_is_a_failed_one_and_infinite_values_count(written):
    holes = changed("values.psnr", [None, "inf", 24.0, 26.0])
    found = compare(open_inputs([written(THEIRS), written(holes, "holes.json")]))
    assert (found.images, found.runs[1].failed, found.runs[1].infinite["psnr"]) == (3, 1, 1)


def test_the_schema_is_listed():
    result = kintsugi("list", "schema")
    assert json.loads(result.output) == schema()
    jsonschema.Draft202012Validator.check_schema(schema())


def test_the_results_of_docs_are_ones(written):
    text = (Path(__file__).parents[3] / "docs" / "compare.md").read_text()
    example = text.partition("```json\n")[2].partition("```")[0]
    VALIDATOR.validate(json.loads(example))
    assert read_exchange(at(written(json.loads(example))))["title"]
