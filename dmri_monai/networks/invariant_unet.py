"""`InvariantUNet`: rotation invariants of any shells at each voxel, then an ordinary U-Net.

Compiled by TorchScript, but for `InvariantUNet` itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.nn import functional

from dmri_monai.networks.input_checks import as_plain, check_harmonics, slots_of, with_meta_of
from dmri_monai.qspace.shell_invariants import INVARIANTS, shell_invariants
from dmri_monai.so3 import as_irreps, channels_of

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["InvariantUNet"]

MULTIPLE = 16  # of the size: four poolings
SIZES = {  # filters of the five levels
    "tiny": (4, 8, 12, 16, 24),
    "small": (8, 16, 24, 32, 48),
    "base": (16, 32, 48, 64, 96),
}


class TwofoldBatchNorm(nn.BatchNorm3d):
    """Batch norm that, while `twofold`, gives the second half of a batch statistics of each item's own, in part.

    own: share of the item's own mean and variance beside the stored ones, 0 to 1.
    Adapting the statistics to the data at hand: Schneider et al. 2020, arXiv:2006.16971.
    """

    def __init__(self, channels: int, own: float) -> None:
        super().__init__(channels)
        self.own, self.twofold = own, False

    def forward(self, input: Tensor) -> Tensor:
        if self.twofold:
            first, second = input.chunk(2)
            return torch.cat([self.stored(first), self.adapted(second)])
        if torch.jit.is_scripting():
            return self.stored(input)
        else:  # TorchScript does not compile this branch
            return super().forward(input)

    def stored(self, input: Tensor) -> Tensor:
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def adapted(self, input: Tensor) -> Tensor:
        wide = input if input.dtype == torch.float64 else input.float()
        var, mean = torch.var_mean(wide, [2, 3, 4], correction=0, keepdim=True)
        assert self.running_mean is not None
        assert self.running_var is not None
        mean = torch.lerp(self.running_mean.to(wide.dtype).view(1, -1, 1, 1, 1), mean, self.own)
        var = torch.lerp(self.running_var.to(wide.dtype).view(1, -1, 1, 1, 1), var, self.own)
        scale = self.weight.view(1, -1, 1, 1, 1) * torch.rsqrt(var + self.eps)
        return ((wide - mean) * scale + self.bias.view(1, -1, 1, 1, 1)).to(input.dtype)


class PlainInvariantUNet(nn.Module):
    """Invariants, body and head of an :class:`InvariantUNet` without meta data or checks, for export."""

    def __init__(self, slots: int, body: nn.Module, head: nn.Module, own: float, outside: int) -> None:
        super().__init__()
        self.slots, self.body, self.head = slots, body, head
        self.own, self.outside = own, outside

    def train(self, mode: bool = True) -> Self:
        """As of any module; the norms follow the network, also where they are frozen one by one."""
        for module in self.modules():
            if isinstance(module, TwofoldBatchNorm):
                module.twofold = not mode
        return super().train(mode)

    def forward(self, image: Tensor) -> Tensor:
        return self.answer(shell_invariants(image, self.slots))

    def answer(self, invariants: Tensor) -> Tensor:
        """(B, 5, X, Y, Z) of `shell_invariants` -> what :meth:`forward` gives."""
        if self.training or self.own == 0.0:
            found: Tensor = self.head(self.body(invariants))
            return found
        return torch.cat([self.adapted(item) for item in invariants.split(1)])

    def adapted(self, invariants: Tensor) -> Tensor:
        """The same of one item, with statistics of the box around what has signal: air around it does not count."""
        there = (invariants[0, 0] > 0.15).to(torch.float32)  # of the median b0
        x, y, z = there.sum([1, 2]), there.sum([0, 2]), there.sum([0, 1])
        (i, a), (j, b), (k, c) = self.extent(x), self.extent(y), self.extent(z)
        box = invariants[:, :, i:a, j:b, k:c]
        stored, own = self.head(self.body(torch.cat([box, box]))).chunk(2)
        before, after = self.outside, self.outside + 1
        inside = torch.cat([stored[:, :before], stored[:, after:]], dim=1).logsumexp(1, keepdim=True)
        among = torch.cat([own[:, :before], own[:, after:]], dim=1).logsumexp(1, keepdim=True)
        told = own + (inside - among)
        told = torch.cat([told[:, :before], stored[:, before:after], told[:, after:]], dim=1)
        size = invariants.shape
        found = told.new_zeros([1, told.shape[1], size[2], size[3], size[4]])
        found[:, before] = 10.0  # air is outside
        found[:, :, i:a, j:b, k:c] = told
        return found

    def extent(self, count: Tensor) -> tuple[int, int]:
        """First and end of the slices that hold signal, with a margin, of the number of such voxels in each."""
        margin, least = 8, 16
        slices = torch.nonzero(count > 0.02 * count.max()).flatten()
        n = len(count)
        if len(slices) == 0:
            return 0, n
        first, end = max(int(slices[0]) - margin, 0), min(int(slices[-1]) + 1 + margin, n)
        end = max(end, min(n, first + least))
        return min(first, max(0, end - least)), end


class InvariantUNet(PlainInvariantUNet):
    """What shells tell without directions (`shell_invariants`), then MONAI's BasicUNet with batch norm.

    forward: (B, irreps_in.dim, X, Y, Z) as `SphericalHarmonicsd(shells="auto")` makes it, any number of shells at any
    b-values -> (B, irreps_out.dim, X, Y, Z), or the features of the finest level without `irreps_out`.  Sizes of at
    least 16 voxels per axis; in training with a single item, 32 along one, as batch norm needs more than one value.
    For answers without a direction: ValueError where irreps_out holds other irreps than 0e.  Turning the b-vectors
    changes nothing; turning the image may, as the convolutions are ordinary ones.

    size: "tiny", "small", "base".  own_statistics: share, 0 to 1, of an item's own statistics in the norms, beside
    those of the training, by which an evaluated network tells apart all classes but `outside`, the index of "none of
    these"; the probability of that one stays what the training's statistics say.  Scans differ in contrast more than
    simulations do; but by their own statistics neck and scalp come nearer to brain.  Windows have statistics of their
    own, and memory and time are twice those of the box around what has signal.
    All parameters of the head, and no others, are called `head.*`.
    """

    def __init__(
        self,
        irreps_in: str | Irreps,
        irreps_out: str | Irreps | None = None,
        size: str = "small",
        own_statistics: float = 0.0,
        outside: int = 0,
    ) -> None:
        fields = as_irreps(irreps_in)
        slots, l_max = slots_of(fields, type(self).__name__)
        if l_max < 2:
            raise ValueError(f"InvariantUNet: l_max is {l_max}, expected at least 2")
        if irreps_out is not None and any(str(ir) != "0e" for _, ir in as_irreps(irreps_out)):
            raise ValueError(f"InvariantUNet: irreps_out is {irreps_out}, expected scalars (0e) alone")
        if size not in SIZES:
            raise ValueError(f"InvariantUNet: size is {size!r}, expected one of {', '.join(SIZES)}")
        outputs = 0 if irreps_out is None else as_irreps(irreps_out).dim
        _check(own_statistics, outside, outputs)
        levels = SIZES[size]
        body = BasicUNet(3, INVARIANTS, 1, features=(*levels, levels[0]), norm="batch")
        body.final_conv = nn.Identity()  # type: ignore[assignment]
        if own_statistics > 0:
            _replace_norms(body, own_statistics)
        head = nn.Conv3d(levels[0], outputs, 1) if outputs else nn.Identity()
        super().__init__(slots, body, head, own_statistics, outside)
        self.expected, self.irreps_in = channels_of(fields), str(fields)
        self.irreps_out = f"{levels[0]}x0e" if irreps_out is None else str(as_irreps(irreps_out))

    def forward(self, image: Tensor) -> Tensor:
        check_harmonics(image, self.expected, type(self).__name__)
        sizes = list(image.shape[2:])
        if min(sizes) < MULTIPLE:
            raise ValueError(f"InvariantUNet: spatial size {sizes}, expected at least {MULTIPLE} per axis")
        if self.training and len(image) == 1 and max(sizes) < 2 * MULTIPLE:
            raise ValueError(
                f"InvariantUNet: one item of size {sizes} in training, expected two or an axis of {2 * MULTIPLE}: "
                "batch norm needs more than one value"
            )
        return with_meta_of(image, super().forward(as_plain(image)))

    def __prepare_scriptable__(self) -> PlainInvariantUNet:
        """What `torch.jit.script`, and so MONAI's `ckpt_export`, compiles in place of this network."""
        plain = PlainInvariantUNet(self.slots, self.body, self.head, self.own, self.outside)
        return plain.train(self.training)


def _check(own_statistics: float, outside: int, outputs: int) -> None:
    if type(own_statistics) not in (int, float) or not 0 <= own_statistics <= 1:
        raise ValueError(
            f"InvariantUNet: own_statistics is {own_statistics!r}, expected a number from 0 to 1"
        )
    if type(outside) is not int or (own_statistics > 0 and not 0 <= outside < outputs):
        raise ValueError(
            f"InvariantUNet: outside is {outside!r}, expected the index of one of {outputs} outputs"
        )


def _replace_norms(module: nn.Module, own: float) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, TwofoldBatchNorm(child.num_features, own))
        else:
            _replace_norms(child, own)
