"""What lies where in a run directory: the names of its files and folders, said once."""

import stat

from kintsugi.errors import JobError
from kintsugi.pipeline.storage.location import Location, is_remote

JOB, PRIOR, FILES, PLAN = "job.yaml", "prior.json", "files.json", "plan.parquet"
KEPT = (JOB, PRIOR, FILES, PLAN)  # what a run is begun with, whose digests it has
BATCH_SIZE = "batch_size.json"  # found by the first worker of a job that leaves it open
COMMITS, DATA, FEATURES, REPORT, RESTORED, SHARDS = FOLDERS = (
    "commits",  # a record for each finished unit
    "data",  # its rows
    "features",  # of its images, which metrics of sets are computed from
    "report",
    "restored",  # measurements, as shards
    "shards",  # that come with Kintsugi
)
METRICS, TABLE = "metrics.json", "rows.parquet"  # of a report, and of scored images


SUFFIXES = {COMMITS: ".json", DATA: ".parquet", FEATURES: ".parquet"}  # of a unit's files: its record first


def data_file(folder: Location, unit: str) -> Location:
    """The rows of a unit."""
    return folder / DATA / f"{unit}.parquet"


def features_file(folder: Location, unit: str) -> Location:
    """The features of a unit's restored samples."""
    return folder / FEATURES / f"{unit}.parquet"


def commit_file(folder: Location, unit: str) -> Location:
    """The record of a finished unit."""
    return folder / COMMITS / f"{unit}.json"


def reference_file(folder: Location, space: str) -> Location:
    """The statistics, in a feature space, of the images that metrics of sets compare with."""
    return folder / f"reference-{space}.npz"


def refuse_links(folder: Location) -> None:
    """Raise a JobError if a folder of a run is a link, or no folder."""
    if is_remote(folder):
        return
    for place in (folder / name for name in FOLDERS):
        try:
            kind = place.lstat().st_mode
        except OSError:  # there is none; what is wrong with the run itself, others say
            continue
        if not stat.S_ISDIR(kind):
            what = "a link" if stat.S_ISLNK(kind) else "no folder"
            raise JobError(
                f"{place} is {what}, and nothing is read or written through it: put the folder itself "
                "there, or remove it"
            )
