"""The errors that are the user's to mend; apart from the rest, so that `--help` need not load torch."""

from pipeline.storage import redacted


class JobError(Exception):
    """The job cannot run; the message names the cause and the fix. Exit code 1."""

    def __init__(self, message: str):
        super().__init__(redacted(message))


class UnreadableImage(Exception):
    """A sample cannot be used as the job asks; the message says why and what to change."""
