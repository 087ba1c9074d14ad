"""Kernels and radial functions as plain data, and back."""

import pytest

from dmri_monai.equivariant import Concat, Cosine, Gaussian, PQDiff, PQTensorProduct, PSpace, RadialMLP, Sum
from dmri_monai.inference.components import COMPONENTS, as_data, check_components, made
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.networks import PQOptions

OBJECTS = {
    "kernel": PQTensorProduct(rule="TP-vec", p_radial=Cosine(mlp=RadialMLP((5, 5)))),
    "sum": Sum(PQDiff(l_max=2), PSpace(l_max=2)),
    "concat": Concat((PQDiff(), "2x0e"), (PSpace(p_radial=Gaussian(n=3)), "1x0e+1x1o")),
    "options": PQOptions(parity=False, q_out=(5, None)),
}


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS.keys())
def test_component_survives_the_way_through_a_file(value, tmp_path):
    spec = ModelSpec(architecture="pq", size="tiny", network_options={"value": value})
    spec.save(tmp_path / "model.json")
    again = ModelSpec.load(tmp_path / "model.json")
    assert again == spec
    component = made(again.network_options)["value"]
    assert type(component) is type(value)
    assert as_data(component) == as_data(value)


def test_radial_functions_differ_in_the_description():
    one, other = (
        ModelSpec(architecture="pq", network_options={"kernel": PQTensorProduct(p_radial=radial)})
        for radial in (Cosine(), Gaussian())
    )
    assert one != other


def test_component_may_be_named_with_its_home_of_any_version():
    homes = ("PQDiff", "dmri_monai.equivariant.PQDiff", "dmri_monai.equivariant.pq.kernels.PQDiff")
    specs = [
        ModelSpec(architecture="pq", network_options={"kernel": {"_target_": h, "l_max": 2}}) for h in homes
    ]
    assert specs[0] == specs[1] == specs[2]


FOREIGN = [
    "subprocess.check_call",
    "os.system",
    "builtins.eval",
    "torch.load",
    "dmri_monai.equivariant.SteerableConv3d",
    "dmri_monai.inference.load_model",
    "dmri_monai.equivariantx.PQDiff",
    "elsewhere.dmri_monai.equivariant.PQDiff",
    "PQDiff.__class__",
    "",
    ".PQDiff.",
    3,
    None,
    ["PQDiff"],
    {"_target_": "PQDiff"},
]


@pytest.mark.parametrize(
    "wrap", [lambda d: d, lambda d: {"a": d}, lambda d: [1, [d]]], ids=["top", "value", "list"]
)
@pytest.mark.parametrize("target", FOREIGN, ids=repr)
def test_class_that_is_no_component_is_refused_wherever_it_stands(target, wrap):
    data = wrap({"_target_": target, "args": ["x"]})
    for function in (check_components, made):
        with pytest.raises(ValueError, match=r"_target_ is .*, expected one of .*PQDiff"):
            function(data)


@pytest.mark.parametrize("key", ["_mode_", "_disabled_", "_requires_", "_desc_", "_args_"])
def test_other_words_of_a_config_have_no_meaning_in_a_description(key):
    with pytest.raises(ValueError, match=f"'{key}' has no meaning"):
        check_components({"kernel": {"_target_": "PQDiff", key: 1}})


@pytest.mark.parametrize("name", COMPONENTS)
def test_argument_that_a_component_does_not_have_is_named_with_its_class(name):
    with pytest.raises(ValueError, match=f"{name}: .*nonsense"):
        made({"_target_": name, "nonsense": 1})
