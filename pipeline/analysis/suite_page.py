"""What a suite says and shows: tables for readers and programs, and the page that holds all."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from kintsugi.pipeline.analysis.compare_page import json_value
from kintsugi.pipeline.analysis.suite import Entry, Suite
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish


def write_suite(suite: Suite, entries: Sequence[Entry], folder: Location) -> Location:
    """Everything in a folder; returns suite.json.

    Args:
        entries: those that were summarised, whose pictures are shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"suite.json": json.dumps(json_value(asdict(suite)), indent=1, allow_nan=False) + "\n"}
    for name, text in texts.items():
        with publish(folder / name) as temporary:
            temporary.write_bytes(text.encode())
    return folder / "suite.json"
