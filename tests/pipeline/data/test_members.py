"""Members of a sample beside its image: which belong to which, and what is said where one is missing."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from kit.shards import SIZE, encode, picture, special, tar_of, write_parquet, write_tar
from pydantic import ValidationError

from kintsugi.errors import JobError
from kintsugi.pipeline.data import read
from kintsugi.pipeline.data.convert import Images
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.read import read_unit
from kintsugi.pipeline.data.units import PlanSummary, read_members, read_units
from kintsugi.pipeline.parts import Data
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish_bytes
from kintsugi.pipeline.wanted import IMAGE_ONLY, Truth, Wanted

MASKED = Wanted(beside=("mask.png", "sigma.txt"))


def planned(
    shard: Location, plan: Path, wanted: Wanted = MASKED, unit_size: int = 2, **data
) -> tuple[PlanSummary, list[Decoded]]:
    """The plan of a shard, and its samples as they are read by it."""
    settings = Data(shards="unused", size=SIZE, **data)
    summary = make_plan(settings, [shard], unit_size, plan, wanted=wanted)
    units = [(unit, read_members(plan, unit)) for unit in read_units(plan)]
    batches = (b for u, m in units for b in read_unit(u, m, Images(SIZE, "exact"), 2, wanted=wanted))
    return summary, [sample for batch in batches for sample in batch]


def mask(number: int) -> bytes:
    return encode(picture(100 + number)[..., 0])


def files_of(number: int) -> dict[str, bytes]:
    """By what follows the key, the files of a sample."""
    return {
        "png": encode(picture(number)),
        "cls": str(number).encode(),
        "mask.png": mask(number),
        "sigma.txt": b"0.%d" % number,
    }


def members(key: str, number: int, order: Sequence[str]) -> list[tuple[str, bytes]]:
    return [(f"{key}.{end}", files_of(number)[end]) for end in order]


def check(sample: Decoded, number: int) -> None:
    """It is the sample of this number, with its own files beside it."""
    assert sample.error is None
    np.testing.assert_array_equal(sample.image, picture(number))
    assert sample.beside == {"mask.png": mask(number), "sigma.txt": b"0.%d" % number}


ORDERS = [
    ("png", "cls", "mask.png", "sigma.txt"),
    ("mask.png", "png", "sigma.txt", "cls"),
    ("sigma.txt", "mask.png", "cls", "png"),
]


def written(place: Location, content: list[tuple[str, bytes]], kind: str) -> Location:
    """A tar or a folder of these files."""
    if kind == "tar":
        content = [("s.tar", tar_of(*content))]
    for name, of in content:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(place / name, of)
    return place / "s.tar" if kind == "tar" else place


@pytest.mark.parametrize("kind", ["tar", "folder"])
@pytest.mark.parametrize("unit_size", [1, 2, 3])
def test_each_sample_has_its_own_files_in_whatever_order_and_unit(place, tmp_path, kind, unit_size):
    content = [one for n, order in enumerate(ORDERS) for one in members(f"a/{n}", n, order)]
    summary, samples = planned(written(place, content, kind), tmp_path / "plan", unit_size=unit_size)
    assert [sample.key for sample in samples] == ["a/0", "a/1", "a/2"]
    for number, sample in enumerate(samples):
        check(sample, number)
        assert kind == "folder" or sample.label == number
    # In a folder classes have never been read, and are named.
    assert summary.left_out == (0 if kind == "tar" else 3)


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_names_with_more_dots_have_files_beside_them_too(tmp_path, kind):
    content = [
        ("photo.v1.mask.png", mask(1)),
        ("photo.v2.mask.png", mask(2)),
        ("photo.v1.png", encode(picture(1))),
        ("photo.v1.sigma.txt", b"0.1"),
        ("photo.v2.sigma.txt", b"0.2"),
        ("photo.v2.png", encode(picture(2))),
    ]
    for unit_size in (1, 2):
        shard = written(tmp_path / f"{kind}{unit_size}", content, kind)
        summary, samples = planned(shard, tmp_path / "plan", unit_size=unit_size)
        assert [sample.key for sample in samples] == ["photo_v1", "photo_v2"]
        check(samples[0], 1)
        check(samples[1], 2)
        assert summary.left_out == 0


def test_where_nothing_is_asked_for_all_is_as_before(tmp_path):
    content = [("a.mask.png", mask(0)), *members("b", 1, ORDERS[0]), *members("c", 2, ORDERS[1])]
    summary, samples = planned(write_tar(tmp_path / "s.tar", content), tmp_path / "plan", IMAGE_ONLY)
    assert [(s.key, s.beside) for s in samples] == [("a_mask", {}), ("b", {}), ("c", {})]
    assert [row[1:] for row in summary.left_out_first] == [
        [f"{key}.mask.png", f"another image of the sample of {key}.png"] for key in "bc"
    ]
    folder = written(tmp_path / "folder", content, "folder")
    _, samples = planned(folder, tmp_path / "plan", IMAGE_ONLY)
    assert [sample.key for sample in samples] == ["a_mask", "b_mask", "b", "c_mask", "c"]


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_a_missing_file_fails_its_sample_and_one_without_a_sample_is_named(tmp_path, kind):
    content = [
        *members("a", 0, ORDERS[0]),
        *members("b", 1, ("png", "sigma.txt")),
        *members("c", 2, ("mask.png", "sigma.txt")),
        *members("d", 3, ("sigma.txt", "png", "mask.png")),
    ]
    shard = written(tmp_path / kind, content, kind)
    summary, samples = planned(shard, tmp_path / "plan")
    assert [sample.key for sample in samples] == ["a", "b", "d"]
    check(samples[0], 0)
    check(samples[2], 3)
    assert samples[1].error.startswith("MissingMember: b.mask.png is not ")
    named = [row[1:] for row in summary.left_out_first if row[1] != "a.cls"]
    assert named == [[f"c.{end}", "its key has no image next to it"] for end in ("mask.png", "sigma.txt")]


def test_files_that_are_not_adjacent_in_a_tar_are_named_and_their_samples_fail(tmp_path):
    both = [(f"{key}.{end}", files_of(n)[end]) for end in ("png", "mask.png") for n, key in enumerate("ab")]
    shard = write_tar(tmp_path / "s.tar", both)
    summary, samples = planned(shard, tmp_path / "plan", Wanted(beside=("mask.png",)))
    assert [sample.error for sample in samples] == [
        f"MissingMember: {key}.mask.png is not next to it in the tar" for key in "ab"
    ]
    assert summary.left_out == 2


def test_an_array_is_a_mask_where_it_is_asked_for_and_not_the_image(tmp_path):
    content = [("a.npy", b"the mask"), ("a.png", encode(picture(0)))]
    for kind in ("tar", "folder"):
        shard = written(tmp_path / kind, content, kind)
        _, [sample] = planned(shard, tmp_path / "plan", Wanted(beside=("npy",)))
        assert (sample.key, sample.beside) == ("a", {"npy": b"the mask"})
        np.testing.assert_array_equal(sample.image, picture(0))


def test_of_two_names_that_a_file_ends_with_the_longer_is_meant(tmp_path):
    content = [("a.png", encode(picture(0))), ("a.k.txt", b"k"), ("a.txt", b"t")]
    for kind in ("tar", "folder"):
        shard = written(tmp_path / kind, content, kind)
        _, [sample] = planned(shard, tmp_path / "plan", Wanted(beside=("txt", "k.txt")))
        assert sample.beside == {"txt": b"t", "k.txt": b"k"}


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch, kind):
    shard = written(tmp_path / kind, [("a.png", encode(picture(0))), ("a.mask.png", bytes(999))], kind)
    monkeypatch.setattr(read, "MAX_BESIDE", 998)
    _, [sample] = planned(shard, tmp_path / "plan", Wanted(beside=("mask.png",)))
    assert sample.error == "UnreadableImage: a.mask.png: a file of 999 bytes, more than 998"


def test_a_link_is_the_file_that_it_leads_to_and_one_to_nothing_fails(tmp_path):
    content = [
        ("a.png", encode(picture(0))),
        ("a.mask.png", mask(0)),
        ("b.png", encode(picture(1))),
        special("b.mask.png", tarfile.SYMTYPE, "a.mask.png"),
        ("c.png", encode(picture(2))),
        special("c.mask.png", tarfile.SYMTYPE, "nowhere.png"),
    ]
    shard = write_tar(tmp_path / "s.tar", content)
    _, samples = planned(shard, tmp_path / "plan", Wanted(beside=("mask.png",)), unit_size=1)
    assert [sample.beside for sample in samples[:2]] == [{"mask.png": mask(0)}] * 2
    assert "nowhere.png" in samples[2].error


def test_a_folder_is_not_left_through_a_file_beside_a_sample(tmp_path):
    folder = written(tmp_path / "in", [("a.png", encode(picture(0)))], "folder")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "a.mask.png").symlink_to(tmp_path / "secret")
    _, [sample] = planned(folder, tmp_path / "plan", Wanted(beside=("mask.png",)))
    assert sample.error == "UnreadableImage: a.mask.png: a link that leads out of the folder"


@pytest.mark.parametrize("cut", ["image", "mask"])
def test_a_tar_that_is_cut_inside_a_sample_fails_that_one_alone(tmp_path, cut):
    content = tar_of(*members("a", 0, ORDERS[0]), *members("b", 1, ("sigma.txt", "mask.png", "png")))
    at = content.index(files_of(1)["png" if cut == "image" else "mask.png"]) + 20
    (tmp_path / "s.tar").write_bytes(content[:at])
    _, samples = planned(tmp_path / "s.tar", tmp_path / "plan", damaged="salvage")
    check(samples[0], 0)
    if cut == "image":
        assert "it ends inside this sample" in samples[1].error
    else:  # of which no image is left: it is damage that planning names
        assert len(samples) == 1


def test_every_file_is_of_a_row_or_named(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{key}.{end}" for key in "abcdef" for end in ("png", "mask.png", "sigma.txt", "x.png")]
    for trial in range(20):
        some = [name for name in names if rng.random() < 0.5]
        folder = written(tmp_path / f"f{trial}", [(name, b"x") for name in some], "folder")
        summary, samples = planned(folder, tmp_path / "plan")
        keys = {sample.key for sample in samples}
        beside = [n for n in some if n.endswith((".mask.png", ".sigma.txt")) and n[0] in keys]
        assert len(some) == len(samples) + len(beside) + summary.left_out


def test_parquet_has_no_members(tmp_path):
    table = write_parquet(tmp_path / "t.parquet", [(encode(picture(0)), "a.png")])
    with pytest.raises(JobError, match=r"is Parquet, whose rows have no member mask\.png; use a tar or a fo"):
        planned(table, tmp_path / "plan")


HIGH = Wanted("hr.png")


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_a_member_is_the_sample_and_what_else_its_key_has_is_not_looked_at(place, tmp_path, kind):
    content = [
        ("x/a.cls", b"7"),
        ("x/a.lr.png", b"never decoded"),
        ("x/a.hr.png", encode(picture(0))),
        ("x/b.hr.png", encode(picture(1))),
        ("x/b.json", b"{}"),
        ("x/b.lr.png", b"never decoded"),
        ("x/c.lr.png", b"of no sample"),
    ]
    for unit_size in (1, 2):
        summary, samples = planned(written(place, content, kind), tmp_path / "plan", HIGH, unit_size)
        assert [sample.key for sample in samples] == ["x/a", "x/b"]
        for number, sample in enumerate(samples):
            np.testing.assert_array_equal(sample.image, picture(number))
        assert samples[0].label == (7 if kind == "tar" else None)
        assert [row[1:] for row in summary.left_out_first] == [
            ["x/c.lr.png", "its key has no hr.png next to it"]
        ]


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_a_member_is_the_whole_of_what_follows_the_key_where_it_can_be(tmp_path, kind):
    content = [
        ("a.mask.png", b"another file of a, not the sample a_mask"),
        ("a.png", encode(picture(0))),
        ("photo.v1.hr.png", b"another file of no sample"),
        ("photo.v1.png", encode(picture(1))),
        ("photo.v2.png", encode(picture(2))),
    ]
    shard = written(tmp_path / kind, content, kind)
    _, samples = planned(shard, tmp_path / "plan", Wanted("png"))
    assert [sample.key for sample in samples] == ["a", "photo_v1_hr", "photo_v1", "photo_v2"]
    shard = written(tmp_path / f"{kind}2", content, kind)
    _, [sample] = planned(shard, tmp_path / "plan", HIGH)
    assert sample.key == "photo_v1"


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_a_member_may_have_files_beside_it_and_one_may_be_what_else_would_be_the_image(tmp_path, kind):
    content = [("a.png", b"one"), ("a.hr.png", encode(picture(0))), ("a.k.npy", b"two")]
    shard = written(tmp_path / kind, content, kind)
    _, [sample] = planned(shard, tmp_path / "plan", Wanted("hr.png", ("png", "k.npy")))
    assert sample.beside == {"png": b"one", "k.npy": b"two"}
    np.testing.assert_array_equal(sample.image, picture(0))


def test_a_member_that_is_no_image_is_refused(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("a.mat", b"")])
    with pytest.raises(JobError, match=r"data\.member: 'x\.mat' is no image; its suffix is none of png, "):
        planned(shard, tmp_path / "plan", Wanted("x.mat"))
    with pytest.raises(JobError, match=r"data\.truth\.member: 'hr\.npy' is no image"):
        planned(shard, tmp_path / "plan", Wanted("png", (), Truth("hr.npy")))


@pytest.mark.parametrize("name", ["", ".png", "a/b.png", "../a.png", "/png", "."])
def test_a_name_that_is_none_of_a_member_is_refused(name):
    with pytest.raises(ValidationError, match="member"):
        Data(shards="unused", member=name)


def test_old_jobs_are_as_they_were_and_a_member_is_a_part_of_a_new_one():
    plain = Data(shards="unused")
    assert {"member", "truth"}.isdisjoint(plain.model_dump(mode="json"))
    assert plain.wanted == IMAGE_ONLY
    found = Data(shards="unused", member="lr.png", truth={"member": "hr.png"}, kind="measurements")
    assert Data.model_validate(found.model_dump(mode="json")) == found
    assert found.wanted == Wanted("lr.png", (), Truth("hr.png"))
