"""Images in Parquet, as Hugging Face's `datasets` write them: a column `image` of {bytes, path}, and `label`.

A row is a sample. A page is decoded as a whole, and a value of a dictionary as often as rows name it, so a
file of a few KB could claim any memory. Pages are measured before they are decoded, by their own headers,
and images are read one row at a time: memory is that of a page, however large the groups of rows.
"""

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from kintsugi.errors import JobError, UnreadableImage
from kintsugi.pipeline.data.names import SUFFIXES, as_key, key_of, suffix_of
from kintsugi.pipeline.data.tar import DamagedShard
from kintsugi.pipeline.storage.files import parquet, storage_failed
from kintsugi.pipeline.storage.location import Location

BYTES, PATH, LABEL = "image.bytes", "image.path", "label"
MAX_PAGE = {BYTES: 1 << 30, PATH: 1 << 24, LABEL: 1 << 24}
"""Bytes of a decoded page of each column, and so of its longest value: writers end pages at about 1 MB, or
after 1024 rows."""
MAX_PATH = 1024  # characters of a path that is taken for a name
MAX_FIELDS = 64  # of a struct in the file, which has about ten
MAX_LIST, MAX_DEPTH, OF_PAGES = 1 << 20, 10, 7  # headers of pages have three depths and no lists
MAX_FOOTER = 1 << 23  # bytes: groups are a few hundred each
LISTED = 32  # rows at a time of columns other than bytes
BUFFER = 1 << 22  # bytes that are read at once of a column
NUMBER = re.compile(r".*-\d{7,}", re.DOTALL)  # a key made of a row's number; of a path none is
Chunk = tuple[int, int]
"""First byte and length of a column of a group."""
ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)


@dataclass(frozen=True)
class Row:
    """A row without its image: its name, unique in the file, with the suffix of its path; its class."""

    name: str
    label: int | None


@dataclass(frozen=True)
class Table:
    """An open file, and which of `BYTES`, `PATH` and `LABEL` it has.

    other: the type of a `label` that is no class. chunks: where the columns of each group lie.
    """

    shard: Location
    file: pq.ParquetFile
    columns: tuple[str, ...]
    other: str | None
    chunks: list[dict[str, Chunk]]

    @property
    def groups(self) -> list[int]:
        """Rows of each group."""
        metadata = self.file.metadata
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    def batches(self, columns: list[str], group: int, rows: int) -> Iterator[pa.RecordBatch]:
        """Some columns of a group, so many rows at a time; raises a ValueError for too large pages."""
        with self.shard.open("rb") as file:
            for column in columns:
                refuse_large_pages(file, column, self.chunks[group][column])
        yield from self.file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)

    def rows(self) -> list[Row]:
        """All rows; raises as `batches`.

        The name is the path, or the last part of one that leads elsewhere. Where not every row has one of its
        own, all are named after the file and their number: FILE-0000012.
        """
        names: list[str | None] = []
        labels: list[int | None] = []
        columns = [column for column in self.columns if column != BYTES]
        for group, rows in enumerate(self.groups):
            if not columns:
                names, labels = names + [None] * rows, labels + [None] * rows
                continue
            for batch in self.batches(columns, group, LISTED):
                found = [of_row(row) for row in batch.to_pylist()]
                names += [name_of(path) for _, path, _ in found]
                labels += [label for *_, label in found]
        if len(names) != sum(self.groups):
            raise ValueError(f"{sum(self.groups):,} rows are claimed, and {len(names):,} are there")
        own = [name for name in names if name is not None and not NUMBER.fullmatch(key_of(name))]
        if len({key_of(name) for name in own}) < len(names):
            own = [numbered(self.shard, row) for row in range(len(names))]
        return [Row(name, label) for name, label in zip(own, labels, strict=True)]


def is_parquet(shard: Location) -> bool:
    """Whether a shard is to be read as Parquet, by its name."""
    return shard.name.lower().endswith(".parquet") and not shard.is_dir()


