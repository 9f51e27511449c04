"""What the metrics of sets see of an image: features of clean-fid's networks, and patches."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from kintsugi.device import name_of, processor, sent
from kintsugi.errors import JobError
from kintsugi.numerics import at_once, finest_laplacian, in_whole_batches
from kintsugi.pipeline.metrics.kept import Kept
from kintsugi.pipeline.metrics.metric import SPACE_WEIGHTS
from kintsugi.pipeline.metrics.moments import on_grid
from kintsugi.pipeline.metrics.registry import TRUTH
from kintsugi.pipeline.metrics.texture import patches_of
from kintsugi.pipeline.metrics.weights import Weights
from kintsugi.pipeline.storage.location import Location

SIZES = {"clean": 2048, "legacy_tensorflow": 2048, "legacy_pytorch": 2048, "patches": 32 * 7 * 7 * 3}
PATCHES = 32  # of an image: 9 KiB, about as much as its features

Network = Callable[[torch.Tensor], torch.Tensor]


class Extractor:
    """Features of images in some spaces, which do not depend on the batch: see `in_whole_batches`.

    Args:
        spaces: keys of `SIZES`.

    Raises:
        MissingWeights: a network's file is not there.
    """

    def __init__(self, spaces: Collection[str], device: str | torch.device = "cpu"):
        self.spaces = sorted(spaces)
        self.device = torch.device(device)
        self.networks = {space: network(space, self.device) for space in self.spaces if space != "patches"}
        self.kept = {space: Kept(SIZES[space]) for space in self.networks}

    @torch.no_grad()
    def __call__(
        self, keys: Sequence[str], pictures: Sequence[np.ndarray], of_data: bool = False
    ) -> list[dict[str, np.ndarray]]:
        """Of each picture its features by space: float32 multiples of 2⁻¹⁶, of patches float16.

        Args:
            keys: decide where patches are taken. pictures: (H, W, 1 or 3) uint8, of which one stands for
                three. of_data: whether they are a data set's, of which later runs ask again: what networks
                see of them is kept on this machine, and not extracted where it is.
        """
        colours = [np.repeat(picture, 3 // picture.shape[-1], -1) for picture in pictures]
        found: list[dict[str, np.ndarray]] = [{} for _ in pictures]
        for space in self.spaces:
            if space == "patches":
                of_each = list(map(patches, keys, colours))
            elif of_data:
                of_each = self.kept[space].of(colours, self.made_by(space), partial(self.seen, space))
            else:
                of_each = self.seen(space, colours)
            for features, values in zip(found, of_each, strict=True):
                features[space] = values
        return found

    def seen(self, space: str, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What a network sees of pictures (H, W, 3) uint8: (values,) of each."""
        resized = (torch.from_numpy(resizer(space)(x).transpose(2, 0, 1).copy()) for x in pictures)

        def network(images: Tensor) -> Tensor:
            return self.networks[space](sent(images.float(), self.device))

        found: list[np.ndarray] = []
        for _, alike in groupby(resized, attrgetter("shape")):
            values = in_whole_batches(network, self.device, torch.stack(list(alike)))
            found.extend(on_grid(values.cpu().numpy()))
        return found

    def made_by(self, space: str) -> str:
        """What decides the bits of what a network sees, beside the picture."""
        weights = SPACE_WEIGHTS[space]
        assert isinstance(weights, Weights)
        cudnn = torch.backends.cudnn
        settings = at_once(self.device), torch.get_num_threads(), cudnn.allow_tf32, cudnn.deterministic
        return repr((space, weights.digest(), name_of(self.device), processor(), settings, libraries()))


@cache
def libraries() -> tuple[object, ...]:
    """Versions of what resizes images and runs networks."""
    names = ("torch", "torchvision", "numpy", "pillow", "clean-fid")
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return cudnn, *map(version, names)


@cache
def resizer(mode: str) -> Callable[[np.ndarray], np.ndarray]:
    """clean-fid's own resizing: (H, W, 3) uint8 to 299² float32 in [0, 255]; legacy_tensorflow: inside."""
    import warnings

    from cleanfid.resize import build_resizer

    with warnings.catch_warnings():  # it switches off all warnings of the process
        return build_resizer(mode)


def network(mode: str, device: torch.device) -> Network:
    """clean-fid's feature network of a mode, of images (B, 3, H, W) in [0, 255], from the file that is here.

    Raises:
        MissingWeights: the file is not there.
    """
    weights = SPACE_WEIGHTS[mode]
    assert isinstance(weights, Weights)
    file = weights.find()
    if mode == "legacy_pytorch":
        from cleanfid.features import feature_extractor

        return feature_extractor("pytorch_inception", device, use_dataparallel=False)
    from cleanfid.inception_torchscript import InceptionV3W

    # Not through clean-fid's build_feature_extractor, which looks in the world's /tmp and fetches.
    inside = mode == "legacy_tensorflow"
    return InceptionV3W(str(file.parent), download=False, resize_inside=inside).to(device).eval()


def patches(key: str, picture: np.ndarray) -> np.ndarray:
    """7×7 patches of the finest Laplacian level, on [0, 1], where the key says: (4704,) float16."""
    level = finest_laplacian(torch.tensor(picture).permute(2, 0, 1)[None].contiguous().float() / 255)
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    rows, columns = (torch.from_numpy(rng.integers(0, side - 6, (1, PATCHES))) for side in level.shape[-2:])
    return patches_of(level, rows, columns).flatten().numpy().astype(np.float16)


def table_of(features: Mapping[str, Mapping[str, np.ndarray]]) -> pa.Table | None:
    """Features by key and space as a table: `key`, and a list of fixed size per space; None of none."""
    if not features:
        return None
    stacked = {
        space: np.stack([each[space] for each in features.values()])
        for space in next(iter(features.values()))
    }
    lists = {
        space: pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
        for space, values in stacked.items()
    }
    return pa.table({"key": pa.array(features, pa.string()), **lists})


def refuse_others(table: pa.Table, file: Location) -> None:
    """Raise a JobError if what was read of a file is no table of keys and features."""
    for field in table.schema:
        column = table[field.name]
        if field.name == "key":
            fits = field.type == pa.string()
        else:
            lists, width = field.type, SIZES.get(field.name.removesuffix(TRUTH))
            fits = pa.types.is_fixed_size_list(lists) and lists.list_size == width
            fits = fits and lists.value_type in (pa.float16(), pa.float32())
        if not fits or column.null_count:
            raise JobError(f"{file}: {field.name} is a column of {field.type}, or has nulls; not features")
        if field.name != "key":
            values = column.combine_chunks().flatten()
            if values.null_count or not np.isfinite(values.to_numpy()).all():
                raise JobError(f"{file}: {field.name} has values that are not finite")


def arrays(table: pa.Table) -> dict[str, np.ndarray]:
    """The features in such a table: (n, values) by space."""
    return {
        space: table[space].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        for space in table.column_names
        if space != "key"
    }
