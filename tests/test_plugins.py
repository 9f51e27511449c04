"""What another package offers by entry points is named, listed, recorded and checked as what is built in."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from kit.plugins import install_mine, python_path, write
from typer.testing import CliRunner

import kintsugi
from kintsugi import operators, priors, samplers, testing
from kintsugi.errors import JobError, SpecError
from kintsugi.jobs.cli import app
from kintsugi.jobs.files import load_job
from kintsugi.jobs.trials import parse_vary
from kintsugi.operators import Mask
from kintsugi.pipeline.execution.directory import FILES


@pytest.fixture
def plugged(mine, make_job):
    """A job that names all four."""
    parts = [{"name": "interlaced"}, {"name": "denoise"}]
    return make_job(
        degradation={"operator": {"name": "compose", "operators": parts}},
        prior={"name": "flat"},
        sampler={"name": "replace", "steps": 2, "eta": 0.1},
        metrics=["psnr", "largest_error"],
    )


def test_the_properties_that_are_offered_to_authors_hold(mine):
    testing.check_operator({"name": "interlaced", "every": 3})
    testing.check_sampler({"name": "replace", "steps": 3})
    testing.check_prior({"name": "flat"})
    testing.check_metric("largest_error")


@pytest.mark.slow
def test_pytest_checks_what_its_options_name(mine, tmp_path):
    """In a process of its own, as an author has it; it imports nothing before an option says so."""
    (tmp_path / "test_own.py").write_text(
        "import sys\ndef test_first(): assert not {'torch', 'yaml', 'kintsugi.testing'} & set(sys.modules)\n"
    )
    call = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA"]
    call += ["-p", "no:kintsugi", "-p", "kintsugi.pytest_plugin"]  # whether pytest finds it installed or not
    call += ["--kintsugi-metric", "largest_error", "--kintsugi-operator", "{name: interlaced, every: 3}"]
    call += ["--kintsugi-sampler", "nobody"]
    environment = os.environ | {"PYTHONPATH": python_path(mine)}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    for line in (
        "PASSED test_own.py::test_first",
        "PASSED ::kintsugi-metric[largest_error]",
        "PASSED ::kintsugi-operator[{name: interlaced, every: 3}]",
        "FAILED ::kintsugi-sampler[nobody] - kintsugi.errors.SpecError",
        "1 failed, 3 passed",
    ):
        assert line in done.stdout


class Doubled(Mask):
    """An adjoint that is twice what it must be."""

    def adjoint(self, y):
        return 2 * super().adjoint(y)


class Leaning(Mask):
    """A sample leans on the mean of its batch."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


@pytest.mark.parametrize("wrong", [Doubled, Leaning])
def test_an_operator_that_is_wrong_is_found(monkeypatch, wrong):
    def make(image_shape):
        return wrong(torch.ones(image_shape, dtype=torch.bool))

    monkeypatch.setitem(operators.BUILTIN, "wrong", make)
    with pytest.raises(AssertionError):
        testing.check_operator({"name": "wrong"})


def after(change):
    """DDNM, of whose result something is changed."""
    inner = samplers.build({"name": "ddnm", "steps": 3})

    def restore(prior, operator, y, noise, **options):
        return change(inner(prior, operator, y, noise, **options))

    return restore


@pytest.mark.parametrize(
    "change",
    [
        lambda found: replace(found, forwards=found.forwards - 1),
        lambda found: replace(found, vjps=1),
        lambda found: replace(found, image=found.image - found.image.mean(0)),
        lambda found: replace(found, image=found.image + torch.rand(())),
        lambda found: replace(found, image=torch.zeros_like(found.image)),
        lambda found: replace(found, image=found.image / 0),
        lambda found: replace(found, image=found.image.float()),
    ],
    ids=["forwards", "vjps", "batch", "random", "constant", "infinite", "precision"],
)
def test_a_sampler_that_is_wrong_is_found(monkeypatch, change):
    monkeypatch.setitem(samplers.BUILTIN, "wrong", lambda: after(change))
    with pytest.raises(AssertionError):
        testing.check_sampler({"name": "wrong"})


def test_a_prior_whose_checksum_is_of_other_files_is_found(monkeypatch):
    def load(device):
        prior = priors.BUILTIN["natural"].load(device)
        prior.sha256 = "0" * 64
        return prior

    wrong = priors.Format(load, priors.BUILTIN["natural"].describe)
    monkeypatch.setitem(priors.BUILTIN, "wrong", wrong)
    with pytest.raises(AssertionError, match="checksum"):
        testing.check_prior({"name": "wrong"})


def test_the_embedded_prior_has_the_properties():
    testing.check_prior({"name": "natural"})


def test_nothing_is_imported_until_a_spec_names_it(mine):
    samplers.build({"name": "conjugate"})
    with pytest.raises(SpecError, match=r"no sampler 'replaced'; choose one of .*replace"):
        samplers.build({"name": "replaced"})
    listed = CliRunner().invoke(app, ["list", "samplers"], env={"COLUMNS": "120"}).output
    assert "plug-in of kintsugi-mine==1.0" in listed
    assert samplers.REGISTRY.packages({"name": "replace"}, "sampler") == {"sampler": "kintsugi-mine==1.0"}
    assert "kintsugi_mine" not in sys.modules
    samplers.build({"name": "replace"})
    assert "kintsugi_mine" in sys.modules


