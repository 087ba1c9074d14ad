"""Names and values from outside are data: none of them runs code, changes a path or opens another file.

Every text below would do one of these in MONAI's config parser, or on its command line; the first tests show it.
"""

import json
import os
import re
import shutil
import sys
import warnings
from pathlib import Path

import fire
import monai.bundle
import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.transforms import Compose
from typer.testing import CliRunner

from dmri_monai.cli import app
from dmri_monai.inference.model import load_model, predict
from dmri_monai.inference.released import bundle_folder
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.integrations.bundle_export import export_bundle
from dmri_monai.integrations.monailabel import OnImage, write_label_bundle
from dmri_monai.transforms import LoadDWId
from tests.small_models import save_model

SPACING_MM = (12.0, 12.0, 12.0)  # of that scan
CODE = "__import__('pathlib').Path('canary').touch()"
# what is legal in the name of a file, and something else to a parser
NAMES = {
    "code": f"${CODE}",
    "reference": "@output_dir",
    "unknown reference": "@nothing",
    "macro": "%output_dir",
    "unknown macro": "%nothing",
    "file as macro": "%macro.json",
    "hash": "study #2",
    "hash in a word": "study#2",
    "separator": "study ::2",
    "target": '{"_target_": "subprocess.check_call", "args": ["touch", "canary"]}',
    "newline": "first\nsecond",
    "quotes": 'it\'s "quoted"',
    "page": "<script>document.title='canary'<&lt;",
    "Latin-1": os.fsdecode(b"caf\xe9"),
    "number": "100307",
    "list": "[a,b]",
    "nothing": "None",
}


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    """An own working folder, in which no canary may appear."""
    folder = tmp_path / "desk"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "macro.json").write_text(json.dumps({"_target_": "pathlib.Path.touch", "self": "canary"}))
    yield folder
    assert not list(tmp_path.rglob("canary"))


@pytest.fixture(scope="module")
def scan(smallest_scan):
    """Of few voxels: it is predicted more than a hundred times."""
    return smallest_scan


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained tissue model of few weights."""
    path = tmp_path_factory.mktemp("plain") / "model.pt"
    return save_model(path, architecture="plain", network_options={"filters": 4}, spacing_mm=SPACING_MM)


@pytest.fixture(scope="module")
def expected(scan, model):
    return predict(scan, checkpoint=model, device="cpu").values.numpy()


@pytest.fixture(scope="module")
def plain_configs(model, tmp_path_factory):
    """Text of every config of the two kinds of bundle, made from a folder of a plain name."""
    writers = {"bundle": export_bundle, "label": write_label_bundle}
    folders = {kind: write(model, tmp_path_factory.mktemp(kind) / "out") for kind, write in writers.items()}
    return {
        kind: {path.name: path.read_text(encoding="utf-8") for path in (folder / "configs").iterdir()}
        for kind, folder in folders.items()
    }


def copied(scan, folder, stem):
    """The scan and its table under another name."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending in (".nii.gz", ".bval", ".bvec"):
        shutil.copy(str(scan).replace(".nii.gz", ending), folder / f"{stem}{ending}")
    return folder / f"{stem}.nii.gz"


