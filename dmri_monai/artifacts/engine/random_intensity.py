"""Random gains of the signal, before it is encoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, as_tensor

from dmri_monai.artifacts import bias_field, blob, drift, slice_dropout, venetian_blind, vibration
from dmri_monai.artifacts.engine.artifact import Artifact, Drawn, Range
from dmri_monai.artifacts.engine.random_numbers import normal_numbers, random_subset, uniform, whole_number
from dmri_monai.artifacts.engine.scan_context import ScanContext
from dmri_monai.artifacts.intensity import multiband_set
from dmri_monai.artifacts.spatial_fields import n_monomials, polynomial_field

__all__ = ["BiasField", "Drift", "SliceDropout", "VenetianBlind", "Vibration"]

BIAS_ORDER = 3


@dataclass(frozen=True, kw_only=True)
class SliceDropout(Artifact):
    """Slices (with their multiband partners) of single diffusion-weighted volumes lose signal.

    share: U(low, high), of all diffusion-weighted slice excitations.  loss: U(low, high) for every event, 1
    is a lost slice.  The multiband factor is the scan's, where its sets are whole.
    """

    name = "slice_dropout"
    bounds = {"share": (0, 1), "loss": (0, 1)}

    share: Range = (0.01, 0.1)
    loss: Range = (0.2, 1.0)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        shots = scan.n_slices // scan.multiband
        volumes = np.flatnonzero(scan.weighted)
        events = random_subset(R, np.arange(len(volumes) * shots), uniform(R, self.share))
        return {
            "axis": scan.slice_axis,
            "multiband": scan.multiband,
            "volumes": [int(volumes[e // shots]) for e in events],
            "slices": [int(e % shots) for e in events],
            "loss": [uniform(R, self.loss) for _ in events],
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        return slice_dropout(
            image,
            volumes=as_tensor(drawn["volumes"]),
            slices=as_tensor(drawn["slices"]),
            loss=as_tensor(drawn["loss"]),
            axis=drawn["axis"],
            multiband=drawn["multiband"],
        )

    @staticmethod
    def hits(drawn: Drawn, n_volumes: int, n_slices: int) -> np.ndarray:
        hit = np.zeros((n_volumes, n_slices), dtype=bool)
        for volume, index, loss in zip(drawn["volumes"], drawn["slices"], drawn["loss"], strict=True):
            hit[volume, multiband_set(index, drawn["multiband"], n_slices)] |= loss > 0
        return hit


@dataclass(frozen=True, kw_only=True)
class Vibration(Artifact):
    """The table shakes: focal loss in volumes with a strong left-right gradient.

    remaining: U(low, high), signal left at the centre for a full left-right gradient.  The place is medial,
    towards the back and the top, jittered by U(-0.1, 0.1) of half the field of view; our own choice.  Ground
    truth lists the volumes that lose at least a quarter of the largest loss.
    """

    name = "vibration"
    bounds = {"remaining": (0, 1)}

    remaining: Range = (0.3, 0.8)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        return {
            "remaining": uniform(R, self.remaining),
            "centre": [float(c) for c in np.array([0.0, -0.4, 0.25]) + R.uniform(-0.1, 0.1, 3)],
            "width": [0.3, 0.3, 0.3],
            "hit_volumes": [int(v) for v in np.flatnonzero(_left_right(scan) ** 2 >= 0.25)],
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        weight = blob(scan.shape, drawn["centre"], drawn["width"], image)
        return vibration(
            image, left_right=as_tensor(_left_right(scan)), weight=weight, remaining=drawn["remaining"]
        )


def _left_right(scan: ScanContext) -> np.ndarray:
    """(N,) world x component of the gradient relative to the scan's strongest, -1 to 1."""
    strength = np.sqrt(scan.bvals / max(float(scan.bvals.max(initial=0.0)), 1e-9)) * scan.weighted
    share: np.ndarray = (scan.bvecs_voxel @ scan.rotation.T)[:, 0] * strength
    return share.clip(-1, 1)


@dataclass(frozen=True, kw_only=True)
class BiasField(Artifact):
    """Receive sensitivity, one for all volumes: exp of a polynomial of order 3 with normal coefficients.

    strength: U(low, high), the largest magnitude of its logarithm.
    """

    name = "bias_field"
    bounds = {"strength": (0, 5)}

    strength: Range = (0.1, 0.5)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        coefficients = [0.0, *normal_numbers(R, n_monomials(BIAS_ORDER) - 1)]
        return {"strength": uniform(R, self.strength), "coefficients": coefficients}

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        field = polynomial_field(drawn["coefficients"], scan.shape, BIAS_ORDER, image)
        return bias_field(image, log_gain=field * (drawn["strength"] / field.abs().amax().clamp(min=1e-9)))


@dataclass(frozen=True, kw_only=True)
class VenetianBlind(Artifact):
    """Interleaved slices differ in gain.  strength: U(low, high)."""

    name = "venetian_blind"
    bounds = {"strength": (0, 1)}

    strength: Range = (0.05, 0.2)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        return {"strength": uniform(R, self.strength), "axis": scan.slice_axis}

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        return venetian_blind(image, strength=drawn["strength"], axis=drawn["axis"])


@dataclass(frozen=True, kw_only=True)
class Drift(Artifact):
    """Slow loss of signal in the order of the volumes.  fraction: U(low, high), lost at the end.

    Linear or quadratic with equal probability.
    """

    name = "drift"
    bounds = {"fraction": (0, 1)}

    fraction: Range = (0.01, 0.06)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        return {"fraction": uniform(R, self.fraction), "order": whole_number(R, (1, 2))}

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        return drift(image, fraction=drawn["fraction"], order=drawn["order"])
