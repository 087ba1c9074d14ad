"""Normalisation by b0 and harmonic channels: from any gradient table to network input."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD
from dmri_monai.qspace.b0 import b0_reference, mean_b0
from dmri_monai.qspace.harmonics import ShellFit, harmonic_irreps, signal_to_harmonics
from dmri_monai.qspace.shell_set import shell_channels, shell_irreps, shell_set
from dmri_monai.transforms.frames import fix_voxel_frame, voxel_rotation
from dmri_monai.transforms.rows import item_mask, item_table, like, plain, select_rows

__all__ = ["NormalizeByB0d", "SphericalHarmonicsd"]


class NormalizeByB0d(MapTransform):
    """Divide the volumes (N, X, Y, Z) by their mean b0 and clip to [0, clip]; 0 where there is no b0 signal.

    b0: "keep" leaves every volume; "drop" removes the b0 volumes; "collapse" puts one volume first in their
    place, the mean b0 divided by its median in the mask (not clipped), so that the T2 contrast survives.  The
    table follows.
    mask_key: item entry (1, X, Y, Z), voxels outside are set to 0.
    Raises ValueError for a scan without b0.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        b0: Literal["keep", "collapse", "drop"] = "keep",
        clip: float | None = 1.0,
        mask_key: str | None = None,
        b0_threshold: float = B0_THRESHOLD,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if b0 not in ("keep", "collapse", "drop"):
            raise ValueError(f"b0 must be 'keep', 'collapse' or 'drop', got {b0!r}")
        self.b0, self.clip, self.mask_key, self.b0_threshold = b0, clip, mask_key, b0_threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        keys = list(self.key_iterator(item))
        for key in keys:
            item[key] = self._normalized(item, key)
        if self.b0 != "keep" and keys:
            select_rows(item, keys, self._rows(torch.as_tensor(item["bvals"])))
            if self.b0 == "collapse":
                item["bvals"][0] = 0.0
                item["bvecs"][0] = 0.0
        return item

    def _rows(self, bvals: Tensor) -> Tensor:
        weighted = torch.nonzero(bvals > self.b0_threshold).flatten()
        first = torch.nonzero(bvals <= self.b0_threshold).flatten()[:1]
        return torch.cat([first, weighted]) if self.b0 == "collapse" else weighted

    def _normalized(self, item: dict[Hashable, Any], key: Hashable) -> MetaTensor:
        bvals, _ = item_table(item, key, "NormalizeByB0d")
        refuse_normalized(item[key], "NormalizeByB0d")
        image = item[key].as_tensor().float()
        brain = item_mask(item, self.mask_key, key, "NormalizeByB0d")
        b0 = mean_b0(image, bvals, self.b0_threshold)
        reference = b0_reference(b0, brain)
        inverse = torch.where(b0 > 1e-4 * reference, 1.0 / b0, torch.zeros_like(b0))
        inverse = inverse if brain is None else inverse * brain[0]
        out = image * inverse
        if self.clip is not None:
            out = out.clamp_(0.0, self.clip)
        if self.b0 == "collapse":
            kept = int(torch.nonzero(bvals <= self.b0_threshold)[0])
            out[kept] = b0 / reference * (inverse > 0)
        result = like(item[key], out)
        result.meta["signal"] = "S/S0"
        return result


def refuse_normalized(image: MetaTensor, caller: str) -> None:
    """ValueError for an image that :class:`NormalizeByB0d` has already divided by its b0."""
    if image.meta.get("signal") == "S/S0":
        raise ValueError(
            f"{caller} takes the raw signal and divides by the b0 itself; leave out NormalizeByB0d"
        )


