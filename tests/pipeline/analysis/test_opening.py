"""A report begins in plain words, with the numbers of its metrics.json and pictures that are there once."""

import base64
import json
import re
from copy import deepcopy
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pytest
from kit.jobs import execute
from kit.shards import SIZE, encode, picture, write_tar
from markupsafe import escape
from PIL import Image

from kintsugi import operators
from kintsugi.pipeline.analysis.measures import bare, number, unit
from kintsugi.pipeline.analysis.report import write_report
from kintsugi.pipeline.analysis.report.opening import DAMAGE, LINEAR, opening, views
from kintsugi.pipeline.analysis.report.write import plain
from kintsugi.pipeline.job import Job


def baseline(mean, difference, low, high, improved):
    return {
        "value": mean,
        "difference": {"value": difference, "low": low, "high": high},
        "improved": improved,
    }


METRICS = {
    "samples": {"planned": 12, "done": 12, "ok": 12, "failed": 0},
    "cost": {"forwards": 5, "vjps": 5},
    "provenance": {"prior": ["natural, 6.6 M parameters"], "device": ["cpu (x86_64)"]},
    "failures": {"reasons": []},
    "metrics": {
        "psnr": {
            "mean": 25.27649,
            "baselines": {
                "pinv": baseline(14.955, 10.321, 8.8, 11.9, 1.0),
                "lmmse": baseline(23.551, 1.72549, 0.8, 2.5, 10 / 12),
            },
        },
        "seconds": {"mean": 1.7},
    },
}


def said(job, **fields):
    """The opening of a run with these numbers; those of "samples" and the like are put among the others."""
    metrics = deepcopy(METRICS)
    for name, values in fields.items():
        metrics[name] = metrics[name] | values
    return opening(job, metrics)


def without_truth(make_job, **fields):
    return make_job(data={"shards": "a.tar", "size": SIZE, "kind": "measurements"}, metrics=[], **fields)


def score(tmp_path):
    data = {"kind": "restored", "shards": str(tmp_path), "truth": str(tmp_path), "size": SIZE}
    return Job.model_validate({"data": data, "metrics": ["psnr"], "output": str(tmp_path / "out")})


def test_it_says_what_was_done_how_good_it_is_and_what_it_cost(make_job):
    job = make_job(degradation={"operator": {"name": "denoise"}, "sigma": 0.2})
    found = said(job)
    assert found.done == (
        "12 images with noise (σ=0.2 on [0,1]), each restored by 5 evaluations of a network (natural, 6.6 M "
        "parameters): PSNR 1.725 dB better than linear MMSE, which needs no network; better on 83 % of them."
    ), "beside the better of the baselines"
    assert found.cost == (
        "An image took 1.700 s on cpu (x86_64), with 5 vector-Jacobian products of the network beside the "
        "evaluations."
    )
    assert (found.failed, found.whole) == ("None failed.", True)
    measured = said(job, cost={"vjps": 0, "measuring": 1}).cost
    assert measured.endswith("1.700 s on cpu (x86_64), with 1 evaluation more by which it is measured.")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((1.5, 0.5, 2.5, 0.75), "better than linear MMSE, which needs no network; better on 75 % of them."),
        ((-1.5, -2.5, -0.5, 0.25), "worse than linear MMSE, which needs no network; better on 25 % of them."),
        ((1.5, -0.5, 3.5, 0.75), "better than linear MMSE, which needs no network (that may be chance); "),
        ((1.5, None, None, 1.0), "better than linear MMSE, which needs no network (that may be chance); "),
    ],
)
def test_it_says_where_restoring_does_harm_and_what_may_be_chance(make_job, numbers, words):
    of = {"psnr": {"mean": 25.0, "baselines": {"lmmse": baseline(24.0, *numbers)}}}
    assert f"PSNR 1.500 dB {words}" in said(make_job(), metrics=of).done


def test_where_less_is_better_less_is_said_to_be_better(make_job):
    of = {"pinv": baseline(0.5, -0.25, -0.3, -0.2, 1.0), "lmmse": baseline(0.4, -0.15, -0.2, -0.1, 1.0)}
    found = said(make_job(), metrics={"psnr": {"mean": None}, "lpips": {"mean": 0.25, "baselines": of}})
    assert f"{bare('lpips')} 0.150 better than linear MMSE" in found.done, "the metric that has values"


def test_without_a_truth_or_a_baseline_nothing_is_compared(make_job, tmp_path):
    no_truth = said(without_truth(make_job), metrics={"residual": {"mean": 0.1}})
    assert no_truth.done.endswith("(natural, 6.6 M parameters); there is no truth to compare with.")
    alone = said(make_job(), metrics={"psnr": {"mean": 25.27649}})
    assert alone.done.endswith(": PSNR 25.276 dB on average.")
    scored = said(score(tmp_path), metrics={"psnr": {"mean": 25.27649}})
    assert (scored.done, scored.cost) == (
        "12 images compared with the truth: PSNR 25.276 dB on average.",
        "",
    ), "what restoring them cost is not known"


def test_what_failed_is_said_with_the_reason_and_what_is_not_done(make_job, tmp_path):
    reasons = [
        {"count": 2 - n, "error": error, "key": "a"} for n, error in enumerate(("it broke. " * 50, "b"))
    ]
    some = said(make_job(), samples={"done": 9, "ok": 6, "failed": 3}, failures={"reasons": reasons})
    assert some.done.startswith("6 of 12 images with fewer pixels and noise (σ=0.02 on [0,1]), each restored")
    assert some.failed.startswith("3 failed: for 2 reasons, most often it broke. it broke.")
    assert some.failed.endswith(" …. 3 not done yet.")
    assert len(some.failed) < 300
    assert not some.whole
    none = {"done": 12, "ok": 0, "failed": 12}
    found = said(make_job(), samples=none, failures={"reasons": [{"count": 12, "error": "no", "key": "a"}]})
    assert (found.done, found.cost) == ("None of the 12 images is restored.", "")
    assert found.failed == "12 failed: no."
    assert said(score(tmp_path), samples={"done": 0, "ok": 0}).done == (
        "None of the 12 images is compared with the truth yet."
    )


