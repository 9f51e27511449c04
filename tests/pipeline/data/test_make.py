"""Shards from folders, zips and LMDBs: the same images, in the order asked for, and nothing hostile."""

import errno
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from kit.jobs import kintsugi, write_job
from kit.shards import SIZE, encode, picture, png, zip_of
from PIL import Image

from kintsugi.errors import JobError
from kintsugi.pipeline.data import make as sharding
from kintsugi.pipeline.data.decode import resize_crop
from kintsugi.pipeline.data.make import make_shards
from kintsugi.pipeline.data.make.choosing import Options
from kintsugi.pipeline.data.make.sources import MAX_BYTES, reason
from kintsugi.pipeline.data.make.writing import fit

NAMES = ["cat/a.png", "cat/b.jpg", "dog/c.v2.png", "dog/deep/a.png", "eel/d.webp"]


def content_of(name: str, side: int = 48) -> bytes:
    kind = {"jpg": "JPEG", "JPEG": "JPEG", "webp": "WEBP"}.get(name.rpartition(".")[2], "PNG")
    return encode(picture(zlib.crc32(name.encode()) % 1000, side), kind)


def folder_of(target: Path, names: list[str] = NAMES) -> Path:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content_of(name))
    return target


def write_zip(target: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(zip_of(members, method))
    return target


def lmdb_of(target: Path, entries: dict[bytes, bytes], subdir: bool = True) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(target), map_size=1 << 24, subdir=subdir, sync=False) as environment,
        environment.begin(write=True) as t,
    ):
        for key, content in entries.items():
            t.put(key, content)
    return target


def members(tars: list[Path]) -> dict[str, bytes]:
    """All members of the tars, in order, read without this project."""
    found = {}
    for path in tars:
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lines(path: Path, *text: str) -> Path:
    path.write_text("\n".join(text) + "\n")
    return path


def shard(source: Path, out: Path, **options) -> dict[str, bytes]:
    return members(make_shards(source, out, Options(**options)).shards)


# What is stored


@pytest.mark.parametrize("size", [None, SIZE])
def test_every_kind_of_source_gives_the_same_shards(tmp_path, size):
    contents = {name: content_of(name) for name in NAMES}
    without_suffix = {name.rpartition(".")[0].encode(): content for name, content in contents.items()}
    sources = [
        folder_of(tmp_path / "0/set"),
        write_zip(tmp_path / "1/set.zip", contents),
        write_zip(tmp_path / "2/set.zip", contents, zipfile.ZIP_STORED),
        lmdb_of(tmp_path / "3/set", without_suffix | {b"length": b"5"}),
        lmdb_of(tmp_path / "4/set.lmdb", without_suffix, subdir=False),
    ]
    made = []
    for i, source in enumerate(sources):
        result = make_shards(source, tmp_path / f"out{i}", Options(size=size, per_shard=2))
        assert [path.name for path in result.shards] == [f"set-00000{n}.tar" for n in range(3)]
        assert (result.images, result.left_out) == (5, [])
        made.append([path.read_bytes() for path in result.shards])
    assert all(tars == made[0] for tars in made)
    stored = members(result.shards)
    keys = ["cat/a", "cat/b", "dog/c_v2", "dog/deep/a", "eel/d"]
    if size is None:
        assert stored == {
            f"{key}.{n.rpartition('.')[2]}": contents[n] for key, n in zip(keys, NAMES, strict=True)
        }
    else:
        for key, name in zip(keys, NAMES, strict=True):
            image = Image.open(io.BytesIO(stored[f"{key}.png"]))
            expected = resize_crop(Image.open(io.BytesIO(contents[name])).convert("RGB"), SIZE)
            np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_suffixes_of_lmdb_entries_are_those_of_their_formats(tmp_path):
    kinds = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}
    source = lmdb_of(tmp_path / "set", {kind.encode(): encode(picture(0), kind) for kind in kinds})
    assert sorted(shard(source, tmp_path / "out")) == sorted(f"{kind}.{s}" for kind, s in kinds.items())


def halved(image: np.ndarray) -> np.ndarray:
    """Means of pairs of columns, then of rows, rounded each time: an exact 2×2 box filter in 8 bits."""
    wide = image.astype(int)
    columns = (wide[:, ::2] + wide[:, 1::2] + 1) // 2
    return (columns[::2] + columns[1::2] + 1) // 2


