"""Checkpoints are read once per machine, and fetched once from an S3 server; with processes of their own."""

import hashlib
import logging
import os
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.processes import at_once, read_for

from kintsugi import priors
from kintsugi.cache import remembered, sha256
from kintsugi.checkpoint import CheckpointError, check_intact
from kintsugi.errors import JobError
from kintsugi.pipeline.execution import checkpoints as weights
from kintsugi.pipeline.execution.checkpoints import on_this_node
from kintsugi.pipeline.storage.files import walk
from kintsugi.pipeline.storage.location import BLOCK, at
from kintsugi.pipeline.storage.publish import publish

LARGE = 50_000_000


def content(size, seed=0):
    return np.random.default_rng(seed).bytes(size)


def replace(path):
    path.with_suffix(".new").write_bytes(content(100_000, seed=1))
    path.with_suffix(".new").rename(path)


CHANGES = {
    "content": lambda path: path.write_bytes(content(100_000, seed=1)),
    "size": lambda path: os.truncate(path, 99_999),
    "time": os.utime,
    "replaced": replace,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Files that have not changed for a while: only those are remembered."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "large").write_bytes(content(LARGE))
    changing = (f"{name}-{keep_time}" for name in CHANGES for keep_time in (False, True))
    for name in ("alone", "torn", "changing", *changing):
        (folder / name).write_bytes(content(100_000))
    for name, damage in (("intact", b"123"), ("damaged", b"321")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("weights", b"123" * 100_000)
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"123" * 9, damage * 9, 1))
    time.sleep(2.1)
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KINTSUGI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
def test_of_processes_that_start_at_once_one_reads_the_file(originals, own_cache):
    found = at_once(4, read_for, sha256, originals / "large")
    assert {digest for digest, _ in found} == {hashlib.sha256((originals / "large").read_bytes()).hexdigest()}
    *others, reader = sorted(read for _, read in found)
    assert reader >= LARGE
    assert max(others) < 10_000


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("keep_time", [False, True])
def test_a_changed_file_is_read_again(name, keep_time, originals, own_cache):
    """Even one whose time of modification was put back, as copying tools do."""
    path = originals / f"{name}-{keep_time}"
    sha256(path)
    assert read_for(sha256, path)[1] < 10_000
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    CHANGES[name](path)
    if keep_time:
        os.utime(path, ns=times)
    found, read = read_for(sha256, path)
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read >= path.stat().st_size


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, own_cache):
    """The next change could have the same time."""
    (tmp_path / "new").write_bytes(content(100_000))
    for _ in range(2):
        assert read_for(sha256, tmp_path / "new")[1] >= 100_000


def test_a_file_that_changes_while_it_is_read_is_not_remembered(originals, own_cache):
    path = originals / "changing"

    def find(file):
        os.utime(path)
        return "first"

    assert remembered(path, "word", find) == "first"
    assert remembered(path, "word", lambda file: "second") == "second"


