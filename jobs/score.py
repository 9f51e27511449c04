"""`kintsugi score`: metrics of images that any other method has made."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from kintsugi.errors import JobError
from kintsugi.jobs.execution import complete
from kintsugi.jobs.files import check, located
from kintsugi.jobs.options import RetryOption, TrackOption
from kintsugi.jobs.values import parse_setting

WORDS = {
    "data.shards": "RESTORED",
    "data.truth": "TRUTH",
    "data.pattern": "--restored-pattern",
    "data.truth_pattern": "--truth-pattern",
    "reference": "--reference",
    "output": "--out",
}
"""What fields of the job are called on the command line."""
FIELD = re.compile(r"\bdata\.(?:shards|truth_pattern|truth|pattern)\b|^(?:output|reference)(?=[:.])")

Restored = Annotated[str, typer.Argument(help="Restored images: a folder, or shards with braces and globs.")]
Truth = Annotated[str, typer.Argument(help="The true images, with the same keys: a folder, or shards.")]
Metrics = Annotated[str, typer.Option(help="Names with commas between them; see `kintsugi list metrics`.")]
Out = Annotated[str, typer.Option(help="The run directory; `kintsugi compare` takes it.")]
RestoredPattern = Annotated[
    str,
    typer.Option(
        "--restored-pattern",
        "--pattern",
        metavar="PATTERN",
        help="What names of RESTORED are like: '{key}_out.png'.",
    ),
]
TruthPattern = Annotated[
    str, typer.Option(metavar="PATTERN", help="What names of TRUTH are like: '{key}_SRF_4_HR.png'.")
]
Reference = Annotated[
    str,
    typer.Option(
        help="What metrics of sets compare with: truth, a folder, shards, an .npz, or clean-fid's "
        "published statistics as {name: ffhq, split: trainval70k, resolution: 256}."
    ),
]
Address = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="none: in this process. local: a Ray of its own, on all cores. auto or ray://HOST:10001: an "
        "existing cluster.",
    ),
]


def score(
    restored: Restored,
    truth: Truth,
    metrics: Metrics = "psnr,ssim",
    out: Out = "scores",
    restored_pattern: RestoredPattern = "{key}",
    truth_pattern: TruthPattern = "{key}",
    reference: Reference = "truth",
    address: Address = "none",
    retry_failed: RetryOption = False,
    track: TrackOption = None,
) -> None:
    """Measure images that another method restored against the truth, paired by key.

    A key is the path without its suffix, so restored PNG and true JPEG fit together; of names with more in
    them a pattern says which part the key is, and files of other names are not compared. The result is a
    run: the same command again does what is left. Exit code 2 if images have no partner, or cannot be
    compared.

    Examples:

        kintsugi score resshift/ imagenet256/ --metrics psnr,lpips,fid --out runs/resshift

        kintsugi score 'diffir/*.tar' 'imagenet256/*.tar' --out runs/diffir --address local

        kintsugi score swinir/ set14/ --restored-pattern '{key}_SwinIR.png' --out runs/swinir

        kintsugi compare runs/sr4 runs/diffir
    """
    from kintsugi.pipeline.metrics import CLIPS
    from kintsugi.pipeline.parts import Published

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    if not names:
        raise JobError("--metrics: names none")
    patterns = {"pattern": restored_pattern, "truth_pattern": truth_pattern}
    given = {name: pattern for name, pattern in patterns.items() if pattern != "{key}"}
    fields = {
        "data": {"kind": "restored", "shards": restored, "truth": truth, **given},
        "metrics": names,
        "reference": parse_setting(reference, "--reference", [str, Published]),
        "images": "all" if any(name in CLIPS for name in names) else "none",
        "output": str(located("--out", out)),
    }
    try:
        complete(check(fields, "score"), address, retry_failed, track)
    except JobError as error:
        text = str(error).removeprefix("score:\n  ")
        raise JobError(FIELD.sub(lambda field: WORDS[field[0]], text)) from error
