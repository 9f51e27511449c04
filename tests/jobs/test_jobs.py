"""The command line and job files: what a user types and what comes back."""

import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import jsonschema
import numpy as np
import pytest
import typer
import yaml
from kit.jobs import kintsugi, runner, told, write_job
from kit.shards import SIZE, encode, picture, write_tar

from kintsugi import samplers
from kintsugi.errors import JobError
from kintsugi.jobs import cli, cluster
from kintsugi.jobs.cli import app
from kintsugi.jobs.fields import Described, fields
from kintsugi.jobs.files import files_of, load_job, ready_jobs, variants_of
from kintsugi.jobs.values import parse_setting
from kintsugi.pipeline.execution.cluster import refuse_long_folder
from kintsugi.pipeline.job import Job, config_hash, flatten

ROOT = Path(__file__).parents[2]
READY = {name: path for name, path in ready_jobs().items() if path.parent.name == "ready"}


@pytest.mark.parametrize("name", ready_jobs())
def test_ready_jobs_are_valid(name):
    job = load_job(name, [])
    assert job.data.size == 256
    assert job.output == f"runs/{name}"
    for variant in variants_of(ready_jobs()[name]):
        chosen = load_job(f"{name}:{variant}", [])
        assert chosen.output == f"runs/{name}-{variant}"
        assert variant.endswith(f"-{chosen.sampler['steps']}")
        samplers.build(chosen.sampler)


def test_ready_jobs_say_what_differs_from_the_defaults_and_stay_the_experiments_they_are():
    values = {"data": {"shards": "a.tar"}, "degradation": {"operator": {"name": "denoise"}}, "output": "run"}
    defaults = flatten(Job.model_validate(values).model_dump())
    del defaults["degradation.operator.name"], defaults["sampler.name"]  # which a spec must say
    hashes = {}
    for name, path in READY.items():
        job, said = load_job(name, []), yaml.safe_load(path.read_text())
        said.pop("variants", None)
        said = flatten(said)
        again = [field for field, value in said.items() if field in defaults and value == defaults[field]]
        assert again == [], f"{name} says again what is the default"
        assert all(v is not None for row in job.published for v in row.values.values())
        hashes[name] = config_hash(job)
    # Runs of earlier versions are continued by these: a change here is another experiment, on purpose only.
    digest = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    assert digest == "bf266a8a60447a3a25962049d631ad10ecf6ce9fd5ee40713755d8f5ad3b5eb0"


def test_ready_jobs_cover_both_sets_and_every_task_noiseless_and_noisy():
    tasks = ("sr4", "inpaint-box", "inpaint-random", "inpaint-freeform", "deblur")
    wanted = {
        f"{data}-{t}{noise}" for data in ("imagenet", "ffhq") for t in tasks for noise in ("", "-noisy")
    }
    fast = {f"fast-{t}{noise}" for t in tasks if t != "inpaint-freeform" for noise in ("", "-noisy")}
    of_paper = ("sr4", "inpaint-freeform", "deblur")
    flow = {f"{data}-{task}" for data in ("celebahq", "afhq-cat", "bedroom") for task in of_paper}
    own = {f"imagenet-holes-{low}-{low + 10}" for low in range(10, 60, 10)}
    own |= {"imagenet-inpaint-thin", "imagenet-inpaint-thick", "imagenet-motion-noisy", "ffhq-motion-noisy"}
    own |= {"imagenet-deblur-blind"}
    assert wanted | fast | flow | own | {"ffhq-pool4", "grey", "quickstart"} == set(READY)
    assert all(load_job(name, []).degradation.parameters for name in own)
    for name in wanted | fast:
        assert (load_job(name, []).degradation.sigma_y == 0.1) == name.endswith("-noisy")
    for name in fast:
        job = load_job(name, [])
        assert job.degradation == load_job(name.replace("fast", "imagenet"), []).degradation
        assert job.sampler["steps"] <= 5


