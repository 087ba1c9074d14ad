"""Agreement with the layers released in 2021, on kernels and network states recorded from them.

Their axes are (z, y, x) and their l = 1 components (y, z, x): `conventions.npz` holds the change of basis B_l. Spans of
kernels are compared, as weights have no common scale, except where weights are constructed: a recorded weight times
sign / sqrt(number of paths · number of scalar functions), the sign being that of the old 3j symbols and harmonics.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from dmri_monai.equivariant import (
    Cosine,
    Gate,
    Gaussian,
    PQConv3d,
    PQDiff,
    PQTensorProduct,
    PSpace,
    QLengthWeightedMean,
    QSpace,
    RadialMLP,
    irreps_from_multiplicities,
)

FOLDER = Path(__file__).parents[3] / "shared" / "oracles" / "equideepdmri"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recorded layers in {FOLDER}")

P_ONLY = {degree: [(0, degree)] for degree in range(3)}  # a tensor product without q is the p-kernel, unmixed
CONFIGURATIONS = {
    "L01_p_space_noq": PSpace(p_radial=Cosine()),
    "L02_p_space_q": PSpace(),
    "L03_q_space": QSpace(q_radial=Gaussian(3)),
    "L04_pq_diff": PQDiff(q_radial=Gaussian(3)),
    "L06_pq_diff_noQout": PQDiff(q_radial=Gaussian(4), unit_q_difference=False),
    "L07_pq_TP_tpvec": PQTensorProduct(q_radial=Gaussian(3), rule="TP-vec"),
    "L09_pq_TP_pm1_sorted": PQTensorProduct(q_radial=Gaussian(3)),
}
SIGNS = {
    (0, 0, 0): 1,
    (0, 1, 1): -1,
    (1, 0, 1): -1,
    (1, 1, 0): 1,
    (1, 1, 1): -1,
    (1, 1, 2): -1,
}  # (l_out, l_in, l_f)
SILU, SIGMOID = 1.6768, 1.84623  # the release scales activations to unit second moment


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def recorded(name: str) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key], dtype=np.float64)) for key in file}


def manifest(name: str) -> dict:
    return json.loads((FOLDER / "manifest.json").read_text())[name]


def change_of_basis(multiplicities) -> torch.Tensor:
    blocks = recorded("conventions")
    return torch.block_diag(
        *[blocks[f"B{degree}"] for degree, n in enumerate(multiplicities) for _ in range(n)]
    )


def kernel_in_our_axes(kernel, type_in, type_out, size):
    """(..., Q_out, Q_in, P, dim_out, dim_in) -> (..., Q_out, Q_in, x, y, z, dim_out, dim_in)."""
    kernel = kernel.unflatten(-3, (size, size, size)).transpose(-5, -3)
    return torch.einsum("ab,...bc,dc->...ad", change_of_basis(type_out), kernel, change_of_basis(type_in))


def field_in_our_axes(x, multiplicities):
    return torch.einsum("ab,nb...->na...", change_of_basis(multiplicities), x).transpose(-1, -3)


def layer_like(name: str, kernel, size=3, **options):
    entry, data = manifest(name), recorded(name)
    irreps = [irreps_from_multiplicities(entry[key]) for key in ("type_in", "type_out")]
    sides = {"q_in": entry["Q_in"] is not None, "q_out": entry["Q_out"] is not None}
    layer = PQConv3d(*irreps, size, kernel, **sides, antipodal=False, parity=False, **options)
    tables = [data.get("q_out_normalised"), data.get("q_in_normalised")]
    return layer, tables, entry, data


def span(layer, tables):
    """(number of parameters, size) kernels of single weights; axes as in the records."""
    rows = []
    with torch.no_grad():
        parameters = list(layer.operator.parameters())
        for parameter in parameters:
            parameter.zero_()
        for parameter in parameters:
            for index in range(parameter.numel()):
                parameter[index] = 1.0
                rows.append(layer.dense_kernel(*tables))
                parameter[index] = 0.0
    return torch.stack(rows).permute(0, 2, 4, 5, 6, 7, 1, 3).flatten(1)


def outside(reference, rows):
    """Largest relative distance of `reference` rows from the span of `rows`, and its rank."""
    _, singular, basis = torch.linalg.svd(rows, full_matrices=False)
    basis = basis[singular > 1e-7 * singular[0]]
    rest = reference - reference @ basis.T @ basis
    return (rest.norm(dim=1) / reference.norm(dim=1)).max().item(), len(basis)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_span_of_kernels_is_that_of_the_release(name):
    layer, tables, entry, data = layer_like(name, CONFIGURATIONS[name])
    basis = data["span_basis"].unflatten(1, data["kernel"].shape)
    reference = kernel_in_our_axes(basis, entry["type_in"], entry["type_out"], 3).flatten(1)
    distance, rank = outside(reference, span(layer, tables))
    assert distance <= 1e-5
    assert rank == entry["span_rank"]


def test_spans_differ_where_they_should():
    layer, tables, entry, data = layer_like("L04_pq_diff", PQDiff(q_radial=Gaussian(2)))
    basis = data["span_basis"].unflatten(1, data["kernel"].shape)
    reference = kernel_in_our_axes(basis, entry["type_in"], entry["type_out"], 3).flatten(1)
    assert outside(reference, span(layer, tables))[0] > 0.1
    reference = basis.flatten(1)  # without the change of basis
    layer, *_ = layer_like("L04_pq_diff", CONFIGURATIONS["L04_pq_diff"])
    assert outside(reference, span(layer, tables))[0] > 0.1


def set_weights(layer, data, prefix, type_in, type_out, order, p_size):
    """Weights of the release in `layer`. order: per filter degree the (l_out, l_in) blocks of its weight columns."""
    columns, start, weight = {}, 0, data[f"{prefix}kernel.weights"]
    for degree, blocks in enumerate(order):
        for l_out, l_in in blocks:
            if l_out < len(type_out) and l_in < len(type_in):
                count = type_out[l_out] * type_in[l_in]
                columns[l_out, l_in, degree] = weight[:, start : start + count]
                start += count
    assert start == weight.shape[1]
    volume = p_size**1.5
    flat = []
    for l_out in range(len(type_out)):
        paths = sum(n * (l_out + l_in - abs(l_out - l_in) + 1) for l_in, n in enumerate(type_in))
        for l_in in range(len(type_in)):
            for degree in range(abs(l_out - l_in), l_out + l_in + 1):
                scale = SIGNS[l_out, l_in, degree] / (paths * len(weight)) ** 0.5 / volume
                flat.append((columns[l_out, l_in, degree] * scale).flatten())
    linear = data[f"{prefix}kernel.linear_kernel.weight"].split(
        [a * b for a, b in zip(type_in, type_out, strict=False)]
    )
    with torch.no_grad():
        layer.operator.weight.copy_(torch.cat(flat))
        layer.operator.linear.copy_(
            torch.cat([w / n**0.5 for w, n in zip(linear, type_in, strict=False)]) / volume
        )
        if f"{prefix}scalar_bias" in data:
            layer.bias.copy_(data[f"{prefix}scalar_bias"])


def test_radial_nets_reproduce_the_recorded_kernel():
    kernel = PQDiff(
        p_radial=Cosine(mlp=RadialMLP((8, 8, 8))), q_radial=Gaussian(3, mlp=RadialMLP((5,), "silu"))
    )
    layer, tables, entry, data = layer_like("L14_pq_diff_FC", kernel, size=5)
    nets = "param:kernel.scalar_kernel.scalar_kernels.{}.radial_basis.model.weights.{}"
    operator = layer.operator
    with torch.no_grad():
        for index, weight in enumerate(operator.p_radial.weights):  # their relu carries a factor sqrt(2)
            weight.copy_(data[nets.format(0, index)] * (1.0 if index == 0 else 0.5))
        operator.q_radials.outer.weights[0].copy_(data[nets.format(1, 0)])
        operator.q_radials.inner.weights[0].copy_(data[nets.format(2, 0)])
    order = [[(0, 0), (1, 1)], [(1, 1), (0, 1), (1, 0)], [(1, 1)]]
    set_weights(layer, data, "param:", entry["type_in"], entry["type_out"], order, p_size=1)
    with torch.no_grad():
        operator.weight.mul_(2**0.5 * SILU**2)
    reference = kernel_in_our_axes(data["kernel"], entry["type_in"], entry["type_out"], 5)
    ours = layer.dense_kernel(*tables).permute(1, 3, 4, 5, 6, 0, 2) * reference.shape[1]
    assert ((ours - reference).norm() / reference.norm()).item() <= 1e-5


ORDER = [[(1, 1), (0, 0)], [(1, 1), (0, 1), (1, 0)], [(1, 1)]]


def network_layer(data, prefix, type_in, type_out, kernel, with_q):
    irreps = [irreps_from_multiplicities(t) for t in (type_in, type_out)]
    options = {"antipodal": False, "parity": False, "scaling": "sqrt"}
    layer = PQConv3d(*irreps, 3, kernel, q_in=with_q, q_out=with_q, **options)
    set_weights(layer, data, f"param:{prefix}.", type_in, type_out, ORDER, p_size=3)
    return layer


def gated(y, scalars, vectors):
    """Their convolutions emit [scalars, gates, vectors]; `Gate` takes [scalars, vectors, gates]."""
    parts = y.split([scalars, vectors, 3 * vectors], dim=1)
    gate = Gate(
        f"{scalars}x0e+{vectors}x1o",
        activation=lambda x: SILU * functional.silu(x),
        gate=lambda x: SIGMOID * torch.sigmoid(x),
    )
    return gate(torch.cat([parts[0], parts[2], parts[1]], dim=1))


@torch.no_grad()
def test_network_with_mended_gates_gives_the_recorded_states():
    data = recorded("N1_pqdiff")
    q = torch.cat([torch.zeros(1, 3), data["q"][1:5]]) / data["q"].norm(dim=1).max()
    pq, p = PQDiff(p_radial=Cosine(), q_radial=Gaussian(4)), PQTensorProduct(p_radial=Cosine(), rule=P_ONLY)
    layers = {
        "pq0": network_layer(data, "pq_layers.0.conv", [1], [3, 1], pq, True),
        "pq1": network_layer(data, "pq_layers.1.conv", [2, 1], [5, 2], pq, True),
        "p0": network_layer(data, "p_layers.0.conv", [3, 2], [4, 1], p, False),
        "p1": network_layer(data, "p_layers.1", [3, 1], [1], p, False),
    }
    reduction = QLengthWeightedMean("3x0e+2x1o", Gaussian(4), scaling="sqrt")
    reduction.weight.copy_(
        data["param:q_reduction_layer.weights"] / 2.0
    )  # root of the number of radial functions
    states = {"x": field_in_our_axes(data["combined_b0"], [1])}
    states["pq0"] = gated(layers["pq0"](states["x"], q, q), 2, 1)
    states["pq1"] = gated(layers["pq1"](states["pq0"], q, q), 3, 2)
    states["qred"] = reduction(states["pq1"], q)
    states["p0"] = gated(layers["p0"](states["qred"]), 3, 1)
    states["p1"] = layers["p1"](states["p0"])
    types = {"pq0": [2, 1], "pq1": [3, 2], "qred": [3, 2], "p0": [3, 1], "p1": [1]}
    for stage, multiplicities in types.items():
        reference = field_in_our_axes(data[f"gatefixed:{stage}"], multiplicities)
        assert_close(states[stage], reference, atol=1e-5 * reference.abs().max().item(), rtol=1e-4, msg=stage)
