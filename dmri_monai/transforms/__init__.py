"""Dictionary transforms for diffusion MRI, in MONAI's style: gradient directions stay right."""

from dmri_monai.artifacts.engine import corrupt, replay
from dmri_monai.transforms.artifacts import RandDWIArtifactsd
from dmri_monai.transforms.brain_body import KeepBrainBodyd
from dmri_monai.transforms.collate import collate_dwi
from dmri_monai.transforms.direction_frames import (
    DirectionsToVoxelFramed,
    DirectionsToWorldFramed,
    DyadsToPeaksd,
    PeaksToDyadsd,
    SwapLeftRightd,
    turn_directions,
)
from dmri_monai.transforms.elastic import RandElasticDWId
from dmri_monai.transforms.extracted_brain import FillExtractedBraind
from dmri_monai.transforms.frames import ToVoxelFramed, check_voxel_frame, voxel_rotation
from dmri_monai.transforms.guards import check_gradient_safe
from dmri_monai.transforms.load import LoadDWId, LoadHarmonicsd, LoadNiftid
from dmri_monai.transforms.random_rotation import RandRotateMMd
from dmri_monai.transforms.scan_maps import (
    BrainMaskd,
    ResampleDirectionsd,
    RotationInvariantsd,
    TensorMetricsd,
)
from dmri_monai.transforms.selection import RandDropShelld, RandSubsampleDirectionsd, SelectShellsd
from dmri_monai.transforms.spherical_harmonics import NormalizeByB0d, SphericalHarmonicsd
from dmri_monai.transforms.task_labels import (
    CheckLabeld,
    DensityLabeld,
    FractionLabeld,
    HarmonicsToPeaksd,
    HeadMaskd,
    IgnoreOutsided,
    LesionMapsd,
    LogitsToFractionsd,
)

__all__ = [
    "CheckLabeld",
    "DensityLabeld",
    "FractionLabeld",
    "HarmonicsToPeaksd",
    "HeadMaskd",
    "IgnoreOutsided",
    "LesionMapsd",
    "LogitsToFractionsd",
    "BrainMaskd",
    "DirectionsToVoxelFramed",
    "DirectionsToWorldFramed",
    "DyadsToPeaksd",
    "FillExtractedBraind",
    "KeepBrainBodyd",
    "LoadDWId",
    "LoadHarmonicsd",
    "LoadNiftid",
    "NormalizeByB0d",
    "PeaksToDyadsd",
    "RandDWIArtifactsd",
    "RandDropShelld",
    "RandElasticDWId",
    "RandRotateMMd",
    "RandSubsampleDirectionsd",
    "ResampleDirectionsd",
    "RotationInvariantsd",
    "SelectShellsd",
    "SphericalHarmonicsd",
    "SwapLeftRightd",
    "TensorMetricsd",
    "ToVoxelFramed",
    "check_gradient_safe",
    "check_voxel_frame",
    "collate_dwi",
    "corrupt",
    "replay",
    "turn_directions",
    "voxel_rotation",
]