def test_overrides():
    job = load_job("quickstart", ["sampler.steps=7", "compute.batch_size=3", "data.shards=[a.tar, b.tar]"], 5)
    assert (job.sampler["steps"], job.compute.batch_size) == (7, 3)
    assert (job.data.shards, job.data.limit) == (["a.tar", "b.tar"], 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sice=3", "data.sice: no such field"),
        ("data.size=big", "data.size: .*valid integer"),
        ("data.size=-8", "data.size: .*greater than 0"),
        ("sampler.name=magic", "sampler.name: no sampler 'magic'; choose one of cdim, cm4ir, conjugate"),
        ("sampler.step=3", "sampler.step: 'covariance' has no such parameter; it has: steps"),
        ("sampler.eta=4", "sampler.eta: .*less than or equal to 1"),
        ("degradation.operator={name: bicubic, factor: 0}", "degradation.operator.factor: .*greater than 0"),
        (
            "degradation.operator={name: bicubic, factor: 7}",
            "degradation.operator 'bicubic': factor: 7 does not divide",
        ),
        ("degradation.sigma_range=[0,2]", "degradation.sigma_range"),
        ("degradation.poisson=0", "degradation.poisson: .*greater than 0"),
        ("degradation={operator: {name: compressed_sensing}, poisson: 9}", "poisson: .*'compressed_sensing'"),
        ("sampler={name: daps, steps: 7}", "ode_steps: 5 does not divide the 7 steps"),
        ("degradation.sigma=-1", "degradation.sigma: .*greater than or equal to 0"),
        ("prior.name=magic", "prior.name: no prior 'magic'; choose one of adm, "),
        ("prior.path=/nowhere", "prior.path: 'natural' has no such parameter; it has: none"),
        ("metrics=[psnr, psrn]", "no metric 'psrn'; choose from blur, "),
        ("degradation=3", "degradation: "),
        ("degradation.operator.mask=/nowhere/mask.png", "no such parameter"),
        ("compute.gpus_per_actor=1.5", "compute.gpus_per_actor: more than one GPU must be a whole number"),
        ("sampler.temperature=.nan", "sampler.temperature: .*finite"),
        ("data.size=64", "ms_ssim needs images of at least 176 pixels"),
        ("compute=3", "compute"),
        ("nonsense", "expected key.path=value"),
        ("seed: 3=", "not valid YAML|no such field"),
        ("metrics=[", "not valid YAML"),
    ],
)
def test_a_bad_field_is_named(override, message):
    with pytest.raises(JobError, match=message):
        load_job("quickstart", [override])


def test_a_missing_mask_file_is_named():
    with pytest.raises(JobError, match=r"No such file.*/nowhere/mask\.png"):
        load_job(
            "imagenet-inpaint-box",
            ["degradation.operator.mask=/nowhere/mask.png", "degradation.operator.known=white"],
        )


@pytest.mark.parametrize("kind", ["images", "measurements"])
@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("{name: inpaint, mask: /nowhere/m.png}", "known: say which pixels"),
        ("{name: inpaint, mask: cloud}", "mask: 'cloud' is none of"),
        ("{name: compose, operators: [{name: denoise}, {name: inpaint, mask: a.npz}]}", "known: say which"),
        ("{name: compressed_sensing, block: 12}", "block: must be a power of two"),
        ("{name: motion_blur, boundary: zero}", "boundary: 'zero' has no decomposition"),
    ],
)
def test_an_operator_that_no_image_fits_is_refused_for_measurements_too(kind, operator, message):
    sets = [f"data={{kind: {kind}, shards: a.tar}}", f"degradation.operator={operator}", "metrics=[]"]
    with pytest.raises(JobError, match=message):
        load_job("quickstart", [*sets, "images=restored"])


def test_measurements_may_fit_where_the_tile_does_not():
    sets = ["data={kind: measurements, shards: a.tar, size: 250}", "metrics=[]", "images=restored"]
    for operator in ("{name: bicubic, factor: 4}", "{name: compressed_sensing}"):
        load_job("quickstart", [*sets, f"degradation.operator={operator}"])