@contextmanager
def opened(shard: Location) -> Iterator[Table]:
    """A file of images; also what is read of it raises these.

    Raises:
        JobError: it has no images in it.
        DamagedShard: it is not readable as Parquet, or claims what cannot be.
        OSError: the storage fails.
    """
    try:
        with parquet(shard, BUFFER) as file:
            columns, other = columns_of(shard, file)
            with shard.open("rb") as raw:
                table = Table(shard, file, columns, other, chunks_of(raw))
            rows, length = table.groups, shard.stat().st_size
            if min(rows, default=0) < 0 or sum(rows) != file.metadata.num_rows or sum(rows) > length:
                raise ValueError("it claims more rows than it has bytes, or in its groups")
            yield table
    except ERRORS as error:
        if isinstance(error, MemoryError) or storage_failed(error, shard):
            raise
        raise DamagedShard(f"not readable as Parquet: {error}") from error


def columns_of(shard: Location, file: pq.ParquetFile) -> tuple[tuple[str, ...], str | None]:
    """Which of `BYTES`, `PATH` and `LABEL` a file has, and the type of a `label` that is no class.

    Raises:
        JobError: no images in it, or columns of one name.
    """
    schema = file.schema_arrow
    types = {name: schema.field(schema.names.index(name)).type for name in schema.names}
    image, label = types.get("image", pa.null()), types.get(LABEL)
    parts = {image.field(i).name: image.field(i).type for i in range(image.num_fields)}
    path = parts.get("path")
    usable = pa.types.is_struct(image) and parts.get("bytes") in (pa.binary(), pa.large_binary())
    if not usable or path not in (None, pa.string(), pa.large_string()):
        listed = ", ".join(f"{name}: {kind}" for name, kind in list(types.items())[:8])
        raise JobError(
            f"data.shards: {shard}: it has no column image of {{bytes: binary, path: string}}; its "
            f"columns: {listed[:500] or 'none'}"
        )
    classes = label is not None and pa.types.is_integer(label)
    found = (BYTES, *([PATH] if path is not None else []), *([LABEL] if classes else []))
    leaves = [file.schema.column(i).path for i in range(len(file.schema))]
    if twice := [name for name in found if leaves.count(name) != 1]:
        raise JobError(f"data.shards: {shard}: more than one column {twice[0]}")
    return found, str(label) if label is not None and not classes else None


def of_row(row: dict[str, Any]) -> tuple[bytes | None, str | None, int | None]:
    """Bytes, path and class of a row; a class below 0 stands for none."""
    image, label = row.get("image") or {}, row.get(LABEL)
    return image.get("bytes"), image.get("path"), label if label is not None and label >= 0 else None


def name_of(path: str | None) -> str | None:
    """The name that a path gives a row, if any: it was somebody's, on another machine."""
    if not path or len(path) > MAX_PATH:
        return None
    where = PurePosixPath(path.replace("\\", "/"))
    if where.is_absolute() or ".." in where.parts or "://" in path:
        where = PurePosixPath(where.name)
    name = str(where)
    return name if name not in (".", "..") and name.isprintable() and key_of(name) else None


def numbered(shard: Location, row: int) -> str:
    """The key of a row whose path is no name of its own."""
    return f"{as_key(PurePosixPath(shard.name).stem)}-{row:07d}"


def read_rows(
    shard: Location, start: int, end: int
) -> Generator[tuple[int, str | None, dict[str, bytes] | Exception], None, None]:
    """Number, path and content of the rows start … end that there are; raises as `opened`.

    The content is the image by the suffix of its path, and `cls`; or why there is none. Rows that cannot be
    read have no path.
    """
    with opened(shard) as table:
        first = 0
        for group, rows in enumerate(table.groups):
            asked = range(max(start, first), min(end, first + rows))
            if asked:
                yield from rows_of_group(table, group, first, asked)
            first += rows


def rows_of_group(
    table: Table, group: int, first: int, asked: range
) -> Generator[tuple[int, str | None, dict[str, bytes] | Exception], None, None]:
    """The rows of a group, of which `first` is the number of the first one; see `read_rows`."""
    following, damage = asked.start, "its group of rows ends early"
    try:
        for number, batch in enumerate(table.batches(list(table.columns), group, 1), first):
            if number >= asked.stop:
                return
            if number >= asked.start:
                following = number + 1
                image, path, label = of_row(batch.to_pylist()[0])
                yield number, path, content_of(image, path, label)
    except ERRORS as error:
        if isinstance(error, MemoryError) or storage_failed(error, table.shard):
            raise
        damage = str(error)
    for number in range(following, asked.stop):
        yield number, None, UnreadableImage(f"the Parquet cannot be read here: {damage}")


