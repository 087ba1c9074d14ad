"""`load_model` and `predict`: from a scan, or an array and its table, to a map on the scan's grid."""

import json
import sys

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import dmri_monai
from dmri_monai.cli import app
from dmri_monai.inference.model import load_model, predict
from dmri_monai.inference.out_of_range import out_of_range
from dmri_monai.inference.released import bundle_folder, released_models, released_tasks
from dmri_monai.inference.spec import TAKES, ModelSpec
from dmri_monai.io import read_dwi
from dmri_monai.scan import Scan
from tests.small_models import save_model


def values(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_map_lies_on_the_grid_of_the_scan(scan, checkpoint, tmp_path):
    found = predict(scan, checkpoint=checkpoint, output_dir=tmp_path / "out", device="cpu")
    written, source = nibabel.load(found.files["prediction"]), nibabel.load(scan)
    assert written.shape == source.shape[:3]
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    assert sorted(found.files) == ["prediction", "sidecar"]


@pytest.mark.parametrize("ensemble", [None, "flips"], ids=["released", "own-flips"])
def test_object_function_and_command_give_the_same_bits(scan, checkpoint, tmp_path, ensemble):
    own = checkpoint if ensemble else None
    found = load_model(own or "tissue", "cpu").predict(Scan.read(scan), ensemble=ensemble)
    again = dmri_monai.predict(scan, checkpoint=own, device="cpu", ensemble=ensemble)
    torch.testing.assert_close(again.image, found.image, rtol=0, atol=0)
    options = ["--device", "cpu", *(["--ensemble", "flips", "--checkpoint", str(own)] if own else [])]
    done = CliRunner().invoke(app, ["predict", str(scan), "-o", str(tmp_path / "cli"), *options])
    assert done.exit_code == 0, done.output
    written = found.write(tmp_path / "object").files
    for kind, path in written.items():
        assert (tmp_path / "cli" / path.name).read_bytes() == path.read_bytes(), kind
    np.testing.assert_array_equal(values(written["prediction"]), found.values.numpy())
    assert len(np.unique(values(written["prediction"]))) > 1


def test_another_model_gives_other_bits(scan, checkpoint):
    """The control: the comparison above can fail."""
    one, other = (predict(scan, device="cpu", **{"checkpoint": c}).image for c in (None, checkpoint))
    assert (one != other).float().mean() > 0.01


@pytest.mark.parametrize("architecture", TAKES)
def test_a_model_predicts_the_same_scan_again_and_leaves_it_alone(scan, tmp_path, architecture):
    model = load_model(save_model(tmp_path / "model.pt", architecture=architecture, n_directions=12), "cpu")
    scanned = Scan.read(scan)
    before, table = scanned.signal.clone(), scanned.table.bvecs.clone()
    first, second = model.predict(scanned), model.predict(scanned)
    torch.testing.assert_close(second.image, first.image, rtol=0, atol=0)
    torch.testing.assert_close(scanned.signal, before, rtol=0, atol=0)
    torch.testing.assert_close(scanned.table.bvecs, table, rtol=0, atol=0)


@pytest.fixture(scope="module")
def opened():
    """Paths of the files that this process opens, in order, for as long as the tests of this file run."""
    paths: list[str] = []
    sys.addaudithook(lambda event, arguments: paths.append(str(arguments[0])) if event == "open" else None)
    return paths


def test_image_of_the_scan_is_read_once(scan, checkpoint, tmp_path, opened, monkeypatch):
    def count(action):
        opened.clear()
        action()
        return opened.count(str(scan))

    once = count(lambda: Scan.read(scan))
    assert once > 0
    loads, load = [], nibabel.load
    monkeypatch.setattr(
        nibabel, "load", lambda path, *args, **more: loads.append(path) or load(path, *args, **more)
    )
    own = {"checkpoint": checkpoint, "device": "cpu"}
    assert count(lambda: predict(scan, **own)) == once
    assert count(lambda: predict(scan, **own, output_dir=tmp_path, report=True, ensemble="flips")) == once
    assert [str(path) for path in loads] == [str(scan)] * 2  # one per prediction, and no other image
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "-o", str(tmp_path / "cli")]
    assert count(lambda: CliRunner().invoke(app, ["predict", str(scan), *options])) == once
    assert len(loads) == 3


