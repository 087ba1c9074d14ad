"""Randomness as a function of (seed, epoch, item), so that worker count, interruption and resume change nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset
from monai.transforms import Compose
from torch.utils.data import Sampler

from dmri_monai.failures import naming_scan
from dmri_monai.training.caching import DiskCache

__all__ = ["EpochSampler", "SeedEpochs", "SeededDataset", "derive_seed", "seed_everything"]


def derive_seed(*parts: object) -> int:
    """Seed in [0, 2**32) that depends on every part, e.g. (seed, epoch, index).

    >>> derive_seed(0, 1, 2) == derive_seed(0, 1, 2), derive_seed(0, 1, 2) == derive_seed(0, 12)
    (True, False)
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


class SeededDataset(CacheDataset):
    """MONAI dataset whose random transforms are reseeded for every (epoch, index) that is asked for.

    Keys are (epoch, index) pairs, as :class:`EpochSampler` yields them, or plain indices (epoch 0). Each item also
    gets `item_seed`, for randomness that is applied later, on the training device.

    The output of the leading deterministic transforms can be kept, which changes no result: `cache_rate` is the share
    of the items kept in memory, where whole dMRI scans rarely fit; `cache_dir` a folder, see :class:`DiskCache`.
    """

    def __init__(
        self,
        data: Sequence[dict],
        transform: Compose,
        seed: int = 0,
        cache_rate: float = 0.0,
        cache_dir: str | Path | None = None,
    ) -> None:
        if cache_rate and cache_dir is not None:
            raise ValueError(
                f"cache_rate is {cache_rate} and cache_dir is {cache_dir}: set one of them alone"
            )
        self.seed = seed
        super().__init__(data=data, transform=transform, cache_rate=cache_rate, num_workers=1, progress=False)
        self.disk = None if cache_dir is None else DiskCache(cache_dir, self.transform)

    def __getitem__(self, key: tuple[int, int] | int) -> Any:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        item_seed = derive_seed(self.seed, epoch, index)
        self.transform.set_random_state(seed=item_seed)
        with naming_scan(self.data[index].get("image")):
            item = super().__getitem__(index)
        for part in item if isinstance(item, list) else [item]:
            part["item_seed"] = item_seed
        return item

    def _transform(self, index: int) -> Any:
        if self.disk is None:
            return super()._transform(index)
        kept = self.disk(self.data[index])
        return kept if self.disk.end is None else self.transform(kept, start=self.disk.end)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs of `data_source`, shuffled by (seed, epoch); :class:`SeedEpochs` sets the epoch.

    Of n processes, each gets every n-th pair, so that their batches together are those of one process with a batch n
    times as large; where the number of items is not a multiple of n, the first ones are used twice.
    """

    def __init__(self, data_source: Sequence, seed: int = 0, shuffle: bool = True) -> None:
        self.data_source = data_source
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.data_source) // idist.get_world_size())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(len(self.data_source))
        if self.shuffle:
            np.random.RandomState(derive_seed(self.seed, self.epoch, "order")).shuffle(order)
        processes = idist.get_world_size()
        mine = np.resize(order, len(self) * processes)[idist.get_rank() :: processes]
        return ((self.epoch, int(index)) for index in mine)


class SeedEpochs:
    """Ignite handler: at the start of an epoch, reseeds torch and tells the trainer's sampler which epoch it is."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        torch.manual_seed(derive_seed(self.seed, engine.state.epoch))
        sampler = getattr(engine.state.dataloader, "sampler", None)
        if isinstance(sampler, EpochSampler):
            sampler.epoch = engine.state.epoch


def seed_everything(seed: int) -> None:
    """Seed torch (all devices): the initial weights are then a function of the seed."""
    torch.manual_seed(seed)
