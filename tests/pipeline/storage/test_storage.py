"""Storage: files and objects behave alike; a real S3 server on loopback stands for the object stores."""

import contextlib
import errno
import os
import re
import stat
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
from kit.jobs import execute, kintsugi, rows, write_job
from kit.proxy import FAULTS, Proxy
from kit.shards import SIZE, encode, picture, write_tar

import kintsugi as product
from kintsugi.errors import JobError
from kintsugi.pipeline.data.shards import index
from kintsugi.pipeline.execution import ledger
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.verify import verify
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.files import file_sizes, lexists, lies_in, matches, storage_failed, walk
from kintsugi.pipeline.storage.location import Location, Remote, at, filesystem
from kintsugi.pipeline.storage.publish import clear_temporaries, publish, temporary_name, this_host


def put(location: Location, content: bytes) -> Location:
    location.parent.mkdir(parents=True, exist_ok=True)
    with publish(location) as temporary:
        temporary.write_bytes(content)
    return location


def test_what_is_asked_of_a_path_can_be_asked_of_an_object(place):
    file = put(place / "sub" / "a.bin", b"hello")
    for found in (file.stat(), file.lstat()):
        assert (found.st_size, stat.S_ISREG(found.st_mode)) == (5, True)
    file.parent.mkdir(parents=True, exist_ok=True)
    assert not file.is_symlink()
    assert (lexists(file), lexists(place / "none")) == (True, False)
    with pytest.raises(FileNotFoundError):
        (place / "none").lstat()
    assert (lies_in(file, place), lies_in(place, place), lies_in(place / "sub2", place / "sub")) == (
        True,
        True,
        False,
    )


def test_only_a_file_of_a_bounded_size_is_regular(place):
    file = put(place / "a.json", b"{}")
    assert records.regular(file) == 2
    assert [records.is_regular(file, most) for most in (1, 2)] == [False, True]
    assert not records.is_regular(place / "none")
    assert not records.is_regular(place), "a folder, or a prefix"
    assert not records.is_regular(file / "below"), "a file is on the way"
    with pytest.raises(JobError, match="2 bytes, more than the 1"):
        records.regular(file, 1)


def test_a_link_is_there_and_is_not_regular(tmp_path):
    put(tmp_path / "real" / "a", b"a")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "real")
    assert lexists(tmp_path / "nowhere")
    assert not records.is_regular(tmp_path / "link")
    assert lies_in(tmp_path / "elsewhere" / "a", tmp_path / "real"), "once links are followed"


@pytest.mark.parametrize("number", [errno.EIO, None])
def test_an_error_without_a_number_is_of_the_file_where_there_are_files(number, tmp_path):
    error = OSError(number, "text") if number else OSError("Couldn't deserialize thrift")
    assert storage_failed(error, tmp_path) == bool(number)
    assert storage_failed(error, Remote("s3", "bucket/key"))
    assert not storage_failed(ValueError("text"), Remote("s3", "bucket/key"))


def test_nothing_but_storage_asks_what_kind_a_location_is():
    folders = (Path(product.__file__).parent / name for name in ("jobs", "pipeline", "priors", "operators"))
    files = [file for folder in folders for file in folder.rglob("*.py") if "storage" not in file.parts]
    asking = re.compile(r"isinstance\([\w.]+, (Path|Remote|PosixPath)\)")
    assert len(files) > 80
    assert not [str(file) for file in files if asking.search(file.read_text())]


def test_files_and_objects_have_one_interface(place):
    content = bytes(range(256)) * 40_000  # ten megabytes: several requests
    file = put(place / "sub" / "a.bin", content)
    put(place / "b.txt", b"hello")
    assert file.read_bytes() == content
    assert (place / "b.txt").read_text() == "hello"
    assert (file.exists(), file.is_file(), file.is_dir(), file.stat().st_size) == (
        True,
        True,
        False,
        len(content),
    )
    assert (place / "sub").is_dir()
    assert file_sizes(place) == {"b.txt": 5}
    assert file_sizes(place / "nowhere") == {}
    assert walk(place) == ["b.txt", "sub/a.bin"]
    assert matches(f"{place}/*.txt") == [place / "b.txt"]
    assert matches(f"{place}/s*b/[a-c].bin") == [file]
    assert (file.name, file.parent.name) == ("a.bin", "sub")
    assert at(str(file)) == file
    with file.open("rb") as opened:
        opened.seek(9_999_000)
        assert opened.read(500) == content[9_999_000:9_999_500]
        assert opened.tell() == 9_999_500
        assert len(opened.read()) == len(content) - 9_999_500
    file.unlink()
    file.unlink(missing_ok=True)
    assert not file.exists()
    for missing in (file.read_bytes, lambda: file.stat().st_size, lambda: file.open("rb").read()):
        with pytest.raises(FileNotFoundError):
            missing()