def test_prediction_needs_neither_config_nor_temporary_file(scan, checkpoint, monkeypatch, tmp_path):
    """What evaluates text or writes the scan again would fail here."""

    def refused(*args, **kwargs):
        raise AssertionError("used")

    monkeypatch.setattr("monai.bundle.ConfigParser.__init__", refused)
    monkeypatch.setattr("tempfile.mkdtemp", refused)
    monkeypatch.setattr("dmri_monai.io.writing.save_nifti", refused)
    assert predict(scan, checkpoint=checkpoint, device="cpu").files == {}


def test_array_with_its_table_gives_what_the_file_gives(scan, checkpoint):
    scanned = Scan.read(scan)
    from_file = predict(scan, checkpoint=checkpoint, device="cpu").image
    table, plain = scanned.table, scanned.signal.numpy()
    options = {"affine": scanned.affine, "checkpoint": checkpoint, "device": "cpu"}
    from_array = dmri_monai.predict(plain, table.bvals, table.bvecs, **options).image
    torch.testing.assert_close(from_array, from_file, rtol=0, atol=0)


def test_array_with_another_table_gives_something_else(scan, checkpoint):
    """The control: the comparison above can fail."""
    image, table = read_dwi(scan)
    turned = table.bvecs[:, [1, 2, 0]]
    plain = image.as_tensor().numpy()
    options = {"affine": image.affine, "checkpoint": checkpoint, "device": "cpu"}
    other = predict(plain, table.bvals, turned, **options).image
    assert (predict(scan, checkpoint=checkpoint, device="cpu").image != other).float().mean() > 1e-3


def test_scan_of_an_array_is_written_under_a_name_of_its_own(scan, checkpoint, tmp_path):
    image, table = read_dwi(scan)
    found = predict(Scan(image, table), checkpoint=checkpoint, output_dir=tmp_path, device="cpu")
    assert found.files["prediction"].name == "scan_dseg.nii.gz"
    assert json.loads(found.files["sidecar"].read_text(encoding="utf-8"))["Scan"] == "array"


