"""How far each method's samples are from the exact posterior, where that is known: a Gaussian prior.

    python benchmarks/posterior_bias.py

The prior is a stationary Gaussian with the 1/f² spectrum of natural images, 8 × 8 pixels; its denoiser,
its posterior mean μ and covariance are closed forms. Every sampler starts from pure noise with a
generous budget. Prints a Markdown table, in about three minutes; a cell holds

    ‖m − μ‖ / ‖μ‖;  variance / posterior's, where y is silent;  the same over all directions

with m the mean of the samples, over a few measurements. No noise in y: both ratios are of what y does
not determine. Every draw is used with both signs, so that m has no Monte-Carlo error for a sampler that
is affine in its noise (all but DPS and MCG).

Not in the table: RED-diff seeks one mode and its spread means nothing; DDIM ignores y when it starts
from pure noise.
"""

from typing import Annotated

import typer
from kit.posterior import SAMPLERS, TASKS, bias, natural_texture, white_noise


def main(
    samples: Annotated[int, typer.Option(help="per measurement, an even number")] = 500,
    white: Annotated[bool, typer.Option(help="N(0, I) as the prior instead")] = False,
) -> None:
    """Print the table."""
    gaussian = white_noise() if white else natural_texture()
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


if __name__ == "__main__":
    typer.run(main)
