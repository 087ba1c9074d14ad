import pytest
import torch
from torch.nn.functional import normalize

from dmri_monai.equivariant import Bessel, PQDiff, PQTensorProduct, PSpace, QSpace, RadialMLP, Sum
from dmri_monai.networks import PQOptions, PQSegmentationNet
from dmri_monai.networks.samples import combine_b0, spread_subset
from dmri_monai.testing import act_on_field, assert_equivariant, cube_rotations

B_MAX = 3000.0
PUBLISHED = PQOptions(parity=False, antipodal=False, scaling="sqrt")
QUARTER_TURN = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def scan(volumes: int = 8, batch: int = 1, size=(6, 5, 7)):
    """Image, b-values (two b0, then shells of 1000 and 3000) and unit b-vectors in the voxel frame."""
    bvals = torch.tensor([0.0, 5.0, *(1000.0 if n % 2 else 3000.0 for n in range(volumes - 2))])
    bvecs = normalize(torch.randn(batch, volumes, 3), dim=-1)
    bvecs[:, :2] = 0
    return torch.rand(batch, volumes, *size), bvals.expand(batch, -1), bvecs


def tiny(irreps_out: str | None = "1x0e", pq=((2, 1),), p=((3, 1),), **options) -> PQSegmentationNet:
    return PQSegmentationNet(irreps_out, B_MAX, pq, p, **{"kernel_size": 3, **options}).eval()


def turn(g, inputs):
    image, bvals, bvecs = inputs
    return act_on_field(g, image, f"{image.shape[1]}x0e"), bvals, bvecs @ g.T.to(bvecs)


def turn_voxels_only(g, inputs):
    return turn(g, inputs)[0], *inputs[1:]


def run(network):
    return lambda inputs: network(*inputs)