def test_nothing_stays_without_an_output_folder(scan, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert predict(scan, checkpoint=checkpoint, device="cpu").files == {}
    assert list(tmp_path.iterdir()) == []


def test_sidecar_names_model_and_table_by_their_hashes(scan, checkpoint, tmp_path):
    found = predict(scan, checkpoint=checkpoint, output_dir=tmp_path, device="cpu")
    sidecar = json.loads(found.files["sidecar"].read_text())
    assert sidecar["TableSHA256"] == read_dwi(scan)[1].sha256
    assert sidecar["ModelSHA256"] == ModelSpec.load(checkpoint.with_suffix(".json")).sha256
    assert sidecar["Task"] == "tissue"


def test_scan_outside_of_the_training_range_is_a_warning_everywhere(scan, tmp_path):
    narrow = {"directions": [100, 200], "voxel_mm": [1, 2], "snr": [0, 1000]}
    checkpoint = save_model(tmp_path / "model.pt", "tissue", trained_on=narrow)
    own = {"output_dir": tmp_path / "out", "device": "cpu", "report": True}
    found = predict(scan, checkpoint=checkpoint, **own)
    assert any("directions: the model was trained on 100 to 200" in w for w in found.warnings)
    assert any("6 x 6 x 6 mm voxel size" in w for w in found.warnings)
    assert json.loads(found.files["sidecar"].read_text())["Warnings"] == list(found.warnings)
    assert "the model was trained on 100 to 200" in found.files["report"].read_text()


def test_a_prediction_names_the_weights_that_made_it_after_a_kill_between_description_and_weights(
    scan, tmp_path
):
    old = save_model(tmp_path / "old" / "model.pt")
    digest = load_model(old, "cpu").identity["ModelSHA256"]
    killed = ModelSpec.load(old.with_suffix(".json")).replace(sha256="0" * 64, previous_sha256=digest)
    killed.save(old.with_suffix(".json"))
    found = load_model(old, "cpu").predict(Scan.read(scan))
    assert found.provenance["ModelSHA256"] == digest


def test_the_threshold_a_scan_was_read_with_holds_for_any_model(scan, tmp_path):
    """One given as the default is not taken for none given; the doubtful volumes are named."""
    model = load_model(save_model(tmp_path / "model.pt", b0_threshold=100.0), "cpu")
    read = Scan.read(scan)
    bvals = read.table.bvals.clone()
    bvals[torch.nonzero(read.table.b0_mask).flatten()[-1]] = 80.0
    vectors = read.table.bvecs.clone()
    vectors[bvals == 80] = torch.tensor([1.0, 0.0, 0.0], dtype=vectors.dtype)
    usual, wide = (Scan.of_arrays(read.image, bvals, vectors, b0_threshold=b) for b in (50.0, 100.0))
    (doubt,) = out_of_range(usual, model.spec)
    assert doubt.startswith("volumes with b = 80 count as weighted: with the model's b0_threshold of 100")
    assert out_of_range(wide, model.spec) == []
    one, other = (model.encode(s)["image"] for s in (usual, wide))
    assert not torch.equal(one, other)
    torch.testing.assert_close(model.encode(read)["image"], other)  # all of them b0 in both


@pytest.fixture(scope="module")
def whole(scan):
    return Scan.read(scan)


def test_scan_inside_of_the_training_range_is_no_warning(whole):
    wide = {"directions": [6, 200], "voxel_mm": [1, 6], "snr": [0, 1000]}
    assert out_of_range(whole, ModelSpec(trained_on=wide)) == []


@pytest.mark.parametrize(
    ("bval", "spacing_mm", "directions", "expected"),
    [
        (1000, 2.0, 30, []),
        (1190, 2.4, 27, []),
        (1000, 1.7, 35, []),
        (2000, 2.0, 30, ["2000 s/mm² b-values: the model was trained on 1000"]),
        (1000, 4.0, 30, ["4 x 4 x 4 mm voxel size: the model was trained on 2"]),
        (1000, 2.0, 12, ["12 directions: the model was trained on 30"]),
    ],
    ids=["same", "near", "finer", "b-value", "voxels", "directions"],
)
def test_trifles_beside_a_single_protocol_are_no_warning(bval, spacing_mm, directions, expected):
    generator = torch.Generator().manual_seed(0)
    bvals = torch.tensor([0.0, *[float(bval)] * directions])
    bvecs = torch.nn.functional.normalize(torch.randn(len(bvals), 3, generator=generator), dim=1)
    affine = torch.diag(torch.tensor([spacing_mm] * 3 + [1.0]))
    other = Scan.of_arrays(torch.ones(len(bvals), 4, 4, 4), bvals, bvecs, affine)
    one = {"directions": [30, 30], "bval": [1000, 1000], "voxel_mm": [2, 2]}
    assert out_of_range(other, ModelSpec(architecture="any", trained_on=one)) == expected


def test_model_that_says_nothing_of_its_training_data_gives_no_warning(whole):
    assert out_of_range(whole, ModelSpec()) == []


def test_one_shell_is_enough_where_others_may_be_missing(whole):
    several = ModelSpec(architecture="equivariant", shells=[1000, 3000])
    assert out_of_range(whole, several.replace(missing="zero")) == []
    assert out_of_range(whole, several) == ["no shell near the model's b = 3000 s/mm²"]
    none = out_of_range(whole, several.replace(shells=[3000, 5000], missing="zero"))
    assert [w[-10:] for w in none] == ["3000 s/mm²", "5000 s/mm²"]


def test_no_shell_is_strange_to_a_model_for_any_protocol_but_its_range_is_known(whole):
    model = ModelSpec(architecture="any")
    assert out_of_range(whole, model) == []
    wide = {"directions": [6, 200], "bval": [600, 3200], "voxel_mm": [1, 6]}
    assert out_of_range(whole, model.replace(trained_on=wide)) == []
    (found,) = out_of_range(whole, model.replace(trained_on={"bval": [2000, 3200]}))
    assert found.endswith("s/mm² b-values: the model was trained on 2000 to 3200")


def test_a_model_for_any_protocol_takes_every_shell_and_many_of_them(tmp_path):
    model = load_model(save_model(tmp_path / "model.pt", architecture="any"), "cpu")
    generator = torch.Generator().manual_seed(0)
    bvals = torch.tensor([0.0, 0.0, *(b for b in (300, 750, 1500, 2300, 4000, 5500) for _ in range(8))])
    bvecs = torch.nn.functional.normalize(torch.randn(len(bvals), 3, generator=generator), dim=1)
    image = (
        500
        * torch.exp(-bvals * 1e-3)[:, None, None, None]
        * (1 + torch.rand(1, 8, 8, 8, generator=generator))
    )
    affine = torch.diag(torch.tensor([6.0, 6.0, 6.0, 1.0]))
    found = model.predict(Scan.of_arrays(image, bvals, bvecs * (bvals > 0).unsqueeze(1), affine))
    assert found.image.shape == (1, 8, 8, 8)


def test_missing_shell_is_an_error_that_says_both_sides(scan, tmp_path):
    checkpoint = save_model(tmp_path / "model.pt", "tissue", architecture="equivariant", shells=[3000])
    with pytest.raises(ValueError, match=r"no volume within 20% of shell b = 3000; b-values: .*992"):
        predict(scan, checkpoint=checkpoint, device="cpu")


def test_directions_are_peaks_in_the_world_frame(scan, tmp_path):
    checkpoint = save_model(tmp_path / "model.pt", "orientation")
    found = predict(scan, task="orientation", checkpoint=checkpoint, device="cpu")
    assert found.image.shape[0] == 3
    assert found.class_names == ()


def test_released_models_are_found_by_name_and_by_path():
    tasks = {"crossings", "fod", "fractions", "orientation", "tissue"}
    others = {"tissue-shells": "tissue", "tissue-voxelwise": "tissue", "fractions-voxelwise": "fractions"}
    assert set(released_models()) == tasks | {*others, "pretrained"}
    assert set(released_tasks()) == tasks  # one a task, for `--task all`
    for name, path in released_models().items():
        assert load_model(name, "cpu").weights == load_model(path, "cpu").weights == path
        task = {"pretrained": None, **others}.get(name, name)
        assert load_model(str(path), "cpu").spec.task == task


def test_a_released_model_is_chosen_by_its_own_name(scan):
    by_name = predict(scan, task="tissue-shells", device="cpu")
    assert by_name.provenance["Model"] == "tissue-shells.pt"
    assert (by_name.image != predict(scan, device="cpu").image).any()
    with pytest.raises(ValueError, match="task is 'tumour'"):
        predict(scan, task="tumour", device="cpu")


def test_file_called_like_a_released_model_is_found_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = save_model(tmp_path / "tissue", "lesion")
    assert load_model("tissue", "cpu").spec.task == "tissue"
    assert load_model("./tissue", "cpu").spec.task == load_model(own, "cpu").spec.task == "lesion"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "tumour"}, "task is 'tumour', expected one of tissue"),
        ({"task": "lesion"}, r"lesion does not exist, and is none of the released models \(.*tissue"),
        ({"checkpoint": "nowhere.pt"}, "nowhere.pt does not exist"),
    ],
    ids=["unknown task", "no weights", "no checkpoint"],
)
def test_mistakes_are_named(scan, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        predict(scan, **{"checkpoint": None, **arguments})


def test_weights_without_their_description_are_named(scan, checkpoint, tmp_path):
    (tmp_path / "model.pt").write_bytes(checkpoint.read_bytes())
    with pytest.raises(
        FileNotFoundError, match=r"model\.json does not exist; weights need their description"
    ):
        predict(scan, checkpoint=tmp_path / "model.pt")


def test_weights_that_are_not_those_described_are_refused_with_both_digests(scan, checkpoint, tmp_path):
    other = save_model(tmp_path / "model.pt", "tissue", size="small")
    described = ModelSpec.load(other.with_suffix(".json")).sha256
    other.write_bytes(checkpoint.read_bytes())
    with pytest.raises(ValueError, match=rf"model\.pt is not the file .* expected {described}"):
        predict(scan, checkpoint=other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "it has no architecture, shells"),
        ("[]", "does not describe a model"),
        ("half {", "does not describe a model"),
    ],
    ids=["no settings", "a list", "no JSON"],
)
def test_file_that_holds_no_settings_is_named(scan, tmp_path, content, message):
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match=rf"model\.json.*{message}"):
        predict(scan, checkpoint=tmp_path / "model.pt")


