"""The report says what the rows say, shows what they hold, escapes, stays small and works in a browser."""

import base64
import hashlib
import http.server
import json
import math
import re
import shlex
import threading
import time
from collections import Counter
from dataclasses import replace
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from kit.browser import assert_self_contained
from kit.jobs import execute
from kit.shards import SIZE, encode, picture, write_tar
from PIL import Image

from kintsugi.jobs.execution import show_results
from kintsugi.jobs.files import load_job
from kintsugi.jobs.terminal import console
from kintsugi.pipeline.analysis.aggregate import describe
from kintsugi.pipeline.analysis.measures import number
from kintsugi.pipeline.analysis.report import gallery, results, write, write_report
from kintsugi.pipeline.analysis.report.numbers import histogram, orders
from kintsugi.pipeline.analysis.report.results import own_files, spent
from kintsugi.pipeline.analysis.rows import Tally
from kintsugi.pipeline.execution.commit import read_rows
from kintsugi.pipeline.execution.ledger import Task
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.local import in_process
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.prometheus import Counts
from kintsugi.pipeline.execution.run import Part, Run
from kintsugi.pipeline.execution.worker import Worker
from kintsugi.pipeline.metrics import REGISTRY
from kintsugi.pipeline.metrics.sets import SetResult

SOURCE = r'src="data:image/webp;base64,([^"]+)"'
PICTURE = re.compile(rf'data-kind="([^"]+)"><img alt="[^"]*" (?:{SOURCE}|data-of="([^"]+)")')


def report_of(job):
    run = job if isinstance(job, Run) else execute(job)
    html = write_report(run)
    return run, json.loads((html.parent / "metrics.json").read_text()), html.read_text()


def pictures_in(html):
    """Of each card in order: arrays by what they show, also of pictures that are at the top of the page."""
    cards = html.split('<figure class="card"')[1:]
    top = dict(re.findall(rf'<img id="([^"]+)" alt="[^"]*" {SOURCE}', html))
    return [
        {
            kind: np.asarray(Image.open(BytesIO(base64.b64decode(content or top[of])))).astype(int)
            for kind, content, of in PICTURE.findall(card)
        }
        for card in cards
    ]


@pytest.mark.slow
def test_the_report_is_what_the_rows_say(finished):
    run, metrics, html = report_of(finished)
    rows = pq.read_table(run.folder / "report" / "rows.parquet")
    promised = "key shard status error seed seconds forwards vjps batch_size psnr ssim lpips residual"
    assert set(promised.split()) <= set(rows.column_names)
    psnr = rows["psnr"].to_numpy()
    stated = metrics["metrics"]["psnr"]
    assert stated["mean"] == pytest.approx(psnr.mean(), rel=1e-12)
    assert stated["low"] < psnr.mean() < stated["high"]
    assert (stated["worst"][0], sum(stated["counts"])) == (rows["key"][psnr.argmin()].as_py(), 12)
    assert metrics["samples"] == {"planned": 12, "done": 12, "ok": 12, "failed": 0}
    assert (metrics["cost"]["forwards"], metrics["cost"]["vjps"]) == (1, 1)
    assert sum(part["share"] for part in metrics["time"]["parts"].values()) == pytest.approx(1)
    assert f"{psnr.mean():.3f}" in html
    for text in (metrics["config_hash"], metrics["provenance"]["prior_sha256"][0], torch.__version__[:4]):
        assert text in html
    table = pyarrow.csv.read_csv(run.folder / "report" / "metrics.csv").to_pydict()
    stated = [v["mean"] for v in metrics["metrics"].values()]
    assert table["value"][: len(stated)] == stated, "all digits"
    assert_self_contained(html)
    assert r"\begin{tabular}" in (run.folder / "report" / "metrics.tex").read_text()


