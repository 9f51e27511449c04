"""Planning: which samples there are, where they lie, and which shards are not what they seem."""

import io
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kit.shards import SIZE, encode, picture, write_tar

from kintsugi.errors import JobError
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.shards import checksum, expand, from_root, index, stated_checksums
from kintsugi.pipeline.data.tar import DamagedShard
from kintsugi.pipeline.data.units import read_members, read_units
from kintsugi.pipeline.parts import Data


def plan(paths: list[Path], target: Path, unit_size: int = 3, **data):
    return make_plan(Data(shards="unused", size=SIZE, **data), paths, unit_size, target)


def complete_and_damage(path: Path) -> tuple[list[str], str | None]:
    keys: list[str] = []
    try:
        for sample in index(path):
            keys.append(sample.key)
    except DamagedShard as damage:
        return keys, str(damage)
    return keys, None


def test_units_cover_every_sample_once_and_in_order(shards, tmp_path):
    summary = plan(shards, tmp_path / "plan.parquet")
    units = list(read_units(tmp_path / "plan.parquet"))
    keys = [key for unit in units for key in read_members(tmp_path / "plan.parquet", unit).keys]
    assert keys == [f"image_{i:03d}" for i in range(12)]
    assert [unit.samples for unit in units] == [3, 1] * 3
    assert [unit.first for unit in units] == [0, 3, 4, 7, 8, 11]
    assert (summary.samples, summary.units, summary.shards) == (12, 6, [str(s) for s in shards])


def test_a_units_bytes_hold_exactly_its_samples(shards, tmp_path):
    plan(shards, tmp_path / "plan.parquet")
    for unit in read_units(tmp_path / "plan.parquet"):
        content = Path(unit.shard).read_bytes()[unit.offset : unit.end]
        with tarfile.open(fileobj=io.BytesIO(content + bytes(1024))) as tar:
            names = tar.getnames()
        keys = read_members(tmp_path / "plan.parquet", unit).keys
        assert names == [f"{key}.{suffix}" for key in keys for suffix in ("png", "cls")]


def test_the_same_plan_twice_is_the_same_file(shards, tmp_path):
    for name in ("a", "b"):
        plan(shards, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def by_others(monkeypatch, processes=2):
    """After the first shard others are read by so many processes."""
    monkeypatch.setattr("kintsugi.pipeline.data.indexing.PAYS", -1.0)
    monkeypatch.setattr("kintsugi.pipeline.data.indexing.processors", lambda: processes)


@pytest.mark.parametrize("data", [{}, {"limit": 9}, {"subset": {"part": "tune", "fraction": 0.5}}])
def test_several_processes_make_the_plan_that_one_makes(shards, tmp_path, monkeypatch, data):
    cut, folder, none = tmp_path / "cut.tar", tmp_path / "folder", tmp_path / "none.tar"
    cut.write_bytes(shards[0].read_bytes()[:-9000])
    none.write_text("no tar")
    folder.mkdir()
    for name in ("x.png", "y.png", "z.txt", ".hidden.png"):
        (folder / name).write_bytes(encode(picture(0)))
    mixed = [shards[1], cut, folder, shards[2], none]
    monkeypatch.setattr("kintsugi.pipeline.data.indexing.SENT", 2)
    one = plan(mixed, tmp_path / "one", damaged="salvage", **data)
    by_others(monkeypatch)
    several = plan(mixed, tmp_path / "several", damaged="salvage", **data)
    assert several == one
    assert (tmp_path / "one").read_bytes() == (tmp_path / "several").read_bytes()
    if not data:
        assert (len(one.damaged), one.left_out) == (2, 2)


def test_errors_are_the_same_with_several_processes(shards, tmp_path, monkeypatch):
    gone = [*shards[:2], tmp_path / "gone.tar", shards[2]]

    def said(processes: int) -> str:
        by_others(monkeypatch, processes)
        with pytest.raises(JobError) as error:
            plan(gone, tmp_path / "plan.parquet")
        return str(error.value)

    assert said(2) == said(1)
    assert str(gone[2]) in said(1)
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    assert "the process that read it has ended (1)" in said(2)


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 12, 100])
def test_limit(shards, tmp_path, limit):
    assert plan(shards, tmp_path / "plan.parquet", limit=limit).samples == min(limit, 12)


