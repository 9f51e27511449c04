"""Nothing of a shard is lost in silence: what is found in it is a row, or is named as left out."""

import io
import os
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from kit.jobs import kintsugi
from kit.shards import SIZE, encode, picture, special, write_tar

from kintsugi.errors import JobError
from kintsugi.pipeline.data import shards as shards_module
from kintsugi.pipeline.data.collection import Collection
from kintsugi.pipeline.data.convert import Images
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.data.make import make_shards
from kintsugi.pipeline.data.make.choosing import Options
from kintsugi.pipeline.data.names import SUFFIXES, key_of
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.read import read_unit
from kintsugi.pipeline.data.shards import checksum, index
from kintsugi.pipeline.data.tar import DamagedShard, Tar
from kintsugi.pipeline.data.units import PlanSummary, changed_shards, read_members, read_summary, read_units
from kintsugi.pipeline.parts import Data

IMAGES = [(f"image_{i}.png", encode(picture(i))) for i in range(8)]
NFD = unicodedata.normalize("NFD", "é")


def plan(path: Path | list[Path], target: Path, unit_size: int = 3, **data) -> PlanSummary:
    paths = path if isinstance(path, list) else [path]
    return make_plan(Data(shards="unused", size=SIZE, **data), paths, unit_size, target)


def rows(plan: Path) -> Iterator[Decoded]:
    for unit in read_units(plan):
        for batch in read_unit(unit, read_members(plan, unit), Images(SIZE, "exact"), 2):
            yield from batch


# The end of a tar


@pytest.mark.parametrize("unit_size", [1, 3, 100])
def test_joined_tars_are_refused_by_name_and_read_whole_if_salvaged(tmp_path, unit_size):
    parts = [
        write_tar(tmp_path / name, IMAGES[a:b]) for name, a, b in (("a", 0, 3), ("b", 3, 4), ("c", 4, 8))
    ]
    joined = tmp_path / "s.tar"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    place = parts[0].stat().st_size
    with pytest.raises(JobError, match=rf"another tar begins at byte {place}: tars that were joined"):
        plan(joined, tmp_path / "plan")
    summary = plan(joined, tmp_path / "plan", unit_size, damaged="salvage")
    assert summary.samples == 8
    for i, row in enumerate(rows(tmp_path / "plan")):
        assert (row.key, row.error) == (f"image_{i}", None)
        np.testing.assert_array_equal(row.image, picture(i))


def test_a_hole_of_zeros_is_noticed_and_what_lies_behind_it_is_found(tmp_path):
    """A header that it touches is gone; every other is found. Of images, only those may be wrong that it ends
    in, too, which checksums alone find.
    """
    whole = write_tar(tmp_path / "whole.tar", IMAGES).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        headers = {member.name.removesuffix(".png"): member.offset for member in tar.getmembers()}
        places = [(member.offset_data, member.offset_data + member.size) for member in tar.getmembers()]
    holed = tmp_path / "holed.tar"
    rng = np.random.default_rng(0)
    holes = [sorted(rng.integers(0, places[-1][1], 2)) for _ in range(8)]
    # Whole members, from one header to another: as if two tars were joined.
    holes += [(headers["image_2"], headers["image_4"]), (0, headers["image_1"])]
    for first, last in holes:
        content = whole[:first] + bytes(last - first) + whole[last:]
        holed.write_bytes(content)
        left = [key for key, at in headers.items() if content[at : at + 512] == whole[at : at + 512]]
        if len(left) < len(headers):
            with pytest.raises(JobError, match="s: damaged"):
                plan(holed, tmp_path / "plan")
        if not left or (0 < first < 512 and "image_0" not in left):
            continue  # it does not begin like a tar
        plan(holed, tmp_path / "plan", damaged="salvage")
        found = list(rows(tmp_path / "plan"))
        assert [row.key for row in found] == left, (first, last)
        for row in found:
            number = int(row.key.removeprefix("image_"))
            begin, end = places[number]
            if content[begin:end] == whole[begin:end]:
                np.testing.assert_array_equal(row.image, picture(number))
            elif f"image_{number + 1}" in headers.keys() - left:
                assert row.error is not None, (first, last, number)


