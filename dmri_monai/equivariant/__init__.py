"""Layers equivariant to joint rotations of an image and its diffusion directions: SO(3) or O(3), p- and q-space.

Fields are (N, irreps.dim, [Q,] X, Y, Z) in e3nn's channel order; axes and vector components are (x, y, z).
"""

from dmri_monai.equivariant.blocks import (
    EquivariantDropout,
    Invariants,
    SteerableBlock,
    SteerableResidualBlock,
)
from dmri_monai.equivariant.conv import SteerableConv3d
from dmri_monai.equivariant.gate import Gate, NormActivation
from dmri_monai.equivariant.kernel.radial import Bessel, Cosine, Gaussian, RadialMLP
from dmri_monai.equivariant.neighbour_attention import NeighbourAttention
from dmri_monai.equivariant.norm import EquivariantBatchNorm, EquivariantInstanceNorm, NormGate
from dmri_monai.equivariant.pq import (
    Concat,
    PQConv3d,
    PQDiff,
    PQTensorProduct,
    PSpace,
    QLengthWeightedMean,
    QMean,
    QSpace,
    Sum,
)
from dmri_monai.equivariant.resample import EquivariantAvgPool3d, EquivariantUpsample3d
from dmri_monai.equivariant.shell_encoder import ShellEncoder
from dmri_monai.equivariant.sphere_activation import SphereActivation
from dmri_monai.so3 import as_irreps, irreps_from_multiplicities, representation_matrix

__all__ = [
    "Bessel",
    "Concat",
    "Cosine",
    "EquivariantAvgPool3d",
    "EquivariantBatchNorm",
    "EquivariantDropout",
    "EquivariantInstanceNorm",
    "EquivariantUpsample3d",
    "Gate",
    "Gaussian",
    "Invariants",
    "NeighbourAttention",
    "NormActivation",
    "NormGate",
    "PQConv3d",
    "PQDiff",
    "PQTensorProduct",
    "PSpace",
    "QLengthWeightedMean",
    "QMean",
    "QSpace",
    "RadialMLP",
    "ShellEncoder",
    "SphereActivation",
    "SteerableBlock",
    "SteerableConv3d",
    "SteerableResidualBlock",
    "Sum",
    "as_irreps",
    "irreps_from_multiplicities",
    "representation_matrix",
]
