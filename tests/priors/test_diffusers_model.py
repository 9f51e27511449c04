"""Models saved by diffusers against diffusers' own schedulers, on tiny networks with random weights."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from kit.pipelines import Hub, make_unet, save
from safetensors.torch import load_file, save_file

from kintsugi import operators, priors, samplers
from kintsugi.cache import checksum
from kintsugi.checkpoint import CheckpointError
from kintsugi.priors.base import data_prediction
from kintsugi.priors.formats.diffusers_model import describe, diffusers_model
from kintsugi.priors.paths import DDPM, log_snr
from kintsugi.testing import check_prior

D = torch.float64
SHAPE = (3, 32, 32)
WEIGHTS = "diffusion_pytorch_model"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def make_ncsnpp():
    return make_unet(
        time_embedding_type="fourier",
        center_input_sample=True,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(32, 32),
    )


def make_ddim(**config):
    return diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **config)


SAVED = {
    "ddpm": lambda: diffusers.DDPMPipeline(make_unet(), diffusers.DDPMScheduler(clip_sample=False)),
    "v": lambda: diffusers.DDIMPipeline(
        make_unet(), make_ddim(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    ),
    "x0": lambda: diffusers.DDIMPipeline(make_unet(), make_ddim(prediction_type="sample", beta_end=0.015)),
    "ve": lambda: diffusers.ScoreSdeVePipeline(make_ncsnpp(), diffusers.ScoreSdeVeScheduler()),
    "vp": lambda: ScoreSdeVpScheduler(),
    "edm": lambda: diffusers.EDMEulerScheduler(),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("diffusers")
    for name, make in SAVED.items():
        made = make()
        if isinstance(made, diffusers.DiffusionPipeline):
            made.save_pretrained(root / name)
        else:
            save(root / name, made)
    return {name: root / name for name in SAVED}


@pytest.fixture(scope="module", params=SAVED)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def copied(folders, tmp_path):
    """A DDPM pipeline to spoil."""
    return Path(shutil.copytree(folders["ddpm"], tmp_path / "copied"))


def load(folder):
    return diffusers_model("cpu", path=str(folder))


def predicted(prior, x, t):
    """x̂₀ at x (1, 3, H, W) and native time t, by the formulas that every sampler uses."""
    p, q = data_prediction(prior.path, prior.parametrization, torch.tensor([t], dtype=D))
    with torch.no_grad():
        return p.float() * x + q.float() * prior(x, torch.tensor([t]).float())


def noisy(path, t, seed=0):
    t = torch.tensor(t, dtype=D)
    return (path.a(t) * 0.5 * draw(1, *SHAPE, seed=seed) + path.s(t) * draw(1, *SHAPE, seed=seed + 1)).float()


def reference(folder):
    """The network as diffusers itself loads it."""
    unet = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    return torch.no_grad()(lambda x, t: unet(x, t).sample)


def close(actual, expected, tolerance=1e-5):
    """In the scale of the expected image."""
    return torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


# x̂₀, against what the schedulers of diffusers make of the output of the network as diffusers loads it.


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "trained", "zero_snr"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_data_prediction_is_that_of_ddim(folders, tmp_path, prediction, schedule):
    betas = {
        "trained": {
            "trained_betas": (torch.linspace(0.01, 0.2, 50) ** 1.5).tolist(),
            "num_train_timesteps": 50,
        },
        "zero_snr": {"rescale_betas_zero_snr": True},
    }.get(schedule, {"beta_schedule": schedule})
    scheduler = make_ddim(prediction_type=prediction, **betas)
    folder = save(tmp_path / "saved", scheduler)
    prior, unet = load(folder), reference(folder)
    steps = scheduler.config.num_train_timesteps
    scheduler.set_timesteps(steps)
    assert prior.path.noise_time == steps - (2 if schedule == "zero_snr" else 1)
    for t in (0, steps // 25, steps // 2, int(0.9 * steps)):
        x = noisy(prior.path, t)
        expected = scheduler.step(unet(x, t), t, x).pred_original_sample
        close(predicted(prior, x, t), expected, 3e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"]
)
def test_data_prediction_is_that_of_the_other_schedulers(tmp_path, name, prediction):
    """Those after Karras divide the state by a, and multiply it by a before the network."""
    scheduler = getattr(diffusers, name)(prediction_type=prediction)
    if name == "DDPMScheduler":
        scheduler.register_to_config(clip_sample=False)
    folder = save(tmp_path / "saved", scheduler)
    prior, unet = load(folder), reference(folder)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[0]
    x = noisy(prior.path, t.item())
    a = 1.0 if name == "DDPMScheduler" else prior.path.a(t.double()).float()
    output = unet(scheduler.scale_model_input(x / a, t), t)
    if name == "LMSDiscreteScheduler":
        scheduler.step(output, t, x / a)
        expected = x / a - scheduler.sigmas[0] * scheduler.derivatives[0]
    else:
        expected = scheduler.step(output, t, x / a).pred_original_sample
    close(predicted(prior, x, t.item()), expected, 1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_data_prediction_is_that_of_the_multistep_solvers(tmp_path, name, prediction):
    is_flow = prediction == "flow_prediction"
    scheduler = getattr(diffusers, name)(prediction_type=prediction, use_flow_sigmas=is_flow)
    folder = save(tmp_path / "saved", scheduler)
    prior, unet = load(folder), reference(folder)
    scheduler.set_timesteps(10)
    scheduler._step_index = 4
    label = scheduler.timesteps[4].item()
    t = 1 - scheduler.sigmas[4].item() if is_flow else label
    x = noisy(prior.path, t)
    # These solvers truncate the labels of a flow to integers; the network was trained on 1000 σ.
    output = unet(x, torch.tensor(1000 * (1 - t) if is_flow else label))
    close(predicted(prior, x, t), scheduler.convert_model_output(output, sample=x))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("data", [0.5, 1.0])
def test_data_prediction_is_that_of_edm(tmp_path, prediction, data):
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_data=data)
    folder = save(tmp_path / "saved", scheduler)
    prior, unet = load(folder), reference(folder)
    scheduler.set_timesteps(7)
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i].item()
        x = noisy(prior.path, sigma)
        inside = unet(scheduler.scale_model_input(x, t), t)
        # At σ = 80 x is rounded to 2e-5.
        close(predicted(prior, x, sigma), scheduler.step(inside, t, x).pred_original_sample, 1e-4)


def test_data_prediction_is_that_of_the_flow_scheduler(folders):
    """One step of diffusers from σ to 0 along the straight line ends at x̂₀."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    prior, unet = load(folders["flow"]), reference(folders["flow"])
    for sigma in (0.999, 0.6, 0.05):
        scheduler.set_timesteps(sigmas=[sigma])
        x, t = noisy(prior.path, 1 - sigma), scheduler.timesteps[0]
        close(predicted(prior, x, 1 - sigma), scheduler.step(unet(x, t), t, x).prev_sample)