def test_a_jpeg_that_a_hole_begins_in_is_a_failed_row(tmp_path):
    """libjpeg makes a grey picture of zeros, without an error."""
    jpegs = [(f"{i}.jpg", encode(picture(i), "JPEG", quality=100)) for i in range(4)]
    content = bytearray(write_tar(tmp_path / "s.tar", jpegs).read_bytes())
    with tarfile.open(tmp_path / "s.tar") as tar:
        members = tar.getmembers()
    start, end = members[1].offset_data + 800, members[3].offset
    content[start:end] = bytes(end - start)
    (tmp_path / "s.tar").write_bytes(content)
    plan(tmp_path / "s.tar", tmp_path / "plan", damaged="salvage")
    found = {row.key: row.error for row in rows(tmp_path / "plan")}
    assert list(found) == ["0", "1", "3"]
    assert "a hole of zeros begins inside this sample" in found.pop("1")
    assert set(found.values()) == {None}


def test_zeros_behind_a_tar_are_its_end_unless_they_begin_in_a_member(tmp_path):
    content = write_tar(tmp_path / "s.tar", IMAGES).read_bytes()
    (tmp_path / "s.tar").write_bytes(content + bytes(5 << 20))
    summary = plan(tmp_path / "s.tar", tmp_path / "plan")
    assert (summary.samples, len(summary.notes)) == (8, 1)
    assert "bytes of zeros at its end: is it a download that has not ended?" in summary.notes[0]
    with tarfile.open(tmp_path / "s.tar") as tar:
        cut = tar.getmember("image_5.png").offset_data + 1000  # as a download that was preallocated
    (tmp_path / "s.tar").write_bytes(content[:cut] + bytes(5 << 20))
    with pytest.raises(JobError, match=r"'image_5\.png' ends in zeros, and so does the file"):
        plan(tmp_path / "s.tar", tmp_path / "plan")


def test_a_tar_in_a_member_is_not_taken_for_one(tmp_path):
    inner = write_tar(tmp_path / "inner.tar", IMAGES[:4]).read_bytes()
    whole = write_tar(tmp_path / "s.tar", [IMAGES[4], ("image_4.tar", inner), *IMAGES[5:]])
    assert [sample.key for sample in index(whole)] == [f"image_{i}" for i in range(4, 8)]
    joined = tmp_path / "joined.tar"
    joined.write_bytes(whole.read_bytes() + write_tar(tmp_path / "t.tar", [("last.tar", inner)]).read_bytes())
    plan(joined, tmp_path / "plan", damaged="salvage")
    assert [row.key for row in rows(tmp_path / "plan")] == [*(f"image_{i}" for i in range(4, 8)), "last"]


# Links in a tar


@pytest.mark.parametrize("unit_size", [1, 4, 100])
def test_a_link_to_a_member_is_that_member_and_any_other_a_failed_row(tmp_path, unit_size):
    shard = write_tar(
        tmp_path / "s.tar",
        [
            special("forward.png", tarfile.SYMTYPE, "d/b.png"),
            ("./a.png", IMAGES[0][1]),
            ("d/b.png", IMAGES[1][1]),
            special("hard.png", tarfile.LNKTYPE, "./a.png"),
            special("d/up.png", tarfile.SYMTYPE, "../a.png"),
            special("d/here.png", tarfile.SYMTYPE, "b.png"),
            special("chain.png", tarfile.SYMTYPE, "hard.png"),
            special("nowhere.png", tarfile.SYMTYPE, "missing.png"),
            special("absolute.png", tarfile.SYMTYPE, "/etc/passwd"),
            special("out.png", tarfile.LNKTYPE, "../../x.png"),
            special("loop.png", tarfile.SYMTYPE, "loop.png"),
            special("latest", tarfile.SYMTYPE, "d"),
            ("c.png", IMAGES[2][1]),
        ],
    )
    summary = plan(shard, tmp_path / "plan", unit_size)
    assert (summary.samples, summary.left_out) == (12, 1)
    assert summary.left_out_first == [[str(shard), "latest", "a name without a suffix"]]
    found = {row.key: row for row in rows(tmp_path / "plan")}
    same = {"forward": 1, "a": 0, "d/b": 1, "hard": 0, "d/up": 0, "d/here": 1, "chain": 0, "c": 2}
    assert {key for key, row in found.items() if row.error is None} == set(same)
    for key, number in same.items():
        np.testing.assert_array_equal(found[key].image, picture(number))
    for key, target in {"nowhere": "missing.png", "absolute": "/etc/passwd", "loop": "loop.png"}.items():
        assert f"a link to '{target}', which is no file of this tar" in found[key].error
    pictures = Collection("truth", str(shard))
    np.testing.assert_array_equal(pictures.read("forward").image, picture(1))


