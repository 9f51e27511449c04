"""Pickles as EDM's release writes them, without its code: their layout, with weights drawn by their names."""

import contextlib
import json
import pickle
import sys
import types
import zlib
from pathlib import Path

import torch

from kintsugi.priors.formats import edm
from kintsugi.priors.formats.edm_convert import convert

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "edm.json").read_text())
"""Of networks of the release with the weights of `drawn`: arguments, σ, some numbers of D at `images`."""


def drawn(name, shape):
    """A weight that its name decides."""
    value = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) > 1:
        return value * value[0].numel() ** -0.5
    if name.endswith("bias"):
        return value * 0.3
    return 3 * value if name.endswith(("freqs", "phases")) else 1 + 0.3 * value


def weights(kind, settings):
    """All that the release's network has in its state dict, but for what follows from the arguments."""
    of_edm2 = kind == "Precond"
    *_, network = edm.made(settings, edm.FAMILIES[kind], Path())
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    if of_edm2:
        shapes |= {
            key.replace("emb_linear.weight", "emb_gain"): () for key in shapes if "emb_linear" in key
        } | {"out_gain": ()}
    prefix = "unet." if of_edm2 else "model."
    state = {prefix + key: drawn(prefix + key, shape) for key, shape in shapes.items()}
    if settings.get("augment_dim"):
        state["model.map_augment.weight"] = torch.ones(16, settings["augment_dim"])
    if of_edm2:
        state |= {"logvar_fourier.freqs": torch.ones(128), "logvar_linear.weight": torch.ones(1, 128)}
    return state


def images(channels, sigma):
    """(2, channels, 16, 16) of the variance that networks of EDM expect at σ."""
    x = torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(100))
    return x * (0.25 + sigma**2).sqrt().view(-1, 1, 1, 1)


def refuse(meta):
    raise AssertionError("something in the pickle was called")


class Persistent:
    """Pickled as an object of torch_utils.persistence, with source that would leave a trace."""

    def __init__(self, kind, state, source):
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": kind,
            "state": state,
        }

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,), None


def tree(state, source):
    """The attributes of a module with the given parameters, and modules within."""
    inner = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = value
    own = {key: torch.nn.Parameter(value, False) for key, value in state.items() if "." not in key}
    modules = {key: Persistent("Layer", tree(part, source), source) for key, part in inner.items()}
    return {"training": False, "_parameters": own, "_buffers": {}, "_modules": modules}


def save_pickle(path, kind, settings, source="", protocol=pickle.DEFAULT_PROTOCOL, **beside):
    """A network in a file of EDM's layout."""
    state = tree(weights(kind, settings), source)
    state |= {"_init_args": (), "_init_kwargs": dict(settings), "sigma_max": float("inf")}
    state["skip_scale"] = torch.tensor(0.5).double().sqrt().numpy()[()]  # a number of numpy
    write_pickle(path, {"ema": Persistent(kind, state, source), "loss_fn": None} | beside, protocol)
    return path


def write_pickle(path, content, protocol=pickle.DEFAULT_PROTOCOL):
    """With a module of that name, to which it refers, in place for so long."""
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = refuse
    refuse.__module__, refuse.__qualname__ = module.__name__, "_reconstruct_persistent_obj"
    with contextlib.ExitStack() as stack:
        for name in ("torch_utils", "torch_utils.persistence"):
            assert name not in sys.modules
            sys.modules[name] = module
            stack.callback(sys.modules.pop, name)
        path.write_bytes(pickle.dumps(content, protocol))


def make(folder, name, **changes):
    """A converted network of GOLDEN, as a spec."""
    golden = GOLDEN[name]
    source = save_pickle(folder / f"{name}.pkl", golden["class"], golden["settings"] | changes)
    convert(source, target := folder / f"{name}.safetensors")
    return {"name": "edm", "path": str(target)}
