"""What a run keeps beside its rows, and how it is known to be what was written.

JSON records end with a digest of themselves. `kintsugi.sha256`, which `sha256sum -c` reads too, has those of
files that are written once: of a run its job, prior and plan, of a report what is read back of it. Records
and runs of earlier versions have no digests, and are believed as far as their values fit.

A run directory may come from somebody else: what is read of it must be a regular file of a bounded size,
which is known before it is opened, and nothing is read or written through a link in it.
"""

import hashlib
import json
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from kintsugi.errors import JobError
from kintsugi.pipeline.storage.files import whole
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish_bytes

SUMS = "kintsugi.sha256"

MAX_RECORD = 1 << 25  # bytes of a file that is no Parquet
MAX_TABLE = 1 << 35  # bytes of a Parquet file
UNIT = re.compile(r"[0-9]{5,9}-[0-9]{7,18}")  # names of units, and so of their files
LINE = re.compile(r"([0-9a-f]{64})  (.+)")  # of SUMS
SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n?')

T = TypeVar("T")
Text = Annotated[str, Field(max_length=1 << 16)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e90, le=1e90)]
"""Of which squares and sums are finite, too."""


class DamagedSums(JobError):
    """The digests of a folder's files are not all there."""


def regular(file: Location, most: int = MAX_RECORD) -> int:
    """Bytes of a file of a run, known without opening it.

    Raises:
        FileNotFoundError: there is none.
        JobError: it is a link or no regular file, or has more than `most` bytes.
    """
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "no regular file"
        raise JobError(f"{file} is {what}, which is not read: put the file itself there, or remove it")
    length = found.st_size
    if length > most:
        raise JobError(f"{file} has {length:,} bytes, more than the {most:,} that are read of such a file")
    return length


def is_regular(file: Location, most: int = sys.maxsize) -> bool:
    """Whether a file is there, of at most so many bytes, and no link."""
    try:
        return regular(file, most) <= most
    except (FileNotFoundError, NotADirectoryError, JobError):
        return False


def read(file: Location, most: int = MAX_RECORD) -> bytes:
    """The content of a file of a run; raises as `regular`."""
    regular(file, most)
    return file.read_bytes()


def sealed(values: Mapping[str, Any]) -> bytes:
    """Values as JSON whose last field, sha256, is the digest of the JSON without it."""
    body = json.dumps(values, indent=1, allow_nan=False).encode()
    seal = f',\n "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'
    return body.removesuffix(b"\n}") + seal.encode()


def unsealed(content: bytes) -> bytes:
    """The JSON without its digest, which it may lack; raises a ValueError if it has another one."""
    found = SEAL.fullmatch(content, content.rfind(b",\n"))
    if found is None:
        return content
    body = content[: found.start()] + b"\n}"
    if hashlib.sha256(body).hexdigest().encode() != found[1]:
        raise ValueError("it is not what was written: its digest differs")
    return body


def typed(kind: TypeAdapter[T], content: bytes, what: object) -> T:
    """The JSON of a record as what it should be; raises a JobError if it is not, or has been changed."""
    try:
        return kind.validate_json(unsealed(content), strict=True)
    except ValidationError as error:
        raise JobError(f"{what}: {problems(error)}") from None
    except ValueError as error:
        raise JobError(f"{what}: {error}") from None


def problems(error: ValidationError) -> str:
    """The first of what does not fit, as "field: what is wrong"."""
    first, *others = error.errors(include_input=False, include_url=False)
    field = ".".join(str(part) for part in first["loc"])
    more = f"; and {len(others)} more" if others else ""
    return (f"{field}: " if field else "") + first["msg"].removeprefix("Value error, ") + more


def digest(file: Location) -> str:
    """SHA-256 of a file, hexadecimal."""
    with whole(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_sums(folder: Location, sums: Mapping[str, str], file: str = SUMS) -> None:
    """Write the digests of files in a folder, by name."""
    publish_bytes(folder / file, "".join(f"{sum_}  {name}\n" for name, sum_ in sums.items()).encode())


def stated_sums(folder: Location, names: Iterable[str]) -> dict[str, str]:
    """The stated digests of files, {} if none is; raises DamagedSums if only some are."""
    try:
        text = read(folder / SUMS).decode(errors="replace")
    except FileNotFoundError:
        return {}
    found = [match for match in map(LINE.fullmatch, text.split("\n")) if match is not None]
    stated = {match[2]: match[1] for match in found}
    if missing := [name for name in names if name not in stated]:
        raise DamagedSums(f"{folder / SUMS} is damaged: it states no SHA-256 of {missing[0]}")
    return {name: stated[name] for name in names}


def changed_file(folder: Location, names: Iterable[str], most: int = MAX_TABLE) -> str | None:
    """The first of some files that is not what was written, in words; None where all are, or none is stated.

    Raises:
        FileNotFoundError: one is not there.
        JobError: as `regular` and `stated_sums`.
    """
    for name, stated in stated_sums(folder, names).items():
        regular(folder / name, most)
        if (now := digest(folder / name)) != stated:
            return f"{folder / name} is not what was written: its SHA-256 is {now}, {SUMS} says {stated}"
    return None