def test_what_in_a_tar_belongs_to_no_sample_is_named(tmp_path):
    others = ["README", "._a.png", ".DS_Store", "__MACOSX/a.png", ".thumbs/a.png", "__meta__/info.json"]
    shard = write_tar(
        tmp_path / "s.tar",
        [
            ("a.jpg", IMAGES[0][1]),
            ("a.png", IMAGES[1][1]),
            ("a.seg.png", IMAGES[2][1]),
            ("a.cls", b"3"),
            *((name, b"") for name in others),
            special("pipe.png", tarfile.FIFOTYPE),
        ],
    )
    summary = plan(shard, tmp_path / "plan")
    assert (summary.samples, summary.left_out) == (1, len(others) + 3)
    named = {name: why for _, name, why in summary.left_out_first}
    assert named["a.jpg"] == named["a.seg.png"] == "another image of the sample of a.png"
    assert {*named} == {*others, "a.jpg", "a.seg.png", "pipe.png"}
    (row,) = rows(tmp_path / "plan")
    np.testing.assert_array_equal(row.image, picture(1))
    assert row.label == 3


# Names


TREE = ["a.png", "b.1.png", "b.2.png", f"caf{NFD}/{NFD}.png", "v1.0/x.png", "v1.0/deep/y.z.JPG", "__/w.png"]


def test_one_rule_makes_keys_of_names_everywhere(tmp_path):
    for name in TREE:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(IMAGES[0][1])
    keys = ["a", "b_1", "b_2", "caf\xe9/\xe9", "v1_0/x", "v1_0/deep/y_z", "__/w"]
    content = IMAGES[0][1]
    sources = [tmp_path / "in"]
    for number, form in enumerate(("{}", "./{}", ".//{}")):
        names = [form.format(name).replace("/", "/" * (number or 1)) for name in TREE]
        sources.append(write_tar(tmp_path / f"{number}.tar", [(name, content) for name in names]))
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            for name in names:
                archive.writestr(name, content)
        sources += make_shards(tmp_path / f"{number}.zip", tmp_path / f"of{number}", Options()).shards
    sources += make_shards(tmp_path / "in", tmp_path / "of", Options()).shards
    for source in sources:
        assert {sample.key for sample in index(source)} == set(keys), source
        assert {*Collection("truth", str(source)).places} == set(keys)
        plan(source, tmp_path / "plan", 1)
        assert {row.key: row.error for row in rows(tmp_path / "plan")} == dict.fromkeys(keys), source


@pytest.mark.parametrize("unit_size", [1, 2, 3])
def test_labels_behind_several_images_are_theirs_whatever_a_unit_is(tmp_path, unit_size):
    image = IMAGES[0][1]
    members = [("a.1.png", image), ("a.2.png", image), ("a.2.cls", b"2"), ("a.1.cls", b"1"), ("b.png", image)]
    plan(write_tar(tmp_path / "s.tar", members), tmp_path / "plan", unit_size)
    assert [(row.key, row.label) for row in rows(tmp_path / "plan")] == [("a_1", 1), ("a_2", 2), ("b", None)]


def test_names_that_make_the_same_key_are_told_apart(tmp_path):
    for name in (f"{NFD}.png", "\xe9.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(IMAGES[0][1])
    with pytest.raises(JobError, match=r"in/e\\u0301\.png.*in/\\xe9\.png"):
        plan(tmp_path / "in", tmp_path / "plan")
    with pytest.raises(JobError, match=r"'e\\u0301\.png' and '\\xe9\.png' would get the same key"):
        make_shards(tmp_path / "in", tmp_path / "out", Options())


def test_renaming_is_advised_only_where_it_helps(tmp_path):
    apart = [(f"{i}.{suffix}", IMAGES[0][1]) for suffix in ("png", "cls") for i in range(2)]
    shard = write_tar(tmp_path / "apart.tar", apart)
    with pytest.raises(JobError, match=r"must be adjacent.*--sort=name.*\n  0\.png, 0\.cls\n") as caught:
        plan(shard, tmp_path / "plan")
    assert "rename" not in str(caught.value)
    shard = write_tar(tmp_path / "twice.tar", [*apart, *apart])
    with pytest.raises(JobError, match="rename them"):
        plan(shard, tmp_path / "plan")


def of_the_first_rule(plan: Path) -> None:
    """The plan as versions without the rules wrote it."""
    summary = pq.read_metadata(plan).metadata[b"kintsugi.summary"]
    table = pq.read_table(plan).drop_columns("links")
    pq.write_table(table.replace_schema_metadata({"kintsugi.summary": summary}), plan)


def test_runs_of_the_first_rule_keep_their_keys(tmp_path, monkeypatch):
    members = [("./a.png", 0), ("./v1.0/b.png", 1), ("./.h/c.png", 2), ("d.png", 3)]
    shard = write_tar(tmp_path / "s.tar", [(name, IMAGES[i][1]) for name, i in members])
    with monkeypatch.context() as old:
        old.setattr(shards_module, "Tar", lambda *a, **k: Tar(*a, **k, names=1))
        plan(shard, tmp_path / "plan", 2)
    of_the_first_rule(tmp_path / "plan")
    found = list(rows(tmp_path / "plan"))
    assert [(row.key, row.error) for row in found] == [
        (name.removesuffix(".png"), None) for name, _ in members
    ]
    folder = tmp_path / "in"
    for name in ("a.png", ".h/b.png", "c.gif", ".d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(IMAGES[0][1])
    assert shards_module.fingerprint(folder, 1) == 2
    assert shards_module.fingerprint(folder) == 2
    (folder / ".h" / "e.png").write_bytes(IMAGES[0][1])
    plan(folder, tmp_path / "plan")
    assert read_summary(tmp_path / "plan").left_out == 3
    assert changed_shards(tmp_path / "plan") == []
    of_the_first_rule(tmp_path / "plan")
    assert changed_shards(tmp_path / "plan") == [str(folder)], "whose rule counts what is in hidden folders"


# Folders


@pytest.fixture
def unlisted(monkeypatch):
    """A function that makes a folder one that cannot be listed; the tests may be root's."""

    def refuse(folder: Path) -> None:
        scandir = os.scandir

        def refusing(path):
            if Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(folder))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)

    return refuse


