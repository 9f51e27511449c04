"""Comparison: symmetry, pairing by key, what is left out, the files; SQL that sees one table."""

import csv
import io
import json
import math
import xml.etree.ElementTree
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.browser import assert_self_contained
from typer.testing import CliRunner

from kintsugi.errors import JobError
from kintsugi.jobs.cli import app
from kintsugi.jobs.query import query
from kintsugi.pipeline.analysis.compare import compare
from kintsugi.pipeline.analysis.compare_inputs import labels, open_inputs
from kintsugi.pipeline.analysis.compare_page import (
    best_runs,
    draw_frontier,
    json_value,
    left_out,
    paired_csv,
    write_page,
)
from kintsugi.pipeline.analysis.compare_runs import Cost
from kintsugi.pipeline.analysis.figures import Quality, draw_costs, pareto
from kintsugi.pipeline.analysis.intervals import holm, mean_interval, paired_p_value
from kintsugi.pipeline.analysis.measures import badness_of
from kintsugi.pipeline.analysis.query import LOCKS, ask, rows_file
from kintsugi.pipeline.analysis.report.numbers import groups_csv
from kintsugi.pipeline.analysis.tables import Table, no_formula
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.local import in_process
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part
from kintsugi.pipeline.storage.location import at


def scored(folder, psnr, *, failed=(), order=None, group=1000, metrics=None, **columns):
    """A folder as `kintsugi score` makes it; keys are image_0, image_1, … or those of a dict."""
    keys = list(psnr) if isinstance(psnr, dict) else [f"image_{i}" for i in range(len(psnr))]
    values = list(psnr.values()) if isinstance(psnr, dict) else list(psnr)
    status = ["failed" if key in failed else "ok" for key in keys]
    table = pa.table(
        {
            "key": keys,
            "status": status,
            "error": ["UnreadableImage: <cut>" if s == "failed" else None for s in status],
            "psnr": pa.array(values, pa.float64(), mask=np.array([s == "failed" for s in status])),
            **columns,
        }
    )
    folder.mkdir()
    pq.write_table(
        table if order is None else table.take(order), folder / "rows.parquet", row_group_size=group
    )
    (folder / "metrics.json").write_text(json.dumps(metrics or {}))
    return str(folder)


@pytest.fixture(scope="module")
def values():
    random = np.random.default_rng(0)
    truth = random.normal(25, 3, 60)
    return {"a": truth, "b": truth + random.lognormal(-1, 1, 60) - 0.3, "c": truth - 1}


@pytest.fixture
def folders(values, tmp_path):
    return {name: scored(tmp_path / name, of) for name, of in values.items()}


def test_a_run_with_itself_is_a_draw(folders):
    found = compare(open_inputs([folders["a"], folders["a"]]))
    (one,) = found.paired
    assert (one.difference, one.low, one.high, one.p, one.corrected, one.wins) == (0, 0, 0, 1, 1, 0.5)
    first, second = (run.label for run in found.runs)
    assert second == f"{first} (2)"


def test_swapping_flips_signs_exactly(folders):
    (one,) = compare(open_inputs([folders["a"], folders["b"]])).paired
    (other,) = compare(open_inputs([folders["b"], folders["a"]])).paired
    assert one.difference != 0
    assert (other.difference, other.low, other.high) == (-one.difference, -one.high, -one.low)
    assert (other.p, other.corrected) == (one.p, one.corrected)
    assert one.wins + other.wins == 1


def test_numbers_are_those_of_the_differences(folders, values):
    found = compare(open_inputs(list(folders.values())))
    assert [(one.baseline, one.other) for one in found.paired] == [("a", "b"), ("a", "c"), ("b", "c")]
    for one in found.paired:
        differences = values[one.other] - values[one.baseline]
        assert one.difference == pytest.approx(differences.mean(), rel=1e-9)
        assert (one.low, one.high) == pytest.approx(mean_interval(differences), rel=1e-9)
        assert one.p == pytest.approx(paired_p_value(differences), rel=1e-9)
        assert one.wins == (differences > 0).mean()
    assert [one.corrected for one in found.paired] == holm([one.p for one in found.paired])


def test_neither_order_nor_split_of_rows_matters(values, folders, tmp_path):
    order = np.random.default_rng(2).permutation(60)
    mixed = scored(tmp_path / "x", values["a"], order=order, group=7)
    (one,) = compare(open_inputs([folders["a"], folders["b"]])).paired
    (again,) = compare(open_inputs([mixed, folders["b"]])).paired
    assert vars(again) == {**vars(one), "baseline": "x"}


