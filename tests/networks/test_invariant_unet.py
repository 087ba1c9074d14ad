"""`InvariantUNet`: the frame of the b-vectors does not matter, what is refused, export, memory format."""

import re
from functools import cache

import pytest
import torch

from dmri_monai.networks import InvariantUNet
from dmri_monai.phantom.voxel_signals import draw_batch
from dmri_monai.qspace.irreps_rotation import rotate_irreps
from dmri_monai.qspace.shell_set import shell_irreps
from dmri_monai.testing import cube_rotations

SHELLS = shell_irreps(2, 4)


def network(irreps_out="4x0e", size="tiny", **options):
    """In training mode: the norms of an untrained network in evaluation mode leave next to nothing of the input."""
    torch.manual_seed(0)
    return InvariantUNet(SHELLS, irreps_out, size, **options).train()


def adapted(**options):
    """In evaluation, its norms filled with statistics."""
    own = network(**options)
    with torch.no_grad():
        own(shells())
    return own.eval()


def shells(size=16):
    return drawn(size).clone()


@cache
def drawn(size):
    parts = [draw_batch(seed, 1, size**3, slots=2, l_max=4).channels for seed in range(2)]
    return torch.stack(parts).unflatten(2, (size,) * 3)


@pytest.mark.parametrize("number", [5, 28])
def test_turning_directions_alone_changes_nothing(number):
    turned = rotate_irreps(shells(), SHELLS, cube_rotations(reflections=True)[number])
    assert (turned - shells()).abs().max() > 0.1
    with torch.no_grad():
        torch.testing.assert_close(network()(turned), network()(shells()), rtol=1e-3, atol=1e-4)


def test_another_scan_gives_another_answer():
    """The control."""
    with torch.no_grad():
        first, second = network()(shells())
    assert (first - second).abs().max() > 0.1 * first.std()


@pytest.mark.parametrize(
    ("size", "training"), [((16, 15, 16), False), ((8, 8, 8), False), ((16, 31, 16), True)]
)
def test_a_size_that_is_too_small_is_named(size, training):
    own, image = network().train(training), torch.zeros(1, 37, *size)
    with pytest.raises(ValueError, match=re.escape(f"size {list(size)}")):
        own(image)
    larger = torch.rand(1, 37, 32 if training else 16, *(max(n, 16) for n in size[1:]))
    assert own(larger).shape[1:] == (4, *larger.shape[2:])


def test_sizes_and_features():
    with torch.no_grad():
        assert network()(shells()).shape == (2, 4, 16, 16, 16)
        assert network(None)(shells()).shape == (2, 4, 16, 16, 16)
    counts = [sum(p.numel() for p in network(size=size).parameters()) for size in ("tiny", "small", "base")]
    assert counts == sorted(counts)
    heads = {name for name, _ in network().named_parameters()} - {
        name for name, _ in network(None).named_parameters()
    }
    assert heads == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SHELLS, "1x2e"), "scalars"),
        ((shell_irreps(2, 0), "4x0e"), "l_max is 0"),
        (("2x0e+1x2e", "4x0e"), "not those of shells in slots"),
        ((SHELLS, "4x0e", "huge"), "size is 'huge'"),
        ((SHELLS, "4x0e", "tiny", 1.5), "own_statistics is 1.5, expected a number from 0 to 1"),
        ((SHELLS, "4x0e", "tiny", 0.5, 4), "outside is 4, expected the index of one of 4"),
        *(
            ((SHELLS, "4x0e", "tiny", wrong), f"own_statistics is {wrong!r}")
            for wrong in ("x", None, True, float("nan"), -1)
        ),
        *(((SHELLS, "4x0e", "tiny", 0.5, wrong), f"outside is {wrong!r}") for wrong in ("x", 1.5, True, -1)),
        ((SHELLS, None, "tiny", 0.5), "outside is 0, expected the index of one of 0"),
    ],
)
def test_what_it_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        InvariantUNet(*arguments)


@pytest.mark.parametrize("outside", [0, 3])
@torch.no_grad()
def test_own_statistics_change_the_other_classes_alone(outside):
    plain, own = adapted(), adapted(own_statistics=0.5, outside=outside)
    assert plain.state_dict().keys() == own.state_dict().keys()
    first, second = plain(shells()).softmax(1), own(shells()).softmax(1)
    torch.testing.assert_close(first[:, outside], second[:, outside])
    others = [c for c in range(4) if c != outside]
    assert ((first - second)[:, others].abs().amax(dim=(0, 2, 3, 4)) > 1e-4).all()
    torch.testing.assert_close(network(own_statistics=0.5)(shells()), network()(shells()))  # in training


@torch.no_grad()
def test_own_statistics_are_those_of_batch_norm_in_training():
    """All of them, of a single item: then classes are told apart as by torch's own norm of the item alone."""
    own = adapted(own_statistics=1.0)
    expected = own(shells()[:1].expand(2, -1, -1, -1, -1))
    found = adapted().train()(shells()[:1].expand(2, -1, -1, -1, -1))
    others = slice(1, None)
    torch.testing.assert_close(
        found[:, others].softmax(1), expected[:, others].softmax(1), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_an_item_is_answered_alike_whatever_lies_beside_it():
    own = adapted(own_statistics=0.5)
    torch.testing.assert_close(torch.cat([own(item[None]) for item in shells()]), own(shells()))


@torch.no_grad()
def test_air_around_the_head_changes_nothing():
    """Beyond the margin: statistics of the whole image would take it in."""
    own, image = adapted(own_statistics=0.5), shells(32)[:1]
    found = own(image)
    air = torch.nn.functional.pad(image, [16] * 6)
    inner = (..., *[slice(16, 48)] * 3)
    near = own(torch.nn.functional.pad(image, [8] * 6))[..., 8:40, 8:40, 8:40]
    torch.testing.assert_close(own(air)[inner], near)
    assert (own(air).argmax(1) == 0)[:, 0].all()
    assert (near - found).abs().max() > 0  # up to the margin, air is part of the image


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_other_precisions(dtype):
    own = adapted(own_statistics=0.5)
    expected = own(shells())
    found = own.to(dtype)(shells().to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < (
        1e-4 if dtype == torch.float64 else 0.05
    ) * expected.abs().max()


@pytest.mark.parametrize("frozen", ["body", "norms"])
@torch.no_grad()
def test_frozen_norms_of_a_network_in_training_are_the_stored_ones(frozen):
    plain, own = adapted().train(), adapted(own_statistics=0.5).train()
    for net in (plain, own):
        parts = (
            [net.body]
            if frozen == "body"
            else [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm3d)]
        )
        for part in parts:
            part.eval()
    torch.testing.assert_close(own(shells(32)[:1]), plain(shells(32)[:1]))
    own.eval().train()
    assert own.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("options", [{}, {"own_statistics": 0.5}], ids=["stored", "own"])
def test_exported_network_gives_the_same(options):
    own = adapted(**options)
    script = torch.jit.script(own)
    with torch.no_grad():
        torch.testing.assert_close(script(shells()), own(shells()))
