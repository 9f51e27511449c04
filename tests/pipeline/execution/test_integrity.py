"""What a run directory holds is believed only as it was written, and leads nowhere else."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from kit.jobs import execute, kintsugi
from kit.shards import SIZE, encode, picture, png, write_tar

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.report.gallery import refuse_no_pictures
from kintsugi.pipeline.analysis.report.stored import read_metrics
from kintsugi.pipeline.data.units import BEFORE_LINKS, read_members
from kintsugi.pipeline.execution.commit import read_blocks, read_rows, valid
from kintsugi.pipeline.execution.directory import (
    FILES,
    FOLDERS,
    JOB,
    KEPT,
    PLAN,
    PRIOR,
    commit_file,
    data_file,
)
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.verify import Finding, mend, verify
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.files import parquet
from kintsugi.pipeline.storage.records import SUMS, sealed, unsealed

KEYS = [f"image_{number:03d}" for number in range(6)]
UNITS = ["00000-0000000", "00000-0000002", "00001-0000000"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two shards, beside them."""
    folder = tmp_path_factory.mktemp("integrity")
    for number, first in enumerate((0, 4)):
        members = [(f"{KEYS[n]}.png", encode(picture(n))) for n in range(first, min(first + 4, 6))]
        write_tar(folder / f"set-{number}.tar", members)
    job = Job.model_validate(
        {
            "data": {"shards": str(folder / "set-{0..1}.tar"), "size": SIZE},
            "degradation": {"operator": {"name": "average_pool", "factor": 4}, "sigma": 0.02},
            "sampler": {"name": "conjugate", "steps": 1, "w": 15},
            "metrics": ["psnr"],
            "compute": {"batch_size": 2, "unit_size": 2, "cpus_per_actor": 1},
            "output": str(folder / "run"),
        }
    )
    execute(job)
    return folder / "run"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def job_of(run: Path) -> Job:
    return Run.open(run).job.model_copy(update={"output": str(run)})


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def bits(content: bytes, count: int) -> Iterator[int]:
    return map(int, np.random.default_rng(0).permutation(8 * len(content))[:count])


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def hashed_anew(run: Path) -> None:
    """As somebody does who wants to be believed."""
    records.write_sums(run, {name: records.digest(run / name) for name in KEPT})


def replan(run: Path, change) -> None:
    """Change the rows of a plan, as lists of values by column, and its checksum."""
    file = run / PLAN
    summary = pq.read_metadata(file).metadata[b"kintsugi.summary"].decode()
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows)
    with pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, table.schema))
        writer.add_key_value_metadata({"kintsugi.summary": summary})
    hashed_anew(run)


# ---- what rots


def test_no_flipped_bit_of_a_plan_is_believed_and_it_is_made_again(run):
    good = (run / PLAN).read_bytes()
    for bit in bits(good, 200):
        (run / PLAN).write_bytes(flipped(good, bit))
        with pytest.raises(JobError, match=r"plan\.parquet is not what was written.*verify .* --repair"):
            Run.open(run)
    before = state(run)
    assert kintsugi("verify", run, "--repair").exit_code == 0
    assert (run / PLAN).read_bytes() == good
    assert state(run) == before | {PLAN: good}, "and no row is dropped"


@pytest.mark.parametrize("name", [JOB, PRIOR, FILES, SUMS])
def test_no_flipped_bit_of_what_a_run_is_begun_with_is_believed(run, name):
    good = (run / name).read_bytes()
    for bit in bits(good, 100):
        (run / name).write_bytes(flipped(good, bit))
        with pytest.raises(JobError, match=r"is not what was written|is damaged"):
            Run.open(run)
    if name == JOB:
        with pytest.raises(JobError, match="put back a copy"):
            mend(run)
    elif name != SUMS:
        assert mend(run) == [name]
        assert (run / name).read_bytes() == good


@pytest.mark.parametrize("line", [1, 2, 3])
@pytest.mark.parametrize("change", ["digest", "name", "all"])
def test_damaged_digests_are_written_again(run, line, change):
    good = (run / SUMS).read_text()
    lines = good.splitlines()
    sum_, name = lines[line].split("  ")
    lines[line] = {"digest": f"{sum_[::-1]}  {name}", "name": f"{sum_}  {name}x", "all": "\0"}[change]
    (run / SUMS).write_text("\n".join(lines))
    assert mend(run)
    assert (run / SUMS).read_text() == good


