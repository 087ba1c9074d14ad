"""`VoxelwiseNet`: fibre orientation density and tissue fractions of each voxel on its own, from any shells."""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.shell_encoder import ShellEncoder
from dmri_monai.equivariant.sphere_activation import Pointwise, SphereActivation

__all__ = ["SphereBlock", "VoxelwiseNet"]

L_MAX = 8  # of the orientation density
FRACTIONS = 4  # white matter, grey matter, CSF, other


class SphereBlock(nn.Module):
    """Residual step of scalars and functions at each voxel: the scalars read the powers, then steer the sphere.

    forward: scalars (B, P, V), functions (B, K, n_in, V) -> (B, P, V), (B, K, 45, V).
    """

    def __init__(self, channels: int, scalars: int, hidden: int, l_in: int) -> None:
        super().__init__()
        self.channels, self.sizes = channels, [2 * degree + 1 for degree in range(0, l_in + 1, 2)]
        self.grown = sum(2 * degree + 1 for degree in range(l_in + 2, L_MAX + 1, 2))
        features = scalars + channels * len(self.sizes)
        self.read = nn.Sequential(
            Pointwise(features, 2 * scalars), nn.SiLU(), Pointwise(2 * scalars, scalars)
        )
        self.sphere = SphereActivation(
            _functions(channels, l_in), _functions(channels, L_MAX), hidden=hidden, scalars=scalars
        )
        self.keep = Pointwise(scalars, channels * len(self.sizes))

    def forward(self, scalars: Tensor, functions: Tensor) -> tuple[Tensor, Tensor]:
        scalars = bounded(scalars + self.read(torch.cat([scalars, powers(functions, self.sizes)], dim=1)))
        changed = self.sphere.on_functions(functions, scalars)
        kept = weighted(functions, self.keep(scalars), self.sizes)
        if self.grown:
            gap = kept.new_zeros(kept.shape[0], kept.shape[1], self.grown, kept.shape[3])
            kept = torch.cat([kept, gap], dim=2)
        return scalars, kept + changed


class VoxelwiseNet(nn.Module):
    """Encoder of shells, three steps on the sphere, heads.

    forward: (B, C, ...) as :class:`ShellEncoder` takes it, any number of slots and of voxel axes ->
    (B, 45 + 4, ...): orthonormal even harmonics to l = 8 of the fibre orientation density, in the frame of the input,
    then the volume fractions of white matter, grey matter, CSF and anything else, which sum to 1.  The mass of the
    density is the white-matter fraction.
    """

    def __init__(
        self, channels: int = 16, scalars: int = 32, hidden: int = 32, blocks: int = 3, l_shells: int = 6
    ) -> None:
        super().__init__()
        self.encoder = ShellEncoder(channels, scalars=scalars, l_max=l_shells)
        self.blocks = nn.ModuleList(
            SphereBlock(channels, scalars, hidden, l_shells if i == 0 else L_MAX) for i in range(blocks)
        )
        self.sizes = [2 * degree + 1 for degree in range(0, L_MAX + 1, 2)]
        features = scalars + channels * len(self.sizes)
        self.read = nn.Sequential(
            Pointwise(features, 2 * scalars), nn.SiLU(), Pointwise(2 * scalars, scalars)
        )
        self.gates = Pointwise(scalars, channels * len(self.sizes))
        self.fractions = Pointwise(scalars, FRACTIONS)

    def forward(self, shells: Tensor) -> Tensor:
        flat = shells.T.unsqueeze(0) if shells.ndim == 2 else shells.flatten(2)
        if torch.is_grad_enabled() or flat.shape[2] <= CHUNK:
            out = self.predict(flat)
        else:
            out = torch.cat([self.predict(part) for part in flat.split(CHUNK, dim=2)], dim=2)
        return out[0].T if shells.ndim == 2 else out.unflatten(2, shells.shape[2:])

    def predict(self, shells: Tensor) -> Tensor:
        """(B, C, V) -> (B, 49, V)."""
        scalars, functions = self.features(shells)
        fractions = self.fractions(scalars).float().softmax(dim=1)
        mixed = weighted(functions, self.gates(scalars), self.sizes).sum(1)
        mass = fractions[:, :1] / sqrt(4 * pi)
        return torch.cat([mass, mixed[:, 1:].to(mass.dtype), fractions], dim=1)

    def features(self, shells: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, V) -> scalars (B, P, V) and functions (B, K, 45, V) after the last step."""
        scalars, functions = self.encoder.encode(shells)
        for block in self.blocks:
            scalars, functions = block(scalars, functions)
        scalars = bounded(scalars + self.read(torch.cat([scalars, powers(functions, self.sizes)], dim=1)))
        return scalars, functions


CHUNK = 2048  # voxels at a time where no gradient is wanted: values on the sphere stay in the cache


def _functions(channels: int, l_max: int) -> str:
    return "+".join(f"{channels}x{degree}e" for degree in range(0, l_max + 1, 2))


def bounded(scalars: Tensor) -> Tensor:
    """Scalars (B, P, V) of a root mean square below 1 at each voxel: without a bound, products of them run away."""
    return scalars * torch.rsqrt(scalars.square().mean(1, keepdim=True) + 1.0)


def powers(functions: Tensor, sizes: list[int]) -> Tensor:
    """(B, K L, V) invariants of functions (B, K, n, V): the mean itself, and the root power of higher degrees."""
    parts = functions.split(sizes, dim=2)
    found = [parts[0].squeeze(2)]
    for part in parts[1:]:
        found.append((part.square().sum(2) + 1e-5).sqrt())
    return torch.cat(found, dim=1)


def weighted(functions: Tensor, gates: Tensor, sizes: list[int]) -> Tensor:
    """Functions (B, K, n, V) with each degree of each channel times its gate, gates (B, K L, V)."""
    parts, factors = functions.split(sizes, dim=2), gates.unflatten(1, [functions.shape[1], len(sizes)])
    scaled = [part * factors[:, :, i].unsqueeze(2) for i, part in enumerate(parts)]
    return torch.cat(scaled, dim=2)
