"""Convolution over voxels and gradient samples together, for any gradient table.

`PQConv3d` is the layer; a kernel (`PSpace`, `QSpace`, `PQTensorProduct`, `PQDiff`, or a `Sum` or `Concat` of them) says
how the map between two samples depends on their offsets; `QMean` and `QLengthWeightedMean` end q-space.  `contraction`
alone knows how a kernel is applied.
"""

from dmri_monai.equivariant.pq.kernels import Concat, Kernel, PQDiff, PQTensorProduct, PSpace, QSpace, Sum
from dmri_monai.equivariant.pq.pqconv import PQConv3d
from dmri_monai.equivariant.pq.reduction import QLengthWeightedMean, QMean

__all__ = [
    "Concat",
    "Kernel",
    "PQConv3d",
    "PQDiff",
    "PQTensorProduct",
    "PSpace",
    "QLengthWeightedMean",
    "QMean",
    "QSpace",
    "Sum",
]
