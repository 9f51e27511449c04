"""Clusters: the files that start them, and `kintsugi submit`."""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import kubernetes_validate
import numpy as np
import pytest
import yaml
from kit.jobs import kintsugi, write_job
from kit.shards import SIZE, encode, picture, write_tar
from kit.station import local_ray
from packaging.requirements import Requirement
from rich.console import Console

from kintsugi.errors import JobError
from kintsugi.jobs import cluster, send
from kintsugi.pipeline.job import Job

ROOT = Path(__file__).parents[2]
LAUNCHER_FILES = ("cluster.yaml", "deploy/on-premise.yaml")
OWN_RAY = """
import json, os, sys
import psutil, ray
from kintsugi.pipeline.execution.cluster import connected

with connected("local"):
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    ports = [
        (connection.laddr.ip.replace("::", "0.0.0.0"), connection.laddr.port)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
    print(json.dumps([address, ports, token]), flush=True)
    sys.stdin.read()
"""
VISITOR = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError

try:
    print(len(GcsClient(sys.argv[1]).get_all_node_info()), "node")
except AuthenticationError:
    print("refused")
"""
INTERRUPTIBLE = """
import signal
from kintsugi.jobs.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored below a shell's background job
main()
"""
ISOLATED = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--net", "--mount-proc"]


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_launcher_files_are_what_ray_takes(name):
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(load(name), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(load(name) | {"max_worker": 3}, schema)
    prepared = prepare_config(load(name))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    workers = [t for t in prepared["available_node_types"].values() if t.get("min_workers")]
    assert workers
    assert all(t["min_workers"] <= t["max_workers"] <= prepared["max_workers"] for t in workers)


class OwnRay(NamedTuple):
    """The Ray that `kintsugi run` starts for a user who has no token."""

    address: str
    ports: list[tuple[str, int]]
    token: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """Of a Ray with a dashboard; its address."""
    with local_ray(dashboard=True) as context:
        yield context.dashboard_url


@pytest.fixture(scope="class")
def own_ray(tmp_path_factory, job_server) -> Iterator[OwnRay]:
    """Started after the other: the job agent of a machine's first Ray gets the port that it wants."""
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", OWN_RAY],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield OwnRay(*json.loads(process.stdout.readline()), environment)
        process.stdin.close()
    assert not (home / ".ray").exists(), "the token is written nowhere"


