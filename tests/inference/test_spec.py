"""The description of a model: what it refuses, by file, field and value, and what every one that loads is good for."""

import contextlib
import json
import math
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmri_monai.equivariant import Cosine, PQTensorProduct
from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.released import bundle_folder
from dmri_monai.inference.spec import FORMAT_VERSION, TAKES, ModelSpec, spec_path
from dmri_monai.inference.spec_history import converted
from dmri_monai.networks import PQOptions
from dmri_monai.tasks.registry import TASKS

SPECS = {
    "default": ModelSpec(),
    "released": ModelSpec.load(bundle_folder() / "models" / "tissue.json"),
    "any": ModelSpec(task="tissue", architecture="any", slots=3, size=("4x0e+1x2e", "8x0e+2x2e")),
    "named": ModelSpec(task="tissue", architecture="equivariant"),
    "levels": ModelSpec(
        task="lesion", architecture="equivariant", size=("4x0e+1x2e", "8x0e+2x2e"), subsample_directions=12
    ),
    "pq": ModelSpec(
        task="orientation",
        architecture="pq",
        shells=(1000.0, 3000.0),
        network_options={
            "pq": [[3, 1]],
            "kernel": PQTensorProduct(rule="TP±1", p_radial=Cosine()),
            "options": PQOptions(parity=False, antipodal=False),
            "b_max": 2500,
        },
    ),
}


def described(path, changes=None, **base):
    """File of a description with raw `changes`."""
    changes = changes or {}
    own = {k: v for k, v in changes.items() if k == "architecture" and v in list(TAKES)}
    content = {**ModelSpec(**own, **base).model_dump(mode="json"), **changes}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_description_survives_the_way_through_a_file(spec, tmp_path):
    spec.save(tmp_path / "model.json")
    assert ModelSpec.load(tmp_path / "model.json") == spec
    assert ModelSpec(**spec.model_dump()) == spec
    assert json.loads((tmp_path / "model.json").read_text())["format_version"] == FORMAT_VERSION


def test_description_cannot_be_changed_only_replaced():
    spec = ModelSpec()
    with pytest.raises(ValueError, match="frozen"):
        spec.l_max = 2
    assert spec.replace(l_max=2).l_max == 2
    assert spec.l_max == 6
    with pytest.raises(ValueError, match="l_max"):
        spec.replace(l_max=3)


def test_settings_are_given_by_name():
    with pytest.raises(TypeError):
        ModelSpec("plain")