def test_shards_beyond_the_limit_are_neither_read_nor_checked(shards, tmp_path, monkeypatch):
    copies = [tmp_path / "in" / f"{i}.tar" for i in range(4)]
    copies[0].parent.mkdir()
    for copy, shard in zip(copies, shards, strict=False):
        copy.write_bytes(shard.read_bytes())
    copies[3].write_text("no tar")
    (tmp_path / "in" / "SHA256SUMS").write_text("".join(f"{checksum(c)}  {c.name}\n" for c in copies[:3]))
    hashed, seen = [], []
    monkeypatch.setattr(
        "kintsugi.pipeline.data.shards.checksum", lambda shard: hashed.append(shard.name) or checksum(shard)
    )
    data = Data(shards="unused", size=SIZE, limit=6)
    summary = make_plan(data, copies, 3, tmp_path / "plan.parquet", lambda unit: seen.append(unit.unit))
    assert (summary.samples, summary.damaged, summary.empty) == (6, {}, [])
    assert sorted(hashed) == ["0.tar", "1.tar"]
    units = ["00000-0000000", "00000-0000003", "00001-0000000"]
    assert seen == [*units, *units[1:]], "each unit, and each shard again when it was compared"
    with pytest.raises(JobError, match=r"3\.tar: not an uncompressed tar"):
        plan(copies, tmp_path / "plan.parquet", limit=13)


def test_an_empty_shard_is_compared_with_its_checksum(shards, tmp_path):
    empty = write_tar(tmp_path / "empty.tar", [])
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  empty.tar\n")
    summary = plan([empty, shards[0]], tmp_path / "plan.parquet", damaged="salvage")
    assert (list(summary.damaged), summary.empty) == ([str(empty)], [])


def test_braces_and_globs(shards):
    folder = shards[0].parent
    assert expand(f"{folder}/set-{{0000..0002}}.tar") == shards
    assert expand(f"{folder}/*.tar") == shards
    assert expand([f"{folder}/set-000[01].tar", str(shards[2])]) == shards
    with pytest.raises(JobError, match=r"no such file.*set-0003\.tar"):
        expand(f"{folder}/set-{{0002..0003}}.tar")
    with pytest.raises(JobError, match="no such file"):
        expand(f"{folder}/nothing*.tar")
    with pytest.raises(JobError, match=r"data\.shards: 'x-\{0\.\.'"):
        expand("x-{0..")
    with pytest.raises(JobError, match="named twice"):
        expand([str(shards[0]), str(shards[0])])


def test_patterns_mean_the_same_from_any_folder(shards, tmp_path, monkeypatch):
    """Also where the current folder, or a file, has brackets or braces in its name."""
    folder = tmp_path / "e9 [1] {a,b}"
    for name in ("in/0.tar", "in/1.tar", "in/[x].tar", "{y,z}.tar"):
        write_tar(folder / name, [])
    (folder / "run").mkdir()
    plain = write_tar(tmp_path / "plain" / "2.tar", []).parent
    both = [folder / "in" / "0.tar", folder / "in" / "1.tar"]
    expected = {
        "in/?.tar": both,
        "in/{0..1}.tar": both,
        "../e9 [1] {a,b}/in/[0-9].tar": both,
        "run/../in/{1,0}.tar": both[::-1],
        "{in/0,in/1}.tar": both,
        f"{{{plain}/2,in/1}}.tar": [plain / "2.tar", both[1]],
        "in/[x].tar": [folder / "in" / "[x].tar"],
        "./{y,z}.tar": [folder / "{y,z}.tar"],
        "in/": [folder / "in"],
    }
    monkeypatch.chdir(folder)
    rooted = {pattern: from_root(pattern) for pattern in expected}
    assert {pattern: expand(pattern) for pattern in expected} == expected
    monkeypatch.chdir(tmp_path)
    assert {pattern: expand(rooted[pattern]) for pattern in expected} == expected
    assert from_root(rooted["in/?.tar"]) == rooted["in/?.tar"]
    assert from_root(["s3://b/{0..9}/", "x.tar"]) == ["s3://b/{0..9}/", f"{tmp_path}/x.tar"]
    with pytest.raises(JobError, match="no such file"):
        expand(f"{folder}/in/2.tar")