def test_pretrained_model_has_no_task_yet_and_is_refused_before_the_scan_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"pretrained\.json.*task"):
        predict(tmp_path / "nowhere.nii.gz", checkpoint=bundle_folder() / "models" / "pretrained.pt")


def test_two_tables_for_one_scan_are_refused(scan, checkpoint):
    with pytest.raises(ValueError, match="brings its own"):
        predict(scan, bvals=[0.0], checkpoint=checkpoint)


def test_array_without_a_table_is_refused(checkpoint):
    with pytest.raises(ValueError, match="bvals"):
        predict(np.zeros((7, 4, 4, 4), np.float32), affine=np.eye(4), checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda signal: signal * 0, "no signal: every voxel of every volume is 0"),
        (lambda signal: signal * 0 + 7, "no signal: every voxel of every volume is 7"),
        (lambda signal: -signal, "negative signal, from .* magnitudes are expected"),
    ],
    ids=["blank", "constant", "negated"],
)
def test_scan_without_signal_is_refused_by_name(whole, checkpoint, spoil, message):
    spoilt = Scan.of_arrays(spoil(whole.signal), whole.table.bvals, whole.table.bvecs, whole.affine)
    with pytest.raises(ValueError, match=message):
        load_model(checkpoint, "cpu").predict(spoilt)


