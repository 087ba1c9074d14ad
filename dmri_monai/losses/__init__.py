"""Losses that know the structure of dMRI labels and channels.

For tissue (Dice + cross entropy) and lesions (Dice + focal) MONAI's `DiceCELoss` and `DiceFocalLoss` do;
`CountedVoxelsLoss` restricts them to the voxels that count.
"""

from dmri_monai.losses.axial import AxialLoss
from dmri_monai.losses.crossing_count import CrossingsLoss
from dmri_monai.losses.density_error import DensityLoss
from dmri_monai.losses.harmonic_reconstruction import HarmonicReconstructionLoss
from dmri_monai.losses.own_shells import OwnShellsReconstructionLoss
from dmri_monai.losses.signal_deconvolution import SphericalDeconvolutionLoss
from dmri_monai.losses.signal_reconstruction import MaskedReconstructionLoss, SignalReconstructionLoss
from dmri_monai.losses.soft_fractions import FractionsLoss
from dmri_monai.losses.voxels import CountedVoxelsLoss, LesionBCELoss, OneHotL1Loss

__all__ = [
    "AxialLoss",
    "CountedVoxelsLoss",
    "CrossingsLoss",
    "DensityLoss",
    "FractionsLoss",
    "HarmonicReconstructionLoss",
    "LesionBCELoss",
    "MaskedReconstructionLoss",
    "OneHotL1Loss",
    "OwnShellsReconstructionLoss",
    "SignalReconstructionLoss",
    "SphericalDeconvolutionLoss",
]