HUGE = 10**400
NAMED = {"architecture": "equivariant"}  # on named shells
# field, value -> what the message says of field and value, and what it says was expected
REFUSED = {
    "task of another type": ({"task": 3}, "task is 3", "string"),
    "unknown task": ({"task": "tumour"}, "task is 'tumour'", "expected one of tissue, lesion"),
    "unknown architecture": ({"architecture": "unet"}, "architecture is 'unet'", "'equivariant', 'plain'"),
    "unknown size": ({"size": "huge"}, "size is 'huge'", "expected one of tiny, small, base"),
    "size of another type": ({"size": 5}, "size.* is 5", "string"),
    "no level": ({"size": []}, "size lists 0 levels", "expected 2 to 8"),
    "one level": ({"size": ["4x0e"]}, "size lists 1 levels", "expected 2 to 8"),
    "too many levels": ({"size": ["4x0e"] * 9}, "size lists 9 levels", "expected 2 to 8"),
    "level that is none": ({"size": ["4x0e", "many"]}, "irreps 'many'", "cannot be read"),
    "wide level": ({"size": ["4x0e", "9999999x0e"]}, "size has '9999999x0e'", "expected at most 2048"),
    "level of high degree": ({"size": ["4x0e", "1x999e"]}, "size has '1x999e'", "up to 12"),
    "levels of a plain network": ({"size": ["4x0e"] * 2, "architecture": "plain"}, "size is ", "tiny, small, base"),
    "options that are none": ({"network_options": [1]}, r"network_options is \[1\]", "a mapping"),
    "wide options": ({"network_options": {"filters": 100000}}, "filters is 100000", "at most 256"),
    "options of high degree": ({"network_options": {"l_max": 13}}, "l_max is 13", "at most 12"),
    "options of wide irreps": ({"network_options": {"a": ["10000000x0e"]}}, "a has '10000000x0e'", "at most 2048"),
    "options of large integers": ({"network_options": {"a": HUGE}}, "network_options.a is 1329 bits", "at most 1e"),
    "options of infinity": ({"network_options": {"a": math.inf}}, "network_options.a is inf", "finite number"),
    "deep options": ({"network_options": {"a": [[[[[[[[[1]]]]]]]]]}}, "network_options.a has 1 entries", "level 9"),
    "long options": ({"network_options": {"a": [1] * 257}}, "network_options.a has 257 entries", "more than any"),
    "long text": ({"network_options": {"a": "x" * 201}}, "network_options.a has 201 characters", "at most 200"),
    "shells that are a number": ({**NAMED, "shells": 1000}, "shells is 1000", "tuple"),
    "no shell": ({**NAMED, "shells": []}, r"shells is \[\]", "at least 1"),
    "too many shells": ({**NAMED, "shells": [1000] * 17}, "shells is ", "at most 16"),
    "shell of text": ({**NAMED, "shells": ["1000"]}, "shells.0 is '1000'", "valid number"),
    "shell of truth": ({**NAMED, "shells": [True]}, "shells.0 is True", "valid number"),
    "shell at zero": ({**NAMED, "shells": [0]}, "shells.0 is 0", "greater than 0"),
    "shell beyond scanners": ({**NAMED, "shells": [60000]}, "shells.0 is 60000", "less than or equal to 50000"),
    "degree of thousands of millions": ({"l_max": 10**9}, "l_max is 1000000000", "at most 1e"),
    "the same as a fraction": ({"l_max": 1e9}, "l_max is 1000000000.0", "at most 1e"),
    "high degree": ({"l_max": 14}, "l_max is 14", "less than or equal to 12"),
    "odd degree": ({"l_max": 3}, "l_max is 3", "multiple of 2"),
    "degree of truth": ({"l_max": True}, "l_max is True", "valid integer"),
    "degree with a fraction": ({"l_max": 4.0}, "l_max is 4.0", "valid integer"),
    "negative degree": ({"l_max": -2}, "l_max is -2", "greater than or equal to 0"),
    "degree beyond the functions of a voxel": ({"l_max": 10, "architecture": "any"}, "l_max is 10", "at most 8"),
    "no slot": ({"slots": 0, "architecture": "any"}, "slots is 0", "greater than or equal to 1"),
    "many slots": ({"slots": 17, "architecture": "any"}, "slots is 17", "less than or equal to 16"),
    "few factors": ({**NAMED, "order_scale": [1.0]}, "order_scale has 1 factors", "3 degrees"),
    "factor that is not a number": ({"order_scale": [math.nan] * 3}, "order_scale is nan", "finite number"),
    "factor zero": ({**NAMED, "order_scale": [1, 0, 1]}, "order_scale.1 is 0", "greater than 0"),
    "unknown policy": ({"missing": "skip"}, "missing is 'skip'", "'error' or 'zero'"),
    "two voxel sizes": ({"spacing_mm": [1, 1]}, "spacing_mm", "required"),
    "negative voxel size": ({"spacing_mm": [-1, 1, 1]}, "spacing_mm.0 is -1", "0.1"),
    "infinite voxel size": ({"spacing_mm": [1, math.inf, 1]}, "spacing_mm is inf", "finite number"),
    "body of no depth": ({"task": "tissue", "body_mm": 0}, "body_mm is 0", "greater than 0"),
    "body deeper than a brain": ({"task": "tissue", "body_mm": 21}, "body_mm is 21", "less than or equal to 20"),
    "body of text": ({"task": "tissue", "body_mm": "5"}, "body_mm is '5'", "valid number"),
    "filling in words": ({"task": "tissue", "fill_extracted": "yes"}, "fill_extracted is 'yes'", "valid number"),
    "filling at any share": ({"task": "tissue", "fill_extracted": 1.0}, "fill_extracted is 1.0", "less than 1"),
    "filling fibres": ({"task": "crossings", "fill_extracted": 0.2}, "fill_extracted is 0.2", "does not tell tissues"),
    "body of fibres": ({"task": "crossings", "body_mm": 5}, "body_mm is 5", "not one body"),
    "tolerance of two": ({"shell_tolerance": 2}, "shell_tolerance is 2", "less than or equal to 1"),
    "tolerance of nothing": ({"shell_tolerance": None}, "shell_tolerance is None", "valid number"),
    "most first": ({"subsample_directions": [64, 12]}, r"subsample_directions is \(64, 12\)", "fewest first"),
    "threshold of text": ({"b0_threshold": "50"}, "b0_threshold is '50'", "valid number"),
    "highest first": ({"trained_on": {"snr": [3, 1]}}, r"trained_on.snr is \[3, 1\]", "lowest first"),
    "unknown range": ({"trained_on": {"age": [3, 5]}}, "trained_on.age", "not permitted"),
    "no digest": ({"sha256": "short"}, "sha256 is 'short'", "pattern"),
    "unknown field": ({"spacing": [1, 1, 1]}, "spacing is", "not permitted"),
    "later version": ({"format_version": 3}, "format_version is 3", "should be 2"),
    "scans that are a list": ({"scans": ["a"]}, "scans is", "dictionary"),
    "absent shells of directions": (
        {"architecture": "plain-directions", "missing": "zero"}, "missing='zero'", "harmonic channels"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "said", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_value_that_is_none_is_refused_by_file_field_and_value(tmp_path, changes, said, expected):
    path = described(tmp_path / "model.json", changes)
    with pytest.raises(ValueError, match=f"{said}") as error:
        ModelSpec.load(path)
    assert expected in str(error.value)
    assert str(error.value).endswith(str(path))
    with pytest.raises(ValueError, match=said):
        ModelSpec.of(changes)


TEXT_FIELDS = sorted(set(ModelSpec.model_fields) - {"scans"})


@pytest.mark.parametrize("sign", "$@%")
@pytest.mark.parametrize("field", TEXT_FIELDS)
def test_text_that_a_config_parser_would_evaluate_is_refused_in_every_field(tmp_path, field, sign):
    for value in (f"{sign}l_max", [f"{sign}l_max"], {"a": f"{sign}l_max"}, {f"{sign}l_max": 1}):
        path = described(tmp_path / "model.json", {field: value})
        with pytest.raises(ValueError, match=rf"{field}.*begins with '\{sign}'") as error:
            ModelSpec.load(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("target", ["subprocess.check_call", "os.system", "dmri_monai.inference.load_model"])
def test_class_outside_of_the_list_is_refused_wherever_it_stands(tmp_path, target):
    harm = {"_target_": target, "args": ["touch", "canary"]}
    kernel = {"_target_": "Sum", "kernels": [{"_target_": "PQDiff"}, harm]}
    for options in ({"kernel": harm}, harm, {"kernel": kernel}, {"pq": [[harm]]}):
        path = described(tmp_path / "model.json", {"network_options": options})
        with pytest.raises(ValueError, match=rf"_target_ is '{target}', expected one of .*PQDiff") as error:
            ModelSpec.load(path)
        assert str(path) in str(error.value)


RAW = {
    "a number": (b"5", "holds int"),
    "nothing": (b"null", "holds NoneType"),
    "a text": (b'"format_version"', "holds str"),
    "a list": (b'["format_version"]', "holds list"),
    "an empty file": (b"", "not valid JSON"),
    "nested lists": (b"[" * 100_000, "recursion"),
    "nested objects": (b'{"a":' * 100_000, "recursion"),
    "a long number": (b'{"format_version": 2, "l_max": ' + b"9" * 5000 + b"}", "limit"),
    "half of an object": (b'{"format_version": 2', "not valid JSON"),
    "another encoding": (b'{"task": "\xe9"}', "byte 10 is not UTF-8"),
    "no settings": (b"{}", "it has no architecture"),
    "a field twice": (
        b'{"format_version": 2, "l_max": 4, "l_max": 2}',
        "l_max stands more than once, as 4 and 2",
    ),
    "an option twice": (
        b'{"network_options": {"filters": 4, "filters": 8}}',
        "filters stands more than once, as 4 and 8",
    ),
}


@pytest.mark.parametrize(("content", "reason"), RAW.values(), ids=RAW.keys())
def test_file_that_is_no_description_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.json does not describe a model: .*{reason}"):
        ModelSpec.load(path)


def test_weights_without_a_description_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.json does not exist"):
        ModelSpec.load(spec_path(tmp_path / "model.pt"))


OLD = {
    "task": "lesion",
    "spacing_mm": [2.0, 2.0, 2.0],
    "subsample_directions": None,
    "architecture": "equivariant",
    "size": "tiny",
    "options": {},
    "shells": [1000],
    "l_max": 4,
    "tolerance": 0.1,
    "missing": "error",
    "too_few": "error",
    "n_directions": 64,
}
KERNEL = {"_target_": "dmri_monai.equivariant.PQTensorProduct", "rule": "TP±1"}
OF_VERSION_01 = {
    "channels as they are": (OLD, {"order_scale": None}),
    "scaled": ({**OLD, "order_scale": [1.0, 15.0, 20.0]}, {"order_scale": (1.0, 15.0, 20.0)}),
    "plain": (
        {**OLD, "architecture": "plain", "options": {"filters": 4}},
        {"architecture": "plain", "network_options": {"filters": 4}, "order_scale": None},
    ),
    "zero": (
        {**OLD, "missing": "zero", "too_few": "zero"},
        {"missing": "zero", "insufficient_directions": "zero", "order_scale": None},
    ),
    "pq": (
        {**OLD, "architecture": "pq", "options": {"kernel": KERNEL}, "b_max": 1200},
        {"architecture": "pq", "network_options": {"kernel": KERNEL, "b_max": 1200}, "order_scale": None},
    ),
}


@pytest.mark.parametrize(("old", "new"), OF_VERSION_01.values(), ids=OF_VERSION_01.keys())
def test_description_of_version_01_gives_the_same_network_and_channels(tmp_path, old, new):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(old), encoding="utf-8")
    spec = ModelSpec.load(path)
    common = {
        **NAMED,
        "task": "lesion",
        "size": "tiny",
        "spacing_mm": (2.0, 2.0, 2.0),
        "shell_tolerance": 0.1,
    }
    expected = ModelSpec(**{**common, **new})
    assert spec == expected
    one, other = (build_network(s).state_dict() for s in (spec, expected))
    assert {name: value.shape for name, value in one.items()} == {name: v.shape for name, v in other.items()}
    assert spec.b_max == old.get("b_max", 1000)
    assert spec.fit() == expected.fit()


def test_description_of_version_01_is_complete_or_refused(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps({k: v for k, v in OLD.items() if k != "tolerance"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.json does not describe a model: it has no tolerance"):
        ModelSpec.load(path)


@pytest.mark.parametrize("name", ["tissue-shells", "pretrained"])
def test_released_descriptions_load(name):
    spec = ModelSpec.load(bundle_folder() / "models" / f"{name}.json")
    assert spec.task == {"pretrained": None, "tissue-shells": "tissue"}.get(name, name)
    assert (spec.shell_tolerance, spec.missing, spec.insufficient_directions) == (0.3, "zero", "zero")
    assert spec.in_channels == 49


@pytest.mark.parametrize("name", ["fod", "orientation", "crossings"])
def test_released_models_of_fibres_take_any_shells_on_any_grid(name):
    spec = ModelSpec.load(bundle_folder() / "models" / f"{name}.json")
    assert (spec.task, spec.irreps_out) == (name, TASKS["fod"].irreps_out)
    assert (spec.architecture, spec.spacing_mm, spec.in_channels) == ("any", None, 125)


@pytest.mark.parametrize("task", ["tissue", "fractions"])
def test_released_descriptions_of_whole_heads_load(task):
    spec = ModelSpec.load(bundle_folder() / "models" / f"{task}.json")
    assert (spec.task, spec.architecture, spec.takes, spec.shells) == (task, "invariants", "shell-set", ())
    assert spec.in_channels == 37


@pytest.mark.parametrize("architecture", TAKES)
def test_what_a_network_takes_in_follows_from_its_description(architecture):
    spec = ModelSpec(architecture=architecture, shells=(1000.0, 2000.0), n_directions=12)
    assert (
        spec.in_channels == {"shell-set": 125, "harmonics": 31, "directions": 24, "samples": None}[spec.takes]
    )
    assert ModelSpec(**NAMED, shells=(1000.0, 2000.0), missing="zero").in_channels == 33
    assert ModelSpec(slots=2, l_max=4).in_channels == 37


def test_network_for_any_protocol_has_no_shells_of_its_own():
    """Whatever a configuration for several architectures says of them."""
    spec = ModelSpec(architecture="any", shells=(700.0,), order_scale=(1.0, 2.0, 3.0))
    assert (spec.shells, spec.order_scale, spec.l_max) == ((), None, 6)
    assert spec == ModelSpec()  # the default
    named = ModelSpec(**NAMED)
    assert (named.shells, named.l_max) == ((1000.0,), 4)  # the control


# ---- whatever stands in the file: a description that is good for something, or a ValueError that names the file

numbers = st.one_of(st.integers(), st.integers(min_value=10**300), st.floats(), st.integers(0, 20))
words = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "$x",
            "@l_max",
            "%run",
            "pq",
            "plain",
            "any",
            "zero",
            "tissue",
            "4x0e",
            "1x99e",
            "9999999x0e",
            "_target_",
        ]
    ),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(words, inner, max_size=3),
        st.builds(lambda name, more: {**more, "_target_": name}, st.sampled_from(
            ["PQDiff", "Sum", "Concat", "PSpace", "Cosine", "RadialMLP", "PQTensorProduct", "PQOptions", "os.system"]
        ), st.dictionaries(st.sampled_from(["l_max", "kernels", "rule", "p_radial", "mlp", "layers", "n"]), inner,
                           max_size=3)),
    ),
    max_leaves=12,
)  # fmt: skip
bases = [*(spec.model_dump(mode="json") for spec in SPECS.values()), OLD, OF_VERSION_01["pq"][0]]


def places(content, path=()):
    """Every place of a JSON value, as the keys that lead there."""
    yield path
    entries = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in entries:
        yield from places(value, (*path, key))


def changed(content, path, value, remove):
    """`content` with another value at `path`, or without what is there."""
    if not path:
        return value
    content = json.loads(json.dumps(content))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


@st.composite
def mutated(draw):
    content = draw(st.sampled_from(bases))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(content))[1:] or [()]))
        content = changed(content, path, draw(values), draw(st.booleans()))
        if isinstance(content, dict) and draw(st.integers(0, 9)) == 0:
            content = {
                **content,
                draw(st.sampled_from([*ModelSpec.model_fields, *OLD, "unknown"])): draw(values),
            }
        if not isinstance(content, dict | list):
            break
    return content