def test_keys_that_are_looked_up_in_parts_are_all_there(values, tmp_path, monkeypatch):
    order = np.random.default_rng(3).permutation(60)
    names = [f"image_{i}" for i in range(60)]
    others = [*names[5:], "z"]
    folders = [
        scored(tmp_path / "a", dict(zip(names, values["a"], strict=True)), failed=names[:3], group=7),
        scored(tmp_path / "b", dict(zip(others, values["b"][:56], strict=True)), failed=names[-2:]),
        scored(tmp_path / "c", values["c"], order=order, group=11),
    ]
    whole = asdict(compare(open_inputs(folders)))
    assert (whole["images"], [run["absent"] for run in whole["runs"]]) == (53, [1, 5, 1])
    monkeypatch.setattr("kintsugi.pipeline.analysis.compare_rows.PART", 5)
    assert asdict(compare(open_inputs(folders))) == whole
    twice = scored(tmp_path / "d", values["a"], order=[*range(60), 30])
    with pytest.raises(JobError, match="occurs twice"):
        compare(open_inputs([folders[0], twice]))


def test_more_than_four_runs_are_compared_with_the_first(values, tmp_path):
    names = [scored(tmp_path / f"r{i}", values["a"] + i) for i in range(5)]
    found = compare(open_inputs(names))
    assert [(one.baseline, one.other) for one in found.paired] == [("r0", f"r{i}") for i in range(1, 5)]


def test_only_images_restored_in_all_runs_count_and_the_rest_is_said(tmp_path):
    a = scored(tmp_path / "a", {"x": 20.0, "y": 21.0, "z": 22.0, "only a": 50.0}, failed=("z",))
    b = scored(tmp_path / "b", {"z": 1.0, "y": 23.0, "x": 21.0})
    found = compare(open_inputs([a, b]))
    assert found.images == 2
    assert found.runs[0].measures["psnr"][0] == 20.5
    assert found.paired[0].difference == 1.5
    assert left_out(found) == ["a: of 4 images, 1 failed", "b: of 4 images, 1 are not there"]


def test_infinite_values_win_and_count_as_a_hundred_decibels(tmp_path):
    a = scored(tmp_path / "a", [20.0, 21.0, math.inf, math.inf])
    b = scored(tmp_path / "b", [21.0, math.inf, math.inf, 30.0])
    found = compare(open_inputs([a, b]))
    (one,) = found.paired
    assert (one.n, one.infinite, one.difference) == (4, 3, (1 + 79 + 0 - 70) / 4)
    assert [run.measures["psnr"][0] for run in found.runs] == [(20 + 21 + 200) / 4, (21 + 200 + 30) / 4]
    assert one.wins == (1 + 1 + 0.5 + 0) / 4
    assert list(found.differing) == ["image_1", "image_3", "image_0", "image_2"], "infinity differs most"
    json.dumps(json_value(asdict(found)), allow_nan=False)
    assert json_value(found.differing)["image_1"] == {"a": 21.0, "b": "inf"}


def test_runs_without_an_image_that_has_the_measure_in_both(tmp_path):
    a = scored(tmp_path / "a", [20.0, 21.0], lpips=[0.1, None])
    b = scored(tmp_path / "b", [20.0, 21.0], lpips=[None, 0.2], ssim=[0.5, 0.6])
    found = compare(open_inputs([a, b]))
    _, lpips = found.paired
    assert (lpips.n, lpips.difference, lpips.wins) == (0, None, None)
    assert left_out(found) == ["SSIM is left out: only b has it"]
    json.dumps(json_value(asdict(found)), allow_nan=False)


def test_metrics_of_sets_keep_their_warnings_and_references(tmp_path):
    def fid(**fields):
        return {"sets": {"fid": {"value": 12.5, "low": None, "high": None, "n": 2, "warnings": [], **fields}}}

    a = scored(tmp_path / "a", [20.0, 21.0], metrics=fid(reference="x.npz", warnings=["only 2 samples"]))
    b = scored(tmp_path / "b", [20.0, 21.0], metrics=fid(reference="y.npz"))
    found = compare(open_inputs([a, b]))
    assert found.warnings[1:] == [
        "FID ↓ is not comparable: a with x.npz, b with y.npz",
        "a, FID ↓: only 2 samples",
    ]
    assert "FID: metrics of a set have no paired difference" in left_out(found)