@pytest.mark.parametrize("folder", ["file/cache", "/proc/cache", "~nobody-of-this-name/cache"])
def test_without_a_cache_folder_files_are_read(folder, originals, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KINTSUGI_CACHE", folder if folder[0] == "~" else str(tmp_path / folder))
    path = originals / "alone"
    for _ in range(2):
        assert read_for(sha256, path)[1] >= 100_000
        assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kept", [0, -20, -1])
def test_a_torn_record_is_replaced(kept, originals, own_cache):
    path = originals / "torn"
    expected = sha256(path)
    (record,) = (own_cache / "files").iterdir()
    whole = record.read_bytes()
    record.write_bytes(whole[:kept].ljust(len(whole) if kept else 0, b"\0"))
    assert sha256(path) == expected == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record.read_bytes() == whole
    assert read_for(sha256, path)[1] < 10_000


def test_only_what_is_intact_is_remembered_to_be(originals, own_cache):
    assert read_for(check_intact, originals / "intact")[1] >= 300_000
    assert read_for(check_intact, originals / "intact")[1] < 10_000
    for _ in range(2):
        with pytest.raises(CheckpointError, match="wrong checksum of 'weights'"):
            check_intact(originals / "damaged")


# Object stores.


def put(url, data):
    with publish(at(url)) as temporary:
        temporary.write_bytes(data)
    return url


@pytest.fixture
def gets(s3, caplog):
    """The paths of the objects whose content, or a block of it, was asked for."""
    caplog.set_level(logging.INFO, logger="werkzeug")

    def found():
        lines = (record.getMessage() for record in caplog.records if record.name == "werkzeug")
        matches = (re.search(r'"GET /([^? ]+/[^? ]+)[? ]', re.sub(r"\x1b\[\d+m", "", line)) for line in lines)
        return [match[1] for match in matches if match]

    return found


def test_processes_of_a_machine_fetch_an_object_once(s3, gets, own_cache):
    data = content(2 * BLOCK + 1)
    url = put(f"{s3}/once.pt", data)
    found = at_once(2, on_this_node, {"name": "adm", "path": url, "head_channels": 64})
    assert found[0] == found[1]
    path = Path(found[0].pop("path"))
    assert found[0] == {"name": "adm", "head_channels": 64}
    assert path.name == "once.pt"
    assert path.is_relative_to(own_cache)
    assert path.read_bytes() == data
    assert gets() == ["kintsugi-test/once.pt"] * 3  # its three blocks


def test_a_checkpoint_in_a_store_is_the_same_prior(s3, own_cache, tmp_path):
    from kit.networks import make_adm

    file, head_channels, x, t, _, expected = make_adm(tmp_path, "imagenet-like")
    url = put(f"{s3}/models/adm.pt", file.read_bytes())
    prior = priors.load(on_this_node({"name": "adm", "path": url, "head_channels": head_channels}))
    assert prior.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    torch.testing.assert_close(prior(x, t), expected, rtol=1e-4, atol=1e-4)


def test_a_pipeline_in_a_store_is_the_same_prior(s3, gets, own_cache, tmp_path):
    import diffusers
    from kit.pipelines import save

    folder = save(tmp_path / "pipeline", diffusers.DDPMScheduler())
    for name in walk(folder):
        put(f"{s3}/models/pipeline/{name}", (folder / name).read_bytes())
    spec = {"name": "diffusers", "path": f"{s3}/models/pipeline/"}
    one, two = at_once(2, on_this_node, spec)
    assert one == two
    assert sorted(gets()) == [f"kintsugi-test/models/pipeline/{name}" for name in walk(folder)]
    local = Path(one["path"])
    assert {n: (local / n).read_bytes() for n in walk(local)} == {
        n: (folder / n).read_bytes() for n in walk(folder)
    }
    prior = priors.load(one)
    assert prior.sha256 == priors.load(spec | {"path": str(folder)}).sha256


def test_a_changed_object_takes_the_place_of_the_old_one(s3, own_cache):
    """Of the same size and, mostly, in the same second; what a killed process left goes too."""
    for version in (b"first", b"other"):
        path = Path(on_this_node({"path": put(f"{s3}/changed.pt", version)})["path"])
        assert path.read_bytes() == version
        (path.parents[1] / "tmp-left").mkdir()
    path = Path(on_this_node({"path": put(f"{s3}/changed.pt", b"third")})["path"])
    assert walk(path.parents[1]) == sorted([f"{path.parent.name}/changed.pt", "lock"])
    assert not (path.parents[1] / "tmp-left").exists()


def test_an_object_that_changes_while_it_is_copied_is_refused(s3, own_cache, monkeypatch):
    url = put(f"{s3}/moving.pt", b"first")
    download = weights.download

    def late(source, target):
        download(source, target)
        put(url, b"other")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "download", late)
        with pytest.raises(JobError, match=r"prior.path: .*moving.pt.* changed while it was copied"):
            on_this_node({"path": url})
    assert Path(on_this_node({"path": url})["path"]).read_bytes() == b"other"


def test_local_weights_are_left_alone():
    for spec in ({"name": "natural"}, {"path": "/a/file.pt"}, {"path": "google/ddpm-ema-celebahq-256"}):
        assert on_this_node(spec) is spec


def test_what_cannot_be_copied_is_named(s3, own_cache, monkeypatch):
    with pytest.raises(JobError, match=r"prior.path: 's3://kintsugi-test/no.pt' .*there is no such object"):
        on_this_node({"path": f"{s3}/no.pt"})
    with pytest.raises(JobError, match=r"prior.path: 'ftp://a/b.pt' .*no storage ftp://"):
        on_this_node({"path": "ftp://a/b.pt"})
    with pytest.raises(OSError, match=r"takes 1000000000.00 GB, and .* GB are free in .*; KINTSUGI_CACHE"):
        weights.check_space(own_cache.parent, 10**18)
    url = put(f"{s3}/some.pt", b"weights")
    monkeypatch.setenv("KINTSUGI_CACHE", "/proc/cache")
    with pytest.raises(JobError, match=r"prior.path: .*some.pt.*'/proc/cache'"):
        on_this_node({"path": url})


@pytest.mark.parametrize("key", ["escaping/../../evil.pt", "rooted//etc/evil.pt"])
def test_keys_that_would_leave_the_folder_are_refused(key, s3, own_cache):
    import boto3

    boto3.client("s3").put_object(Bucket="kintsugi-test", Key=key, Body=b"")
    with pytest.raises(JobError, match=r"prior.path: .*names no file that a folder can hold"):
        on_this_node({"path": f"{s3}/{key.partition('/')[0]}"})
    assert not own_cache.exists()
