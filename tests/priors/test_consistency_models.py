"""Consistency models saved by diffusers, against its own scheduler and pipeline, and in a job."""

from itertools import pairwise

import diffusers
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from kit.pipelines import make_unet, save
from kit.shards import encode, picture, write_tar

import kintsugi
from kintsugi import operators, priors, samplers
from kintsugi.errors import JobError
from kintsugi.priors.base import prediction_of
from kintsugi.priors.formats.diffusers_model import describe, diffusers_model
from kintsugi.testing import check_prior

SHAPE = (3, 32, 32)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_scheduler(**config):
    return CMStochasticIterativeScheduler(clip_denoised=False, **config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "consistency"
    ConsistencyModelPipeline(make_unet(), make_scheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prior(folder):
    return diffusers_model("cpu", path=str(folder))


@torch.no_grad()
def f(prior, x, sigma):
    return prior(x, torch.full((len(x),), sigma))


def close(actual, expected, tolerance=1e-5):
    return torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("config", [{}, {"sigma_data": 1.0, "sigma_min": 0.01, "sigma_max": 20.0}], ids=str)
def test_the_endpoint_is_what_the_scheduler_makes_of_the_network(tmp_path, config):
    scheduler = make_scheduler(**config)
    prior = diffusers_model("cpu", path=str(save(tmp_path / "saved", scheduler)))
    unet = UNet2DModel.from_pretrained(tmp_path / "saved" / "unet", low_cpu_mem_usage=False)
    assert prior.path.noise_time == scheduler.config.sigma_max
    for steps in (1, 4):
        scheduler.set_timesteps(steps)
        for k, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[k].item()
            x = draw(1, *SHAPE) / 2 + sigma * draw(1, *SHAPE, seed=1)
            with torch.no_grad():
                inside = unet(scheduler.scale_model_input(x, t), t).sample
            scheduler._step_index = k
            generator = torch.Generator().manual_seed(0)
            stepped = scheduler.step(inside, t, x, generator=generator).prev_sample
            if steps > 1:
                after = max(scheduler.sigmas[k + 1].item(), scheduler.config.sigma_min)
                spread = (after**2 - scheduler.config.sigma_min**2) ** 0.5
                stepped = stepped - spread * draw(1, *SHAPE)
            # At σ = 80 x is rounded to 4e-6, and the time 250 log σ to 1e-4.
            close(f(prior, x, sigma), stepped, 1e-4)


@pytest.mark.parametrize("sigma", [0.0, 0.001, 0.002])
def test_it_is_the_identity_where_the_noise_is_least(prior, sigma):
    x = draw(2, *SHAPE)
    torch.testing.assert_close(f(prior, x, sigma), x)


@pytest.mark.parametrize("steps", [1, 3])
def test_sampling_in_one_and_several_steps_is_that_of_the_pipeline(folder, prior, steps):
    pipeline = ConsistencyModelPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    start = 80 * draw(1, *SHAPE)
    expected = pipeline(
        latents=start / 80, num_inference_steps=steps, generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images  # fmt: skip
    generator, x = torch.Generator().manual_seed(3), start
    sigmas = pipeline.scheduler.sigmas.tolist()
    for sigma, after in pairwise(sigmas):
        x = f(prior, x, sigma)
        if steps > 1:
            noise = torch.randn(1, *SHAPE, generator=generator)
            x = x + (max(after, 0.002) ** 2 - 0.002**2) ** 0.5 * noise
    close((x / 2 + 0.5).clamp(0, 1), expected, 1e-3)


def test_it_has_the_properties_of_every_prior_and_says_what_it_is(folder, prior):
    spec = {"name": "diffusers", "path": str(folder)}
    check_prior(spec, SHAPE)
    assert (prior.parametrization, prediction_of(prior)) == ("x0", "endpoint")
    assert prediction_of(describe(path=str(folder))) == "endpoint"
    assert "a consistency function" in priors.examine(spec, SHAPE).title


def test_denoisers_are_what_they_were(tmp_path):
    folder = save(tmp_path / "saved", diffusers.EDMEulerScheduler())
    assert prediction_of(describe(path=str(folder))) == "mean"


@pytest.mark.parametrize("name", ["cm4ir", "pnp_cm", "ddim"])
def test_samplers_that_take_it_restore(prior, name):
    operator = operators.build({"name": "bicubic", "factor": 4}, SHAPE)
    y = operator.forward(draw(2, *SHAPE) / 4)
    sampler = samplers.build({"name": name, "steps": 2})
    noise = [samplers.KeyedNoise(0, keys) for keys in (["a", "b"], ["b"])]
    together = sampler(prior, operator, y, noise[0])
    assert (together.forwards, together.vjps) == (2, 0)
    assert torch.isfinite(together.image).all()
    alone = sampler(prior, operator, y[1:], noise[1]).image
    torch.testing.assert_close(alone[0], together.image[1], rtol=1e-4, atol=1e-4)


@pytest.fixture
def job(folder, tmp_path):
    write_tar(tmp_path / "in.tar", [(f"{i}.png", encode(picture(i, 32))) for i in range(3)])
    return {
        "data": {"shards": str(tmp_path / "in.tar"), "size": 32},
        "degradation": {"operator": {"name": "bicubic", "factor": 4}},
        "prior": {"name": "diffusers", "path": str(folder)},
        "sampler": {"name": "cm4ir", "steps": 2},
        "metrics": ["psnr"],
        "compute": {"batch_size": 2, "cpus_per_actor": 1},
        "output": str(tmp_path / "run"),
    }


def test_a_job_runs_and_resumes_with_it(job):
    first = kintsugi.run(job)
    rows = first.rows().to_pylist()
    assert [(row["status"], row["forwards"], row["vjps"]) for row in rows] == [("ok", 2, 0)] * 3
    again = kintsugi.run(job).rows()
    assert again.equals(first.rows())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": {"name": "conjugate"}}, r"^sampler\.name: Conjugate needs E\[x₀ \| x\]"),
        ({"sampler": {"name": "ddnm", "steps": 2}}, r"^sampler\.name: DDNM needs"),
        ({"metrics": ["psnr", "prior_error"]}, r"^metrics: prior_error needs"),
    ],
    ids=str,
)
def test_a_job_that_needs_a_denoiser_is_refused_before_there_is_a_run(job, tmp_path, change, message):
    with pytest.raises(JobError, match=message):
        kintsugi.run(job | change)
    assert not (tmp_path / "run" / "job.yaml").exists()