def tree(folder):
    """Everything in `folder`, by its path from there."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def values(path):
    return np.asarray(nibabel.load(path).dataobj)


def run_bundle(monkeypatch, *words):
    """`python -m monai.bundle run` with `words`, in this process."""
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", *map(str, words)])
    fire.Fire({"run": monai.bundle.run})


def chain(error):
    """Messages of an exception and all its causes."""
    return f"{error} {chain(error.__cause__ or error.__context__)}" if error else ""


# ---- controls


def test_config_parser_runs_such_a_name(desk):
    ConfigParser({"path": NAMES["code"], "use": "@path"}).get_parsed_content("use")
    assert (desk / "canary").is_file()
    (desk / "canary").unlink()


def test_config_parser_makes_what_such_a_name_describes(desk):
    ConfigParser(
        {
            "path": json.loads(
                '{"_target_": "pathlib.Path.touch", "self": "$__import__(\'pathlib\').Path(\'canary\')"}'
            )
        }
    ).get_parsed_content("path")
    assert (desk / "canary").is_file()
    (desk / "canary").unlink()


@pytest.mark.parametrize(
    ("name", "becomes"), [("reference", "elsewhere"), ("macro", "elsewhere"), ("hash", "study ::2")]
)
def test_config_parser_takes_another_path_for_such_a_name(name, becomes):
    parser = ConfigParser({"path": NAMES[name], "output_dir": "elsewhere"})
    assert parser.get_parsed_content("path") == becomes


@pytest.mark.parametrize(
    ("name", "becomes"), [("hash in a word", "study"), ("number", 100307), ("list", ["a", "b"])]
)
def test_command_line_of_monai_makes_something_else_of_such_a_name(name, becomes):
    assert fire.Fire(lambda path: path, command=["--path", NAMES[name]]) == becomes


# ---- prediction: every name works, as it is


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_scan_and_folders_of_any_name_are_predicted(scan, model, expected, desk, name):
    path = copied(scan, desk / name, name).relative_to(desk)
    inputs = tree(desk)
    found = predict(path, checkpoint=model, output_dir=Path("api", name), device="cpu", report=True)
    done = CliRunner().invoke(
        app,
        [
            "predict",
            "--checkpoint",
            str(model),
            "--device",
            "cpu",
            "-o",
            str(Path("cli", name)),
            "--",
            str(path),
        ],
    )
    assert done.exit_code == 0, done.output
    for door, endings in (("api", ("nii.gz", "json", "html")), ("cli", ("nii.gz", "json"))):
        written = {f"{door}/{name}/{name}_dseg.{ending}" for ending in endings}
        assert {t for t in tree(desk) if t.startswith(f"{door}/{name}/")} == written
        np.testing.assert_array_equal(values(desk / door / name / f"{name}_dseg.nii.gz"), expected)
        sidecar = json.loads((desk / door / name / f"{name}_dseg.json").read_text(encoding="utf-8"))
        assert sidecar["Scan"] == f"{name}.nii.gz"
    assert tree(desk) - inputs - {"api", "cli"} == {
        t for t in tree(desk) if t.startswith((f"api/{name}", f"cli/{name}"))
    }
    page = found.files["report"].read_text(encoding="utf-8")
    assert "<script>document" not in page


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_model_in_a_folder_of_any_name_is_used_exported_and_packed(
    scan, model, expected, plain_configs, desk, name
):
    folder = Path(name)
    folder.mkdir()
    for ending in ("pt", "json"):
        shutil.copy(model.with_suffix(f".{ending}"), folder / f"model.{ending}")
    found = predict(scan, checkpoint=folder / "model.pt", device="cpu").values
    np.testing.assert_array_equal(found.numpy(), expected)
    commands = {
        "export": ["-o", f"out/{name}.ts", "--", f"{name}/model.pt"],
        "export-bundle": ["-o", f"out/bundle/{name}", "--", f"{name}/model.pt"],
        "label-bundle": ["-o", f"out/label/{name}", "--", f"{name}/model.pt"],
    }
    for command, words in commands.items():
        done = CliRunner().invoke(app, [command, *words])
        assert done.exit_code == 0, done.output
    assert {path.name for path in (desk / "out").iterdir()} == {
        f"{name}.ts",
        f"{name}.json",
        "bundle",
        "label",
    }
    for kind in ("bundle", "label"):
        assert [path.name for path in (desk / "out" / kind).iterdir()] == [name]
        assert load_model(desk / "out" / kind / name / "models" / "model.pt", "cpu").spec.task == "tissue"
        for config in (desk / "out" / kind / name / "configs").iterdir():
            assert config.read_text(encoding="utf-8") == plain_configs[kind][config.name]


# ---- values of files


SIDECAR_KEYS = (
    "PhaseEncodingDirection",
    "SliceEncodingDirection",
    "TotalReadoutTime",
    "SliceTiming",
    "MultibandAccelerationFactor",
    "Manufacturer",
)
VALUES = {
    "code": f"${CODE}",
    "reference": "@output_dir",
    "macro": "%macro.json",
    "target": {"_target_": "pathlib.Path.touch", "self": "canary"},
    "page": "<script>document.title='canary'</script>",
    "newline": "j\nk",
    "list": [f"${CODE}"],
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_values_of_a_sidecar_are_left_out_with_warnings_that_name_them(scan, model, expected, desk, value):
    path = copied(scan, desk, "sub-01_dwi")
    content = {**dict.fromkeys(SIDECAR_KEYS, value), f"${CODE}": f"${CODE}"}
    path.with_name("sub-01_dwi.json").write_text(json.dumps(content))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = predict(path, checkpoint=model, device="cpu", output_dir=desk / "out", report=True)
    for key in (key for key in SIDECAR_KEYS if key != "Manufacturer"):
        assert any(re.search(rf"{key} .*sub-01_dwi\.json", str(w.message), re.DOTALL) for w in caught), key
    np.testing.assert_array_equal(found.values.numpy(), expected)
    assert "<script>document" not in found.files["report"].read_text(encoding="utf-8")


@pytest.mark.parametrize("ending", ["bval", "bvec"])
def test_text_in_a_table_is_an_error_that_names_the_file(scan, model, desk, ending):
    path = copied(scan, desk, "sub-01_dwi")
    table = path.with_name(f"sub-01_dwi.{ending}")
    words = table.read_text().split(" ")
    table.write_text(" ".join([f"${CODE}", *words[1:]]))
    with pytest.raises(ValueError, match=rf"sub-01_dwi\.{ending}"):
        predict(path, checkpoint=model, device="cpu")


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize("field", [*ModelSpec.model_fields, "options", "tolerance", f"${CODE}"])
def test_value_of_a_model_file_is_refused_by_every_command_before_anything_is_written(
    scan, model, desk, field, value
):
    if field == "scans" and isinstance(value, dict):
        pytest.skip("a mapping from names to hashes")
    path = desk / "model.pt"
    shutil.copy(model, path)
    content = ModelSpec.load(model.with_suffix(".json")).model_dump(mode="json")  # without the checksum
    path.with_suffix(".json").write_text(json.dumps({**content, field: value}))
    before = tree(desk)
    actions = (
        lambda: predict(scan, checkpoint=path, output_dir="out", device="cpu"),
        lambda: CliRunner().invoke(app, ["export", "model.pt", "-o", "out.ts"], catch_exceptions=False),
        lambda: export_bundle(path, "out"),
        lambda: write_label_bundle(path, "out"),
    )
    for action in actions:
        try:
            done = action()
        except ValueError as error:
            message = str(error)
        else:
            assert done.exit_code == 2
            message = done.stderr
        assert "model.json" in " ".join(message.split())
        assert "checksum" not in message
    assert tree(desk) == before


def test_names_of_training_scans_are_kept_and_never_evaluated(scan, model, expected, desk, monkeypatch):
    names = {text: text for text in NAMES.values() if text != NAMES["Latin-1"]}  # JSON holds text alone
    spec = ModelSpec.load(model.with_suffix(".json")).replace(scans=names)
    shutil.copy(model, desk / "model.pt")
    spec.save(desk / "model.json")
    assert load_model("model.pt", "cpu").spec.scans == names
    np.testing.assert_array_equal(predict(scan, checkpoint="model.pt", device="cpu").values.numpy(), expected)
    for write in (export_bundle, write_label_bundle):
        shutil.rmtree(desk / "out", ignore_errors=True)
        out = write("model.pt", "out")
        assert ModelSpec.load(out / "models" / "model.json").scans == names
        texts = [path.read_text(encoding="utf-8") for path in (out / "configs").iterdir()]
        assert not [text for text in texts if "canary" in text]
    shutil.rmtree(desk / "out")
    export_bundle("model.pt", "out")
    monkeypatch.chdir(desk / "out")
    run_bundle(monkeypatch, "inferring", "--config_file", "configs/inference.json", "--dataset_dir", scan,
               "--output_dir", desk / "results", "--device", "cpu")  # fmt: skip
    np.testing.assert_array_equal(values(desk / "results" / "sub-01_dseg.nii.gz"), expected)


# ---- the bundle on MONAI's command line: a path works, or is refused by its true name

REFUSED = {
    "code": "begins with '$'",
    "reference": "begins with '@'",
    "unknown reference": "begins with '@'",
    "macro": "begins with '%'",
    "unknown macro": "query key: nothing",
    "file as macro": "begins with '%'",
    "hash": NAMES["hash"],
    "hash in a word": NAMES["hash in a word"],
    "target": "_target_",
    "number": "100307",
    "list": r"[a,b]",
    "nothing": "None",
}


def infer(monkeypatch, scan, model, **paths):
    settings = {"dataset_dir": scan, "output_dir": "out", "checkpoint": model, "device": "cpu", **paths}
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    config = bundle_folder() / "configs" / "inference.json"
    run_bundle(monkeypatch, "inferring", "--config_file", config, *words)


@pytest.fixture
def placed(scan, model, desk):
    """Function: option of the command line, name -> a scan, model or folder of this name in the working folder."""

    def place(option, name):
        (desk / name).mkdir(exist_ok=True)
        if option == "dataset_dir":
            copied(scan, desk / name, "sub-01_dwi")
            return name
        if option == "checkpoint":
            for ending in ("pt", "json"):
                shutil.copy(model.with_suffix(f".{ending}"), desk / name / f"model.{ending}")
            return f"{name}/model.pt"
        (desk / name).rmdir()
        return name

    return place


CASES = [(o, n) for o in ("dataset_dir", "output_dir", "checkpoint") for n in NAMES]


@pytest.mark.parametrize(("option", "name"), CASES, ids=[f"{o}-{n}" for o, n in CASES])
def test_path_on_monais_command_line_works_or_is_refused_by_its_true_name(
    scan, model, expected, desk, placed, monkeypatch, option, name
):
    path = placed(option, NAMES[name])
    before = tree(desk)
    refused = name in REFUSED and not (
        option == "checkpoint" and name in ("number", "list", "nothing", "target")
    )
    if refused:
        with pytest.raises((RuntimeError, KeyError)) as error:
            infer(monkeypatch, scan, model, **{option: path})
        expanded = option == "checkpoint" and NAMES[name].startswith(
            "%"
        )  # while the parser reads: nothing can answer
        assert (f"query key: {path[1:]}" if expanded else REFUSED[name]) in chain(error.value)
        assert tree(desk) == before
        return
    infer(monkeypatch, scan, model, **{option: path})
    out = desk / (path if option == "output_dir" else "out")
    np.testing.assert_array_equal(values(out / "sub-01_dseg.nii.gz"), expected)
    assert {p.name for p in out.iterdir()} == {"sub-01_dseg.nii.gz", "sub-01_dseg.json", "report.html"}
    assert {t.split("/")[0] for t in tree(desk) - before} == {out.name}


@pytest.mark.parametrize("name", [n for n in REFUSED if "hash" not in n and n not in ("target", "list")])
def test_such_a_path_works_with_a_dot_in_front(scan, model, expected, desk, placed, monkeypatch, name):
    placed("dataset_dir", NAMES[name])
    infer(monkeypatch, scan, model, dataset_dir=f"./{NAMES[name]}")
    np.testing.assert_array_equal(values(desk / "out" / "sub-01_dseg.nii.gz"), expected)


@pytest.mark.parametrize("name", ["hash", "hash in a word"])
def test_path_with_a_hash_works_through_a_link(scan, model, expected, desk, placed, monkeypatch, name):
    placed("dataset_dir", NAMES[name])
    (desk / "link").symlink_to(NAMES[name])
    infer(monkeypatch, scan, model, dataset_dir="link")
    np.testing.assert_array_equal(values(desk / "out" / "sub-01_dseg.nii.gz"), expected)


@pytest.mark.parametrize("name", ["code", "hash", "target"])
def test_path_in_a_config_file_is_treated_alike(scan, model, desk, placed, monkeypatch, name):
    path = placed("dataset_dir", NAMES[name])
    value = json.loads(path) if name == "target" else path
    (desk / "own.json").write_text(
        json.dumps({"dataset_dir": value, "checkpoint": str(model), "output_dir": "out"})
    )
    configs = [str(bundle_folder() / "configs" / "inference.json"), str(desk / "own.json")]
    with pytest.raises(RuntimeError) as error:
        run_bundle(monkeypatch, "inferring", "--config_file", str(configs))
    assert ("_target_" if name == "target" else REFUSED[name]) in chain(error.value)
    assert not (desk / "out").exists()


# ---- a label server: its requests name a scan


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_request_of_a_label_server_is_data(scan, model, desk, name):
    image = copied(scan, desk, name)
    trained = load_model(model, "cpu")
    steps = Compose([LoadDWId("image"), *trained.preprocessing().transforms])
    others = {
        f"${CODE}": f"${CODE}",
        "_target_": "os.system",
        "image_path": name,
        "device": f"${CODE}",
        "label": {},
    }
    answer = OnImage(steps)({**others, "image": str(image)})
    plain = steps({"image": str(scan)})["image"]
    np.testing.assert_array_equal(answer["image"].numpy(), plain.numpy())
    assert {key: answer[key] for key in others} == others


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_request_for_a_scan_that_is_not_there_names_it(model, desk, name):
    pytest.importorskip("fastapi")
    steps = Compose([LoadDWId("image"), *load_model(model, "cpu").preprocessing().transforms])
    with pytest.raises(Exception, match="400") as error:
        OnImage(steps)({"image": str(desk / f"{name}.nii.gz")})
    assert f"{name}.nii.gz" in error.value.detail


@pytest.fixture
def order(model, desk, monkeypatch):
    """Function that trains the bundle of a label server as its train task does, with what a request brings."""
    app_folder = write_label_bundle(model, desk / "app")

    def train(init_id=None, **request):
        study = {"image": str(desk / "scan.nii.gz"), "label": str(desk / "label.nii.gz")}
        overrides = {
            "bundle_root": str(app_folder),
            "device": request.get("device", "cpu"),
            "train#trainer#max_epochs": request.get("max_epochs", 1),
            "train#dataset#data": request.get("studies", [study]),
            "validate#dataset#data": [study],
        }
        monkeypatch.setattr(sys, "argv", ["server"])
        monai.bundle.run(
            run_id="run",
            init_id=init_id,
            meta_file=str(app_folder / "configs" / "metadata.json"),
            config_file=str(app_folder / "configs" / "train.json"),
            logging_file=False,
            **overrides,
        )

    return train


REQUESTS = {
    "device that is code": ({"device": f"${CODE}"}, "device is"),
    "device that is a macro": ({"device": "%imports"}, "device is"),
    "device of another part": ({"device": "@output_dir"}, "device is"),
    "epochs that are code": ({"max_epochs": f"${CODE}"}, "max_epochs is"),
    "epochs that are a macro": ({"max_epochs": "%macro.json"}, "max_epochs is"),
    "epochs that are a target": ({"max_epochs": VALUES["target"]}, "max_epochs is"),
    "no epochs": ({"max_epochs": 0}, "max_epochs is 0"),
    "study that is code": ({"studies": [{"image": f"${CODE}", "label": "x"}]}, r"image begins with '\$'"),
    "study that is a target": ({"studies": [{"image": VALUES["target"], "label": "x"}]}, "image is"),
    "study with a hash": (
        {"studies": [{"image": "/data/study #2.nii.gz", "label": "x"}]},
        "/data/study #2.nii.gz",
    ),
}


@pytest.mark.parametrize(("request_", "message"), REQUESTS.values(), ids=REQUESTS.keys())
def test_order_of_a_label_server_runs_nothing(order, request_, message):
    with pytest.raises(RuntimeError) as error:
        order(**request_)
    assert message.replace("\\", "") in chain(error.value)


def test_order_without_the_check_would_run_it(order, desk):
    """The control: MONAI evaluates what a request says."""
    with pytest.raises(RuntimeError):
        order(init_id="nothing", device=f"${CODE}")
    assert (desk / "canary").is_file()
    (desk / "canary").unlink()


def test_order_as_it_should_be_passes_the_check(order):
    with pytest.raises(RuntimeError) as error:
        order(device="cpu", max_epochs=2)
    assert "scan.nii.gz" in chain(error.value)  # which is not there
