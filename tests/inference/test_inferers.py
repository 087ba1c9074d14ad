import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from dmri_monai.inference.architectures import build_network, smallest_size
from dmri_monai.inference.inferers import (
    FullVolumeInferer,
    SymmetricWindowInferer,
    VolumeInferer,
    symmetric_windows,
)
from dmri_monai.inference.memory import PeakMemory, estimated_bytes
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.networks.input_checks import spacing_of


def volume(*size):
    return torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))


def blur(seed=0):
    torch.manual_seed(seed)
    return nn.Conv3d(2, 3, 5, padding=2).requires_grad_(False)


def normalizing():
    return nn.Sequential(blur(), nn.InstanceNorm3d(3)).requires_grad_(False)


@pytest.mark.parametrize("overlap", [0.25, 0.5], ids=["quarter", "half"])
@pytest.mark.parametrize("n", [20, 33, 48, 57, 60, 61, 97])
def test_windows_end_exactly_at_the_far_side_and_overlap_enough(n, overlap):
    size, step = symmetric_windows(n, 32, overlap)
    assert size <= 32
    if size < n:
        assert (n - size) % step == 0
        assert step <= size * (1 - overlap) + 1e-9
    else:
        assert size == n


def test_window_sizes_are_multiples_where_that_is_possible():
    size, step = symmetric_windows(60, 34, 0.5, multiple=4)
    assert size % 4 == 0
    assert (60 - size) % step == 0


def test_windows_of_a_pointwise_network_give_what_the_whole_volume_gives():
    network = nn.Conv3d(2, 3, 1).requires_grad_(False)
    image = volume(21, 18, 15)
    windows = SymmetricWindowInferer((9, 9, 9))
    torch.testing.assert_close(windows(image, network), network(image))
    assert windows.deviation < 1e-3


def test_windows_of_a_mirrored_volume_are_the_mirrored_windows():
    """Instance norm makes every window's answer depend on where it lies."""
    network = nn.InstanceNorm3d(2)
    image = volume(23, 18, 15)
    windows = SymmetricWindowInferer((10, 9, 9))
    mirrored = windows(image.flip(2, 3, 4), network).flip(2, 3, 4)
    torch.testing.assert_close(mirrored, windows(image, network), rtol=1e-4, atol=1e-5)


def test_a_single_odd_window_at_the_side_is_not_symmetric():
    """The control: windows whose starts are not symmetric fail the comparison above."""
    from monai.inferers import SlidingWindowInferer

    network, image = nn.InstanceNorm3d(2), volume(23, 18, 15)
    windows = SlidingWindowInferer((10, 9, 9), overlap=0.5, mode="gaussian")
    mirrored = windows(image.flip(2, 3, 4), network).flip(2, 3, 4)
    assert (mirrored - windows(image, network)).abs().max() > 1e-3


def test_deviation_says_how_much_overlapping_windows_disagree():
    windows = SymmetricWindowInferer((9, 9, 9))
    windows(volume(21, 18, 15), normalizing())
    assert 0.01 < windows.deviation < 1


def test_a_volume_that_fits_is_inferred_at_once():
    inferer, image, network = VolumeInferer(memory_gib=1.0), volume(20, 18, 16), normalizing()
    torch.testing.assert_close(inferer(image, network), network(image), rtol=0, atol=0)
    assert inferer.deviation == 0


def test_a_volume_that_does_not_fit_is_inferred_in_windows_and_says_so(caplog):
    inferer, image = VolumeInferer(memory_gib=0.001), volume(48, 40, 40)
    output = inferer(image, normalizing())
    assert output.shape == (1, 3, 48, 40, 40)
    assert inferer.deviation > 0
    assert "needs about" in caplog.text
    assert "disagree by" in caplog.text


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"architecture": "equivariant", "size": "tiny"}, 5),
        ({"architecture": "equivariant", "size": ["2x0e", "2x0e"]}, 3),
        ({"architecture": "any", "slots": 1, "size": ["2x0e", "2x0e"]}, 3),
        ({"architecture": "plain", "network_options": {"filters": 2}}, 9),
        ({"architecture": "invariants", "size": "tiny"}, 1),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_smallest_size_is_what_the_network_can_take_and_no_less(settings, least):
    spec = ModelSpec(task="tissue", **settings)
    network = build_network(spec).eval()
    assert smallest_size(network) == least
    run = FullVolumeInferer(spec.multiple)
    with torch.no_grad():
        run(torch.rand(1, spec.in_channels, least, 1, 1), network)
        if least > 1:
            with pytest.raises(ValueError, match="too small"):
                run(torch.rand(1, spec.in_channels, *[least - 1] * 3), network)