@pytest.mark.parametrize("name", ["sub", "sub/deep", ".hidden", "sub/__MACOSX"])
def test_a_folder_that_cannot_be_listed_is_an_error_unless_it_is_hidden(tmp_path, unlisted, name):
    (tmp_path / "in" / name).mkdir(parents=True)
    for file in ("a.png", f"{name}/b.png"):
        (tmp_path / "in" / file).write_bytes(IMAGES[0][1])
    unlisted(tmp_path / "in" / name)
    if "sub" in Path(name).parts[-1:] or name.endswith("deep"):
        with pytest.raises(JobError, match=rf"Permission denied: .*{name}"):
            plan(tmp_path / "in", tmp_path / "plan")
        with pytest.raises(PermissionError):
            make_shards(tmp_path / "in", tmp_path / "out", Options())
    else:
        summary = plan(tmp_path / "in", tmp_path / "plan")
        assert (summary.samples, summary.left_out_first[0][1:]) == (1, [f"{name}/", "hidden"])
        assert make_shards(tmp_path / "in", tmp_path / "out", Options()).others == [(f"{name}/", "hidden")]


def test_plan_and_shard_say_what_they_leave_out(tmp_path):
    (tmp_path / "in" / ".h").mkdir(parents=True)
    for name in ("a.png", "b.jp2", "c", ".h/d.png"):
        (tmp_path / "in" / name).write_bytes(IMAGES[0][1])
    (tmp_path / "job.yaml").write_text(
        f"data: {{shards: {tmp_path}/in, size: {SIZE}}}\n"
        "degradation: {operator: {name: denoise}, sigma: 0.1}\n"
        f"sampler: {{name: ddnm, steps: 1}}\nmetrics: []\noutput: {tmp_path}/run\n"
    )
    for command in (
        ["plan", tmp_path / "job.yaml", "--no-timing"],
        ["shard", tmp_path / "in", tmp_path / "o"],
    ):
        result = kintsugi(*command)
        assert result.exit_code == 0, result.output
        for said in (
            ": 3\n",
            "b.jp2: .jp2 files are not read",
            "c: a name without a suffix",
            ".h/d.png: hidden",
        ):
            assert said in result.output


