"""Metrics of one restored image against its truth.

Each function takes images (1, C, H, W), float64 in [0, 1], and gives a scalar. torchmetrics computes what it
has; SSIM and its kin in float32, where they agree with float64 to 1e-5 and take a twentieth of the time.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kintsugi.pipeline.metrics.weights import ALEXNET, VGG16, Weights

Measure = Callable[..., Tensor]
"""(restored, truth), or (restored) where no truth is needed, to a scalar."""


def psnr(restored: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, dB; infinite where the images are the same."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(restored, truth, data_range=1.0)


def ssim(restored: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity, at most 1, in Gaussian windows of 11 pixels with σ 1.5."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(restored.float(), truth.float(), data_range=1.0)


def ms_ssim(restored: Tensor, truth: Tensor) -> Tensor:
    """SSIM at five scales, 0 to 1; a negative factor counts as 0."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    return multiscale_structural_similarity_index_measure(
        restored.float(), truth.float(), data_range=1.0, normalize="relu"
    )


def vif(restored: Tensor, truth: Tensor) -> Tensor:
    """Visual information fidelity in pixels: 1 of equal images, 0 of nothing in common."""
    from torchmetrics.functional.image import visual_information_fidelity

    # Its visual noise, of variance 2, is that of pixels up to 255.
    return visual_information_fidelity(255 * restored.float(), 255 * truth.float())


def total_variation(restored: Tensor) -> Tensor:
    """Sum of the absolute differences of neighbours, per value."""
    from torchmetrics.functional.image import total_variation

    return total_variation(restored) / restored.numel()


def spectrum_ratio(restored: Tensor, truth: Tensor) -> Tensor:
    """Geometric mean over the rings of high frequency of power restored / true: below 1 is too smooth."""
    from kintsugi.pipeline.metrics.texture import ring_powers

    return (ring_powers(restored) / ring_powers(truth)).log().mean().exp()


def lpips(network: str, weights: Weights) -> Callable[[torch.device], Measure]:
    """What loads LPIPS with torchmetrics' network of that name; its trunk's weights are a file."""

    def load(device: torch.device) -> Measure:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        weights.find()  # else torchvision would fetch them
        net = LearnedPerceptualImagePatchSimilarity(net_type=network, normalize=True).net.to(device)

        def measure(restored: Tensor, truth: Tensor) -> Tensor:
            return net(restored.float(), truth.float(), normalize=True).squeeze()

        return measure

    return load


lpips_alex = lpips("alex", ALEXNET)
lpips_vgg = lpips("vgg", VGG16)
