"""What networks do at their door: check what comes in, and hand meta data to what goes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmri_monai.equivariant import as_irreps
from dmri_monai.so3 import Channels

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["as_plain", "check_harmonics", "slots_of", "spacing_of", "with_meta_of"]


def check_harmonics(image: Tensor, expected: Channels, name: str) -> None:
    """Raise ValueError unless `image` is (B, expected.dim, X, Y, Z) and, where its meta data name irreps, of those.

    Counting channels is not enough: two shells to order 4 have 31 with b0, and so have five shells to order 2.
    `SphericalHarmonicsd` records the irreps of its channels in `meta["irreps"]`.
    """
    recorded = _recorded(image)
    if image.ndim != 5 or image.shape[1] != expected.dim:
        origin = f" of irreps {', '.join(recorded)}" if recorded else ""
        raise ValueError(
            f"{name}: input of shape {tuple(image.shape)}{origin}, expected (B, {expected.dim}, X, Y, Z) "
            f"of irreps {expected.irreps}"
        )
    for irreps in recorded:
        if (
            irreps != expected.irreps and as_irreps(irreps).dim == expected.dim
        ):  # else the record is of other channels
            raise ValueError(
                f"{name}: input has irreps {irreps}, the network was built for {expected.irreps}"
            )


def _recorded(image: Tensor) -> list[str]:
    """The irreps in the meta data of a MetaTensor, one entry for a collated batch of equal ones."""
    found = getattr(image, "meta", {}).get("irreps", [])
    return [found] if isinstance(found, str) else sorted(set(found))


def slots_of(fields: Irreps, name: str) -> tuple[int, int]:
    """Number of slots and l_max of shells' irreps; ValueError for irreps that are not those of shells in slots."""
    from dmri_monai.qspace.shell_set import shell_irreps

    l_max = max(ir.l for _, ir in fields)
    slots = (fields.count("0e") - 1) // 4
    if slots < 1 or str(as_irreps(shell_irreps(slots, l_max))) != str(fields):
        raise ValueError(
            f"{name}: irreps {fields} are not those of shells in slots, such as {shell_irreps(4, 6)}"
        )
    return slots, l_max


def as_plain(image: Tensor) -> Tensor:
    """`image` without meta data, which MONAI would copy at every operation of a network."""
    return image.as_subclass(Tensor) if hasattr(image, "meta") else image


def spacing_of(image: Tensor) -> Tensor | None:
    """(B, 3) voxel sizes of a batch (B, C, X, Y, Z), along its axes; None for one without meta data."""
    if not hasattr(image, "meta"):
        return None
    affine = torch.as_tensor(image.affine).double()  # type: ignore[attr-defined]  # (4, 4), or one for each item
    return affine[..., :3, :3].norm(dim=-2).expand(len(image), 3)


def with_meta_of(image: Tensor, output: Tensor) -> Tensor:
    """`output` as a MetaTensor with the meta data of `image` if that is one: what MONAI's own networks return."""
    if not hasattr(image, "meta"):
        return output
    # the constructor cannot take the meta data of a batch of several scans
    result: Tensor = type(image)(output)
    result.copy_meta_from(image, copy_attr=False)  # type: ignore[attr-defined]
    result.is_batch = image.is_batch  # type: ignore[attr-defined]
    return result
