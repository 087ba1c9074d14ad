"""Random artifacts of k-space sampling that act on the image as a whole or on single samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, as_tensor

from dmri_monai.artifacts import aliasing, partial_fourier, spike, zipper
from dmri_monai.artifacts.engine.artifact import Artifact, Drawn, Range
from dmri_monai.artifacts.engine.random_numbers import (
    field_seed,
    generator,
    normal_numbers,
    random_subset,
    uniform,
    whole_number,
)
from dmri_monai.artifacts.engine.scan_context import ScanContext
from dmri_monai.artifacts.spatial_fields import polynomial_field

__all__ = ["Aliasing", "HermitianPartialFourier", "Spike", "Zipper"]


@dataclass(frozen=True, kw_only=True)
class Aliasing(Artifact):
    """Too small a field of view along phase encoding.  fraction: U(low, high), of it that is missing."""

    name = "aliasing"
    bounds = {"fraction": (0, 0.9)}

    fraction: Range = (0.0, 0.4)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        return {"axis": scan.phase_axis, "fraction": uniform(R, self.fraction)}

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        return aliasing(image, axis=drawn["axis"], fraction=drawn["fraction"])


@dataclass(frozen=True, kw_only=True)
class HermitianPartialFourier(Artifact):
    """Partial Fourier with Hermitian filling of an object with smooth phase: what the filling gets wrong.

    fraction: U(low, high), lines acquired.  phase_deg: U(low, high), largest phase of a random quadratic
    polynomial.
    """

    name = "hermitian_partial_fourier"
    bounds = {"fraction": (0.51, 1), "phase_deg": (0, 360)}

    fraction: Range = (0.625, 0.875)
    phase_deg: Range = (10.0, 90.0)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        return {
            "axis": scan.phase_axis,
            "fraction": uniform(R, self.fraction),
            "phase_deg": uniform(R, self.phase_deg),
            "coefficients": normal_numbers(R, 10),
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        field = polynomial_field(drawn["coefficients"], scan.shape, 2, image)
        phase = field * (math.radians(drawn["phase_deg"]) / field.abs().amax().clamp(min=1e-9))
        fraction = drawn["fraction"]
        return partial_fourier(image, axis=drawn["axis"], fraction=fraction, fill="hermitian", phase=phase)


@dataclass(frozen=True, kw_only=True)
class Spike(Artifact):
    """Bad k-space samples in single slices: herringbone patterns.

    share: U(low, high), of all slices of all volumes.  amplitude: U(low, high) for every spike, of the
    largest sample. Frequencies are uniform, at least 3 cycles per field of view along one axis; phases
    uniform.
    """

    name = "spike"
    bounds = {"share": (0, 1), "amplitude": (0, 10)}

    share: Range = (0.005, 0.03)
    amplitude: Range = (0.05, 0.1)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        events = random_subset(R, np.arange(scan.n_volumes * scan.n_slices), uniform(R, self.share))
        sizes = [scan.shape[a] for a in range(3) if a != scan.slice_axis]
        return {
            "axis": scan.slice_axis,
            "volumes": [e // scan.n_slices for e in events],
            "slices": [e % scan.n_slices for e in events],
            "frequency": [[_frequency(R, n) for n in sizes] for _ in events],
            "amplitude": [uniform(R, self.amplitude) for _ in events],
            "phase": [uniform(R, (0.0, 2 * math.pi)) for _ in events],
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        if not drawn["volumes"]:
            return image
        lists = {k: as_tensor(v) for k, v in drawn.items() if k != "axis"}
        return spike(image, axis=drawn["axis"], **lists)

    @staticmethod
    def hits(drawn: Drawn, n_volumes: int, n_slices: int) -> np.ndarray:
        hit = np.zeros((n_volumes, n_slices), dtype=bool)
        hit[drawn["volumes"], drawn["slices"]] = np.asarray(drawn["amplitude"]) > 0
        return hit


def _frequency(R: np.random.RandomState, n: int) -> int:
    """Whole cycles per field of view, 3 to n / 2 in magnitude, less on tiny grids."""
    high = max(1, (n - 1) // 2)
    return (1 if R.uniform() < 0.5 else -1) * whole_number(R, (min(3, high), high))


@dataclass(frozen=True, kw_only=True)
class Zipper(Artifact):
    """Interference: a noisy column along phase encoding.

    share: U(low, high), of the volumes.  amplitude: U(low, high), of the unweighted signal.  Position along
    the readout is uniform, width 1 or 2 voxels.
    """

    name = "zipper"
    bounds = {"share": (0, 1), "amplitude": (0, 10)}

    share: Range = (0.1, 1.0)
    amplitude: Range = (0.05, 0.3)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        width = whole_number(R, (1, min(2, scan.shape[scan.readout_axis])))
        return {
            "readout_axis": scan.readout_axis,
            "hit_volumes": random_subset(R, np.arange(scan.n_volumes), uniform(R, self.share)),
            "position": whole_number(R, (0, scan.shape[scan.readout_axis] - width)),
            "width": width,
            "amplitude": uniform(R, self.amplitude) * scan.reference,
            "seed": field_seed(R),
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        volumes = torch.as_tensor(drawn["hit_volumes"], dtype=torch.long, device=image.device)
        if not len(volumes):
            return image
        noisy = zipper(
            image[volumes],
            readout_axis=drawn["readout_axis"],
            position=drawn["position"],
            width=drawn["width"],
            amplitude=drawn["amplitude"],
            generator=generator(drawn["seed"], image),
        )
        return image.index_copy(0, volumes, noisy)
