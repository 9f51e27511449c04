"""Features that are reused: those of the last whole evaluation, of this restoration and no other."""

from types import SimpleNamespace

import pytest
import torch
from kit.networks import draw, make_adm, make_ncsnpp
from kit.pipelines import make_unet
from kit.samplers import BY_NETWORK, FEW
from pydantic import TypeAdapter

from kintsugi import operators, priors, samplers
from kintsugi.errors import JobError, SpecError
from kintsugi.pipeline.analysis.protocol import Evaluations
from kintsugi.pipeline.analysis.report.opening import cost_of
from kintsugi.pipeline.analysis.report.results import more_of_cost
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.execution.stage import Loaded, Stage
from kintsugi.pipeline.job import Job, config_hash, deciding
from kintsugi.priors import speed
from kintsugi.priors.analytic import StandardNormal
from kintsugi.priors.grouped import Grouped
from kintsugi.priors.paths import VariancePreserving
from kintsugi.priors.reuse import Reusing
from kintsugi.priors.tiled import Tiled
from kintsugi.samplers import KeyedNoise
from kintsugi.testing import mixture, suited

SIZE, EARLY, LATE = 16, torch.tensor([0.6, 0.6]), torch.tensor([0.2, 0.3])


class Bare:
    """A prior whose network is the U-Net itself."""

    path, parametrization = VariancePreserving(), "eps"

    def __init__(self, **config):
        self.network = make_unet(**config).requires_grad_(False)

    def __call__(self, x, t):
        return self.network(x, 1000 * t, return_dict=False)[0]


@pytest.fixture(scope="module")
def natural():
    return priors.load({"name": "natural"})


@pytest.fixture(scope="module")
def adm(tmp_path_factory):
    file, head_channels, *_ = make_adm(tmp_path_factory.mktemp("adm"), "ffhq-like")
    return priors.load({"name": "adm", "path": str(file), "head_channels": head_channels})


@pytest.fixture(scope="module")
def half():
    prior = priors.load({"name": "natural"})
    speed.half_precision(prior, torch.bfloat16)
    return prior


def noisy(seed, *shape):
    return draw(*(shape or (2, 3, SIZE, SIZE)), seed=seed)


def test_what_is_reused_is_what_the_coarser_levels_gave_before():
    """Both evaluations by hand, from the parts of the network."""
    prior = Bare()
    unet, reusing = prior.network, Reusing(prior, 2)
    first, second = noisy(1), noisy(2)

    def finest(x, t):
        embedding = unet.time_embedding(unet.time_proj(1000 * t))
        begun = unet.conv_in(x)
        return embedding, begun, unet.down_blocks[0].resnets[0](begun, embedding)

    embedding, _, down = finest(first, EARLY)
    smaller = unet.down_blocks[0].downsamplers[0](down)
    coarse = unet.down_blocks[1].attentions[0](unet.down_blocks[1].resnets[0](smaller, embedding))
    deep = unet.up_blocks[0](unet.mid_block(coarse, embedding), (smaller, coarse), embedding)

    embedding, begun, down = finest(second, LATE)
    up = unet.up_blocks[1].resnets[0](torch.cat([deep, down], 1), embedding)
    up = unet.up_blocks[1].resnets[1](torch.cat([up, begun], 1), embedding)
    by_hand = unet.conv_out(unet.conv_act(unet.conv_norm_out(up)))

    whole = prior(second, LATE)
    with reusing.restoring():
        assert torch.equal(reusing(first, EARLY), prior(first, EARLY))
        torch.testing.assert_close(reusing(second, LATE), by_hand)
        assert torch.equal(reusing(second, LATE), whole)
    assert (whole - by_hand).abs().max() > 1e-3  # or nothing has been tested
    assert torch.equal(prior(second, LATE), whole)  # the network is what it was


@pytest.mark.parametrize("name", ["natural", "adm", "half", "tiles", "channels"])
def test_features_of_the_same_input_give_the_same_bits(name, request):
    """In each call of an evaluation of several, too."""
    prior = request.getfixturevalue(name if name in ("natural", "adm", "half") else "natural")
    x, t = noisy(3), (torch.tensor([300.0, 300.5]) if name == "adm" else EARLY)
    if name == "tiles":
        prior, x = Tiled(prior, 16, 8, 8, batch=3), noisy(3, 2, 3, 24, 40)
    if name == "channels":
        prior, x = Grouped(prior, 3), noisy(3, 2, 5, SIZE, SIZE)
    reusing = Reusing(prior, 3)
    with torch.no_grad(), reusing.restoring():
        expected = prior(x, t)
        assert all(torch.equal(reusing(x, t), expected) for _ in range(4))


def test_every_first_is_the_prior_itself(natural):
    reusing = Reusing(natural, 1)
    with reusing.restoring():
        for seed, t in enumerate((EARLY, LATE)):
            assert torch.equal(reusing(noisy(seed), t), natural(noisy(seed), t))


def test_a_restoration_finds_nothing_of_another_one(natural):
    reusing = Reusing(natural, 9)
    x, other = noisy(1), noisy(2)
    with reusing.restoring():
        reusing(other, EARLY)
        assert len(reusing.features) == 1
    assert reusing.features == []
    with reusing.restoring():
        assert torch.equal(reusing(x, LATE), natural(x, LATE))


