"""Phantom subjects on the fly: training data without a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Unpack

import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dmri_monai.phantom.fields import Seed
from dmri_monai.phantom.scan_plan import SubjectOptions
from dmri_monai.phantom.subject import Subject, make_subject

__all__ = ["ItemStream", "PhantomStream", "subject_item"]


def subject_item(subject: Subject) -> dict[str, Any]:
    """The item a network is trained on: `image` (N, X, Y, Z), `bvals` (N,) and `bvecs` (N, 3) in the world frame,
    and `mask`, `label` (tissue), `lesion`, `npeaks` (1, X, Y, Z) and `peaks` (9, X, Y, Z; NaN for none).
    """

    def volume(values: Tensor) -> MetaTensor:
        values = values if values.ndim == 4 else values.unsqueeze(0)
        return MetaTensor(values.float(), affine=subject.affine)

    where = subject.image.device
    return {
        "image": subject.image,
        "bvals": subject.table.bvals.float().to(where),
        "bvecs": subject.table.bvecs.float().to(where),
        "mask": volume(subject.brain_mask),
        "label": volume(subject.dseg),
        "lesion": volume(subject.lesion),
        "npeaks": volume(subject.npeaks),
        "peaks": volume(subject.peaks_world),
    }


class ItemStream(IterableDataset[Any]):
    """Items made when asked for, `length` per epoch; a subclass says in `made` how.

    Item i of epoch e is a function of (`seed`, e, i) alone: however many workers and processes there are, they
    yield the same items, each once; with one worker, or batches of one, also in the same order. Batches of several
    need :func:`dmri_monai.transforms.collate_dwi`, which keeps every item's affine.

    transform: applied to each item.  rank, world_size: of distributed training.  Call :meth:`set_epoch` before an
    epoch; persistent workers see it too.
    """

    def __init__(
        self,
        *,
        length: int,
        seed: int = 0,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if length < 1:
            raise ValueError(f"length: {length}, expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: {rank} of {world_size} processes")
        self.length = length
        self.seed = seed
        self.transform = transform
        self.rank, self.world_size = rank, world_size
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def made(self, seed: Seed) -> dict[str, Any]:
        """The item of `seed`, before `transform`."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(range(self.rank, self.length, self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose items come next."""
        self.epoch.fill_(epoch)

    def item(self, index: int) -> Any:
        """Item `index` of the current epoch."""
        made = self.made((self.seed, int(self.epoch), index))
        return made if self.transform is None else self.transform(made)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = range(self.rank, self.length, self.world_size)
        for index in mine[part::parts]:
            yield self.item(index)


class PhantomStream(ItemStream):
    """Items of simulated subjects; keywords beside those of :class:`ItemStream` are those of :func:`make_subject`.

    An `acquisition` that randomises gives every item another protocol.
    """

    def __init__(
        self,
        *,
        length: int,
        seed: int = 0,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
        **options: Unpack[SubjectOptions],
    ) -> None:
        super().__init__(length=length, seed=seed, transform=transform, rank=rank, world_size=world_size)
        self.options = options

    def made(self, seed: Seed) -> dict[str, Any]:
        return subject_item(make_subject(seed, **self.options))