class TestTheRayThatAJobStarts:
    @pytest.mark.parametrize(
        ("token", "answer"), [("its own", "1 node"), ("another", "refused"), ("none", "refused")]
    )
    def test_wants_its_token(self, own_ray, token, answer):
        mode = {} if token == "none" else {"RAY_AUTH_MODE": "token"}
        sent = {"its own": own_ray.token, "another": "0" * 64, "none": ""}[token]
        said = subprocess.run(
            [sys.executable, "-c", VISITOR, own_ray.address],
            env={**own_ray.environment, **mode, "RAY_AUTH_TOKEN": sent},
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.stdout == f"{answer}\n", said.stderr[-2000:]

    def test_has_no_dashboard_and_tells_strangers_its_metrics_only(self, own_ray):
        answers = set()
        for host, port in own_ray.ports:
            for method, path in [
                ("GET", "/"),
                ("GET", "/api/version"),
                ("POST", "/api/job_agent/jobs/"),
                ("POST", "/get_or_create_runtime_env"),
            ]:
                connection = HTTPConnection(host, port, timeout=2)
                with suppress(OSError, HTTPException), closing(connection):
                    connection.request(method, path, body="{}", headers={"Content-Type": "application/json"})
                    response = connection.getresponse()
                    answers.add((response.status, response.getheader("Content-Type", "").split(";")[0]))
        allowed = {status for status, _ in answers if status < 400}
        assert {kind for status, kind in answers if status in allowed} <= {"text/plain"}, answers
        assert 401 in {status for status, _ in answers}, answers


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_launched_clusters_want_a_token_and_keep_the_job_server_to_themselves(name):
    config = load(name)
    user = config["auth"]["ssh_user"]
    assert config["file_mounts"][f"/home/{user}/.ray/auth_token"] == "~/.ray/auth_token"
    for role in ("head", "worker"):
        *_, start = config[f"{role}_start_ray_commands"]
        assert "; RAY_AUTH_MODE=token ray start " in start
    assert "--dashboard-host=127.0.0.1 " in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", [*LAUNCHER_FILES, "deploy/Dockerfile"])
def test_nodes_install_what_pyproject_names(name):
    """The command that reads pyproject.toml is run, and the versions that are fixed must fit it."""
    text = (ROOT / name).read_text()
    (command,) = [line for line in text.splitlines() if "import tomllib" in line]
    code = command.split('python -c "')[1].split('" >')[0]
    mounted = "/tmp/pyproject.toml" if name == "deploy/Dockerfile" else "kintsugi/pyproject.toml"
    code = code.replace(f"'{mounted}'", f"'{ROOT / 'pyproject.toml'}'")
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert printed.splitlines() == wanted
    fixed = [Requirement(word.strip("'")) for word in text.split() if word.startswith("'") and "==" in word]
    assert {requirement.name for requirement in fixed} == {"ray", "torch"}
    for requirement in fixed:
        (version,) = [specifier.version for specifier in requirement.specifier]
        (range_,) = [r.specifier for r in map(Requirement, wanted) if r.name == requirement.name]
        assert version in range_


# Names of fields in KubeRay's definition of ray.io/v1, versions 1.6 and 1.7.
RAY_JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
    *("preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes"),
    *("submissionMode", "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
}
RAY_CLUSTER = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions"),
    *("headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy"),
    "workerGroupSpecs",
}
HEAD_GROUP = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
WORKER_GROUP = {
    *("groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams"),
    *("replicas", "scaleStrategy", "suspend", "template"),
}


def test_the_ray_job_has_kuberays_fields_and_real_pods():
    manifest = load("deploy/rayjob.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    cluster = spec["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for fields, known in [
        (spec, RAY_JOB),
        (cluster, RAY_CLUSTER),
        (head, HEAD_GROUP),
        *((w, WORKER_GROUP) for w in workers),
    ]:
        assert fields.keys() <= known
    assert spec["shutdownAfterJobFinishes"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "kintsugi-token"}
    for group, name, gpu in [(head, "head", False), *((w, w["groupName"], True) for w in workers)]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}} | group["template"]
        for version in ("1.30", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(pod, version, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**pod, "spec": {**pod["spec"], "volume": []}}, "1.30", strict=True)
        (container,) = pod["spec"]["containers"]
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        for resources in container["resources"].values():
            assert ("nvidia.com/gpu" in resources) == gpu


def test_the_ray_job_runs_what_was_packed(make_job, tmp_path, job_server):
    """Its entrypoint and runtime environment go to a real job server, as KubeRay sends them."""
    from ray.job_submission import JobSubmissionClient

    job = make_job(compute={"batch_size": 4, "unit_size": 4, "cpus_per_actor": 1, "actors": 1})
    write_job(tmp_path / "job.yaml", job)
    kintsugi("submit", tmp_path / "job.yaml", "--pack", tmp_path / "packed.zip")
    with zipfile.ZipFile(tmp_path / "packed.zip") as archive:
        assert Job.model_validate(yaml.safe_load(archive.read("kintsugi/job.yaml"))) == job
        folders = {name.split("/")[1] for name in archive.namelist()} - {""}
        assert folders == {"kintsugi", "job.yaml"}
        assert not [name for name in archive.namelist() if "__pycache__" in name or "/." in name]
    spec = load("deploy/rayjob.yaml")["spec"]
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    assert environment["working_dir"].startswith("file:///shared/")
    environment["working_dir"] = f"file://{tmp_path}/packed.zip"
    client = JobSubmissionClient(f"http://{job_server}")
    submission = client.submit_job(entrypoint=spec["entrypoint"], runtime_env=environment)
    assert cluster.follow(client, submission, "", Console()) == 0
    assert json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())["samples"]["ok"] == 12


