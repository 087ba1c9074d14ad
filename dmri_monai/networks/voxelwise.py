"""What can be said of each voxel on its own, from any shells: features, orientation density, tissue fractions.

All but `VoxelwiseNet` is also compiled by TorchScript, which knows neither globals nor `zip(strict=...)`.
"""

from __future__ import annotations

from math import pi, sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.shell_encoder import ShellEncoder
from dmri_monai.equivariant.sphere_activation import Pointwise, SphereActivation
from dmri_monai.networks.fibre_deconvolution import FibreDeconvolution
from dmri_monai.networks.voxels_first import CHUNK
from dmri_monai.so3 import as_irreps

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = [
    "BLOCKS",
    "CHANNELS",
    "HIDDEN",
    "L_MAX",
    "SCALARS",
    "SphereBlock",
    "SphereFeatures",
    "VoxelHead",
    "VoxelwiseNet",
]

CHANNELS, SCALARS, HIDDEN, BLOCKS = 8, 32, 16, 2  # by default
L_MAX = 8  # of the functions after the first step
SIZES = [2 * degree + 1 for degree in range(0, L_MAX + 1, 2)]
DENSITY = "+".join(f"1x{degree}e" for degree in range(0, L_MAX + 1, 2))
DECONVOLVED = 0.3  # share of the deconvolved density; `benchmarks/peak_rule.py` measures others
FRACTIONS = 4  # white matter, grey matter, CSF, other


