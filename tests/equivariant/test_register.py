import subprocess
import sys

import pytest

from dmri_monai.equivariant import (
    EquivariantAvgPool3d,
    EquivariantBatchNorm,
    EquivariantInstanceNorm,
    Gate,
    SteerableConv3d,
)


@pytest.fixture(scope="module")
def layers():
    from monai.networks import layers

    from dmri_monai.register import register_layers

    register_layers()
    register_layers()
    return layers


def test_layers_are_found_in_monais_factories(layers):
    assert layers.Conv["steerable", 3] is SteerableConv3d
    assert layers.Pool["equivariant_avg", 3] is EquivariantAvgPool3d
    assert isinstance(layers.get_pool_layer(("equivariant_avg", {}), 3), EquivariantAvgPool3d)
    irreps = {"irreps": "2x0e+1x1o"}
    assert isinstance(layers.get_norm_layer(("equivariant_instance", irreps), 3), EquivariantInstanceNorm)
    assert isinstance(layers.get_norm_layer(("equivariant_batch", irreps), 3), EquivariantBatchNorm)
    assert isinstance(layers.get_act_layer(("gate", irreps)), Gate)


def test_two_dimensional_layers_are_refused(layers):
    with pytest.raises(ValueError, match="3 spatial dimensions, not 2"):
        layers.Conv["steerable", 2]


def test_importing_the_layers_loads_neither_monai_nor_e3nn():
    code = "import sys, dmri_monai.equivariant; sys.exit('monai' in sys.modules or 'e3nn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