@pytest.mark.parametrize("n", range(9, 30))
def test_windows_of_the_least_size_that_is_named_do_for_every_volume(n):
    image = volume(n, 9, 9)
    with pytest.raises(ValueError, match=r"^window is 4 x 4 x 4, cut to .* give at least 8 along one axis$"):
        VolumeInferer(window=(4, 4, 4), smallest=5)(image, normalizing())
    assert VolumeInferer(window=(8, 4, 4), smallest=5)(image, lambda part: part).shape == image.shape


def test_window_of_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"window is \[32, 32\], expected three sizes"):
        SymmetricWindowInferer((32, 32))


def test_peak_memory_counts_what_is_alive_at_once():
    with PeakMemory() as memory:
        a = torch.ones(1000)  # 4000 bytes
        b = a + 1
        del a
        c = b * 2  # b and c
        c.view(10, 100)  # no new storage
    assert memory.peak == 8000
    assert memory.live == 8000
    del b, c
    assert memory.live == 0


def test_estimate_from_a_piece_is_the_peak_of_the_whole():
    network, image = normalizing(), volume(48, 40, 44)
    run = FullVolumeInferer()
    estimate = estimated_bytes(lambda part: run(part, network), image)
    with torch.no_grad(), PeakMemory() as memory:
        run(image, network)
    assert memory.peak <= estimate <= 2 * memory.peak


def test_estimate_holds_for_a_network_that_takes_voxels_by_chunks():
    spec = ModelSpec(architecture="any", slots=1, size=["4x0e+1x2e", "4x0e+1x2e"], task="tissue")
    network = build_network(spec).eval()
    image = torch.rand(1, spec.in_channels, 36, 30, 33)
    image[:, 1:2, :20] = 0  # air: the piece in the middle holds less of it
    run = FullVolumeInferer()
    for _ in range(2):  # kernels are built at the first
        estimate = estimated_bytes(lambda part: run(part, network), image)
    with torch.no_grad(), PeakMemory() as memory:
        network(image)
    assert memory.peak <= estimate <= 4 * memory.peak


def test_what_a_network_builds_once_does_not_count_as_if_it_grew():
    built = []

    def run(part):
        built.append(torch.zeros(2_000_000) if not built else None)  # 8 MB, as a kernel
        return part * 2

    image = volume(48, 40, 44)
    inferer = VolumeInferer(memory_gib=image.nelement() * 4 * 4 / 2**30)
    inferer(image, run)
    assert inferer.deviation == 0.0
    assert len(built) == 3  # two estimates, and the whole volume


def test_outputs_of_deep_supervision_pass_through():
    levels = [torch.zeros(1, 2, 8, 8, 8), torch.zeros(1, 2, 4, 4, 4)]
    assert FullVolumeInferer()(volume(8, 8, 8), lambda x: levels) is levels


def test_networks_are_told_the_voxel_size_in_windows_too():
    seen = []

    def network(image):
        seen.append(spacing_of(image))
        return image

    affine = torch.diag(torch.tensor([2.0, 2.5, 3.0, 1.0]))
    image = MetaTensor(volume(12, 9, 9), affine=affine)
    FullVolumeInferer(4)(image, network)
    SymmetricWindowInferer((6, 9, 9))(image, network)
    assert len(seen) > 2
    for size in seen:
        torch.testing.assert_close(size, torch.tensor([[2.0, 2.5, 3.0]], dtype=torch.float64))
    seen.clear()
    both = MetaTensor(torch.cat([volume(12, 9, 9)] * 2))
    both.affine = torch.stack([affine, torch.eye(4, dtype=affine.dtype)])
    SymmetricWindowInferer((6, 9, 5))(both, network)
    half = len(seen) // 2
    assert half > 3
    assert all(float(size[0, 2]) == 3.0 for size in seen[:half])
    assert all(float(size[0, 2]) == 1.0 for size in seen[half:])
    seen.clear()
    SymmetricWindowInferer((6, 9, 9))(image.as_tensor(), network)
    assert set(seen) == {None}
