"""Spherical deconvolution as a loss: right numbers, least at the truth in the network's frame, and it finds fibres."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.csdeconv import AxSymShResponse, ConstrainedSphericalDeconvModel
from dipy.reconst.shm import convert_sh_descoteaux_tournier  # noqa: F401  the legacy basis is chosen below
from monai.data import MetaTensor
from torch.nn.functional import normalize
from torch.testing import assert_close

from dmri_monai.gradients import GradientTable
from dmri_monai.losses import SphericalDeconvolutionLoss
from dmri_monai.losses.signal_deconvolution import determined_shares
from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.phantom.voxel_signals import draw_voxels, noisy, simulate_voxels
from dmri_monai.qspace.conventions import to_basis
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.fibre_density import density_of_peaks
from dmri_monai.qspace.irreps_rotation import irreps_rotation
from dmri_monai.qspace.peaks import harmonic_peaks
from dmri_monai.qspace.shell_response import NOMINAL, nominal_response
from dmri_monai.qspace.shell_set import shell_channels, shell_irreps, shell_set
from dmri_monai.testing import cube_rotations
from dmri_monai.transforms import SphericalHarmonicsd
