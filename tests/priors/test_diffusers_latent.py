"""Pipelines on latents against diffusers' own pipelines, on tiny networks with random weights."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
from kit.latents import (
    make_clip,
    make_dit,
    make_flux,
    make_kl,
    make_sd3,
    make_sdxl_unet,
    make_t5,
    make_text_unet,
    make_tiny,
    make_vq,
    save_latent,
)
from kit.pipelines import Hub, make_unet
from kit.shards import encode, picture, write_tar

import kintsugi
from kintsugi import priors
from kintsugi.checkpoint import CheckpointError
from kintsugi.errors import SpecError
from kintsugi.priors import speed
from kintsugi.priors.base import Latent, autoencoder_of, data_prediction, evaluations_of, prediction_of
from kintsugi.priors.formats.diffusers_model import describe, diffusers_model
from kintsugi.priors.paths import DDPM
from kintsugi.testing import check_prior

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROMPT = "a dog"


def make_ddim(**config):
    return diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **BETAS | config)


def make_euler():
    return diffusers.EulerDiscreteScheduler(timestep_spacing="trailing", **BETAS)


def make_flow(**config):
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **config)


def clips():
    return [make_clip(), make_clip(True)]


# fmt: off
SAVED = {
    "ldm": lambda f: save_latent(f, make_unet(sample_size=8), make_vq(), make_ddim()),
    "dit": lambda f: save_latent(f, make_dit(), make_kl(), make_ddim(beta_schedule="linear")),
    "sd": lambda f: save_latent(f, make_text_unet(), make_kl(), make_ddim(), [make_clip()]),
    "sd v": lambda f: save_latent(
        f, make_text_unet(), make_kl(), make_ddim(prediction_type="v_prediction"), [make_clip()]
    ),
    "lcm": lambda f: save_latent(
        f, make_text_unet(time_cond_proj_dim=9), make_kl(), diffusers.LCMScheduler(**BETAS), [make_clip()]
    ),
    "sdxl": lambda f: save_latent(f, make_sdxl_unet(), make_kl(), make_ddim(), clips()),
    "playground": lambda f: save_latent(
        f, make_sdxl_unet(), make_kl(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5]),
        diffusers.EDMEulerScheduler(), clips(),
    ),
    "turbo": lambda f: save_latent(f, make_sdxl_unet(), make_tiny(), make_euler(), clips()),
    "sd3": lambda f: save_latent(
        f, make_sd3(), make_kl(shift_factor=0.1), make_flow(), [make_clip(True), make_clip(True), make_t5(40)]
    ),
    "dev": lambda f: save_latent(
        f, make_flux(guidance_embeds=True), make_kl(shift_factor=0.1),
        make_flow(use_dynamic_shifting=True), [make_clip(), make_t5(24)],
    ),
    "schnell": lambda f: save_latent(
        f, make_flux(), make_kl(shift_factor=-0.1), make_flow(), [make_clip(), make_t5(24)]
    ),
}
# fmt: on


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("latent")
    return {name: make(root / name) for name, make in SAVED.items()}


@pytest.fixture
def copied(folders, tmp_path):
    """Makes a copy of a pipeline, to spoil."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def load(folder, **fields):
    return diffusers_model("cpu", path=str(folder), **fields)


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@torch.no_grad()
def endpoint(prior, x, t):
    """x̂₀ at x and native time t, by the formulas that every sampler uses."""
    p, q = data_prediction(prior.path, prior.parametrization, torch.tensor([t], dtype=torch.float64))
    return p.float() * x + q.float() * prior(x, torch.full((len(x),), t))


def follow(prior, x, times):
    """The probability flow by DDIM from the first time to the last, of which None is clean data."""
    for now, later in pairwise(times):
        clean = endpoint(prior, x, now)
        if later is None:
            return clean
        now, later = (torch.tensor(t, dtype=torch.float64) for t in (now, later))
        noise = (x - prior.path.a(now).float() * clean) / prior.path.s(now).float()
        x = prior.path.a(later).float() * clean + prior.path.s(later).float() * noise
    return x


def pipeline(kind, folder, **parts):
    """Diffusers' own pipeline of a folder."""
    made = getattr(diffusers, kind).from_pretrained(folder, **parts)
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def decoded(prior, z):
    return (prior.autoencoder.decode(z) / 2 + 0.5).clamp(0, 1)


# Whole trajectories, with prompts, guidance and decoders.