def test_the_adm_crop_halves_by_a_box_filter_before_the_bicubic_one():
    noise = np.random.default_rng(0).integers(0, 256, (64, 112, 3), np.uint8)
    quarter = halved(halved(noise))  # 16 × 28: nothing is left for the bicubic filter
    found = np.asarray(fit(Image.fromarray(noise), 16, "bicubic", "adm"))
    np.testing.assert_array_equal(found, quarter[:, 6:22])
    # Sides that are odd, and a rest that is not a power of two: 101 × 75 → 50 × 37 → 27 × 20.
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (75, 101, 3), np.uint8))
    small = image.resize((50, 37), Image.Resampling.BOX).resize((27, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(fit(image, 20, "bicubic", "adm")), np.asarray(small)[:, 3:23])


def test_filters_and_crops_are_what_they_are_called():
    noise = np.random.default_rng(0).integers(0, 256, (64, 112, 3), np.uint8)
    image = Image.fromarray(noise)
    whole = np.asarray(fit(image, 32, "box", "none"))
    np.testing.assert_array_equal(whole, halved(noise))
    np.testing.assert_array_equal(np.asarray(fit(image, 32, "box", "center")), whole[:, 12:44])
    for name, value in (("bicubic", Image.Resampling.BICUBIC), ("lanczos", Image.Resampling.LANCZOS)):
        np.testing.assert_array_equal(fit(image, 20, name, "none"), image.resize((35, 20), value))
    np.testing.assert_array_equal(fit(image, 20, "bicubic", "center"), resize_crop(image, 20))


def test_options_arrive_in_the_shards(tmp_path):
    source = folder_of(tmp_path / "set", ["a.png"])
    image = Image.open(source / "a.png")
    for name, crop in (("box", "none"), ("lanczos", "adm")):
        arguments = ("--size", "20", "--filter", name, "--crop", crop)
        assert kintsugi("shard", source, tmp_path / crop, *arguments).exit_code == 0
        stored = members([tmp_path / crop / "set-000000.tar"])["a.png"]
        np.testing.assert_array_equal(Image.open(io.BytesIO(stored)), fit(image, 20, name, crop))
        options = json.loads((tmp_path / crop / "manifest.json").read_text())["options"]
        assert (options["size"], options["filter"], options["crop"]) == (20, name, crop)
    with pytest.raises(JobError, match="--filter and --crop say how to resize; give --size too"):
        kintsugi("shard", source, tmp_path / "out", "--crop", "adm")


# Which images, and their labels


@pytest.mark.parametrize("layout", ["n01440764/{}", "{}", "val/n01440764/{}"])
def test_a_list_of_the_literature_fits_every_layout_of_the_folder(tmp_path, layout):
    files = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (293, 236, 262, 307)]
    source = folder_of(tmp_path / "val", [layout.format(name) for name in files])
    chosen = [files[i] for i in (2, 0, 3)]
    names = lines(
        tmp_path / "top1k.txt",
        *(f"n01440764/{n} {label}" for n, label in zip(chosen, (7, 0, 12), strict=True)),
    )
    stored = shard(source, tmp_path / "out", names=names, per_shard=2)
    expected = []
    for name, label in zip(chosen, (b"7", b"0", b"12"), strict=True):
        key = layout.format(name).removesuffix(".JPEG")
        expected += [(f"{key}.cls", label), (f"{key}.jpeg", content_of(layout.format(name)))]
    assert list(stored.items()) == expected


def test_folders_as_labels_keep_their_positions_in_a_subset(tmp_path):
    source = folder_of(tmp_path / "set")
    (source / "bee").symlink_to(tmp_path)  # its images are left out, its position is not
    stored = shard(source, tmp_path / "all", labels="folders")
    labels = {name: int(content) for name, content in stored.items() if name.endswith(".cls")}
    assert labels == {"cat/a.cls": 1, "cat/b.cls": 1, "dog/c_v2.cls": 2, "dog/deep/a.cls": 2, "eel/d.cls": 3}
    manifest = json.loads((tmp_path / "all" / "manifest.json").read_text())
    assert manifest["classes"] == ["bee", "cat", "dog", "eel"]
    some = shard(
        source, tmp_path / "some", labels="folders", names=lines(tmp_path / "names", "d.webp", "c.v2")
    )
    assert {name: some[name] for name in some if name.endswith(".cls")} == {
        "eel/d.cls": b"3",
        "dog/c_v2.cls": b"2",
    }


