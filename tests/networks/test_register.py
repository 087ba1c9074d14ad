import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks import nets

from dmri_monai import networks
from dmri_monai.register import NETWORKS, register

LEVELS = ["2x0e+1x1o+1x2e", "3x0e+1x1o+1x2e"]
ARGUMENTS = {
    "AnyProtocolUNet": {
        "irreps_in": "9x0e+2x2e+2x4e",
        "irreps_out": "4x0e",
        "size": LEVELS,
        "channels": 2,
        "hidden": 4,
    },
    "EquivariantUNet": {
        "irreps_in": "2x0e+1x2e",
        "irreps_out": "4x0e",
        "size": LEVELS,
        "spacing": [2, 2, 2.5],
    },
    "InvariantUNet": {"irreps_in": "9x0e+2x2e+2x4e", "irreps_out": "4x0e", "size": "tiny"},
    "PQSegmentationNet": {
        "irreps_out": "1x0e",
        "b_max": 1000,
        "pq": [[2, 1]],
        "p": ["3x0e+1x1o"],
        "kernel_size": 3,
    },
    "PlainUNet": {"in_channels": 7, "out_channels": 4, "filters": 2},
}


@pytest.fixture
def without_ours(monkeypatch):
    for network in NETWORKS:
        monkeypatch.delattr(nets, network.__name__, raising=False)


def test_every_network_of_the_package_is_registered():
    public = {name for name in networks.__all__ if issubclass(getattr(networks, name), torch.nn.Module)}
    assert {network.__name__ for network in NETWORKS} == public == set(ARGUMENTS)


@pytest.mark.usefixtures("without_ours")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_config_finds_the_network_among_those_of_monai(name):
    entry = {"_target_": f"monai.networks.nets.{name}", **ARGUMENTS[name]}
    config = {
        "imports": ["$import dmri_monai"],
        "network": {"_requires_": "$dmri_monai.register.register()", **entry},
    }
    assert type(ConfigParser(config).get_parsed_content("network")) is getattr(networks, name)


@pytest.mark.usefixtures("without_ours")
def test_a_config_that_registers_nothing_does_not_find_the_network():
    entry = {"_target_": "monai.networks.nets.EquivariantUNet", **ARGUMENTS["EquivariantUNet"]}
    with pytest.raises(ModuleNotFoundError, match=r"monai\.networks\.nets\.EquivariantUNet"):
        ConfigParser({"network": entry}).get_parsed_content("network")


@pytest.mark.usefixtures("without_ours")
def test_a_name_that_monai_has_is_left_alone(monkeypatch):
    class PlainUNet(torch.nn.Module):
        """What a later MONAI might bring."""

    monkeypatch.setattr(nets, "PlainUNet", PlainUNet, raising=False)
    register()
    assert nets.PlainUNet is PlainUNet
    assert nets.EquivariantUNet is networks.EquivariantUNet


@pytest.mark.usefixtures("without_ours")
def test_registering_twice_changes_nothing():
    register()
    first = nets.EquivariantUNet
    register()
    assert nets.EquivariantUNet is first
