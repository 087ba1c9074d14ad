"""Labels of a real scan by constrained spherical deconvolution: number of fibre peaks, peak directions, FA.

They let the crossing and orientation tasks be trained on real data, and are written like the phantom's ground
truth.  Needs DIPY alone.
"""

from dmri_monai.reference.baselines import KMeansTissue, MatchClustersd, ShuffleBVecsd
from dmri_monai.reference.deconvolution import PeakRule
from dmri_monai.reference.fibre_label_files import write_labels
from dmri_monai.reference.fibres import FibreLabels, fibre_labels

__all__ = [
    "FibreLabels",
    "KMeansTissue",
    "MatchClustersd",
    "PeakRule",
    "ShuffleBVecsd",
    "fibre_labels",
    "write_labels",
]
