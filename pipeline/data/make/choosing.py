"""Which images of a source become samples, in which order, with which labels."""

import re
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from kintsugi.errors import JobError
from kintsugi.pipeline.data.make.sources import Source, shown
from kintsugi.pipeline.data.names import (
    IMAGE_SUFFIXES,
    SKIPPED,
    accompanies,
    key_in,
    key_of,
    lacks,
    stem_of,
    told_apart,
    wanted_as,
)
from kintsugi.pipeline.wanted import IMAGE_ONLY, Wanted

MAX_LINE = 4096  # characters of a list's line: the work on one grows with the square of its folders
LABEL = re.compile(r"[0-9]{1,18}")  # what pipeline.read takes for a label
NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters; bytes that are not UTF-8


@dataclass(frozen=True)
class Options:
    """Which images, how they are stored, and how many to a shard.

    Attributes:
        size: pixels; images are resized to it and stored as PNG. None: every file is stored as it is.
        filter: PIL's of that name, antialiased.
        crop: "center": shorter side to `size`, then the central square. "adm": the same, but halved by a box
            filter before while the shorter side is at least 2·size, as guided-diffusion does with the bicubic
            filter (Dhariwal & Nichol 2021, arXiv 2105.05233). "none": shorter side to `size`, no crop.
        labels: "folders": the position of an image's first folder among all of them, sorted. Else a file of
            lines NAME LABEL. None: no labels, or those of `names` or of the source.
        names: a file of lines NAME or NAME LABEL: these images in this order.
        members: of the images that make a sample, what follows its key in their names, as in KEY.lr.png and
            KEY.hr.png; by the first of them a sample is named and listed. None: each image is a sample.
    """

    size: int | None = None
    filter: Literal["bicubic", "box", "lanczos"] = "bicubic"
    crop: Literal["center", "adm", "none"] = "center"
    per_shard: int = 1000
    labels: str | None = None
    names: Path | None = None
    members: tuple[str, ...] = ()

    @property
    def wanted(self) -> Wanted:
        """The files of a sample."""
        return Wanted(self.members[0], self.members[1:]) if self.members else IMAGE_ONLY

    def described(self) -> dict[str, Any]:
        """For the manifest: without the folders of files, which are private."""
        resized = self.size is not None
        return {
            "size": self.size,
            "filter": self.filter if resized else None,
            "crop": self.crop if resized else None,
            "per_shard": self.per_shard,
            "labels": self.labels and Path(self.labels).name,
            "list": self.names and self.names.name,
            **({"members": list(self.members)} if self.members else {}),
        }


class Listed(NamedTuple):
    """An image that becomes a sample: its name in the source, its key, its class, and its other members."""

    name: str
    key: str
    label: int | None
    beside: tuple[str, ...] = ()


def complete(source: Source, options: Options) -> Source:
    """The source with only the first member of each sample, where there are all; what is not is left out."""
    wanted = options.wanted
    if not options.members:
        return source
    found: dict[str, dict[str, str]] = {}  # by key and member
    others = []
    for name in source.images:
        if (role := wanted_as(name, wanted)) is None:
            others.append(name)
        else:
            found.setdefault(role[0], {})[role[1]] = name
    lacking = {
        key: next((end for end in options.members if end not in of), None) for key, of in found.items()
    }
    images = {of[wanted.member or ""] for key, of in found.items() if lacking[key] is None}
    keys = {key for key, lost in lacking.items() if lost is None}
    left_out = [(name, lacks(wanted)) for name in others if not accompanies(name, keys)]
    for key, lost in lacking.items():
        left_out += [(name, f"its key has no {lost}") for name in found[key].values() if lost is not None]
    return replace(
        source,
        images={name: size for name, size in source.images.items() if name in images},
        left_out=[*source.left_out, *left_out],
    )


def why_no_member(key: str) -> str | None:
    """Why no tar should have members of this key, if so. A key has no dots, so there is no `..` in it."""
    if NOT_TEXT.search(key):
        return "a name with control characters, or not in UTF-8"
    if key.startswith("/") or "\\" in key:
        return "a name that is an absolute path or has a backslash"
    if SKIPPED.match(f"{key}.png"):
        return "a name in __underscores__, by which webdataset marks what is no sample"
    member = f"{key}.jpeg"
    if len(member.encode()) > tarfile.LENGTH_NAME:  # else there is no need for the slow way to find out
        try:
            tarfile.TarInfo(member).tobuf(tarfile.USTAR_FORMAT)
        except ValueError:
            return "a name too long for a tar"
    return None


