"""Labels of a real scan by constrained spherical deconvolution: number of fibre peaks, peak directions, FA.

They let the crossing and orientation tasks be trained on real data, and are written like the phantom's ground
truth.  Needs DIPY alone.
"""

from dmri_monai.lazy import lazy_names

__all__ = ["Labels", "PeakRule", "fibre_labels", "write_labels"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PeakRule": "deconvolution",
        "write_labels": "fibre_label_files",
        "Labels": "fibres",
        "fibre_labels": "fibres",
    },
)
