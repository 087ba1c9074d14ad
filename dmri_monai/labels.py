"""Labels of a real scan by constrained spherical deconvolution: number of fibre peaks, peak directions, FA.

They let the crossing and orientation tasks be trained on real data, and are written like the phantom's ground
truth. Needs DIPY alone.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dmri_monai
from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi, read_nifti, write_nifti
from dmri_monai.qspace.basis import even_orders, n_coefficients
from dmri_monai.qspace.harmonics import mean_b0
from dmri_monai.qspace.tensor import fit_tensor, tensor_metrics

__all__ = ["Labels", "PeakRule", "fibre_labels", "write_labels"]

GAUSSIAN_B_MAX = 1600.0  # s/mm²: above it the signal is no longer that of one tensor
MAX_PEAKS = 3


@dataclass(frozen=True)
class PeakRule:
    """What counts as a peak of the fibre orientation distribution (our choice, no published standard).

    relative: of the voxel's largest peak; absolute: of the median largest peak of the single-fibre voxels;
    separation_degrees: between two peaks.  response_voxels: number of voxels of highest FA for the response.
    """

    relative: float = 0.3
    absolute: float = 0.2
    separation_degrees: float = 25.0
    response_voxels: int = 300


@dataclass(frozen=True)
class Labels:
    """npeaks (X, Y, Z) uint8, 0-3; peaks_world (9, X, Y, Z), largest first, NaN for none; fa (X, Y, Z)."""

    npeaks: Tensor
    peaks_world: Tensor
    fa: Tensor


def write_labels(
    scan_path: str | Path,
    out_dir: str | Path,
    *,
    mask_path: str | Path | None = None,
    rule: PeakRule | None = None,
) -> dict[str, Path]:
    """Compute the labels of a scan and write them as derivatives; returns {"npeaks", "peaks", "fa"} -> path.

    `sub-01[/ses-1]/dwi/sub-01_..._dwi.nii.gz` gives
    `out_dir/sub-01[/ses-1]/dwi/sub-01_..._{npeaks,peaks,FA}.nii.gz` with JSON sidecars; a scan outside BIDS
    is written into `out_dir` itself.  mask_path: brain mask (X, Y, Z), by
    default DIPY's median_otsu of the mean b0.  Raises ValueError, TypeError or OSError naming the file.
    """
    scan_path, out_dir, rule = Path(scan_path), Path(out_dir), rule or PeakRule()
    image, table = read_dwi(scan_path)
    mask = _read_mask(mask_path, tuple(image.shape[1:])) if mask_path else None
    try:
        labels = fibre_labels(image.as_tensor(), table, mask=mask, rule=rule)
    except ValueError as error:
        raise ValueError(f"{error} in {scan_path}") from error
    folder, prefix = _destination(scan_path, out_dir)
    described = {
        "npeaks": (labels.npeaks, {"Description": "Number of fibre peaks, 0 to 3"}),
        "peaks": (
            labels.peaks_world,
            {
                "Description": "Fibre peaks, x y z per peak, largest first; NaN where there is none",
                "ReferenceFrame": "world RAS+",
                "Amplitude": "vector length is the amplitude of the fibre orientation distribution",
            },
        ),
        "FA": (labels.fa, {"Description": "Fractional anisotropy, weighted least squares"}),
    }
    paths = {}
    for name, (volume, sidecar) in described.items():
        path = folder / f"{prefix}_{name}.nii.gz"
        write_nifti(path, volume, image.affine)
        content = {**sidecar, "Sources": [scan_path.name], "PeakRule": vars(rule)}
        _write_json(folder / f"{prefix}_{name}.json", content)
        paths[name.lower()] = path
    _describe(out_dir)
    return paths


def fibre_labels(
    image: Tensor, table: GradientTable, *, mask: Tensor | None = None, rule: PeakRule | None = None
) -> Labels:
    """Labels of raw volumes `image` (N, X, Y, Z) with their `table`; `mask` (X, Y, Z) bool.

    Constrained spherical deconvolution of the shell that resolves the highest order, the higher b where two
    do (Tournier 2007, doi:10.1016/j.neuroimage.2007.02.016), by DIPY; FA from the volumes up to b = 1600.
    Raises ValueError for a scan without b0, or whose shells have fewer than 15 directions.
    """
    rule, rows, order = rule or PeakRule(), *_deconvolution_rows(table)
    inside = _otsu_mask(image, table) if mask is None else mask.bool().cpu()
    if not inside.any():
        raise ValueError("the brain mask is empty")
    fa = _fa(image, table, inside)
    sub, signal = table.select(rows), image[rows].movedim(0, -1).double().numpy()
    directions, values = _csd_peaks(signal, sub, inside.numpy(), fa.numpy(), order, rule)
    found = np.isfinite(values) & (values > 0)
    peaks = np.where(found[..., None], directions * values[..., None], np.nan)
    return Labels(
        npeaks=torch.from_numpy(found.sum(-1).astype(np.uint8)),
        peaks_world=torch.from_numpy(peaks.reshape(*peaks.shape[:3], -1)).movedim(-1, 0).float(),
        fa=fa,
    )


def _deconvolution_rows(table: GradientTable) -> tuple[Tensor, int]:
    """Indices of the b0 volumes and one shell, and the order its directions resolve, at most 8."""
    if not table.b0_mask.any():
        raise ValueError(f"no b0 volume (b <= {table.b0_threshold:g} s/mm²)")
    best, order = None, 0
    for shell in table.shells():
        resolved = max((k for k in even_orders(8) if n_coefficients(k) <= len(shell.indices)), default=0)
        if resolved >= max(order, 4):
            best, order = shell, resolved
    if best is None:
        most = max((len(shell.indices) for shell in table.shells()), default=0)
        raise ValueError(f"the largest shell has {most} directions, deconvolution needs at least 15")
    b0 = torch.nonzero(table.b0_mask).flatten()
    return torch.cat([b0, best.indices]).sort().values, order


def _csd_peaks(
    signal: np.ndarray, table: GradientTable, mask: np.ndarray, fa: np.ndarray, order: int, rule: PeakRule
) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z, 3, 3) unit world directions and (X, Y, Z, 3) amplitudes, NaN for none."""
    from dipy.core.gradients import gradient_table
    from dipy.data import default_sphere
    from dipy.direction import peaks_from_model
    from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel, response_from_mask_ssst

    gradients = gradient_table(
        table.bvals.numpy(), bvecs=table.bvecs.numpy(), b0_threshold=table.b0_threshold
    )
    sphere = default_sphere.subdivide(n=1)  # points some 4 degrees apart: peaks are found among them
    single = _most_anisotropic(fa, mask, rule.response_voxels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on DIPY's coming change of its default basis
        response, _ = response_from_mask_ssst(gradients, signal, single)
        model = ConstrainedSphericalDeconvModel(gradients, response, sh_order_max=order)
        result: Any = peaks_from_model(
            model, signal, sphere, rule.relative, rule.separation_degrees, mask=mask, npeaks=MAX_PEAKS
        )
    values = np.where(result.peak_values > 0, result.peak_values, np.nan)
    reference = np.nanmedian(values[single, 0])
    return result.peak_dirs, np.where(values >= rule.absolute * reference, values, np.nan)


def _most_anisotropic(fa: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """(X, Y, Z) bool: the `count` voxels of highest FA in the mask, at most a tenth; FA near 1 is noise."""
    candidates = np.where(mask & (fa < 0.95), fa, -1.0)
    n = max(1, min(count, int(mask.sum()) // 10))
    threshold = np.sort(candidates, axis=None)[-n]
    return (candidates >= threshold) & (candidates > 0)


def _fa(image: Tensor, table: GradientTable, inside: Tensor) -> Tensor:
    """(X, Y, Z) FA inside the mask, from low b-values where they suffice for a tensor, else from all."""
    for rows in (table.bvals <= GAUSSIAN_B_MAX, torch.ones_like(table.bvals, dtype=torch.bool)):
        if int((rows & ~table.b0_mask).sum()) >= 6:
            part = table.select(rows)
            tensor = fit_tensor(
                image[None, rows], part.bvals[None], part.bvecs[None], brain=inside[None, None]
            )
            return tensor_metrics(tensor).fa[0, 0] * inside
    raise ValueError("fewer than 6 directions: no tensor can be fitted")


def _otsu_mask(image: Tensor, table: GradientTable) -> Tensor:
    from dipy.segment.mask import median_otsu

    b0 = mean_b0(image, table.bvals, table.b0_threshold).numpy()
    return torch.from_numpy(np.asarray(median_otsu(b0, median_radius=2, numpass=2)[1], dtype=bool))


def _read_mask(path: str | Path, shape: tuple[int, ...]) -> Tensor:
    mask = read_nifti(path).as_tensor()[0] > 0
    if tuple(mask.shape) != shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, the scan {shape}: {path}")
    return mask


def _destination(scan_path: Path, out_dir: Path) -> tuple[Path, str]:
    """Folder and prefix of the outputs: BIDS sub-folders are mirrored from the subject on."""
    prefix = scan_path.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_dwi")
    parts = scan_path.resolve().parent.parts
    subject = [i for i, part in enumerate(parts) if part.startswith("sub-")]
    return (out_dir.joinpath(*parts[subject[-1] :]) if subject else out_dir), prefix


def _describe(out_dir: Path) -> None:
    path = out_dir / "dataset_description.json"
    if not path.exists():
        generator = [{"Name": "dmri_monai", "Version": dmri_monai.__version__}]
        _write_json(
            path,
            {
                "Name": "Fibre labels",
                "BIDSVersion": "1.10.0",
                "DatasetType": "derivative",
                "GeneratedBy": generator,
            },
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