def test_data_prediction_is_that_of_the_ve_pipeline(folders):
    """ScoreSdeVeScheduler.step_pred gives the score; its images are in [0, 1]."""
    scheduler = diffusers.ScoreSdeVeScheduler()
    prior, unet = load(folders["ve"]), reference(folders["ve"])
    scheduler.set_timesteps(50)
    scheduler.set_sigmas(50)
    assert prior.path.noise_time == 2 * scheduler.init_noise_sigma
    for i in (0, 20, 45):
        # The last of its levels are at integer fractions, where the two tables of the scheduler agree.
        t = (49 - i) / 49
        sigma = scheduler.discrete_sigmas[49 - i]
        x = 0.5 + 0.2 * draw(1, *SHAPE) + sigma * draw(1, *SHAPE, seed=1)
        output = unet(x, sigma)
        moved = scheduler.step_pred(output, t + 1e-6, x, generator=torch.Generator()).prev_sample_mean - x
        below = scheduler.discrete_sigmas[48 - i]
        expected = x + moved * sigma**2 / (sigma**2 - below**2)
        actual = predicted(prior, 2 * x - 1, 2 * sigma.item())
        close((actual + 1) / 2, expected, 1e-4)


def test_data_prediction_is_that_of_the_karras_ve_pipeline(folders):
    """A second pipeline of diffusers for the same networks, on [-1, 1]."""
    scheduler = KarrasVeScheduler()
    prior, unet = load(folders["ve"]), reference(folders["ve"])
    for sigma in (0.03, 1.5, 90.0):
        x = noisy(prior.path, sigma)
        output = (sigma / 2) * unet((x + 1) / 2, torch.tensor(sigma / 2))
        close(predicted(prior, x, sigma), scheduler.step(output, sigma, 0.0, x).pred_original_sample)


