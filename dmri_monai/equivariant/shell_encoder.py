"""Shells of any number and b-value as channels that do not depend on the protocol."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.sphere_activation import Pointwise, from_functions, to_functions
from dmri_monai.so3 import as_irreps

__all__ = ["ShellEncoder", "shell_parts"]

SCALARS_PER_SHELL = 4  # l = 0, presence, b, log n


class ShellEncoder(nn.Module):
    """Shells as a set, b as a number: K functions on the sphere and a code of scalars, from any protocol.

    forward: (B, C, ...) -> (B, irreps_out.dim, ...), any number of voxel axes, also none.  C: dimension of
    :func:`dmri_monai.qspace.shell_set.shell_irreps` for any number of slots, which is read from the input: the
    parameters do not depend on it.
    Channels: b0 / its median; the l = 0 coefficient (orthonormal harmonics of S/S0) of every slot; presence, 0 or 1;
    b in ms/µm² (b / 1000 s/mm²); log of the number of directions; then l = 2 of every slot, l = 4, ....
    irreps_out: `scalars` 0e of the pooled code, then `channels` functions, so many 0e, 2e, ..., l_max e each.

    A small network, the same for every shell, reads a shell's invariants (mean, power of each degree, b, log n) and
    b0; the codes of the shells that are present are summed; gates from a shell's code and the sum weight its
    coefficients: x_lm^k = sum over shells of g_l^k(code of the shell, sum) · c_lm(shell).  The order of the shells
    and absent slots change nothing, and rotations pass through, as gates are scalars.
    """

    def __init__(self, channels: int = 16, *, scalars: int = 32, l_max: int = 6, hidden: int = 32) -> None:
        super().__init__()
        self.channels, self.scalars, self.l_max = channels, scalars, l_max
        self.degrees = list(range(0, l_max + 1, 2))
        functions = "+".join(f"{channels}x{degree}e" for degree in self.degrees)
        self.irreps_out = as_irreps(f"{scalars}x0e+{functions}")
        features = len(self.degrees) + 5
        self.shell = nn.Sequential(
            Pointwise(features, hidden), nn.SiLU(), Pointwise(hidden, hidden), nn.SiLU()
        )
        self.pool = nn.Sequential(Pointwise(hidden + 1, scalars), nn.SiLU(), Pointwise(scalars, scalars))
        self.gate = nn.Sequential(
            Pointwise(hidden + scalars, hidden), nn.SiLU(), Pointwise(hidden, channels * len(self.degrees))
        )

    def extra_repr(self) -> str:
        return f"shells to l = {self.l_max} -> {self.irreps_out}"

    @torch.jit.unused  # what follows is also compiled by TorchScript
    def forward(self, shells: Tensor) -> Tensor:
        flat = shells.T.unsqueeze(0) if shells.ndim == 2 else shells.flatten(2)
        scalars, functions = self.encode(flat)
        out = torch.cat([scalars, from_functions(functions, self.l_max)], dim=1)
        return out[0].T if shells.ndim == 2 else out.unflatten(2, shells.shape[2:])

    def encode(self, shells: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, V) -> scalars (B, scalars, V) and functions (B, channels, n_coef, V)."""
        b0 = shells[:, :1]
        c, b, log_n, presence = self.parts(shells)
        slots, presence = c.shape[1], presence.unsqueeze(2)
        code = self.shell(self._invariants(c, b0, b, log_n)) * presence  # (B, S, hidden, V)
        total = torch.cat([code.sum(1), b0.clamp(max=8.0)], dim=1)
        pooled = self.pool(total)  # (B, scalars, V)
        context = pooled.unsqueeze(1).expand(-1, slots, -1, -1)
        gates = self.gate(torch.cat([code, context], dim=2)) * presence
        gates = gates.unflatten(2, [self.channels, len(self.degrees)])  # (B, S, K, L, V)
        return pooled, self._weighted(gates, c, slots)

    def parts(self, shells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """:func:`shell_parts` of (B, C, V)."""
        return shell_parts(shells, self.l_max)

    def _weighted(self, gates: Tensor, c: Tensor, slots: int) -> Tensor:
        """Sum over shells of gate times coefficients, degree by degree: (B, channels, n_coef, V)."""
        parts, start = [], 0
        for i, degree in enumerate(self.degrees):
            block = c[:, :, start : start + 2 * degree + 1].unsqueeze(2)  # (B, S, 1, 2l + 1, V)
            start += 2 * degree + 1
            total = gates[:, 0, :, i : i + 1] * block[:, 0]
            for s in range(1, slots):
                total = torch.addcmul(total, gates[:, s, :, i : i + 1], block[:, s])
            parts.append(total)
        return torch.cat(parts, dim=2)

    def _invariants(self, c: Tensor, b0: Tensor, b: Tensor, log_n: Tensor) -> Tensor:
        """(B, S, features, V): of coefficients (B, S, n_coef, V), and b0 (B, 1, V), b and log n (B, S, V)."""
        mean = c[:, :, 0] / math.sqrt(4 * math.pi)
        decay = -mean.clamp(0.02, 1.2).log() / b.clamp(min=0.2)  # an apparent diffusivity
        features = [mean, decay, b, log_n / 4, b0.clamp(max=8.0).expand_as(b)]
        start = 1
        for degree in self.degrees[1:]:
            power = c[:, :, start : start + 2 * degree + 1].square().sum(2)
            features.append((power + 1e-5).sqrt() * (1.0 + degree / 2))
            start += 2 * degree + 1
        features.append(features[5] / (mean.abs() + 0.05) if self.l_max > 0 else mean)  # an anisotropy
        return torch.stack(features, dim=2)


def shell_parts(
    shells: Tensor, l_max: int, scalars_per_shell: int = SCALARS_PER_SHELL
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of channels (B, C, V) as :class:`ShellEncoder` takes them: harmonics (B, S, n_coef, V), 0 for absent slots;
    b in ms/µm², log n and presence, each (B, S, V).

    scalars_per_shell: a constant, as an argument because TorchScript sees no globals.  ValueError for a number of
    channels that no number of slots has.
    """
    channels, per_slot = shells.shape[1], scalars_per_shell - 1 + (l_max + 1) * (l_max + 2) // 2
    slots = (channels - 1) // per_slot
    if slots < 1 or 1 + slots * per_slot != channels:
        raise ValueError(
            f"shells in slots: {channels} channels are not 1 + {per_slot} for every slot (l_max = {l_max})"
        )
    rest = shells[:, 1:]
    mean, presence, b, log_n = rest[:, : scalars_per_shell * slots].split(slots, dim=1)
    others = rest[:, scalars_per_shell * slots :]
    c = to_functions(torch.cat([mean, others], dim=1), slots, l_max)
    return torch.where(presence.unsqueeze(2) > 0, c, torch.zeros_like(c)), b, log_n, presence