def test_a_shard_cut_anywhere_is_noticed(shards, tmp_path):
    """Every 100th byte: header, content, member boundary, padding. tarfile alone notices few of them."""
    whole = shards[0].read_bytes()
    with tarfile.open(shards[0]) as tar:
        end = max(m.offset_data + -(-m.size // 512) * 512 for m in tar.getmembers())
        boundaries = [m.offset for m in tar.getmembers()]
    cut = tmp_path / "cut.tar"
    for length in [*range(0, end, 100), *boundaries, end, end + 512]:
        cut.write_bytes(whole[:length])
        keys, damage = complete_and_damage(cut)
        assert damage is not None, f"cut at {length}"
        assert keys == [f"image_{i:03d}" for i in range(len(keys))]


def test_damaged_shards_are_refused_or_salvaged(shards, tmp_path):
    cut = tmp_path / "cut.tar"
    with tarfile.open(shards[0]) as tar:
        middle = tar.getmember("image_002.png").offset_data + 100
    cut.write_bytes(shards[0].read_bytes()[:middle])
    with pytest.raises(JobError, match=r"damaged.*salvage.*\n.*cut\.tar: cut"):
        plan([cut, shards[1]], tmp_path / "plan.parquet")
    assert not (tmp_path / "plan.parquet").exists()
    summary = plan([cut, shards[1]], tmp_path / "plan.parquet", damaged="salvage")
    assert list(summary.damaged) == [str(cut)]
    assert summary.samples == 3 + 4, "the sample that is cut is planned: it ends as a failed row"


def test_not_a_tar(tmp_path):
    (tmp_path / "text.tar").write_text("hello " * 500)
    assert complete_and_damage(tmp_path / "text.tar")[1].startswith("not an uncompressed tar")


def test_an_overwritten_header_is_noticed(shards, tmp_path):
    content = bytearray(shards[0].read_bytes())
    with tarfile.open(shards[0]) as tar:
        third = tar.getmembers()[2].offset
    content[third : third + 100] = b"x" * 100
    (tmp_path / "bad.tar").write_bytes(content)
    keys, damage = complete_and_damage(tmp_path / "bad.tar")
    assert keys == ["image_000"]
    assert f"header at byte {third}" in damage


def test_empty_shards_are_named_and_a_job_without_samples_is_refused(shards, tmp_path):
    empty = write_tar(tmp_path / "empty.tar", [])
    assert plan([empty, shards[0]], tmp_path / "plan.parquet").empty == [str(empty)]
    with pytest.raises(JobError, match="no samples"):
        plan([empty], tmp_path / "plan.parquet")


@pytest.mark.parametrize("adjacent", [True, False])
def test_duplicate_keys_are_refused_with_their_places(tmp_path, adjacent):
    image = encode(picture(0))
    names = ["a.png", "a.png", "b.png"] if adjacent else ["a.png", "b.png", "a.png"]
    shard = write_tar(tmp_path / "twice.tar", [(name, image) for name in names])
    with pytest.raises(JobError, match=r"more than once.*\n.*'a' in .*twice\.tar.*twice\.tar"):
        plan([shard], tmp_path / "plan.parquet")


def test_the_same_key_in_two_shards_is_refused(shards, tmp_path):
    copy = tmp_path / "copy.tar"
    copy.write_bytes(shards[0].read_bytes())
    with pytest.raises(JobError, match="4 keys occur more than once"):
        plan([shards[0], copy], tmp_path / "plan.parquet")


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("ok.png", b""), ("b\udcff.png", b"")])
    with pytest.raises(JobError, match="not UTF-8"):
        plan([shard], tmp_path / "plan.parquet")


def test_grouping_is_webdatasets(tmp_path):
    """Folders belong to keys, the suffix starts at the first dot, metadata members are skipped."""
    from webdataset import WebDataset

    members = [
        ("dir/x.png", b"1"),
        ("dir/x.seg.png", b"2"),
        ("__meta__/info.json", b"{}"),
        ("y.json", b"{}"),
        ("dir/y.png", b"3"),
    ]
    shard = write_tar(tmp_path / "group.tar", members)
    expected = [sample["__key__"] for sample in WebDataset(str(shard), shardshuffle=False)]
    assert complete_and_damage(shard) == (expected, None)


def test_lines_of_checksums_end_where_lines_end(tmp_path):
    name = "a\u2028b\x85c.tar"
    (tmp_path / "SHA256SUMS").write_bytes(f"{'0' * 64}  {name}\r\n{'1' * 64} *d.tar\n\n".encode())
    assert stated_checksums(tmp_path) == {name: "0" * 64, "d.tar": "1" * 64}


def test_a_plan_that_is_replaced_while_its_units_are_read_is_read_anew(shards, tmp_path):
    """The footer is kept from one unit to the next; it must be that of the file which is there."""
    target = tmp_path / "plan.parquet"
    for unit_size in (3, 2, 4):
        plan(shards, target, unit_size=unit_size)
        found = [(unit, read_members(target, unit).keys) for unit in read_units(target)]
        assert [len(keys) for _, keys in found] == [unit.samples for unit, _ in found]
        assert [key for _, keys in found for key in keys] == [f"image_{i:03d}" for i in range(12)]


def test_the_footer_of_a_plan_is_read_once_for_all_its_units(shards, tmp_path, monkeypatch):
    target, read = tmp_path / "plan.parquet", []
    plan(shards, target)
    of = pq.read_metadata
    monkeypatch.setattr(pq, "read_metadata", lambda path: read.append(path) or of(path))
    for unit in read_units(target):
        read_members(target, unit)
    assert read == [target]
