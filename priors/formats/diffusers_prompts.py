"""What a network is told of a prompt: text encoders run once, and their outputs are kept.

Tokenizers and encoders are those of transformers, an optional package: pip install 'kintsugi[text]'. The
outputs are kept in the cache folder by the files and the prompt, so that other processes of the machine,
and later runs, need neither the encoders nor that package.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kintsugi.cache import cache_folder, checksum
from kintsugi.checkpoint import CheckpointError
from kintsugi.errors import SpecError
from kintsugi.priors.formats.diffusers_files import misfit, state

ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder with its tokenizer, in files.

    Attributes:
        encoder, tokenizer: classes of transformers, in ENCODERS and TOKENIZERS.
        config: of the encoder. weights: its files. folder: the tokenizer's.
    """

    encoder: str
    tokenizer: str
    config: Mapping[str, Any]
    weights: Sequence[Path]
    folder: Path

    @property
    def files(self) -> list[Path]:
        """All that decides what it makes of a prompt, but for its configuration."""
        return [*self.weights, *sorted(file for file in self.folder.iterdir() if file.is_file())]


class Read(NamedTuple):
    """What an encoder makes of a prompt, float32: (1, tokens, width) twice, and (1, width) where it has that.

    Attributes:
        last: its output. penultimate: what its last layer was given. pooled: of the prompt as a whole.
        cut: how much of the prompt it did not read, in words; nothing of one that it read whole.
    """

    last: Tensor
    penultimate: Tensor
    pooled: Tensor
    cut: str


Embedded = dict[str, Tensor]
"""What a network is told: `text` (1, tokens, width) and, where there is one, `pooled` (1, width)."""
Reads = Sequence[Read | None]
"""What each encoder makes of one prompt; None of one that the pipeline does without."""


def clip(reads: Reads, width: int) -> Embedded:
    """Stable Diffusion 1 and 2: the output of one CLIP."""
    return {"text": nth(reads, 0).last}


def clip_pair(reads: Reads, width: int) -> Embedded:
    """SDXL: two CLIPs without their last layers, side by side; the second gives the whole."""
    one, two = nth(reads, 0), nth(reads, 1)
    return {"text": torch.cat([one.penultimate, two.penultimate], -1), "pooled": two.pooled}


def clip_pair_t5(reads: Reads, width: int) -> Embedded:
    """Stable Diffusion 3: the two CLIPs, filled up to the width of T5, then T5's tokens, 0 without it."""
    one, two, t5 = nth(reads, 0), nth(reads, 1), reads[2]
    pair = torch.cat([one.penultimate, two.penultimate], -1)
    rest = t5.last if t5 else pair.new_zeros(1, TOKENS["clip_pair_t5"], width)
    pair = torch.nn.functional.pad(pair, (0, width - pair.shape[-1]))
    return {"text": torch.cat([pair, rest], 1), "pooled": torch.cat([one.pooled, two.pooled], -1)}


def clip_t5(reads: Reads, width: int) -> Embedded:
    """FLUX.1: T5's tokens, and CLIP's of the whole."""
    return {"text": nth(reads, 1).last, "pooled": nth(reads, 0).pooled}


def nth(reads: Reads, place: int) -> Read:
    """What one of them read."""
    found = reads[place]
    assert found is not None
    return found


READERS: Mapping[str, Callable[[Reads, int], Embedded]] = {
    "clip": clip,
    "clip_pair": clip_pair,
    "clip_pair_t5": clip_pair_t5,
    "clip_t5_256": clip_t5,
    "clip_t5_512": clip_t5,
}
"""How the pipelines of diffusers put together what their encoders make of a prompt."""
TOKENS = {"clip_pair_t5": 256, "clip_t5_256": 256, "clip_t5_512": 512}
"""How many of them T5 reads; CLIP reads as many as it can."""
PARTS = {
    "clip": ("CLIPTextModel",),
    "clip_pair": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "clip_pair_t5": ("CLIPTextModelWithProjection", "CLIPTextModelWithProjection", "T5EncoderModel"),
    "clip_t5_256": ("CLIPTextModel", "T5EncoderModel"),
    "clip_t5_512": ("CLIPTextModel", "T5EncoderModel"),
}
"""The encoders of each, in order: of text_encoder, text_encoder_2 and text_encoder_3."""


def check_widths(how: str, configs: Sequence[Mapping[str, Any] | None], needed: Mapping[str, int]) -> None:
    """Raise a CheckpointError for encoders whose outputs are not as wide as the network needs."""
    hidden = [width_of(config, "d_model", "hidden_size") for config in configs]
    projected = [width_of(config, "projection_dim") for config in configs]
    widths: Mapping[str, Sequence[int | None]] = {
        "clip": {"text": hidden[:1]},
        "clip_pair": {"text": hidden, "pooled": projected[1:]},
        "clip_pair_t5": {"text": hidden[2:], "pooled": projected[:2]},
    }.get(how, {"text": hidden[1:], "pooled": hidden[:1]})
    for name, parts in widths.items():
        found = sum(part for part in parts if part is not None)
        if None not in parts and found != needed[name]:
            reason = f"the network takes {needed[name]} for {name}: they do not belong together"
            raise misfit("config.json of the text encoders", "widths", found, reason)


def width_of(config: Mapping[str, Any] | None, *fields: str) -> int | None:
    """The first of these fields that an encoder has, None without one; 0 for what is no width."""
    if config is None:
        return None
    value = next((config[field] for field in fields if field in config), 512)  # transformers' default of each
    return value if isinstance(value, int) else 0


