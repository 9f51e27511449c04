"""Weights in object stores: copied once to every machine that needs them."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from kintsugi.ahead import map_ahead
from kintsugi.cache import cache_folder, locked
from kintsugi.errors import JobError
from kintsugi.pipeline.parts import Spec
from kintsugi.pipeline.storage.files import walk
from kintsugi.pipeline.storage.location import BLOCK, Remote, at, is_remote

REQUESTS = 8  # at once, each for a block


class Object(NamedTuple):
    """An object as it is now; `name` is that of its copy, `version` what the store tells its versions by."""

    remote: Remote
    name: str
    size: int
    version: str


def on_this_node(spec: Spec) -> Spec:
    """The spec of a prior with its `path` on this machine: where it is a URL, that of a copy.

    The copy, of an object or of all in a folder, is in the cache folder. The first process of a machine
    makes it, and the others wait; when an object has changed it is made again, and the old one removed.

    Raises:
        JobError: no such object, it cannot be read, or the copy cannot be written.
    """
    path = spec.get("path")
    if not isinstance(path, str):
        return spec
    try:
        location = at(path)
        return spec | {"path": str(copied(location))} if is_remote(location) else spec
    except (OSError, ValueError) as error:
        raise JobError(f"prior.path: {path!r} cannot be copied to this machine: {error}") from error


def copied(location: Remote) -> Path:
    """A copy of what is at a location now."""
    found = objects(location)
    if not found:
        raise FileNotFoundError("there is no such object")
    folder = cache_folder() / "weights" / fingerprint(str(location))
    copy = folder / fingerprint(repr(found))
    with locked(folder / "lock"):
        if not copy.exists():
            for old in folder.iterdir():  # and what a killed process left
                if old.is_dir():
                    shutil.rmtree(old, ignore_errors=True)
            check_space(folder, sum(each.size for each in found))
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                for each in found:
                    download(each, Path(temporary, "copy", each.name))
                if objects(location) != found:
                    raise OSError("it changed while it was copied; run the command again")
                Path(temporary, "copy").rename(copy)
    return copy / location.name


def objects(location: Remote) -> list[Object]:
    """The object at a location, or those in a folder; none where there is nothing."""
    if location.is_file():
        names = {location: location.name}
    else:
        names = {location / name: f"{location.name}/{name}" for name in walk(location)}
    found = []
    for remote, name in names.items():
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError(f"the key of {remote} names no file that a folder can hold")
        with remote.filesystem.open_input_file(remote.path) as file:
            # With the ETag; times of whole seconds do not tell all versions apart.
            found.append(Object(remote, name, file.size(), repr(sorted(file.metadata().items()))))
    return found


def download(source: Object, target: Path) -> None:
    """Read an object in blocks, several at once, into a file that is on the disk at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remote = source.remote
    with remote.filesystem.open_input_file(remote.path) as file, target.open("wb") as output:

        def block(start: int) -> int:
            return os.pwrite(output.fileno(), file.read_at(min(BLOCK, source.size - start), start), start)

        length = sum(map_ahead(block, range(0, source.size, BLOCK), REQUESTS))
        if length != source.size:
            raise OSError(f"{remote} ended after {length} of {source.size} bytes")
        os.fsync(output.fileno())


def check_space(folder: Path, needed: int) -> None:
    """Raise an OSError where fewer bytes than needed are free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"it takes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {folder}; KINTSUGI_CACHE "
            "names another folder for such copies"
        )


def fingerprint(text: str) -> str:
    """64 bits of a text's SHA-256, hexadecimal: part of a file's name."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
