"""Sources of random numbers for one round: secret ones for private training, seeded ones for everything else.

Called by client/training. Differential privacy assumes that noise *and* the choice of patients are secret and never
repeat. torch's CPU generator keeps 32 bits of its seed and is predictable from its output, so private training draws
both from an AES-256-CTR key stream whose key comes from the operating system (counter mode as in NIST SP 800-90A).
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from typing import Protocol as Interface

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

REKEY_BYTES = 1 << 36  # far below the 2^68 bytes after which 128-bit counter blocks could be told from random ones
# Normals at a time: on a CPU 8 float64 temporaries of 256 KB stay in the second-level cache; a GPU must be filled.
CHUNK = {"cpu": 1 << 15, "cuda": 1 << 20}
CPU = torch.device("cpu")


class Randomness(Interface):
    """What a round draws: Gaussian noise, Poisson samples of patients, and a generator for augmentation."""

    @property
    def secret(self) -> bool:
        """Whether nobody, ourselves included, can draw the same numbers again."""
        ...

    def normal(self, count: int, *, std: float, device: torch.device = CPU) -> Tensor:
        """float32 [count] on `device`, independent N(0, std^2)."""
        ...

    def poisson_sample(self, population: int, *, rate: float) -> NDArray[np.int64]:
        """Ascending positions in [0, population), each present independently with probability `rate` in (0, 1]."""
        ...

    def permutation(self, population: int) -> NDArray[np.int64]:
        """A uniform random order of 0..population-1."""
        ...

    def generator(self) -> torch.Generator:
        """A torch generator for augmentation (never for noise)."""
        ...


class SecureRandomness:
    """AES-256-CTR key stream keyed by the operating system; cannot be seeded, saved or repeated.

    A forked child makes its own key, so two processes never add the same noise. Safe to share between threads.
    """

    secret = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rekey()

    def __reduce__(self) -> str:
        # A copy would add the same noise twice; subtracting two such releases shows the patients.
        raise TypeError("secret randomness must not be copied, saved or sent to another process; make a new one there")

    def _rekey(self) -> None:
        self._encryptor = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
        self._used, self._process = 0, os.getpid()

    def _words(self, count: int) -> NDArray[np.uint64]:
        size = 8 * count
        with self._lock:
            if self._process != os.getpid() or self._used + size > REKEY_BYTES:
                self._rekey()
            self._used += size
            stream = bytearray(size + 15)
            self._encryptor.update_into(bytes(size), stream)
        return np.frombuffer(stream, dtype=np.uint64, count=count)

    def _uniform(self, count: int, device: torch.device) -> Tensor:
        """float64 [count] in (0, 1], 53 random bits each."""
        bits = torch.from_numpy((self._words(count) >> np.uint64(11)).view(np.int64)).to(device)
        return bits.double().add_(1.0).mul_(2.0**-53)

    def _sum_of_four(self, count: int, device: torch.device) -> Tensor:
        """float64 [count]: sums of four standard normals by Box and Muller (1958), from four different pairs."""
        width = max(count, 2)
        radius = self._uniform(2 * width, device).log_().mul_(-2.0).sqrt_().view(2, width)
        angle = self._uniform(2 * width, device).mul_(2.0 * math.pi).view(2, width)
        cosines = angle.cos().mul_(radius).sum(0)
        # Without the roll, cosine and sine of one pair would meet in a number and collapse into a single Gaussian.
        return cosines.add_(angle.sin_().mul_(radius).sum(0).roll(1))[:count]

    def normal(self, count: int, *, std: float, device: torch.device = CPU) -> Tensor:
        """float32 [count] on `device`, N(0, std^2); each is half the sum of four, computed in float64.

        A single floating-point Gaussian betrays the number it was added to through its low bits (Mironov 2012); with
        the sum of 2n Gaussians an attacker must search some 2^(3n x 52) candidates (Holohan and Braghin 2021; here n
        = 2). A GPU turns the same secret words into normals; the words come from the CPU's AES in every case.
        """
        noise, chunk = torch.empty(count, dtype=torch.float32, device=device), CHUNK.get(device.type, CHUNK["cpu"])
        for start in range(0, count, chunk):
            part = noise[start : start + chunk]
            part.copy_(self._sum_of_four(len(part), device).mul_(0.5 * std))
        return noise

    def poisson_sample(self, population: int, *, rate: float) -> NDArray[np.int64]:
        """Poisson sample from the same secret stream: amplification by sampling assumes that the batch is secret."""
        threshold = min(int(rate * 2.0**64), 2**64 - 1)
        if rate >= 1.0:
            return np.arange(population, dtype=np.int64)
        return np.flatnonzero(self._words(population) < np.uint64(threshold)).astype(np.int64)

    def permutation(self, population: int) -> NDArray[np.int64]:
        """Order by 64 random bits each."""
        return np.argsort(self._words(population), kind="stable").astype(np.int64)

    def generator(self) -> torch.Generator:
        """Augmentation needs no secrecy, only independence from round to round."""
        return torch.Generator().manual_seed(int(self._words(1)[0] >> np.uint64(33)))


class SeededRandomness:
    """Repeatable numbers for runs without privacy: a pure function of (seed, site, round)."""

    secret = False

    def __init__(self, *, seed: int, site: str, round_number: int) -> None:
        digest = hashlib.sha256(f"mammofed-training:{seed}:{site}:{round_number}".encode()).digest()
        words = np.frombuffer(digest, dtype="<u4")
        self._numpy = np.random.Generator(np.random.PCG64(words[:6].tolist()))
        self._augmentation = torch.Generator().manual_seed(int(words[7]))

    def normal(self, count: int, *, std: float, device: torch.device = CPU) -> Tensor:
        """float32 [count] on `device`, N(0, std^2), predictable."""
        return torch.from_numpy(self._numpy.standard_normal(count) * std).float().to(device)

    def poisson_sample(self, population: int, *, rate: float) -> NDArray[np.int64]:
        """Poisson sample, predictable."""
        return np.flatnonzero(self._numpy.random(population) < rate).astype(np.int64)

    def permutation(self, population: int) -> NDArray[np.int64]:
        """Shuffled order, predictable."""
        return self._numpy.permutation(population).astype(np.int64)

    def generator(self) -> torch.Generator:
        """The round's augmentation generator (always the same object)."""
        return self._augmentation
