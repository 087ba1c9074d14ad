"""Methods without training on the voxels of one scan: peaks, number of fibres and, where they can, fractions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.qspace.tensor import TensorMetrics
from dmri_monai.reference import deconvolution, fibres, multi_tissue
from dmri_monai.reference.baselines import KMeansTissue

RULE = deconvolution.PeakRule()


@dataclass(frozen=True)
class Scan:
    """Raw volumes (N, X, Y, Z), their table, which voxels count (X, Y, Z), and the affine of the grid."""

    image: Tensor
    table: GradientTable
    mask: Tensor
    affine: Tensor

    def select(self, rows: Tensor) -> Scan:
        """The b0 volumes and those of `rows` (N,) bool."""
        kept = rows | self.table.b0_mask
        return Scan(self.image[kept], self.table.select(kept), self.mask, self.affine)

    def tensor(self) -> TensorMetrics:
        """Maps (1, ., X, Y, Z) of a weighted tensor fit, to low b-values where they suffice."""
        return fibres._tensor_maps(self.image, self.table, self.mask)


@dataclass(frozen=True)
class Found:
    """Of V voxels: peaks (V, 3, 3), unit, largest first, 0 for none; number (V,) or None; fractions WM, GM, CSF (V, 3)
    or None; tissue (V,) 0-2 or None."""

    peaks: Tensor | None = None
    number: Tensor | None = None
    fractions: Tensor | None = None
    tissue: Tensor | None = None


def tensor(scan: Scan) -> Found:
    first = scan.tensor().v1[0][:, scan.mask].T
    peaks = torch.zeros(len(first), 3, 3)
    peaks[:, 0] = first
    return Found(peaks=peaks)


def csd(scan: Scan) -> Found:
    """DIPY's deconvolution of the shell that resolves most, peaks by the project's rule."""
    shell, order = deconvolution.deconvolution_shell(scan.table)
    white = white_voxels(scan)
    model, part = deconvolution.single_shell_model(_signal(scan), scan.table, white, shell, order)
    return Found(*_peaks(model, part, scan, white))


def msmt(scan: Scan) -> Found:
    """DIPY's multi-tissue deconvolution of all shells, solved exactly."""
    white, maps = white_voxels(scan), scan.tensor()
    tissue = (maps.fa[0, 0].numpy(), maps.md[0, 0].numpy(), scan.mask.numpy())
    model, part = multi_tissue.multi_tissue_model(
        _signal(scan), scan.table, white, tissue, 8, RULE.response_voxels
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = model.fit(part, mask=scan.mask.numpy())
    fractions = torch.from_numpy(fit.volume_fractions[scan.mask.numpy()][:, [2, 1, 0]]).clamp(min=0)
    return Found(*_peaks(model, part, scan, white), fractions, fractions.argmax(1))


def force(scan: Scan, simulations: int = 100_000) -> Found:
    """DIPY's library matching (Shah et al.), posterior; `simulations` as in its documentation."""
    from dipy.reconst.force import FORCEModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FORCEModel(scan.table.to_dipy(), use_posterior=True)
        model.generate(num_simulations=simulations)
        fit = model.fit(_signal(scan), mask=scan.mask.numpy())
    inside = scan.mask.numpy()
    fractions = np.stack([fit.wm_fraction, fit.gm_fraction, fit.csf_fraction], axis=-1)[inside]
    number = torch.from_numpy(np.asarray(fit.num_fibers)[inside]).round()  # the posterior has means
    part = torch.from_numpy(fractions)
    return Found(None, number, part, part.argmax(1))


def kmeans(scan: Scan) -> Found:
    """Clusters of b0, FA and MD, named by what they are: fluid has the highest MD, white matter the highest FA."""
    maps, b0 = scan.tensor(), scan.image[scan.table.b0_mask].mean(0, keepdim=True)
    features = torch.cat([b0, maps.fa[0], maps.md[0], scan.mask[None].float()])
    clusters = KMeansTissue()(features[None])[0, 1:, scan.mask].argmax(0)
    fa, md = maps.fa[0, 0][scan.mask], maps.md[0, 0][scan.mask]
    fluid = max(range(3), key=lambda k: float(md[clusters == k].mean()))
    white = max({0, 1, 2} - {fluid}, key=lambda k: float(fa[clusters == k].mean()))
    names = torch.ones(3, dtype=torch.long)
    names[fluid], names[white] = 2, 0
    return Found(tissue=names[clusters])


def _signal(scan: Scan) -> np.ndarray:
    return scan.image.movedim(0, -1).double().numpy()


def white_voxels(scan: Scan) -> np.ndarray:
    """(X, Y, Z) bool: the voxels of the response of a single fibre."""
    return deconvolution.most_anisotropic(
        scan.tensor().fa[0, 0].numpy(), scan.mask.numpy(), RULE.response_voxels
    )


def _peaks(model: Any, part: np.ndarray, scan: Scan, white: np.ndarray) -> tuple[Tensor, Tensor]:
    directions, values = deconvolution.find_peaks(model, part, scan.mask.numpy(), white, RULE)
    inside, found = scan.mask.numpy(), np.isfinite(values) & (values > 0)
    peaks = np.where(found[..., None], directions, 0.0)[inside]
    return torch.from_numpy(peaks).float(), torch.from_numpy(found.sum(-1)[inside])