def test_ve_below_its_training_range_asks_for_the_score_at_its_end(folders):
    prior, unet = load(folders["ve"]), reference(folders["ve"])
    x = noisy(prior.path, 0.01)
    expected = x + 0.01**2 / 2 * unet((x + 1) / 2, torch.tensor(0.01))
    close(predicted(prior, x, 0.01), expected)


def test_data_prediction_is_that_of_the_vp_scheduler(folders):
    """Its step gives the score by way of the drift; Tweedie's formula makes x̂₀ of it."""
    scheduler = ScoreSdeVpScheduler()
    prior, unet = load(folders["vp"]), reference(folders["vp"])
    scheduler.set_timesteps(10)
    for t in (0.05, 0.4, 0.9):
        x, time = noisy(prior.path, t), torch.tensor(t)
        _, mean = scheduler.step_pred(unet(x, 999 * time), x, time, torch.Generator())
        beta, b = 0.1 + 19.9 * t, 0.1 * t + 9.95 * t**2
        score = ((mean - x) * 10 - 0.5 * beta * x) / beta
        a = torch.exp(torch.tensor(-b / 2))
        close(predicted(prior, x, t), (x + (1 - a**2) * score) / a, 1e-4)


def test_a_learned_variance_is_left_out(tmp_path):
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    folder = save(tmp_path / "saved", scheduler, make_unet(out_channels=6))
    x = noisy(DDPM(), 300.0)
    torch.testing.assert_close(load(folder)(x, torch.tensor([300.0])), reference(folder)(x, 300)[:, :3])


# Whole trajectories.

OPERATOR = operators.build({"name": "bicubic", "factor": 4}, SHAPE)


def start(prior, t, y, z):
    """The warm start of the samplers, made by hand."""
    t = torch.tensor(t, dtype=D)
    return prior.path.a(t).float() * OPERATOR.pinv(y) + prior.path.s(t).float() * z


def run(prior, y, z, **settings):
    return samplers.build({"name": "ddim", **settings})(prior, OPERATOR, y, z).image


@pytest.fixture(scope="module")
def measured():
    return OPERATOR.forward(0.5 * draw(1, *SHAPE)), draw(1, *SHAPE, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpm", "v", "x0"])
def test_ddim_is_that_of_diffusers(folders, measured, name):
    prior, unet = load(folders[name]), reference(folders[name])
    config = json.loads((folders[name] / "scheduler" / "scheduler_config.json").read_text())
    scheduler = diffusers.DDIMScheduler.from_config(config)
    scheduler.set_timesteps(20)
    labels = [t.item() for t in scheduler.timesteps[8:]]
    x = start(prior, labels[0], *measured)
    for t in labels[:-1]:
        x = scheduler.step(unet(x, t), t, x).prev_sample
    close(run(prior, *measured, start=labels[0], end=labels[-1], steps=len(labels) - 1), x, 1e-4)


def test_ddim_on_a_flow_is_euler_of_diffusers(folders, measured):
    prior, unet = load(folders["flow"]), reference(folders["flow"])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[0.8, 0.6, 0.4, 0.2])
    x = start(prior, 0.2, *measured)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t), t, x).prev_sample
    close(run(prior, *measured, start=0.2, end=1.0, steps=4), x)


