"""In eval mode `PQConv3d` builds what depends on weights and tables once."""

import copy
import pickle

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from dmri_monai.equivariant import Concat, PQConv3d, PQDiff, PQTensorProduct, PSpace, Sum
from dmri_monai.equivariant.pq import pqconv

KERNELS = {
    "TP": PQTensorProduct(),
    "PQDiff": PQDiff(),
    "Sum": Sum(PQDiff(), PQTensorProduct()),
    "Concat": Concat((PQDiff(), "1x0e"), (PSpace(), "1x1o")),
}


def layer_of(kernel, **options) -> PQConv3d:
    torch.manual_seed(0)
    return PQConv3d("1x0e", "1x0e+1x1o", 3, kernel, **options).eval()


def table(samples=4, seed=0) -> torch.Tensor:
    return normalize(torch.randn(samples, 3, generator=torch.Generator().manual_seed(seed)), dim=1)


def volume(size=4, seed=1, batch=2) -> torch.Tensor:
    return torch.randn(batch, 1, 4, size, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", KERNELS)
def test_a_second_call_with_the_same_table_builds_nothing(name, monkeypatch):
    layer = layer_of(KERNELS[name])
    layer(volume(), table())
    monkeypatch.setattr(layer.operator, "prepare", lambda *_: pytest.fail("the kernel was built again"))
    y = layer(volume(seed=2), table())
    monkeypatch.undo()
    assert_close(y, copy.deepcopy(layer)(volume(seed=2), table()))


def other_table(layer):
    return table(seed=5)


def table_changed_in_place(layer):
    q = table()
    layer(volume(), q)
    return q.neg_().roll(1, 1)


def loaded_weights(layer):
    layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()})
    return table()


def weights_changed_in_place(layer):
    layer.operator.weight.add_(1)
    return table()


def training_step(layer):
    layer.train()
    with torch.enable_grad():
        layer(volume(), table()).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=10.0).step()
    layer.eval()
    return table()


CHANGES = [other_table, table_changed_in_place, loaded_weights, weights_changed_in_place, training_step]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["TP", "PQDiff"])
def test_kept_kernels_follow_tables_and_weights(name, change):
    layer = layer_of(KERNELS[name])
    before = layer(volume(), table())
    q = change(layer)
    y = layer(volume(), q)
    assert_close(y, copy.deepcopy(layer)(volume(), q))
    assert (y - before).abs().max() > 1e-3


def test_kept_kernels_follow_size_and_precision():
    layer = layer_of(PQTensorProduct())
    layer(volume(), table())
    assert_close(layer(volume(7), table()), copy.deepcopy(layer)(volume(7), table()))
    low = layer(volume(), table())
    assert_close(layer.double()(volume().double(), table()), low.double(), atol=1e-5, rtol=1e-4)


def test_copies_and_pickles_carry_no_kept_kernel():
    layer = layer_of(PQDiff())
    y = layer(volume(), table())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._kept is None
        assert_close(other(volume(), table()), y)
    assert layer._kept is not None


def test_kernels_beyond_the_limit_are_not_kept(monkeypatch):
    monkeypatch.setattr(pqconv, "LARGEST_KEPT", 1000)
    layer = layer_of(PQDiff())
    assert_close(layer(volume(), table()), layer(volume(), table()))
    assert layer._kept is None


def test_a_kernel_kept_in_inference_mode_does_not_reach_a_training_step():
    layer = layer_of(PQDiff())
    with torch.inference_mode():
        y = layer(volume(), table())
    with torch.enable_grad():
        again = layer(volume(), table())
        again.sum().backward()
    assert_close(again, y.clone())
