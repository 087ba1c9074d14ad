"""The layers in MONAI's blocks, by name."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from dmri_monai.equivariant import (
    EquivariantAvgPool3d,
    EquivariantBatchNorm,
    EquivariantInstanceNorm,
    Gate,
    NormActivation,
    SteerableBlock,
    SteerableConv3d,
)
from dmri_monai.testing import assert_equivariant

FIELD_IN, FIELD_OUT = "1x0e+1x2e", "2x0e+1x1o"


@pytest.fixture(scope="module")
def layers():
    from monai.networks import layers

    from dmri_monai.register import register_layers

    register_layers()
    register_layers()
    return layers


def monai_block(norm: str, act: str):
    """A steerable convolution with the rest of a MONAI block, all of it named."""
    from monai.networks.blocks import ADN

    gate = Gate(FIELD_OUT)
    emitted = str(gate.irreps_in if act == "gate" else gate.irreps_out)
    torch.manual_seed(0)
    conv = SteerableConv3d(FIELD_IN, emitted, 3)
    rest = ADN("NA", norm=(norm, {"irreps": emitted}), act=(act, {"irreps": FIELD_OUT}), norm_dim=3)
    return torch.nn.Sequential(conv, rest)


@pytest.mark.parametrize("norm", ["equivariant_instance", "equivariant_batch"])
@pytest.mark.parametrize("act", ["gate", "norm_activation"])
@pytest.mark.usefixtures("layers")
def test_a_block_of_monai_made_of_our_layers_is_equivariant(norm, act):
    x = torch.randn(2, 6, 5, 5, 5, generator=torch.Generator().manual_seed(1))
    assert_equivariant(monai_block(norm, act), x, FIELD_IN, FIELD_OUT, rtol=1e-4)


@pytest.mark.usefixtures("layers")
def test_a_block_of_monai_with_its_own_layers_is_not_equivariant():
    from monai.networks.blocks import ADN

    torch.manual_seed(0)
    block = torch.nn.Sequential(SteerableConv3d(FIELD_IN, FIELD_OUT, 3), ADN("NA", 5, "relu", "instance", 3))
    x = torch.randn(2, 6, 5, 5, 5, generator=torch.Generator().manual_seed(1))
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(block, x, FIELD_IN, FIELD_OUT, rtol=1e-2)


@pytest.mark.usefixtures("layers")
def test_a_block_of_monai_gives_what_our_block_gives():
    theirs = monai_block("equivariant_instance", "gate")
    ours = SteerableBlock(3, FIELD_IN, FIELD_OUT)
    ours.conv.load_state_dict(theirs[0].state_dict())
    x = torch.randn(1, 6, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    assert_close(theirs(x), ours(x))


def test_layers_are_found_in_monais_factories(layers):
    assert layers.Pool["equivariant_avg", 3] is EquivariantAvgPool3d
    assert isinstance(layers.get_pool_layer(("equivariant_avg", {}), 3), EquivariantAvgPool3d)
    irreps = {"irreps": "2x0e+1x1o"}
    assert isinstance(layers.get_norm_layer(("equivariant_instance", irreps), 3), EquivariantInstanceNorm)
    assert isinstance(layers.get_norm_layer(("equivariant_batch", irreps), 3), EquivariantBatchNorm)
    assert isinstance(layers.get_act_layer(("gate", irreps)), Gate)
    assert isinstance(layers.get_act_layer(("norm_activation", irreps)), NormActivation)


def test_two_dimensional_layers_are_refused(layers):
    with pytest.raises(ValueError, match="3 spatial dimensions, not 2"):
        layers.Norm["equivariant_instance", 2]


IMPORT_EVERYTHING = """
import importlib, pkgutil
import dmri_monai
from monai.networks import nets
from monai.networks.layers.factories import Act, Conv, Norm, Pool

def entries():
    return set(vars(nets)), *(set(factory.components) for factory in (Act, Conv, Norm, Pool))

before = entries()
for module in pkgutil.walk_packages(dmri_monai.__path__, "dmri_monai."):
    try:
        importlib.import_module(module.name)
    except ImportError:  # of an optional package
        pass
assert entries() == before, [later - earlier for later, earlier in zip(entries(), before)]
from dmri_monai.register import register
register()
assert entries() != before  # the control
"""


@pytest.mark.slow
def test_importing_any_module_changes_nothing_in_monai():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
