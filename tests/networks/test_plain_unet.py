from pathlib import Path

import numpy as np
import pytest
import torch

from dmri_monai.networks import PlainUNet

ORACLE = Path(__file__).parents[3] / "shared" / "oracles" / "weninger_unet3d"
needs_oracle = pytest.mark.skipif(
    not ORACLE.is_dir(), reason="reference numbers of the 2022 U-Net are not here"
)


@pytest.fixture
def published():
    data = np.load(ORACLE / "io.npz")
    state = torch.load(ORACLE / "state_dict.pt", weights_only=True)
    return torch.from_numpy(data["x"]), torch.from_numpy(data["y"]), state


@needs_oracle
def test_published_weights_load_and_give_the_published_output(published):
    image, expected, state = published
    network = PlainUNet(in_channels=8, filters=4)
    network.load_state_dict(state)
    # the published numbers themselves are float32 of one CPU, 3e-6 of the largest off those of float64
    torch.testing.assert_close(network(image), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@needs_oracle
def test_other_weights_do_not_give_the_published_output(published):
    image, expected, _ = published
    torch.manual_seed(0)
    assert (PlainUNet(in_channels=8, filters=4)(image) - expected).abs().max() > 0.1


def test_default_body_is_the_published_one():
    network = PlainUNet()
    assert network.down_1[0][0].weight.shape == (16, 64, 3, 3, 3)
    assert isinstance(network.head, torch.nn.Identity)


def test_body_of_a_network_with_a_head_loads_a_headless_state_dict():
    body, network = PlainUNet(in_channels=4, filters=4), PlainUNet(in_channels=4, filters=4, out_channels=3)
    missing, unexpected = network.load_state_dict(body.state_dict(), strict=False)
    assert sorted(missing) == ["head.bias", "head.weight"]
    assert unexpected == []


def test_size_that_is_no_multiple_of_eight_raises_with_both_numbers():
    with pytest.raises(ValueError, match=r"\[8, 12, 8\] is not a multiple of 8"):
        PlainUNet(in_channels=1, filters=2)(torch.zeros(1, 1, 8, 12, 8))


def test_size_of_one_voxel_at_the_coarsest_level_is_refused():
    with pytest.raises(ValueError, match=r"\[8, 8, 8\] is too small, one axis must exceed 8 voxels"):
        PlainUNet(in_channels=1, filters=2)(torch.zeros(1, 1, 8, 8, 8))


def test_wrong_channel_count_raises_with_both_numbers():
    with pytest.raises(ValueError, match=r"\[1, 3, 8, 8, 8\], expected \[B, 1, X, Y, Z\]"):
        PlainUNet(in_channels=1, filters=2)(torch.zeros(1, 3, 8, 8, 8))