@pytest.mark.slow
def test_pictures_are_those_of_the_rows_without_loss_and_the_pseudo_inverse_is_the_operators(make_job):
    job = make_job(degradation={"operator": {"name": "average_pool", "factor": 4}}, images="none")
    run, _, html = report_of(job)
    rows = [
        row
        for _, commit in run.commits()
        for row in read_rows(run.folder, commit, ["truth", "measurement", "restored"]).to_pylist()
    ]
    shown = pictures_in(html)
    assert len(shown) == len(rows) == 12
    for card, row in zip(shown, rows, strict=True):
        assert list(card) == ["truth", "measurement", "pseudo-inverse", "restoration"]
        for kind, name in gallery.KINDS.items():
            np.testing.assert_array_equal(card[name], np.asarray(Image.open(BytesIO(row[kind]))))
        np.testing.assert_array_equal(
            card["pseudo-inverse"], np.kron(card["measurement"], np.ones((4, 4, 1)))
        )


def test_where_h_plus_y_is_y_it_is_shown_once_and_where_y_is_no_image_it_is_named(make_job):
    inpaint = {"operator": {"name": "inpaint", "mask": "random", "seed": 3}}
    _, metrics, html = report_of(make_job(degradation=inpaint))
    assert {tuple(card) for card in pictures_in(html)} == {("truth", "measurement", "restoration")}
    assert metrics["masks"] == ["random, drawn with seed 3 (operators/masks.py)"]
    assert metrics["masks"][0] in html


def test_measurements_that_are_no_images_are_shown_by_their_pseudo_inverse(make_job):
    _, _, html = report_of(make_job(degradation={"operator": {"name": "compressed_sensing"}}))
    assert {tuple(card) for card in pictures_in(html)} == {("truth", "pseudo-inverse", "restoration")}


def test_shown_are_the_first_samples_and_the_ends_of_the_first_measure(make_job, monkeypatch):
    monkeypatch.setattr(gallery, "GALLERY", 2)
    monkeypatch.setattr(gallery, "EXTREMES", 3)
    run, metrics, html = report_of(make_job(images="all"))
    cards = re.findall(r"<figcaption><span>(image_\d+)(.*?)</figcaption>", html)
    ends = {end: set(metrics["metrics"]["psnr"][end][:3]) for end in ("worst", "best")}
    assert [key for key, _ in cards] == sorted({"image_000", "image_001"} | ends["worst"] | ends["best"])
    for end, keys in ends.items():
        assert {key for key, text in cards if f"{end} PSNR" in text} == keys
    keys = pa.chunked_array([[f"image_{i:03}" for i in range(12)]])
    infinite, good = pa.chunked_array([[np.inf] * 12]), pa.chunked_array([[True] * 12])
    equal = describe(infinite, good, keys, "psnr")
    chosen = gallery.choose(run, run.folder / "report" / "rows.parquet", "PSNR", equal)
    assert Counter(tuple(card.why) for card in chosen) == {("worst PSNR",): 3, ("best PSNR",): 3}, (
        "none is both"
    )


def test_of_several_samples_the_first_and_their_deviation_are_shown(make_job, tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("image.png", encode(picture(1, 8)))])
    job = make_job(
        data={"shards": str(shard), "size": SIZE, "kind": "measurements"},
        metrics=[],
        restoration={"samples_per_image": 4},
    )
    run, _, html = report_of(job)
    (card,) = pictures_in(html)
    assert list(card) == ["measurement", "restoration", "sample 1", "sample 2", "sample 3", "deviation"]
    (commit,) = (commit for _, commit in run.commits())
    (row,) = read_rows(run.folder, commit, ["deviation"]).to_pylist()
    deviation = np.load(BytesIO(row["deviation"])).astype(float).mean(0)
    expected = np.round(255 * deviation / deviation.max())
    np.testing.assert_array_equal(card["deviation"], np.stack([expected] * 3, -1))
    assert f"white is {number(deviation.max())} on" in html


def noise_card(side):
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    return gallery.Card("", 0, {}, [], {"restoration": encode(pixels)})


