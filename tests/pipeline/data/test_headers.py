"""Plain headers are what `tarfile` reads too, and whatever is not plain is left to it."""

import io
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from kit.shards import special, tar_of

from kintsugi.pipeline.data import tar as tars
from kintsugi.pipeline.data.headers import plain_headers
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.tar import DamagedShard, Tar
from kintsugi.pipeline.parts import Data

BLOCK = 512
FILLED = 346  # bytes of a header that say something, where a name is short
HEADERS = (Tar.headers,)


def member(name: str, content: bytes = b"content", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.mtime = 1_700_000_000
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return special(name, tarfile.DIRTYPE)


def three(kind: int) -> bytes:
    """A folder and its three files, one of them empty and one larger than a block."""
    files = (member("a/1.png"), member("a/2.png", b""), member("a/3.png", bytes(range(256)) * 3))
    return tar_of(folder("a"), *files, format=kind)


USTAR, GNU, PAX = (three(kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
TIMES = tar_of(*(member(f"{n}.png", mtime=1.7e9 + n / 8) for n in range(4)), format=tarfile.PAX_FORMAT)
LONG = "/".join(["folder" * 5] * 4) + "/a.png"  # fits ustar's two fields


def odd(*members: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.PAX_FORMAT, **options: Any) -> bytes:
    """A plain file, others, and a plain one."""
    return tar_of(member("a.png"), *members, member("z.png"), format=kind, **options)


HARD, SOFT = special("b.png", tarfile.LNKTYPE, "a.png"), special("c.png", tarfile.SYMTYPE, "a.png")
NAMES = "./b.png", "x//b.png", ".c.png", "__MACOSX/d.png", "__e__/f.png", "/g.png", "__h.png", "k/.l/m.png"
ODD = {
    "prefix": tar_of(member(LONG), member("b.png"), format=tarfile.USTAR_FORMAT),
    "gnu long name": odd(member("b" * 120 + ".png"), kind=tarfile.GNU_FORMAT),
    "pax path": odd(member("b" * 120 + ".png")),
    "pax size": odd(member("b.png", pax_headers={"size": "3"})),
    "pax comment": odd(member("b.png", pax_headers={"comment": "mtime=1"})),
    "global": odd(member("b.png"), pax_headers={"path": "other.png"}),
    "utf-8": odd(member("ä.png"), kind=tarfile.USTAR_FORMAT),
    "large owner": odd(member("b.png", uid=1 << 24), kind=tarfile.GNU_FORMAT),
    "links": odd(HARD, SOFT),
    "pipe": odd(special("b.png", tarfile.FIFOTYPE)),
    "names": odd(*map(member, NAMES)),
    "joined": USTAR + GNU,
    "hole": USTAR + bytes(3 * tarfile.RECORDSIZE),
    "no end": USTAR[: 8 * BLOCK],
    "empty": b"",
    "zeros": bytes(4 * BLOCK),
    "gzip": b"\x1f\x8b" + bytes(2000),
    "text": b"no tar at all, " * 100,
}
WHOLE = {"ustar": USTAR, "gnu": GNU, "pax": PAX, "times": TIMES} | ODD


def told(
    content: bytes, careful: bool, reads: Iterable[Callable[[Tar], Iterator[Any]]], **options: Any
) -> tuple[list[list[Any]], str | None, int]:
    """What a tar is found to hold: headers, or samples too, its damage and its padding."""

    def nothing(*_: Any) -> Iterator[Any]:
        return iter(())

    found: list[list[Any]] = []
    damage = None
    with pytest.MonkeyPatch.context() as patch:
        if careful:
            patch.setattr(tars, "plain_headers", nothing)
        for read in reads:
            found.append([])
            tar = Tar(io.BytesIO(content), len(content), **options)
            try:
                found[-1] += read(tar)
            except DamagedShard as error:
                damage = f"{error}, {error.resume}"
    fields = ("name", "offset", "offset_data", "size", "type")
    found[0] = [tuple(getattr(one, field) for field in fields) for one in found[0]]
    return found, damage, tar.padding


def same(content: bytes, reads: Any = (Tar.headers, Tar.samples), **options: Any) -> None:
    assert told(content, False, reads, **options) == told(content, True, reads, **options)


def plain(content: bytes) -> list[str]:
    return [one.name for one in plain_headers(io.BytesIO(content), 0, len(content), len(content))]


@pytest.mark.parametrize("content", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("options", [{}, {"salvage": True}, {"names": 1}, {"stop": 1024}])
def test_the_same_is_found_without_plain_headers(content, options):
    same(content, **options)


def test_what_is_common_is_plain():
    for content in (USTAR, GNU, PAX):
        assert plain(content) == ["a", "a/1.png", "a/2.png", "a/3.png"]
    assert plain(TIMES) == ["0.png", "1.png", "2.png", "3.png"]
    assert plain(ODD["prefix"]) == [LONG, "b.png"]
    assert plain(ODD["utf-8"]) == plain(ODD["links"]) == ["a.png"]


def test_a_header_that_is_forged_is_as_tarfile_has_it():
    """Every byte of a header, in turn something else; with the checksum as it was, and mended."""
    random.seed(0)
    for content, start in ((USTAR, BLOCK), (TIMES, 0), (TIMES, 2 * BLOCK)):
        for place in range(start, start + FILLED):
            forged = bytearray(content)
            forged[place] = random.choice(b"\0 0789-_x\xff")
            if place % 4 == 0:
                same(bytes(forged), HEADERS)
            block = forged[start : start + BLOCK]
            block[148:156] = b" " * 8
            forged[start + 148 : start + 156] = b"%06o\0 " % sum(block)
            same(bytes(forged), HEADERS)


def test_times_of_pax_are_read_whole_or_not_at_all():
    """Every byte of the records, in turn something else: a length, a keyword, what follows them."""
    for place in [*range(BLOCK, BLOCK + 40), 2 * BLOCK - 1]:
        for value in b"0=\np":
            forged = bytearray(TIMES)
            forged[place] = value
            same(bytes(forged), HEADERS)


def test_a_tar_cut_anywhere_is_damaged_in_the_same_place():
    for content in (USTAR, TIMES):
        for length in [*range(0, 8 * BLOCK, 199), *range(BLOCK, 8 * BLOCK, BLOCK)]:
            same(content[:length])
            same(content[:length], salvage=True)


def test_plans_are_the_same_bytes(tmp_path, monkeypatch):
    contents = [tar_of(*(member(f"{shard}/{n}.png", b"x" * n) for n in range(7))) for shard in range(2)]
    contents.append(ODD["links"])
    paths = [tmp_path / f"{n}.tar" for n in range(3)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)

    def planned(name: str) -> bytes:
        make_plan(Data(shards="unused", size=8), paths, 3, tmp_path / name)
        return (tmp_path / name).read_bytes()

    quick = planned("quick")
    monkeypatch.setattr(tars, "plain_headers", lambda *_: iter(()))
    assert planned("careful") == quick