def test_what_is_published_is_there_whole_or_not_at_all(place):
    target = put(place / "a", b"old")
    with contextlib.suppress(RuntimeError), publish(target) as temporary:
        temporary.write_bytes(b"new, but")
        raise RuntimeError("interrupted")
    assert target.read_bytes() == b"old"
    with publish(target, first=True) as temporary:
        temporary.write_bytes(b"late")
    assert target.read_bytes() == b"old"
    put(target, b"new")
    assert target.read_bytes() == b"new"
    assert file_sizes(place) == {"a": 3}, "nothing else is left"


def test_names_may_be_as_long_as_file_systems_allow(tmp_path):
    target = tmp_path / ("n" * 255)
    with publish(target) as temporary:
        assert temporary_name(temporary.name)
        temporary.write_bytes(b"content")
    assert target.read_bytes() == b"content"
    assert not temporary_name(".nobody's.tmp")


def test_what_another_process_is_writing_is_not_cleared(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        ours, theirs = this_host(), "0" * 8
        names = {
            "being written": f".{ours}-{other.pid}-{'a' * 16}.tmp",
            "elsewhere, new": f".{theirs}-1-{'a' * 16}.tmp",
            "elsewhere, old": f".{theirs}-2-{'a' * 16}.tmp",
            "nobody's": ".mine.tmp",
        }
        for name in names.values():
            (tmp_path / name).touch()
        os.utime(tmp_path / names["elsewhere, old"], (0, 0))
        clear_temporaries(tmp_path)
        left = {what for what, name in names.items() if (tmp_path / name).exists()}
        assert left == {"being written", "elsewhere, new", "nobody's"}
        other.communicate()
    clear_temporaries(tmp_path)
    assert not (tmp_path / names["being written"]).exists()


def test_paths_are_from_the_root_and_without_dots(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    assert (at(".."), at("../b/./c/"), at("~")) == (tmp_path, tmp_path / "b" / "c", at("~/x/.."))


def test_what_is_there_by_its_very_name_is_no_pattern(place, s3):
    names = ["a[1].txt", "a1.txt", "deep [2]/b.txt"]
    literal, other, deep = (put(place / name, b"") for name in names)
    assert matches(f"{place}/a[1].txt") == [literal]
    assert matches(f"{place}/a[12].txt") == [other]
    assert matches(f"{place}/a[23].txt") == []
    if not isinstance(place, Remote):  # buckets have no folders that could be there
        assert matches(f"{place}/deep [2]/*.txt") == [deep]


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/x",
        "gs://secret@bucket",
        "s3://bucket/x?X-Amz-Signature=secret",
        "s3://b/x#secret",
    ],
)
def test_a_url_with_a_secret_is_refused_without_repeating_it(url, make_job):
    with pytest.raises(ValueError, match="refused") as found:
        at(url)
    assert "secret" not in str(found.value)


@pytest.mark.parametrize("url", ["ftp://host/x", "http://host/x.tar", "s3://", "s3:///x"])
def test_other_urls_are_refused(url):
    with pytest.raises(ValueError, match=r"no storage|names no bucket"):
        at(url)


def test_an_index_of_an_object_is_that_of_the_file(shards, s3):
    remote = put(at(s3) / "index" / "s.tar", shards[0].read_bytes())
    assert list(index(remote)) == list(index(shards[0]))


@pytest.fixture
def bucket_job(make_job, shards, s3):
    """A job whose shards and output are in the bucket, and the same in files."""
    folder = at(s3) / uuid.uuid4().hex
    for shard in shards:
        put(folder / "in" / shard.name, shard.read_bytes())
    data = {"shards": f"{folder}/in/set-*.tar", "size": SIZE}
    return make_job(data=data, output=f"{folder}/run")


