"""Images that any method restored, measured against the truth: what `kintsugi score` does."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from pipeline import storage
from pipeline.aggregate import Measure, measure
from pipeline.commit import error_text
from pipeline.errors import JobError
from pipeline.failures import reasons
from pipeline.job import Published
from pipeline.metrics import ALL, IMAGE, SETS, TRUTH, check
from pipeline.metrics.features import Extractor, arrays, table_of
from pipeline.metrics.reference import reference_of, refuse_missing
from pipeline.metrics.scoring import Scorer
from pipeline.metrics.sets import evaluate
from pipeline.metrics.source import Pictures
from pipeline.read import Decoded, UnreadableImage
from pipeline.storage import Location, parquet, publish

BLOCK = 256  # images whose rows and features are in memory


@dataclass(frozen=True)
class Pairs:
    """Restored images and their truth, by key; `keys` have both, in order."""

    restored: Pictures
    truth: Pictures
    keys: list[str]
    without_truth: list[str]
    without_restored: list[str]


def pair(restored: str, truth: str) -> Pairs:
    """Find the truth of every restored image.

    Raises:
        JobError: no images, or no key is in both.
    """
    a, b = Pictures("RESTORED", restored), Pictures("TRUTH", truth)
    keys = sorted(a.places.keys() & b.places.keys())
    if not keys:
        raise JobError(
            f"no key is in both: RESTORED has {next(iter(a.places))!r}, TRUTH has {next(iter(b.places))!r}; "
            "a key is a path from the folder, or in the shard, without its suffix"
        )
    return Pairs(
        a, b, keys, sorted(a.places.keys() - b.places.keys()), sorted(b.places.keys() - a.places.keys())
    )


def compare_sets(
    pairs: Pairs,
    names: Sequence[str],
    reference: Published | str,
    out: Location,
    device: str,
    on_image: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write out/rows.parquet and out/metrics.json, which `kintsugi compare` takes; returns the latter.

    Features for metrics of sets are in out/features.parquet.

    Raises:
        JobError: an unknown metric, or one whose weights or reference are missing.
    """
    try:
        check(names, max(metric.smallest for metric in ALL.values()), True, reference)
    except ValueError as error:
        raise JobError(str(error)) from error
    refuse_missing(names, reference)
    scorer = Scorer(names, device)
    of_sets = [name for name in names if name in SETS]
    extractor = Extractor({SETS[name].space for name in of_sets}, device)
    smallest = max(ALL[name].smallest for name in names)
    of_images = [name for name in names if name in IMAGE]
    schema = pa.schema(
        [(name, pa.string()) for name in ("key", "source", "status", "error")]
        + [(name, pa.float64()) for name in of_images]
    )
    sizes: set[int] = set()
    failures: list[tuple[str, str]] = []  # key and error
    jpeg = 0
    storage.make_folder(out)
    with ExitStack() as stack:
        temporary = stack.enter_context(publish(out / "rows.parquet"))
        writer = stack.enter_context(pq.ParquetWriter(temporary, schema))
        stored = stack.enter_context(publish(out / "features.parquet")) if extractor.spaces else None
        more: pq.ParquetWriter | None = None
        rows: list[dict[str, Any]] = []
        features: dict[str, dict[str, np.ndarray]] = {}

        def flush() -> None:
            nonlocal more
            writer.write_table(pa.Table.from_pylist(rows, schema))
            table = table_of(features)
            if table is not None and stored is not None:
                if more is None:
                    more = stack.enter_context(pq.ParquetWriter(stored, table.schema, compression="zstd"))
                more.write_table(table)
            rows.clear()
            features.clear()

        both = (each.read_all(pairs.keys) for each in (pairs.restored, pairs.truth))
        for restored, truth in zip(*both, strict=True):
            row: dict[str, Any] = {"key": restored.key, "source": restored.source}
            try:
                images = same_size(restored, truth, smallest)
                tensors = [torch.tensor(x).permute(2, 0, 1)[None].to(device) / 127.5 - 1 for x in images]
                values = {name: found[0] for name, found in scorer(tensors[0], tensors[1]).items()}
                seen = extractor(restored.key, images[0])
                if reference == "truth":
                    of_truth = extractor(restored.key, images[1])
                    seen |= {space + TRUTH: found for space, found in of_truth.items()}
            except torch.AcceleratorError:  # after which every image would fail
                raise
            except Exception as error:  # one bad image is one failed row
                row |= {"status": "failed", "error": error_text(error)}
                failures.append((restored.key, row["error"]))
            else:
                row |= {"status": "ok", **values}
                if seen:
                    features[restored.key] = seen
                sizes |= set(images[0].shape[:2])
                jpeg += (restored.source or "").startswith("JPEG")
            rows.append(row)
            if len(rows) == BLOCK:
                flush()
            on_image()
        flush()
        if stored is not None and more is None:  # nothing could be compared
            stored.touch()

    def blocks(columns: Sequence[str]) -> Iterator[tuple[list[str], Mapping[str, np.ndarray]]]:
        if n == 0:  # then the file is empty
            return
        with parquet(out / "features.parquet") as file:
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, columns=["key", *columns])
                yield table["key"].to_pylist(), arrays(table)

    n = len(pairs.keys) - len(failures)
    warnings = [f"{jpeg} of the restored images are JPEG, which leaves its marks in features"] if jpeg else []
    side = next(iter(sizes)) if len(sizes) == 1 else 0
    sets = evaluate(of_sets, n, blocks, reference_of(reference, out), side, warnings)
    found = {
        "title": f"{pairs.restored.name} against {pairs.truth.name}",
        "samples": {"planned": len(pairs.keys), "done": len(pairs.keys), "ok": n, "failed": len(failures)},
        "failures": {"reasons": list(map(asdict, reasons(failures)))},
        "metrics": {
            name: asdict(each) for name, each in measures_of(out / "rows.parquet", of_images).items()
        },
        "sets": {name: asdict(result) for name, result in sets.items()},
        "without_truth": pairs.without_truth,
        "without_restored": pairs.without_restored,
        "provenance": {
            f"weights of {name}": weights.describe() for name in names if (weights := ALL[name].weights)
        },
    }
    with publish(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found


def same_size(restored: Decoded, truth: Decoded, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    """Both images.

    Raises:
        UnreadableImage: one cannot be read, they differ in size, or are too small for a metric.
    """
    for name, image in (("restored", restored), ("true", truth)):
        if image.image is None:
            raise UnreadableImage(f"the {name} image: {image.error}")
    assert restored.image is not None
    assert truth.image is not None
    if restored.image.shape != truth.image.shape:
        (h, w), (height, width) = restored.image.shape[:2], truth.image.shape[:2]
        raise UnreadableImage(f"it has {w}x{h} pixels, its truth {width}x{height}")
    if min(restored.image.shape[:2]) < smallest:
        raise UnreadableImage(f"a metric needs sides of at least {smallest} pixels")
    return restored.image, truth.image


def measures_of(rows: Location, names: Sequence[str]) -> dict[str, Measure]:
    """The named columns, as a run's report describes them."""
    with parquet(rows) as file:
        table = file.read(["key", "status", *names])
    ok = pc.equal(table["status"], "ok")
    return {name: measure(table[name], ok, table["key"], name) for name in names}