def test_a_folder_without_samples_says_what_it_holds(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.jp2").write_bytes(b"")
    with pytest.raises(
        JobError, match=r"no samples in .*\n  left out .*in: b\.jp2: \.jp2 files are not read"
    ):
        plan(tmp_path / "in", tmp_path / "plan")


def test_checksums_that_match_no_shard_are_named(tmp_path):
    paths = [write_tar(tmp_path / f"{i}.tar", IMAGES[i : i + 1]) for i in range(3)]
    lines = [
        f"{checksum(path)}  {name}\n"
        for path, name in zip(paths, ("0.tar", "in/1.tar", "2.tar"), strict=True)
    ]
    (tmp_path / "SHA256SUMS").write_text("".join(lines))
    summary = plan(paths[:2], tmp_path / "plan")
    assert summary.notes == [
        f"{tmp_path}/SHA256SUMS names files that are not there, 1: in/1.tar",
        f"{tmp_path}/SHA256SUMS names not all shards, 1: 1.tar",
    ]
    assert plan([paths[0]], tmp_path / "plan", checksums="ignore").notes == []


# Trees of every kind

FOLDERS = ["plain", "v1.0", f"caf{NFD}", "caf\xe9 2", ".hidden", "__MACOSX", "__meta__", "a b"]
ENDINGS = [
    "",
    f".{NFD}.png",
    *[".png", ".PNG", ".jpg", ".2.png", ".tar.gz", ".gif", ".jp2", ".txt", ".heic", ".", ".npy"],
]


def grown(root: Path, rng: np.random.Generator) -> None:
    """A tree of folders, files, links and pipes, whose names make keys that differ."""
    folders, files = [root], []
    outside = root.parent / "outside.png"
    outside.write_bytes(IMAGES[1][1])
    for number in range(rng.integers(1, 40)):
        folder = folders[rng.integers(len(folders))]
        kind = rng.choice(
            ["folder", "file", "file", "file", "hard", "link", "out", "nowhere", "to a folder", "pipe"]
        )
        name = f"{rng.choice(['', '', '', '.', '._', NFD])}n{number}{rng.choice(ENDINGS)}"
        if kind == "folder":
            folders.append(folder / f"{rng.choice(FOLDERS)}")
            folders[-1].mkdir(exist_ok=True)
        elif kind == "hard" and files:
            os.link(files[rng.integers(len(files))], folder / name)
        elif kind == "link" and files:
            (folder / name).symlink_to(os.path.relpath(files[rng.integers(len(files))], folder))
        elif kind == "to a folder":
            (folder / name).symlink_to(os.path.relpath(folders[rng.integers(len(folders))], folder))
        elif kind in ("out", "nowhere"):
            (folder / name).symlink_to(outside if kind == "out" else "missing")
        elif kind == "pipe":
            os.mkfifo(folder / name)
        else:
            (folder / name).write_bytes(IMAGES[0][1])
            files.append(folder / name)


@pytest.mark.parametrize("seed", range(20))
def test_of_every_tree_what_is_found_is_rows_and_what_was_left_out(tmp_path, seed):
    """In a folder, in a tar of it, and in the shards made of the folder and of a zip of it."""
    rng = np.random.default_rng(seed)
    root = tmp_path / "in"
    root.mkdir()
    grown(root, rng)
    (root / "one.png").write_bytes(IMAGES[0][1])
    entries = [Path(top, name) for top, folders, files in os.walk(root) for name in [*folders, *files]]
    files = [entry for entry in entries if entry.is_symlink() or not entry.is_dir()]
    keys: dict[str, set[str]] = {}

    def planned(path: Path) -> int:
        summary = plan(path, tmp_path / "plan", int(rng.integers(1, 5)))
        found = [row.key for row in rows(tmp_path / "plan")]
        assert len(set(found)) == len(found) == summary.samples
        keys[path.name] = set(found)
        return summary.samples + summary.left_out

    assert planned(root) == len(files)
    with tarfile.open(
        tmp_path / "s.tar", "w", format=rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    ) as tar:
        tar.add(root, arcname=["", "."][rng.integers(2)])
    assert planned(tmp_path / "s.tar") == len(files)
    of_pipes = {key_of(str(file.relative_to(root))) for file in files if file.is_fifo()}
    assert all(key.startswith("__meta__") or key in of_pipes for key in keys["in"] - keys["s.tar"])
    made = make_shards(root, tmp_path / "out", Options())
    assert made.images + len(made.left_out) + len(made.others) == len(files)
    regular = [file for file in files if file.is_file() and not file.is_symlink()]
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for file in regular:
            archive.write(file, file.relative_to(root))
    made = make_shards(tmp_path / "s.zip", tmp_path / "of zip", Options())
    assert made.images + len(made.left_out) + len(made.others) == len(regular)


def test_the_suffixes_that_count_are_those_of_keys():
    for suffix in SUFFIXES:
        assert key_of(f"./a//b.c.{suffix.upper()}") == "a/b_c"


def test_headers_of_a_shard_that_is_no_tar_are_not_looked_for(tmp_path):
    content = np.random.default_rng(0).bytes(2048) + write_tar(tmp_path / "a.tar", IMAGES).read_bytes()
    with pytest.raises(DamagedShard, match="not an uncompressed tar"):
        list(Tar(io.BytesIO(content), len(content), salvage=True).samples())
