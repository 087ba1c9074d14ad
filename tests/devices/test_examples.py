"""Everything that takes tensors works on another device than the CPU, with the CPU's results, and stays there."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from dmri_monai import equivariant, losses, metrics, networks, transforms
from tests.devices.examples import EXAMPLES, NO_TENSORS, drawn
from tests.devices.other_device import OTHER, MixedDevicesError, other_device, values

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_works_on_another_device_and_gives_the_cpus_result(name: str) -> None:
    expected = tree_leaves(EXAMPLES[name](CPU))
    with other_device():
        found = tree_leaves(EXAMPLES[name](OTHER))
    assert found
    assert all(isinstance(tensor, Tensor) and tensor.device == OTHER for tensor in found)
    for one, other in zip(found, expected, strict=True):
        assert_close(values(one), values(other), rtol=1e-4, atol=1e-5, equal_nan=True)


def exported(package: Any) -> set[str]:
    names = getattr(package, "__all__", None) or dir(
        package
    )  # the metrics are loaded when they are first used
    return {n for n in names if not n.startswith("_") and not isinstance(getattr(package, n), ModuleType)}


@pytest.mark.parametrize(
    "package", [transforms, equivariant, networks, losses, metrics], ids=lambda p: p.__name__
)
def test_whatever_the_package_exports_has_an_example_or_a_reason(package: Any) -> None:
    names = exported(package)
    assert names
    assert not names - set(EXAMPLES) - set(NO_TENSORS)


def test_no_example_and_no_reason_is_left_over() -> None:
    packages = (transforms, equivariant, networks, losses, metrics)
    names = set().union(*map(exported, packages))
    assert not (set(EXAMPLES) | set(NO_TENSORS)) - names
    assert not set(EXAMPLES) & set(NO_TENSORS)


class _Forgetful(nn.Module):
    """Makes a constant on the CPU, whatever the device of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(x.shape[-1])


class _Buffered(nn.Module):
    """The same with a buffer, which goes where the module goes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


def test_a_constant_on_the_cpu_is_caught() -> None:
    x = drawn(2, 3)
    assert_close(_Forgetful()(x), _Buffered()(x))
    with other_device():
        assert_close(values(_Buffered().to(OTHER)(x.to(OTHER))), x + 1)
        with pytest.raises(MixedDevicesError, match=r"aten.add.Tensor on tensors of two devices"):
            _Forgetful().to(OTHER)(x.to(OTHER))


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: torch.cat([x, torch.ones(1)]),
        lambda x: torch.where(x > 0, x, torch.zeros(3)),
        lambda x: torch.ones(3)[x > 0],
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: torch.rand(3, device=OTHER, generator=torch.Generator()),
        lambda x: torch.nn.functional.conv1d(x[None], torch.ones(1, 1, 1)),
        lambda x: x.requires_grad_().mul(x).backward(torch.ones(3)),
    ],
    ids=["cat", "where", "index of the CPU", "index_select", "generator", "convolution", "backward"],
)
def test_mixed_devices_are_refused_where_cuda_refuses_them(mixed: Any) -> None:
    with other_device(), pytest.raises((MixedDevicesError, RuntimeError), match="device|generator"):
        mixed(drawn(3).to(OTHER))


@pytest.mark.parametrize(
    "allowed",
    [
        lambda x: x + torch.tensor(1.0),
        lambda x: x[torch.tensor([0, 2])],
        lambda x: x.masked_fill(x > 0, torch.tensor(1.0)),
        lambda x: torch.rand(3, device=OTHER, generator=torch.Generator(OTHER)),
        lambda x: torch.ones(3).copy_(x).to(x),
    ],
    ids=["number", "index from the CPU", "fill", "generator", "copy"],
)
def test_what_cuda_takes_from_the_cpu_is_allowed(allowed: Any) -> None:
    with other_device():
        assert allowed(drawn(3).to(OTHER)).device == OTHER


def test_numpy_is_refused() -> None:
    with other_device(), pytest.raises(TypeError, match="use Tensor.cpu"):
        drawn(3).to(OTHER).numpy()


@pytest.mark.parametrize(
    ("read", "operation"),
    [
        (lambda x: x[0].item(), "item"),
        (lambda x: bool((x > 0).any()), "item"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.tolist(), "cpu"),
        (lambda x: x[x > 0], "boolean indexing"),
        (lambda x: x.nonzero(), "nonzero"),
    ],
)
def test_what_the_cpu_waits_for_is_noted(read: Any, operation: str) -> None:
    with other_device() as waits:
        x = drawn(3).to(OTHER)
        x.square().sum()
        assert not waits
        read(x)
    assert [wait.operation for wait in waits] == [operation]
