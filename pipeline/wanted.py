"""What is wanted of the shards: which files of a sample. Loads no torch."""

from typing import Literal, NamedTuple

Range = Literal["[-1,1]", "[0,1]", "[0,255]", "[0,1023]", "[0,4095]", "[0,16383]", "[0,65535]"]


class Truth(NamedTuple):
    """The true image beside a measurement, by what follows the key in its name; as of the data."""

    member: str
    range: Range | None = None
    channels: int = 3


class Wanted(NamedTuple):
    """Which files of a sample a job reads; names are as `MemberName`, and as they are written.

    Attributes:
        member: its image; None: that with a suffix of images. beside: files that it needs beside it.
    """

    member: str | None = None
    beside: tuple[str, ...] = ()
    truth: Truth | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All that are read beside the image."""
        return self.beside if self.truth is None else (*self.beside, self.truth.member)


IMAGE_ONLY = Wanted()