@pytest.mark.slow
def test_the_commands_work_on_a_bucket_and_rows_are_those_of_files(bucket_job, finished, tmp_path):
    job, folder = write_job(tmp_path / "job.yaml", bucket_job), at(bucket_job.output)
    assert kintsugi("run", job, "--address", "none").exit_code == 0
    assert "12 of 12 samples" in kintsugi("status", folder).output
    assert "6 of 6 units are as committed" in kintsugi("verify", folder).output
    assert kintsugi("report", folder).exit_code == 0
    assert (folder / "report" / "report.html").exists()
    assert not [name for name in walk(folder) if name.endswith(".tmp")]
    found, expected = rows(Run.open(folder)), rows(finished)
    for row in found + expected:
        row["shard"] = at(row["shard"]).name
    assert found == expected
    (folder / "commits" / "00001-0000000.json").unlink()
    assert [unit.unit for unit in open_or_plan(bucket_job).outstanding()] == ["00001-0000000"]
    assert "9 samples done before" in kintsugi("run", job, "--address", "none").output


def test_missing_shards_and_buckets_are_named(make_job, s3):
    for shards, message in (
        (f"{s3}/nothing-*.tar", "no such file: s3://kintsugi-test/nothing"),
        (f"{s3}/nothing.tar", "no such file: s3://kintsugi-test/nothing.tar"),
    ):
        with pytest.raises(JobError, match=message):
            open_or_plan(make_job(data={"shards": shards, "size": SIZE}))
    with pytest.raises(JobError, match="output: cannot write to s3://no-such-bucket/run"):
        open_or_plan(make_job(output="s3://no-such-bucket/run"))


def test_the_job_file_of_a_run_in_a_bucket_is_read_again(bucket_job):
    from kintsugi.jobs.files import load_job

    run = open_or_plan(bucket_job)
    again = load_job(str(run.folder / "job.yaml"), [])
    assert again == run.job
    with pytest.raises(JobError, match="no job file 's3://"):
        load_job(str(run.folder / "other.yaml"), [])
    with pytest.raises(JobError, match="job file: a URL with credentials") as error:
        load_job("s3://key:secret@bucket/job.yaml", [])
    assert "secret" not in str(error.value)


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while_is_waited_for(s3, monkeypatch):
    """Requests are repeated with growing pauses: the server comes back, and they succeed."""
    from moto.server import ThreadedMotoServer

    file = put(at(s3) / "there", b"still")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)  # of the same buckets
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    filesystem.cache_clear()
    try:
        assert file.read_bytes() == b"still"
        server.stop()
        back = ThreadedMotoServer(ip_address=host, port=port, verbose=False)
        timer = threading.Timer(1.0, back.start)
        timer.start()
        assert file.read_bytes() == b"still"
        assert put(at(s3) / "new", b"written").read_bytes() == b"written"
        timer.join()
        back.stop()
    finally:
        filesystem.cache_clear()


