"""Networks for any protocol: symmetries, the start from what a voxel tells, air, gradients, memory by chunks."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch.testing import assert_close

from dmri_monai.networks.any_protocol import AnyProtocolUNet
from dmri_monai.networks.voxelwise import DENSITY, SphereFeatures, VoxelHead, VoxelwiseNet
from dmri_monai.phantom.voxel_signals import draw_batch
from dmri_monai.qspace.shell_set import shell_irreps
from dmri_monai.testing import assert_equivariant, cube_rotations

SHELLS = shell_irreps(2, 6)
SIZE = ("2x0e+1x1o+1x2e+1x4e", "3x0e+1x1o+1x2e")
SMALL = {"size": SIZE, "channels": 3, "scalars": 6, "hidden": 4, "blocks": 2}
GROUP = [cube_rotations(reflections=True)[i] for i in (1, 9, 19, 30, 44)]


def shells(size: int = 4, batch: int = 2) -> torch.Tensor:
    """(batch, 63, size, size, size) simulated voxels, float64."""
    parts = [draw_batch(seed, 1, size**3, slots=2).channels for seed in range(batch)]
    return torch.stack(parts).unflatten(2, (size,) * 3).double()


def network(irreps_out: str | None = "3x0e", **options) -> AnyProtocolUNet:
    torch.manual_seed(0)
    return AnyProtocolUNet(SHELLS, irreps_out, **{**SMALL, **options}).double()


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Heads of the surroundings are zero to begin with, which would hide what they do."""
    torch.manual_seed(1)
    for parameter in module.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("irreps_out", ["3x0e", "1x2e", DENSITY + "+4x0e", "1x1o+1x0e", None])
def test_any_protocol_unet_is_equivariant(irreps_out):
    module = shaken(network(irreps_out)).eval()
    assert_equivariant(module, shells(), SHELLS, module.irreps_out, GROUP, rtol=1e-8)


def test_a_head_of_components_breaks_equivariance():
    module = shaken(network("1x2e")).eval()
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(lambda x: module(x).relu(), shells(), SHELLS, "1x2e", GROUP, rtol=1e-2)


def test_an_untrained_head_says_what_the_voxel_alone_says():
    module, x = network("1x0e+1x2e"), shells()
    alone = module.alone(x)[:, -6:]
    assert_close(module(x), alone)
    other = x.clone()
    other[..., 0] = x[..., 1]  # other neighbours, of the same scan
    assert_close(module(other)[..., 2:], alone[..., 2:])
    shaken(module)
    assert (module(other)[..., 2:] - module(x)[..., 2:]).abs().max() > 1e-4


def test_air_is_computed_once_and_alike():
    module, x = shaken(network()).eval(), shells()
    x[:, 1:3, 0], x[:, 9:, 0] = 0.0, 0.0  # no signal of any shell
    x[:, 0, 0] = 0.05 * torch.rand_like(x[:, 0, 0])
    alone = module.alone(x)
    assert_close(alone[:, :, 0], alone[:, :, 0, :1, :1].expand_as(alone[:, :, 0]))
    silent = x.clone()
    silent[:, 0][(x[:, 1:3] == 0).all(1)] = 0.0  # air was drawn elsewhere too
    direct = module.voxels(silent.flatten(2)).unflatten(2, x.shape[2:])
    assert_close(alone, direct)


def test_absent_slots_are_left_out_and_nothing_changes():
    seen: list[int] = []
    module, x = shaken(network()).eval(), shells(4, 1)
    module.voxelwise.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    for slot in (0, 1):
        absent = x.clone()
        absent[:, [1 + slot, 3 + slot, 5 + slot, 7 + slot]] = 0.0
        for start, dim in ((9, 5), (19, 9), (37, 13)):
            absent[:, start + dim * slot : start + dim * (slot + 1)] = 0.0
        absent[:, [2 - slot, 4 - slot]] = 1.0  # the other one is present, no voxel is air
        seen.clear()
        found = module.alone(absent)
        assert set(seen) == {32}
        assert_close(found, module.voxels(absent.flatten(2)).unflatten(2, x.shape[2:]))


def test_chunks_and_their_recomputation_change_nothing(monkeypatch):
    module, x = shaken(network()), shells()
    module(x).square().sum().backward()
    whole = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    module.zero_grad()
    monkeypatch.setattr("dmri_monai.networks.any_protocol.TRAINING_CHUNK", 24)
    module(x).square().sum().backward()
    parts = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    for a, b in zip(parts, whole, strict=True):
        assert_close(a, b)
    with torch.no_grad():
        quiet = module(x)
    module.chunk = 10
    with torch.no_grad():
        assert_close(module(x), quiet)


def test_deep_supervision_gives_every_level_of_the_decoder_in_training_only():
    module, x = network(deep_supervision=True, size=(*SIZE, "4x0e+1x1o")), shells(8, 1)
    assert [tuple(level.shape[2:]) for level in module.train()(x)] == [(8, 8, 8), (4, 4, 4)]
    assert module.eval()(x).shape == (1, 3, 8, 8, 8)


def test_weights_of_a_voxelwise_network_are_taken():
    trained = VoxelwiseNet(3, 6, 4, 2)
    module = network()
    module.load_voxelwise(trained.double().state_dict())
    for name, value in trained.features.state_dict().items():
        assert_close(module.voxelwise.state_dict()[name], value)


def test_tracing_gives_the_same_network():
    module, x = shaken(network()).float().eval(), shells(4, 1).float()
    with torch.no_grad():
        traced = torch.jit.trace(module, x, check_trace=False)
        assert_close(traced(x), module(x), atol=1e-5, rtol=1e-4)