def test_ddim_on_edm_is_euler_of_diffusers(folders, measured):
    prior, unet = load(folders["edm"]), reference(folders["edm"])
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(8)
    x = start(prior, 80.0, *measured)
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    close(run(prior, *measured, start=80.0, end=0.002, steps=7, grid="karras"), x)


def test_ddim_on_ve_is_euler_of_diffusers(folders, measured):
    prior, unet = load(folders["ve"]), reference(folders["ve"])
    scheduler = KarrasVeScheduler()
    x, levels = start(prior, 4.0, *measured), [4.0, 3.0, 2.0, 1.0]
    for now, later in pairwise(levels):
        output = (now / 2) * unet((x + 1) / 2, torch.tensor(now / 2))
        x = scheduler.step(output, now, later, x).prev_sample
    close(run(prior, *measured, start=4.0, end=1.0, steps=3), x)


def test_ddim_at_the_same_noise_levels_is_the_same_on_every_path(folder, measured):
    """What matching the log-SNR promises."""
    prior = load(folder)
    levels = torch.tensor([-1.0, 3.0], dtype=D)
    images = []
    for name, path in samplers.grids.PATHS.items():
        path = path or prior.path
        first, last = path.time_of(levels).tolist()
        images.append(run(prior, *measured, start=first, end=last, steps=4, grid="logsnr", path=name))
        assert (log_snr(path, torch.tensor([first, last], dtype=D)) - levels).abs().max() < 1e-9
    close(images[1], images[0], 1e-4)
    close(images[2], images[0], 1e-4)


@pytest.mark.parametrize("path", ["prior", "vp", "flow"])
def test_conjugate_guidance_runs_on_every_model(folder, measured, path):
    sampler = samplers.build({"name": "conjugate", "steps": 5, "w": 2, "path": path})
    restored = sampler(load(folder), OPERATOR, *measured)
    assert restored.image.shape == (1, *SHAPE)
    assert torch.isfinite(restored.image).all()
    assert (restored.forwards, restored.vjps) == (5, 5)


# Loading.