@pytest.mark.parametrize("change", ["gone", "other samples", "another number"])
def test_a_plan_is_not_made_again_of_shards_that_have_changed(run, change, tmp_path):
    """A plan without the digest of the one that was written, as of older runs: the rows decide."""
    shard = tmp_path / "s.tar"
    write_tar(shard, [(f"{key}.png", encode(picture(0))) for key in KEYS])
    job = job_of(run)
    shutil.rmtree(run)
    job = job.model_copy(update={"data": job.data.model_copy(update={"shards": str(shard)})})
    execute(job)
    (run / PLAN).write_bytes(b"PAR1")
    (run / SUMS).unlink()
    if change == "gone":
        shard.unlink()
    else:
        keys = KEYS[:2] if change == "another number" else [*KEYS[:5], "other"]
        write_tar(shard, [(f"{key}.png", encode(picture(0))) for key in keys])
    before = state(run)
    with pytest.raises(JobError, match="put back the shards as they were, or a copy of the plan"):
        mend(run)
    assert state(run) == before


def test_a_lost_plan_of_an_older_run_is_made_again(run):
    good = (run / PLAN).read_bytes()
    for name in (PLAN, SUMS):
        (run / name).unlink()
    with pytest.raises(JobError, match=r"plan\.parquet is missing; `kintsugi verify .* --repair` makes it"):
        Run.open(run)
    assert mend(run) == [PLAN]
    assert (run / PLAN).read_bytes() == good


def test_a_run_without_checksums_goes_on(run):
    """As the versions before them wrote it."""
    for name in (SUMS, FILES):
        (run / name).unlink()
    table = pq.read_table(run / PLAN)
    summary = pq.read_metadata(run / PLAN).metadata[b"kintsugi.summary"].decode()
    with pq.ParquetWriter(run / PLAN, BEFORE_LINKS) as writer:
        writer.write_table(table.select(BEFORE_LINKS.names))
        writer.add_key_value_metadata({"kintsugi.summary": summary})
    for unit in UNITS:
        record = commit_file(run, unit)
        record.write_text(json.dumps(json.loads(unsealed(record.read_bytes())), indent=1))
    commit_file(run, UNITS[1]).unlink()
    assert not any(isinstance(found, Finding) for found in verify(Run.open(run)))
    again = execute(job_of(run))
    assert again.progress().rows == 6


def test_no_flipped_bit_of_a_commit_record_is_believed(run):
    content = commit_file(run, UNITS[0]).read_bytes()
    assert json.loads(content)["rows"] == 2, "still JSON for whoever reads it"
    job_hash, length = Run.open(run).config_hash, data_file(run, UNITS[0]).stat().st_size
    good = valid(content, UNITS[0], job_hash, length)
    assert good is not None
    for bit in bits(content, 1000):
        assert valid(flipped(content, bit), UNITS[0], job_hash, length) in (None, good)


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": None},
        {"rows": "2"},
        {"rows": 3},
        {"failed": 3},
        {"attempt": 10**30},
        {"seconds": {"total": "long"}},
        {"seconds": {"total": 1e308}},
        {"seconds": []},
        {"sample_seconds": [0.1, None]},
        {"made_by": {"host": ["a"]}},
        {"made_by": {"host": "a" * 100_000}},
        {"notes": "a"},
        {"data_sha256": "0"},
        {"unit": "../../victim"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_record_of_other_types_is_no_record(run, fields):
    file = commit_file(run, UNITS[0])
    file.write_bytes(sealed(json.loads(unsealed(file.read_bytes())) | fields))
    opened = Run.open(run)
    assert opened.progress().units == 2
    assert [found.unit.unit for found in verify(opened) if isinstance(found, Finding)] == [UNITS[0]]


def test_a_record_nested_without_end_is_no_record(run):
    commit_file(run, UNITS[0]).write_bytes(b'{"seconds": ' + b"[" * 1_000_000)
    assert Run.open(run).progress().units == 2


# ---- what leads elsewhere


NAMES = ["../../victim/secret", "/tmp/x", "a", "", "00000-0000001", "00001-0000009", "0-0", "00000-0000000\n"]


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_has_the_name_of_its_place_and_no_other(run, name):
    replan(run, lambda rows: rows[0].update(unit=name))
    before = state(run)
    for command in ("verify", "report", "status"):
        with pytest.raises(JobError, match="its name is not that of its place"):
            kintsugi(command, run)
    with pytest.raises(JobError, match="its name is not that of its place"):
        execute(job_of(run))
    assert state(run) == before
    assert kintsugi("verify", run, "--repair").exit_code == 0
    assert [unit.unit for unit in Run.open(run).units()] == UNITS
    assert [path.name for path in run.parent.iterdir()] == ["run"]
    assert not Path("/tmp/x.parquet").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[0].update(shard="/etc/passwd"), "is not the one of this number"),
        (lambda rows: rows[1].update(first=7), "first: it does not begin where"),
        (lambda rows: rows[0].update(samples=0), "is negative"),
        (lambda rows: rows[0].update(offset=-1), "is negative"),
        (lambda rows: rows[0].update(shard=None), "a field is null"),
        (lambda rows: rows.pop(), "another number of units"),
        (lambda rows: rows.reverse(), "it does not begin where"),
        (lambda rows: rows.clear(), "another number of units"),
    ],
)
def test_a_plan_whose_units_do_not_follow_each_other_is_none(run, change, words):
    replan(run, change)
    with pytest.raises(JobError, match=rf"plan\.parquet cannot be read as a plan: .*{words}"):
        list(Run.open(run).units())


