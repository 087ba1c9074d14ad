"""Thermal noise: the last step of a scan."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dmri_monai.artifacts import blob, g_factor_sigma, noncentral_chi, rician
from dmri_monai.artifacts.engine.artifact import Artifact, Drawn, Range
from dmri_monai.artifacts.engine.random_numbers import field_seed, generator, uniform, whole_number
from dmri_monai.artifacts.engine.scan_context import ScanContext

__all__ = ["Noise"]


@dataclass(frozen=True, kw_only=True)
class Noise(Artifact):
    """Rician noise (one coil), or non-central chi for more, stronger in the middle by a g-factor.

    snr: U(low, high), unweighted foreground signal over the noise of one coil where g is 1; infinite is no
    noise. coils: whole number from low to high.  g_factor: U(low, high), at the centre of a Gaussian blob; 1
    is uniform noise.
    """

    name = "noise"
    bounds = {"snr": (1e-3, math.inf), "coils": (1, 128), "g_factor": (1, 10)}
    counts = ("coils",)

    snr: Range = (10.0, 30.0)
    coils: Range = (1, 1)
    g_factor: Range = (1.0, 1.0)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        return {
            "sigma": scan.reference / uniform(R, self.snr),
            "coils": whole_number(R, self.coils),
            "g_factor": uniform(R, self.g_factor),
            "seed": field_seed(R),
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        sigma: Tensor | float = drawn["sigma"]
        if drawn["g_factor"] > 1:
            g = 1 + (drawn["g_factor"] - 1) * blob(scan.shape, (0.0, 0.0, 0.0), 0.5, image)
            sigma = g_factor_sigma(g, sigma=drawn["sigma"])
        field = generator(drawn["seed"], image)
        if drawn["coils"] == 1:
            return rician(image, sigma=sigma, generator=field)
        return noncentral_chi(image, sigma=sigma, coils=drawn["coils"], generator=field)