def content_of(image: bytes | None, path: str | None, label: int | None) -> dict[str, bytes] | Exception:
    """What a tar would hold of the row."""
    if image is None:
        return UnreadableImage("no bytes in this row of the Parquet, which may name a file elsewhere")
    suffix = suffix_of(path or "")
    known = suffix if suffix in SUFFIXES else SUFFIXES[0]  # what it is says the content
    return {known: image} if label is None else {known: image, "cls": str(label).encode()}


def chunks_of(file: BinaryIO) -> list[dict[str, Chunk]]:
    """Where each column of each group lies, by the column's path: from the footer itself.

    pyarrow ends the process where statistics of a chunk in the footer are damaged and it is asked for these.
    """
    length = file.seek(-8, 2) + 8
    size = int.from_bytes(file.read(4), "little")
    if size > min(MAX_FOOTER, length - 8):
        raise ValueError(f"a footer of {size:,} bytes")
    file.seek(length - 8 - size)
    footer = thrift(BytesIO(file.read(size)))
    groups: list[dict[str, Chunk]] = []
    for group in footer[4]:
        chunks = [chunk[3] for chunk in group[1]]
        places = [(min(filter(None, (chunk.get(11), chunk[9]))), chunk[7]) for chunk in chunks]
        if any(start < 4 or size < 0 or start + size > length for start, size in places):
            raise ValueError("a column lies outside of the file")
        paths = [b".".join(chunk[3]).decode() for chunk in chunks]
        groups.append(dict(zip(paths, places, strict=True)))
    return groups


def refuse_large_pages(file: BinaryIO, name: str, chunk: Chunk) -> None:
    """Raise a ValueError if a page of a column chunk would be too large; their headers alone are read.

    What the file says of the chunk as a whole is no bound: the headers decide what is allocated.
    """
    place, length = chunk
    end = place + length
    while place < end:
        file.seek(place)
        header = thrift(file, OF_PAGES)
        size, packed = header.get(2, -1), header.get(3, -1)
        if not 0 <= size <= MAX_PAGE[name] or packed < 0:
            raise ValueError(f"a page of {name} claims {size:,} bytes; at most {MAX_PAGE[name]:,} are read")
        place = file.tell() + packed


def thrift(file: BinaryIO, depth: int = 0) -> dict[int, Any]:
    """The fields of a struct in Thrift's compact protocol, by number, as in parquet.thrift.

    Of a page's header field 2 is its bytes when decoded, 3 those in the file behind the header. Long texts,
    which are bounds of values, are passed over. Raises a ValueError for what is none.
    """
    found: dict[int, Any] = {}
    number = 0
    for _ in range(MAX_FIELDS):
        head = one_byte(file)
        if head == 0:
            return found
        number = number + (head >> 4) if head >> 4 else integer(file)
        kind = head & 15
        found[number] = kind == 1 if kind in (1, 2) else value(file, kind, depth)
    raise ValueError("a header of a page with too many fields")


def value(file: BinaryIO, kind: int, depth: int) -> Any:
    """A value of one of Thrift's kinds: a number, text, a list or a struct."""
    if kind in (4, 5, 6):
        return integer(file)
    if kind in (1, 2, 3):
        return one_byte(file)
    if kind == 7:
        return file.read(8)
    if kind == 8:
        length = varint(file)
        return file.read(length) if length <= MAX_PATH else file.seek(length, 1)
    if kind in (9, 10) and depth < OF_PAGES:
        head = one_byte(file)
        count = varint(file) if head >> 4 == 15 else head >> 4
        return [value(file, head & 15, depth + 1) for _ in range(min(count, MAX_LIST))]
    if kind == 12 and depth < MAX_DEPTH:
        return thrift(file, depth + 1)
    raise ValueError("a header of a page that is none")


def one_byte(file: BinaryIO) -> int:
    """The next byte; raises a ValueError at the end."""
    if not (byte := file.read(1)):
        raise ValueError("cut inside a page's header")
    return byte[0]


def varint(file: BinaryIO) -> int:
    """A number of seven bits a byte, the lowest ones first."""
    value = 0
    for shift in range(0, 64, 7):
        byte = one_byte(file)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a page's header with too long a number")


def integer(file: BinaryIO) -> int:
    """A number whose sign is its lowest bit (zigzag)."""
    value = varint(file)
    return (value >> 1) ^ -(value & 1)
