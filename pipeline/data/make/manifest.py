"""The manifest of shards: what was asked for, and what has been done of it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kintsugi.errors import JobError
from kintsugi.pipeline.data.make.choosing import Listed
from kintsugi.pipeline.data.make.sources import Source
from kintsugi.pipeline.storage.files import file_sizes
from kintsugi.pipeline.storage.publish import publish_bytes

MANIFEST, UNFINISHED = "manifest.json", ".manifest.json"


@dataclass
class Manifest:
    """manifest.json: `head` says what was asked for, the rest what has been done of it."""

    head: dict[str, Any]
    shards: dict[str, dict[str, Any]]  # by name: name, samples, bytes, sha256
    left_out: list[dict[str, Any]]  # shard (None: not read at all), name, reason

    def leave_out(self, shard: str | None, names: Iterable[tuple[str, str]]) -> None:
        """Add (name, reason) of files that are not in a shard; None: that are not read at all."""
        self.left_out += [{"shard": shard, "name": name, "reason": why} for name, why in names]

    @property
    def images(self) -> int:
        """How many are in the shards."""
        return sum(shard["samples"] for shard in self.shards.values())

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        content = {
            **self.head,
            "images": self.images,
            "shards": [self.shards[name] for name in sorted(self.shards)],
            "left_out": sorted(self.left_out, key=lambda entry: entry["shard"] or ""),
        }
        publish_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def recorded(out: Path, head: dict[str, Any]) -> Manifest:
    """What an earlier call that asked for the same has finished in `out`.

    Raises:
        JobError: `out` holds other shards, or tars of which nothing is known.
    """
    file = next((out / name for name in (MANIFEST, UNFINISHED) if (out / name).exists()), None)
    if file is None:
        if next(out.glob("*.tar"), None):
            raise JobError(f"{out}: holds tars, and no {MANIFEST} that says of what; choose another folder")
        return Manifest(head, {}, [])
    try:
        content = json.loads(file.read_text())
        old, new = content | content["options"], head | head["options"]
        fields = ["source", *head["options"], "pillow"]
        changed = [f"{f} was {old[f]}, now is {new[f]}" for f in fields if old[f] != new[f]]
        if not changed and old["listing"] != new["listing"]:
            were, are = old["listing"]["images"], new["listing"]["images"]
            changed = [f"{were} images were listed, now {are}, or their names, sizes or labels changed"]
        sizes = file_sizes(out)
        shards = {
            shard["name"]: shard for shard in content["shards"] if sizes.get(shard["name"]) == shard["bytes"]
        }
        left_out = [entry for entry in content["left_out"] if entry["shard"] in shards]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(f"{file}: not a manifest of `kintsugi shard`; choose another folder") from error
    if changed:
        raise JobError(
            f"{out}: holds other shards: {'; '.join(changed)}. Choose another folder, or remove it"
        )
    return Manifest(head, shards, left_out)


def listing_hash(samples: list[Listed], source: Source) -> str:
    """Of names, sizes in bytes and labels, in order: what decides the contents of the shards."""
    digest = hashlib.sha256()
    for name, _, label, beside in samples:
        others = [[one, source.images[one]] for one in beside]
        digest.update(json.dumps([name, source.images[name], label, *others]).encode())
    return digest.hexdigest()
