import pytest

from dmri_monai.inference.bundle_config import check_keys

CONFIG = {
    "max_epochs": 5,
    "trainer": {"max_epochs": "@max_epochs"},
    "run": ["$@trainer.run()"],
    "training": "%run",
}


@pytest.mark.parametrize("name", ["max_epoch", "maxepochs", "max_epohcs"])
def test_name_that_is_almost_right_is_an_error_that_names_both(name):
    with pytest.raises(ValueError, match=f"{name}.*max_epochs"):
        check_keys({**CONFIG, name: 1})


@pytest.mark.parametrize("name", ["crop_size", "_desc_", "shells"])
def test_settings_of_other_configs_are_left_alone(name):
    check_keys({**CONFIG, name: 1})


def test_settings_that_are_used_are_right():
    check_keys(CONFIG)


@pytest.mark.parametrize(("old", "new"), [("too_few", "insufficient_directions"), ("selection", "monitor")])
def test_setting_of_an_earlier_version_is_named_with_its_successor(old, new):
    with pytest.raises(ValueError, match=f"{old}.*is called '{new}' now"):
        check_keys({**CONFIG, old: "zero"})


def test_task_without_its_objective_says_which_file_holds_it():
    with pytest.raises(ValueError, match="add configs/tasks/lesion.json"):
        check_keys({**CONFIG, "objective": {"task": "tissue"}, "task": "lesion"})


@pytest.mark.parametrize("value", ["$__import__('os').getcwd()", "@max_epochs", "$@max_epochs"])
def test_path_that_monai_would_evaluate_is_refused(value):
    with pytest.raises(ValueError, match="dataset_dir begins with"):
        check_keys({**CONFIG, "dataset_dir": value})


def test_path_that_monai_has_changed_is_refused_by_its_true_name():
    with pytest.raises(ValueError, match="dataset_dir is '/data/study #2'"):
        check_keys({**CONFIG, "dataset_dir": "/data/study ::2"})
