"""Random displacement along phase encoding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.artifacts import displace, eddy_modes, fat_shift, scalp_rim, susceptibility_field
from dmri_monai.artifacts.engine.artifact import Artifact, Drawn, Range
from dmri_monai.artifacts.engine.random_numbers import (
    normal_numbers,
    polarity,
    readout_time,
    uniform,
    whole_number,
)
from dmri_monai.artifacts.engine.scan_context import ScanContext
from dmri_monai.artifacts.spatial_fields import AIR_CAVITIES

__all__ = ["EddyCurrents", "FatShift", "Susceptibility"]

READOUT_TIME_S = (0.05, 0.1)  # where the scan does not tell


@dataclass(frozen=True, kw_only=True)
class FatShift(Artifact):
    """Unsuppressed fat: a rim around the head appears displaced along phase encoding.

    strength: U(low, high), of the unweighted signal.  frequency_hz: U(low, high), of fat against water (440
    at 3 T).  readout_time_s and the polarity: as for `Susceptibility`.  The rim lies around where the mean
    unweighted signal exceeds 0.3 of its foreground mean, 1 or 2 voxels thick.
    """

    name = "fat_shift"
    bounds = {"strength": (0, 10), "frequency_hz": (0, 2000), "readout_time_s": (0, 1)}

    strength: Range = (0.1, 0.3)
    frequency_hz: Range = (440.0, 440.0)
    readout_time_s: Range = READOUT_TIME_S

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        time = readout_time(R, scan, self.readout_time_s)
        return {
            "axis": scan.phase_axis,
            "height": uniform(R, self.strength) * scan.reference,
            "shift_voxels": polarity(R, scan) * uniform(R, self.frequency_hz) * time,
            "threshold": 0.3 * scan.reference,
            "thickness": whole_number(R, (1, 2)),
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        unweighted = torch.as_tensor(~scan.weighted, device=image.device)
        mean = image[unweighted].mean(0) if (~scan.weighted).any() else image.mean(0)
        rim = scalp_rim(mean, threshold=drawn["threshold"], thickness=drawn["thickness"])
        return fat_shift(
            image, fat=drawn["height"] * rim, shift_voxels=drawn["shift_voxels"], axis=drawn["axis"]
        )


@dataclass(frozen=True, kw_only=True)
class Susceptibility(Artifact):
    """Field around sinuses and ears, the same for all volumes; a measured field map is used instead where
    given.

    peak_hz: U(low, high), largest off-resonance on the grid.  Where the scan does not tell, readout_time_s is
    U(low, high) and the polarity 1 or -1 with equal probability.  Each cavity's strength is U(0.5, 1.5), its
    centre jittered by U(-0.05, 0.05) of half the field of view.
    """

    name = "susceptibility"
    bounds = {"peak_hz": (0, 2000), "readout_time_s": (0, 1)}
    step = "displace"

    peak_hz: Range = (50.0, 150.0)
    readout_time_s: Range = READOUT_TIME_S

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        cavities = [
            [[float(c) for c in np.asarray(centre) + R.uniform(-0.05, 0.05, 3)], radius]
            for centre, radius in AIR_CAVITIES
        ]
        return {
            "axis": scan.phase_axis,
            "scale_s": polarity(R, scan) * readout_time(R, scan, self.readout_time_s),
            "given": scan.field_hz is not None,
            "peak_hz": uniform(R, self.peak_hz),
            "cavities": cavities,
            "weights": [uniform(R, (0.5, 1.5)) for _ in cavities],
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        return displace(image, axis=drawn["axis"], shift=Susceptibility.displacement(drawn, scan, image)[0])

    @staticmethod
    def displacement(drawn: Drawn, scan: ScanContext, image: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if drawn["given"]:
            if scan.field_hz is None:
                raise ValueError("the record was made with a field map; give it as field_hz")
            return drawn["scale_s"] * scan.field_hz.to(image), None
        cavities = [((x, y, z), radius) for (x, y, z), radius in drawn["cavities"]]
        field = susceptibility_field(
            scan.shape,
            scan.spacing_mm,
            peak_hz=drawn["peak_hz"],
            cavities=cavities,
            weights=drawn["weights"],
            like=image,
        )
        return drawn["scale_s"] * field, None


@dataclass(frozen=True, kw_only=True)
class EddyCurrents(Artifact):
    """Displacement polynomial in space and linear in b g, with normal coefficients.

    linear_voxels, quadratic_voxels: U(low, high), largest displacement on the grid in any volume by the
    constant and linear, and by the quadratic modes.
    """

    name = "eddy_currents"
    bounds = {"linear_voxels": (0, 50), "quadratic_voxels": (0, 50)}
    step = "displace"

    linear_voxels: Range = (0.5, 3.0)
    quadratic_voxels: Range = (0.0, 1.0)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        largest = float(scan.bvals.max(initial=0.0))
        drive = scan.bvecs_voxel * (scan.bvals / max(largest, 1e-9) * scan.weighted)[:, None]
        blocks = [
            _scaled(np.asarray(normal_numbers(R, rows, 3)), drive, uniform(R, span))
            for rows, span in ((4, self.linear_voxels), (6, self.quadratic_voxels))
        ]
        return {
            "axis": scan.phase_axis,
            "b_reference": max(largest, 1e-9),
            "coefficients": np.concatenate(blocks).tolist(),
            "hit_volumes": [int(v) for v in np.flatnonzero(scan.weighted)],
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        return displace(image, axis=drawn["axis"], modes=EddyCurrents.displacement(drawn, scan, image)[1])

    @staticmethod
    def displacement(drawn: Drawn, scan: ScanContext, image: Tensor) -> tuple[Tensor | None, Tensor | None]:
        coefficients = torch.tensor(drawn["coefficients"], dtype=torch.float64)
        weighted = torch.as_tensor(scan.bvals * scan.weighted)
        bvecs = torch.as_tensor(scan.bvecs_voxel)
        return None, eddy_modes(weighted, bvecs, coefficients, drawn["b_reference"]).to(image)


def _scaled(coefficients: np.ndarray, drive: np.ndarray, largest: float) -> np.ndarray:
    """`coefficients` (M, 3) so that the modes' magnitudes add up to `largest` in the strongest volume."""
    peak = np.abs(drive @ coefficients.T).sum(-1).max(initial=0.0)
    return coefficients * (largest / peak) if peak > 0 else 0 * coefficients
