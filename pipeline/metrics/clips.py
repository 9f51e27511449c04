"""Temporal metrics: does a restored clip change from frame to frame as the true one does?

Each is of two consecutive frames; a clip has the mean of its pairs. No frame is warped onto another: where
that is done, the error of the flow and what it cannot see enter the number.
"""

import numpy as np

from kintsugi.pipeline.metrics.metric import GREY_OR_RGB, ClipMetric

WEIGHTS = (0.299, 0.587, 0.114)  # luma of R, G and B (BT.601)


def flicker(restored: np.ndarray, truth: np.ndarray) -> float:
    """RMS of (x̂ₜ₊₁ − xₜ₊₁) − (x̂ₜ − xₜ), of frames (2, H, W, C) on [0, 1]."""
    error = restored - truth
    return float(np.sqrt(np.square(error[1] - error[0]).mean()))


def tof(restored: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance of the restored frames' optical flow from the true ones', pixels; of frames as `flicker`.

    Flow is of the luma.
    """
    return float(np.linalg.norm(flow(restored) - flow(truth), axis=0).mean())


def flow(frames: np.ndarray) -> np.ndarray:
    """The optical flow (2, H, W), rows and columns in pixels, from the first of two frames to the second."""
    from skimage.registration import optical_flow_ilk

    luma = frames[..., 0] if frames.shape[-1] == 1 else frames @ np.array(WEIGHTS)
    found: np.ndarray = optical_flow_ilk(*luma.astype(np.float32))
    return found


CLIP_METRICS = {
    "flicker": ClipMetric(
        "flicker",
        "lower",
        "How much the error changes from frame to frame, on [0, 1]; 0: it stands still.\n"
        "RMS over pixels and channels of (x̂ₜ₊₁ − xₜ₊₁) − (x̂ₜ − xₜ), mean over a clip's pairs of consecutive "
        "frames, then over clips. Errors that are independent from frame to frame give √2 times their RMS; "
        "rounding to 8 bits alone gives 0.0016. A blur that stands still is not seen.",
        flicker,
    ),
    "tof": ClipMetric(
        "tOF, pixels",
        "lower",
        "How far the motion is from the true one: distance of optical flows, pixels.\n"
        "Mean distance of the flow between consecutive restored frames from that between the true ones, mean "
        "over a clip's pairs, then over clips (tOF of TecoGAN, Chu et al., ACM TOG 2020, 1811.09393). Flow "
        "of luma, by scikit-image's iterative Lucas–Kanade (Le Besnerais and Champagnat, ICIP 2005), where "
        "the released code has Farnebäck's on a crop: to be compared with numbers of this program only.",
        tof,
        smallest=16,
        channels=GREY_OR_RGB,
    ),
}
