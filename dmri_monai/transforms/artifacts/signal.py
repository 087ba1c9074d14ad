"""Random artifacts of the signal itself, before it is encoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, as_tensor

from dmri_monai.physics import slice_dropout
from dmri_monai.physics.signal import multiband_set
from dmri_monai.transforms.artifacts.model import Artifact, Drawn, Range, some_of, uniform
from dmri_monai.transforms.artifacts.scan import Scan

__all__ = ["SliceDropout"]


@dataclass(frozen=True, kw_only=True)
class SliceDropout(Artifact):
    """Slices (with their multiband partners) of single diffusion-weighted volumes lose signal.

    share: U(low, high), share of all diffusion-weighted slice excitations that are hit.  loss: U(low, high)
    per event, 1 is a lost slice.  The multiband factor is the scan's, where its sets are whole.
    """

    name = "slice_dropout"
    bounds = {"share": (0, 1), "loss": (0, 1)}

    share: Range = (0.01, 0.1)
    loss: Range = (0.2, 1.0)

    def draw(self, R: np.random.RandomState, scan: Scan) -> Drawn:
        shots = scan.n_slices // scan.multiband
        volumes = np.flatnonzero(scan.weighted)
        events = some_of(R, np.arange(len(volumes) * shots), uniform(R, self.share))
        return {
            "axis": scan.slice_axis,
            "multiband": scan.multiband,
            "volumes": [int(volumes[e // shots]) for e in events],
            "slices": [int(e % shots) for e in events],
            "loss": [uniform(R, self.loss) for _ in events],
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: Scan) -> Tensor:
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