def test_by_what_it_was_restored_is_said(make_job):
    several = make_job(restoration={"samples_per_image": 4})
    assert (
        "each restored as the mean of 4 samples, by 20 evaluations"
        in said(several, cost={"forwards": 20}).done
    )
    one = said(make_job(), samples={"planned": 1, "done": 1, "ok": 1}, cost={"forwards": 1}).done
    assert one.startswith("1 image with fewer pixels and noise (σ=0.02 on [0,1]), restored by 1 evaluation")
    assert "restored without a network: " in said(make_job(), cost={"forwards": 0}).done
    command = {"name": "external", "command": ["theirs", "{measurements}", "{restored}"]}
    assert "restored by a command: " in said(make_job(sampler=command), cost={"forwards": 0}).done
    parts = [{"name": "gaussian_blur", "sigma": 1.5}, {"name": "denoise"}, {"name": "jpeg"}]
    both = make_job(degradation={"operator": {"name": "compose", "operators": parts}})
    assert said(both).done.startswith("12 images with blur and JPEG compression, each restored")
    nothing = make_job(degradation={"operator": {"name": "denoise"}})
    assert said(nothing).done.startswith("12 images, each restored by 5 evaluations")


def test_every_operator_has_plain_words():
    assert set(DAMAGE) == set(operators.REGISTRY.builtin) - {"compose"}


def test_units_are_those_of_the_titles():
    assert (unit("psnr"), unit("ssim"), unit("residual"), unit("no such metric")) == ("dB", "", "", "")


def test_pictures_are_before_without_a_network_restored_and_true():
    def shown(*kinds):
        return list(views(dict.fromkeys(kinds, b"")).items())

    after = [("restoration", "restored"), ("truth", "truth")]
    assert shown("truth", "measurement", "restoration", LINEAR, "pseudo-inverse", "sample 1") == [
        ("measurement", "before"),
        (LINEAR, "linear MMSE, no network"),
        *after,
    ]
    pseudo_inverse = ("pseudo-inverse", "H⁺y, no network")
    assert shown("truth", "measurement", "pseudo-inverse", "restoration") == [
        ("measurement", "before"),
        pseudo_inverse,
        *after,
    ]
    before = ("pseudo-inverse", "before, as H⁺y")
    assert shown("truth", "pseudo-inverse", "restoration") == [before, *after]
    assert shown("truth", "restoration") == after
    assert shown("measurement", "restoration") == [("measurement", "before"), after[0]]


TOP = re.compile(
    r'<img id="picture-(\d+)-([^"]+)" alt="([^"]*)" src="data:image/webp;base64,([^"]+)"><span>([^<]+)<'
)


def test_a_page_begins_with_the_numbers_of_its_metrics_and_has_each_picture_once(make_job, tmp_path):
    members = [(f"<i>{n}.png", encode(picture(n))) for n in range(4)]
    shard = write_tar(tmp_path / "s.tar", [*members, ("<u>no.png", b"<u>no</u>")])
    run = execute(make_job(data={"shards": str(shard), "size": SIZE}))
    page = write_report(run)
    html, text = page.read_text(), (page.parent / "report.md").read_text()
    metrics = json.loads((page.parent / "metrics.json").read_text())
    begins = opening(run.job, metrics)
    assert begins.done.startswith("4 of 5 images with fewer pixels")
    by_mean = {b["value"]: b for b in metrics["metrics"]["psnr"]["baselines"].values()}
    best = by_mean[max(by_mean)]
    assert f"PSNR {number(abs(best['difference']['value']))} dB " in begins.done
    assert f"; better on {number(100 * best['improved'], 0)} % of them" in begins.done
    assert f'<h1>{metrics["title"]}</h1>\n<p class="lead">{escape(begins.done)}</p>' in html
    assert f'<p>{begins.cost} <span class="bad">{escape(begins.failed)}</span></p>' in html
    assert text.split("\n\n")[1] == plain(f"{begins.done} {begins.failed}")
    for each in (html, text):
        assert each.index("1 failed: ") < each.index("95 % interval"), "before the tables"
        assert not re.search("<[iu]>", each)

    rows = pq.read_table(page.parent / "rows.parquet").to_pylist()
    kinds = {"measurement": "before", "linear-MMSE": "linear MMSE, no network", "restoration": "restored"}
    kinds |= {"truth": "truth"}
    assert [(place, kind, alt, words) for place, kind, alt, _, words in TOP.findall(html)] == [
        (str(place), kind, f"&lt;i&gt;{place}: {words}", words)
        for place in range(3)
        for kind, words in kinds.items()
    ]
    content = {(int(place), kind): one for place, kind, _, one, _ in TOP.findall(html)}
    assert all(html.count(one) == 1 for one in content.values())
    moved = re.findall(r'data-of="picture-(\d+)-([^"]+)"', html)
    assert {(int(place), kind) for place, kind in moved} == {
        key for key in content if key[1] != "linear-MMSE"
    }
    for place in range(3):
        estimate, truth = (
            np.asarray(Image.open(BytesIO(base64.b64decode(content[place, kind])))) / 255
            for kind in ("linear-MMSE", "truth")
        )
        seen = -10 * np.log10(((estimate - truth) ** 2).mean())
        assert seen == pytest.approx(rows[place]["psnr_lmmse"], abs=0.02), "the estimate that was scored"
