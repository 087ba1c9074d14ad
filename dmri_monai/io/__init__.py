"""Read and write diffusion scans: NIfTI with FSL, BIDS, HCP or MRtrix gradient tables, and harmonic images.

Only ValueError, TypeError and OSError leave these functions, and each names the file.
"""

from dmri_monai.lazy import lazy_names

__all__ = [
    "read_dwi",
    "read_harmonics",
    "read_nifti",
    "sample_subjects",
    "scans",
    "subjects",
    "write_dwi",
    "write_harmonics",
    "write_nifti",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "read_dwi": "dwi",
        "read_harmonics": "harmonic_images",
        "read_nifti": "nifti",
        "sample_subjects": "datasets",
        "scans": "datasets",
        "subjects": "datasets",
        "write_dwi": "dwi",
        "write_harmonics": "harmonic_images",
        "write_nifti": "writing",
    },
)