def test_other_irreps_than_shells_in_slots_are_refused():
    with pytest.raises(ValueError, match="not those of shells in slots"):
        AnyProtocolUNet("3x0e+1x2e+1x4e", "3x0e")


def test_voxelwise_network_turns_its_density_and_keeps_its_fractions():
    torch.manual_seed(0)
    module = VoxelwiseNet(3, 6, 4, 2).double()
    assert_equivariant(module, shells(), SHELLS, DENSITY + "+4x0e", GROUP, rtol=1e-9)


def test_fractions_sum_to_one_and_the_density_has_the_mass_of_white_matter():
    out = VoxelwiseNet(3, 6, 4, 2).double()(shells())
    assert_close(out[:, 45:].sum(1), torch.ones_like(out[:, 0]))
    assert_close(out[:, 0] * (4 * torch.pi) ** 0.5, out[:, 45])


def test_fields_that_a_voxel_cannot_know_are_zero():
    features, head = SphereFeatures(3, 6, 4, 2, 6).double(), VoxelHead(3, 6, "1x1o+1x0o+1x2e").double()
    out = head(*features(shells().flatten(2)))
    assert out.shape[1] == 9
    assert out[:, :4].abs().max() == 0
    assert out[:, 4:].abs().max() > 1e-4


@pytest.mark.parametrize("irreps_out", ["1x0e+1x2e", "1x1o+1x0e", None])
def test_exported_network_is_the_same_at_any_size_and_number_of_shells(irreps_out):
    module = shaken(network(irreps_out)).float().eval()
    script = torch.jit.script(module)
    for size, slot in ((4, None), (6, 1)):
        x = shells(size, 1).float()
        if slot is not None:
            x[:, 3 + slot] = 0.0  # absent
            x[:, 1 + slot] = 0.0
            x[:, 1:3, 0], x[:, 9:, 0] = 0.0, 0.0  # air
        with torch.no_grad():
            assert_close(script(x), module(x), atol=1e-4, rtol=1e-4)


def test_export_of_a_network_trained_with_deep_supervision_gives_the_finest_level():
    module = network(deep_supervision=True, size=(*SIZE, "4x0e+1x1o")).float().train()
    script, x = torch.jit.script(shaken(module).eval()), shells(8, 1).float()
    with torch.no_grad():
        assert_close(script(x), module.eval()(x), atol=1e-4, rtol=1e-4)


def among_fibres(**options) -> AnyProtocolUNet:
    """A network of densities whose neighbours count."""
    module = network(DENSITY, neighbours=2, **options)
    torch.manual_seed(2)
    for layer in module.neighbours:
        torch.nn.init.normal_(layer.answer.weight)
        torch.nn.init.normal_(layer.pair.weight, std=3.0)
        torch.nn.init.zeros_(layer.level)
    torch.nn.init.constant_(module.head["voxel"].weights.bias[0], 1.0)  # fibres everywhere
    return module.eval()


def test_network_with_neighbours_is_equivariant():
    assert_equivariant(among_fibres(), shells(), SHELLS, DENSITY, GROUP, rtol=1e-8)


def test_neighbours_change_the_shape_of_a_density_but_not_its_mass():
    module, x = among_fibres(), shells()
    alone = module.alone(x)[:, module.told :][:, :45]
    found = module(x)
    assert_close(found[:, 0], alone[:, 0])
    assert (found[:, 1:] - alone[:, 1:]).norm() > 0.05 * alone[:, 1:].norm()
    x[:, 1:3, 0], x[:, 9:, 0] = 0.0, 0.0  # air
    assert_close(module(x)[:, :, 0], module.alone(x)[:, module.told :][:, :45, 0])
    nothing = among_fibres()
    torch.nn.init.constant_(nothing.head["voxel"].weights.bias[0], -9.0)  # no fibres, so no shapes to go by
    assert_close(nothing(x), nothing.alone(x)[:, nothing.told :][:, :45])


def test_neighbours_lie_where_the_meta_data_say():
    module, x = among_fibres(), shells(batch=1)
    cubes = MetaTensor(x, affine=torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0])))
    assert_close(module(cubes).as_tensor(), module(x))
    oblique = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    affine = torch.eye(4).double()
    affine[:3, :3] = oblique @ torch.diag(torch.tensor([2.0, 2.0, 6.0]).double())
    thick = module(MetaTensor(x, affine=affine)).as_tensor()
    assert (thick - module(x)).norm() > 1e-2 * thick[:, 1:].norm()
    straight = torch.diag(torch.tensor([2.0, 2.0, 6.0, 1.0]))
    assert_close(thick, module(MetaTensor(x, affine=straight)).as_tensor())


def test_exported_network_with_neighbours_is_the_same_on_cubes():
    module = among_fibres().float()
    script = torch.jit.script(module)
    for size in (4, 6):
        x = shells(size, 1).float()
        x[:, 1:3, 0], x[:, 9:, 0] = 0.0, 0.0
        with torch.no_grad():
            assert_close(script(x), module(x), atol=1e-4, rtol=1e-4)


def test_neighbours_learn_with_the_rest():
    module = among_fibres().train()
    module(shells()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.neighbours.parameters())
    assert all(float(layer.level.grad.abs()) > 0 for layer in module.neighbours)


@pytest.mark.parametrize("irreps_out", ["4x0e", "1x2e", None])
def test_neighbours_of_anything_but_a_density_are_refused(irreps_out):
    with pytest.raises(ValueError, match="neighbours are of a density"):
        network(irreps_out, neighbours=1)