def test_pictures_keep_within_their_budget(monkeypatch):
    cards = [noise_card(300), noise_card(600)]
    sizes = []
    for budget in (1 << 21, 1 << 18, 1 << 17):
        monkeypatch.setattr(gallery, "BUDGET", budget)
        found, _ = gallery.fitted(cards)
        sizes.append(sum(len(content) for pictures in found for content in pictures.values()))
        assert sizes[-1] <= budget
    assert sizes == sorted(sizes, reverse=True)


def test_the_largest_report_has_eight_mebibytes():
    each = 4 + gallery.SAMPLES  # pictures, of noise at worst
    most = each * (gallery.GALLERY + 2 * gallery.EXTREMES)
    side, quality = gallery.FORMS[-1]
    worst = most * len(gallery.webp(noise_card(600).pictures["restoration"], side, quality))
    assert max(worst, gallery.BUDGET) * 4 / 3 < 7 << 20, "a MiB is left for the text"


@pytest.mark.parametrize(
    ("part", "device", "words"),
    [
        ("vjp", "cuda (H100)", "GPU-bound: the network took 90.0 %"),
        ("forward", "cpu (x86_64)", "CPU-bound: the network took 90.0 %"),
        ("read", "cuda (H100)", "I/O-bound: reading took 90.0 %"),
        ("write", "cuda (H100)", "I/O-bound: writing took 90.0 %"),
        ("sample", "cuda (H100)", "GPU-bound: the sampler took 90.0 %"),
        ("score", "cuda (H100)", "GPU-bound: scoring took 90.0 %"),
    ],
)
def test_what_bounds_a_run_is_said(part, device, words):
    seconds = Counter({"degrade": 0.5, "total": 10.0}) + Counter({part: 9.0})
    if part in ("forward", "vjp"):  # which are parts of the sampler's time
        seconds["sample"] = 9.0
    time = spent(Tally(seconds=seconds, made_by={"device": {device}}))
    assert time["verdict"].startswith(words)
    assert time["device_share"] == pytest.approx(0.95 if part not in ("read", "write") else 0.05)
    assert time["parts"]["the rest"]["seconds"] == pytest.approx(0.5)


@pytest.mark.parametrize("what", ["mask", "kernel"])
def test_masks_and_kernels_are_traced_to_the_files_they_were_when_the_run_was_begun(make_job, tmp_path, what):
    file = tmp_path / "<b>|k.png"
    file.write_bytes(encode((picture(1)[..., 0] > 99) * np.uint8(255)))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    spec = {"mask": {"name": "inpaint", "known": "black"}, "kernel": {"name": "blur"}}[what]
    job = make_job(degradation={"operator": spec | {what: str(file)}})
    job = job.model_copy(update={"data": job.data.model_copy(update={"limit": 1})})
    run, metrics, html = report_of(job)
    text = (run.folder / "report" / "report.md").read_text()
    assert metrics["files"] == [{"what": what, "name": file.name, "sha256": digest}]
    assert metrics["masks"] == ([f"{file}, black is known"] if what == "mask" else [])
    described = html[html.index("Of the noise") :].partition("</p>")[0]
    assert "&lt;b&gt;|k.png" in described
    for page in (described, text):
        assert f"SHA-256 {digest[:12]}." in page
    for page in (html, text):
        assert digest in page
        assert "<b>|k.png" not in page
    file.write_bytes(b"another")
    assert next(own_files(run))["sha256"] == digest
    (run.folder / "files.json").unlink()
    assert next(own_files(run))["sha256"] is None


def test_histograms_have_bars_as_high_as_the_counts_of_equal_bins():
    keys = pa.chunked_array([list("abcdefghij")])
    values = pa.chunked_array([[1.0, 1, 2, 4, 4, 4, 4, 5, 6, 6]])  # five bins of 1
    described = vars(describe(values, pa.chunked_array([[True] * 10]), keys, "psnr"))
    assert described["counts"] == [2, 1, 0, 4, 3]
    shapes = histogram(described)
    assert shapes["bars"] == [(0, 50, 20, 50), (20, 75, 20, 25), (60, 0, 20, 100), (80, 25, 20, 75)]
    assert shapes["quantiles"]["0.5"] == 60