@pytest.mark.parametrize("keys", [None, ["a"], ["a", "a"], ["a", None]])
def test_a_unit_has_as_many_keys_as_samples(run, keys):
    replan(run, lambda rows: rows[0].update(keys=keys))
    unit = next(Run.open(run).units())
    with pytest.raises(JobError, match="keys are not 2 different ones"):
        read_members(run / PLAN, unit)


COMMANDS = (("status",), ("report",), ("verify",), ("verify", "--repair"), ("query", "select key from rows"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_of_a_run_is_a_link(run, folder):
    outside = run.parent / "outside"
    if (run / folder).exists():
        (run / folder).rename(outside)
    else:
        outside.mkdir()
    (run / folder).symlink_to(outside)
    before = state(outside)
    for command, *options in COMMANDS:
        with pytest.raises(JobError, match=f"{folder} is a link"):
            kintsugi(command, run, *options)
    job = yaml.safe_load((run / JOB).read_text()) | {"output": str(run)}
    with pytest.raises(JobError, match=f"{folder} is a link"):
        open_or_plan(Job.model_validate(job))
    assert state(outside) == before


@pytest.mark.parametrize("name", [*KEPT, SUMS])
@pytest.mark.parametrize("kind", ["link", "FIFO", "folder", "large"])
def test_what_is_no_file_of_the_run_is_refused_unopened(run, name, kind):
    content = (run / name).read_bytes()
    (run / name).unlink()
    if kind == "link":
        (run.parent / "elsewhere").write_bytes(content)
        (run / name).symlink_to(run.parent / "elsewhere")
    elif kind == "FIFO":
        os.mkfifo(run / name)
    elif kind == "folder":
        (run / name).mkdir()
    else:
        with (run / name).open("wb") as file:
            file.truncate(1 << 41)
    words = {"link": "is a link", "large": "more than the"}.get(kind, "is no regular file")
    with pytest.raises(JobError, match=words):
        Run.open(run)


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_a_record_or_data_that_is_no_file_is_done_again(run, kind):
    victim = run.parent / "victim"
    victim.write_bytes(b"mine")
    for file in (commit_file(run, UNITS[0]), data_file(run, UNITS[1])):
        file.unlink()
        if kind == "link":
            file.symlink_to(victim)
        else:
            os.mkfifo(file)
    opened = Run.open(run)
    assert opened.progress().units == 1
    assert [f.unit.unit for f in verify(opened) if isinstance(f, Finding) and f.unit] == UNITS[:2]
    assert kintsugi("verify", run, "--repair").exit_code == 0
    assert execute(job_of(run)).progress().units == 3
    assert victim.read_bytes() == b"mine"


# ---- nonsense that is well hashed


def recommitted(run: Path, change) -> None:
    """Change the rows of the first unit, as a table, and its commit record."""
    data, record = data_file(run, UNITS[0]), commit_file(run, UNITS[0])
    pq.write_table(change(pq.read_table(data)), data)
    values = json.loads(unsealed(record.read_bytes()))
    content = data.read_bytes()
    values |= {"data_bytes": len(content), "data_sha256": hashlib.sha256(content).hexdigest()}
    record.write_bytes(sealed(values))


def replaced(name: str, values: list, kind: pa.DataType):
    """A change of the rows: another column of this name."""
    return lambda rows: rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, kind))


