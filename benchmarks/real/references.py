"""What the methods are compared with: deconvolution of all measurements of a scan, by MRtrix3 where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from monai.data import MetaTensor
from torch import Tensor

from benchmarks.real import rivals
from benchmarks.real.rivals import RULE, Found, Scan
from dmri_monai.io import read_harmonics, write_dwi
from dmri_monai.io.writing import write_nifti
from dmri_monai.qspace.peaks import harmonic_peaks

MIN_DIRECTIONS = 6
MIN_VOXELS = 5000  # dwi2response dhollander chooses percentages of the mask
ANISOTROPIC = 0.25  # FA


def reference_of(scan: Scan, cache: Path | None) -> tuple[Found, Tensor]:
    """The reference and the (V,) voxels of white matter; computed once where `cache` names a file."""
    if cache is not None and cache.exists():
        stored = torch.load(cache, weights_only=True)
        return Found(**stored["found"]), stored["white"]
    several = sum(len(shell.indices) >= MIN_DIRECTIONS for shell in scan.table.shells()) > 1
    found = (
        _mrtrix(scan)
        if several and _suits_mrtrix(scan)
        else rivals.msmt(scan)
        if several
        else rivals.csd(scan)
    )
    assert found.number is not None
    if found.fractions is None:
        white = scan.tensor().fa[0, 0][scan.mask] > ANISOTROPIC
    else:
        white = found.fractions[:, 0] > 0.5
    white = white & (found.number > 0)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"found": vars(found), "white": white}, cache)
    return found, white


def _suits_mrtrix(scan: Scan) -> bool:
    return shutil.which("dwi2fod") is not None and int(scan.mask.sum()) >= MIN_VOXELS


def _mrtrix(scan: Scan) -> Found:
    """`dwi2response dhollander` and `dwi2fod msmt_csd` on all shells; peaks by the project's rule."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_dwi(folder / "dwi.nii.gz", MetaTensor(scan.image, affine=scan.affine), scan.table)
        write_nifti(folder / "mask.nii.gz", scan.mask.to(torch.uint8), scan.affine)
        _run(folder, "mrconvert dwi.nii.gz -fslgrad dwi.bvec dwi.bval dwi.mif")
        _run(folder, "dwi2response dhollander dwi.mif wm.txt gm.txt csf.txt -mask mask.nii.gz -erode 0")
        _run(folder, "dwi2fod msmt_csd dwi.mif wm.txt wm.nii gm.txt gm.nii csf.txt csf.nii -mask mask.nii.gz")
        wm, gm, csf = (
            read_harmonics(folder / f"{t}.nii").as_tensor()[:, scan.mask] for t in ("wm", "gm", "csf")
        )
    fractions = torch.stack([wm[0], gm[0], csf[0]], dim=1).clamp(min=0)
    fractions = fractions / fractions.sum(1, keepdim=True).clamp(min=1e-6)
    white = torch.from_numpy(rivals.white_voxels(scan))[scan.mask]
    largest = harmonic_peaks(wm[:, white], count=1).amplitudes[:, 0].median()
    peaks = harmonic_peaks(
        wm,
        relative=RULE.relative,
        absolute=RULE.absolute * float(largest),
        separation_degrees=RULE.separation_degrees,
    )
    return Found(peaks.directions.float(), peaks.number, fractions, fractions.argmax(1))


def _run(folder: Path, command: str) -> None:
    subprocess.run([*command.split(), "-quiet", "-nthreads", "0"], cwd=folder, check=True)
