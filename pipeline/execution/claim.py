"""Claims: one job at a time makes its plan in an output.

Before it plans, a driver writes a file claim-….json, and then looks for those of other jobs: of two drivers
the later one, at least, sees the other. That takes nothing of the storage that object stores lack. When the
plan is made, the run's job.yaml says whose the output is, and the claim goes.
"""

import json
import os
import random
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kintsugi.errors import JobError
from kintsugi.pipeline.job import Job, differences
from kintsugi.pipeline.storage.files import file_sizes
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import alive, publish_bytes, this_host
from kintsugi.pipeline.storage.records import read

LOOKS = 4  # for others, before a job is refused: two that see each other both step back
PAUSE = 0.5  # seconds between two looks at most
NAME = re.compile(r"claim-([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.json")  # host and process
HELD: set[str] = set()  # by this process


@dataclass(frozen=True)
class Claim:
    """Who plans what: the job as in its file, the prior's checksum, and the driver."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    job: dict[str, Any]
    prior_sha256: str
    host: str
    process: int
    since: str  # in UTC


CLAIM = TypeAdapter(Claim)


@contextmanager
def claimed(folder: Location, job: Job, prior_sha256: str) -> Iterator[None]:
    """Hold an output while this job, and no other, is planned in it; raises a JobError if that fails."""
    name = f"claim-{this_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
    file, since = folder / name, datetime.now(UTC).isoformat(" ", "seconds")
    mine = Claim(job.model_dump(mode="json"), prior_sha256, socket.gethostname(), os.getpid(), since)
    HELD.add(name)
    try:
        for look in range(LOOKS):
            write(file, mine)
            others = list(refusals(folder, job, prior_sha256))
            if not others:
                break
            file.unlink(missing_ok=True)
            if look == LOOKS - 1:
                raise JobError(others[0])
            time.sleep(random.uniform(0, PAUSE))
        yield
    finally:
        HELD.discard(name)
        with suppress(OSError):
            file.unlink(missing_ok=True)


def write(file: Location, claim: Claim) -> None:
    """Write a claim into its folder, which is made; raises a JobError if that cannot be."""
    folder = file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        publish_bytes(file, json.dumps(asdict(claim), indent=1).encode())
    except OSError as error:
        raise JobError(f"output: cannot write to {folder}: {error}") from error


def clear(folder: Location) -> None:
    """Remove the claims in a directory that is a run by now: a driver was killed before it did."""
    for name in file_sizes(folder):
        if NAME.fullmatch(name):
            (folder / name).unlink(missing_ok=True)


def refusals(folder: Location, job: Job, prior_sha256: str) -> Iterator[str]:
    """What there is to say of claims of other jobs. Those of drivers of this machine that are gone go."""
    for name in file_sizes(folder):
        if (found := NAME.fullmatch(name)) is None:
            continue
        file = folder / name
        if found[1] == this_host() and name not in HELD and not alive(int(found[2])):
            file.unlink(missing_ok=True)
            continue
        try:
            claim = CLAIM.validate_json(read(file))
        except FileNotFoundError:
            continue
        except ValidationError as error:
            raise JobError(f"output: {file} is not the claim of a job; delete it") from error
        if (changed := differing(claim, job, prior_sha256)) != []:
            yield (
                f"{folder} holds a run of another job, which process {claim.process} on {claim.host} has "
                f"been planning since {claim.since} UTC; choose another output, or undo what differs. If "
                f"that process is gone, delete {file}" + "".join(f"\n  {line}" for line in changed or ())
            )


def differing(claim: Claim, job: Job, prior_sha256: str) -> list[str] | None:
    """What this job differs in from that of a claim, None where that cannot be told."""
    try:
        changed = differences(Job.model_validate(claim.job), job)
    except ValidationError:  # of another version, or with files that are not here
        return None
    lines = [f"{field}: {before!r} → {now!r}" for field, before, now in changed]
    if claim.prior_sha256 != prior_sha256:
        lines.append(f"prior: SHA-256 {claim.prior_sha256} → {prior_sha256}")
    return lines
