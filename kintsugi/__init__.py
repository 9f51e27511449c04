"""Kintsugi: restore image datasets with pretrained diffusion and flow models, fast, and measure it.

From Python: `kintsugi.run`, `open_run`, `restore`, `load_prior`. Importing it loads no torch and no Ray.
"""

from kintsugi.errors import JobError
from kintsugi.interface import Run, load_prior, open_run, restore, run

__all__ = ["JobError", "Run", "load_prior", "open_run", "restore", "run"]