def test_labels_from_a_file(tmp_path):
    source = folder_of(tmp_path / "set")
    by = ["cat/a.png 5", "b.jpg 6", "dog/c_v2 7", "deep/a 8", "d.webp 9", "not/there.png 1"]
    stored = shard(source, tmp_path / "out", labels=str(lines(tmp_path / "labels.txt", *by)))
    labels = [int(content) for name, content in stored.items() if name.endswith(".cls")]
    assert labels == [5, 6, 7, 8, 9]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["options"]["labels"] == "labels.txt"


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        (
            "list",
            ["x.png", "cat/y", "cat/a.png", "z", "w"],
            r"4 names are not in .*/set: x\.png, cat/y, z, …",
        ),
        ("list", ["dog/b.jpg"], r"1 name is not in"),  # only cat has a b
        ("list", ["a.png", "b.jpg"], r"1 name is ambiguous: a\.png"),
        ("list", ["cat/a.png", "cat/a"], r"2 names are there twice: cat/a\.png, cat/a"),
        ("list", ["cat/a.png 3", "b.jpg"], r"1 name is without a label, which others have: b\.jpg"),
        ("list", [], r"no images"),
        ("labels", ["cat/a.png 3", "b.jpg three"], r"1 name is without a label: b\.jpg three"),
        ("labels", ["cat/a.png 3", "b.jpg 1"], r"3 names are in .*/set and not in it: dog/c\.v2\.png"),
        ("labels", ["a.png 3"], r"1 name is ambiguous"),
    ],
)
def test_lines_that_do_not_fit_the_source_are_named(tmp_path, option, text, message):
    file = lines(tmp_path / "lines.txt", *text)
    with pytest.raises(JobError, match=rf"--{option} .*lines\.txt: {message}" if text else message):
        kintsugi("shard", folder_of(tmp_path / "set"), tmp_path / "out", f"--{option}", file)
    assert not (tmp_path / "out").exists()


def test_files_of_lines_that_cannot_be_used_are_refused(tmp_path):
    source = folder_of(tmp_path / "set", ["a.png", "cat/b.png"])
    with pytest.raises(JobError, match=r"--list .*/nowhere: cannot be read"):
        shard(source, tmp_path / "out", names=tmp_path / "nowhere")
    with pytest.raises(JobError, match=r"--labels .*: cannot be read"):
        shard(source, tmp_path / "out", labels=str(source / "a.png"))
    with pytest.raises(JobError, match="has labels itself; leave --labels away"):
        shard(source, tmp_path / "out", labels="folders", names=lines(tmp_path / "names", "cat/b.png 1"))
    with pytest.raises(JobError, match=r"--labels folders: 1 name is in no folder: a\.png"):
        shard(source, tmp_path / "out", labels="folders")


# The manifest, and continuing