VARIANTS = {
    "score": {},
    "axis": {"irreps_out": "1x2e"},
    "vector": {"irreps_out": "1x1o"},
    "published": {"options": PUBLISHED},
    "pq-diff+p": {"kernel": Sum(PQDiff(l_max=2), PSpace(l_max=2))},
    "pq-diff+q": {"kernel": Sum(PQDiff(l_max=2), QSpace(l_max=2)), "options": PUBLISHED},
    "TP-vec": {"kernel": PQTensorProduct(rule="TP-vec")},
    "radial-mlp": {"kernel": PQTensorProduct(p_radial=Bessel(mlp=RadialMLP((5, 5))))},
    "mean": {"reduction": "mean"},
    "conv": {"reduction": "conv"},
    "gradual": {"pq": ((2, 1), (2, 1)), "reduction": "conv", "options": PQOptions(q_out=(5, 3))},
    "instance-norm": {"options": PQOptions(norm="instance")},
    "batch-norm-relu": {"options": PQOptions(norm="batch", activation="relu")},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_output_turns_when_image_and_directions_turn_together(variant):
    network = tiny(**variant)
    group = cube_rotations()[1::3]
    assert_equivariant(run(network), scan(), turn, network.irreps_out, group, rtol=1e-4)


@pytest.mark.parametrize("irreps_out", ["1x0e", "1x1o", "1x2e"])
def test_default_symmetry_is_that_of_the_whole_cube_with_reflections(irreps_out):
    group = cube_rotations(reflections=True)
    assert_equivariant(run(tiny(irreps_out)), scan(), turn, irreps_out, group, rtol=1e-4)


def test_image_turned_without_its_directions_is_noticed():
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(run(tiny()), scan(), turn_voxels_only, "1x0e", [QUARTER_TURN], rtol=1e-4)


def test_paper_sized_network_is_the_default():
    network = PQSegmentationNet("1x0e", 1000.0)
    fields = [str(layer.gate.irreps_out) for layer in network.pq_layers]
    assert fields == ["7x0e+4x1o"]
    assert [str(layer.irreps_out) for layer in network.p_layers] == ["20x0e+5x1o", "10x0e+3x1o", "5x0e+2x1o"]
    assert network.head.kernel_size == 5


@pytest.mark.parametrize("variant", ["score", "conv", "gradual", "instance-norm"])
def test_padding_a_batch_to_any_length_changes_nothing(variant):
    network = tiny(**VARIANTS[variant])
    image, bvals, bvecs = scan(7)
    filler = torch.full((1, 4, *image.shape[2:]), torch.nan)
    longer = (
        torch.cat([image, filler], 1),
        torch.cat([bvals, torch.zeros(1, 4)], 1),
        torch.cat([bvecs, torch.zeros(1, 4, 3)], 1),
    )
    mask = torch.arange(11).unsqueeze(0) < 7
    with torch.no_grad():
        torch.testing.assert_close(network(*longer, mask), network(image, bvals, bvecs), rtol=1e-6, atol=1e-6)


def test_scans_of_different_tables_in_one_batch_are_those_alone():
    network = tiny()
    long, short = scan(9), scan(6)
    padded = [torch.cat([v, v.new_zeros(1, 3, *v.shape[2:])], 1) for v in short]
    batch = [torch.cat([a, b]) for a, b in zip(long, padded, strict=True)]
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    with torch.no_grad():
        together = network(*batch, mask)
        torch.testing.assert_close(together[:1], network(*long), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together[1:], network(*short), rtol=1e-5, atol=1e-6)


def test_one_table_broadcasts_over_the_batch():
    network, (image, bvals, bvecs) = tiny(), scan(6)
    images = torch.cat([image, image.flip(2)])
    with torch.no_grad():
        expected = network(images, bvals.expand(2, -1), bvecs.expand(2, -1, -1))
        torch.testing.assert_close(network(images, bvals, bvecs), expected)


def test_order_of_the_volumes_does_not_matter():
    network, inputs = tiny(), scan(8)
    order = torch.tensor([3, 0, 7, 5, 1, 2, 6, 4])
    with torch.no_grad():
        shuffled = network(*(value[:, order] for value in inputs))
        torch.testing.assert_close(shuffled, network(*inputs), rtol=1e-5, atol=1e-6)


def test_b0_volumes_count_as_their_mean():
    network, (image, bvals, bvecs) = tiny(), scan(8)
    mean = torch.cat([image[:, :2].mean(1, keepdim=True), image[:, 2:]], 1)
    with torch.no_grad():
        torch.testing.assert_close(network(mean, bvals[:, 1:], bvecs[:, 1:]), network(image, bvals, bvecs))


def test_sign_of_a_b_vector_does_not_matter():
    network, (image, bvals, bvecs) = tiny(), scan(8)
    signs = torch.tensor([1.0, 1, -1, 1, -1, -1, 1, 1]).view(1, 8, 1)
    with torch.no_grad():
        torch.testing.assert_close(
            network(image, bvals, bvecs * signs), network(image, bvals, bvecs), rtol=1e-5, atol=1e-6
        )


def test_published_network_depends_on_the_sign_of_a_b_vector():
    network, (image, bvals, bvecs) = tiny(options=PUBLISHED), scan(8)
    with torch.no_grad():
        change = network(image, bvals, -bvecs) - network(image, bvals, bvecs)
    assert change.norm() > 1e-3 * network(image, bvals, bvecs).norm()


def test_shells_of_different_b_values_are_told_apart():
    network, (image, bvals, bvecs) = tiny(), scan(8)
    with torch.no_grad():
        change = network(image, bvals / 3, bvecs) - network(image, bvals, bvecs)
    assert change.norm() > 1e-3 * network(image, bvals, bvecs).norm()


def test_every_parameter_gets_a_gradient():
    network = tiny(pq=((2, 1), (2, 1)), reduction="conv", options=PQOptions(norm="instance")).train()
    network(*scan(6)).square().sum().backward()
    assert not [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]


def test_headless_network_gives_its_features():
    network = tiny(None)
    assert network(*scan(6)).shape == (1, 6, 6, 5, 7)
    assert network.irreps_out == "3x0e+1x1o"


def test_combined_samples_start_with_the_mean_b0_at_q_zero():
    image, bvals, bvecs = scan(6)
    signal, q, valid = combine_b0(image, bvals, bvecs, b_max=B_MAX, b0_threshold=50.0)
    torch.testing.assert_close(signal[:, 0], image[:, :2].mean(1))
    torch.testing.assert_close(q[0].norm(dim=-1), (torch.tensor([0, 3000, 1000, 3000, 1000]) / B_MAX).sqrt())
    assert valid.all()


def test_scan_without_b0_has_no_first_sample():
    image, bvals, bvecs = (value[:, 2:] for value in scan(6))
    signal, _, valid = combine_b0(image, bvals, bvecs, b_max=B_MAX, b0_threshold=50.0)
    assert valid.tolist() == [[False, True, True, True, True]]
    assert signal[:, 0].abs().max() == 0


def test_spread_subset_takes_the_farthest_samples_and_sees_antipodes_as_one_point():
    axes = torch.tensor([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]])
    chosen = spread_subset(axes.unsqueeze(0), torch.ones(1, 6, dtype=torch.bool), 4)
    assert chosen.tolist() == [[0, 1, 4, 5]]


def test_spread_subset_takes_invalid_samples_last():
    q = torch.randn(1, 5, 3)
    valid = torch.tensor([[False, True, False, True, True]])
    chosen = spread_subset(q, valid, 4)[0]
    assert sorted(chosen[:3].tolist()) == [1, 3, 4]
    assert not valid[0, chosen[3]]


WRONG = {
    "bvals": (lambda i, v, d: (i, v[:, 1:], d), r"bvals is \(1, 5\), expected \(1, 6\)"),
    "bvecs": (lambda i, v, d: (i, v, d[:, 1:]), r"bvecs_voxel is \(1, 5, 3\), expected \(1, 6, 3\)"),
    "mask": (lambda i, v, d: (i, v, d, torch.ones(2, 6) > 0), r"mask is \(2, 6\), expected \(1, 6\)"),
    "image": (lambda i, v, d: (i[0], v, d), "image has 4 axes, expected 5"),
    "length": (lambda i, v, d: (i, v, d * 0.8), r"b-vector 2 has length 0\.800, expected 1"),
    "b-value": (lambda i, v, d: (i, v * 2, d), "b-value 6000 lies above the model's b_max 3000"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_inputs_that_do_not_fit_are_refused_with_both_numbers(change, message):
    with pytest.raises(ValueError, match=message):
        tiny()(*change(*scan(6)))


def test_kernel_sizes_must_be_one_per_layer():
    with pytest.raises(ValueError, match="2 kernel sizes for 1 pq layers, 1 p layers and the head"):
        tiny(kernel_size=(3, 3))


def test_unknown_reduction_is_refused_by_name():
    with pytest.raises(ValueError, match="'sum'"):
        tiny(reduction="sum")
