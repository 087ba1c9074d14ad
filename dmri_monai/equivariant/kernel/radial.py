"""Radial bases: how a kernel depends on a length. A spec is a frozen value, `RadialFunctions` evaluates it.

Lengths are in units of the kernel's half width (p-space) or of the model's largest |q| (q-space).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sqrt
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Bessel", "Cosine", "Gaussian", "Radial", "RadialFunctions", "RadialMLP"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class RadialMLP:
    """Bias-free fully connected net on top of a radial basis: one layer of each width in `units`, each activated."""

    units: tuple[int, ...] = (50, 50, 50)
    activation: Literal["relu", "silu", "tanh"] = "relu"

    def __post_init__(self) -> None:
        if not self.units or min(self.units) < 1:
            raise ValueError(f"RadialMLP: units must be positive widths, got {self.units}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"RadialMLP: activation {self.activation!r} is none of {sorted(ACTIVATIONS)}")


@dataclass(frozen=True)
class Radial:
    """`n` functions of a length r on [0, r_max], optionally mixed by `mlp`.

    n: number of functions; None: (k + 1) // 2 for a p-kernel of size k, 3 for q.
    r_max: where the last centre lies; None: 1 (2 for Bessel, whose functions vanish at r_max).
    """

    n: int | None = None
    r_max: float | None = None
    mlp: RadialMLP | None = None

    default_r_max = 1.0

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ValueError(f"{type(self).__name__}: n must be at least 1, got {self.n}")
        if self.r_max is not None and not self.r_max > 0:
            raise ValueError(f"{type(self).__name__}: r_max must be positive, got {self.r_max}")

    def resolved(self, n_default: int) -> Radial:
        """The same basis with its number of functions filled in."""
        return type(self)(self.n or n_default, self.r_max or self.default_r_max, self.mlp)

    def _centres(self, r: Tensor) -> tuple[Tensor, float]:
        assert self.n is not None
        assert self.r_max is not None
        step = self.r_max / max(self.n - 1, 1)
        return torch.arange(self.n, device=r.device, dtype=r.dtype) * step, step

    def __call__(self, r: Tensor) -> Tensor:
        """(..., n) values at lengths `r` (...)."""
        raise NotImplementedError


class Gaussian(Radial):
    """exp(-((r - mu_j) / 0.8 s)²) / 1.4231 with n centres mu_j from 0 to r_max, s apart."""

    def __call__(self, r: Tensor) -> Tensor:
        centres, step = self._centres(r)
        return torch.exp(-(((r.unsqueeze(-1) - centres) / (0.8 * step)) ** 2)) / 1.423085244900308


class Cosine(Radial):
    """cos²(pi/2 (r - mu_j) / s) within one step s of each of n centres mu_j from 0 to r_max, else 0."""

    def __call__(self, r: Tensor) -> Tensor:
        centres, step = self._centres(r)
        return torch.cos(pi / 2 * ((r.unsqueeze(-1) - centres) / step).clamp(-1, 1)) ** 2


class Bessel(Radial):
    """sqrt(2 / c) sin(j pi r / c) / r for j = 1..n inside the cut-off c = r_max, 0 beyond."""

    default_r_max = 2.0

    def __call__(self, r: Tensor) -> Tensor:
        assert self.n is not None
        assert self.r_max is not None
        order = torch.arange(1, self.n + 1, device=r.device, dtype=r.dtype)
        argument = r.unsqueeze(-1) * order / self.r_max  # torch.sinc carries the pi and the limit at 0
        values = sqrt(2 / self.r_max) * torch.sinc(argument) * order * pi / self.r_max
        return values * (r < self.r_max).to(r.dtype).unsqueeze(-1)


class RadialFunctions(nn.Module):
    """A radial basis with its optional MLP: lengths (...) -> (..., n_out)."""

    def __init__(self, radial: Radial) -> None:
        super().__init__()
        assert radial.n is not None, "resolve the radial basis first"
        self.radial = radial
        widths = [radial.n, *(radial.mlp.units if radial.mlp else ())]
        self.n_out = widths[-1]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(out, width) / sqrt(width))
            for width, out in zip(widths, widths[1:], strict=False)
        )

    def extra_repr(self) -> str:
        return repr(self.radial)

    def forward(self, r: Tensor) -> Tensor:
        values = self.radial(r)
        if self.radial.mlp is None:
            return values
        activation = ACTIVATIONS[self.radial.mlp.activation]
        for weight in self.weights:
            values = activation(nn.functional.linear(values, weight.to(values.dtype)))
        return values
