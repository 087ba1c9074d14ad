import pytest

from dmri_monai.training.config_keys import check_keys

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
