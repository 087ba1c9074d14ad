"""Inference on whole volumes of any size: in one window where memory allows, else in windows placed symmetrically."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor
from torch.nn import functional as F

from dmri_monai.inference.memory import available_bytes, estimated_bytes

__all__ = ["FullVolumeInferer", "SymmetricWindowInferer", "VolumeInferer", "symmetric_windows"]

logger = logging.getLogger(__name__)

GIB = 2**30
SMALLEST = 32  # voxels an axis: smaller windows see too little around them


class FullVolumeInferer(Inferer):
    """One window over the whole volume, padded with zeros at the far ends to a `multiple`, cropped back afterwards.

    inputs: (B, C, X, Y, Z) -> (B, K, X, Y, Z), or a list of them (deep supervision), which padding rules out.
    The result does not depend on any window placement.
    """

    def __init__(self, multiple: int = 1) -> None:
        super().__init__()
        self.multiple = multiple

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        size = inputs.shape[2:]
        padding: list[int] = []
        for n in reversed(size):
            padding += [0, -n % self.multiple]
        output = network(F.pad(inputs, padding), *args, **kwargs)
        if isinstance(output, list) and not any(padding):
            return output
        return output[..., : size[0], : size[1], : size[2]]


class SymmetricWindowInferer(Inferer):
    """MONAI's sliding windows with Gaussian weights, placed so that a mirrored or turned volume has the mirrored ones.

    window: largest size an axis; sizes are reduced until evenly spaced starts end exactly at the far side.
    multiple: of the sizes, where that is possible; windows are padded to it anyway.  smallest: voxels that the network
    needs along one axis; ValueError for windows below, with a size that does for every volume.
    After a call `deviation` holds the disagreement of overlapping windows: the weighted standard deviation of their
    predictions, relative to the prediction, both as root mean square over the volume.
    """

    def __init__(
        self, window: Sequence[int], overlap: float = 0.5, multiple: int = 1, smallest: int = 1
    ) -> None:
        super().__init__()
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap is {overlap}, expected a fraction of at least 0 and below 1")
        if len(window) != 3 or min(window) < 1:
            raise ValueError(f"window is {list(window)}, expected three sizes of at least 1")
        self.window, self.overlap, self.multiple, self.smallest = tuple(window), overlap, multiple, smallest
        self.deviation = float("nan")

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        whole, affines, seen = FullVolumeInferer(self.multiple), _affines(inputs), 0

        def moments(part: Tensor) -> Tensor:
            # MONAI's windows come one item after the other, and without meta data: a network reads the voxel size there
            nonlocal seen
            placed = part if affines is None else MetaTensor(part, affine=affines[seen // windows])
            seen += 1
            output = whole(placed, network, *args, **kwargs).as_subclass(Tensor)
            return torch.cat([output, output.square()], dim=1)

        sizes, steps = zip(
            *(
                symmetric_windows(n, w, self.overlap, self.multiple)
                for n, w in zip(inputs.shape[2:], self.window, strict=True)
            ),
            strict=True,
        )
        windows = prod(  # of one item
            (n - size) // step + 1 for n, size, step in zip(inputs.shape[2:], sizes, steps, strict=True)
        )
        if max(sizes) < self.smallest:
            raise ValueError(
                f"window is {_times(self.window)}, cut to {_times(sizes)}: of so few voxels the network's coarsest "
                "level is a single one, which has no spread to normalise by; give at least "
                f"{2 * (self.smallest - 1)} along one axis"
            )
        # half a voxel more, because MONAI rounds size x (1 - overlap) down
        overlaps = [
            1 - (step + 0.5) / size if step < size else 0.0 for size, step in zip(sizes, steps, strict=True)
        ]
        slide = SlidingWindowInferer(sizes, sw_batch_size=1, overlap=overlaps, mode="gaussian")
        mean, square = slide(inputs, moments).chunk(2, dim=1)
        variance = (square - mean.square()).clamp(min=0).as_subclass(Tensor)
        self.deviation = float(
            (variance.mean() / mean.as_subclass(Tensor).square().mean().clamp(min=1e-30)).sqrt()
        )
        return mean


def _affines(inputs: Tensor) -> Tensor | None:
    """(B, 4, 4) of a batch; None for one without meta data."""
    if not isinstance(inputs, MetaTensor):
        return None
    return torch.as_tensor(inputs.affine).expand(len(inputs), 4, 4)


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def symmetric_windows(n: int, window: int, overlap: float = 0.5, multiple: int = 1) -> tuple[int, int]:
    """Size and step of windows that cover `n` voxels: their starts 0, step, 2 step, ... end exactly at n - size.

    Of the sizes up to `window` (preferably multiples) the one that needs the fewest windows, then the largest;
    windows overlap by at least about `overlap`.

    >>> symmetric_windows(60, 32), symmetric_windows(50, 64)
    ((32, 14), (50, 50))
    """
    if window >= n:
        return n, n
    fits = []
    for size in range(window, window // 2, -1):
        fewest = ceil((n - size) / max(1, size * (1 - overlap)))
        steps = next(count for count in range(fewest, n - size + 1) if (n - size) % count == 0)
        fits.append((steps, size, (n - size) // steps))
    rounded = [fit for fit in fits if fit[1] % multiple == 0] or fits
    _, size, step = min(rounded, key=lambda fit: (fit[0], -fit[1]))
    return size, step


class VolumeInferer(Inferer):
    """The whole volume at once if it fits into memory, otherwise :class:`SymmetricWindowInferer`.

    window: sizes to use whether it fits or not; None decides.  memory_gib: what may be used; None for what is
    available.  multiple, overlap, smallest: as there.  The estimate comes from a small piece
    (:func:`dmri_monai.inference.memory.estimated_bytes`).
    `deviation` of the last call: 0 for a whole volume, else that of the windows, which is also logged.
    """

    def __init__(
        self,
        multiple: int = 1,
        window: Sequence[int] | None = None,
        memory_gib: float | None = None,
        overlap: float = 0.5,
        smallest: int = 1,
    ) -> None:
        super().__init__()
        self.multiple, self.window, self.memory_gib, self.overlap = multiple, window, memory_gib, overlap
        self.smallest = smallest
        self.deviation = 0.0
        self._per_voxel: dict[tuple[int, int], float] = {}  # bytes, by network and number of channels

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        whole = FullVolumeInferer(self.multiple)
        window = self.window or self._fitting(
            inputs, network, lambda part: whole(part, network, *args, **kwargs)
        )
        if window is None or all(w >= n for w, n in zip(window, inputs.shape[2:], strict=True)):
            self.deviation = 0.0
            return whole(inputs, network, *args, **kwargs)  # type: ignore[no-any-return]
        windows = SymmetricWindowInferer(window, self.overlap, self.multiple, self.smallest)
        output = windows(inputs, network, *args, **kwargs)
        self.deviation = windows.deviation
        logger.warning(
            "the volume was inferred in windows of %s voxels; they disagree by %.2g of the prediction",
            _times(window),
            self.deviation,
        )
        return output

    def _fitting(
        self, inputs: Tensor, network: Callable[..., Tensor], run: Callable[[Tensor], Tensor]
    ) -> list[int] | None:
        """Window sizes that fit into memory, None for the whole volume."""
        limit = self.memory_gib * GIB if self.memory_gib is not None else available_bytes(inputs.device)
        if limit is None:
            return None
        key, size = (id(network), inputs.shape[1]), list(inputs.shape[2:])

        def estimate() -> float:
            return estimated_bytes(run, inputs.as_subclass(Tensor)) / prod(size)

        if key not in self._per_voxel:
            self._per_voxel[key] = estimate()
        if self._per_voxel[key] * prod(size) > limit:
            self._per_voxel[key] = estimate()  # without the kernels that the first run may have built
        needed, window = self._per_voxel[key] * prod(size), list(size)
        if needed <= limit:
            return None
        while self._per_voxel[key] * prod(window) > limit and max(window) > SMALLEST:
            longest = window.index(max(window))
            window[longest] = max(SMALLEST, ceil(window[longest] * 0.75))
        logger.warning(
            "the volume %s needs about %.1f GiB, available are %.1f", size, needed / GIB, limit / GIB
        )
        return window
