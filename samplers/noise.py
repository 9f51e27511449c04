"""Noise that belongs to a sample: a function of (run seed, sample key, stream) and nothing else.

A counter-based generator keyed by these three makes a restoration independent of batch size, order,
worker and interruption, and equal on every device: it is drawn on the CPU and copied.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


class KeyedNoise:
    """Random numbers for a batch of samples.

    Args:
        seed: the run's seed.
        keys: one key per sample of the batch.
    """

    def __init__(self, seed: int, keys: Sequence[str]):
        self.seed, self.keys = seed, keys

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """(len(keys), *shape) float32; different streams are independent.

        Drawn in as many threads as torch has; numpy's generators hold no lock of Python's.
        """
        drawn = np.empty((len(self.keys), *shape), np.float32)

        def draw(place: int) -> None:
            philox(self.seed, self.keys[place], stream).standard_normal(out=drawn[place], dtype=np.float32)

        count = torch.get_num_threads()
        list(
            threads("draws", count).map(draw, range(len(drawn)))
            if count > 1
            else map(draw, range(len(drawn)))
        )
        return torch.from_numpy(drawn)

    def poisson(self, stream: str, rates: Tensor) -> Tensor:
        """Poisson counts with the given non-negative rates (len(keys), …), of their type and device."""
        expected = rates.double().cpu().numpy()
        rows = [
            philox(self.seed, key, stream).poisson(rate)
            for key, rate in zip(self.keys, expected, strict=True)
        ]
        return torch.from_numpy(np.stack(rows)).to(rates)


Noise = Tensor | KeyedNoise


@lru_cache
def threads(name: str, count: int) -> ThreadPoolExecutor:
    """Threads for a purpose, kept."""
    return ThreadPoolExecutor(count, thread_name_prefix=name)


def philox(seed: int, key: str, stream: str) -> np.random.Generator:
    """The generator of one stream of one sample. The parts are hashed with their lengths."""
    parts = [str(seed).encode(), key.encode(), stream.encode()]
    message = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    digest = hashlib.blake2b(message, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def is_noisy(sigma_y: float | Tensor) -> bool:
    """Whether there is measurement noise; a level for each sample is positive."""
    return isinstance(sigma_y, Tensor) or sigma_y > 0
