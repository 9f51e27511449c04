"""The errors that are the user's to mend, and how a text becomes fit to be shown. Loads no torch."""

import re


class JobError(Exception):
    """The job cannot run; the message names the cause and the fix. Exit code 1."""

    def __init__(self, message: str):
        super().__init__(redacted(message))


class UnreadableImage(Exception):
    """A sample cannot be used as the job asks; the message says why and what to change."""


class MissingMember(Exception):
    """A file that the job needs beside a sample is not there; the message names it."""


CREDENTIALS = re.compile(r"(:/{1,3})[^\s'\"]*@")  # pathlib leaves one slash
QUERY = re.compile(r"(:/{1,3}[^\s'\"?]*\?)[^\s'\"]*")
CONTROL = re.compile(  # characters, turns of the writing direction, and bytes that are not UTF-8
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def redacted(text: str) -> str:
    """A text for the user without what URLs in it may give away: KEY:SECRET@ and queries.

    What could steer a terminal, or turn the order of what follows, is written as an escape: names and
    errors may come from files of others.
    """
    without = QUERY.sub(r"\1…", CREDENTIALS.sub(r"\1…@", text))
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), without)


MAX_ERROR = 1000  # characters: names in shards can be of any length


def error_text(error: BaseException) -> str:
    """An exception and its notes, for the `error` column: no addresses in memory, as rows must not differ."""
    said = " ".join([str(error), *(f"({note})" for note in getattr(error, "__notes__", ()))])
    text = re.sub(r" at 0x[0-9a-f]+", "", said).encode("utf-8", "backslashreplace").decode()
    return f"{type(error).__name__}: {text[:MAX_ERROR]}"


class SpecError(ValueError):
    """A spec that cannot be built; the message names the field and the fix."""


class ShapeError(ValueError):
    """Images of this shape do not fit; others may."""
