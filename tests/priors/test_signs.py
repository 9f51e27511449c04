"""A file of one format that is given as another is called by its name, with what to do."""

import pytest
import torch
from kit.edm import GOLDEN, save_pickle
from kit.networks import draw, make_adm, make_lucidrains, make_ncsnpp
from safetensors.torch import save_file

from kintsugi import priors
from kintsugi.errors import SpecError
from kintsugi.priors.formats.signs import recognised

STATES = {
    "Stable Diffusion": ({"model.diffusion_model.input_blocks.0.0.weight": 4}, "Stable Diffusion or LDM"),
    "SD 3": ({"joint_blocks.0.x_block.attn.qkv.weight": 2}, "an SD 3 transformer"),
    "FLUX": ({"double_blocks.0.img_attn.qkv.weight": 2}, "a FLUX transformer"),
    "DiT": ({"blocks.0.adaLN_modulation.1.weight": 2}, "DiT or SiT"),
    "k-diffusion": ({"inner_model.u_net.d_blocks.0.0.main.0.weight": 2}, "k-diffusion, which is not read"),
    "HDiT": ({"time_in_proj.weight": 2}, "k-diffusion, which is not read"),
    "weights of diffusers": ({"down_blocks.0.resnets.0.norm1.weight": 1}, "give the folder"),
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("given", ["adm", "score_sde", "lucidrains", "edm"])
def test_files_that_no_format_reads_are_called_by_their_names(name, given, tmp_path):
    shapes, says = STATES[name]
    save_file({key: torch.zeros([2] * count) for key, count in shapes.items()}, tmp_path / "x.safetensors")
    with pytest.raises(SpecError, match=rf"prior\.path: .*; it is .*{says}"):
        priors.describe({"name": given, "path": str(tmp_path / "x.safetensors")})


def test_files_of_another_format_are_called_by_its_name(tmp_path):
    flow = make_ncsnpp(tmp_path, "narrow")[0]
    adm = make_adm(tmp_path, "plain")[0]
    x, t = draw(2, 3, 16, 16), torch.tensor([1.0, 2.0])
    luc = make_lucidrains(tmp_path, "model", "pred_v", torch.full((10,), 0.1).double(), x, t)[0]
    for path, name in ((flow, "score_sde or rectified_flow"), (adm, "adm"), (luc, "lucidrains")):
        for given in ("adm", "rectified_flow", "lucidrains", "edm"):
            if given not in name:
                with pytest.raises(SpecError, match=rf"; it is .*name: {name}$"):
                    priors.describe({"name": given, "path": str(path)})
    with pytest.raises(SpecError) as error:
        priors.describe({"name": "adm", "path": str(adm), "weights": "ema"})
    assert "it is" not in str(error.value)


def test_nothing_is_said_of_what_is_not_known_or_no_file(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    pickle = save_pickle(tmp_path / "x.pkl", "EDMPrecond", GOLDEN["ddpmpp"]["settings"])
    for path in (tmp_path / "x.pt", tmp_path / "none.pt", tmp_path, pickle, None, 3, "\0", "~nobody/x"):
        assert recognised(path) is None
