"""`InvariantUNet`: rotation invariants of any shells at each voxel, then an ordinary U-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai.networks.nets import BasicUNet
from torch import Tensor, nn

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


class PlainInvariantUNet(nn.Module):
    """Invariants, body and head of an :class:`InvariantUNet` without meta data or checks, for export."""

    def __init__(self, slots: int, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.slots, self.body, self.head = slots, body, head

    def forward(self, image: Tensor) -> Tensor:
        return self.answer(shell_invariants(image, self.slots))

    def answer(self, invariants: Tensor) -> Tensor:
        """(B, 5, X, Y, Z) of `shell_invariants` -> what :meth:`forward` gives."""
        found: Tensor = self.head(self.body(invariants))
        return found


class InvariantUNet(PlainInvariantUNet):
    """What shells tell without directions (`shell_invariants`), then MONAI's BasicUNet with batch norm.

    forward: (B, irreps_in.dim, X, Y, Z) as `SphericalHarmonicsd(shells="auto")` makes it, any number of shells at any
    b-values -> (B, irreps_out.dim, X, Y, Z), or the features of the finest level without `irreps_out`.  Sizes of at
    least 16 voxels per axis; in training with a single item, 32 along one, as batch norm needs more than one value.
    For answers without a direction: ValueError where irreps_out holds other irreps than 0e.  Turning the b-vectors
    changes nothing; turning the image may, as the convolutions are ordinary ones.

    size: "tiny", "small", "base".  All parameters of the head, and no others, are called `head.*`.
    """

    def __init__(
        self, irreps_in: str | Irreps, irreps_out: str | Irreps | None = None, size: str = "small"
    ) -> None:
        fields = as_irreps(irreps_in)
        slots, l_max = slots_of(fields, type(self).__name__)
        if l_max < 2:
            raise ValueError(f"InvariantUNet: l_max is {l_max}, expected at least 2")
        if irreps_out is not None and any(str(ir) != "0e" for _, ir in as_irreps(irreps_out)):
            raise ValueError(f"InvariantUNet: irreps_out is {irreps_out}, expected scalars (0e) alone")
        if size not in SIZES:
            raise ValueError(f"InvariantUNet: size is {size!r}, expected one of {', '.join(SIZES)}")
        levels = SIZES[size]
        body = BasicUNet(3, INVARIANTS, 1, features=(*levels, levels[0]), norm="batch")
        body.final_conv = nn.Identity()  # type: ignore[assignment]
        outputs = 0 if irreps_out is None else as_irreps(irreps_out).dim
        super().__init__(slots, body, nn.Conv3d(levels[0], outputs, 1) if outputs else nn.Identity())
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
        return PlainInvariantUNet(self.slots, self.body, self.head).train(self.training)