@pytest.fixture
def composed(tmp_path, monkeypatch) -> list[str]:
    """Overrides with a mask, by a relative path, of an operator among others."""
    monkeypatch.chdir(tmp_path)
    Path("m.png").write_bytes(encode(np.tri(256, dtype=np.uint8) * 255))
    parts = "[{name: denoise}, {name: inpaint, mask: m.png, known: white}]"
    return [f"degradation.operator={{name: compose, operators: {parts}}}"]


def test_files_of_composed_operators_are_absolute(composed, tmp_path):
    operator = load_job("quickstart", composed).degradation.operator
    assert operator["operators"][1]["mask"] == str(tmp_path / "m.png")


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "bmp", "npy", "npz"])
def test_masks_of_every_kind_are_found_from_anywhere(suffix):
    values = {"degradation": {"operator": {"name": "inpaint", "mask": f"m.{suffix}"}}}
    assert [field for field, _, _ in files_of(values)] == ["degradation.operator.mask"]


def test_kernels_of_files_are_found_from_anywhere_and_those_of_numbers_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("k.npy", np.ones((3, 3)))
    job = load_job("quickstart", ["degradation.operator={name: blur, kernel: k.npy}"])
    assert job.degradation.operator["kernel"] == str(tmp_path / "k.npy")
    numbers = {"degradation": {"operator": {"name": "blur", "kernel": [[1, 2]]}}}
    assert list(files_of(numbers)) == []
    places = ["output=/run", "data.shards=/a.tar", "degradation.operator={name: blur, kernel: k.npy}"]
    with pytest.raises(JobError, match=r"degradation\.operator\.kernel: 'k\.npy' must"):
        cluster.load_for_cluster("quickstart", places)


def test_submit_finds_files_of_composed_operators_and_reads_the_job_once(composed, monkeypatch):
    places = ["output=/run", "data.shards=/a.tar"]
    with pytest.raises(JobError, match=r"degradation\.operator\.operators\.1\.mask: 'm\.png' must"):
        cluster.load_for_cluster("quickstart", [*composed, *places])
    monkeypatch.setattr("kintsugi.jobs.files.parse_setting", counted := Mock(wraps=parse_setting))
    absolute = composed[0].replace("m.png", str(Path("m.png").absolute()))
    assert cluster.load_for_cluster("quickstart", [absolute, *places]).output == "/run"
    assert counted.call_count == 3, "each override once"


def test_packing_for_a_wrong_url_is_an_error_in_words(job_file):
    with pytest.raises(JobError, match="--pack: a URL has two slashes"):
        kintsugi("submit", job_file, "--pack", "s3:/x/y")


@pytest.mark.slow
def test_run_status_report_and_resume(job_file, make_job):
    folder = make_job().output
    first = kintsugi("run", job_file, "--address", "none")
    assert first.exit_code == 0, first.output
    assert "12 restored, 0 failed" in first.output
    assert "12 of 12 samples, 6 of 6 units, 0 failed · complete" in kintsugi("status", folder).output
    again = kintsugi("run", job_file, "--address", "none")
    assert "12 samples done before" in again.output
    assert again.exit_code == 0
    assert kintsugi("report", folder).exit_code == 0


def test_exit_code_2_when_samples_failed(make_job, tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("a.png", encode(picture(0))), ("b.png", b"no")])
    write_job(tmp_path / "job.yaml", make_job(data={"shards": str(shard), "size": SIZE}))
    assert kintsugi("run", tmp_path / "job.yaml", "--address", "none").exit_code == 2


def test_exit_code_130_and_resumption_after_ctrl_c(job_file, make_job, monkeypatch):
    from kintsugi.pipeline.execution.worker import Worker

    original = Worker.process

    def interrupted(self, task):
        if task.unit.first >= 4:
            raise KeyboardInterrupt
        return original(self, task)

    monkeypatch.setattr(Worker, "process", interrupted)
    result = kintsugi("run", job_file, "--address", "none")
    assert result.exit_code == 130
    assert "4 of 12 samples are committed" in result.output
    monkeypatch.undo()
    assert kintsugi("run", job_file, "--address", "none").exit_code == 0


