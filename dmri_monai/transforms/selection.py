"""Choose measurements: shells, well-spread subsets of directions, shells dropped at random."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD, cluster_shells
from dmri_monai.qspace.direction_sets import spread_subset
from dmri_monai.transforms.rows import item_table, select_rows

__all__ = ["RandDropShelld", "RandSubsampleDirectionsd", "SelectShellsd"]


class SelectShellsd(MapTransform):
    """Keep the b0 volumes and the given shells (s/mm²) of the scans in `keys`, table included, in their
    order.

    A volume belongs to a shell within `tolerance` of its b-value (a fraction), or 50 s/mm².
    Raises ValueError for a shell without volumes.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        shells: Sequence[float] = (1000.0,),
        *,
        tolerance: float = 0.1,
        keep_b0: bool = True,
        b0_threshold: float = B0_THRESHOLD,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.shells, self.tolerance = [float(b) for b in shells], tolerance
        self.keep_b0, self.b0_threshold = keep_b0, b0_threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        keys = list(self.key_iterator(item))
        if not keys:
            return item
        bvals = checked_bvals(item, keys, "SelectShellsd")
        weighted = bvals > self.b0_threshold
        keep = ~weighted & self.keep_b0
        for shell in self.shells:
            members = weighted & ((bvals - shell).abs() <= max(self.tolerance * shell, 50.0))
            if not members.any():
                found = sorted({round(b) for b in bvals.tolist()})
                raise ValueError(f"SelectShellsd: no volume at b = {shell:g}; b-values: {found}")
            keep |= members
        select_rows(item, keys, torch.nonzero(keep).flatten())
        return item


class RandSubsampleDirectionsd(RandomizableTransform, MapTransform):
    """Keep a random, well-spread subset of the directions of every shell, and at least one b0 if there is
    any.

    directions: fewest and most directions per shell (a shell with fewer keeps all); b0: fewest and most b0
    volumes. The subset starts with a random direction and takes the farthest axis next, so it covers the
    sphere.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        prob: float = 1.0,
        directions: tuple[int, int] = (30, 64),
        b0: tuple[int, int] = (1, 100),
        *,
        b0_threshold: float = B0_THRESHOLD,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        for name, (low, high) in (("directions", directions), ("b0", b0)):
            if not 1 <= low <= high:
                raise ValueError(f"{name} must be (fewest, most) with 1 <= fewest <= most, got {(low, high)}")
        self.directions, self.b0, self.b0_threshold = directions, b0, b0_threshold
        self.index = torch.zeros(0, dtype=torch.long)

    def randomize(self, data: tuple[Tensor, Tensor]) -> None:
        """Draw the measurements to keep from b-values (N,) and b-vectors (N, 3)."""
        super().randomize(None)
        if not self._do_transform:
            return
        bvals, bvecs = data
        unweighted = torch.nonzero(bvals <= self.b0_threshold).flatten()
        chosen = [unweighted[self._some(len(unweighted), self.b0)]]
        for shell in cluster_shells(bvals, self.b0_threshold):
            n = min(len(shell.indices), self.R.randint(self.directions[0], self.directions[1] + 1))
            first = self.R.randint(len(shell.indices))
            chosen.append(shell.indices[spread_subset(bvecs[shell.indices], n, first)])
        self.index = torch.cat(chosen).sort().values

    def _some(self, n: int, limits: tuple[int, int]) -> Tensor:
        count = min(n, self.R.randint(limits[0], limits[1] + 1))
        return torch.from_numpy(self.R.permutation(n)[:count].copy()).long()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        keys = list(self.key_iterator(item))
        if not keys:
            return item
        bvals = checked_bvals(item, keys, "RandSubsampleDirectionsd")
        self.randomize((bvals, torch.as_tensor(item["bvecs"]).cpu()))
        if self._do_transform:
            select_rows(item, keys, self.index)
        return item


class RandDropShelld(RandomizableTransform, MapTransform):
    """Drop a random choice of whole shells, at least one and leaving at least `keep`; b0 volumes stay.

    With `SphericalHarmonicsd(missing="zero")` a network learns to do without them.  A scan with no more than
    `keep` shells is left alone.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        prob: float = 0.1,
        keep: int = 1,
        *,
        b0_threshold: float = B0_THRESHOLD,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.keep, self.b0_threshold = keep, b0_threshold
        self.dropped: list[int] = []

    def randomize(self, data: int) -> None:
        """Draw which of `data` shells to drop."""
        super().randomize(None)
        self.dropped = []
        if self._do_transform and data > self.keep:
            count = self.R.randint(1, data - self.keep + 1)
            self.dropped = sorted(self.R.permutation(data)[:count].tolist())

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        keys = list(self.key_iterator(item))
        if not keys:
            return item
        bvals = checked_bvals(item, keys, "RandDropShelld")
        shells = cluster_shells(bvals, self.b0_threshold)
        self.randomize(len(shells))
        if self.dropped:
            keep = torch.ones(len(bvals), dtype=torch.bool)
            for s in self.dropped:
                keep[shells[s].indices] = False
            select_rows(item, keys, torch.nonzero(keep).flatten())
        return item


def checked_bvals(item: dict[Hashable, Any], keys: Sequence[Hashable], caller: str) -> Tensor:
    """(N,) b-values on the CPU, after checking that every image in `keys` has N volumes."""
    bvals = torch.zeros(0)
    for key in keys:
        bvals, _ = item_table(item, key, caller)
    return bvals.detach().cpu()