def test_the_checksum_covers_what_decides_the_output(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copied")
    before = priors.examine({"name": "diffusers", "path": str(copied)}, (3, 32, 32)).sha256
    for file in ("unet/config.json", "scheduler/scheduler_config.json"):
        content = json.loads((copied / file).read_text())
        (copied / file).write_text(json.dumps(content | {"note": "changed"}))
        after = priors.examine({"name": "diffusers", "path": str(copied)}, (3, 32, 32)).sha256
        assert after != before
        before = after


def test_the_prior_says_what_it_is(folder):
    prior, description = load(folder), describe(path=str(folder))
    weights = folder / "unet" / f"{WEIGHTS}.safetensors"
    assert description.multiple == 2
    assert description.files[0] == weights
    assert prior.sha256 == checksum(description.files)
    assert description.parameters == sum(weight.numel() for weight in prior.network.parameters())
    assert not prior.network.training
    for tensor in prior.network.state_dict().values():
        assert tensor.dtype == torch.float32
        assert not tensor.is_meta
    assert not any(weight.requires_grad for weight in prior.network.parameters())
    assert all(tensor.is_meta for tensor in description.network.state_dict().values())


def test_every_model_has_the_properties_that_are_offered_to_authors(folder):
    check_prior({"name": "diffusers", "path": str(folder)}, SHAPE)


def to_bin(unet):
    file = unet / f"{WEIGHTS}.safetensors"
    torch.save(load_file(file), unet / f"{WEIGHTS}.bin")
    file.unlink()


def to_half(unet):
    file = unet / f"{WEIGHTS}.safetensors"
    save_file({key: value.half() for key, value in load_file(file).items()}, file)


def to_shards(unet):
    UNet2DModel.from_pretrained(unet, low_cpu_mem_usage=False).save_pretrained(unet, max_shard_size="20KB")
    (unet / f"{WEIGHTS}.safetensors").unlink(missing_ok=True)
    assert len(list(unet.glob("*.safetensors"))) > 1


def to_old_names(unet):
    file = unet / f"{WEIGHTS}.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = load_file(file)
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    assert any("proj_attn" in key for key in state)
    save_file(state, file)


def to_root(unet):
    """The layout of google/ddpm-celebahq-256: everything beside the index."""
    for part in (unet, unet.parent / "scheduler"):
        for file in part.iterdir():
            file.rename(unet.parent / file.name)
        part.rmdir()


def without_index(unet):
    (unet.parent / "model_index.json").unlink()


@pytest.mark.parametrize(
    "change", [to_bin, to_half, to_shards, to_old_names, to_root, without_index], ids=lambda f: f.__name__
)
def test_every_layout_of_diffusers_loads(folders, copied, change):
    original = load(folders["ddpm"])
    change(copied / "unet")
    prior = load(copied)
    x, t = draw(1, *SHAPE), torch.tensor([400.0])
    # Convolutions round differently when weights lie differently in memory.
    tolerance = 2e-3 if change is to_half else 1e-5
    torch.testing.assert_close(prior(x, t), original(x, t), rtol=0, atol=tolerance)
    files = sorted((copied / "unet").glob(f"{WEIGHTS}*.safetensors"))
    if len(files) > 1:
        assert list(describe(path=str(copied)).files[: len(files)]) == files


def test_the_fourier_embedding_of_old_checkpoints_loads(folders, tmp_path):
    folder = Path(shutil.copytree(folders["ve"], tmp_path / "old"))
    file = folder / "unet" / f"{WEIGHTS}.safetensors"
    state = load_file(file)
    save_file(state | {"time_proj.W": state["time_proj.weight"].clone()}, file)
    x, t = draw(1, *SHAPE), torch.tensor([4.0])
    close(load(folder)(x, t), load(folders["ve"])(x, t))


def test_predict_epsilon_of_old_configurations_is_understood(copied):
    file = copied / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["prediction_type"]
    file.write_text(json.dumps(config | {"predict_epsilon": False}))
    x = draw(1, *SHAPE)
    close(predicted(load(copied), x, 500), reference(copied)(x, 500), 1e-4)


def test_no_code_of_a_repository_runs(copied, tmp_path):
    ran = tmp_path / "ran"
    for place in (copied, copied / "unet"):
        (place / "kintsugi.pipeline.py").write_text(f"open({str(ran)!r}, 'w')")
    edit(copied / "model_index.json", _class_name=["pipeline", "Pipeline"])
    edit(copied / "unet" / "config.json", auto_map={"AutoModel": "kintsugi.pipeline.Pipeline"})
    load(copied)
    edit(copied / "model_index.json", unet=["pipeline", "UNet2DModel"])
    with pytest.raises(CheckpointError, match="unet"):
        load(copied)
    assert not ran.exists()


# The hub.


@pytest.mark.parametrize("change", [None, to_bin, to_shards, to_root])
def test_a_hub_model_is_downloaded_as_far_as_needed(folders, copied, tmp_path, monkeypatch, change):
    if change:
        change(copied / "unet")
    (copied / "README.md").write_text("")
    if change is None:
        (copied / "unet" / f"{WEIGHTS}.bin").write_bytes(b"not needed")
    hub = Hub(copied, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    description = describe(path="someone/ddpm-tiny", revision="v1")
    assert description.multiple == 2
    assert {name.rpartition("/")[2] for name in hub.downloaded()} == {
        "model_index.json",
        "config.json",
        "scheduler_config.json",
    }
    prior = diffusers_model("cpu", path="someone/ddpm-tiny", revision="v1")
    x, t = draw(1, *SHAPE), torch.tensor([400.0])
    close(prior(x, t), load(folders["ddpm"])(x, t))
    assert hub.revisions == {"v1"}
    assert "README.md" not in hub.downloaded()
    assert change is not None or f"unet/{WEIGHTS}.bin" not in hub.downloaded()


def test_a_hub_model_out_of_reach_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(CheckpointError, match=r"path: .*hf download google/ddpm-cat-256") as caught:
        describe(path="google/ddpm-cat-256")
    assert "hf_secret" not in str(caught.value)


# Refusals: `describe` finds them all, and names the file and the field.


REFUSED = {
    "channels": ("unet", {"in_channels": 0}, r"config\.json has in_channels 0"),
    "outputs": ("unet", {"out_channels": 6}, r"out_channels 6"),
    "classes": ("unet", {"num_class_embeds": 10}, r"does not fit config\.json: .*class_embedding"),
    "no classes": ("unet", {"num_class_embeds": 0}, r"num_class_embeds 0; 1 class or more"),
    "class type": ("unet", {"class_embed_type": "timestep"}, r"class_embed_type 'timestep'"),
    "fourier": ("unet", {"time_embedding_type": "fourier"}, r"time_embedding_type 'fourier'"),
    "learned": ("unet", {"time_embedding_type": "learned", "num_train_timesteps": 9}, r"time_embedding_type"),
    "blocks": ("unet", {"down_block_types": ["DownBlock2D", "NoBlock"]}, r"config\.json.*NoBlock"),
    "fixed filters": ("unet", {"down_block_types": ["KDownBlock2D", "DownBlock2D"]}, r"down_block_types"),
    "widths": (
        "unet",
        {"block_out_channels": [8, 32]},
        r"safetensors' does not fit config\.json: '.*' has shape",
    ),
    "conditional": (
        "index",
        {"unet": ["diffusers", "UNet2DConditionModel"]},
        r"vae None; .*on pixels is not",
    ),
    "third part": ("index", {"bert": ["diffusers", "LDMBertModel"]}, r"model_index\.json has bert"),
    "foreign": ("index", {"scheduler": ["mine", "DDPMScheduler"]}, r"scheduler.*mine"),
    "distilled": ("index", {"scheduler": ["diffusers", "TCDScheduler"]}, r"scheduler.*TCDScheduler"),
    "prediction": ("scheduler", {"prediction_type": "score"}, r"prediction_type 'score'.*v_prediction"),
    "schedule": ("scheduler", {"beta_schedule": "quadratic"}, r"scheduler_config\.json.*quadratic"),
    "one beta": ("scheduler", {"trained_betas": 0.5}, r"does not say how the network was trained"),
    "list for a word": ("scheduler", {"prediction_type": []}, r"does not say how the network was trained"),
    "no betas": ("scheduler", {"trained_betas": []}, r"fewer than two betas"),
    "endless labels": ("scheduler", {"num_train_timesteps": 10**10}, r"num_train_timesteps 10000000000;"),
    "endless layers": ("unet", {"layers_per_block": 10**10}, r"layers_per_block 10000000000;"),
    "betas": ("scheduler", {"trained_betas": [0.1, 1.5]}, r"scheduler_config\.json has betas"),
}


@pytest.mark.parametrize(("part", "fields", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused(copied, part, fields, message):
    names = {"unet": "unet/config.json", "scheduler": "scheduler/scheduler_config.json"}
    edit(copied / names.get(part, "model_index.json"), **fields)
    with pytest.raises(CheckpointError, match=f"^path: .*{message}"):
        describe(path=str(copied))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), r"invert_sigmas True"),
        (diffusers.EulerDiscreteScheduler(timestep_type="continuous"), r"timestep_type 'continuous'"),
        (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), r"use_flow_sigmas True"),
        (diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"), r"'flow_prediction'"),
    ],
)
def test_other_times_and_outputs_are_refused(tmp_path, scheduler, message):
    with pytest.raises(CheckpointError, match=message):
        describe(path=str(save(tmp_path / "saved", scheduler)))