def test_ratios_differ_by_their_logarithm(tmp_path):
    a = scored(tmp_path / "a", [20.0, 20.0], spectrum_ratio=[1.0, 0.1])
    b = scored(tmp_path / "b", [20.0, 20.0], spectrum_ratio=[3.0, 1.0])
    assert list(compare(open_inputs([a, b]), by="spectrum_ratio").differing) == ["image_1", "image_0"]


def test_better_depends_on_the_measure(tmp_path):
    near = {"lpips": [0.1, 0.2], "spectrum_ratio": [0.9, 1.2], "total_variation": [0.1, 0.1]}
    far = {"lpips": [0.3, 0.4], "spectrum_ratio": [0.5, 2.5], "total_variation": [0.2, 0.2]}
    a = scored(tmp_path / "a", [20.0, 20.0], **near)
    b = scored(tmp_path / "b", [20.0, 20.0], **far)
    wins = {one.measure: one.wins for one in compare(open_inputs([a, b])).paired}
    assert wins == {"psnr": 0.5, "lpips": 0, "spectrum_ratio": 0}, "and total variation has no direction"


def test_the_images_that_differ_most(tmp_path):
    a = scored(tmp_path / "a", [20.0] * 12)
    b = scored(tmp_path / "b", [20.0 + (-1) ** i * i for i in range(12)])
    found = compare(open_inputs([a, b]))
    assert list(found.differing) == [f"image_{i}" for i in range(11, 3, -1)]
    assert found.differing["image_11"] == {"a": 20.0, "b": 9.0}


def test_what_cannot_be_compared_is_refused(folders, tmp_path):
    other = scored(tmp_path / "other", {"elsewhere": 20.0})
    with pytest.raises(JobError, match=r"no image is restored in all.*'image_0'.*other has 'elsewhere'"):
        compare(open_inputs([folders["a"], other]))
    with pytest.raises(JobError, match="--by lpips: not a measure of all runs; choose from psnr"):
        compare(open_inputs([folders["a"], folders["b"]]), by="lpips")
    with pytest.raises(JobError, match="at least two"):
        open_inputs([folders["a"]])
    with pytest.raises(JobError, match="is not a run directory"):
        open_inputs([folders["a"], str(tmp_path)])
    twice = scored(tmp_path / "twice", [1.0, 2.0])
    table = pq.read_table(Path(twice) / "rows.parquet")
    pq.write_table(pa.concat_tables([table, table]), Path(twice) / "rows.parquet")
    with pytest.raises(JobError, match="a key occurs twice"):
        compare(open_inputs([folders["a"], twice]))


def test_labels_tell_runs_apart():
    assert labels([at("/x/a"), at("/x/b")]) == ["a", "b"]
    assert labels([at("/x/a"), at("/y/a")]) == ["x/a", "y/a"]
    assert labels([at("/x/a"), at("/x/a")]) == ["x/a", "x/a (2)"]
    assert labels([at("/x/a\x01"), at("/x/b")]) == [r"a\x01", "b"], "XML has no control characters"


def test_files_are_escaped_and_self_contained(tmp_path):
    key = '<img src=x onerror="alert(1)">&_$|%\x1b[2J'
    metrics = {"title": "<b>", "sets": {"fid": {"value": 12.5, "low": None, "high": None, "n": 9}}}
    a = scored(tmp_path / "_a$x", {key: 20.0, "y": 21.0, "z": 1.0}, failed=("z",), metrics=metrics)
    b = scored(tmp_path / "<i>&", {key: 22.0, "y": 21.5})
    inputs = open_inputs([a, b])
    html = write_page(compare(inputs), inputs, at(tmp_path / "out")).read_text()
    assert "<img src=x" not in html
    assert "<i>" not in html
    assert "&lt;img src=x" in html
    assert "UnreadableImage: &lt;cut&gt;" in html
    assert_self_contained(html)
    tex = (tmp_path / "out" / "compare.tex").read_text()
    assert r"\_a\$x" in tex
    assert r"\textless{}i\textgreater{}\&" in tex
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "12.500" in markdown
    assert "<i>" not in markdown
    (first, _) = csv.DictReader((tmp_path / "out" / "runs.csv").open())
    assert (first["run"], first["psnr"], first["psnr_low"][:4], first["fid"]) == (
        "_a$x",
        "20.5",
        "14.1",
        "12.5",
    )
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["images"] == 2
    svg = (tmp_path / "out" / "frontier.svg").read_bytes()
    assert {"_a$x", "<i>&", "FID ↓", "PSNR, dB ↑"} <= set(texts_of(svg))


