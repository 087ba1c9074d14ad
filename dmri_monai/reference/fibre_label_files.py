"""Labels as NIfTI derivatives in BIDS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai.data.meta_tensor import MetaTensor
from torch import Tensor

import dmri_monai
from dmri_monai.gradients import B0_THRESHOLD
from dmri_monai.io import read_dwi, read_nifti, write_nifti
from dmri_monai.io.sidecars import BvecsChoice
from dmri_monai.io.writing import replacing
from dmri_monai.reference.deconvolution import PeakRule
from dmri_monai.reference.fibres import FibreLabels, Method, fibre_labels
from dmri_monai.transforms.same_grid import check_same_grid

__all__ = ["write_labels"]


def write_labels(
    scan_path: str | Path,
    out_dir: str | Path,
    *,
    mask_path: str | Path | None = None,
    rule: PeakRule | None = None,
    method: Method = "csd",
    bvecs: BvecsChoice = "auto",
    b0_threshold: float = B0_THRESHOLD,
) -> dict[str, Path]:
    """Compute the labels of a scan and write them as derivatives; returns {"npeaks", "peaks", "fa"} -> path.

    `sub-01[/ses-1]/dwi/sub-01_..._dwi.nii.gz` gives
    `out_dir/sub-01[/ses-1]/dwi/sub-01_..._{npeaks,peaks,FA}.nii.gz` with JSON sidecars; a scan outside BIDS
    is written into `out_dir` itself.  mask_path: brain mask (X, Y, Z); without one the mask is
    :func:`dmri_monai.qspace.b0.brain_mask`.  method: as in :func:`fibre_labels`.
    bvecs, b0_threshold: as of :func:`dmri_monai.io.read_dwi`.
    Raises ValueError, TypeError or OSError naming the file.
    """
    scan_path, out_dir, rule = Path(scan_path), Path(out_dir), rule or PeakRule()
    image, table = read_dwi(scan_path, bvecs=bvecs, b0_threshold=b0_threshold)
    mask = _read_mask(mask_path, image) if mask_path else None
    try:
        labels = fibre_labels(image.as_tensor(), table, mask=mask, rule=rule, method=method)
    except ValueError as error:
        raise ValueError(f"{error} in {scan_path}") from error
    folder, prefix = _destination(scan_path, out_dir)
    paths = {}
    for name, (volume, sidecar) in _described(labels).items():
        path = folder / f"{prefix}_{name}.nii.gz"
        write_nifti(path, volume, image.affine)
        content = {**sidecar, "Sources": [scan_path.name], "Deconvolution": method, "PeakRule": vars(rule)}
        _write_json(folder / f"{prefix}_{name}.json", content)
        paths[name.lower()] = path
    _describe(out_dir)
    return paths


def _described(labels: FibreLabels) -> dict[str, tuple[Tensor, dict[str, str]]]:
    """What is written of each label: its volume and its sidecar."""
    peaks = {
        "Description": "Fibre peaks, x y z per peak, largest first; NaN where there is none",
        "ReferenceFrame": "world RAS+",
        "Amplitude": "vector length is the amplitude of the fibre orientation distribution",
    }
    return {
        "npeaks": (labels.npeaks, {"Description": "Number of fibre peaks, 0 to 3"}),
        "peaks": (labels.peaks_world, peaks),
        "FA": (labels.fa, {"Description": "Fractional anisotropy, weighted least squares"}),
    }


def _read_mask(path: str | Path, image: MetaTensor) -> Tensor:
    mask = read_nifti(path)
    check_same_grid(image, mask, "mask", "labels")
    inside: Tensor = mask.as_tensor()[0] > 0
    return inside


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
    with replacing(path) as (temporary,):
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