def truncate(unet):
    file = unet / f"{WEIGHTS}.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def drop_a_key(unet):
    file = unet / f"{WEIGHTS}.safetensors"
    state = load_file(file)
    del state["conv_in.bias"]
    save_file(state, file)


def poison(unet):
    class Malicious:
        def __reduce__(self):
            return (eval, ("1/0",))

    (unet / f"{WEIGHTS}.safetensors").unlink()
    torch.save({"conv_in.bias": Malicious()}, unet / f"{WEIGHTS}.bin")


def not_weights(unet):
    (unet / f"{WEIGHTS}.safetensors").unlink()
    torch.save({"step": 1}, unet / f"{WEIGHTS}.bin")


def lose_a_shard(unet):
    to_shards(unet)
    min(unet.glob("*.safetensors")).unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, r"no config\.json"),
        (lambda unet: shutil.rmtree(unet.parent / "scheduler"), r"no scheduler_config\.json"),
        (lambda unet: (unet / "config.json").write_text("{"), r"config\.json' is damaged"),
        (lambda unet: (unet / "config.json").write_text("[]"), r"config\.json' is damaged"),
        (lambda unet: (unet / f"{WEIGHTS}.safetensors").unlink(), rf"no {WEIGHTS}\.safetensors"),
        (truncate, rf"{WEIGHTS}\.safetensors' cannot be read"),
        (drop_a_key, r"no 'conv_in\.bias'"),
        (poison, rf"{WEIGHTS}\.bin'.*tensors"),
        (not_weights, rf"{WEIGHTS}\.bin' holds no plain state dict"),
        (lose_a_shard, r"no file"),
    ],
)
def test_damaged_files_are_refused(copied, change, message):
    change(copied / "unet")
    with pytest.raises(CheckpointError, match=f"^path: .*{message}"):
        describe(path=str(copied))


