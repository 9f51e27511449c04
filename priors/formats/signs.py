"""What a file of weights is, by names in it: said where it was given as another format."""

import re
from pathlib import Path
from typing import Any

from kintsugi import checkpoint
from kintsugi.errors import SpecError
from kintsugi.priors import tables

DIFFUSERS = "convert it to a folder of diffusers (from_single_file, then save_pretrained), name: diffusers"
SIGNS = (
    # Stable Diffusion has ADM's names behind its own.
    (r"model\.diffusion_model\..+", f"a single file of Stable Diffusion or LDM; {DIFFUSERS}"),
    (r"joint_blocks\.0\..+", f"a single file of an SD 3 transformer; {DIFFUSERS}"),
    (r"double_blocks\.0\..+", f"a single file of a FLUX transformer; {DIFFUSERS}"),
    (r"blocks\.0\.adaLN_modulation\.1\.weight", f"a single file of DiT or SiT; {DIFFUSERS}"),
    (
        r"(u_net\.d_blocks\.0\..+|time_in_proj\.weight)",
        "a network of k-diffusion, which is not read: its architecture is in its configuration; a plug-in "
        "(docs/plugins.md) can wrap it, with its own code installed",
    ),
    (
        r"down_blocks\.0\.resnets\.0\.norm1\.weight",
        "weights of diffusers; give the folder, name: diffusers",
    ),
    (r"input_blocks\.0\.0\.weight", "a network of guided-diffusion or improved-diffusion, name: adm"),
    (
        r"all_modules\.1\.weight",
        "of score_sde or of rectified flow, name: score_sde or rectified_flow",
    ),
    (r"downs\.0\.0\.block1\.proj\.weight", "a network of denoising-diffusion-pytorch, name: lucidrains"),
)
"""Names of parameters, behind any prefix, and of what they are a part; the first that fits is said."""


def recognised(path: Any) -> str | None:
    """What a file is, in words; None of what is not known, or cannot be read."""
    if not isinstance(path, (str, Path)):
        return None
    try:
        file = Path(path).expanduser()
        content = checkpoint.read(file, "meta") if file.is_file() else None
    except (SpecError, OSError, RuntimeError, ValueError):  # also of paths that are none
        return None
    keys = [key for _, values in tables.walk(content) for key in values if isinstance(key, str)]
    keys = [key for key in keys if len(key) <= tables.LABEL]
    for sign, what in SIGNS:
        whole = re.compile(rf"(.*\.)?{sign}")
        if any(whole.fullmatch(key) for key in keys):
            return what
    return None
