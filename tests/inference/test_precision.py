import pytest
import torch
from torch import nn

from dmri_monai.equivariant import PQConv3d
from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.precision import CpuAutocast, autocast, cuda_amp
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.networks import PlainUNet
from dmri_monai.phantom.voxel_signals import draw_batch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def dtypes():
    """Network and the list of dtypes its first convolution puts out."""
    network, seen = PlainUNet(in_channels=2, filters=2, out_channels=2), []
    network.down_1[0][0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    return network, seen


def test_amp_on_the_cpu_computes_in_bf16_and_returns_float32(dtypes):
    network, seen = dtypes
    output = autocast(network, True, CPU)(torch.rand(1, 2, 16, 16, 16))
    assert seen == [torch.bfloat16]
    assert output.dtype == torch.float32


def test_without_amp_everything_is_float32(dtypes):
    network, seen = dtypes
    autocast(network, False, CPU)(torch.rand(1, 2, 16, 16, 16))
    assert seen == [torch.float32]


def test_on_cuda_the_engine_autocasts_and_the_network_is_not_wrapped(dtypes):
    network, _ = dtypes
    assert autocast(network, True, CUDA) is network
    assert cuda_amp(True, CUDA)
    assert not cuda_amp(True, CPU)
    assert not cuda_amp(False, CUDA)


def test_wrapped_network_shares_its_parameters(dtypes):
    network, _ = dtypes
    wrapped = CpuAutocast(network)
    assert [id(p) for p in wrapped.parameters()] == [id(p) for p in network.parameters()]


@pytest.mark.parametrize("layer", [nn.Conv3d, nn.ConvTranspose3d])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_kernel_larger_than_the_grid_has_the_gradient_of_float32(layer, stride, size):
    torch.manual_seed(0)
    network, image = layer(16, 16, 3, stride=stride, padding=1), torch.randn(1, 16, size, size, size)
    gradients = []
    for run in (network, CpuAutocast(network)):
        network.zero_grad()
        output = run(image)
        fill_free_memory(torch.nan)
        output.square().mean().backward()
        gradients.append(network.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_recomputed_convolution_of_a_small_grid_is_in_float32_too():
    torch.manual_seed(0)
    layer = PQConv3d("2x0e", "2x0e+1x1o", 3, checkpoint=True)
    image, q = torch.randn(1, 2, 4, 2, 2, 2), torch.randn(4, 3)
    gradients = []
    for run in (layer, CpuAutocast(layer)):
        layer.zero_grad()
        run(image, q_in=q).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in layer.parameters()]))
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_kernel_of_a_larger_grid_runs_in_bf16(dtypes):
    network, seen = dtypes
    CpuAutocast(network)(torch.rand(1, 2, 16, 16, 16)).mean().backward()
    assert seen == [torch.bfloat16]


def fill_free_memory(value):
    """Memory that is given out next and not written to then holds `value`."""
    kept = [torch.full((factor * 2**power,), value) for power in range(4, 20) for factor in (1, 3)]
    del kept


def test_network_for_any_protocol_is_nearly_the_same_in_bf16():
    spec = ModelSpec(architecture="any", slots=2, size="tiny", task="tissue")
    torch.manual_seed(0)
    network, image = build_network(spec).eval(), draw_batch(0, 1, 512, slots=2).channels.view(1, -1, 8, 8, 8)
    with torch.no_grad():
        full, half = network(image), CpuAutocast(network)(image)
    assert half.dtype == torch.float32
    assert 0 < float((half - full).norm() / full.norm()) < 0.05
    CpuAutocast(network.train())(image).square().mean().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert len(gradients) > 20
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("word", ["false", "False"])
def test_the_word_false_of_a_command_line_is_false(dtypes, word):
    assert autocast(dtypes[0], word, CPU) is dtypes[0]


def test_any_other_word_is_refused():
    with pytest.raises(ValueError, match="amp is 'off', expected true or false"):
        cuda_amp("off", CUDA)


def test_every_output_of_deep_supervision_returns_as_float32():
    def levels(image):
        return [image.bfloat16(), image[..., ::2].bfloat16()]

    outputs = CpuAutocast(levels)(torch.rand(1, 2, 8, 8, 8))
    assert [output.dtype for output in outputs] == [torch.float32] * 2