def test_numbers_keep_three_digits():
    values = (None, 0.0, 24.78512, -0.15, 0.0042, 0.00000123)
    assert [number(value) for value in values] == ["–", "0.000", "24.785", "-0.150", "0.00420", "1.23e-06"]


def test_a_partial_run_says_so(make_job):
    run = open_or_plan(make_job())
    assert "None of the 12 images is restored yet." in write_report(run).read_text()
    next(in_process([Part(run, list(run.outstanding()))], Live()))
    html = write_report(run).read_text()
    assert "3 of 12 images with " in html
    assert "9 not done yet" in html


def test_results_without_an_interval_have_one_dash():
    of_image = {"mean": 24.5, "low": 24.0, "high": 25.0, "n": 3}
    of_set = {"value": 9.0, "low": None, "high": None, "n": 3, "warnings": ["few"], "extra": {}}
    with console.capture() as said:
        show_results({"title": "t", "metrics": {"psnr": of_image}, "sets": {"fid": of_set}})
    lines = [re.findall(r"[^│\s][^│]*[^│\s]|[^│\s]", line) for line in said.get().splitlines()]
    assert ["psnr", "24.500", "24.000 … 25.000", "3"] in lines
    assert ["fid, of the set", "9.000", "–", "3"] in lines


def test_what_samples_are_sorted_by(finished, monkeypatch):
    words = dict(orders({"psnr": {}, "residual": {}, "spread": {}, "seconds": {}}))
    assert words["psnr:1"] == "PSNR, worst first"
    assert words["residual:1"] == "residual, best first"
    assert words["spread:1"] == "deviation of the samples, lowest first"
    assert "seconds:1" not in words

    rows_at = gallery.rows_at

    def undefined(*arguments):
        for place, row in rows_at(*arguments):
            yield place, row | ({"psnr": np.nan} if place == 0 else {})

    monkeypatch.setattr(gallery, "rows_at", undefined)
    _, _, html = report_of(finished)
    assert html.count(' data-psnr="') == html.count('<figure class="card"') - 1


def test_all_groups_are_in_a_table_and_the_largest_on_the_page(finished, monkeypatch):
    monkeypatch.setattr(results, "GROUPS", 5)
    run, metrics, html = report_of(finished)
    rows = pyarrow.csv.read_csv(run.folder / "report" / "breakdowns.csv").to_pylist()
    assert Counter(row["by"] for row in rows) == {"shard": 3, "label": 12}
    psnr = {row["key"]: row["psnr"] for row in pq.read_table(run.folder / "report/rows.parquet").to_pylist()}
    assert {row["group"]: row["psnr"] for row in rows if row["by"] == "label"} == {
        str(i): psnr[f"image_{i:03d}"] for i in range(12)
    }
    assert metrics["breakdowns"]["label"]["groups"] == 12
    assert len(metrics["breakdowns"]["label"]["largest"]) == 5
    assert "(12, the 5 largest)" in html


def test_the_command_makes_the_run_again_in_a_new_folder(make_job, tmp_path):
    run, metrics, _ = report_of(make_job(output=str(tmp_path / "it's a run")))
    program, command, file, *overrides = shlex.split(metrics["command"])
    assert (program, command) == ("kintsugi", "run")
    new = str(tmp_path / "new")
    job = load_job(file, [override.replace("NEW-FOLDER", new) for override in overrides[1:]])
    assert job == run.job.model_copy(update={"output": new})


