"""Dictionary transforms for diffusion MRI, in MONAI's style."""

from dmri_monai.transforms.collate import collate_dwi
from dmri_monai.transforms.frames import ToVoxelFramed, check_voxel_frame, voxel_rotation
from dmri_monai.transforms.harmonics import NormalizeByB0d, SphericalHarmonicsd
from dmri_monai.transforms.load import LoadDWId

__all__ = [
    "LoadDWId",
    "NormalizeByB0d",
    "SphericalHarmonicsd",
    "ToVoxelFramed",
    "check_voxel_frame",
    "collate_dwi",
    "voxel_rotation",
]