@pytest.mark.slow
def test_errors_go_to_stderr_with_exit_code_1(tmp_path):
    command = [sys.executable, "-m", "kintsugi", "run", str(tmp_path / "nothing.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "no job file" in result.stderr
    assert "Traceback" not in result.stderr
    code, output = told("run", "quickstart", "--limit", "0")
    assert (code, "limit" in output) == (1, True), "2 means failed samples"


def test_limit(job_file):
    assert "5 restored" in kintsugi("run", job_file, "--address", "none", "--limit", "5").output


def test_plan_says_what_would_be_done_and_leaves_nothing(job_file, make_job):
    result = kintsugi("plan", job_file)
    for text in ("shards", "12", "6 of at most 3 samples", "s per image"):
        assert text in result.output
    assert not Path(make_job().output).exists()


def test_plan_says_what_the_output_holds(job_file, make_job):
    assert "to be made" in kintsugi("plan", job_file, "--no-timing").output
    kintsugi("run", job_file, "--address", "none", "--limit", "5")
    same = kintsugi("plan", job_file, "--no-timing", "--limit", "5")
    assert (same.exit_code, "holds this run: 5 of 5 samples are done" in same.output) == (0, True)
    before = sorted(path.stat().st_mtime_ns for path in Path(make_job().output).rglob("*"))
    with pytest.raises(JobError, match=r"(?s)holds a run of another job.*data\.limit: 5 → None"):
        kintsugi("plan", job_file, "--no-timing")
    assert before == sorted(path.stat().st_mtime_ns for path in Path(make_job().output).rglob("*"))


def test_the_version_and_the_short_option_for_help():
    assert re.fullmatch(r"kintsugi \d+\.\d+\.\d+\n", kintsugi("--version").output)
    assert kintsugi("-h").output == kintsugi("--help").output
    assert kintsugi("run", "-h").output == kintsugi("run", "--help").output


@pytest.mark.parametrize(
    ("words", "expected"),
    [("run quick", "quickstart"), ("sweep ffhq-p", "ffhq-pool4"), ("list sa", "samplers")],
)
def test_a_shell_can_complete_jobs_and_topics(words, expected):
    environment = {
        "_KINTSUGI_COMPLETE": "complete_bash",
        "COMP_WORDS": f"kintsugi {words}",
        "COMP_CWORD": "2",
    }
    result = runner.invoke(app, [], prog_name="kintsugi", env=environment)
    assert result.output.split() == [expected]


@pytest.mark.parametrize(("wrong", "meant"), [("sampler", "samplers"), ("feilds", "fields")])
def test_a_topic_that_is_not_there_is_answered_with_the_nearest(wrong, meant):
    with pytest.raises(JobError, match=rf"no '{wrong}'; did you mean {meant}\? choose from fields, jobs"):
        kintsugi("list", wrong)


def test_the_fields_that_are_listed_are_those_that_can_be_set():
    listed = {field.name: field for field in fields()}
    job = load_job(
        "quickstart", [f"{name}={field.default}" for name, field in listed.items() if settable(field)]
    )
    assert flatten(job.model_dump(mode="json")).keys() <= {*listed, *(f"{n}.name" for n in listed)} | {
        "sampler.init",
        "sampler.start",
        "sampler.steps",
        "sampler.w",
    }
    assert all(field.about for field in listed.values()), "every field is described"
    assert (listed["compute.batch_size"].type, listed["compute.batch_size"].default) == (
        "whole number > 0 or auto",
        "16",
    )
    assert listed["data.size"].type == "whole number > 0 ≤ 4096"


def settable(field: Described) -> bool:
    return field.default not in ("must be given", "by data.kind") and not field.name.startswith(
        "data.subset."
    )


@pytest.mark.parametrize("kind", ["fields", "samplers", "operators", "draws", "priors", "metrics", "jobs"])
def test_list(kind):
    from kintsugi import operators, priors, samplers
    from kintsugi.operators import draws
    from kintsugi.pipeline.metrics import REGISTRY
    from kintsugi.registry import parameters

    expected = {
        "fields": [field.name for field in fields()],
        "samplers": samplers.REGISTRY,
        "operators": operators.REGISTRY,
        "draws": draws.REGISTRY,
        "priors": priors.REGISTRY,
        "metrics": REGISTRY,
        "jobs": ready_jobs(),
    }[kind]
    output = kintsugi("list", kind).output
    assert all(name in output for name in expected)
    narrow = runner.invoke(app, ["list", kind], env={"COLUMNS": "80"}).output
    assert all(name in narrow for name in expected), "names can be copied whole at eighty columns"
    if kind in ("samplers", "operators"):
        for factory in expected.values():
            assert all(p.name in output for p in parameters(factory))
            assert re.search(r"Source|Setting|\d{4}\.\d{4,5}|[12]\d{3}", factory.__doc__), factory


@pytest.mark.parametrize("command", typer.main.get_command(app).commands)
def test_every_command_has_help_with_an_example(command):
    output = kintsugi(command, "--help").output
    assert re.search(rf"Examples?:.*kintsugi {command} ", output, re.DOTALL)


def test_quickstart_photographs_are_there(tmp_path):
    from kintsugi.pipeline.data import photographs as builtin
    from kintsugi.pipeline.data.shards import index

    shard = builtin.scikit_image_shard(tmp_path, 64)
    content = shard.read_bytes()
    assert len(list(index(shard))) == len(builtin.PHOTOGRAPHS)
    shard.unlink()
    assert builtin.scikit_image_shard(tmp_path, 64).read_bytes() == content


def test_cluster_yaml_fits_rays_schema():
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"max_worker": 3}, schema)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("run", "job.yaml", "--set", "data.shards=*"), "data.shards: the path"),
        (("run", "job.yaml", "--set", "data.shards=\udcff.tar"), "data.shards: "),
        (("run", "\udcff"), "job file: the path"),
        (("plan", "job.yaml", "--set", "output=\udcff"), "output: "),
        (("plan", "job.yaml", "--set", "reference=\udcff"), "reference: the path"),
        (("status", "\udcff"), "RUN: the path"),
        (("query", "\udcff", "select 1"), "RUN: the path"),
        (("compare", "a", "\udcff"), "RUN: the path"),
        (("compare", "a", "b", "--out", "\udcff"), "--out: the path"),
        (("score", "\udcff", "images"), "RESTORED: "),
        (("score", "images", "images", "--out", "\udcff"), "--out: the path"),
        (("score", "images", "images"), "TRUTH: .*member name"),
        (("sweep", "job.yaml", "--vary", "sampler.w=1,2", "--out", "\udcff"), "--out: the path"),
        (("stats", "\udcff", "x.npz"), "SOURCE: "),
    ],
)
def test_a_path_that_is_not_utf8_is_an_error_in_words(arguments, what, job_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "s\udcff.tar", [("a.png", b"")])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "\udcff.png").write_bytes(encode(picture(0)))
    with pytest.raises(JobError, match=f"(?s){what}.*(not UTF-8|as a unicode string)"):
        kintsugi(*arguments)


def test_a_terminal_with_few_characters_is_written_to(finished, monkeypatch):
    """It gets escapes for what it does not know; CSV is UTF-8 always."""

    def said(*arguments: str | Path) -> bytes:
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "argv", ["kintsugi", *map(str, arguments)])
        with pytest.raises(SystemExit):
            cli.main()
        terminal.flush()
        return terminal.buffer.getvalue()

    assert rb" 0 failed \xb7 " in said("status", finished.folder)
    assert "größe".encode() in said("query", finished.folder, "select 'größe' as x from rows", "--csv")


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_that_is_too_long_for_ray_is_named(variable, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, "/tmp/" + "n" * 80)
    with pytest.raises(JobError, match=f"{variable}=/tmp/nn.*set RAY_TMPDIR to a short folder"):
        refuse_long_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    refuse_long_folder()


def test_what_may_be_of_several_types_is_named_by_its_field_alone():
    with pytest.raises(JobError, match=r"compute\.batch_size: Input should be greater than 0") as refused:
        load_job("quickstart", ["compute.batch_size=0"])
    assert "constrained" not in str(refused.value)