def test_checksums_beside_the_shards_are_compared(make_job, shards, tmp_path):
    import hashlib

    copies = []
    for shard in shards:
        copy = tmp_path / "in" / shard.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(shard.read_bytes())
        copies.append(copy)
    lines = [f"{hashlib.sha256(c.read_bytes()).hexdigest()}  {c.name}\n" for c in copies]
    (tmp_path / "in" / "SHA256SUMS").write_text("".join(lines[:2]))
    job = make_job(data={"shards": f"{tmp_path}/in/*.tar", "size": SIZE})
    assert open_or_plan(job).summary.samples == 12
    content = bytearray(copies[1].read_bytes())
    content[700] ^= 1  # inside an image
    copies[1].write_bytes(content)
    fresh = make_job(data={"shards": f"{tmp_path}/in/*.tar", "size": SIZE}, output=str(tmp_path / "fresh"))
    with pytest.raises(JobError, match=r"set-0001\.tar: its SHA-256 is \w+, SHA256SUMS says"):
        open_or_plan(fresh)
    assert not (tmp_path / "fresh" / "plan.parquet").exists()
    ignoring = fresh.model_copy(update={"data": fresh.data.model_copy(update={"checksums": "ignore"})})
    assert open_or_plan(ignoring).summary.samples == 12
    (tmp_path / "in" / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(JobError, match="SHA256SUMS, line 1: expected"):
        open_or_plan(make_job(data=fresh.data.model_dump(), output=str(tmp_path / "other")))


def test_remote_shards_beyond_the_limit_do_not_count(make_job, shards, s3, monkeypatch):
    """A few are asked for ahead; of these no more than the limit is read, and nothing is made of them."""
    folder = at(s3) / uuid.uuid4().hex
    for number in range(12):
        put(folder / f"{number:02d}.tar", shards[number % 3].read_bytes() if number < 1 else b"no tar")
    opened: dict[str, int] = {}
    original = Remote.open

    def counted(self, mode="rb"):
        opened[self.name] = opened.get(self.name, 0) + 1
        return original(self, mode)

    monkeypatch.setattr(Remote, "open", counted)
    job = make_job(data={"shards": f"{folder}/*.tar", "size": SIZE, "limit": 2})
    summary = open_or_plan(job).summary
    assert (summary.samples, summary.damaged) == (2, {})
    assert len(opened) <= 9


def test_images_in_a_folder_are_a_shard(make_job, tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for i, name in enumerate(["b.png", "c.v1.png", "deep/a.png"]):
        (folder / name).write_bytes(encode(picture(i)))
    (folder / "notes.txt").write_text("ignored")
    (folder / "._b.png").write_text("macOS writes such files")
    (folder / "deep" / ".hidden.png").write_text("ignored, too")
    members = [(f"{key}.png", encode(picture(i))) for i, key in enumerate(["b", "c_v1", "deep/a"])]
    tar = write_tar(tmp_path / "s.tar", members)
    runs = [
        execute(make_job(data={"shards": str(shard), "size": SIZE}, output=str(tmp_path / name)))
        for name, shard in (("of-folder", folder), ("of-tar", tar))
    ]
    ours, expected = (rows(run) for run in runs)
    for one, other in zip(ours, expected, strict=True):
        assert {k: v for k, v in one.items() if k not in ("shard", "file")} == {
            k: v for k, v in other.items() if k not in ("shard", "file")
        }
    assert [row["file"] for row in ours] == ["b.png", "c.v1.png", "deep/a.png"]
    (folder / "d.png").write_bytes(encode(picture(9)))
    with pytest.raises(JobError, match="changed since the plan"):
        open_or_plan(make_job(data={"shards": str(folder), "size": SIZE}, output=str(tmp_path / "of-folder")))


@pytest.mark.parametrize(("share", "kinds"), [(0.15, FAULTS), (1.0, ("404",))])
@pytest.mark.slow
def test_a_job_through_a_bad_network_gives_the_same_bytes(bucket_job, monkeypatch, share, kinds):
    """503, resets, cut, late and lost replies, 404 once: the same command goes on until it is done.

    That each object is denied once ends no command.
    """
    data = bucket_job.data.model_copy(update={"limit": 6})
    calm = execute(bucket_job.model_copy(update={"data": data})).folder
    proxy = Proxy(os.environ["AWS_ENDPOINT_URL"], 1, share, kinds)
    for number in range(9):
        if set(proxy.happened) == set(kinds):
            break
        # Which request has which fault depends on threads: runs follow until all have happened.
        stormy = bucket_job.model_copy(update={"data": data, "output": f"{bucket_job.output}-stormy{number}"})
        commands = done = 0
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", proxy.url)
            patch.setattr(ledger, "pause", lambda attempt: 0.01)
            filesystem.cache_clear()
            while done < 3 and commands < 20:
                commands += 1
                with contextlib.suppress(*([JobError, OSError] if kinds == FAULTS else [])):
                    done = execute(stormy).progress().units
        filesystem.cache_clear()
        assert done == 3
        folder = at(stormy.output)
        assert not [found for found in verify(Run.open(folder)) if hasattr(found, "what")]
        assert walk(folder / "data") == walk(calm / "data")
        for name in walk(folder / "data"):
            assert (folder / "data" / name).read_bytes() == (calm / "data" / name).read_bytes()
    proxy.close()
    assert set(proxy.happened) == set(kinds)