NONSENSE = {
    "text in a number's column": (replaced("psnr", ["=1+1", "x"], pa.string()), "psnr is a column of string"),
    "null keys": (replaced("key", [None, "a"], pa.string()), "a row without key"),
    "numbers that have no squares": (replaced("psnr", [1e308, 1.0], pa.float64()), "psnr has a value beyond"),
    "no rows": (lambda rows: rows[:0], "has 0 rows, and its commit record says 2"),
    "a doubled column": (
        lambda rows: rows.append_column("key", rows["key"]),
        "two columns have one name",
    ),
    "a picture of 20000²": (
        replaced("restored", [png(20_000, 20_000)] * 2, pa.binary()),
        "restored of 'image_000'",
    ),
    "a picture that is none": (replaced("truth", [b"GIF89a"] * 2, pa.binary()), "truth of 'image_000'"),
    "an array that claims terabytes": (
        replaced(
            "deviation",
            [b"\x93NUMPY\1\0v\0" + b"{'descr': '<f2', 'fortran_order': False, 'shape': (9, 99999, 9999)}\n"]
            * 2,
            pa.binary(),
        ),
        "deviation of 'image_000'",
    ),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_rows_is_one_error_that_names_the_file_and_the_field(run, name):
    change, words = NONSENSE[name]
    recommitted(run, change)
    if name == "an array that claims terabytes":  # which is looked at where there are several samples
        with pytest.raises(JobError, match=words):
            refuse_no_pictures(pq.read_table(data_file(run, UNITS[0])).to_pylist()[0], run)
        return
    shutil.copytree(run, run.parent / "other")
    more = {"compare": [run.parent / "other"], "query": ["select sum(psnr), min(key) from rows"]}
    commands = ("report", "compare", "query", "status", "verify")
    texts = [said(command, run, *more.get(command, [])) for command in commands]
    assert any(words in text and f"{UNITS[0]}.parquet" in text for text in texts), texts


def test_units_that_are_read_together_are_what_each_is_alone(run):
    """Also where one has other types, or lacks a column."""

    def change(rows: pa.Table) -> pa.Table:
        rows = replaced("forwards", [5, 5], pa.int64())(rows)
        return rows.drop_columns(["spread"])

    recommitted(run, change)
    units = [commit for _, commit in Run.open(run).commits() if commit is not None]
    columns = ["key", "spread", "status", "forwards"]
    alone = pa.concat_tables([read_rows(run, unit, columns) for unit in units], promote_options="permissive")
    for rows, count in ((1, len(units)), (1 + units[0].rows, 2), (1000, 1)):
        blocks = list(read_blocks(run, units, columns, rows))
        assert len(blocks) == count
        assert [unit for block, _ in blocks for unit in block] == units
        assert [len(table) for _, table in blocks] == [sum(u.rows for u in block) for block, _ in blocks]
        assert [row for _, table in blocks for row in table.to_pylist()] == alone.to_pylist()
    assert kintsugi("report", run).exit_code == 0


def said(*command: str | Path) -> str:
    """What a command tells its user; that it ends with another error than a JobError is none."""
    try:
        return kintsugi(*command).output.replace("\n", " ")
    except JobError as error:
        return str(error)


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "[]", '{"title": 5}', '{"sets": {"fid": 3}}', '{"sets": {"fid": {"value": 1e400}}}',
     '{"time": {}}', '{"shards": {"read": "x"}}', '{"provenance": null}'],
)  # fmt: skip
def test_nonsense_in_what_a_report_stores_is_one_error(original, run, content):
    for folder in (original, run):
        assert kintsugi("report", folder).exit_code == 0
    (run / "report" / "metrics.json").write_text(content)
    assert "metrics.json: " in said("compare", original, run, "--out", run.parent / "compared")


def test_no_flipped_bit_of_what_a_report_stores_is_believed(original):
    assert kintsugi("report", original).exit_code == 0
    metrics, rows = original / "report" / "metrics.json", original / "report" / "rows.parquet"
    good, values = metrics.read_bytes(), read_metrics(metrics)
    for bit in bits(good, 200):
        metrics.write_bytes(flipped(good, bit))
        with pytest.raises(JobError, match=r"metrics\.json"):
            read_metrics(metrics)
    metrics.write_bytes(good)
    assert read_metrics(metrics) == values
    table, good = pq.read_table(rows), rows.read_bytes()
    pages = 8 * int.from_bytes(good[-8:-4], "little") + 64
    for bit in bits(good[: -pages // 8], 200):  # but of the footer, which has no checksum
        rows.write_bytes(flipped(good, bit))
        with suppress(pa.ArrowException, OSError), parquet(rows) as file:
            assert file.read().equals(table), "a bit between the pages"
    rows.write_bytes(good)


@pytest.mark.parametrize("name", ["metrics.json", "rows.parquet"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_of_a_report_is_refused_unopened(original, run, name, kind):
    for folder in (original, run):
        assert kintsugi("report", folder).exit_code == 0
    file = run / "report" / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(original / "report" / name)
    text = said("compare", original, run, "--out", run.parent / "compared")
    assert f"{name} is {'a link' if kind == 'link' else 'no regular file'}" in text
    assert kintsugi("report", run).exit_code == 0, "which puts the file itself there"
    assert file.is_file()
    assert not file.is_symlink()
    assert (original / "report" / name).exists()
