"""Parquet of Hugging Face: the rows that are there, by names of their own, and no memory that bytes claim."""

import io
import json
import re
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.jobs import kintsugi
from kit.shards import SIZE, encode, picture, png, write_parquet

from kintsugi.errors import JobError
from kintsugi.jobs.terminal import EXIT_SOME_FAILED
from kintsugi.pipeline.data import parquet
from kintsugi.pipeline.data.collection import Collection
from kintsugi.pipeline.data.convert import Images
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.data.make import make_shards
from kintsugi.pipeline.data.make.choosing import Options
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.read import read_unit
from kintsugi.pipeline.data.tar import DamagedShard
from kintsugi.pipeline.data.units import PlanSummary, read_members, read_units
from kintsugi.pipeline.execution.open import restored_name
from kintsugi.pipeline.parts import Data

IMAGES = [encode(picture(i), ("PNG", "JPEG")[i % 2]) for i in range(8)]
NAMED = [(content, f"cat/{7 - i}.{('png', 'jpg')[i % 2]}") for i, content in enumerate(IMAGES)]
NAMELESS = [(content, None) for content in IMAGES]


def members(tars: list[Path]) -> dict[str, bytes]:
    found = {}
    for path in tars:
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def shard(source: Path, out: Path, **options) -> dict[str, bytes]:
    return members(make_shards(source, out, Options(**options)).shards)


def names(file: Path) -> list[str]:
    with parquet.opened(file) as table:
        return [row.name for row in table.rows()]


# Shards of it


