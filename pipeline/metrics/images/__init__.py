"""The metrics of images that are built in: each file here has one, `METRIC`, under the file's name."""

from importlib import import_module
from pkgutil import iter_modules

from kintsugi.pipeline.metrics.metric import ImageMetric

IN_EVERY_RUN = (
    "psnr",
    "ssim",
    "ms_ssim",
    "lpips",
    "lpips_vgg",
    "vif",
    "spectrum_ratio",
    "total_variation",
)
"""Those of the first versions: rows have their columns, in this order, whatever the job names."""


def find() -> dict[str, ImageMetric]:
    """The metrics in this folder by name, those of `IN_EVERY_RUN` first."""
    names = dict.fromkeys([*IN_EVERY_RUN, *sorted(module.name for module in iter_modules(__path__))])
    return {name: import_module(f"{__name__}.{name}").METRIC for name in names}
