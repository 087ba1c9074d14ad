import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.transforms import Compose, RandScaleIntensityd

from dmri_monai.training.randomness import EpochSampler, SeededDataset, SeedEpochs, derive_seed


@pytest.fixture
def dataset():
    data = [{"x": torch.ones(1)} for _ in range(6)]
    return SeededDataset(data, Compose([RandScaleIntensityd("x", factors=0.5, prob=1.0)]), seed=3)


def draws(dataset, workers, epochs=(1, 2)):
    sampler = EpochSampler(dataset, seed=3)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers)
    result = []
    for epoch in epochs:
        sampler.epoch = epoch
        result.append(torch.cat([batch["x"].flatten() for batch in loader]))
    return torch.stack(result)


def test_draws_do_not_depend_on_the_number_of_workers(dataset):
    torch.testing.assert_close(draws(dataset, 2), draws(dataset, 0), rtol=0, atol=0)


def test_draws_of_an_epoch_do_not_depend_on_the_epochs_before(dataset):
    torch.testing.assert_close(draws(dataset, 0, (2,))[0], draws(dataset, 0)[1], rtol=0, atol=0)


def test_epochs_and_items_draw_differently(dataset):
    assert len(draws(dataset, 0).flatten().unique()) == 12


def test_plain_index_is_epoch_zero(dataset):
    torch.testing.assert_close(dataset[4]["x"], dataset[(0, 4)]["x"], rtol=0, atol=0)
    assert dataset[4]["item_seed"] == derive_seed(3, 0, 4)


def test_order_is_shuffled_anew_in_every_epoch():
    sampler = EpochSampler(range(20), seed=0)
    orders = []
    for epoch in (1, 2, 1):
        sampler.epoch = epoch
        orders.append(list(sampler))
    assert [i for _, i in orders[0]] != [i for _, i in orders[1]]
    assert orders[0] == orders[2]
    assert sorted(i for _, i in orders[0]) == list(range(20))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_any_transform_names_the_scan(workers):
    def broken(_):
        raise ValueError("no shell near b = 1000")

    data = [{"image": f"sub-0{i}_dwi.nii.gz"} for i in range(2)]
    loader = DataLoader(SeededDataset(data, Compose([broken])), batch_size=1, num_workers=workers)
    with pytest.raises(ValueError, match=r"sub-00_dwi\.nii\.gz: no shell near b = 1000"):
        next(iter(loader))


class Keys(torch.utils.data.Dataset):
    """Returns the key it is asked for."""

    def __len__(self):
        return 4

    def __getitem__(self, key):
        return key


def run_two_epochs(seed, start=0):
    seen = []
    engine = Engine(lambda engine, batch: seen.append((batch[0], float(torch.rand(1)))))
    SeedEpochs(seed).attach(engine)
    sampler = EpochSampler(range(4), seed)
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", start))
    engine.run(torch.utils.data.DataLoader(Keys(), batch_size=None, sampler=sampler), max_epochs=2)
    return seen


def test_handler_tells_the_sampler_the_epoch():
    assert [epoch for epoch, _ in run_two_epochs(1)] == [1] * 4 + [2] * 4


def test_handler_makes_torch_draw_the_same_in_a_resumed_epoch():
    assert run_two_epochs(1, start=1) == run_two_epochs(1)[4:]


def test_another_seed_draws_differently():
    assert run_two_epochs(1) != run_two_epochs(2)