def test_the_csv_has_every_digit(folders, values):
    found = compare(open_inputs([folders["a"], folders["b"]]))
    (line,) = csv.DictReader(io.StringIO(paired_csv(found)))
    assert float(line["difference"]) == found.paired[0].difference
    assert (float(line["low"]), float(line["high"])) == (found.paired[0].low, found.paired[0].high)


def test_tables_in_every_form():
    table = Table(["run", "PSNR ↑"], [["a|b*\n\\c", "1.0"]])
    assert table.markdown() == "| run | PSNR ↑ |\n| --- | ---: |\n| a&#124;b&#42; &#92;c | 1.0 |\n"
    assert table.csv() == 'run,PSNR ↑\n"a|b*\n\\c",1.0\n'
    assert r"a\textbar{}b* \textbackslash{}c & 1.0 \\" in table.latex()
    assert r"run & PSNR $\uparrow$ \\" in table.latex()


def test_latex_has_minus_signs_and_no_options_in_first_cells():
    table = Table(["[a]", "b"], [["[1] run-2", "-0.546"], ["x", "-1.2e-05"], ["y", "-0.1 … -0.05"]])
    assert table.latex().splitlines()[2:7] == [
        r"{[}a] & b \\",
        r"\midrule",
        r"{[}1] run-2 & $-$0.546 \\",
        r"x & $-1.2\times 10^{-5}$ \\",
        r"y & $-$0.1 \dots{} $-$0.05 \\",
    ]
    pairs = Table(["a"], [["-0.02 (-0.03 … 1.39e-07)"], ["run-2e-07"]]).latex()
    assert r"$-$0.02 ($-$0.03 \dots{} $1.39\times 10^{-7}$) \\" in pairs
    assert r"run-2e-07 \\" in pairs, "a name is no number"


def test_the_pareto_front_is_what_nothing_dominates():
    random = np.random.default_rng(0)
    costs, values = random.integers(1, 9, 60).astype(float), random.integers(0, 9, 60).astype(float)
    expected = {
        i
        for i in range(60)
        if not any(
            costs[j] <= costs[i] and values[j] <= values[i] and (costs[j] < costs[i] or values[j] < values[i])
            for j in range(60)
        )
    }
    assert set(pareto(costs, values)) == expected


def test_the_figure_is_the_same_bytes_and_takes_unknown_costs():
    costs = [Cost(5, 5, 0.4), Cost(20, None, None), Cost(None, None, None)]
    assert [cost.evaluations for cost in costs] == [10, 20, None]
    psnr, fid = [20.0, 21.0, None], [None, 3.0, 4.0]
    qualities = [Quality("PSNR, dB", psnr, [-20.0, -21.0, None]), Quality("FID", fid, fid)]
    first, second = (draw_costs(["$a$", "_b", "c"], costs, qualities) for _ in range(2))
    assert first == second