def test_submit_outlives_ctrl_c_and_brings_the_report_and_the_exit_code(make_job, tmp_path, job_server):
    shard = write_tar(tmp_path / "s.tar", [("a.png", encode(picture(0))), ("b.png", b"no image")])
    job = make_job(data={"shards": str(shard), "size": SIZE})
    write_job(tmp_path / "job.yaml", job)
    place = ["--address", f"http://{job_server}"]
    command = [sys.executable, "-c", INTERRUPTIBLE, "submit", str(tmp_path / "job.yaml"), *place]
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            said.append(line)
            if "Running entrypoint" in line:
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    _, submission = said[0].split()
    assert f"kintsugi submit --stop {submission} {' '.join(place)}" in said[-1]
    result = kintsugi("submit", "--follow", submission, *place, "--fetch", tmp_path / "fetched")
    assert result.exit_code == 2, result.output
    assert "1 restored, 1 failed" in result.output
    for name in send.FILES:
        fetched, original = tmp_path / "fetched" / name, tmp_path / "run" / "report" / name
        assert fetched.read_bytes() == original.read_bytes()


def test_a_report_of_many_megabytes_comes_through_a_log_unless_it_is_damaged(tmp_path, capsys):
    contents = {name: os.urandom(3 << 20) for name in send.FILES[1:]}
    (tmp_path / "report").mkdir()
    for name, content in contents.items():
        (tmp_path / "report" / name).write_bytes(content)
    send.send(str(tmp_path))
    log = f"a warning\n{capsys.readouterr().out}another\n"
    assert send.receive(log) == contents
    with pytest.raises(ValueError, match="did not arrive as it was sent"):
        send.receive(log.replace("report.md", "../report.md"))
    with pytest.raises(ValueError, match=r"metrics\.json did not arrive"):
        send.receive(log.replace("metrics.json ", "metrics.json 0"))


@pytest.mark.parametrize(
    ("field", "sets"),
    [
        ("output: 'runs/imagenet-inpaint-box'", ["data.shards=/a.tar"]),
        ("data.shards: 'b.tar'", ["output=s3://bucket/run", "data.shards=[/a.tar, b.tar]"]),
        ("prior.path: 'x.pt'", ["output=/run", "data.shards=/a.tar", "prior={name: adm, path: x.pt}"]),
        (
            "degradation.operator.mask: 'm.png'",
            [
                "output=/run",
                "data.shards=/a.tar",
                "degradation.operator={name: inpaint, mask: m.png, known: white}",
            ],
        ),
    ],
)
def test_submit_refuses_paths_that_the_cluster_cannot_find(field, sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.png").write_bytes(encode(np.uint8(255) * np.eye(256, dtype=np.uint8)))
    with pytest.raises(JobError, match=f"{field} must be absolute"):
        cluster.load_for_cluster("imagenet-inpaint-box", sets)


def test_submit_takes_absolute_paths_urls_and_hub_ids():
    sets = ["output=s3://bucket/run", "data.shards=gs://bucket/{0..9}.tar"]
    hub = "prior={name: diffusers, path: google/ddpm-ema-celebahq-256}"
    assert (
        cluster.load_for_cluster("quickstart", [*sets, hub]).prior["path"] == "google/ddpm-ema-celebahq-256"
    )
    checkpoint = "prior={name: adm, path: /shared/x.pt}"
    assert cluster.load_for_cluster("quickstart", [*sets, checkpoint]).prior["path"] == "/shared/x.pt"


def test_submit_refuses_more_code_than_ray_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "SIZE_LIMIT", 1 << 20)
    with pytest.raises(JobError, match=r"the largest file is kintsugi/priors/natural/natural\.safetensors"):
        cluster.gather(None, tmp_path)


