"""Prompts: what they become, once, and what is said where they cannot."""

import json
import shutil
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from kit.latents import make_clip, make_kl, make_sd3, make_t5, make_text_unet, save_latent
from kit.shards import encode, picture, write_tar
from safetensors.torch import load_file, save_file

import kintsugi
from kintsugi.checkpoint import CheckpointError
from kintsugi.errors import JobError, SpecError
from kintsugi.priors.formats import diffusers_prompts
from kintsugi.priors.formats.diffusers_latent import OfSample
from kintsugi.priors.formats.diffusers_model import diffusers_model
from kintsugi.priors.tiled import Tiled

PROMPT = "a dog"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "sd"
    return save_latent(folder, make_text_unet(), make_kl(), diffusers.DDIMScheduler(), [make_clip()])


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "sd"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KINTSUGI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prompts"


@pytest.fixture
def reads(monkeypatch):
    """The prompts that an encoder was loaded for."""
    found, read = [], diffusers_prompts.read

    def recorded(of, prompts, *args):
        found.extend(prompts)
        return read(of, prompts, *args)

    monkeypatch.setattr(diffusers_prompts, "read", recorded)
    return found


def load(folder, **fields):
    return diffusers_model("cpu", path=str(folder), **fields)


def text(prior):
    return prior.told[0]


def test_a_prompt_is_read_once_and_the_encoders_are_gone(folder, reads, cache, monkeypatch):
    prior = load(folder, prompt=PROMPT, cfg=2.0)
    assert reads == [PROMPT, ""]
    assert not any("CLIP" in type(module).__name__ for module in prior.network.modules())
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setitem(sys.modules, "transformers", None)  # as where it is not installed
    again = load(folder, prompt=PROMPT, cfg=2.0)
    assert reads == [PROMPT, ""]
    assert torch.equal(text(again), text(prior))
    assert torch.equal(again.null[0], prior.null[0])


def test_a_cache_that_was_cut_or_cannot_be_written_is_no_cache(folder, reads, cache, monkeypatch):
    prior = load(folder, prompt=PROMPT)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(text(load(folder, prompt=PROMPT)), text(prior))
    monkeypatch.setenv("KINTSUGI_CACHE", "/proc/nothing")
    assert torch.equal(text(load(folder, prompt=PROMPT)), text(prior))
    assert reads == [PROMPT] * 3


def test_other_files_are_another_prompt(folder, reads):
    before = text(load(folder, prompt=PROMPT))
    file = folder / "text_encoder" / "model.safetensors"
    save_file({key: 2 * value for key, value in load_file(file).items()}, file)
    assert not torch.equal(text(load(folder, prompt=PROMPT)), before)
    tokenizer = folder / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"note": "changed"}))
    load(folder, prompt=PROMPT)
    assert reads == [PROMPT] * 3


def test_without_transformers_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SpecError, match=r"^prompt: .* pip install 'kintsugi\[text\]'"):
        load(folder, prompt=PROMPT)


def test_a_prompt_that_no_encoder_reads_whole_is_refused(folder):
    load(folder, prompt="a" * 14)
    with pytest.raises(
        SpecError, match=r"^prompt: too long: it has 17 tokens, of which CLIPTextModel reads 16"
    ):
        load(folder, prompt="a" * 15)


def test_of_several_encoders_one_that_reads_it_whole_will_do(tmp_path):
    encoders = [make_clip(True), make_clip(True), make_t5(40)]
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    folder = save_latent(tmp_path / "sd3", make_sd3(), make_kl(), flow, encoders)
    prior = load(folder, prompt="a" * 40)
    assert text(prior).shape == (1, 16 + 256, 40)
    index = folder / "model_index.json"
    without = json.loads(index.read_text()) | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    index.write_text(json.dumps(without))
    assert torch.equal(text(load(folder, prompt=PROMPT))[:, 16:], torch.zeros(1, 256, 40))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_encoders_in_half_precision_are_read(folder, dtype):
    expected = text(load(folder, prompt=PROMPT))
    file = folder / "text_encoder" / "model.safetensors"
    half = file.with_name("model.fp16.safetensors")
    save_file({key: value.to(dtype) for key, value in load_file(file).items()}, half)
    file.unlink()
    found = text(load(folder, prompt=PROMPT))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def lose_a_key(folder):
    file = folder / "text_encoder" / "model.safetensors"
    state = load_file(file)
    del state[next(key for key in state if "layer_norm1.bias" in key)]
    save_file(state, file)