def test_a_report_that_cannot_be_made_leaves_the_one_before(finished, monkeypatch):
    run, _, _ = report_of(finished)
    before = {file: file.stat().st_mtime_ns for file in (run.folder / "report").iterdir()}
    next((run.folder / "commits").iterdir()).unlink()
    monkeypatch.setattr(write, "contact_sheet", None)  # what is made last
    with pytest.raises(TypeError):
        write_report(run)
    assert {file: file.stat().st_mtime_ns for file in (run.folder / "report").iterdir()} == before


def test_metrics_of_the_set_have_their_warnings_beside_them(finished, monkeypatch):
    result = SetResult(12.5, 11.0, None, 12, ("only 12 <samples>",), "the truth", {"fid_infinity": 9.25})
    monkeypatch.setattr(write, "set_metrics", lambda run: {"fid": result})
    run, metrics, html = report_of(finished)
    assert metrics["sets"]["fid"]["value"] == 12.5
    row = next(line for line in html.split("<tr>") if "FID ↓, of the set" in line)
    for text in (
        "12.500",
        "11.000 … –",
        "against the truth",
        "fid_infinity 9.250",
        "only 12 &lt;samples&gt;",
    ):
        assert text in row
    assert "only 12 &lt;samples&gt;" in row
    assert "only 12 &#60;samples&#62;" in (run.folder / "report" / "report.md").read_text()
    folder = run.folder / "report"
    assert "fid,12.5,11.0,,,12\nfid_infinity,9.25,,,,12\n" in (folder / "metrics.csv").read_text()
    assert "| FID, n → ∞ ↓, of the set | 9.250 | – | – | 12 |" in (folder / "report.md").read_text()
    assert r"FID, n $\rightarrow$ $\infty$ $\downarrow$ & 9.250" in (folder / "metrics.tex").read_text()


def test_a_number_that_is_absent_and_values_that_are_not_defined_are_shown_as_such(make_job, monkeypatch):
    absent = SetResult(None, None, None, 1, ("not computed: needs at least 2",), "the truth", {}, "ab12")
    monkeypatch.setattr(write, "set_metrics", lambda run: {"fid": absent})
    nan = replace(REGISTRY["ssim"], load=lambda device: lambda *_: torch.tensor(math.nan))
    monkeypatch.setitem(REGISTRY.builtin, "ssim", nan)
    run, metrics, html = report_of(make_job(metrics=["psnr", "ssim", "total_variation"]))
    assert (metrics["metrics"]["ssim"]["mean"], metrics["metrics"]["ssim"]["undefined"]) == (None, 12)
    assert (
        metrics["metrics"]["total_variation"]["worst"] == metrics["metrics"]["total_variation"]["best"] == []
    )
    assert "total variation, lowest first" in html
    assert metrics["provenance"]["reference of fid"] == ["the truth, SHA-256 ab12"]
    folder = run.folder / "report"
    assert "| SSIM ↑ | – | – | – | 0 + 12 undefined |" in (folder / "report.md").read_text()
    assert "| FID ↓, of the set | – | – | – | 1 |" in (folder / "report.md").read_text()
    assert "fid,,,,,1" in (folder / "metrics.csv").read_text()
    assert "not computed: needs at least 2" in html
    assert "0 + 12 undefined" in html


def test_published_numbers_stand_beside_the_measured_ones(make_job):
    entry = {"method": "<b>C-ΠGDM", "nfe": 5, "source": "table 1", "caveat": "another crop"}
    published = [entry | {"values": values} for values in ({"psnr": 23.5}, {"fid": None, "ssim": 0.75})]
    _, metrics, html = report_of(make_job(published=published))
    here, first, second = (
        re.findall(r'<td class="n">(?:<b>)?([^<]*)', line)
        for line in html.partition("Published numbers")[2].partition("</table>")[0].splitlines()
        if "this run" in line or "&lt;b&gt;C-ΠGDM" in line
    )
    psnr, ssim = (f"{metrics['metrics'][name]['mean']:.3f}" for name in ("psnr", "ssim"))
    assert [here, first, second] == [
        ["1", psnr, ssim],
        ["5", "23.500", "–"],
        ["5", "–", "0.750"],
    ], "no column for FID, of which nothing is known"
    assert html.count("another crop</div>") == 2


