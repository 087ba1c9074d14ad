"""How kernels are applied: hidden behind `build_operator`, which turns a kernel into the module that a layer calls."""

from dmri_monai.equivariant.pq.contraction.composite import build_operator
from dmri_monai.equivariant.pq.contraction.interface import (
    STRATEGY_NAMES,
    ConvOptions,
    KernelContext,
    Operator,
)

__all__ = ["STRATEGY_NAMES", "ConvOptions", "KernelContext", "Operator", "build_operator"]
