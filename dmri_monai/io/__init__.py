"""Read and write diffusion scans: NIfTI with gradient tables of many kinds, and harmonic images.

Each foreign convention has a file of its own: `fsl`, `dipy`, `mrtrix`, `hcp`, `bids`, `qsiprep`, `nifti`,
`json_sidecar`.

Only ValueError, TypeError and OSError leave these functions, and each names the file.
"""

from dmri_monai.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "read_dwi": "dwi",
        "read_harmonics": "harmonic_images",
        "read_nifti": "nifti_volumes",
        "read_parts": "dwi",
        "sample_subjects": "datasets",
        "scans": "datasets",
        "subjects": "datasets",
        "write_dwi": "dwi",
        "write_harmonics": "harmonic_images",
        "write_nifti": "writing",
    },
)
