"""`kintsugi stats`: reference statistics of a set of images."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kintsugi.errors import JobError


def stats(
    source: Annotated[str, typer.Argument(help="Images: a folder, or shards with braces and globs.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.npz", help="The file to write.")],
    mode: Annotated[
        Literal["clean", "legacy_pytorch", "legacy_tensorflow"],
        typer.Option(help="clean-fid's: how images are resized, and by which network they are seen."),
    ] = "clean",
) -> None:
    """Make reference statistics for FID, KID, precision and recall: mu and sigma, as clean-fid stores them.

    Beside them n, the mode, the size of the images, which weights were used, and features of at most 10,000
    images. Images are taken in the size they have.

    Examples:

        kintsugi stats ffhq256/ ffhq256.npz

        kintsugi stats 'imagenet256/*.tar' imagenet256.npz --mode legacy_pytorch

        kintsugi run job.yaml --set metrics='[fid, kid]' --set reference=ffhq256.npz
    """
    from kintsugi.device import default_device
    from kintsugi.jobs.display import progress_bar
    from kintsugi.jobs.terminal import console
    from kintsugi.pipeline.data.collection import Collection
    from kintsugi.pipeline.execution.reference import make_statistics

    if out.suffix != ".npz":
        raise JobError(f"OUT: {out} must end in .npz")
    pictures = Collection("SOURCE", source)
    with progress_bar(console, len(pictures), "images") as advance:
        count = make_statistics(pictures, out, mode, default_device(), advance)
    console.print(f"statistics of {count} images, mode {mode}: {out}")
