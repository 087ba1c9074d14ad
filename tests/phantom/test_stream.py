import pytest
import torch
from torch.utils.data import DataLoader

from dmri_monai.phantom import Acquisition, PhantomStream, make_subject

TINY = {"shape": (12, 14, 12), "spacing_mm": (10.0, 10.0, 10.0), "scheme": "clinical-32"}


def images(stream: PhantomStream, workers: int = 0) -> list[torch.Tensor]:
    loader = DataLoader(
        stream, batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    return [item["image"].as_tensor() for item in loader]


def test_item_is_the_subject_of_seed_epoch_and_index():
    stream = PhantomStream(length=3, seed=5, **TINY)
    stream.set_epoch(2)
    expected = make_subject((5, 2, 1), **TINY)
    item = stream.item(1)
    assert torch.equal(item["image"].as_tensor(), expected.image.as_tensor())
    assert torch.equal(item["label"].as_tensor()[0], expected.dseg.float())
    assert item["bvecs"].shape == (36, 3)
    torch.testing.assert_close(item["peaks"].affine, expected.affine)


def test_two_workers_yield_the_items_of_one_in_the_same_order():
    alone = images(PhantomStream(length=4, seed=1, **TINY))
    shared = images(PhantomStream(length=4, seed=1, **TINY), workers=2)
    assert len(shared) == 4
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a, b)


def test_processes_share_the_items_between_them():
    whole = images(PhantomStream(length=4, seed=1, **TINY))
    parts = [images(PhantomStream(length=4, seed=1, rank=r, world_size=2, **TINY)) for r in (0, 1)]
    assert [len(p) for p in parts] == [2, 2]
    for i, image in enumerate(whole):
        assert torch.equal(image, parts[i % 2][i // 2])


def test_another_epoch_brings_other_items_also_to_living_workers():
    stream = PhantomStream(length=2, seed=1, **TINY)
    loader = DataLoader(
        stream, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    first = [item["image"].as_tensor() for item in loader]
    stream.set_epoch(1)
    second = [item["image"].as_tensor() for item in loader]
    assert not torch.equal(first[0], second[0])
    stream.set_epoch(0)
    again = [item["image"].as_tensor() for item in loader]
    assert torch.equal(first[0], again[0])


def test_transform_is_applied_to_every_item():
    stream = PhantomStream(length=2, transform=lambda item: item["bvals"].shape, **TINY)
    assert list(stream) == [(36,), (36,)]


def test_randomised_items_have_other_tables():
    stream = PhantomStream(length=3, spacing_mm=(10.0, 10.0, 10.0), acquisition=Acquisition(randomise=True))
    assert len({len(item["bvals"]) for item in stream}) > 1


@pytest.mark.parametrize(
    "bad", [{"length": 0}, {"length": 2, "rank": 2, "world_size": 2}], ids=["empty", "rank"]
)
def test_impossible_streams_are_refused(bad):
    with pytest.raises(ValueError, match="length|rank"):
        PhantomStream(**bad)