def choose(
    source: Source, path: Path, options: Options
) -> tuple[list[Listed], list[str] | None, list[tuple[str, str]]]:
    """The samples in order, the classes if folders are, and (name, reason) of what is left out unread."""
    names: dict[str, str] = {}  # by key
    left_out = list(source.left_out)
    for name in source.images if source.in_order else sorted(source.images):
        key = key_in(name, options.wanted)
        if why := why_no_member(key):
            left_out.append((name, why))
        elif key in names:
            raise JobError(f"{path}: {told_apart((names[key], name))} would get the same key {key!r}")
        else:
            names[key] = name
    left_out = sorted((shown(name), why) for name, why in left_out)
    unread = left_out + [(shown(name), shown(why)) for name, why in source.others]
    also = f" ({len(unread)} left out: {unread[0][0]}: {unread[0][1]}; …)" if unread else ""
    labels: dict[str, int | None] = {key: source.labels.get(name) for key, name in names.items()}
    if options.names is not None:
        where = f"--list {options.names}"
        lines = read_lines(where, options.names, names)
        refuse(where, f"not in {path}{also}", [name for name, key, _ in lines if key is None])
        given = {key: label for _, key, label in lines if key is not None}
        left_out = []  # the rest was not asked for
        without = [name for name, _, label in lines if label is None]
        labels = {key: labels[key] for key in given} if len(without) == len(lines) else given
        if len(without) < len(lines):
            refuse(where, "without a label, which others have", without)
            if options.labels is not None:
                raise JobError(f"{where}: has labels itself; leave --labels away")
    if not labels:
        raise JobError(f"{path}: no images ({', '.join(IMAGE_SUFFIXES)}){also}")
    classes = None
    if options.labels == "folders":
        refuse("--labels folders", "in no folder", [names[key] for key in labels if "/" not in key])
        # Folders of which everything is left out count too, so that the others keep their positions.
        listed = [*names.values(), *(name for name, _ in source.left_out)]
        classes = sorted({PurePosixPath(name).parts[0] for name in listed if "/" in name})
        position = {name: i for i, name in enumerate(classes)}
        labels = {key: position[PurePosixPath(names[key]).parts[0]] for key in labels}
        classes = [shown(name) for name in classes]
    elif options.labels is not None:
        where = f"--labels {options.labels}"
        lines = read_lines(where, Path(options.labels), names)
        refuse(where, "without a label", [name for name, _, label in lines if label is None])
        given = {key: label for _, key, label in lines if key is not None}
        refuse(where, f"in {path} and not in it", [names[key] for key in labels if key not in given])
        labels = {key: given[key] for key in labels}
    samples = [
        Listed(names[key], key, label, beside_of(names[key], options)) for key, label in labels.items()
    ]
    return samples, classes, left_out


def beside_of(name: str, options: Options) -> tuple[str, ...]:
    """The other members of the sample whose first one has this name."""
    return tuple(f"{stem_of(name, options.wanted)}.{end}" for end in options.members[1:])


def read_lines(where: str, file: Path, keys: Iterable[str]) -> list[tuple[str, str | None, int | None]]:
    """(name, key or None if there is no such image, label or None) of each line NAME or NAME LABEL.

    A name means the image with that path, both without their suffixes. If there is none, it means the one
    image of which the path is the end of the name, or the other way round, such as the file name alone.
    """
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{where}: cannot be read: {error}") from error
    lines: list[tuple[str, int | None]] = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        if len(line) > MAX_LINE:
            raise JobError(f"{where}: a line of {len(line):,} characters; it has lines NAME or NAME LABEL")
        name, *label = line.rsplit(maxsplit=1)
        labelled = label and LABEL.fullmatch(label[0])
        lines.append((name, int(label[0])) if labelled else (line, None))
    places: dict[str, list[str]] = {end: [] for name, _ in lines for end in ends(key_of(name))}
    for key in keys:
        for end in ends(key):
            if end in places:
                places[end].append(key)

    def meant(name: str) -> list[str]:
        wanted = key_of(name)
        found = places[wanted]
        if wanted in found:
            return [wanted]
        return found or next((places[end] for end in ends(wanted) if end in places[end]), [])

    found = [meant(name) for name, _ in lines]
    refuse(where, "ambiguous", [name for (name, _), keys in zip(lines, found, strict=True) if len(keys) > 1])
    times = Counter(keys[0] for keys in found if keys)
    read = [(name, key[0] if key else None, label) for (name, label), key in zip(lines, found, strict=True)]
    refuse(where, "there twice", [name for name, key, _ in read if key is not None and times[key] > 1])
    return read


def ends(key: str) -> list[str]:
    """The key, and what is left of it without its first folders."""
    parts = key.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def refuse(where: str, what: str, names: list[str]) -> None:
    """Raise a JobError if there are names of which something is wrong."""
    if names:
        some = ", ".join(map(shown, names[:3])) + (", …" if len(names) > 3 else "")
        raise JobError(f"{where}: {len(names)} {'names are' if len(names) > 1 else 'name is'} {what}: {some}")
