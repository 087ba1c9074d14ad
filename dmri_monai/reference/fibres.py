"""From a scan and its gradient table to the labels of every voxel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.qspace.b0 import brain_mask, mean_b0
from dmri_monai.qspace.direction_maps import tensor_volumes
from dmri_monai.qspace.tensor import TensorMetrics, fit_tensor, tensor_metrics
from dmri_monai.reference.deconvolution import (
    PeakRule,
    deconvolution_shell,
    find_peaks,
    most_anisotropic,
    single_shell_model,
)
from dmri_monai.reference.multi_tissue import multi_tissue_model

__all__ = ["FibreLabels", "Method", "fibre_labels"]

Method = Literal["csd", "msmt"]


@dataclass(frozen=True)
class FibreLabels:
    """npeaks (X, Y, Z) uint8, 0-3; peaks_world (9, X, Y, Z), largest first, NaN for none; fa (X, Y, Z)."""

    npeaks: Tensor
    peaks_world: Tensor
    fa: Tensor


def fibre_labels(
    image: Tensor,
    table: GradientTable,
    *,
    mask: Tensor | None = None,
    rule: PeakRule | None = None,
    method: Method = "csd",
) -> FibreLabels:
    """Labels of raw volumes `image` (N, X, Y, Z) with their `table`; `mask` (X, Y, Z) bool.

    method: "csd", constrained spherical deconvolution of the shell that resolves the highest order; of two such
    shells the one with the higher b (Tournier 2007, doi:10.1016/j.neuroimage.2007.02.016); "msmt", of all shells,
    with grey matter and fluid beside the fibres (Jeurissen 2014, doi:10.1016/j.neuroimage.2014.07.061), which finds
    fewer false fibres in grey matter. By DIPY; FA from the shells up to b = 1600 s/mm², where they determine a
    tensor.
    Raises ValueError for a scan without b0, or whose shells have fewer than 15 directions; for "msmt" also
    with fewer than two shells, or where no voxel looks like grey matter or fluid.
    """
    if method not in ("csd", "msmt"):
        raise ValueError(f"method must be 'csd' or 'msmt', got {method!r}")
    rule, (shell, order) = rule or PeakRule(), deconvolution_shell(table)
    inside = _brain(image, table) if mask is None else mask.bool().cpu()
    if tuple(inside.shape) != tuple(image.shape[1:]):
        raise ValueError(f"mask has shape {tuple(inside.shape)}, the scan {tuple(image.shape[1:])}")
    if not inside.any():
        raise ValueError("the brain mask is empty")
    if bad := int((~image.detach().cpu().as_subclass(Tensor)[:, inside].isfinite()).sum()):
        raise ValueError(f"{bad} measurements in the brain mask are NaN or infinite")
    metrics = _tensor_maps(image, table, inside)
    fa, md = (value[0, 0] * inside for value in (metrics.fa, metrics.md))
    signal = image.detach().cpu().as_subclass(Tensor).movedim(0, -1).double().numpy()
    white = most_anisotropic(fa.numpy(), inside.numpy(), rule.response_voxels)
    if method == "csd":
        model, part = single_shell_model(signal, table, white, shell, order)
    else:
        tissue = (fa.numpy(), md.numpy(), inside.numpy())
        model, part = multi_tissue_model(signal, table, white, tissue, order, rule.response_voxels)
    directions, values = find_peaks(model, part, inside.numpy(), white, rule)
    return _labels(directions, values, fa)


def _labels(directions: np.ndarray, values: np.ndarray, fa: Tensor) -> FibreLabels:
    found = np.isfinite(values) & (values > 0)
    peaks = np.where(found[..., None], directions * values[..., None], np.nan)
    return FibreLabels(
        npeaks=torch.from_numpy(found.sum(-1).astype(np.uint8)),
        peaks_world=torch.from_numpy(peaks.reshape(*peaks.shape[:3], -1)).movedim(-1, 0).float(),
        fa=fa,
    )


def _tensor_maps(image: Tensor, table: GradientTable, inside: Tensor) -> TensorMetrics:
    """Metrics of the tensor inside the mask, from the shells of :func:`tensor_volumes`."""
    rows = tensor_volumes(table)
    if rows is None:
        raise ValueError("no choice of shells has the 6 directions that a tensor needs")
    part = table.select(rows)
    tensor = fit_tensor(image[None, rows], part.bvals[None], part.bvecs[None], brain=inside[None, None])
    return tensor_metrics(tensor)


def _brain(image: Tensor, table: GradientTable) -> Tensor:
    return brain_mask(mean_b0(image.as_subclass(Tensor), table.bvals, table.b0_threshold)).cpu()