def check_load(path: Path) -> bool:
    """Whether the file loads; what loads is equal to what it is saved as."""
    spec = None
    with contextlib.suppress(ValueError):
        spec = ModelSpec.load(path)
    if spec is None:
        with pytest.raises(ValueError, match=re.escape(str(path))):
            ModelSpec.load(path)
        return False
    assert ModelSpec(**spec.model_dump()) == spec
    spec.save(path)
    assert ModelSpec.load(path) == spec
    assert spec.in_channels is None or 0 < spec.in_channels <= 16_000
    assert spec.irreps_out
    spec.fit()
    return True


@settings(max_examples=300, deadline=None)
@given(content=mutated())
def test_changed_file_is_a_description_or_an_error_that_names_it(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "changed.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    check_load(path)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), base=st.sampled_from(bases))
def test_damaged_file_is_a_description_or_an_error_that_names_it(tmp_path_factory, seed, base):
    generator = random.Random(seed)
    raw = bytearray(json.dumps(base).encode())
    for _ in range(generator.randint(1, 4)):
        if not raw:
            break
        place = generator.randrange(len(raw))
        action = generator.randrange(4)
        if action == 0:
            raw[place] = generator.randrange(256)
        elif action == 1:
            del raw[place : place + generator.randint(1, 20)]
        elif action == 2:
            raw[place:place] = raw[: generator.randint(1, 20)]
        else:
            raw = raw[: place + 1]
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(bytes(raw))
    check_load(path)


def test_files_as_they_are_load(tmp_path):
    """The control: the checks above see more than errors."""
    for base in bases:
        (tmp_path / "model.json").write_text(json.dumps(base), encoding="utf-8")
        assert check_load(tmp_path / "model.json")
        assert converted(base)
