"""`kintsugi score`: metrics of images that any other method has made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from kintsugi.errors import JobError
from kintsugi.jobs.files import located, problem
from kintsugi.jobs.values import parse_setting

if TYPE_CHECKING:
    from kintsugi.pipeline.parts import Published

NAMED = 20  # of the images without a partner


def score(
    restored: Annotated[
        str, typer.Argument(help="Restored images: a folder, or shards with braces and globs.")
    ],
    truth: Annotated[str, typer.Argument(help="The true images, with the same keys: a folder, or shards.")],
    metrics: Annotated[
        str, typer.Option(help="Names with commas between them; see `kintsugi list metrics`.")
    ] = "psnr,ssim",
    out: Annotated[str, typer.Option(help="Where the report goes; `kintsugi compare` takes it.")] = "scores",
    restored_pattern: Annotated[
        str,
        typer.Option(
            "--restored-pattern",
            "--pattern",
            metavar="PATTERN",
            help="What names of RESTORED are like: '{key}_out.png'.",
        ),
    ] = "{key}",
    truth_pattern: Annotated[
        str, typer.Option(metavar="PATTERN", help="What names of TRUTH are like: '{key}_SRF_4_HR.png'.")
    ] = "{key}",
    reference: Annotated[
        str,
        typer.Option(
            help="What metrics of sets compare with: truth, a folder, shards, an .npz, or clean-fid's "
            "published statistics as {name: ffhq, split: trainval70k, resolution: 256}."
        ),
    ] = "truth",
) -> None:
    """Measure images that another method restored against the truth, paired by key.

    A key is the path without its suffix, so restored PNG and true JPEG fit together; of names with more in
    them a pattern says which part the key is, and files of other names are not compared. Exit code 2 if
    images have no partner, or cannot be compared.

    Examples:

        kintsugi score resshift/ imagenet256/ --metrics psnr,lpips,fid --out runs/resshift

        kintsugi score 'diffir/*.tar' 'imagenet256/*.tar' --out runs/diffir

        kintsugi score swinir/ set14/ --restored-pattern '{key}_SwinIR.png' --out runs/swinir

        kintsugi compare runs/sr4 runs/diffir
    """
    from kintsugi.device import default_device
    from kintsugi.jobs.display import progress_bar
    from kintsugi.jobs.execution import show_reasons, show_results
    from kintsugi.jobs.terminal import EXIT_SOME_FAILED, console, errors
    from kintsugi.pipeline.analysis.scored import compare_sets, pair

    folder = located("--out", out)
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    if not names:
        raise JobError("--metrics: names none")
    pairs = pair(restored, truth, restored_pattern, truth_pattern)
    for unlike, pattern in zip(pairs.unlike, (restored_pattern, truth_pattern), strict=True):
        if unlike:
            errors.print(f"not like {pattern}, not compared: {len(unlike)}, the first {unlike[0]}")
    for keys, what in ((pairs.without_truth, "no truth for"), (pairs.without_restored, "not restored")):
        for key in keys[:NAMED]:
            errors.print(f"{what}: {key}", style="yellow")
        if len(keys) > NAMED:
            errors.print(f"{what}: and {len(keys) - NAMED} more", style="yellow")
    with progress_bar(console, len(pairs.keys), "images") as advance:
        found = compare_sets(pairs, names, reference_from(reference), folder, default_device(), advance)
    show_results(found)
    samples = found["samples"]
    show_reasons(found["failures"]["reasons"], samples["done"])
    console.print(f"{samples['ok']} compared, {samples['failed']} failed · {folder}")
    if samples["failed"] or pairs.without_truth or pairs.without_restored:
        raise typer.Exit(EXIT_SOME_FAILED)


def reference_from(given: str) -> Published | str:
    """What a job's `reference` may be, from one argument: a mapping is in braces."""
    from kintsugi.pipeline.parts import Published

    value: str | dict[str, Any] = parse_setting(given, "--reference", [str, Published])
    try:
        return value if isinstance(value, str) else Published.model_validate(value)
    except ValidationError as error:
        found = [problem({**e, "loc": ("reference", *e["loc"])}) for e in error.errors()]
        raise JobError("\n".join(f"--{each}" for each in found)) from None