@pytest.mark.parametrize("name", ["sd", "sd v"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_stable_diffusion(folders, name, cfg):
    made = pipeline("StableDiffusionPipeline", folders[name], safety_checker=None, feature_extractor=None)
    x, fields = draw(2, 4, 8, 8), {"negative_prompt": "cat"} if cfg > 1 else {}
    expected = made(
        [PROMPT] * 2, negative_prompt=["cat"] * 2, latents=x, guidance_scale=cfg, num_inference_steps=5,
        output_type="pt",
    ).images  # fmt: skip
    prior = load(folders[name], prompt=PROMPT, cfg=cfg, **fields)
    close(decoded(prior, follow(prior, x, [*made.scheduler.timesteps.tolist(), 0.0])), expected)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("negative", [None, "", "cat"])
def test_sdxl(folders, negative, size):
    made = pipeline("StableDiffusionXLPipeline", folders["sdxl"])
    x = draw(1, 4, size[0] // 4, size[1] // 4)
    expected = made(
        PROMPT, negative_prompt=negative, latents=x, guidance_scale=3.0, num_inference_steps=4,
        height=size[0], width=size[1], output_type="latent",
    ).images  # fmt: skip
    prior = load(folders["sdxl"], prompt=PROMPT, negative_prompt=negative, cfg=3.0)
    close(follow(prior, x, [750.0, 500.0, 250.0, 0.0]), expected)


@pytest.mark.parametrize("steps", [1, 4])
def test_turbo_and_lightning(folders, steps):
    made = pipeline("StableDiffusionXLPipeline", folders["turbo"])
    x = draw(1, 4, 8, 8)
    expected = made(
        PROMPT, latents=x, guidance_scale=0.0, num_inference_steps=steps, output_type="pt"
    ).images  # fmt: skip
    prior = load(folders["turbo"], prompt=PROMPT)
    times = made.scheduler.timesteps.tolist()
    start = prior.path.s(torch.tensor(times[0], dtype=torch.float64)).float() * x
    close(decoded(prior, follow(prior, start, [*times, None])), expected)


def test_playground(folders):
    """SDXL on EDM's path, with a mean and a deviation of each channel of the latents."""
    made = pipeline("StableDiffusionXLPipeline", folders["playground"])
    x = draw(1, 4, 8, 8)
    expected = made(
        PROMPT, latents=x, guidance_scale=3.0, num_inference_steps=4, output_type="pt"
    ).images  # fmt: skip
    prior = load(folders["playground"], prompt=PROMPT, cfg=3.0)
    start = made.scheduler.init_noise_sigma * x
    close(decoded(prior, follow(prior, start, [*made.scheduler.sigmas.tolist()[:-1], None])), expected)


def test_latent_consistency_models(folders):
    """Two steps, with the pipeline's noise between, and of each its own guidance."""
    made = pipeline(
        "LatentConsistencyModelPipeline", folders["lcm"], safety_checker=None, feature_extractor=None
    )
    x = draw(1, 4, 8, 8)
    for guidance, fields in ((8.5, {}), (4.0, {"guidance": 4.0})):
        expected = made(
            PROMPT, latents=x, guidance_scale=guidance, num_inference_steps=2, output_type="latent",
            generator=torch.Generator().manual_seed(3),
        ).images  # fmt: skip
        prior = load(folders["lcm"], prompt=PROMPT, **fields)
        assert (prior.parametrization, prediction_of(prior)) == ("x0", "endpoint")
        first, second = (torch.tensor(t, dtype=torch.float64) for t in made.scheduler.timesteps.tolist())
        z = endpoint(prior, x, first.item())
        z = prior.path.a(second).float() * z + prior.path.s(second).float() * draw(1, 4, 8, 8, seed=3)
        close(endpoint(prior, z, second.item()), expected)


def test_a_latent_consistency_model_is_the_identity_at_0(folders):
    prior, x = load(folders["lcm"]), draw(1, 4, 8, 8)
    torch.testing.assert_close(endpoint(prior, x, 0.0), x)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_stable_diffusion_3(folders, cfg):
    made = pipeline("StableDiffusion3Pipeline", folders["sd3"])
    x = draw(1, 4, 8, 8)
    expected = made(
        PROMPT, latents=x, guidance_scale=cfg, num_inference_steps=4, height=32, width=32, output_type="pt"
    ).images
    prior = load(folders["sd3"], prompt=PROMPT, cfg=cfg)
    times = [1 - sigma for sigma in made.scheduler.sigmas.tolist()]
    close(decoded(prior, follow(prior, x, [*times[:-1], None])), expected)


@pytest.mark.parametrize(("name", "length"), [("dev", 512), ("schnell", 256)])
def test_flux(folders, name, length):
    made = pipeline("FluxPipeline", folders[name])
    x = draw(1, 4, 8, 12)
    packed = made._pack_latents(x, 1, 4, 8, 12)
    expected = made(
        PROMPT, latents=packed, guidance_scale=2.0, num_inference_steps=3, height=32, width=48,
        max_sequence_length=length, output_type="pt",
    ).images  # fmt: skip
    prior = load(folders[name], prompt=PROMPT, **({"guidance": 2.0} if name == "dev" else {}))
    times = [1 - sigma for sigma in made.scheduler.sigmas.tolist()]
    close(decoded(prior, follow(prior, x, [*times[:-1], None])), expected)


def test_dit(folders):
    made = pipeline("DiTPipeline", folders["dit"])
    expected = made(
        [3, 7], guidance_scale=4.0, num_inference_steps=4, generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images  # fmt: skip
    prior = load(folders["dit"], cfg=4.0)
    prior.labels = torch.tensor([3, 7])
    z = follow(prior, draw(2, 4, 8, 8, seed=5), [750.0, 500.0, 250.0, 0.0])
    close(decoded(prior, z), torch.from_numpy(expected).permute(0, 3, 1, 2))


def test_ldm(folders):
    made = pipeline("LDMPipeline", folders["ldm"])
    expected = made(
        batch_size=2, num_inference_steps=4, generator=torch.Generator().manual_seed(5), output_type="np"
    ).images
    prior = load(folders["ldm"])
    z = follow(prior, draw(2, 3, 8, 8, seed=5), [750.0, 500.0, 250.0, 0.0])
    close(decoded(prior, z), torch.from_numpy(expected).permute(0, 3, 1, 2))


def test_autoencoders_without_a_scale_have_that_of_their_time(copied):
    """In 2022 the scale of Stable Diffusion was in its pipeline, and LDM had none."""
    for name, part, scale in (("ldm", "vqvae", 1.0), ("sd", "vae", 0.18215)):
        file = copied(name) / part / "config.json"
        config = json.loads(file.read_text())
        del config["scaling_factor"]
        file.write_text(json.dumps(config))
        assert load(file.parents[1]).autoencoder.scale == [scale]


# What every one is.


@pytest.mark.parametrize("name", SAVED)
def test_it_has_the_properties_of_every_prior_and_is_what_describe_says(folders, name):
    fields = {"label": 3} if name == "dit" else {}
    spec = {"name": "diffusers", "path": str(folders[name]), **fields}
    check_prior(spec)
    found, prior = priors.describe(spec), priors.load(spec)
    assert isinstance(prior, Latent)
    assert prediction_of(found) == prediction_of(prior)
    here, there = autoencoder_of(found), autoencoder_of(prior)
    assert (here.factor, here.channels, here.enlarge) == (there.factor, there.channels, there.enlarge)
    assert (there.factor, there.channels) == (4, 3 if name == "ldm" else 4)
    assert found.parameters == sum(weight.numel() for weight in prior.network.parameters())
    assert all(not tensor.is_meta for tensor in prior.network.state_dict().values())
    assert found.image_channels == 3


@pytest.mark.parametrize("name", ["dit", "sd", "sdxl", "sd3", "dev"])
def test_guidance_is_two_evaluations_and_what_it_says(folders, name):
    label = {"label": 3} if name == "dit" else {}
    none = {"label": 1000} if name == "dit" else {}
    x, t = draw(2, 4, 8, 8), torch.tensor([0.3, 0.6])
    prior = load(
        folders[name], cfg=3.0, **label, **({} if label else {"prompt": PROMPT, "negative_prompt": ""})
    )
    calls = []
    prior.network.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        guided = prior(x, t)
        with_it = load(folders[name], **(label or {"prompt": PROMPT}))(x, t)
        without = load(folders[name], **none)(x, t)
    assert (len(calls), evaluations_of(prior)) == (2, 2)
    close(guided, without + 3 * (with_it - without))
    said = priors.examine(
        {"name": "diffusers", "path": str(folders[name]), "cfg": 3, **label}, (3, 32, 32)
    ).title
    assert "guidance 3, two evaluations for one" in said
    assert "latents of 4 channels, 1/4 of the sides" in said


def test_images_of_the_network_may_be_larger_than_those_of_the_job(folders):
    found = {enlarge: describe(path=str(folders["dev"]), enlarge=enlarge) for enlarge in (1, 2, 3)}
    assert [found[enlarge].multiple for enlarge in found] == [8, 4, 8]
    assert found[2].autoencoder.enlarge == load(folders["dev"], enlarge=2).autoencoder.enlarge == 2


@pytest.mark.parametrize("name", ["dit", "lcm", "sdxl", "dev"])
def test_a_compiled_network_is_given_whole_batches_of_all_that_it_is_told(folders, name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    label = {"label": 3} if name == "dit" else {}
    plain, prior = (load(folders[name], **label) for _ in range(2))
    prior.network = speed.Compiled(prior.network, "default", 3)
    lengths = set()
    prior.network.run.register_forward_pre_hook(
        lambda _, given: lengths.update(len(one) for one in given if one is not None)
    )
    x, t = draw(2, 4, 8, 8), torch.tensor([0.3, 0.6])
    with torch.no_grad():
        close(prior(x, t), plain(x, t))
    assert lengths == {3}


def test_half_precision_changes_only_digits(folders):
    for name in ("sdxl", "dev"):
        plain, prior = load(folders[name]), load(folders[name])
        speed.half_precision(prior, torch.bfloat16)
        x, t = draw(2, 4, 8, 8), torch.tensor([0.3, 0.6])
        with torch.no_grad():
            close(prior(x, t), plain(x, t), 0.06)


def test_a_learned_variance_is_left_out(folders):
    prior = load(folders["dit"], label=3)
    network = diffusers.DiTTransformer2DModel.from_pretrained(folders["dit"] / "transformer")
    x, t = draw(1, 4, 8, 8), torch.tensor([300.0])
    with torch.no_grad():
        close(prior(x, t), network(x, t, torch.tensor([3])).sample[:, :4])


def test_positions_of_a_dit_for_other_sizes_are_those_of_diffusers(folders):
    prior, another = load(folders["dit"], label=3), load(folders["sd3"])
    network = diffusers.DiTTransformer2DModel.from_pretrained(folders["dit"] / "transformer")
    x, t = draw(1, 4, 12, 12), torch.tensor([300.0])
    with torch.no_grad():
        close(prior(x, t), network(x, t, torch.tensor([3])).sample[:, :4])
        with pytest.raises(SpecError, match=r"^data\.size: a DiT's images are square"):
            prior(draw(1, 4, 8, 12), t)
        with pytest.raises(SpecError, match=r"^data\.size: .* up to 64 only"):
            another(draw(1, 4, 18, 8), t)


def test_weights_of_the_variant_are_taken_where_there_are_such(copied):
    folder = copied("ldm")
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(plain, plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    found = describe(path=str(folder), variant="fp16")
    assert [file.name for file in found.files[:2]] == [
        "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert found.said.endswith("weights of variant 'fp16'")


def test_the_checksum_covers_all_that_decides_the_output(copied):
    folder = copied("sdxl")
    before = set()
    for file in (
        None, "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "model_index.json",
        "text_encoder/config.json", "tokenizer_2/tokenizer_config.json",
    ):  # fmt: skip
        if file:
            edit(folder / file, note="changed")
        before.add(priors.examine({"name": "diffusers", "path": str(folder)}, (3, 32, 32)).sha256)
    assert len(before) == 7


def test_describing_a_hub_model_fetches_configurations_only(folders, tmp_path, monkeypatch):
    hub = Hub(folders["sd3"], tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert describe(path="someone/ddpm-tiny").multiple == 8
    assert {Path(name).suffix for name in hub.downloaded()} == {".json"}
    prior = diffusers_model("cpu", path="someone/ddpm-tiny", prompt=PROMPT)
    x, t = draw(1, 4, 8, 8), torch.tensor([0.4])
    close(prior(x, t), load(folders["sd3"], prompt=PROMPT)(x, t))


@pytest.fixture
def job(folders, tmp_path):
    write_tar(tmp_path / "in.tar", [(f"{i}.png", encode(picture(i, 32))) for i in range(3)])
    return {
        "data": {"shards": str(tmp_path / "in.tar"), "size": 32},
        "degradation": {"operator": {"name": "bicubic", "factor": 4}},
        "prior": {"name": "diffusers", "path": str(folders["sdxl"]), "prompt": PROMPT, "cfg": 2.0},
        "sampler": {"name": "latino", "steps": 2},
        "metrics": ["psnr"],
        "compute": {"batch_size": 2, "cpus_per_actor": 1},
        "output": str(tmp_path / "run"),
    }


def test_a_job_runs_resumes_and_does_not_depend_on_the_batch(job, tmp_path):
    rows = kintsugi.run(job).rows()
    assert rows.column("forwards").to_pylist() == [4] * 3
    assert kintsugi.run(job).rows().equals(rows)
    alone = {"compute": job["compute"] | {"batch_size": 1}, "output": str(tmp_path / "alone")}
    again = kintsugi.run(job | alone).rows()
    for one, other in zip(rows.sort_by("key").to_pylist(), again.sort_by("key").to_pylist(), strict=True):
        assert one["psnr"] == pytest.approx(other["psnr"], abs=1e-3)


# Refusals.


def edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


FIELDS = {
    "prompt": ("ldm", {"prompt": PROMPT}, r"^prompt: the network knows no prompts"),
    "negative": ("dit", {"negative_prompt": PROMPT}, r"^negative_prompt: the network knows no prompts"),
    "label": ("sd", {"label": 3}, r"^label: the network knows no classes"),
    "null": ("sd", {"cfg": 2.0, "null_label": 3}, r"^null_label: the network knows no classes"),
    "beyond": ("dit", {"label": 1001}, r"^label: must be from 0 to 1000"),
    "unguided": ("sd", {"negative_prompt": "cat"}, r"^negative_prompt: is for guidance; give cfg"),
    "told": ("schnell", {"guidance": 2.0}, r"^guidance: the network is told none"),
    "classless": ("ldm", {"cfg": 2.0}, r"^cfg: the network knows no classes"),
}


@pytest.mark.parametrize(("name", "fields", "message"), FIELDS.values(), ids=FIELDS.keys())
def test_fields_for_other_networks_are_refused(folders, name, fields, message):
    with pytest.raises(SpecError, match=message):
        describe(path=str(folders[name]), **fields)


@pytest.mark.parametrize("fields", [{"prompt": ""}, {"guidance": 1.0}, {"enlarge": 2}], ids=str)
def test_fields_of_latents_are_refused_on_pixels(tmp_path, fields):
    diffusers.DDPMPipeline(make_unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "saved")
    with pytest.raises(SpecError, match=f"^{next(iter(fields))}: is for pipelines on latents"):
        describe(path=str(tmp_path / "saved"), **fields)


INDEX = {
    "video": ("sd3", {"transformer": ["diffusers", "WanTransformer3DModel"]}, "it is for video.*SD3Trans"),
    "audio": ("sd3", {"transformer": ["diffusers", "StableAudioDiTModel"]}, "it is for audio"),
    "control": ("sd", {"controlnet": ["diffusers", "ControlNetModel"]}, "controlnet.*it is for control"),
    "other": ("sd3", {"transformer": ["diffusers", "PixArtTransformer2DModel"]}, "it is not understood"),
    "foreign": ("sd", {"unet": ["mine", "UNet2DConditionModel"]}, "unet .*mine"),
    "no autoencoder": ("sd", {"vae": [None, None]}, "vae None; a UNet2DConditionModel on pixels"),
    "autoencoder": ("sd", {"vae": ["diffusers", "AutoencoderDC"]}, "AutoencoderKL, VQModel"),
    "scheduler": ("sd", {"scheduler": ["diffusers", "TCDScheduler"]}, "scheduler .*LCMScheduler"),
    "no scheduler": ("sd", {"scheduler": [None, None]}, "scheduler None"),
    "no encoder": ("sd", {"text_encoder": [None, None]}, "text_encoder None; .*CLIPTextModel fits"),
    "encoder": ("sd", {"text_encoder": ["transformers", "BertModel"]}, "'BertModel'; .*CLIPTextModel fits"),
    "tokenizer": ("sd", {"tokenizer": ["transformers", "BertTokenizer"]}, "tokenizer 'BertTokenizer'"),
    "no class": ("sd", {"scheduler": []}, r"scheduler \[\]"),
    "refiner": ("sdxl", {"requires_aesthetics_score": True}, "SDXL's refiner"),
    "nothing": ("sd", {"unet": [None, None]}, "unet or transformer None"),
}


@pytest.mark.parametrize(("name", "fields", "message"), INDEX.values(), ids=INDEX.keys())
def test_other_pipelines_are_refused_by_what_they_are(copied, name, fields, message):
    folder = copied(name)
    edit(folder / "model_index.json", **fields)
    with pytest.raises(CheckpointError, match=rf"^path: model_index\.json has .*{message}"):
        describe(path=str(folder))


CONFIGS = {
    "inpainting": ("sd", "unet", {"in_channels": 9}, "in_channels 9; .*it is for inpainting"),
    "pictures": ("sd", "unet", {"in_channels": 8}, "in_channels 8; .*another image"),
    "depth": ("sd", "unet", {"in_channels": 5}, "in_channels 5; .*depth"),
    "enlarging": ("sd", "unet", {"in_channels": 7}, "in_channels 7; .*to enlarge it"),
    "outputs": ("sd", "unet", {"out_channels": 5}, "out_channels 5"),
    "fill": ("dev", "transformer", {"in_channels": 96, "out_channels": 16}, "in_channels 96"),
    "patches": ("dev", "transformer", {"patch_size": 2}, "patch_size 2"),
    "classes": ("sd", "unet", {"num_class_embeds": 4}, "num_class_embeds 4"),
    "images": ("sd", "unet", {"encoder_hid_dim": 8, "encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim"),
    "refiner": ("sdxl", "unet", {"projection_class_embeddings_input_dim": 40}, "six sizes"),
    "addition": ("sd", "unet", {"addition_embed_type": "text"}, "addition_embed_type 'text'"),
    "quantised": ("sd3", "transformer", {"quantization_config": {"bits": 4}}, "quantised weights"),
    "quantised text": ("sd3", "text_encoder_3", {"quantization_config": {}}, "quantised weights"),
    "layers": ("sd3", "transformer", {"num_layers": 10**9}, "num_layers 1000000000; at most 256"),
    "blocks": ("sd", "unet", {"layers_per_block": [1, 10**9]}, "layers_per_block 1000000000"),
    "nested": ("sd", "unet", {"transformer_layers_per_block": [[1], [10**9]]}, "at most 256"),
    "positions": ("sd3", "transformer", {"pos_embed_max_size": 10**9}, "pos_embed_max_size 1000000000"),
    "positions of a DiT": ("dit", "transformer", {"sample_size": 1024}, "sample_size 1024; .* 1 to 256"),
    "autoencoder layers": ("sd", "vae", {"layers_per_block": 10**9}, "layers_per_block 1000000000"),
    "widths": ("sd", "unet", {"cross_attention_dim": 24}, "widths 16; the network takes 24 for text"),
    "t5": ("dev", "text_encoder_2", {"d_model": 32}, "widths 32; the network takes 24 for text"),
    "no number": ("sdxl", "unet", {"addition_time_embed_dim": "x"}, "no pipeline's"),
    "no width": ("sd", "text_encoder", {"hidden_size": "x"}, "widths 0; the network takes 16"),
    "does not fit": ("sd", "unet", {"block_out_channels": [8, 32]}, "safetensors' does not fit"),
    "nonsense": ("sd", "unet", {"down_block_types": ["NoBlock"]}, "does not make a UNet2DConditionModel"),
    "vae does not fit": ("sd", "vae", {"block_out_channels": [8, 8, 16]}, "safetensors' does not fit"),
}


@pytest.mark.parametrize(("name", "part", "fields", "message"), CONFIGS.values(), ids=CONFIGS.keys())
def test_networks_that_are_given_more_or_do_not_fit_are_refused(copied, name, part, fields, message):
    folder = copied(name)
    edit(folder / part / "config.json", **fields)
    with pytest.raises(CheckpointError, match=f"^path: .*{message}"):
        describe(path=str(folder))


def test_a_part_of_a_pipeline_is_refused(folders, tmp_path):
    for part, kind in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        with pytest.raises(
            CheckpointError, match=f"'{kind}'; a part of a pipeline; give the folder of the whole"
        ):
            describe(path=str(folders["sd"] / part))


def test_score_networks_of_pixels_on_0_to_1_have_no_latents(copied):
    folder = copied("ldm")
    edit(folder / "model_index.json", scheduler=["diffusers", "ScoreSdeVeScheduler"])
    with pytest.raises(CheckpointError, match=r"scheduler .*ScoreSdeVeScheduler"):
        describe(path=str(folder))


def test_safety_checkers_are_not_opened(copied):
    folder = copied("sd")
    edit(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert isinstance(load(folder).path, DDPM)  # there is no such folder