def embed(
    how: str,
    encoders: Sequence[TextEncoder | None],
    prompts: Sequence[str],
    width: int,
    device: str | torch.device,
    keeps: bool = True,
) -> list[Embedded]:
    """What encoders make of prompts, each by itself, on the CPU; from the cache where it is there.

    Args:
        how: one of READERS. encoders: in the order of PARTS; SD3's T5 may be None.
        width: of a token for the network. keeps: in the cache, what is not there.

    Raises:
        SpecError: transformers is missing, or a prompt is longer than any encoder reads.
        CheckpointError: the files make no encoder.
    """
    of = [e and (e.encoder, e.tokenizer, dict(e.config), checksum(e.files)) for e in encoders]
    keys = {
        prompt: hashlib.sha256(json.dumps([how, of, prompt, width], sort_keys=True).encode()).hexdigest()
        for prompt in prompts
    }
    found = {prompt: kept for prompt, key in keys.items() if (kept := cached(key)) is not None}
    if missing := [prompt for prompt in keys if prompt not in found]:
        for prompt, embedded in zip(missing, read_all(how, encoders, missing, width, device), strict=True):
            found[prompt] = embedded
            if keeps:
                keep(keys[prompt], embedded)
    return [found[prompt] for prompt in prompts]


@torch.no_grad()
def read_all(
    how: str,
    encoders: Sequence[TextEncoder | None],
    prompts: Sequence[str],
    width: int,
    device: str | torch.device,
) -> list[Embedded]:
    """What encoders, one after the other in memory, make of prompts; as `embed`."""
    of_each = [read(e, prompts, device, TOKENS.get(how)) if e else [None] * len(prompts) for e in encoders]
    found = []
    for reads in zip(*of_each, strict=True):
        cuts = [of_one.cut for of_one in reads if of_one]
        if all(cuts):
            raise SpecError(f"prompt: too long: it has {', '.join(cuts)}")
        embedded = {name: tensor.contiguous() for name, tensor in READERS[how](reads, width).items()}
        if not all(tensor.isfinite().all() for tensor in embedded.values()):
            raise CheckpointError("path: the text encoders make NaN or infinity of the prompt")
        found.append(embedded)
    return found


def cached(key: str) -> Embedded | None:
    """What was kept, None where nothing was, or nothing that can be read."""
    from safetensors.torch import load_file

    try:
        found: Embedded = load_file(place(key))
    except Exception:  # none, or what a full disk left of it: it is made anew
        return None
    return found


def keep(key: str, embedded: Embedded) -> None:
    """For other processes and later runs; where the folder cannot be written, for none."""
    from safetensors.torch import save_file

    with suppress(OSError):
        file = place(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(f".{os.getpid()}")
        save_file(embedded, written)
        written.replace(file)


def place(key: str) -> Path:
    """Where it is kept; raises an OSError without a cache folder."""
    return cache_folder() / "prompts" / f"{key}.safetensors"


def read(
    of: TextEncoder, prompts: Sequence[str], device: str | torch.device, of_t5: int | None
) -> list[Read | None]:
    """What one encoder, loaded for it and freed after, makes of prompts that are filled up.

    It computes in the type of its files, of float16 in float32, since T5 overflows in that.

    Args:
        of_t5: to how many tokens, if it is T5.

    Raises:
        SpecError, CheckpointError: as for `embed`.
    """
    model, tokenizer = loaded(of)
    model.to(device).eval()
    most = getattr(model.config, "max_position_embeddings", 1 << 10)
    tokens = min(tokenizer.model_max_length, most)
    if of.encoder == "T5EncoderModel" and of_t5:
        tokens = of_t5
    masked = getattr(model.config, "use_attention_mask", False)

    def one(prompt: str) -> Read:
        filled = tokenizer(
            prompt, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt"
        )
        whole = len(tokenizer(prompt).input_ids)
        output = model(
            filled.input_ids.to(device),
            attention_mask=filled.attention_mask.to(device) if masked else None,
            output_hidden_states=True,
        )
        last = output.last_hidden_state
        pooled = output.text_embeds if "text_embeds" in output else output.get("pooler_output", last[:, 0])
        last, penultimate, pooled = (
            tensor.float().cpu() for tensor in (last, output.hidden_states[-2], pooled)
        )
        cut = f"{whole} tokens, of which {of.encoder} reads {tokens}" if whole > tokens else ""
        return Read(last, penultimate, pooled, cut)

    return [one(prompt) for prompt in prompts]


def library() -> Any:
    """The package transformers; raises a SpecError without."""
    try:
        import transformers
    except ImportError as error:
        raise SpecError(
            "prompt: the text encoders of this pipeline need transformers: pip install 'kintsugi[text]'"
        ) from error
    return transformers


def loaded(of: TextEncoder) -> tuple[Any, Any]:
    """The encoder, on the CPU, and the tokenizer; raises a SpecError without transformers, or as `read`."""
    transformers = library()
    weights = state(of.weights)
    types = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    kind = getattr(transformers, of.encoder)
    transformers.logging.disable_progress_bar()
    try:
        model, found = kind.from_pretrained(
            None,
            config=kind.config_class.from_dict(dict(of.config)),
            state_dict=weights,
            dtype=torch.bfloat16 if types == {torch.bfloat16} else torch.float32,
            output_loading_info=True,
        )
        tokenizer = getattr(transformers, of.tokenizer).from_pretrained(str(of.folder), local_files_only=True)
    except Exception as error:  # whatever transformers makes of files that do not go together
        raise CheckpointError(
            f"path: {str(of.folder)!r} or its text encoder does not load ({error})"
        ) from error
    if wrong := sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]])):
        raise CheckpointError(f"path: {str(of.weights[0])!r} does not fit its config.json: {wrong[0]}")
    return model, tokenizer
