"""How far each method's samples are from the exact posterior, where that is known: a Gaussian prior.

    python benchmarks/posterior_bias.py

The prior is a stationary Gaussian with the 1/f² spectrum of natural images, 8 × 8 pixels; its denoiser,
its posterior mean μ and covariance are closed forms. Every sampler starts from pure noise with a
generous budget. Prints a Markdown table, in about three minutes; a cell holds

    ‖m − μ‖ / ‖μ‖;  variance / posterior's, where y is silent;  the same over all directions

with m the mean of the samples, over a few measurements. No noise in y: both ratios are of what y does
not determine. Every draw is used with both signs, so that m has no Monte-Carlo error for a sampler that
is affine in its noise (all but DPS and MCG).

Not in the table: RED-diff, PnP-Flow and DMPlug seek one image and their spread means nothing; DDIM
ignores y when it starts from pure noise.

    python benchmarks/posterior_bias.py --coverage

Instead, what rows and reports say of the samples' calibration, for images of the prior with 8 samples each:
coverage of the 50, 90 and 95 % intervals, RMS z-score, and error / spread √(1 + 1/8), with the standard
error over the images of the coverages at most.
"""

from typing import Annotated

import numpy as np
import typer
from kit.posterior import SAMPLERS, TASKS, Gaussian, Spec, bias, calibrated, natural_texture, white_noise

from kintsugi.pipeline.metrics.registry import COVERAGE

NOISY = [task for task in TASKS if "σ" in task]
DRAWN = 8  # samples of an image


def main(
    samples: Annotated[int, typer.Option(help="per measurement, an even number")] = 500,
    white: Annotated[bool, typer.Option(help="N(0, I) as the prior instead")] = False,
    coverage: Annotated[bool, typer.Option(help="calibration instead")] = False,
) -> None:
    """Print the table."""
    gaussian = white_noise() if white else natural_texture()
    if coverage:
        print_coverage(gaussian)
        return
    print(f"| | evaluations | {' | '.join(TASKS)} |")
    print("|---|---|" + "---|" * len(TASKS))
    uncertainty = 0.0
    for name, spec in SAMPLERS.items():
        cells = []
        for task in TASKS:
            figures = bias(spec, gaussian, task, samples)
            uncertainty = max(uncertainty, figures.uncertainty)
            cells.append(f"{figures.mean:.3f}; {figures.unseen:.2f}; {figures.total:.2f}")
        print(f"| {name} | {spec['steps']} | {' | '.join(cells)} |", flush=True)
    print(f"\nMonte-Carlo error of the ratios: at most {uncertainty:.3f} (one standard deviation).")


def print_coverage(gaussian: Gaussian) -> None:
    """Print the table of calibration."""
    print(f"| | {' | '.join(NOISY)} |")
    print("|---|" + "---|" * len(NOISY))
    uncertainty = 0.0
    for name, spec in SAMPLERS.items():
        cells = []
        for task in NOISY:
            cell, error = of_coverage(spec, gaussian, task)
            uncertainty = max(uncertainty, error)
            cells.append(cell)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"\nMonte-Carlo error of the coverages: at most {uncertainty:.3f} (one standard deviation).")


def of_coverage(spec: Spec, gaussian: Gaussian, task: str, images: int = 100) -> tuple[str, float]:
    """A cell, and the largest standard error of its coverages."""
    found = calibrated(spec, gaussian, task, images, DRAWN)
    shares = " / ".join(f"{100 * found[name].mean():.0f}" for name in COVERAGE)
    expected = np.mean(found["spread"] ** 2) * (1 + 1 / DRAWN)
    ratio = np.sqrt(np.mean(found["error_rms"] ** 2) / expected)
    error = max(found[name].std(ddof=1) for name in COVERAGE) / images**0.5
    return f"{shares}; {found['z_rms'].mean():.2f}; {ratio:.2f}", error


if __name__ == "__main__":
    typer.run(main)