class SphereBlock(nn.Module):
    """Residual step of scalars and functions at each voxel: the scalars read the powers, then steer the sphere.

    forward: scalars (B, P, V), functions (B, K, n_in, V) -> (B, P, V), (B, K, 45, V).
    """

    def __init__(self, channels: int, scalars: int, hidden: int, l_in: int) -> None:
        super().__init__()
        self.sizes = [2 * degree + 1 for degree in range(0, l_in + 1, 2)]
        self.read = _reader(channels * len(self.sizes), scalars)
        self.sphere = SphereActivation(
            _functions(channels, l_in), _functions(channels, L_MAX), hidden=hidden, scalars=scalars
        )
        self.keep = Pointwise(scalars, channels * len(self.sizes))

    def forward(self, scalars: Tensor, functions: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.cat([scalars, powers(functions, self.sizes)], dim=1)
        scalars = bounded(scalars + self.read(found))
        out, start = self.sphere.on_functions(functions, scalars), 0
        gates = self.keep(scalars).unflatten(1, [len(self.sizes), functions.shape[1]]).to(out.dtype)
        for i, size in enumerate(self.sizes):  # each degree of each channel, times its gate
            part = functions[:, :, start : start + size].to(out.dtype)
            out[:, :, start : start + size].addcmul_(part, gates[:, i].unsqueeze(2))
            start += size
        return scalars, out


class SphereFeatures(nn.Module):
    """The encoder of shells and `blocks` steps on the sphere.

    deconvolution: whether the last of the functions that the steps begin with, and a further one after them, is the
    density that :class:`FibreDeconvolution` finds; the shells must then be rescaled to the nominal response.
    forward: (B, C, V) as :class:`ShellEncoder` takes it -> scalars (B, P, V) and functions (B, K, 45, V), K =
    `channels`, one more with `deconvolution`.
    """

    def __init__(  # noqa: PLR0913  sizes
        self,
        channels: int,
        scalars: int,
        hidden: int,
        blocks: int,
        l_shells: int,
        deconvolution: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.scalars, self.sizes = channels, scalars, SIZES
        self.encoder = ShellEncoder(channels - deconvolution, scalars=scalars, l_max=l_shells)
        self.deconvolution = nn.ModuleList([FibreDeconvolution(l_shells)] if deconvolution else [])
        first = L_MAX if deconvolution else l_shells
        self.blocks = nn.ModuleList(
            SphereBlock(channels, scalars, hidden, first if i == 0 else L_MAX) for i in range(blocks)
        )
        self.read = _reader(channels * len(SIZES), scalars)

    def forward(self, shells: Tensor) -> tuple[Tensor, Tensor]:
        scalars, functions = self.encoder.encode(shells)
        deconvolved: list[Tensor] = []
        for layer in self.deconvolution:  # none or one
            deconvolved.append(layer(self.encoder.parts(shells)).unsqueeze(1).to(functions.dtype))
            missing = deconvolved[0].shape[2] - functions.shape[2]
            padded = torch.nn.functional.pad(functions, [0, 0, 0, missing])
            functions = torch.cat([padded, deconvolved[0]], dim=1)
        for block in self.blocks:
            scalars, functions = block(scalars, functions)
        found = torch.cat([scalars, powers(functions, self.sizes)], dim=1)
        return bounded(scalars + self.read(found)), torch.cat([functions] + deconvolved, dim=1)


class VoxelHead(nn.Module):
    """Fields of `irreps_out` at each voxel, linear in the functions with weights that the scalars choose.

    forward: scalars (B, P, V), functions (B, K, 45, V) -> (B, irreps_out.dim, V).  0e channels are linear in the
    scalars; 2e to 8e are weighted sums over the K functions; voxels on their own say nothing of any other irrep: zeros.
    """

    def __init__(self, channels: int, scalars: int, irreps_out: str | Irreps) -> None:
        super().__init__()
        fields = [(mul, ir.l, ir.p == 1) for mul, ir in as_irreps(irreps_out)]
        self.channels = channels
        # multiplicity, number of components, first of the 45 components or -1 for zeros
        self.blocks = [
            (
                mul,
                2 * order + 1,
                order * (order - 1) // 2 if even and order % 2 == 0 and order <= L_MAX else -1,
            )
            for mul, order, even in fields
        ]
        self.counts = [
            0 if first < 0 else mul if dim == 1 else mul * channels for mul, dim, first in self.blocks
        ]
        self.weights = Pointwise(scalars, max(1, sum(self.counts)))

    def forward(self, scalars: Tensor, functions: Tensor) -> Tensor:
        weights, start = self.weights(scalars), 0
        parts: list[Tensor] = []
        for i, (mul, dim, first) in enumerate(self.blocks):
            factors = weights[:, start : start + self.counts[i]]
            start += self.counts[i]
            if first < 0:
                parts.append(weights.new_zeros(len(weights), mul * dim, weights.shape[2]))
            elif dim == 1:
                parts.append(factors)
            else:
                block = functions[:, :, first : first + dim]
                for own in factors.split(self.channels, dim=1):
                    parts.append((block * own.unsqueeze(2)).sum(1))
        return torch.cat(parts, dim=1)


class VoxelwiseNet(nn.Module):
    """Fibre orientation density and tissue fractions of each voxel on its own.

    forward: (B, C, ...) as :class:`ShellEncoder` takes it, any number of slots and of voxel axes ->
    (B, 45 + 4, ...): orthonormal even harmonics to l = 8 of the fibre orientation density, in the frame of the input,
    then the volume fractions of white matter, grey matter, CSF and anything else, which sum to 1.  The mass of the
    density is the white-matter fraction.

    deconvolution: the density is a weighted mean of two, the learned one (`learned`, what training aims at) and the
    deconvolved one times the white-matter fraction (`mixed`).  Where little is known the learned one is blurred, as a
    mean of all that may be is, and the lobes of crossings merge; the deconvolved one is sharp, also where it is wrong.
    """

    def __init__(
        self,
        channels: int = CHANNELS,
        scalars: int = SCALARS,
        hidden: int = HIDDEN,
        blocks: int = BLOCKS,
        l_shells: int = 6,
        deconvolution: bool = False,
    ) -> None:
        super().__init__()
        self.deconvolution = deconvolution
        self.features = SphereFeatures(channels, scalars, hidden, blocks, l_shells, deconvolution)
        self.density = VoxelHead(channels, scalars, DENSITY.removeprefix("1x0e+"))
        self.fractions = VoxelHead(channels, scalars, f"{FRACTIONS}x0e")

    def forward(self, shells: Tensor) -> Tensor:
        flat = shells.T.unsqueeze(0) if shells.ndim == 2 else shells.flatten(2)
        if torch.is_grad_enabled() or flat.shape[2] <= CHUNK:
            out = self.predict(flat)
        else:
            out = torch.cat([self.predict(part) for part in flat.split(CHUNK, dim=2)], dim=2)
        return out[0].T if shells.ndim == 2 else out.unflatten(2, shells.shape[2:])

    def predict(self, shells: Tensor) -> Tensor:
        """(B, C, V) -> (B, 49, V)."""
        learned, deconvolved = self.learned(shells)
        return learned if deconvolved is None else mixed(learned, deconvolved)

    def learned(self, shells: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 49, V) of (B, C, V) by the network alone, and the deconvolved density (B, 45, V)."""
        scalars, functions = self.features(shells)
        own = functions[:, : self.features.channels]
        fractions = self.fractions(scalars, own).float().softmax(dim=1)
        density = self.density(scalars, own).to(fractions.dtype)
        found = torch.cat([fractions[:, :1] / sqrt(4 * pi), density, fractions], dim=1)
        return found, functions[:, -1] if self.deconvolution else None


def mixed(learned: Tensor, deconvolved: Tensor, share: float = DECONVOLVED) -> Tensor:
    """(B, 49, V): what `VoxelwiseNet.learned` gives, with `share` of the density from the deconvolved one."""
    mean = torch.lerp(learned[:, 1:45], learned[:, 45:46] * deconvolved[:, 1:], share)
    return torch.cat([learned[:, :1], mean, learned[:, 45:]], dim=1)


def _functions(channels: int, l_max: int) -> str:
    return "+".join(f"{channels}x{degree}e" for degree in range(0, l_max + 1, 2))


def _reader(powers: int, scalars: int) -> nn.Sequential:
    """From scalars and powers to a change of the scalars."""
    return nn.Sequential(Pointwise(scalars + powers, 2 * scalars), nn.SiLU(), Pointwise(2 * scalars, scalars))


def bounded(scalars: Tensor) -> Tensor:
    """Scalars (B, P, V) of a root mean square below 1 at each voxel: without a bound, products of them run away."""
    return scalars * torch.rsqrt(scalars.square().mean(1, keepdim=True) + 1.0)


def powers(functions: Tensor, sizes: list[int]) -> Tensor:
    """(B, L K, V) invariants of functions (B, K, n, V): the mean itself, and the root power of higher degrees."""
    parts = functions.split(sizes, dim=2)
    found = [parts[0].squeeze(2)]
    for part in parts[1:]:
        found.append((part.square().sum(2) + 1e-5).sqrt())
    return torch.cat(found, dim=1)
