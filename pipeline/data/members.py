"""Members: the files in a tar that make a sample."""

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from kintsugi.pipeline.data.names import (
    IMAGE_SUFFIXES,
    SKIPPED,
    SUFFIXES,
    Note,
    accompanies,
    as_key,
    hidden,
    is_plain,
    lacks,
    suffix_of,
    wanted_as,
    with_member,
)
from kintsugi.pipeline.wanted import IMAGE_ONLY, Wanted


class Member(NamedTuple):
    """A file in a tar that belongs to a sample: bytes offset … end with its headers, content from `data`.

    Attributes:
        base: what the members of a sample have in common.
        link: whether it is a link, and its content is another member's.
        lost: why there is no content, if so. beside: what it is wanted as, if not as a part of the image.
    """

    base: str
    key: str
    suffix: str
    name: str
    offset: int
    end: int
    data: int
    size: int
    link: bool = False
    lost: str | None = None
    beside: str | None = None


def samples_in(group: list[Member], names: int, note: Note, wanted: Wanted) -> Iterable[list[Member]]:
    """The samples in a group of members, each with what is wanted beside it, in the order of the tar."""
    if wanted == IMAGE_ONLY:
        return divided(group, names, note)
    roles = {one.name: wanted_as(one.name, wanted) for one in group}
    beside = {name: role for name, role in roles.items() if role and role[1] != wanted.member}
    rest = [one for one in group if one.name not in beside]
    if wanted.member is not None:
        found: Iterable[list[Member]] = of_member(rest, note, wanted)
    else:
        found = divided(rest, names, note) if rest else ()
    samples = {sample[0].key: sample for sample in found}
    for one in group:
        if one.name in beside:
            key, end = beside[one.name]
            if key in samples:
                samples[key].append(one._replace(key=key, beside=end))
            else:
                note(one.name, lacks(wanted))
    return [sorted(sample, key=lambda one: one.offset) for sample in samples.values()]


def of_member(group: list[Member], note: Note, wanted: Wanted) -> Iterator[list[Member]]:
    """The samples whose image is `wanted.member`: it, and the class of its key."""
    names = with_member((one.name for one in group), wanted)
    images = {found[0]: one for one in group if one.name in names and (found := wanted_as(one.name, wanted))}
    for one in group:
        if not accompanies(one.name, images):
            note(one.name, lacks(wanted))
    for key, image in images.items():
        classes = (one for one in group if wanted_as(one.name, Wanted("cls")) == (key, "cls"))
        yield [one._replace(key=key, suffix=suffix_of(one.name)) for one in (image, *classes)]


def divided(group: list[Member], names: int, note: Note) -> Iterable[list[Member]]:
    """The samples in a group of members: one, or each image."""
    if names == 1 or (len(group) == 1 and group[0].suffix in SUFFIXES):
        return (group,)
    taken = next((one for suffix in IMAGE_SUFFIXES for one in group if one.suffix == suffix), None)
    images = [one for one in group if suffix_of(one.name) in IMAGE_SUFFIXES]
    if taken is not None:
        for other in images:
            if other is not taken:
                note(other.name, f"another image of the sample of {taken.name}")
    if taken is not None or not images or any(one.suffix == "npy" for one in group):
        return (group,)
    each: dict[str, list[Member]] = {}
    for one in group:
        stem, _, suffix = one.name.rpartition(".")
        key = as_key(str(PurePosixPath(stem)))
        each.setdefault(key, []).append(one._replace(key=key, suffix=suffix.lower()))
    return each.values()


def place_of(name: str, names: int) -> tuple[str, str, str] | str:
    """What a sample's members have in common, its key, and a member's suffix; or why it has none."""
    if names == 1:
        from webdataset.tariterators import base_plus_ext

        base, suffix = base_plus_ext(name)
        return "no key" if base is None or SKIPPED.match(name) else (base, base, suffix.lower())
    path = name
    if not is_plain(name):
        path = unicodedata.normalize("NFC", str(PurePosixPath(name)))
        if hidden(path):
            return "hidden"
        if SKIPPED.match(path):
            return "metadata of webdataset"
    folder, slash, file = path.rpartition("/")
    stem, _, suffix = file.partition(".")
    if not suffix:
        return "a name without a suffix"
    base = folder + slash + stem
    return base, as_key(base), suffix.lower()
