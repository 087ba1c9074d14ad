"""Read and write diffusion scans: NIfTI with gradient tables of many kinds, and harmonic images.

Each foreign convention has a file of its own: `fsl`, `dipy`, `mrtrix`, `hcp`, `bids`, `qsiprep`, `nifti`,
`json_sidecar`.

Only ValueError, TypeError and OSError leave these functions, and each names the file.
"""

from dmri_monai.io.datasets import sample_subjects, scans, subjects
from dmri_monai.io.dwi import read_dwi, read_parts, write_dwi
from dmri_monai.io.harmonic_images import read_harmonics, write_harmonics
from dmri_monai.io.nifti_volumes import read_nifti
from dmri_monai.io.writing import write_nifti

__all__ = [
    "read_dwi",
    "read_harmonics",
    "read_nifti",
    "read_parts",
    "sample_subjects",
    "scans",
    "subjects",
    "write_dwi",
    "write_harmonics",
    "write_nifti",
]