# In a browser


CARDS = "[...document.querySelectorAll('.card')]"
FIRST = "document.querySelector('.card')"
BOX = f"""(area => {{
    area.scrollIntoView();
    const box = area.getBoundingClientRect();
    return [box.x, box.y, box.width, box.height];
}})({FIRST}.querySelector('.views'))"""
LENS = f"{FIRST}.querySelector('.lens').style.left"
# Of each canvas: how many colours its pixels have.
COLOURS = f"""[...{FIRST}.querySelectorAll('canvas')].map(canvas => new Set(new Uint32Array(
    canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size)"""


def test_in_a_browser_samples_are_sorted_compared_and_enlarged(make_job, tmp_path, browser):
    shard = write_tar(
        tmp_path / "s.tar",
        [("broken.png", b"no"), *((f"image_{i}.png", encode(picture(i))) for i in range(4))],
    )
    published = [{"method": "a method", "nfe": 5, "source": "a table " * 9, "values": {"psnr": 1, "ssim": 1}}]
    run, metrics, _ = report_of(make_job(data={"shards": str(shard), "size": SIZE}, published=published))
    page = run.folder / "report" / "report.html"
    keys = f"{CARDS}.map(card => card.querySelector('figcaption span').firstChild.textContent.trim())"
    browser.open(page, "#psnr:1")
    assert browser.console == []
    worst = metrics["metrics"]["psnr"]["worst"]
    assert browser.evaluate(keys) == [*worst, "broken"], "worst first, without a value last"
    sides = f"{CARDS}.map(card => [...card.querySelectorAll('.left, .right')].map(v => v.dataset.kind))"
    assert browser.evaluate(sides) == [["measurement", "restoration"]] * 4 + [[]]
    assert all(count > 1 for count in browser.evaluate(COLOURS)), "no enlargement is blank"
    widths = "[...document.querySelectorAll('.card img')].map(image => image.naturalWidth)"
    assert set(browser.evaluate(widths)) <= {SIZE, SIZE // 4}, "those from the top of the page, too"

    slider = f"{FIRST}.querySelector('input')"
    browser.evaluate(f"{slider}.value = 20; {slider}.dispatchEvent(new Event('input'))")
    cut = f"getComputedStyle({FIRST}.querySelector('.right')).clipPath"
    assert browser.evaluate(cut) == "inset(0px 0px 0px 20%)"
    assert float(browser.evaluate(LENS)[:-1]) == pytest.approx(15)

    x, y, width, height = browser.evaluate(BOX)
    browser.mouse("Pressed", x + 0.5 * width, y + 0.5 * height, True)
    assert browser.evaluate(cut) == "inset(0px 0px 0px 50%)", "where the pointer went down"
    for share in (0.55, 0.65, 0.75):
        browser.mouse("Moved", x + share * width, y + 0.5 * height, True)
    assert browser.evaluate(cut) == "inset(0px 0px 0px 75%)"
    browser.mouse("Moved", x + 1.5 * width, y + 0.5 * height, True)
    assert browser.evaluate(cut) == "inset(0px 0px 0px 100%)", "the card keeps the pointer"
    browser.mouse("Released", x + 1.5 * width, y + 0.5 * height, False)

    browser.evaluate("order.value = 'failed:-1'; order.dispatchEvent(new Event('change'))")
    assert browser.evaluate(keys)[0] == "broken"
    browser.open(page, "#%", width=390)
    assert browser.evaluate(keys) == ["broken", *(f"image_{i}" for i in range(4))], "the order of the job"
    assert browser.evaluate(f"{CARDS}.filter(card => card.querySelector('.right')).length") == 4
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    published = "document.querySelector('[aria-label=\"published numbers\"]')"
    assert browser.evaluate(f"{published}.scrollWidth <= {published}.clientWidth")


def test_in_a_browser_nothing_leaves_the_page_whatever_is_in_it(finished, tmp_path, browser):
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    _, _, html = report_of(finished)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    hostile = (
        f"<img src='{url}/img'><script src='{url}/script'></script><link rel=stylesheet href='{url}/style'>"
        f"<iframe src='{url}/frame'></iframe><script>document.title = 'taken'; fetch('{url}/fetch')</script>"
        f"<img src='data:,' onerror=\"document.title = 'taken'\">"
    )
    bare = tmp_path / "bare.html"
    bare.write_text(f"<title>mine</title>{hostile}")
    everything = {"/img", "/script", "/style", "/frame", "/fetch"}
    browser.open(bare)
    deadline = time.monotonic() + 10
    while not everything <= set(asked) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert everything <= set(asked), "without the policy all are asked for"
    assert browser.evaluate("document.title") == "taken"
    asked.clear()
    injected = tmp_path / "injected.html"
    injected.write_text(html.replace("<h1>", f"{hostile}<h1>", 1))
    browser.open(injected)
    assert browser.evaluate("document.title") != "taken"
    server.shutdown()
    assert asked == []
    assert len(browser.console) >= 6, "the browser says what it refused"


# What actors tell Prometheus


def test_telemetry_counts_what_was_done(make_job, tmp_path, monkeypatch):
    told = Counter()
    gauges = {}

    class Metric:
        def __init__(self, name, description, tag_keys):
            self.name, self.tags = name, {}
            assert "run" in tag_keys

        def set_default_tags(self, tags):
            self.tags = tags
            return self

        def inc(self, value, tags):
            assert value > 0
            assert self.tags == {"run": run.config_hash[:12]}
            told[(self.name, *tags.items())] += value

        def set(self, value):
            gauges[self.name] = value

    monkeypatch.setattr("ray.util.metrics.Counter", Metric)
    monkeypatch.setattr("ray.util.metrics.Gauge", Metric)
    shard = write_tar(
        tmp_path / "s.tar",
        [("broken.png", b"no"), *((f"image_{i}.png", encode(picture(i))) for i in range(4))],
    )
    compute = {"unit_size": 8, "batch_size": 2, "cpus_per_actor": 1}
    run = open_or_plan(make_job(data={"shards": str(shard), "size": SIZE}, compute=compute))
    (unit,) = run.units()
    worker = Worker(run.job, run.folder, "cpu", [Counts(run.config_hash)])
    started = time.perf_counter()
    commit = worker.process(Task(unit))
    wall = time.perf_counter() - started
    samples = {
        ("kintsugi_samples", ("status", "ok")): 4,
        ("kintsugi_samples", ("status", "failed")): 1,
        ("kintsugi_evaluations", ("kind", "forward")): 4,
        ("kintsugi_evaluations", ("kind", "vjp")): 4,
    }

    def seconds():
        return {tag[1]: value for (name, tag), value in told.items() if name == "kintsugi_seconds"}

    assert {name: value for name, value in told.items() if name[0] != "kintsugi_seconds"} == samples
    assert gauges == {"kintsugi_batch_size": 1}, "of the last"
    total = seconds().pop("total")
    assert commit.seconds["total"] <= total <= wall
    assert {part: seconds()[part] for part in worker.stage.seconds} == pytest.approx(worker.stage.seconds)
    worker.process(Task(unit))
    assert samples.items() <= told.items(), "what was found done is no work"
    started = time.perf_counter()
    worker.process(Task(unit, attempt=2, failed_only=True))
    samples["kintsugi_samples", ("status", "failed")] += 1
    assert samples.items() <= told.items(), "of those kept nothing is counted again"
    assert seconds()["total"] - total < 2 * (time.perf_counter() - started), "nor the time they took"
    assert {part: seconds()[part] for part in worker.stage.seconds} == pytest.approx(worker.stage.seconds)
