"""Networks of published formats as plain functions of a state dict, which draw the weights that are missing.

One run makes the file in the original format, and its expected output.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Weights(dict):
    """A state dict that draws what is asked for and missing, in the order of asking."""

    def __init__(self, seed=0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, key, *shape, scale=None):
        if key not in self:
            value = torch.randn(*shape, generator=self.generator)
            fan_in = math.prod(shape[1:])
            self[key] = value * (scale or fan_in**-0.5) if len(shape) > 1 or scale else 1 + 0.3 * value
        return self[key]

    def bias(self, key, size):
        return self(key, size, scale=0.3)

    def convolution(self, name, x, outputs, kernel=3):
        weight = self(f"{name}.weight", outputs, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.bias(f"{name}.bias", outputs), padding=kernel // 2)

    def linear(self, name, x, outputs):
        return F.linear(x, self(f"{name}.weight", outputs, x.shape[1]), self.bias(f"{name}.bias", outputs))

    def norm(self, name, x, groups, eps):
        weight, bias = self(f"{name}.weight", x.shape[1]), self.bias(f"{name}.bias", x.shape[1])
        return F.group_norm(x, groups, weight, bias, eps)


def attend(q, k, v):
    """q, k, v (…, channels, positions)."""
    return v @ torch.softmax(q.mT @ k / q.shape[-2] ** 0.5, -1).mT


def adm_reference(
    w,
    x,
    t,
    channels,
    multipliers,
    blocks,
    attention,
    head_channels,
    classes,
    outputs,
    labels,
    *,
    convolved=False,
    modulated=True,
    heads=None,
    thirds=False,
):
    norm = partial(w.norm, groups=32, eps=1e-5)
    widths = [int(channels * m) for m in multipliers]
    angles = t[:, None] * 10_000.0 ** (-torch.arange(channels // 2) / (channels // 2))
    embedding = torch.cat([angles.cos(), angles.sin()], 1)
    embedding = w.linear("time_embed.0", embedding, 4 * channels)
    embedding = w.linear("time_embed.2", F.silu(embedding), 4 * channels)
    if classes is not None:
        embedding = embedding + w("label_emb.weight", classes, 4 * channels, scale=1)[labels]

    def residual(name, x, width, resample=lambda x: x):
        h = w.convolution(f"{name}.in_layers.2", resample(F.silu(norm(f"{name}.in_layers.0", x))), width)
        told = F.silu(embedding)
        told = w.linear(f"{name}.emb_layers.1", told, (1 + modulated) * width)[..., None, None]
        scale, shift = told.chunk(2, 1) if modulated else (0, 0)
        h = norm(f"{name}.out_layers.0", h if modulated else h + told) * (1 + scale) + shift
        h = w.convolution(f"{name}.out_layers.3", F.silu(h), width)
        x = resample(x)
        return h + (x if x.shape[1] == width else w.convolution(f"{name}.skip_connection", x, width, 1))

    def attend_in(name, x):
        width, positions = x.shape[1], x[0, 0].numel()
        h = norm(f"{name}.norm", x).flatten(2)
        qkv = w(f"{name}.qkv.weight", 3 * width, width, 1)[..., 0] @ h
        qkv = qkv + w.bias(f"{name}.qkv.bias", 3 * width)[:, None]
        count = heads or width // head_channels
        shape = (3, count, width // count) if thirds else (count, 3, width // count)
        of_heads = qkv.view(len(x), *shape, positions)
        h = attend(*of_heads.unbind(1 if thirds else 2)).reshape(len(x), width, positions)
        h = w(f"{name}.proj_out.weight", width, width, 1)[..., 0] @ h
        return x + (h + w.bias(f"{name}.proj_out.bias", width)[:, None]).view_as(x)

    h = w.convolution("input_blocks.0.0", x, widths[0])
    skips, row = [h], 0
    for level, width in enumerate(widths):
        for _ in range(blocks):
            row += 1
            h = residual(f"input_blocks.{row}.0", h, width)
            if level in attention:
                h = attend_in(f"input_blocks.{row}.1", h)
            skips.append(h)
        if level < len(widths) - 1:
            row += 1
            if convolved:
                weight = w(f"input_blocks.{row}.0.op.weight", width, width, 3, 3)
                h = F.conv2d(h, weight, w.bias(f"input_blocks.{row}.0.op.bias", width), stride=2, padding=1)
            else:
                h = residual(f"input_blocks.{row}.0", h, width, partial(F.avg_pool2d, kernel_size=2))
            skips.append(h)
    h = residual("middle_block.0", h, width)
    h = residual("middle_block.2", attend_in("middle_block.1", h), width)
    row = -1
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            row += 1
            h = residual(f"output_blocks.{row}.0", torch.cat([h, skips.pop()], 1), width)
            if level in attention:
                h = attend_in(f"output_blocks.{row}.1", h)
        if level:
            name = f"output_blocks.{row}.{1 + (level in attention)}"
            larger = partial(F.interpolate, scale_factor=2)
            h = (
                w.convolution(f"{name}.conv", larger(h), width)
                if convolved
                else residual(name, h, width, larger)
            )
    return w.convolution("out.2", F.silu(norm("out.0", h)), outputs)


ADM = {
    "plain": (32, (1, 2), 1, {1}, 32, None, 3),
    "ffhq-like": (32, (1, 2, 2), 1, {2}, 64, None, 6),
    "imagenet-like": (32, (1, 1, 2), 2, {1, 2}, 16, None, 6),
    "conditional": (64, (0.5, 1, 1), 2, {0, 2}, 8, 10, 6),
}


def make_adm(folder, name):
    """A file, and x (2, 3, 16, 16), t (2,), labels and ε of the reference. One label is fractional."""
    *_, head_channels, classes, _ = ADM[name]
    w, x, t, labels = Weights(), draw(2, 3, 16, 16), torch.tensor([17.0, 523.25]), torch.tensor([7, 2])
    epsilon = adm_reference(w, x, t, *ADM[name], labels)[:, :3]
    torch.save(dict(w), folder / f"{name}.pt")
    return folder / f"{name}.pt", head_channels, x, t, labels if classes else None, epsilon


FIR = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


def fir(function, x, gain):
    kernel = gain * FIR.expand(x.shape[1], 1, 4, 4)
    return function(x, kernel, stride=2, padding=1, groups=x.shape[1])


def ncsnpp_reference(
    w, x, t, widths, blocks, attention, *, fourier=True, down="skip", up="skip", base=None, scaled=True
):
    """t: the times that the network sees. scaled: it divides by them."""
    count = iter(range(1000))
    smaller, larger = partial(fir, F.conv2d, gain=1), partial(fir, F.conv_transpose2d, gain=4)
    if down is None:
        smaller, larger = partial(F.avg_pool2d, kernel_size=2), partial(F.interpolate, scale_factor=2)
    base = base or widths[0]

    def module():
        return f"all_modules.{next(count)}"

    def norm(name, x):
        return w.norm(name, x, min(x.shape[1] // 4, 32), 1e-6)

    def residual(x, width, resample=None):
        name = module()
        h = F.silu(norm(f"{name}.GroupNorm_0", x))
        h = w.convolution(f"{name}.Conv_0", resample(h) if resample else h, width)
        h = h + w.linear(f"{name}.Dense_0", F.silu(embedding), width)[..., None, None]
        h = w.convolution(f"{name}.Conv_1", F.silu(norm(f"{name}.GroupNorm_1", h)), width)
        x = resample(x) if resample else x
        if resample or x.shape[1] != width:
            x = w.convolution(f"{name}.Conv_2", x, width, 1)
        return (x + h) / 2**0.5

    def attend_in(x):
        name, width = module(), x.shape[1]

        def within(i, h):
            weight = w(f"{name}.NIN_{i}.W", width, width)
            return weight.T @ h + w.bias(f"{name}.NIN_{i}.b", width)[:, None]

        h = norm(f"{name}.GroupNorm_0", x).flatten(2)
        h = within(3, attend(within(0, h), within(1, h), within(2, h)))
        return (x + h.view_as(x)) / 2**0.5

    if fourier:
        angles = t.log()[:, None] * w(f"{module()}.W", base, scale=16) * 2 * math.pi
    else:
        angles = t[:, None] * 10_000.0 ** (-torch.arange(base // 2) / (base // 2 - 1))
    embedding = torch.cat([angles.sin(), angles.cos()], 1)
    embedding = w.linear(module(), embedding, 4 * base)
    embedding = w.linear(module(), F.silu(embedding), 4 * base)

    pyramid = x
    h = w.convolution(module(), x, base)
    skips = [h]
    for level, width in enumerate(widths):
        for _ in range(blocks):
            h = residual(h, width)
            h = attend_in(h) if level in attention else h
            skips.append(h)
        if level < len(widths) - 1:
            h = residual(h, width, smaller)
            if down == "skip":
                pyramid = smaller(pyramid)
                h = h + w.convolution(f"{module()}.Conv_0", pyramid, width, 1)
            elif down == "residual":
                name = f"{module()}.Conv2d_0"
                seen = pyramid.shape[1]
                filtered = F.conv2d(F.pad(pyramid, [2] * 4), FIR.expand(seen, 1, 4, 4), groups=seen)
                weight = w(f"{name}.weight", width, seen, 3, 3)
                halved = F.conv2d(filtered, weight, w.bias(f"{name}.bias", width), stride=2)
                pyramid = h = (h + halved) / 2**0.5
            skips.append(h)
    h = residual(h, width)
    h = residual(attend_in(h), width)
    pyramid = 0
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            h = residual(torch.cat([h, skips.pop()], 1), width)
        h = attend_in(h) if level in attention else h
        if up == "skip" or not level:
            pyramid = larger(pyramid) if up == "skip" and level < len(widths) - 1 else 0
            normalised = F.silu(norm(module(), h))
            pyramid = pyramid + w.convolution(module(), normalised, 3)
        if level:
            h = residual(h, width, larger)
    return pyramid / t[:, None, None, None] if scaled else pyramid


NCSNPP = {
    "narrow": ((16, 16, 32), 1, {1}),
    "wide": ((32, 96), 2, {0, 1}),
    "no attention": ((8, 16), 2, set()),
}


def make_ncsnpp(folder, name, levels=(1.0,) * 20):
    """A file whose trained weights differ from their average, and x, t in [0, 1] and the velocity."""
    average, x, t = Weights(), draw(2, 3, 16, 16), torch.tensor([0.3, 0.9])
    velocity = ncsnpp_reference(average, x, 999 * t, *NCSNPP[name])
    fixed = "all_modules.0.W"
    model = {
        f"module.{key}": value if key == fixed else draw(*value.shape, seed=1)
        for key, value in average.items()
    }
    content = {
        "optimizer": {"state": {}, "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999)}]},
        "model": {"module.sigmas": torch.tensor(levels, dtype=torch.float64), **model},
        "ema": {
            "decay": 0.999,
            "num_updates": 10,
            "shadow_params": [value for key, value in average.items() if key != fixed],
        },
        "step": 10,
    }
    torch.save(content, folder / f"{name}.pth")
    return folder / f"{name}.pth", x, t, velocity


def lucidrains_reference(w, x, t, widths, heads, full, *, groups=0, twice=False):
    """denoising-diffusion-pytorch's Unet; widths: of the first convolution, and after each level.

    heads: number of heads of attention, of 8 channels each. full: whether it is full, by level.
    """
    dim = widths[0]

    def scaled(name, x):
        return (
            x / x.norm(dim=1, keepdim=True) * w(f"{name}.g", 1, x.shape[1], 1, 1, scale=1) * x.shape[1] ** 0.5
        )

    def residual(name, x, width):
        modulation = w.linear(f"{name}.mlp.1", F.silu(embedding), 2 * width)[..., None, None]
        h = x
        for part in ("block1", "block2"):
            h = w.convolution(f"{name}.{part}.proj", h, width)
            norm = f"{name}.{part}.norm"
            h = w.norm(norm, h, groups, 1e-5) if groups else scaled(norm, h)
            if part == "block1":
                h = h * (1 + modulation[:, :width]) + modulation[:, width:]
            h = F.silu(h)
        return h + (x if x.shape[1] == width else w.convolution(f"{name}.res_conv", x, width, 1))

    def attention(name, x, is_full):
        width, positions = x.shape[1], x[0, 0].numel()
        qkv = F.conv2d(scaled(f"{name}.norm", x), w(f"{name}.to_qkv.weight", 24 * heads, width, 1, 1))
        q, k, v = qkv.reshape(len(x), 3, heads, 8, positions).unbind(1)
        memory = w(f"{name}.mem_kv", 2, heads, *((5, 8) if is_full else (8, 5)))
        memory = memory.mT if is_full else memory
        k, v = (torch.cat([memory[i].expand(len(x), -1, -1, -1), part], -1) for i, part in enumerate((k, v)))
        if is_full:
            h = attend(q, k, v)
        else:
            h = torch.einsum("bhdn,bhen,bhdm->bhem", k.softmax(-1), v, q.softmax(-2) * 8**-0.5)
        out = w.convolution(
            f"{name}.to_out" if is_full else f"{name}.to_out.0", h.reshape(len(x), -1, *x.shape[2:]), width, 1
        )
        return x + (out if is_full else scaled(f"{name}.to_out.1", out))

    channels = x.shape[1]
    angles = t[:, None] * 10_000.0 ** (-torch.arange(dim // 2) / (dim // 2 - 1))
    embedding = w.linear("time_mlp.1", torch.cat([angles.sin(), angles.cos()], 1), 4 * dim)
    embedding = w.linear("time_mlp.3", F.gelu(embedding), 4 * dim)
    x = torch.cat([torch.zeros_like(x), x], 1) if twice else x
    x = first = w.convolution("init_conv", x, widths[0], 7)
    passed, last = [], len(widths) - 2
    for level in range(last + 1):
        name = f"downs.{level}"
        x = residual(f"{name}.0", x, widths[level])
        passed.append(x)
        x = attention(f"{name}.2", residual(f"{name}.1", x, widths[level]), full[level])
        passed.append(x)
        halving = level < last
        x = F.pixel_unshuffle(x, 2) if halving else x
        name = f"{name}.3.1" if halving else f"{name}.3"
        x = w.convolution(name, x, widths[level + 1], 1 if halving else 3)
    x = residual("mid_block1", x, widths[-1])
    x = residual("mid_block2", attention("mid_attn", x, True), widths[-1])
    for row, level in enumerate(range(last, -1, -1)):
        width, name = widths[level + 1], f"ups.{row}"
        x = residual(f"{name}.0", torch.cat([x, passed.pop()], 1), width)
        x = attention(f"{name}.2", residual(f"{name}.1", torch.cat([x, passed.pop()], 1), width), full[level])
        x = F.interpolate(x, scale_factor=2) if level else x
        x = w.convolution(f"{name}.3.1" if level else f"{name}.3", x, widths[level])
    x = residual("final_res_block", torch.cat([x, first], 1), widths[0])
    return w.convolution("final_conv", x, channels, 1)


def make_lucidrains(folder, name, objective, betas, x, t, clipped=False, **options):
    """A file of the package's Trainer with these betas, and what the bare Unet says of x at labels t."""
    average = Weights()
    output = lucidrains_reference(average, x, t, (16, 16, 32), 2, (False, True), **options)
    alpha_bar = (1 - betas).cumprod(0)
    ratio = alpha_bar / (1 - alpha_bar)
    kept = ratio.clamp(max=5) if clipped else ratio
    weights = {"pred_noise": kept / ratio, "pred_x0": kept, "pred_v": kept / (1 + ratio)}[objective]
    diffusion = {"betas": betas.float(), "alphas_cumprod": alpha_bar.float(), "loss_weight": weights.float()}
    model = {f"model.{key}": draw(*value.shape, seed=1) for key, value in average.items()} | diffusion
    ema = {f"ema_model.model.{key}": value for key, value in average.items()}
    ema |= {f"ema_model.{key}": value for key, value in diffusion.items()}
    ema |= {"initted": torch.tensor(True), "step": torch.tensor([7])}
    content = {
        "step": 7,
        "model": model,
        "opt": {"state": {}},
        "ema": ema,
        "scaler": None,
        "version": "2.1.1",
    }
    torch.save(content, folder / f"{name}.pt")
    return folder / f"{name}.pt", output