def test_a_network_that_fails_stays_whole(natural):
    expected, reusing = natural(noisy(1), LATE), Reusing(natural, 2)
    with reusing.restoring():
        reusing(noisy(1), EARLY)
        with pytest.raises(RuntimeError):
            reusing(noisy(1, 2, 3, 32, 32), EARLY)
    assert reusing.features == []
    assert torch.equal(natural(noisy(1), LATE), expected)


def test_derivatives_are_refused(natural):
    with pytest.raises(SpecError, match=r"compute\.reuse"), torch.enable_grad():
        Reusing(natural, 2)(noisy(1).requires_grad_(), EARLY)


def test_networks_without_such_features_are_refused(tmp_path):
    flow = priors.load({"name": "rectified_flow", "path": str(make_ncsnpp(tmp_path, "narrow")[0])})
    one = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    for prior in (flow, Bare(**one), StandardNormal(VariancePreserving(), "eps")):
        with pytest.raises(SpecError, match=r"^reuse: "):
            Reusing(prior, 2)


@pytest.mark.parametrize("name", BY_NETWORK)
def test_samplers_say_whether_they_ask_for_derivatives(name):
    """By what they were counted to ask for."""
    sampler = samplers.build({"name": name, "steps": 4, **FEW.get(name, {})})
    operator = operators.build({"name": "bicubic", "factor": 2}, (1, 8, 8), dtype=torch.float64)
    y = operator.forward(draw(1, 1, 8, 8).double())
    prior = suited(mixture(shape=(1, 8, 8)), sampler, operator)
    found = sampler(prior, operator, y, KeyedNoise(0, ["a"]))
    assert sampler.differentiates == bool(torch.as_tensor(found.vjps).any())


@pytest.fixture
def job_of(make_job):
    def of(sampler=None, **fields) -> Job:
        compute = {"batch_size": 4, "precision": "float32"} | fields.pop("compute", {"reuse": 3})
        spec = sampler or {"name": "ddnm", "steps": 5}
        return make_job(sampler=spec, compute=compute, metrics=["psnr"], **fields)

    return of


def test_a_job_that_asks_for_derivatives_is_refused_as_it_is_read(job_of):
    asks = [{"name": "dps", "steps": 5}, {"name": "conjugate", "steps": 5}]
    for sampler in (*asks, {"name": "pigdm", "steps": 5, "vjp_steps": 1}):
        with pytest.raises(ValueError, match=r"compute\.reuse: .* vector-Jacobian products"):
            job_of(sampler)
    for sampler in ({"name": "ddim", "steps": 5}, {"name": "conjugate", "steps": 5, "jacobian": False}):
        assert job_of(sampler).compute.reuse == 3
    with pytest.raises(ValueError, match="reuse: a compiled network"):
        job_of(compute={"reuse": 3, "compile": "default"})


def test_only_jobs_that_reuse_say_so(job_of):
    without, reuses = job_of(compute={}), job_of()
    assert "reuse" not in without.model_dump()["compute"]
    assert set(deciding(reuses)) - set(deciding(without)) == {"compute.reuse"}
    assert config_hash(without) == config_hash(job_of(compute={"reuse": None})) != config_hash(reuses)


def test_a_prior_without_features_is_an_error_of_the_job(job_of):
    bare = SimpleNamespace(path=VariancePreserving(), parametrization="eps", sha256="", network=None)
    described = SimpleNamespace(multiple=1, image_channels=3)
    with pytest.raises(JobError, match=r"compute\.reuse: the prior's network"):
        Stage(job_of(), "cpu", loaded=Loaded(bare, described))


def test_the_cost_says_how_many_evaluations_are_whole(job_of):
    cost = {"forwards": 5, "vjps": 0} | more_of_cost(job_of())
    said = cost_of({"cost": cost, "metrics": {"seconds": {"mean": 1.0}}, "provenance": {}})
    assert "coarser levels in one of 3 evaluations, reused in others" in said
    assert more_of_cost(job_of(compute={})) == {}
    evaluations = {"forwards": 5, "vjps": 0, "total": 5}
    for stated in ({}, {"reuse": 3}):
        assert TypeAdapter(Evaluations).validate_python(evaluations | stated) == evaluations | stated


@pytest.mark.parametrize("count", [1, 2])
def test_a_job_restores_each_image_as_if_it_were_alone(job_of, count):
    """By steps that are no multiple of N, so that features left over would be used."""
    job = job_of(restoration={"samples_per_image": count})
    size = job.data.size
    images = (noisy(5, 2, size, size, 3) * 40 + 128).clamp(0, 255).byte().numpy()
    decoded = [Decoded(str(i), i, image, label=None) for i, image in enumerate(images)]
    stage = Stage(job, "cpu")
    together = stage.run(decoded)
    for one, expected in zip(reversed(decoded), reversed(together), strict=True):
        (alone,) = stage.run([one])
        assert alone.metrics["psnr"] == pytest.approx(expected.metrics["psnr"], abs=1e-4)
        assert (alone.forwards, alone.vjps) == (5 * count, 0)
    whole = Stage(job_of(compute={}, restoration={"samples_per_image": count}), "cpu").run(decoded)
    assert all(
        abs(a.metrics["psnr"] - b.metrics["psnr"]) > 1e-3 for a, b in zip(together, whole, strict=True)
    )