@pytest.mark.slow
def test_submit_says_when_the_cluster_is_not_up(make_job, tmp_path):
    write_job(tmp_path / "job.yaml", make_job())
    with pytest.raises(JobError, match="no way to the head"):
        kintsugi("submit", tmp_path / "job.yaml", "--cluster", tmp_path / "nothing.yaml")


def test_submit_needs_a_job_and_a_place():
    with pytest.raises(JobError, match=r"either --cluster .* or --address"):
        kintsugi("submit", "--follow", "raysubmit_1")
    with pytest.raises(JobError, match="name a job, or one that was sent before"):
        kintsugi("submit", "--address", "http://127.0.0.1:1")


@pytest.fixture
def slurm(tmp_path) -> Path:
    """A folder from which slurm.sh can be run: Slurm's commands, on one node that is this machine."""
    commands = {
        "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
        "scontrol": f'echo "$@" > {tmp_path}/requeued',
        "hostname": "echo 127.0.0.1",
    }
    for name, body in commands.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    activate = tmp_path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"PATH={tmp_path}/bin:{Path(sys.executable).parent}:$PATH\n")
    return tmp_path


def slurm_environment(**variables: str) -> dict[str, str]:
    slurm = {"SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **slurm, **variables}


def isolated() -> bool:
    """Whether this machine lets us have a network and processes apart, beside another Ray."""
    return subprocess.run([*ISOLATED, "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0


@pytest.mark.ray
@pytest.mark.skipif(not isolated(), reason="needs unshare and ip: two Rays on one machine disturb each other")
def test_the_slurm_script_runs_a_job_on_a_ray_of_its_own(make_job, slurm):
    shard = write_tar(slurm / "s.tar", [("a.png", encode(picture(0))), ("b.png", b"no image")])
    job = make_job(data={"shards": str(shard), "size": SIZE})
    write_job(slurm / "job.yaml", job)
    command = f"ip link set lo up; bash {ROOT}/deploy/slurm.sh job.yaml --limit 2; exit $?"
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # paths of sockets have at most 107 characters
        result = subprocess.run(
            [*ISOLATED, "bash", "-c", command],
            cwd=slurm,
            env=slurm_environment(RAY_TMPDIR=short),
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 2, result.stdout + result.stderr
    assert "1 restored, 1 failed" in result.stdout
    assert not (slurm / "requeued").exists()


@pytest.mark.parametrize(
    ("number", "after_signal", "requeued"),
    [(signal.SIGUSR1, 130, True), (signal.SIGUSR1, 0, False), (signal.SIGTERM, 130, False)],
)
def test_the_slurm_script_signals_the_driver_alone_and_queues_again_what_time_cut_short(
    number, after_signal, requeued, slurm
):
    """With commands in the place of Ray and the driver, which says when it is there."""
    commands = {
        "ray": 'trap "touch ray-was-signalled" TERM; while [ "$1" != -- ]; do shift; done; shift; "$@"',
        "python": f'[ "$1" = -c ] && exec {sys.executable} "$@"\n'
        f'trap "exit {after_signal}" TERM; echo driver; while :; do sleep 0.05; done',
    }
    for name, body in commands.items():
        (slurm / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (slurm / "bin" / name).chmod(0o755)
    with subprocess.Popen(
        ["bash", ROOT / "deploy" / "slurm.sh", "job.yaml"],
        cwd=slurm,
        env=slurm_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as script:
        assert script.stdout.readline() == "driver\n"
        script.send_signal(number)
    assert script.returncode == after_signal
    assert not (slurm / "ray-was-signalled").exists()
    assert (slurm / "requeued").exists() == requeued
    if requeued:
        assert (slurm / "requeued").read_text() == "requeue 7\n"


def test_the_slurm_scripts_options_come_before_its_commands():
    lines = (ROOT / "deploy" / "slurm.sh").read_text().splitlines()
    head = list(itertools.takewhile(lambda line: line.startswith("#") or not line, lines))
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    assert len([line for line in head if line.startswith("#SBATCH")]) == len(options)
    assert {"--requeue", "--signal=B:USR1@600", "--ntasks-per-node=1", "--exclusive"} <= set(options)
