"""In what runs in every step no tensor is made without a device: it would lie on the CPU, wherever others are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "dmri_monai"
HOT = ("equivariant", "networks", "losses", "metrics", "inference/inferers.py", "inference/ensemble.py")
MAKERS = {
    "arange", "empty", "eye", "from_numpy", "full", "linspace", "logspace", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "zeros",
}  # fmt: skip
# file:function -> why what it makes may lie on the CPU; what constructors make goes where their module goes
ON_THE_CPU = {
    "equivariant/conv.py:_group_layout": "index, which becomes a buffer",
    "equivariant/conv.py:_init_bias": "called by the constructor",
    "equivariant/kernel/steerable_kernel.py:linear": "constants, which become a buffer",
    "equivariant/kernel/steerable_kernel.py:orthonormalise": "constants, which become a buffer",
    "equivariant/kernel/voxel_grid.py:kernel_offsets": "constants, which become a buffer",
    "equivariant/pq/contraction/composite.py:_concat_layout": "index, which becomes a buffer",
    "equivariant/sphere_activation.py:sphere_grid": "kept for all layers, and moved into their buffers",
    "inference/ensemble.py:__call__": "numbers that sums begin with",
    "inference/ensemble.py:grid_symmetries": "matrices, compared where they are made",
}


def made_without_device(source: str) -> list[tuple[str, int]]:
    """(function, line) of every call of a maker of torch that names no device, constructors left out."""
    found: list[tuple[str, int]] = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        placed = isinstance(node, ast.Call) and any(keyword.arg == "device" for keyword in node.keywords)
        if isinstance(node, ast.Call) and _makes(node) and not placed and function != "__init__":
            found.append((function, node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(source), "")
    return found


def _makes(call: ast.Call) -> bool:
    function = call.func
    named = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
    return named and function.value.id == "torch" and function.attr in MAKERS


def hot_files() -> list[Path]:
    paths = [ROOT / name for name in HOT]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def test_tensors_of_the_hot_path_are_made_with_a_device() -> None:
    found = {
        f"{file.relative_to(ROOT)}:{function}": line
        for file in hot_files()
        for function, line in made_without_device(file.read_text(encoding="utf-8"))
    }
    assert not {place: line for place, line in found.items() if place not in ON_THE_CPU}
    assert not set(ON_THE_CPU) - set(found), "no longer needed"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def forward(self, x):\n    return x + torch.ones(3)", [2]),
        ("def forward(self, x):\n    return x + torch.ones(3, device=x.device)", []),
        ("def forward(self, x):\n    return x + x.new_ones(3)", []),
        ("def __init__(self):\n    self.weight = nn.Parameter(torch.zeros(3))", []),
        ("def of(x):\n    return torch.stack([torch.tensor(v) for v in x])", [2]),
    ],
)
def test_a_tensor_without_a_device_is_found(source: str, lines: list[int]) -> None:
    assert [line for _, line in made_without_device(source)] == lines
