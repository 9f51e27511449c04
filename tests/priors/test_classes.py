"""Class-conditional networks and classifier-free guidance, of diffusers and of ADM, and in a job."""

import diffusers
import pytest
import torch
from kit.networks import ADM, Weights, adm_reference, make_adm
from kit.pipelines import make_unet, save
from kit.shards import encode, picture, write_tar

import kintsugi
from kintsugi import operators, priors, samplers
from kintsugi.errors import JobError, SpecError
from kintsugi.pipeline.execution.estimate import evaluations
from kintsugi.pipeline.execution.stage import Loaded
from kintsugi.pipeline.job import Job
from kintsugi.priors.base import ClassConditional, evaluations_of
from kintsugi.priors.reuse import Reusing
from kintsugi.priors.tiled import Tiled
from kintsugi.testing import check_prior

SHAPE, CLASSES, NULL = (3, 16, 16), 5, 4
SCHEDULERS = {
    "epsilon": lambda: diffusers.DDPMScheduler(),
    "v": lambda: diffusers.DDPMScheduler(prediction_type="v_prediction"),
    "consistency": lambda: diffusers.CMStochasticIterativeScheduler(),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unlike(unet):
    """The network with embeddings of classes that differ enough to show."""
    with torch.no_grad():
        unet.class_embedding.weight.mul_(3)
    return unet


@pytest.fixture(scope="module", params=SCHEDULERS)
def spec(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / request.param
    save(folder, SCHEDULERS[request.param](), unlike(make_unet(num_class_embeds=CLASSES)))
    return {"name": "diffusers", "path": str(folder)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "epsilon"
    save(folder, SCHEDULERS["epsilon"](), unlike(make_unet(num_class_embeds=CLASSES)))
    return {"name": "diffusers", "path": str(folder)}


@pytest.fixture(scope="module")
def adm_file(tmp_path_factory):
    path, head_channels, *_ = make_adm(tmp_path_factory.mktemp("adm"), "conditional")
    return {"name": "adm", "path": str(path), "head_channels": head_channels}


def times(prior):
    first, last = prior.path.data_time, prior.path.noise_time
    return first + torch.tensor([0.2, 0.6]) * (last - first)


def told(spec, labels, **fields):
    prior = priors.load(spec | fields)
    prior.labels = torch.tensor(labels)
    return prior


@torch.no_grad()
def test_guidance_extrapolates_from_the_null_class(spec):
    """u_∅ + w (u_c − u_∅), of what the network says of each class by itself."""
    x, prior = draw(2, *SHAPE), told(spec, [1, 3], cfg=2.5, null_label=NULL)
    t = times(prior)
    given, without = (told(spec, labels)(x, t) for labels in ([1, 3], [NULL, NULL]))
    assert (given - without).abs().max() > 1e-3
    torch.testing.assert_close(prior(x, t), without + 2.5 * (given - without), rtol=1e-4, atol=1e-4)
    assert torch.equal(told(spec, [1, 3], cfg=1.0)(x, t), given)


@torch.no_grad()
def test_the_class_is_told_to_the_network_as_diffusers_does(saved):
    """x̂₀ of each image by DDPM's own scheduler."""
    scheduler, x = diffusers.DDPMScheduler(clip_sample=False), draw(2, *SHAPE)
    unet = diffusers.UNet2DModel.from_pretrained(f"{saved['path']}/unet", low_cpu_mem_usage=False)
    output = unet(x, 300, class_labels=torch.tensor([1, 3])).sample
    assert torch.equal(told(saved, [1, 3])(x, torch.tensor([300.0, 300.0])), output)
    expected = scheduler.step(output, 300, x).pred_original_sample
    a, s = scheduler.alphas_cumprod[300].sqrt(), (1 - scheduler.alphas_cumprod[300]).sqrt()
    torch.testing.assert_close((x - s * output) / a, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_guidance_of_adm_is_that_of_the_reference(adm_file):
    weights, x, t = Weights(), draw(2, *SHAPE), torch.tensor([17.0, 523.25])
    of = [
        adm_reference(weights, x, t, *ADM["conditional"], torch.tensor(labels))[:, :3]
        for labels in ([7, 2], [9, 9])
    ]
    prior = told(adm_file, [7, 2], cfg=3.0, null_label=9)
    expected = of[1] + 3 * (of[0] - of[1])
    assert (prior(x, t) - expected).norm() < 1e-5 * expected.norm()
    one = priors.load(adm_file | {"cfg": 3.0, "null_label": 9, "label": 7})
    assert torch.equal(one(x, t)[0], told(adm_file, [7, 7], cfg=3.0, null_label=9)(x, t)[0])


@torch.no_grad()
def test_a_guided_image_does_not_depend_on_its_batch(spec):
    x, fields = draw(3, *SHAPE), {"cfg": 2.0, "null_label": NULL}
    prior = told(spec, [0, 2, 3], **fields)
    t = times(prior)[:1].expand(3)
    together = prior(x, t)
    alone = told(spec, [2], **fields)(x[1:2], t[1:2])
    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-4)


def test_it_has_the_properties_of_every_prior_and_says_what_it_is(spec, adm_file):
    guided = spec | {"cfg": 2.0, "null_label": NULL, "label": 1}
    check_prior(guided, SHAPE)
    prior = priors.load(guided)
    assert isinstance(prior, ClassConditional)
    assert (prior.classes, prior.label, evaluations_of(prior)) == (CLASSES, 1, 2)
    assert evaluations_of(priors.load(spec)) == 1
    for found in (guided, adm_file | {"cfg": 2.0, "null_label": 9}):
        title = priors.examine(found, SHAPE).title
        assert "classes, " in title
        assert "guidance 2, two evaluations for one" in title


class Called:
    """How often the network of a prior is called, for an image, and how often it is differentiated."""

    def __init__(self, prior):
        self.forwards = self.vjps = 0
        prior.network.register_forward_hook(self.count)

    def count(self, module, given, output):
        self.forwards += len(given[0])
        if output[0].requires_grad:
            output[0].register_hook(self.count_vjp)

    def count_vjp(self, gradient):
        self.vjps += len(gradient)


@pytest.mark.parametrize(
    "sampler",
    [{"name": "conjugate", "steps": 2}, {"name": "ddnm", "steps": 2}, {"name": "dps", "steps": 2},
     {"name": "cdim", "steps": 2, "projections": 1}],
    ids=lambda of: of["name"],
)  # fmt: skip
@pytest.mark.parametrize("tiled", [False, True])
def test_both_evaluations_are_counted(saved, sampler, tiled):
    prior = told(saved, [1], cfg=2.0, null_label=NULL)
    called = Called(prior)
    operator = operators.build({"name": "bicubic", "factor": 2}, SHAPE)
    y = operator.forward(draw(1, *SHAPE) / 4)
    seen = Tiled(prior, 16, 2, 4) if tiled else prior
    if tiled:
        seen.labels = torch.tensor([1])
    found = samplers.build(sampler)(seen, operator, y, samplers.KeyedNoise(0, ["a"]))
    assert (int(found.forwards), int(found.vjps)) == (called.forwards, called.vjps)
    assert called.forwards >= 4


@torch.no_grad()
def test_features_that_are_reused_are_those_of_the_same_class(saved):
    prior, x, t = told(saved, [1, 3], cfg=2.0, null_label=NULL), draw(2, *SHAPE), torch.tensor([300.0, 300.0])
    reusing = Reusing(prior, 2)
    with reusing.restoring():
        whole, reused = reusing(x, t), reusing(x, t)
    torch.testing.assert_close(whole, prior(x, t))
    torch.testing.assert_close(reused, whole)


@pytest.mark.parametrize("of", ["diffusers", "adm"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cfg": 2.0}, r"^prior\.cfg: guidance needs null_label, .*has none"),
        ({"cfg": 2.0, "null_label": 10}, r"^prior\.null_label: must be from 0 to \d \(got 10\)"),
        ({"null_label": 1}, r"^prior\.null_label: is for guidance"),
        ({"label": 10}, r"^prior\.label: must be from 0 to \d \(got 10\)"),
        ({"cfg": float("nan")}, r"^prior\.cfg"),
    ],
    ids=str,
)
def test_what_the_network_does_not_have_is_refused(saved, adm_file, of, fields, message):
    spec = (saved if of == "diffusers" else adm_file) | fields
    for read in (priors.describe, priors.load):
        with pytest.raises(SpecError, match=message):
            read(spec)


@pytest.mark.parametrize("fields", [{"label": 1}, {"cfg": 2.0, "null_label": 1}, {"cfg": 2.0}], ids=str)
def test_a_network_without_classes_takes_none(tmp_path, fields):
    folder = save(tmp_path / "saved", diffusers.DDPMScheduler())
    spec = {"name": "diffusers", "path": str(folder)}
    with pytest.raises(SpecError, match=r"the network knows no classes; leave the field out"):
        priors.describe(spec | fields)
    plain = priors.load(spec)
    assert (plain.classes, evaluations_of(plain)) == (None, 1)


def test_classes_that_are_not_numbers_are_refused(tmp_path):
    unet = make_unet(class_embed_type="timestep")
    folder = save(tmp_path / "saved", diffusers.DDPMScheduler(), unet)
    with pytest.raises(SpecError, match=r"config\.json has class_embed_type 'timestep'; only classes by"):
        priors.describe({"name": "diffusers", "path": str(folder)})


# In a job.


@pytest.fixture
def job(saved, tmp_path):
    members = [
        (f"{i}.{kind}", content)
        for i in range(4)
        for kind, content in (("png", encode(picture(i, 16))), ("cls", str(i % 2).encode()))
    ]
    write_tar(tmp_path / "in.tar", [*members, ("4.png", encode(picture(4, 16)))])
    return {
        "data": {"shards": str(tmp_path / "in.tar"), "size": 16},
        "degradation": {"operator": {"name": "bicubic", "factor": 2}},
        "prior": saved | {"cfg": 2.0, "null_label": NULL},
        "sampler": {"name": "ddnm", "steps": 2},
        "metrics": ["psnr"],
        "compute": {"batch_size": 2, "unit_size": 2, "cpus_per_actor": 1},
        "output": str(tmp_path / "run"),
    }


def test_a_job_tells_the_class_of_each_sample_and_resumes(job, tmp_path):
    kintsugi.run(job)
    # As if a worker had died before it committed its unit.
    min((tmp_path / "run" / "commits").glob("*.json")).unlink()
    rows = {row["key"]: row for row in kintsugi.run(job).rows().to_pylist()}
    assert [rows[str(i)]["status"] for i in range(5)] == ["ok"] * 4 + ["failed"]
    assert "no .cls; set prior.label" in rows["4"]["error"]
    assert {(rows[str(i)]["forwards"], rows[str(i)]["vjps"]) for i in range(4)} == {(4, 0)}
    job["output"] = str(tmp_path / "whole")
    whole = kintsugi.run(job).rows().to_pylist()
    assert len(whole) == 5
    assert [row["psnr"] for row in whole] == [rows[row["key"]]["psnr"] for row in whole]
    # All told one class: the same for those whose class it is, others for the rest.
    one = kintsugi.run(job | {"output": str(tmp_path / "one"), "prior": job["prior"] | {"label": 0}})
    same = {row["key"]: row["psnr"] == rows[row["key"]]["psnr"] for row in one.rows().to_pylist()}
    assert [same[str(i)] for i in range(4)] == [True, False, True, False]


def test_a_plan_counts_both_evaluations(job):
    prior = priors.load(job["prior"])
    assert evaluations(Job(**job), Loaded(prior, priors.describe(job["prior"]))) == (4, 0)


def test_a_job_without_a_null_class_is_refused_before_there_is_a_run(job, tmp_path):
    with pytest.raises(JobError, match=r"^prior\.cfg: guidance needs null_label"):
        kintsugi.run(job | {"prior": {k: v for k, v in job["prior"].items() if k != "null_label"}})
    assert not (tmp_path / "run" / "job.yaml").exists()
