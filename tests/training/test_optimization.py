import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.optimizers import WarmupCosineSchedule

from dmri_monai.networks import PlainUNet
from dmri_monai.training.optimization import FreezeBody, cosine, parameter_groups


@pytest.fixture
def network():
    return PlainUNet(in_channels=2, out_channels=3, filters=2)


def test_without_rates_the_parameters_are_the_networks(network):
    assert [id(p) for p in parameter_groups(network)] == [id(p) for p in network.parameters()]


def test_every_parameter_gets_the_rate_of_the_longest_prefix(network):
    groups = parameter_groups(network, {"": 1e-4, "head.": 1e-2, "up_": 1e-3})
    optimizer = torch.optim.SGD(groups, lr=1.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    expected = {"head.weight": 1e-2, "up_1.0.0.weight": 1e-3, "down_1.0.0.weight": 1e-4}
    assert {name: rates[id(network.get_parameter(name))] for name in expected} == expected


def test_parameters_of_no_prefix_keep_the_optimizers_rate(network):
    optimizer = torch.optim.SGD(parameter_groups(network, {"head.": 0.5}), lr=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]


def test_prefix_that_fits_nothing_names_the_parts(network):
    with pytest.raises(
        ValueError, match="no parameter begins with 'decoder'; the network has down_1, down_2"
    ):
        parameter_groups(network, {"decoder": 0.1})


def test_body_is_frozen_in_the_first_epochs_alone(network):
    engine = Engine(lambda engine, batch: None)
    FreezeBody(network, epochs=2).attach(engine)
    seen = []

    def note(engine):
        seen.append([network.head.weight.requires_grad, network.down_1[0][0].weight.requires_grad])

    engine.add_event_handler("EPOCH_COMPLETED", note)
    engine.run([0], max_epochs=3)
    assert seen == [[True, False], [True, False], [True, True]]


def test_negative_number_of_frozen_epochs_is_refused(network):
    with pytest.raises(ValueError, match="frozen_epochs is -1"):
        FreezeBody(network, -1)


def ours(optimizer, length):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(length))


def monais(optimizer, length):
    return WarmupCosineSchedule(optimizer, warmup_steps=0, t_total=length)


def rates(length, epochs, state=None, schedule=ours):
    """Learning rate after each of `epochs` epochs, and the state of the schedule."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = schedule(optimizer, length)
    if state:
        schedule.load_state_dict(state)
    found = []
    for _ in range(epochs):
        optimizer.step()
        schedule.step()
        found += schedule.get_last_lr()
    return found, schedule.state_dict()


def test_rate_falls_along_half_a_cosine():
    np.testing.assert_allclose(rates(4, 4)[0], 0.05 * (1 + np.cos(np.pi * np.arange(1, 5) / 4)), atol=1e-12)


def test_rates_are_those_of_monais_schedule():
    np.testing.assert_allclose(rates(7, 7)[0], rates(7, 7, schedule=monais)[0], atol=1e-15)


def test_training_resumed_with_more_epochs_has_the_schedule_of_its_new_length():
    _, state = rates(4, 4)
    np.testing.assert_allclose(rates(8, 4, state)[0], rates(8, 8)[0][4:], atol=1e-12)


def test_monais_schedule_would_keep_the_old_length():
    _, state = rates(4, 3, schedule=monais)
    resumed, _ = rates(8, 1, state, monais)
    np.testing.assert_allclose(resumed, [0.0], atol=1e-12)
    assert rates(8, 4)[0][3] > 0.04
