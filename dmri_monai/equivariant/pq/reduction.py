"""From q-space to none: means over the gradient samples of a field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.kernel.radial import Gaussian, Radial, RadialFunctions
from dmri_monai.equivariant.pq.qvectors import check_mask, checked_q
from dmri_monai.so3 import as_irreps, channels_of, check_channels

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["QLengthWeightedMean", "QMean"]


def _shares(x: Tensor, mask: Tensor | None, scaling: str) -> tuple[Tensor, Tensor]:
    """`x` (N, C, Q, ...) with masked samples zero, and (N, Q) factors that turn the sum over Q into a mean."""
    if x.shape[2] == 0:
        raise ValueError("the input has 0 samples, at least 1 is needed")
    if mask is None:
        count = x.shape[2]
        return x, x.new_full((1, count), 1 / (count if scaling == "mean" else count**0.5))
    check_mask(mask, (x.shape[0], x.shape[2]), "mask")
    valid = mask.sum(1, keepdim=True).clamp(min=1).to(x.dtype)
    share = mask.to(x.dtype) / (valid if scaling == "mean" else valid.sqrt())
    return torch.where(mask[:, None, :, None, None, None], x, 0.0), share


class QMean(nn.Module):
    """Mean over valid samples: (N, dim, Q, X, Y, Z) -> (N, dim, X, Y, Z). mask: (N, Q) bool."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if x.ndim != 6:
            raise ValueError(f"QMean: input has {x.ndim} axes, expected 6 (N, C, Q, X, Y, Z)")
        x, share = _shares(x, mask, "mean")
        return torch.einsum("ncqxyz,nq->ncxyz", x, share.expand(len(x), -1))


class QLengthWeightedMean(nn.Module):
    """Mean over valid samples, weighted per channel by a learned function of |q|.

    x (N, irreps.dim, Q, X, Y, Z), q (Q, 3) or (N, Q, 3), mask (N, Q) bool -> (N, irreps.dim, X, Y, Z).  The weight of
    channel c is sum_j W_cj phi_j(|q|); it starts as 1.  scaling='sqrt' divides by the root of the number of samples.
    """

    channel_of: Tensor

    def __init__(
        self,
        irreps: str | Irreps,
        radial: Radial | None = None,
        *,
        scaling: Literal["mean", "sqrt"] = "mean",
    ) -> None:
        super().__init__()
        if scaling not in ("mean", "sqrt"):
            raise ValueError(f"scaling must be 'mean' or 'sqrt', got {scaling!r}")
        self.irreps_in = self.irreps_out = as_irreps(irreps)
        self.expected, self.scaling = channels_of(self.irreps_in), scaling
        self.radial = RadialFunctions((radial or Gaussian()).resolved(3))
        self.weight = nn.Parameter(torch.empty(self.irreps_in.num_irreps, self.radial.n_out))
        dims = torch.tensor([ir.dim for mul, ir in self.irreps_in for _ in range(mul)])
        self.register_buffer("channel_of", torch.arange(len(dims)).repeat_interleave(dims), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights whose radial function is closest to 1 on [0, 1]."""
        r = torch.linspace(0, 1, 21, dtype=self.weight.dtype, device=self.weight.device)
        self.weight.copy_((torch.linalg.pinv(self.radial(r)) @ torch.ones_like(r)).expand_as(self.weight))

    def forward(self, x: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
        check_channels(x, self.expected, (6,), "QLengthWeightedMean")
        vectors = checked_q(q, mask, "q", len(x), x.shape[2], has=True)
        assert vectors is not None
        x, share = _shares(x, mask, self.scaling)
        weights = self.radial(vectors.norm(dim=-1).to(self.weight.dtype)) @ self.weight.T
        weights = weights.index_select(-1, self.channel_of).to(x.dtype) * share.unsqueeze(-1)
        return torch.einsum("ncqxyz,nqc->ncxyz", x, weights.expand(len(x), -1, -1))
