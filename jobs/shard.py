"""`kintsugi shard`: shards of a folder, a zip, an LMDB or Parquet of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from kintsugi.errors import JobError
from kintsugi.jobs.execution import show_left_out
from kintsugi.jobs.terminal import EXIT_INTERRUPTED, EXIT_SOME_FAILED, console, errors

NAMED = 20  # images that are left out

SourceArgument = Annotated[
    Path,
    typer.Argument(
        help="Images: a folder with its subfolders, a zip, an LMDB such as LSUN's, or Parquet of Hugging "
        "Face: a file, a quoted glob, or a folder with such files and no images."
    ),
]
OutArgument = Annotated[Path, typer.Argument(help="The folder for the shards of this source.")]
SizeOption = Annotated[
    int | None, typer.Option(min=8, help="Resize to this side and store as PNG; else as it is.")
]
FilterOption = Annotated[Literal["bicubic", "box", "lanczos"], typer.Option(help="PIL's, antialiased.")]
CropOption = Annotated[
    Literal["center", "adm", "none"],
    typer.Option(
        help="center: shorter side to the size, then the central square. adm: halved repeatedly before, "
        "as guided-diffusion does. none: shorter side to the size, the whole picture."
    ),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        metavar="folders|FILE",
        help="Class labels: the first folders, in sorted order; or lines NAME LABEL. Of Parquet else those "
        "in the column label.",
    ),
]
ListOption = Annotated[
    Path | None,
    typer.Option("--list", metavar="FILE", help="Only these, in this order: lines NAME or NAME LABEL."),
]
MemberOption = Annotated[
    list[str] | None,
    typer.Option(
        "--member",
        metavar="NAME",
        help="Once for each: KEY.lr.png and KEY.hr.png are one sample, for lr.png and hr.png.",
    ),
]


def shard(
    source: SourceArgument,
    out: OutArgument,
    size: SizeOption = None,
    filter: FilterOption = "bicubic",
    crop: CropOption = "center",
    labels: LabelsOption = None,
    names: ListOption = None,
    member: MemberOption = None,
    per_shard: Annotated[int, typer.Option(min=1, help="Images per shard.")] = 1000,
) -> None:
    """Make WebDataset shards of images, with a manifest and checksums; keys are the images' paths.

    The same command again continues after an interruption. In a file, NAME is a path in SOURCE, or the end of
    one if only one image has it, such as the file name; with or without suffix.

    Examples:

        kintsugi shard photos/ shards/ --size 256

        kintsugi shard photos.zip shards/ --labels folders

        kintsugi shard 'imagenet-1k/data/validation-*.parquet' shards/

        kintsugi shard church_outdoor_val_lmdb/ shards/ --size 256 --filter box

        kintsugi shard pairs/ shards/ --member lr.png --member hr.png

        kintsugi shard ILSVRC2012/val/ shards/ --size 256 --crop adm --list sr3_top1k.txt
    """
    from kintsugi.pipeline.data.make import make_shards
    from kintsugi.pipeline.data.make.choosing import Options
    from kintsugi.pipeline.data.make.manifest import MANIFEST

    options = Options(size, filter, crop, per_shard, labels, names, tuple(member or ()))
    try:
        with images_bar() as on_image:
            made = make_shards(source, out, options, on_image)
    except KeyboardInterrupt:
        errors.print("interrupted: shards that are finished are kept; the same command continues")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except OSError as error:
        raise JobError(f"{error}; the same command continues when this is mended") from error
    for name, reason in made.left_out[:NAMED]:
        errors.print(f"left out {name}: {reason}", style="yellow")
    if len(made.left_out) > NAMED:
        errors.print(f"and {len(made.left_out) - NAMED} more: see {out / MANIFEST}", style="yellow")
    show_left_out(len(made.others), made.others, f"no images by their names, listed in {out / MANIFEST}")
    console.print(f"{made.images} images in {len(made.shards)} shards in {out}")
    if made.left_out:
        raise typer.Exit(EXIT_SOME_FAILED)


@contextmanager
def images_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar whose first call says how many images there are, and how many were done before."""
    from kintsugi.jobs.display import progress_bar

    advance = None
    with ExitStack() as stack:

        def on_image(done: int, total: int) -> None:
            nonlocal advance
            if advance is not None:
                advance()
                return
            if done:
                console.print(f"{done} of {total} images were done before")
            advance = stack.enter_context(progress_bar(console, total - done, "images"))

        yield on_image