def texts_of(svg):
    tree = xml.etree.ElementTree.fromstring(svg)
    return [element.text.strip() for element in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_ticks_of_a_logarithmic_axis_are_numbers():
    costs = [Cost(n, 0, n / 10) for n in (5, 20, 200)]
    values = [20.0, 21.0, 22.0]
    texts = texts_of(draw_costs(["a", "b", "c"], costs, [Quality("x", values, values)], narrow=True))
    assert {"10", "100", "0.5"} <= set(texts)
    assert not any("math" in text for text in texts)


def test_the_front_is_of_what_is_better_and_the_arrow_is_one(tmp_path):
    names = [
        scored(tmp_path / name, [None, None], spectrum_ratio=[ratio, ratio], forwards=[cost, cost])
        for name, ratio, cost in (("a", 0.5, 5), ("b", 1.1, 10))
    ]
    found = compare(open_inputs(names))
    assert "fine spectrum → 1" in texts_of(draw_frontier(found))
    badness = [badness_of("spectrum_ratio", 0.5), badness_of("spectrum_ratio", 1.1)]
    assert pareto(np.array([5.0, 10.0]), np.array(badness)) == [0, 1]
    assert best_runs(found) == {"spectrum_ratio": 1}


@pytest.fixture(scope="module")
def query_rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    scored(folder / "a", [25.5, 21.0, math.inf])
    return folder / "a" / "rows.parquet"


def test_sql_over_the_rows(query_rows):
    with ask(query_rows, "select key, psnr from rows order by psnr limit 2") as (columns, rows):
        assert columns == ["key", "psnr"]
        assert list(rows) == [("image_1", 21.0), ("image_0", 25.5)]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("selec 1", "Parser Error: syntax error"),
        ("select nothing from rows", "`describe rows` lists the columns"),
        ("", "one statement that selects"),
        ("select 1; select 2", "one statement that selects"),
        ("create table x as select 1", "one statement that selects"),
        ("copy rows to '{file}'", "one statement that selects"),
        ("copy rows to ':memory:.wal'", "one statement that selects"),
        ("explain analyze select 1", "one statement that selects"),
        ("select * from read_text('.tmp/s.csv')", "disabled by configuration"),
        ("select * from read_text(':memory:')", "disabled by configuration"),
        ("select * from glob('.tmp/*')", "disabled by configuration"),
        ("select * from read_csv('{file}')", "disabled by configuration"),
        ("select * from read_text('{file}')", "disabled by configuration"),
        ("select * from '{file}'", "disabled by configuration|does not exist"),
        ("select * from glob('{file}*')", "disabled by configuration"),
        ("attach '{file}' as other", "one statement that selects"),
        ("install httpfs", "one statement that selects"),
        ("load httpfs", "one statement that selects"),
        ("set enable_external_access = true", "one statement that selects"),
        ("select * from secret", "does not exist"),
    ],
    ids=range(20),
)
def test_sql_that_is_wrong_or_asks_for_more(query_rows, tmp_path, monkeypatch, sql, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".tmp").mkdir()  # where DuckDB would keep what does not fit into memory
    (tmp_path / ".tmp" / "s.csv").write_text("a,b\n1,2\n")
    (tmp_path / ":memory:").write_text("a,b\n1,2\n")
    before = sorted(tmp_path.rglob("*"))
    secret = pa.table({"a": [1]})  # variables of this process are no tables
    assert len(secret) == 1
    file = tmp_path / "other.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(JobError, match=message) as error, ask(query_rows, sql.format(file=file)) as (_, rows):
        list(rows)
    assert "\n" not in str(error.value)
    assert file.read_text() == "a,b\n1,2\n"
    assert sorted({*tmp_path.rglob("*")} - {file}) == before


@pytest.mark.parametrize(
    "statement",
    [
        "copy rows to '.tmp/x.csv'",
        "copy rows to ':memory:.wal'",
        "attach 'x.db'",
        "set temp_directory = '.tmp'",
    ],
)
def test_the_locks_hold_whatever_the_statement_is(query_rows, tmp_path, monkeypatch, statement):
    import duckdb

    monkeypatch.chdir(tmp_path)
    (tmp_path / ".tmp").mkdir()
    with duckdb.connect(":memory:") as connection:
        connection.execute("create view rows as select 1 as a")
        for lock in LOCKS:
            connection.execute(lock)
        with pytest.raises(duckdb.Error, match=r"disabled by configuration|locked"):
            connection.execute(statement)
    assert list(tmp_path.rglob("*")) == [tmp_path / ".tmp"]


