import pytest
import torch

from dmri_monai.networks.invariant_gate import InvariantNormGate

IRREPS = "3x0e+2x1o+1x2e"


@pytest.fixture
def gate():
    torch.manual_seed(0)
    return InvariantNormGate(IRREPS).double()


def field(*size: int) -> torch.Tensor:
    return torch.randn(2, 14, *size, dtype=torch.float64, requires_grad=True)


def test_fused_and_composed_give_the_same_values(gate):
    x = field(4, 3, 5)
    torch.testing.assert_close(gate(x), gate.composed(x))


def test_fused_and_composed_give_the_same_gradients(gate):
    x = field(4, 3, 5)
    inputs = [x, *gate.parameters()]
    gradients = [torch.autograd.grad(f(x).pow(3).sum(), inputs) for f in (gate, gate.composed)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("irreps", [IRREPS, "14x0e"], ids=["mixed", "scalars"])
def test_scripted_and_fused_give_the_same_values(irreps):
    gate, x = InvariantNormGate(irreps).double(), field(4, 3, 5)
    torch.testing.assert_close(torch.jit.script(gate)(x), gate(x))


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("weight",), ("bias",)], ids="+".join)
def test_frozen_weights_pass_the_gradient_on_and_get_none(gate, frozen):
    x = field(4, 3, 5)
    (expected,) = torch.autograd.grad(gate(x).pow(3).sum(), x)
    for name in frozen:
        getattr(gate.mix, name).requires_grad_(False)
    gate(x).pow(3).sum().backward()
    torch.testing.assert_close(x.grad, expected)
    assert {name for name, p in gate.mix.named_parameters() if p.grad is None} == set(frozen)


def test_fused_gradients_agree_with_finite_differences(gate):
    assert torch.autograd.gradcheck(gate, field(2, 2, 1))


def test_fused_gate_runs_without_gradients(gate):
    x = field(3, 3, 3)
    with torch.no_grad():
        y = gate(x)
    assert not y.requires_grad
    torch.testing.assert_close(y, gate(x).detach())


def test_input_is_left_as_it_was(gate):
    x = field(3, 3, 3)
    before = x.detach().clone()
    gate(x).sum().backward()
    torch.testing.assert_close(x.detach(), before, rtol=0, atol=0)


def test_gradient_may_be_taken_twice(gate):
    x = field(3, 3, 3)
    y = gate(x).sum()
    first, second = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second)


def test_length_of_a_vector_changes_the_scalars(gate):
    x = field(3, 3, 3).detach()
    longer = x.clone()
    longer[:, 3:6, 0, 0, 0] *= 3
    change = (gate(longer) - gate(x))[:, :3, 0, 0, 0]
    assert change.abs().amax(1).min() > 1e-2


def test_channels_of_the_output_have_about_unit_size(gate):
    y = gate(100 * field(8, 8, 8)).detach()
    rms = y.square().mean((0, 2, 3, 4)).sqrt()
    assert rms.min() > 0.1
    assert rms.max() < 2


@pytest.mark.parametrize("irreps", ["2x1o+3x0e", "3x0e+2x1o+1x0e", "2x1o"])
def test_irreps_must_begin_with_all_their_scalars(irreps):
    with pytest.raises(ValueError, match="must begin with all their 0e"):
        InvariantNormGate(irreps)
