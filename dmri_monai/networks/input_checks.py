"""What networks do at their door: check what comes in, and hand meta data to what goes out."""

from __future__ import annotations

from torch import Tensor

from dmri_monai.equivariant import as_irreps
from dmri_monai.so3 import Channels

__all__ = ["as_plain", "check_harmonics", "with_meta_of"]


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


def as_plain(image: Tensor) -> Tensor:
    """`image` without meta data, which MONAI would copy at every operation of a network."""
    return image.as_subclass(Tensor) if hasattr(image, "meta") else image


def with_meta_of(image: Tensor, output: Tensor) -> Tensor:
    """`output` as a MetaTensor with the meta data of `image` if that is one: what MONAI's own networks return."""
    if not hasattr(image, "meta"):
        return output
    # the constructor cannot take the meta data of a batch of several scans
    result: Tensor = type(image)(output)
    result.copy_meta_from(image, copy_attr=False)  # type: ignore[attr-defined]
    result.is_batch = image.is_batch  # type: ignore[attr-defined]
    return result
