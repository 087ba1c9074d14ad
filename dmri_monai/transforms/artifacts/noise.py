"""Thermal noise: the last step of a scan."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.physics import noncentral_chi, rician
from dmri_monai.transforms.artifacts.model import Artifact, Drawn, Range, field_seed, uniform, whole
from dmri_monai.transforms.artifacts.scan import Scan

__all__ = ["Noise"]


@dataclass(frozen=True, kw_only=True)
class Noise(Artifact):
    """Rician noise (one coil), or non-central chi for more.

    snr: U(low, high), unweighted foreground signal over the noise of one coil; infinite is no noise.
    coils: a whole number, uniform from low to high, both included.
    """

    name = "noise"
    bounds = {"snr": (1e-3, math.inf), "coils": (1, 128)}

    snr: Range = (10.0, 30.0)
    coils: Range = (1, 1)

    def draw(self, R: np.random.RandomState, scan: Scan) -> Drawn:
        snr, coils = uniform(R, self.snr), whole(R, self.coils)
        return {
            "snr": snr if math.isfinite(snr) else None,
            "sigma": scan.reference / snr,
            "coils": coils,
            "seed": field_seed(R),
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: Scan) -> Tensor:
        generator = torch.Generator(image.device).manual_seed(drawn["seed"])
        if drawn["coils"] == 1:
            return rician(image, sigma=drawn["sigma"], generator=generator)
        return noncentral_chi(image, sigma=drawn["sigma"], coils=drawn["coils"], generator=generator)
