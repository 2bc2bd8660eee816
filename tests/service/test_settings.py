"""Settings come from the environment; a wrong one is told in one line."""

from pathlib import Path

import pytest

from service.inference.models import ModelReference
from service.settings import Settings, SettingsError, unknown_names


def test_nothing_need_be_set() -> None:
    settings = Settings.from_environment({})
    assert (settings.rest_host, settings.rest_port) == ("127.0.0.1", 8000)
    assert settings.model_repo == Path("model_repo")
    assert settings.default_reference() == ModelReference("lightweight")
    assert settings.rest().max_body_bytes == 20 * 1024 * 1024


def test_settings_become_the_small_values_of_the_layers_below() -> None:
    settings = Settings.from_environment(
        {
            "HANDPOSE_REST_PORT": "9000",
            "HANDPOSE_MODEL_REPO": "/models",
            "HANDPOSE_DEFAULT_MODEL": "standard@2",
            "HANDPOSE_MAX_BATCH_SIZE": "4",
            "HANDPOSE_MAX_WAIT_MS": "2.5",
            "HANDPOSE_MAX_QUEUE": "10",
            "HANDPOSE_MAX_PIXELS": "1000",
            "HANDPOSE_MAX_ROIS": "3",
            "HANDPOSE_MAX_BODY_BYTES": "5000",
            "HANDPOSE_MAX_BATCH_IMAGES": "6",
            "HANDPOSE_DEFAULT_DEADLINE_MS": "500",
            "HANDPOSE_MAX_DEADLINE_MS": "1500",
            "HANDPOSE_LOG_FORMAT": "JSON",
            "PATH": "/bin",
        }
    )
    assert (settings.rest_port, settings.model_repo) == (9000, Path("/models"))
    assert settings.default_reference() == ModelReference("standard", version=2)
    batching = settings.batching()
    assert (batching.max_batch_size, batching.max_wait_s, batching.max_queue) == (4, 0.0025, 10)
    assert (settings.limits().max_pixels, settings.limits().max_rois) == (1000, 3)
    rest = settings.rest()
    assert (rest.max_body_bytes, rest.max_batch_images, rest.max_rois) == (5000, 6, 3)
    assert (rest.default_deadline_s, rest.max_deadline_s) == (0.5, 1.5)
    assert settings.log_format == "json"


def test_empty_variable_counts_as_not_set() -> None:
    assert Settings.from_environment({"HANDPOSE_REST_PORT": " "}).rest_port == 8000


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("HANDPOSE_REST_PORT", "abc", "integer"),
        ("HANDPOSE_REST_PORT", "70000", "65535"),
        ("HANDPOSE_MAX_BATCH_SIZE", "0", "greater than or equal to 1"),
        ("HANDPOSE_MAX_WAIT_MS", "-1", "greater than or equal to 0"),
        ("HANDPOSE_DEFAULT_DEADLINE_MS", "inf", "finite"),
        ("HANDPOSE_DEFAULT_DEADLINE_MS", "90000", "HANDPOSE_MAX_DEADLINE_MS"),
        ("HANDPOSE_MAX_ROIS", "300", "HANDPOSE_MAX_QUEUE=256"),
        ("HANDPOSE_DEFAULT_MODEL", "huge", "standard or lightweight"),
        ("HANDPOSE_LOG_FORMAT", "xml", "'text' or 'json'"),
        ("HANDPOSE_LOG_LEVEL", "loud", "'info'"),
    ],
)
def test_wrong_setting_is_told_in_one_line(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}={value}: ")
    assert allowed in message
    assert "\n" not in message


def test_misspelt_names_are_found() -> None:
    environment = {"HANDPOSE_REST_PROT": "1", "HANDPOSE_REST_PORT": "2", "OTHER": "3"}
    assert unknown_names(environment) == ["HANDPOSE_REST_PROT"]
