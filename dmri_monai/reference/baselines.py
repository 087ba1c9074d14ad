"""Controls that a trained network has to beat: k-means on classical maps, and shuffled b-vectors."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_dst_type
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

__all__ = ["KMeansTissue", "MatchClustersd", "ShuffleBVecsd"]


class KMeansTissue(nn.Module):
    """k-means on the voxels of one scan inside a brain mask, the classical baseline for tissue.

    forward: (B, C + 1, X, Y, Z), C maps such as b0, FA and MD (standardised here) and last the mask, ->
    (B, n_clusters + 1, X, Y, Z) one-hot: outside the mask, then the clusters in no particular order (see
    :class:`MatchClustersd`).
    """

    def __init__(self, n_clusters: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.n_clusters = n_clusters
        self.seed = seed

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([self._cluster(item[:-1], item[-1] > 0) for item in image.as_subclass(Tensor)])

    def _cluster(self, maps: Tensor, inside: Tensor) -> Tensor:
        from sklearn.cluster import KMeans

        features = maps[:, inside].T.double().cpu()
        features = (features - features.mean(0)) / features.std(0).clamp(min=1e-12)
        model = KMeans(self.n_clusters, n_init=4, random_state=self.seed).fit(features.numpy())
        labels = torch.zeros(inside.shape, dtype=torch.int64)
        labels[inside.cpu()] = torch.from_numpy(model.labels_.astype(np.int64)) + 1
        return nn.functional.one_hot(labels, self.n_clusters + 1).movedim(-1, 0).to(maps)


class MatchClustersd(MapTransform):
    """Reorder one-hot clusters (K, X, Y, Z) so that their summed Dice with the one-hot labels is the largest possible.

    Uses the truth, so it is an upper bound for the clustering: for baselines only.
    """

    def __init__(self, keys: KeysCollection, label_key: str = "label") -> None:
        super().__init__(keys)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        d = dict(data)
        truth = torch.as_tensor(d[self.label_key]).flatten(1).double()
        for key in self.key_iterator(d):
            clusters = torch.as_tensor(d[key])
            flat = clusters.flatten(1).double()
            total = flat.sum(1)[None] + truth.sum(1)[:, None]
            dice = 2 * truth @ flat.T / total.clamp(min=1)
            _, order = linear_sum_assignment(-dice.cpu().numpy())
            d[key] = convert_to_dst_type(clusters[torch.as_tensor(order)], d[key])[0]
        return d


class ShuffleBVecsd(Randomizable, MapTransform):
    """Permute the b-vectors among the diffusion-weighted volumes: a control that destroys all angular information.

    data[key]: (N, 3) world frame; `data["bvals"]`: (N,) s/mm².
    """

    def __init__(self, keys: KeysCollection = "bvecs", b0_threshold: float = 50.0) -> None:
        MapTransform.__init__(self, keys)
        self.b0_threshold = b0_threshold

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        d = dict(data)
        weighted = torch.nonzero(torch.as_tensor(d["bvals"]) > self.b0_threshold).flatten()
        order = weighted[torch.from_numpy(self.R.permutation(len(weighted)))]
        for key in self.key_iterator(d):
            shuffled = d[key].clone()
            shuffled[weighted] = d[key][order]
            d[key] = shuffled
        return d