@pytest.fixture
def scan_from_b100(scan, tmp_path):
    """The same scan with b = 100 written where b = 0 was."""
    path = tmp_path / "from100" / "sub-01_dwi.nii.gz"
    read = Scan.read(scan)
    read.write(path)
    bvals = ["100" if b == 0 else f"{b:g}" for b in read.table.bvals.tolist()]
    path.with_name("sub-01_dwi.bval").write_text(" ".join(bvals), encoding="ascii")
    return path


def test_threshold_of_the_command_reaches_the_network(scan, scan_from_b100, checkpoint, tmp_path):
    def run(path, name, *options):
        command = ["predict", str(path), "-o", str(tmp_path / name), "--checkpoint", str(checkpoint)]
        return CliRunner().invoke(app, [*command, "--device", "cpu", *options])

    assert run(scan, "usual").exit_code == 0
    refused = run(scan_from_b100, "refused")
    assert refused.exit_code == 2
    assert "give b0_threshold=100" in refused.output
    done = run(scan_from_b100, "given", "--b0-threshold", "100")
    assert done.exit_code == 0, done.output
    one, two = (values(next((tmp_path / name).glob("*_dseg.nii.gz"))) for name in ("usual", "given"))
    np.testing.assert_array_equal(one, two)


def test_threshold_of_the_models_training_is_the_default(scan_from_b100, tmp_path):
    own = save_model(tmp_path / "own" / "model.pt", b0_threshold=100.0)
    command = ["predict", str(scan_from_b100), "-o", str(tmp_path / "out"), "--checkpoint", str(own)]
    done = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert (
        predict(scan_from_b100, checkpoint=own, device="cpu").values.shape
        == values(next((tmp_path / "out").glob("*_dseg.nii.gz"))).shape
    )