def test_the_manifest_and_the_checksums_say_what_is_there(tmp_path):
    source = folder_of(tmp_path / "private" / "my set")
    (source / "cat/broken.jpg").write_bytes(b"no image")
    result = kintsugi("shard", source, tmp_path / "out", "--size", SIZE, "--per-shard", "3")
    assert result.exit_code == 2
    assert "left out cat/broken.jpg: UnidentifiedImageError" in result.output
    assert "5 images in 2 shards" in result.output
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert "private" not in text
    manifest = json.loads(text)
    assert manifest["source"] == "my set"
    assert manifest["images"] == 5
    assert [(s["name"], s["samples"]) for s in manifest["shards"]] == [
        ("my set-000000.tar", 2),
        ("my set-000001.tar", 3),
    ]
    for entry in manifest["shards"]:
        content = (tmp_path / "out" / entry["name"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    (left_out,) = manifest["left_out"]
    assert (left_out["shard"], left_out["name"]) == ("my set-000000.tar", "cat/broken.jpg")
    sums = (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()
    assert sums == [f"{s['sha256']}  {s['name']}" for s in manifest["shards"]]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=tmp_path / "out", check=True)
    again = kintsugi("shard", source, tmp_path / "out", "--size", SIZE, "--per-shard", "3")
    assert again.exit_code == 2
    assert (tmp_path / "out" / "manifest.json").read_text() == text


@pytest.mark.parametrize("images_before", range(0, 6, 2))
def test_an_interrupted_command_continues_to_the_same_bytes(tmp_path, images_before):
    source = folder_of(tmp_path / "set")
    (source / "cat/broken.png").write_bytes(b"no image")
    (source / "bee.png").symlink_to("/dev/null")
    options = Options(size=SIZE, per_shard=2)
    make_shards(source, tmp_path / "whole", options)

    def interrupt(done: int, total: int) -> None:
        assert total == 6
        if done == images_before + 1:  # in the middle of a shard
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make_shards(source, out, options, interrupt)
    finished = sorted(out.glob("*.tar"))
    assert len(finished) == images_before // 2
    assert sorted(files(out)) == sorted([".manifest.json", *(path.name for path in finished)])
    (out / f".{'0' * 8}-1-{'0' * 16}.tmp").write_bytes(b"left by a killed process")
    (out / f"set-{images_before // 2:06d}.tar").write_bytes(b"of which the record was not written any more")
    inodes = {path: path.stat().st_ino for path in finished}
    counts = []
    make_shards(source, out, options, lambda done, total: counts.append(done))
    assert counts == list(range(images_before, 7))
    assert files(out) == files(tmp_path / "whole")
    assert {path: path.stat().st_ino for path in finished} == inodes
    (out / "set-000001.tar").unlink()
    make_shards(source, out, options)
    assert files(out) == files(tmp_path / "whole")


def test_exit_code_130_and_continuation_after_ctrl_c(tmp_path, monkeypatch):
    original = sharding.write_shard

    def interrupted(target, stored):
        if target.name == "set-000001.tar":
            raise KeyboardInterrupt
        return original(target, stored)

    monkeypatch.setattr(sharding, "write_shard", interrupted)
    command = ("shard", folder_of(tmp_path / "set"), tmp_path / "out", "--per-shard", 2)
    result = kintsugi(*command)
    assert result.exit_code == 130
    assert "the same command continues" in result.output
    monkeypatch.undo()
    result = kintsugi(*command)
    assert result.exit_code == 0
    assert "2 of 5 images were done before" in result.output


def test_shards_of_something_else_are_not_mixed(tmp_path):
    source, out = folder_of(tmp_path / "set"), tmp_path / "out"
    make_shards(source, out, Options(size=SIZE, per_shard=2))
    before = files(out)
    for options, message in [
        ({"size": 16}, "size was 32, now is 16"),
        ({"filter": "box"}, "filter was bicubic, now is box"),
        ({"crop": "adm"}, "crop was center, now is adm"),
        ({"per_shard": 3}, "per_shard was 2, now is 3"),
        ({"labels": "folders"}, "labels was None, now is folders"),
        ({"names": lines(tmp_path / "names.txt", "b.jpg")}, r"list was None, now is names\.txt"),
    ]:
        with pytest.raises(JobError, match=f"{out}: holds other shards: .*{message}.* Choose another folder"):
            make_shards(source, out, Options(**{"size": SIZE, "per_shard": 2, **options}))
    with pytest.raises(JobError, match="source was set, now is other"):
        make_shards(folder_of(tmp_path / "other"), out, Options(size=SIZE, per_shard=2))
    (source / "cat/a.png").write_bytes(content_of("another"))
    with pytest.raises(
        JobError, match="5 images were listed, now 5, or their names, sizes or labels changed"
    ):
        make_shards(source, out, Options(size=SIZE, per_shard=2))
    assert files(out) == before
    (out / "manifest.json").write_text("[]")
    with pytest.raises(JobError, match=r"manifest\.json: not a manifest"):
        make_shards(source, out, Options(size=SIZE, per_shard=2))
    (out / "manifest.json").unlink()
    with pytest.raises(JobError, match=r"holds tars, and no manifest\.json"):
        make_shards(source, out, Options(size=SIZE, per_shard=2))


# What is left out, and what is refused


def test_sources_that_are_none_are_refused(tmp_path):
    (tmp_path / "text").write_text("no zip")
    (tmp_path / "broken.zip").write_bytes(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 99, 0, 0))
    (tmp_path / "junk.mdb").write_bytes(bytes(9999))
    (tmp_path / "empty").mkdir()
    for name, message in [
        ("nothing", "no such file"),
        ("text", "neither a folder, a zip, an LMDB nor Parquet"),
        ("broken.zip", "not a readable zip"),
        ("junk.mdb", "not a readable LMDB"),
        ("empty", r"no images \(png, jpg"),
    ]:
        with pytest.raises(JobError, match=f"{tmp_path / name}: {message}"):
            make_shards(tmp_path / name, tmp_path / "out", Options())
    twice = tmp_path / "twice.zip"
    twice.write_bytes(zip_of({"a.png": b"", "b.png": b""}).replace(b"b.png", b"a.png"))
    with pytest.raises(JobError, match=r"a\.png is in it twice"):
        make_shards(twice, tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()


def test_two_files_with_one_key_are_refused(tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(encode(picture(0)))
    with pytest.raises(JobError, match=r"a\.jpg and a\.png would get the same key 'a'"):
        kintsugi("shard", tmp_path, tmp_path / "out")


def test_an_lmdb_that_was_cut_is_refused_before_it_kills_the_process(tmp_path):
    source = lmdb_of(tmp_path / "set", {b"%04d" % i: content_of(str(i)) for i in range(20)})
    file = source / "data.mdb"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(JobError, match=r"set: cut at \d+ of \d+ bytes; fetch it again"):
        make_shards(source, tmp_path / "out", Options())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    source = lmdb_of(tmp_path / "set", {b"a": content_of("a")})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(JobError, match=r"pip install 'kintsugi\[lmdb\]'"):
        make_shards(source, tmp_path / "out", Options())


HOSTILE = {
    "/etc/absolute.png": "absolute path",
    "C:\\temp\\a.png": "backslash",
    "red\x1b[31m.png": "control characters",
    "__meta__/a.png": "__underscores__",
    f"{'long' * 70}.png": "too long for a tar",
}


def test_hostile_names_in_a_zip_are_only_ever_keys(tmp_path):
    names = ["../../outside.png", "a/../../b.png", "__MACOSX/._a.png", "a/.hidden.png", *HOSTILE]
    source = write_zip(tmp_path / "in/set.zip", {name: content_of(name) for name in names})
    result = kintsugi("shard", source, tmp_path / "in/out")
    assert result.exit_code == 2
    assert "\x1b" not in result.output
    stored = members(sorted((tmp_path / "in/out").glob("*.tar")))
    assert list(stored) == ["__/__/outside.png", "a/__/__/b.png"]
    left_out = json.loads((tmp_path / "in/out/manifest.json").read_text())["left_out"]
    reasons = {entry["name"]: entry["reason"] for entry in left_out}
    assert len(reasons) == len(HOSTILE) + 2
    assert reasons["__MACOSX/._a.png"] == reasons["a/.hidden.png"] == "hidden"
    for name, part in HOSTILE.items():
        assert part in reasons[name.replace("\x1b", "\\x1b")]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "SHA256SUMS",
        "in",
        "manifest.json",
        "out",
        "set-000000.tar",
        "set.zip",
    ]


def test_names_that_are_not_utf8_are_left_out(tmp_path):
    source = folder_of(tmp_path / "set", ["a.png"])
    try:
        Path(os.fsdecode(os.fsencode(source) + b"/\xff.png")).write_bytes(content_of("b"))
    except OSError:
        pytest.skip("the file system has no such names")
    for i, this in enumerate((source, lmdb_of(tmp_path / "db", {b"a": content_of("a"), b"\xff.png": b""}))):
        result = make_shards(this, tmp_path / f"out{i}", Options())
        assert [name for name, _ in result.left_out] == ["\\udcff.png"]
        assert result.images == 1
        json.loads((tmp_path / f"out{i}" / "manifest.json").read_bytes().decode("ascii"))


def test_links_that_lead_out_of_a_folder_are_left_out(tmp_path):
    source = folder_of(tmp_path / "set", ["a.png", "sub/b.png"])
    outside = folder_of(tmp_path / "outside", ["secret.png"])
    (source / "c.png").symlink_to("sub/b.png")
    (source / "d.png").symlink_to(outside / "secret.png")
    (source / "e").symlink_to(outside)
    (source / "f.png").symlink_to("nowhere.png")
    os.mkfifo(source / "g.png")
    result = make_shards(source, tmp_path / "out", Options())
    assert list(members(result.shards)) == ["a.png", "c.png", "sub/b.png"]
    assert result.left_out == [
        ("d.png", "a link that leads out of the folder"),
        ("e/", "a link to a folder, which is not followed"),
        ("f.png", "a link that leads nowhere"),
        ("g.png", "not a regular file"),
    ]
    with pytest.raises(JobError, match=r"not in .* \(4 left out: d\.png: a link that leads out"):
        make_shards(source, tmp_path / "list", Options(names=lines(tmp_path / "names", "d.png")))


def patched(source: Path, name: str, offset: int, value: bytes) -> None:
    """Overwrite a field of a member's entry in the central directory."""
    content = bytearray(source.read_bytes())
    entry = content.index(b"PK\1\2", content.index(b"PK\1\2"))
    while content[entry + 46 : entry + 46 + len(name)] != name.encode():
        entry = content.index(b"PK\1\2", entry + 4)
    content[entry + offset : entry + offset + len(value)] = value
    source.write_bytes(content)


def test_members_of_a_zip_that_cannot_be_read_are_left_out(tmp_path):
    names = ["good.png", "corrupt.png", "encrypted.png", "huge.png", "strange.png"]
    source = write_zip(tmp_path / "set.zip", {name: content_of(name) for name in names})
    with zipfile.ZipFile(source, "a", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("bz2.png", content_of("bz2"))
    patched(source, "encrypted.png", 8, b"\1\0")
    patched(source, "huge.png", 24, struct.pack("<I", MAX_BYTES + 1))
    patched(source, "strange.png", 10, struct.pack("<H", 98))
    content = bytearray(source.read_bytes())
    content[content.index(b"corrupt.png") + 500] ^= 255
    source.write_bytes(content)
    result = make_shards(source, tmp_path / "out", Options())
    assert list(members(result.shards)) == ["good.png"]
    reasons = dict(result.left_out)
    assert reasons["bz2.png"] == "ValueError: compression method 12: only deflate is read"
    assert reasons["strange.png"] == "ValueError: compression method 98: only deflate is read"
    assert "is encrypted" in reasons["encrypted.png"]
    assert "268,435,457 bytes, more than 268,435,456" in reasons["huge.png"]
    assert "rror" in reasons["corrupt.png"] or "Bad" in reasons["corrupt.png"]
    again = make_shards(source, tmp_path / "again", Options())
    assert files(tmp_path / "again") == files(tmp_path / "out"), "reasons are the same each time"
    assert again.left_out == result.left_out


def test_a_member_that_says_it_is_small_is_not_unpacked_beyond_that(tmp_path):
    bomb = bytes(1 << 27)
    source = write_zip(tmp_path / "set.zip", {"a.png": content_of("a"), "bomb.png": bomb})
    patched(source, "bomb.png", 24, struct.pack("<I", 1000))
    tracemalloc.start()
    result = make_shards(source, tmp_path / "out", Options())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [name for name, _ in result.left_out] == ["bomb.png"]
    assert peak < 1 << 24


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_of_too_many_pixels_are_left_out_undecoded(tmp_path):
    source = folder_of(tmp_path / "set", ["a.png"])
    (source / "huge.png").write_bytes(png(10_001, 10_000))
    (source / "monstrous.png").write_bytes(png(100_000, 100_000))
    (source / "thin.png").write_bytes(encode(np.zeros((1, 20_000, 3), np.uint8)))
    result = make_shards(source, tmp_path / "out", Options(size=128))
    reasons = dict(result.left_out)
    assert "10001x10000 pixels, more than 100,000,000" in reasons["huge.png"]
    assert "DecompressionBombError" in reasons["monstrous.png"]
    assert "20000x1 would become 2560000x128 pixels" in reasons["thin.png"]
    assert result.images == 1


def test_files_that_would_start_other_programs_are_no_images(tmp_path):
    source = folder_of(tmp_path / "set", ["a.png"])
    (source / "ghost.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    ((name, why),) = make_shards(source, tmp_path / "out", Options()).left_out
    assert (name, why[:22]) == ("ghost.png", "UnidentifiedImageError")


def test_an_error_of_the_storage_is_no_fault_of_one_image():
    assert (
        reason(PermissionError(errno.EACCES, "Permission denied", "/home/me/a.png"))
        == "PermissionError: Permission denied"
    )
    with pytest.raises(OSError, match="Input/output error"):
        reason(OSError(errno.EIO, "Input/output error"))


def test_shards_are_restored_in_the_order_of_a_list_and_with_its_labels(make_job, tmp_path):
    source = folder_of(tmp_path / "set")
    (source / "notes.txt").write_text("ignored")
    names = lines(tmp_path / "names.txt", "", "eel/d.webp 3", "  c.v2\t0  ", "cat/a.jpg 123456789012345678")
    made = kintsugi("shard", source, tmp_path / "out", "--size", SIZE, "--list", names, "--per-shard", 2)
    assert made.exit_code == 0
    job = make_job(data={"shards": f"{tmp_path}/out/set-{{000000..000001}}.tar", "size": SIZE})
    write_job(tmp_path / "job.yaml", job)
    assert kintsugi("run", tmp_path / "job.yaml", "--address", "none").exit_code == 0
    rows = pq.read_table(Path(job.output) / "report" / "rows.parquet")
    assert rows["key"].to_pylist() == ["eel/d", "dog/c_v2", "cat/a"]
    assert rows["label"].to_pylist() == [3, 0, 123456789012345678]
