import pickle
import subprocess
import sys

import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate

from dmri_monai.equivariant import SteerableConv3d
from dmri_monai.networks import EquivariantUNet, PlainUNet
from dmri_monai.qspace.shell_fit import harmonic_irreps
from dmri_monai.testing import act_on_field, assert_equivariant, cube_rotations
from dmri_monai.training.checkpoint import load_pretrained

IRREPS = harmonic_irreps(1, 4)
SMALLEST = ["2x0e+1x1o+1x2e+1x4e", "3x0e+1x1o+1x2e"]  # levels for tests of what does not depend on the size
QUARTER_TURN = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
REFLECTION = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
OUTPUTS = {"scalars": "4x0e", "vector": "1x1o", "axis": "1x2e", "harmonics": IRREPS}
# every remainder of the four voxels that the coarsest of three levels makes one
SIZES = {"12": (12,) * 3, "13": (13,) * 3, "14": (14,) * 3, "15": (15,) * 3, "mixed": (12, 15, 10)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def image(*size: int, irreps: str = IRREPS) -> torch.Tensor:
    channels = EquivariantUNet(irreps, size=SMALLEST).expected.dim
    return torch.randn(1, channels, *size)


def unet(irreps_out: str | None = "4x0e", size="tiny", **options) -> EquivariantUNet:
    return EquivariantUNet(IRREPS, irreps_out, size, **options).eval()


@pytest.mark.parametrize("irreps_out", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_output_turns_with_the_image_under_all_rotations_and_reflections_of_the_cube(irreps_out):
    group = cube_rotations(reflections=True)
    assert_equivariant(unet(irreps_out), image(9, 8, 10), IRREPS, irreps_out, group, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_any_size_is_equivariant(size):
    turns = [QUARTER_TURN, QUARTER_TURN.T.roll(1, dims=0).roll(1, dims=1), REFLECTION]
    assert_equivariant(unet("1x0e+1x2e"), image(*size), IRREPS, "1x0e+1x2e", turns, rtol=1e-5)


def test_small_preset_is_equivariant():
    assert_equivariant(unet("1x2e", "small"), image(10, 9, 11), IRREPS, "1x2e", [QUARTER_TURN], rtol=1e-5)


def test_plain_unet_is_not_equivariant():
    plain = PlainUNet(in_channels=16, filters=4, out_channels=4).eval()
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(plain, image(16, 16, 16), IRREPS, "4x0e", rtol=0.1)


def test_coefficients_that_are_not_turned_with_the_voxels_are_noticed():
    def turn_voxels_only(g, field):
        return act_on_field(g, field, "16x0e")

    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(unet(), image(8, 8, 8), turn_voxels_only, "4x0e", [QUARTER_TURN], rtol=1e-2)


def test_anisotropic_voxels_turn_with_their_spacing():
    along_x, along_y = (unet("1x2e", SMALLEST, spacing=s) for s in ((2.5, 1.0, 1.0), (1.0, 2.5, 1.0)))
    along_y.load_state_dict(along_x.state_dict())
    x = image(7, 8, 6)
    with torch.no_grad():
        turned = along_y(act_on_field(QUARTER_TURN, x, IRREPS))
        torch.testing.assert_close(
            turned, act_on_field(QUARTER_TURN, along_x(x), "1x2e"), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(along_x, x, IRREPS, "1x2e", [QUARTER_TURN], rtol=1e-3)


def test_anisotropy_of_a_constant_field_reaches_scalar_outputs():
    network, field = unet("1x0e", SMALLEST), torch.zeros(2, 16, 8, 8, 8)
    field[:, :2] = torch.rand(1, 2, 8, 8, 8)
    field[0, 2:7, :4] = torch.randn(5, 1, 1, 1)  # the same l = 0, but half of the first volume is anisotropic
    with torch.no_grad():
        isotropic, anisotropic = network(field[1:]), network(field[:1])
    assert (anisotropic - isotropic)[0, 0, 0].abs().min() > 1e-3


def test_headless_network_gives_its_features():
    network = unet(None, SMALLEST)
    assert network.irreps_features == "2x0e+1x1o+1x2e+1x4e"
    assert network(image(6, 6, 6)).shape == (1, 19, 6, 6, 6)


def test_deep_supervision_gives_one_output_per_decoder_level_in_training_only():
    network = unet("3x0e", "tiny", deep_supervision=True)
    assert network(image(9, 8, 8)).shape == (1, 3, 9, 8, 8)
    outputs = network.train()(image(9, 8, 8))
    assert [tuple(y.shape[2:]) for y in outputs] == [(9, 8, 8), (5, 4, 4)]


def test_every_parameter_gets_a_gradient():
    network = EquivariantUNet(IRREPS, "2x0e+1x2e", SMALLEST)
    network(image(6, 5, 6)).square().sum().backward()
    assert not [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]


def test_gradient_is_finite_on_an_empty_image():
    network = EquivariantUNet(IRREPS, "1x0e", SMALLEST)
    network(torch.zeros(1, 16, 6, 6, 6)).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_bfloat16_autocast_stays_near_float32():
    network, x = unet("1x0e", SMALLEST), image(8, 8, 8)
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(x)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.05 * expected.norm()


def test_bfloat16_training_step_gives_finite_gradients():
    network = EquivariantUNet(IRREPS, "1x0e", SMALLEST)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network(image(8, 7, 8)).float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_meta_data_come_out_as_from_any_network_of_monai():
    affine = torch.diag(torch.tensor([-2.0, 2.0, 2.5, 1.0], dtype=torch.float64))
    scans = [MetaTensor(image(16, 16, 16)[0], affine=affine, meta={"name": name}) for name in "ab"]
    batch = list_data_collate(scans)
    ours, theirs = unet(size=SMALLEST)(batch), PlainUNet(16, 4, filters=2)(batch)
    assert [item.meta["name"] for item in decollate_batch(ours)] == ["a", "b"]
    for one, other in zip(decollate_batch(ours), decollate_batch(theirs), strict=True):
        torch.testing.assert_close(one.affine, other.affine)
        assert one.meta["name"] == other.meta["name"]


def test_pretrained_body_carries_over_to_another_head(tmp_path):
    source, target = unet(IRREPS, SMALLEST), unet("4x0e", SMALLEST)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    load_pretrained(target, tmp_path / "model.pt")
    bodies = [
        {k: v for k, v in n.state_dict().items() if not k.startswith("head.")} for n in (source, target)
    ]
    torch.testing.assert_close(*bodies)


def test_checkpoint_of_another_size_is_refused_with_both_shapes(tmp_path):
    torch.save(unet(size=SMALLEST).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"network \(\d+,\), checkpoint \(\d+,\)"):
        load_pretrained(unet(size=[SMALLEST[0], "4x0e+1x1o+1x2e"]), tmp_path / "model.pt")


def test_checkpoint_of_another_harmonic_order_is_refused_with_both_shapes(tmp_path):
    torch.save(EquivariantUNet(harmonic_irreps(1, 2), size=SMALLEST).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"stem.*network \(\d+,\), checkpoint \(\d+,\)"):
        load_pretrained(unet(size=SMALLEST), tmp_path / "model.pt")


def test_wrong_channel_count_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"\(1, 7, 8, 8, 8\), expected \(B, 16, X, Y, Z\) of irreps 2x0e"):
        unet(size=SMALLEST)(torch.zeros(1, 7, 8, 8, 8))


@pytest.mark.parametrize("batch_of", [str, lambda name: [name, name]], ids=["one", "collated"])
def test_harmonics_of_another_order_are_refused_although_the_channels_agree(batch_of):
    network = EquivariantUNet(harmonic_irreps(2, 4), size=SMALLEST)
    x = MetaTensor(torch.zeros(1, 31, 8, 8, 8), meta={"irreps": batch_of(harmonic_irreps(5, 2))})
    with pytest.raises(ValueError, match=r"6x0e\+5x2e, the network was built for 3x0e\+2x2e\+2x4e"):
        network(x)


def test_size_of_one_voxel_at_the_coarsest_level_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"\[4, 4, 3\] is too small for 3 levels, one axis must exceed 4"):
        unet()(image(4, 4, 3))


def test_unknown_preset_is_refused_by_name():
    with pytest.raises(ValueError, match="'huge' is none of"):
        unet(size="huge")


def test_dense_copy_has_the_same_output_and_no_e3nn():
    network, x = unet("2x0e+1x2e"), image(9, 8, 10)
    dense = network.to_dense()
    assert not any(isinstance(module, SteerableConv3d) for module in dense.modules())
    assert b"e3nn" not in pickle.dumps(dense)
    with torch.no_grad():
        torch.testing.assert_close(dense(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def scripted():
    """A network and its script, which TorchScript compiles once for every size."""
    torch.manual_seed(0)
    network = unet("2x0e+1x2e")
    return network, torch.jit.script(network)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_scripted_network_has_the_same_output_at_any_size(scripted, size):
    network, script = scripted
    x = image(*size)
    with torch.no_grad():
        torch.testing.assert_close(script(x), network(x), rtol=1e-4, atol=1e-4)


def test_scripting_leaves_the_network_as_it_was(scripted):
    network, _ = scripted
    assert isinstance(network.stem, SteerableConv3d)


def test_script_runs_where_this_package_is_not_installed(scripted, tmp_path):
    network, script = scripted
    x = image(9, 8, 7)
    script.save(str(tmp_path / "unet.ts"))
    torch.save(x, tmp_path / "image.pt")
    program = (
        "import sys, torch; sys.modules['dmri_monai'] = sys.modules['e3nn'] = None;"
        "torch.save(torch.jit.load('unet.ts')(torch.load('image.pt')).detach(), 'output.pt')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    output = torch.load(tmp_path / "output.pt")
    torch.testing.assert_close(output, network(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"irreps_out": None}, {"deep_supervision": True}], ids=str)
def test_script_gives_the_finest_output_of_any_head(options):
    network, x = unet(**{"irreps_out": "2x0e", "size": "tiny", **options}), image(8, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(x), network(x), rtol=1e-4, atol=1e-4)


def test_scripted_network_refuses_a_size_that_is_too_small(scripted):
    with pytest.raises(
        torch.jit.Error, match=r"\[4, 4, 3\] is too small for 3 levels, one axis must exceed 4 "
    ):
        scripted[1](image(4, 4, 3))


def test_dense_copy_survives_torch_export():
    network, x = unet(size=SMALLEST), image(9, 8, 10)
    program = torch.export.export(network.to_dense(), (x,))
    torch.testing.assert_close(program.module()(x), network(x), rtol=1e-4, atol=1e-5)


def test_dense_copy_survives_tracing():
    network, x = unet(size=SMALLEST), image(9, 8, 10)
    with torch.no_grad():
        traced = torch.jit.trace(network.to_dense(), x)
        torch.testing.assert_close(traced(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(24, 24, 24), (9, 8, 10)], ids=["even", "mixed"])
def test_dense_copy_survives_onnx(tmp_path, size):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    network, x, path = unet(), image(*size), str(tmp_path / "unet.onnx")
    torch.onnx.export(network.to_dense(), (x,), path, dynamo=True, input_names=["image"])
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    output = torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
    torch.testing.assert_close(output, network(x).detach(), rtol=1e-4, atol=1e-4)
