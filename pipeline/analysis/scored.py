"""Images that any method restored, measured against the truth: what `kintsugi score` does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from kintsugi.errors import JobError, UnreadableImage, error_text
from kintsugi.pipeline.analysis.aggregate import Distribution, describe
from kintsugi.pipeline.analysis.failures import reasons
from kintsugi.pipeline.data.collection import Collection
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.data.names import key_of
from kintsugi.pipeline.execution.directory import METRICS, TABLE
from kintsugi.pipeline.execution.reference import reference_of, refuse_missing
from kintsugi.pipeline.metrics import IMAGE, REGISTRY, SETS
from kintsugi.pipeline.metrics.features import Extractor, arrays, table_of
from kintsugi.pipeline.metrics.registry import TRUTH, check
from kintsugi.pipeline.metrics.scoring import Scorer
from kintsugi.pipeline.metrics.sets import evaluate
from kintsugi.pipeline.parts import Published
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.files import parquet
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish

KEY = "{key}"
BLOCK = 256  # images whose rows and features are in memory


@dataclass(frozen=True)
class Pairs:
    """Restored images and their truth, by key.

    Attributes:
        keys: of both, in order; of_restored, of_truth: the keys that the images of each have by their names.
        unlike: those of each set whose names are not of the pattern, (restored, true).
    """

    restored: Collection
    truth: Collection
    keys: list[str]
    of_restored: list[str]
    of_truth: list[str]
    without_truth: list[str]
    without_restored: list[str]
    unlike: tuple[list[str], list[str]]


def pair(restored: str, truth: str, restored_pattern: str = KEY, truth_pattern: str = KEY) -> Pairs:
    """Find the truth of every restored image.

    Args:
        restored_pattern, truth_pattern: what names are like, with {key} for the part that both have.

    Raises:
        JobError: no images, no {key} in a pattern, no name that is like it, or no key is in both.
    """
    a, b = Collection("RESTORED", restored), Collection("TRUTH", truth)
    of_a, unlike_a = by_pattern("--restored-pattern", restored_pattern, a)
    of_b, unlike_b = by_pattern("--truth-pattern", truth_pattern, b)
    keys = sorted(of_a.keys() & of_b.keys())
    if not keys:
        raise JobError(
            f"no key is in both: RESTORED has {next(iter(of_a))!r}, TRUTH has {next(iter(of_b))!r}; a key is "
            "a path from the folder, or in the shard, without its suffix; where one has more in its names, "
            "say so by --restored-pattern '{key}_out.png'"
        )
    return Pairs(
        restored=a,
        truth=b,
        keys=keys,
        of_restored=[of_a[key] for key in keys],
        of_truth=[of_b[key] for key in keys],
        without_truth=sorted(of_a.keys() - of_b.keys()),
        without_restored=sorted(of_b.keys() - of_a.keys()),
        unlike=(unlike_a, unlike_b),
    )


def by_pattern(option: str, pattern: str, pictures: Collection) -> tuple[dict[str, str], list[str]]:
    """The keys of pictures by the part of them that stands for {key}, and those that are not of the pattern.

    A suffix of images in the pattern counts no more than in a name.
    """
    before, key, after = pattern.partition(KEY)
    if not key or KEY in after:
        raise JobError(f"{option}: {pattern!r} must have {KEY} in it, once, as in '{KEY}_out.png'")
    # By the rule that makes keys of names, with a letter for what the key is.
    start, end = key_of(f"{before}k")[:-1], key_of(f"k{after}")[1:]
    alike = {
        name[len(start) : len(name) - len(end)]: name
        for name in pictures.places
        if name.startswith(start) and name.endswith(end) and len(name) > len(start) + len(end)
    }
    if not alike:
        raise JobError(f"{option}: no name is like {pattern!r}; one is {next(iter(pictures.places))!r}")
    known = set(alike.values())
    return alike, [name for name in pictures.places if name not in known]


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
        check(names, max(metric.smallest for metric in REGISTRY.values()), True, reference)
    except ValueError as error:
        raise JobError(str(error)) from error
    refuse_missing(names, reference)
    scorer = Scorer(names, device)
    of_sets = [name for name in names if name in SETS]
    extractor = Extractor({SETS[name].space for name in of_sets}, device)
    smallest = max(REGISTRY[name].smallest for name in names)
    of_images = [name for name in names if name in IMAGE]
    schema = pa.schema(
        [(name, pa.string()) for name in ("key", "source", "status", "error")]
        + [(name, pa.float64()) for name in of_images]
    )
    sizes: set[int] = set()
    failures: list[tuple[str, str]] = []  # key and error
    jpeg = 0
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        temporary = stack.enter_context(publish(out / TABLE))
        writer = stack.enter_context(pq.ParquetWriter(temporary, schema, write_page_checksum=True))
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
                    more = stack.enter_context(
                        pq.ParquetWriter(stored, table.schema, compression="zstd", write_page_checksum=True)
                    )
                more.write_table(table)
            rows.clear()
            features.clear()

        both = pairs.restored.read_all(pairs.of_restored), pairs.truth.read_all(pairs.of_truth)
        for key, restored, truth in zip(pairs.keys, *both, strict=True):
            row: dict[str, Any] = {"key": key, "source": restored.source}
            try:
                images = same_size(restored, truth, smallest)
                tensors = [torch.tensor(x).permute(2, 0, 1)[None].to(device) / 127.5 - 1 for x in images]
                values = {name: found[0] for name, found in scorer(tensors[0], tensors[1]).items()}
                seen = extractor(key, images[0])
                if reference == "truth":
                    of_truth = extractor(key, images[1])
                    seen |= {space + TRUTH: found for space, found in of_truth.items()}
            except torch.AcceleratorError:  # after which every image would fail
                raise
            except Exception as error:  # one bad image is one failed row
                row |= {"status": "failed", "error": error_text(error)}
                failures.append((key, row["error"]))
            else:
                row |= {"status": "ok", **values}
                if seen:
                    features[key] = seen
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
        "metrics": {name: asdict(each) for name, each in measures_of(out / TABLE, of_images).items()},
        "sets": {name: asdict(result) for name, result in sets.items()},
        "without_truth": pairs.without_truth,
        "without_restored": pairs.without_restored,
        "provenance": {
            f"weights of {name}": weights.describe() for name in names if (weights := REGISTRY[name].weights)
        },
    }
    with publish(out / METRICS) as temporary:
        temporary.write_bytes(records.sealed(found))
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


def measures_of(rows: Location, names: Sequence[str]) -> dict[str, Distribution]:
    """The named columns, as a run's report describes them."""
    with parquet(rows) as file:
        table = file.read(["key", "status", *names])
    ok = pc.equal(table["status"], "ok")
    return {name: describe(table[name], ok, table["key"], name) for name in names}