@pytest.mark.parametrize("group", [1, 3, 100])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_shards_hold_the_rows_in_order_with_the_classes_that_are_some(tmp_path, group, version):
    labels = [3, 0, None, -1, 4, 5, 6, 7]
    file = write_parquet(
        tmp_path / "a.parquet", NAMED, labels, row_group_size=group, data_page_version=version
    )
    expected = {}
    for (content, name), label in zip(NAMED, labels, strict=True):
        expected[name] = content
        if label is not None and label >= 0:
            expected[f"{name[:-4]}.cls"] = str(label).encode()
    found = shard(file, tmp_path / "out", per_shard=3)
    assert found == expected
    assert [name for name in found if not name.endswith("cls")] == [name for _, name in NAMED]
    # Again, and after an interruption.
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out/a-000001.tar").unlink()
    shard(file, tmp_path / "out", per_shard=3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first


def test_a_folder_a_glob_and_a_file_are_sources_and_what_else_is_there_is_named(tmp_path):
    for i in range(2):
        write_parquet(tmp_path / f"set/data/train-{i}.parquet", NAMED[4 * i : 4 * i + 4])
    (tmp_path / "set/README.md").write_text("")
    every = {name: content for content, name in NAMED}
    made = make_shards(tmp_path / "set", tmp_path / "0", Options())
    assert members(made.shards) == every
    assert made.others == [("README.md", ".md files are not read")]
    assert shard(tmp_path / "set/data/train-*.parquet", tmp_path / "1") == every
    assert shard(tmp_path / "set/data/train-1.parquet", tmp_path / "2") == dict([*every.items()][4:])
    # Beside images it is none.
    (tmp_path / "set/a.png").write_bytes(IMAGES[0])
    made = make_shards(tmp_path / "set", tmp_path / "3", Options())
    assert [*members(made.shards)] == ["a.png"]
    assert len(made.others) == 3


def test_a_list_chooses_rows_in_its_order_and_keeps_their_classes(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", NAMED, list(range(8)), row_group_size=3)
    listed = tmp_path / "list"
    listed.write_text("cat/0.jpg\ncat/7.png\n3\n")
    found = shard(file, tmp_path / "out", names=listed)
    assert [*found] == ["cat/0.cls", "cat/0.jpg", "cat/7.cls", "cat/7.png", "cat/3.cls", "cat/3.png"]
    assert found["cat/0.cls"] == b"7"
    assert found["cat/3.png"] == IMAGES[4]


@pytest.mark.parametrize("path", [None, "", "same.png", "..", "\x07.png", "x" * 2000, "/", "set-0000001.png"])
def test_rows_without_names_of_their_own_are_named_by_their_numbers(tmp_path, path):
    rows = [(content, f"{i}.png") for i, content in enumerate(IMAGES[:2])] + [
        (IMAGES[i], path) for i in (2, 3)
    ]
    found = shard(write_parquet(tmp_path / "se.t.parquet", rows, row_group_size=3), tmp_path / "out")
    keys = [f"se_t-{i:07d}.{('png', 'jpg')[i % 2]}" for i in range(4)]
    assert found == dict(zip(keys, IMAGES[:4], strict=True))


def test_a_path_that_leads_elsewhere_counts_by_its_last_part(tmp_path):
    paths = [
        "/home/somebody/a.png",
        "../../etc/b.png",
        "C:\\set\\c.png",
        "https://host/d.png",
        "in/e.v2.png",
        "f",
    ]
    rows = [(IMAGES[0], path) for path in paths]
    assert names(write_parquet(tmp_path / "a.parquet", rows)) == [
        *("a.png", "b.png", "C:/set/c.png", "d.png", "in/e.v2.png", "f")
    ]


def test_files_that_share_names_are_named_by_numbers_and_files_that_share_all_are_refused(tmp_path):
    for name in ("a", "b"):
        write_parquet(tmp_path / f"set/{name}.parquet", [(IMAGES[0], "0.png"), (IMAGES[1], "1.jpg")])
    found = shard(tmp_path / "set", tmp_path / "out")
    assert [*found] == ["a-0000000.png", "a-0000001.jpg", "b-0000000.png", "b-0000001.jpg"]
    for folder in ("train", "test"):
        write_parquet(tmp_path / f"twice/{folder}/0.parquet", NAMELESS)
    with pytest.raises(JobError, match="files of one name, whose rows have no names"):
        shard(tmp_path / "twice", tmp_path / "out2")


def test_rows_without_bytes_and_broken_ones_are_left_out_by_name(tmp_path):
    rows = [NAMED[0], (None, "a.png"), (b"no image", "b.png"), (b"", "c.png")]
    file = write_parquet(tmp_path / "a.parquet", rows)
    result = kintsugi("shard", str(file), str(tmp_path / "out"))
    assert result.exit_code == EXIT_SOME_FAILED
    left_out = json.loads((tmp_path / "out/manifest.json").read_text())["left_out"]
    reasons = {entry["name"]: entry["reason"] for entry in left_out}
    assert [*reasons] == ["a.png", "b.png", "c.png"]
    assert "no bytes in this row of the Parquet" in reasons["a.png"]
    assert "cannot identify image" in reasons["b.png"]


def test_a_struct_that_is_null_is_a_row_without_bytes(tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([None, {"bytes": IMAGES[0], "path": None}], kind)
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    made = make_shards(tmp_path / "a.parquet", tmp_path / "out", Options())
    assert members(made.shards) == {"a-0000001.png": IMAGES[0]}
    assert [name for name, _ in made.left_out] == ["a-0000000"]


# As data.shards


def plan(path: Path, target: Path, unit_size: int = 3, **data) -> PlanSummary:
    return make_plan(Data(shards="unused", size=SIZE, **data), [path], unit_size, target)


def rows(plan: Path, convert=Images(SIZE, "exact")) -> list[Decoded]:  # noqa: B008
    units = [(unit, read_members(plan, unit)) for unit in read_units(plan)]
    return [row for unit, members in units for batch in read_unit(unit, members, convert, 2) for row in batch]


def seen(row: Decoded) -> tuple:
    image = None if row.image is None else row.image.tobytes()
    return row.key, row.index, image, row.label, row.source, row.error is None


@pytest.mark.parametrize("group", [2, 100])
@pytest.mark.parametrize("named", [NAMED, NAMELESS])
@pytest.mark.parametrize("data", [{}, {"limit": 5}, {"subset": {"part": "evaluate", "fraction": 0.5}}])
def test_rows_are_those_of_a_tar_of_the_same_images(tmp_path, group, named, data):
    file = write_parquet(tmp_path / "a.parquet", named, list(range(8)), row_group_size=group)
    (tar,) = make_shards(file, tmp_path / "out", Options()).shards
    plan(file, tmp_path / "one", **data)
    plan(tar, tmp_path / "other", **data)
    found = [seen(row) for row in rows(tmp_path / "one")]
    assert found == [seen(row) for row in rows(tmp_path / "other")]
    assert all(good for *_, good in found)
    assert 0 < len(found) <= data.get("limit", 8)


def test_a_path_like_another_rows_number_takes_no_place(tmp_path):
    paths = ["a-0000002.png", "a-0000001.png", "a-0000000.png"]
    file = write_parquet(tmp_path / "a.parquet", [(IMAGES[2 * i], path) for i, path in enumerate(paths)])
    plan(file, tmp_path / "plan")
    found = rows(tmp_path / "plan")
    assert [row.key for row in found] == [f"a-{i:07d}" for i in range(3)]
    assert all((row.image == picture(2 * i)).all() for i, row in enumerate(found))


def test_rows_without_an_image_are_failed_rows_with_the_reason(tmp_path):
    broken = [
        (None, "null.png"),
        (b"x", "x.png"),
        (png(20_000, 20_000), "huge.png"),
        (encode(picture(0, 40)), "40.png"),
    ]
    plan(write_parquet(tmp_path / "a.parquet", [NAMED[0], *broken]), tmp_path / "plan")
    first, *failed = rows(tmp_path / "plan")
    assert first.error is None
    reasons = ("no bytes in this row", "cannot identify", "400000000|20000x20000", "40x40 pixels")
    for row, (_, name), reason in zip(failed, broken, reasons, strict=True):
        assert row.key == name[:-4]
        assert re.search(reason, row.error)


def test_a_cut_file_is_refused_and_what_changes_after_planning_is_a_failed_row(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", NAMED, row_group_size=2)
    plan(file, tmp_path / "plan")
    whole = file.read_bytes()
    write_parquet(file, NAMED[:5])
    assert [row.error is None for row in rows(tmp_path / "plan")] == [True] * 5 + [False] * 3
    file.write_bytes(whole[:-100])
    assert all("cannot be read here: not readable as Parquet" in row.error for row in rows(tmp_path / "plan"))
    with pytest.raises(JobError, match=r"(?s)damaged.*a\.parquet: not readable as Parquet"):
        plan(file, tmp_path / "plan2")
    pq.write_table(pa.table({"x": [1]}), file)
    assert all("it has no column image" in row.error for row in rows(tmp_path / "plan"))
    with pytest.raises(JobError, match=r"data\.shards: .*a\.parquet: it has no column image"):
        plan(file, tmp_path / "plan2")


def test_a_key_in_two_files_and_parquet_in_a_folder_are_refused_with_what_to_do(tmp_path):
    files = [write_parquet(tmp_path / f"set/{i}.parquet", NAMED) for i in range(2)]
    with pytest.raises(JobError, match="8 keys occur more than once"):
        make_plan(Data(shards="unused", size=SIZE), files, 3, tmp_path / "plan")
    with pytest.raises(JobError, match=r"name the files, as in FOLDER/\*\.parquet"):
        plan(tmp_path / "set", tmp_path / "plan")


def test_parquet_is_a_collection_and_its_label_that_is_no_class_is_named(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", NAMED, [str(i) for i in range(8)], row_group_size=3)
    found = Collection("data.truth", str(file))
    assert [row.image.tobytes() for row in found.read_all(["cat/3", "cat/5"])] == [
        found.read("cat/3").image.tobytes(),
        picture(2).tobytes(),
    ]
    assert plan(file, tmp_path / "plan").left_out_first == [
        [str(file), "label", "a column of string; classes are integers"]
    ]


def test_restorations_of_parquet_are_a_tar():
    assert [restored_name(name) for name in ("a.parquet", "a.tar", "set")] == ["a.tar", "a.tar", "set"]


# What is none


@pytest.mark.parametrize(
    "columns",
    [
        {"x": [1]},
        {"image": [1]},
        {"image": [b"bytes"]},
        {"image": [{"bytes": "text", "path": "a"}]},
        {"image": [{"bytes": b"", "path": 3}]},
        {"image": [[{"bytes": b"", "path": ""}]]},
        {"image": [{"path": "a.png"}]},
    ],
)
def test_other_columns_are_refused_and_the_error_says_what_is_there(tmp_path, columns):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(
        JobError, match=r"a\.parquet: it has no column image of .*; its columns: \w+: "
    ) as error:
        shard(tmp_path / "a.parquet", tmp_path / "out")
    assert "data.shards" not in str(error.value)


def test_a_label_that_is_no_class_is_named_and_not_used(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", NAMED[:2], ["cat", "dog"])
    made = make_shards(file, tmp_path / "out", Options())
    assert [*members(made.shards)] == ["cat/7.png", "cat/6.jpg"]
    assert made.others == [("a.parquet: label", "a column of string; classes are integers")]


def test_a_file_that_is_cut_is_refused_wherever_that_is(tmp_path):
    content = write_parquet(tmp_path / "a.parquet", NAMED, list(range(8)), row_group_size=3).read_bytes()
    cut = tmp_path / "cut.parquet"
    for length in [*range(0, len(content), 997), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(JobError, match=r"cut\.parquet: not readable as Parquet"):
            shard(cut, tmp_path / "out")


def test_damage_inside_costs_the_rows_of_its_group_and_no_others(tmp_path):
    file = write_parquet(
        tmp_path / "a.parquet", NAMED, row_group_size=3, write_page_checksum=True, compression="none"
    )
    content = bytearray(file.read_bytes())
    place = content.index(IMAGES[4]) + 40
    content[place] ^= 1
    file.write_bytes(content)
    made = make_shards(file, tmp_path / "out", Options())
    assert len(members(made.shards)) == 5
    assert [name for name, _ in made.left_out] == [name for _, name in NAMED[3:6]]
    assert all("the Parquet cannot be read here" in why for _, why in made.left_out)


# Bombs


def test_a_page_that_claims_more_than_is_read_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "a.parquet", [(bytes(1 << 24), "a.png")], compression="zstd")
    assert file.stat().st_size < 10_000
    monkeypatch.setitem(parquet.MAX_PAGE, parquet.BYTES, 1 << 23)
    allocated = pa.total_allocated_bytes()
    made = [content for _, _, content in parquet.read_rows(file, 0, 1)]
    assert "a page of image.bytes claims 16,777," in str(made[0])
    assert pa.total_allocated_bytes() - allocated < 1 << 22
    paths = write_parquet(tmp_path / "b.parquet", [(b"", "x" * (1 << 24))], compression="zstd")
    with pytest.raises(
        JobError, match=r"a page of image\.path claims 16,777,2\d\d bytes; at most 16,777,216"
    ):
        shard(paths, tmp_path / "out")


def test_the_bound_is_that_of_the_page_and_not_of_what_the_footer_says(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "a.parquet", [(bytes(1 << 24), None)], compression="zstd")
    said = pq.ParquetFile(file).metadata.row_group(0).column(0).total_uncompressed_size
    varint = bytes([*((2 * said >> shift) & 127 | 128 for shift in (0, 7, 14)), 2 * said >> 21])
    content = file.read_bytes()
    assert content.count(varint) == 1
    file.write_bytes(content.replace(varint, b"\x82\x80\x80\x00"))
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).total_uncompressed_size == 1
    monkeypatch.setitem(parquet.MAX_PAGE, parquet.BYTES, 1 << 23)
    ((_, _, content),) = parquet.read_rows(file, 0, 1)
    assert "a page of image.bytes claims 16,777," in str(content)


def test_memory_is_that_of_a_row_where_a_dictionary_repeats_a_large_value(tmp_path):
    rows = [(bytes(1 << 20), f"{i}.png") for i in range(64)]  # 64 MB of a page of 1
    file = write_parquet(tmp_path / "a.parquet", rows, compression="zstd")
    assert file.stat().st_size < 50_000
    pool, most = pa.default_memory_pool(), 0
    before = pool.bytes_allocated()
    tracemalloc.start()
    for _, _, content in parquet.read_rows(file, 0, 64):
        assert len(content["png"]) == 1 << 20
        most = max(most, pool.bytes_allocated() - before)
    assert 1 << 20 <= most < 1 << 23
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()


@pytest.mark.parametrize(
    "header", [b"", b"\x15", b"\x15\x00\x15" + b"\xff" * 12, b"\x19" * 9, b"\x11" * 99, b"\x1c" * 9]
)
def test_what_is_no_header_of_a_page_is_refused(header):
    with pytest.raises(ValueError, match="header"):
        parquet.thrift(io.BytesIO(header))


def test_a_column_outside_of_the_file_is_refused(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", NAMED, row_group_size=3)
    with parquet.opened(file) as table, file.open("rb") as raw:
        found = [table.file.metadata.row_group(1).column(i) for i in range(2)]
        starts = [min(one.data_page_offset, one.dictionary_page_offset) for one in found]
        sizes = [one.total_compressed_size for one in found]
        expected = dict(zip((parquet.BYTES, parquet.PATH), zip(starts, sizes, strict=True), strict=True))
        assert table.chunks[1] == expected
        cut = io.BytesIO(raw.read()[-file.stat().st_size // 2 :])
    with pytest.raises(ValueError, match="a column lies outside of the file"):
        parquet.chunks_of(cut)


def test_more_rows_than_bytes_are_refused(tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.nulls(1_000_000, kind)}), tmp_path / "a.parquet")
    with (
        pytest.raises(DamagedShard, match="more rows than it has bytes"),
        parquet.opened(tmp_path / "a.parquet"),
    ):
        pass