def test_parameters_of_a_plugin_are_checked_by_field(mine):
    with pytest.raises(SpecError, match=r"sampler\.w: 'replace' has no such parameter; it has: .*eta"):
        samplers.build({"name": "replace", "w": 1})
    with pytest.raises(SpecError, match=r"sampler\.eta"):
        samplers.build({"name": "replace", "eta": "much"})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("eta=0.25", 0.25),
        ("steps=3", 3),
        ("weights=[1, 2e0, 3]", [1.0, 2.0, 3.0]),
        ("weights=~", None),
        ("mode=010", "010"),
        ("mode=a: b", "a: b"),
    ],
)
def test_settings_of_a_plugin_have_the_types_of_its_parameters(setting, value, mine, tmp_path):
    job, parameter = tmp_path / "job.yaml", setting.partition("=")[0]
    job.write_text("data: {shards: x}\ndegradation: {operator: {name: denoise}}\noutput: y\n")
    found = load_job(str(job), ["sampler.name=replace", f"sampler.{setting}"]).sampler
    assert found == {"name": "replace", parameter: value}
    assert type(found[parameter]) is type(value)
    if parameter != "mode":  # before the name is known, a value is what YAML says
        found = load_job(str(job), [f"sampler.{setting}", "sampler.name=replace"]).sampler
        assert found == {"name": "replace", parameter: value}


def test_a_sweep_varies_a_parameter_of_a_plugin(mine):
    assert parse_vary("sampler.weights=[1],[2, 3]") == ("sampler.weights", [[1], [2, 3]])
    assert parse_vary("sampler.gain=1,2.5") == ("sampler.gain", [1, 2.5])
    with pytest.raises(JobError, match=r"sampler\.gain: 'covariance' has no such parameter"):
        load_job("quickstart", ["sampler.gain=[a"])


def test_a_run_records_the_packages_and_is_not_continued_with_others(plugged, monkeypatch, tmp_path):
    run = kintsugi.run(plugged, limit=3)
    assert set(run.rows()["status"].to_pylist()) == {"ok"}
    fields = ("degradation.operator.operators.0", "prior", "sampler", "metrics.largest_error")
    assert json.loads((run.folder / FILES).read_bytes()) == dict.fromkeys(fields, "kintsugi-mine==1.0")
    for record in (run.folder / "commits").iterdir():
        assert '"plug-in of sampler": "kintsugi-mine==1.0"' in record.read_bytes().decode()
    install_mine(monkeypatch, tmp_path / "newer", "1.1")
    with pytest.raises(JobError, match=r"sampler: plug-in kintsugi-mine==1\.0 → kintsugi-mine==1\.1"):
        kintsugi.run(plugged, limit=3)


def test_a_job_without_plugins_records_none(mine, make_job):
    run = kintsugi.run(make_job(), limit=1)
    assert json.loads((run.folder / FILES).read_bytes()) == {}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("absent_package:Sampler", r"cannot be imported: ModuleNotFoundError: .*absent_package"),
        ("json:absent", "cannot be imported: AttributeError"),
        ("sys:maxsize", "is no .*Callable: sys:maxsize"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_told_with_its_package(monkeypatch, tmp_path, value, reason):
    monkeypatch.syspath_prepend(write(tmp_path, "broken", "2.0", {"kintsugi.samplers": {"bad": value}}))
    with pytest.raises(SpecError, match=rf"sampler\.name: the plug-in 'bad' of broken==2\.0 {reason}"):
        samplers.build({"name": "bad"})


def test_a_prior_must_be_a_format(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(write(tmp_path, "broken", "2.0", {"kintsugi.priors": {"bad": "json:loads"}}))
    with pytest.raises(SpecError, match=r"'bad' of broken==2\.0 is no Format"):
        priors.load({"name": "bad"})


def test_a_built_in_name_wins_and_the_list_says_so(monkeypatch, tmp_path):
    taken = {"kintsugi.operators": {"bicubic": "absent:thief"}}
    monkeypatch.syspath_prepend(write(tmp_path, "thief", "1.0", taken))
    assert operators.build({"name": "bicubic"}, (3, 16, 16)).linear
    assert operators.REGISTRY.packages({"name": "bicubic"}, "operator") == {}
    listed = CliRunner().invoke(app, ["list", "operators"], env={"COLUMNS": "140"}).output
    assert "thief==1.0; not used, since the name is built in" in listed


def test_two_packages_with_one_name_are_refused(mine, monkeypatch, tmp_path):
    other = {"kintsugi.samplers": {"replace": "json:loads"}}
    monkeypatch.syspath_prepend(write(tmp_path / "other", "other", "3.0", other))
    with pytest.raises(SpecError, match=r"'replace' is in .*other==3\.0.*uninstall all but one"):
        samplers.build({"name": "replace"})


def test_submit_says_what_the_cluster_needs(mine, shards, tmp_path):
    sets = {
        "data.shards": shards[0],
        "data.size": 32,
        "degradation.operator": "{name: interlaced}",
        "output": tmp_path / "run",
    }
    job = tmp_path / "job.yaml"
    job.write_text(
        "data: {shards: x}\ndegradation: {operator: {name: denoise}}\nmetrics: [psnr]\noutput: y\n"
    )
    options = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    sent = CliRunner().invoke(app, ["submit", str(job), *options, "--pack", str(tmp_path / "job.zip")])
    assert sent.exit_code == 0, sent.output
    assert "every node of the cluster needs kintsugi-mine==1.0" in " ".join(sent.output.split())