class SphericalHarmonicsd(MapTransform):
    """Turn the volumes (N, X, Y, Z) of any gradient table into harmonic channels (C, X, Y, Z) in the voxel
    frame.

    The channel layout is that of :func:`dmri_monai.qspace.harmonics.signal_to_harmonics`: mean b0 / its
    median, then S/S0 of the `shells` (s/mm², ascending) grouped by order; e3nn's real orthonormal harmonics.
    The vectors are turned by the *current* affine, so spatial transforms come before.  Writes
    `meta["irreps"]`, records the frame.
    shells="auto": the scan's own shells, whatever their number and b-values, ascending in `slots` slots, in the
    layout of :func:`dmri_monai.qspace.shell_set.shell_channels`, which `ShellEncoder` takes (to l_max = 6 by default).
    No shell is refused; more shells than slots are merged by nearest b, with a message.
    rescale: with shells="auto", rescale the shells as if one fibre looked the same in every scan, by the most coherent
    voxels of this one (:mod:`dmri_monai.qspace.shell_response`); crop afterwards, not before.
    mask_key: brain mask (1, X, Y, Z) for the median of the b0.  weights_key: weights (N,) of the
    measurements.
    fit: fields of :class:`dmri_monai.qspace.shell_fit.ShellFit`, for example `missing="zero"`; with shells="auto"
    only `clip`, `min_b0` and `b0_threshold`.
    Raises ValueError for a scan without b0, without a shell, with too few directions; and as
    `voxel_rotation`.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        shells: Sequence[float] | Literal["auto"] = (1000.0,),
        l_max: int = 4,
        *,
        slots: int = 4,
        rescale: bool = False,
        mask_key: str | None = None,
        weights_key: str | None = None,
        allow_lambda: bool = False,
        allow_missing_keys: bool = False,
        **fit: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.l_max, self.slots, self.rescale, self.fit = l_max, slots, rescale, ShellFit(**fit)
        self.mask_key, self.weights_key, self.allow_lambda = mask_key, weights_key, allow_lambda
        if isinstance(shells, str):
            _checked_auto(shells, weights_key, fit)
            if rescale and l_max < 2:
                raise ValueError(f"SphericalHarmonicsd: rescale=True needs l_max of at least 2, got {l_max}")
            self.shells: list[float] | None = None
            self.irreps = shell_irreps(slots, l_max)
        else:
            if rescale:
                raise ValueError("SphericalHarmonicsd: rescale=True needs shells='auto'")
            self.shells = [float(b) for b in shells]
            self.irreps = harmonic_irreps(len(self.shells), l_max, presence=self.fit.missing == "zero")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._harmonics(item, key)
        return item

    def _harmonics(self, item: dict[Hashable, Any], key: Hashable) -> MetaTensor:
        image = item[key]
        bvals, bvecs = item_table(item, key, "SphericalHarmonicsd")
        rotation = voxel_rotation(image, "SphericalHarmonicsd", self.allow_lambda)
        refuse_normalized(image, "SphericalHarmonicsd")
        brain = item_mask(item, self.mask_key, key, "SphericalHarmonicsd")
        bvecs_voxel = bvecs.double().cpu() @ rotation
        if self.shells is None:
            channels = self._own_shells(image.as_tensor(), bvals, bvecs_voxel, brain)
        else:
            channels = signal_to_harmonics(
                image.as_tensor().unsqueeze(0),
                bvals.unsqueeze(0),
                bvecs_voxel.unsqueeze(0),
                shells=self.shells,
                l_max=self.l_max,
                brain=None if brain is None else brain.unsqueeze(0),
                weights=self._weights(item, len(bvals)),
                fit=self.fit,
            )[0]
        result = like(image, channels)
        result.meta["irreps"] = self.irreps
        fix_voxel_frame(result, rotation)
        return result

    def _own_shells(self, image: Tensor, bvals: Tensor, bvecs_voxel: Tensor, brain: Tensor | None) -> Tensor:
        """(C, X, Y, Z) channels of the shells that this scan has."""
        threshold = self.fit.b0_threshold
        shells = shell_set(bvals, bvecs_voxel, slots=self.slots, l_max=self.l_max, b0_threshold=threshold)
        return shell_channels(
            image,
            bvals,
            shells,
            brain=brain,
            clip=self.fit.clip,
            min_b0=self.fit.min_b0,
            b0_threshold=threshold,
            response="scan" if self.rescale else None,
        )

    def _weights(self, item: dict[Hashable, Any], n: int) -> Tensor | None:
        """(1, N) weights of the measurements."""
        if self.weights_key is None:
            return None
        if self.weights_key not in item or len(item[self.weights_key]) != n:
            found = "no" if self.weights_key not in item else len(item[self.weights_key])
            raise ValueError(f"SphericalHarmonicsd: {found} weights {self.weights_key!r} for {n} b-values")
        return plain(item[self.weights_key]).unsqueeze(0)


def _checked_auto(shells: str, weights_key: str | None, fit: Mapping[str, Any]) -> None:
    """ValueError for another word than "auto", or for options that only named shells have."""
    if shells != "auto":
        raise ValueError(f"SphericalHarmonicsd: shells must be b-values or 'auto', got {shells!r}")
    surplus = sorted(set(fit) - {"clip", "min_b0", "b0_threshold"}) + (["weights_key"] if weights_key else [])
    if surplus:
        raise ValueError(f"SphericalHarmonicsd: shells='auto' takes no {', '.join(surplus)}")