def test_variants_of_the_weights_are_read_and_said(copied):
    """The plain ones where there are such, otherwise the only variant, otherwise the one asked for."""
    unet = copied / "unet"
    plain = unet / f"{WEIGHTS}.safetensors"
    half = plain.with_name(f"{WEIGHTS}.fp16.safetensors")
    save_file({key: value.half() for key, value in load_file(plain).items()}, half)
    assert describe(path=str(copied)).weights == [plain]
    assert describe(path=str(copied), variant="fp16").weights == [half]
    plain.unlink()
    spec = {"name": "diffusers", "path": str(copied)}
    assert priors.examine(spec, (3, 32, 32)).title.endswith("parameters, weights of variant 'fp16'")
    assert {weight.dtype for weight in priors.load(spec).network.parameters()} == {torch.float32}
    with pytest.raises(CheckpointError, match=r"variant: .*no .*\.bf16\.safetensors"):
        describe(path=str(copied), variant="bf16")
    shutil.copy(half, plain.with_name(f"{WEIGHTS}.bf16.safetensors"))
    with pytest.raises(CheckpointError, match=r"variant: .*give bf16 or fp16"):
        describe(path=str(copied))


def test_a_variant_in_several_files_is_read(copied):
    unet = copied / "unet"
    to_shards(unet)
    for file in sorted(unet.glob(f"{WEIGHTS}-*.safetensors")):
        file.rename(unet / file.name.replace(WEIGHTS, f"{WEIGHTS}.fp16"))
    index = unet / f"{WEIGHTS}.safetensors.index.json"
    text = index.read_text().replace(WEIGHTS, f"{WEIGHTS}.fp16")
    index.unlink()
    (unet / f"{WEIGHTS}.safetensors.index.fp16.json").write_text(text)
    assert describe(path=str(copied)).said == "weights of variant 'fp16'"


def test_other_pipelines_and_files_are_called_what_they_are(copied, tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:d8\nsize 4\n"
    (copied / "unet" / f"{WEIGHTS}.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match="pointer of Git LFS"):
        describe(path=str(copied))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(CheckpointError, match="model_type 'vit'; a model of transformers"):
        describe(path=str(tmp_path))


def test_missing_folders_and_misplaced_revisions_are_refused(copied):
    for path in ("/no/such/folder", "nothing", "https://huggingface.co/google/ddpm-cat-256"):
        with pytest.raises(CheckpointError, match="path: no folder"):
            describe(path=path)
    with pytest.raises(CheckpointError, match="revision: "):
        describe(path=str(copied), revision="main")