def test_texts_that_spreadsheets_take_for_formulae_are_behind_an_apostrophe():
    formulae = ["=1+1", "+1+1", "-1+1", "-a", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1", "-"]
    harmless = ["a=1", "-1", "+1.5e-3", "-.5", "1", "-inf", "nan", "", "é", None, -1.5, 3, ["=1"]]
    assert [no_formula(text) for text in formulae] == [f"'{text}" for text in formulae]
    assert [no_formula(value) for value in harmless] == harmless
    assert Table(["=run"], [["-2.5"], ["-run"]]).csv() == "'=run\n-2.5\n'-run\n"
    groups = {"shard": pa.table({"group": ["=x.tar", "y.tar"], "n": [1, 2]})}
    assert groups_csv(groups).decode().splitlines()[1:] == ['"shard","\'=x.tar",1', '"shard","y.tar",2']


def test_csv_is_raw_in_a_file_and_escaped_on_a_terminal(tmp_path, monkeypatch, capsys):
    scored(tmp_path / "a", {"a\x1b[2Jb": 1.0, "ä,c": 2.0, "=1+1": -3e-9})
    sql = "select key, psnr, null from rows order by psnr"
    query(str(tmp_path / "a"), sql, csv=True)
    assert capsys.readouterr().out.splitlines()[1:] == ["'=1+1,-3e-09,", "a\x1b[2Jb,1.0,", '"ä,c",2.0,']
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    query(str(tmp_path / "a"), sql, csv=True)
    assert capsys.readouterr().out.splitlines()[1:] == ["'=1+1,-3e-09,", "a\\x1b[2Jb,1.0,", '"ä,c",2.0,']


def finished(job):
    run = open_or_plan(job)
    for _ in in_process([Part(run, list(run.outstanding()))], Live()):
        pass
    return str(run.folder)


def test_runs_from_the_command_line(make_job, tmp_path, monkeypatch, browser):
    monkeypatch.chdir(tmp_path)
    fields = {"metrics": ["psnr"], "data": {**make_job().data.model_dump(), "limit": 4}, "images": "all"}
    runs = [
        finished(make_job(output=str(tmp_path / "one"), **fields)),
        finished(make_job(output=str(tmp_path / "truth"), seed=1, **fields)),
    ]
    said = CliRunner().invoke(app, ["compare", *runs], catch_exceptions=False)
    assert said.exit_code == 0
    assert "truth: seed is 1, of one 0" in said.stderr
    assert "4 images compared" in said.stdout
    html = (tmp_path / "compare" / "compare.html").read_text()
    assert html.count("data:image/webp;base64,") == 4 * 5, "truth, measurement, H⁺y and two restorations"
    assert "average_pool factor=4" in html
    assert html.count(f"kintsugi run {tmp_path}") == 2
    assert html.count("% of the workers") == 2
    page = tmp_path / "compare" / "compare.html"
    browser.open(page, "#psnr_1:1", width=390)
    assert browser.console == []
    keys = browser.evaluate("[...document.querySelectorAll('.card')].map(c => +c.dataset.psnr_1)")
    assert len(keys) == 4
    assert keys == sorted(keys)
    sides = "['left', 'right'].map(s => document.querySelector('.view.' + s).textContent.trim())"
    assert browser.evaluate(sides) == ["one", "truth"], "the runs, not the picture of that name"
    browser.evaluate("left.value = 'truth'; left.dispatchEvent(new Event('change'))")
    assert browser.evaluate(sides) == ["truth", "truth"]
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert browser.evaluate(wide) == 0
    found = json.loads((tmp_path / "compare" / "compare.json").read_text())
    assert found["runs"][0]["cost"]["forwards"] == found["runs"][0]["cost"]["vjps"] == 1
    assert found["runs"][0]["cost"]["seconds"] > 0

    said = CliRunner().invoke(app, ["query", runs[0], "select key, psnr from rows order by key", "--csv"])
    lines = said.stdout.splitlines()
    assert lines[0] == "key,psnr"
    assert [line.split(",")[0] for line in lines[1:]] == [f"image_00{i}" for i in range(4)]
    rows = rows_file(at(runs[0]))
    made = rows.stat().st_mtime_ns
    assert rows_file(at(runs[0])).stat().st_mtime_ns == made  # it is not made again
    next((tmp_path / "one" / "commits").iterdir()).unlink()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").rglob("*")}
    monkeypatch.setattr("kintsugi.pipeline.analysis.report.write_report", None)
    said = CliRunner().invoke(app, ["query", runs[0], "select count(*) from rows", "--csv"])
    assert int(said.stdout.splitlines()[1]) < 4
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "one").rglob("*")} == files


def test_rows_in_an_object_store(s3, query_rows, tmp_path):
    folder = at(f"{s3}/scored")
    with folder.filesystem.open_output_stream((folder / "rows.parquet").path) as stream:
        stream.write(query_rows.read_bytes())
    with ask(rows_file(folder), "select max(key) from rows") as (_, rows):
        assert list(rows) == [("image_2",)]
    scored(tmp_path / "here", [26.0, 23.0, math.inf])
    inputs = open_inputs([str(folder), str(tmp_path / "here")])
    found = compare(inputs)
    assert found.paired[0].difference == ((26.0 - 25.5) + (23.0 - 21.0)) / 3
    page = write_page(found, inputs, at(f"{s3}/compared"))
    assert b"</html>" in page.read_bytes()