def poison(folder):
    class Malicious:
        def __reduce__(self):
            return (eval, ("1/0",))

    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save({"weight": Malicious()}, folder / "text_encoder" / "model.bin")


def make_infinite(folder):
    file = folder / "text_encoder" / "model.safetensors"
    save_file({key: value * torch.inf for key, value in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose_a_key, r"model\.safetensors' does not fit its config\.json: .*layer_norm1\.bias"),
        (poison, "only tensors are read"),
        (make_infinite, "NaN or infinity"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text("{"), "does not load"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "no tokenizer"),
        (lambda folder: (folder / "text_encoder" / "model.safetensors").unlink(), r"no model\.safetensors"),
    ],
)
def test_damaged_encoders_are_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(CheckpointError, match=f"^path: .*{message}"):
        load(folder, prompt=PROMPT)


# A prompt of each sample's own.


def test_each_latent_is_told_its_own_prompt_whatever_its_batch(folder, reads, cache):
    prior = load(folder, prompt=OfSample(member="txt"), cfg=2.0)
    x, t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.5, 0.7])
    with pytest.raises(SpecError, match=r"^prompt: each image"):
        prior(x, t)
    prior.set_prompts([PROMPT, "cat", PROMPT])
    prior.labels = torch.tensor([0, 1, 2])
    assert reads == ["", PROMPT, "cat"]
    assert len(list(cache.iterdir())) == 1  # that of all samples
    with torch.no_grad():
        found = prior(x, t)
        for i, prompt in enumerate([PROMPT, "cat", PROMPT]):
            alone = load(folder, prompt=prompt, cfg=2.0)(x[i : i + 1], t[i : i + 1])
            torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
def test_what_reads_the_prompts_of_samples_is_there_before_the_first(folder, monkeypatch, before):
    if before:  # the prompt of none is in the cache
        load(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SpecError, match=r"^prompt: .* pip install 'kintsugi\[text\]'"):
        load(folder, prompt=OfSample(member="txt"))


def test_damaged_encoders_are_refused_before_the_prompts_of_samples(folder):
    lose_a_key(folder)
    with pytest.raises(CheckpointError, match="does not fit its config"):
        load(folder, prompt=OfSample(member="txt"))


@pytest.fixture
def job(folder, tmp_path):
    files = [(f"{i}.png", encode(picture(i, 32))) for i in range(4)]
    files += [("0.txt", b"a dog\n"), ("1.txt", b"cat"), ("2.txt", b"\xff\xfe")]
    write_tar(tmp_path / "in.tar", sorted(files))
    return {
        "data": {"shards": str(tmp_path / "in.tar"), "size": 32},
        "degradation": {"operator": {"name": "bicubic", "factor": 4}},
        "prior": {"name": "diffusers", "path": str(folder), "prompt": {"member": "txt"}},
        "sampler": {"name": "latino", "steps": 2},
        "metrics": ["psnr"],
        "compute": {"batch_size": 4, "cpus_per_actor": 1},
        "output": str(tmp_path / "run"),
    }


def test_a_job_reads_the_prompt_beside_each_sample(job, tmp_path):
    rows = {row["key"]: row for row in kintsugi.run(job).rows().to_pylist()}
    assert [rows[key]["status"] for key in "0123"] == ["ok", "ok", "failed", "failed"]
    assert "prior.prompt: 2.txt is no text" in rows["2"]["error"]
    assert "3.txt is not next to it" in rows["3"]["error"]
    for key, prompt in (("0", PROMPT), ("1", "cat")):
        one = job | {"prior": job["prior"] | {"prompt": prompt}, "output": str(tmp_path / prompt)}
        again = {row["key"]: row for row in kintsugi.run(one).rows().to_pylist()}
        assert again[key]["psnr"] == pytest.approx(rows[key]["psnr"], abs=1e-4)


def test_tiles_of_an_image_are_told_its_prompt(folder):
    prior = load(folder, prompt=OfSample(member="txt"))
    tiled = Tiled(prior, 8, 4, 2, 3)
    x, t = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.5])
    prior.set_prompts([PROMPT, "cat"])
    tiled.labels = torch.arange(2)
    with torch.no_grad():
        together = tiled(x, t)
        for i, prompt in enumerate([PROMPT, "cat"]):
            alone = Tiled(load(folder, prompt=prompt), 8, 4, 2, 3)(x[i : i + 1], t[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("member", ["png", "", "../txt", 3])
def test_a_prompt_is_in_a_file_of_text(job, member):
    with pytest.raises(JobError, match=r"prior\.prompt"):
        kintsugi.run(job | {"prior": job["prior"] | {"prompt": {"member": member}}})
