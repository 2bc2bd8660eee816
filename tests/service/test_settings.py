"""Settings come from the environment; a wrong one is told in one line."""

import math
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
    assert (batching.max_batch_size, batching.max_wait_s, batching.max_queue) == (4, math.inf, 10)
    remote = settings.model_copy(update={"backend": "tensorflow_serving"}).batching()
    assert (remote.max_batch_size, remote.max_wait_s, remote.max_queue) == (4, 0.0025, 10)
    assert (settings.max_pixels, settings.max_rois) == (1000, 3)
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


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("TLS_CERT_FILE", "cert.pem", "HANDPOSE_TLS_KEY_FILE"),
        ("TLS_CLIENT_CA_FILE", "ca.pem", "HANDPOSE_TLS_CERT_FILE"),
        ("KEY_BURST", "5", "HANDPOSE_KEY_IMAGES_PER_SECOND"),
        ("CORS_ORIGINS", "https://a.example/", "without a path"),
        ("CORS_ORIGINS", "https://a.example,b.example", "'b.example'"),
    ],
)
def test_access_settings_that_do_not_fit_are_told_with_what_is_missing(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError, match=f"HANDPOSE_{name}") as caught:
        Settings.from_environment({f"HANDPOSE_{name}": value})
    assert allowed in str(caught.value)


def test_access_settings_become_the_values_of_the_layers_below() -> None:
    settings = Settings.from_environment(
        {
            "HANDPOSE_KEY_IMAGES_PER_SECOND": "5",
            "HANDPOSE_WRONG_KEYS": "3",
            "HANDPOSE_WRONG_KEYS_PER_MINUTE": "6",
            "HANDPOSE_CORS_ORIGINS": "https://a.example, http://[::1]:8080",
            "HANDPOSE_ADMIN_PORT": "9000",
            "HANDPOSE_TLS_CERT_FILE": "cert.pem",
            "HANDPOSE_TLS_KEY_FILE": "key.pem",
            "HANDPOSE_API_KEY": "the client's",
        }
    )
    access, rest = settings.access(), settings.rest()
    assert (access.allowance.images_per_second, access.allowance.burst) == (5, 10)
    assert (access.failures, access.failures_per_second) == (3, 0.1)
    assert rest.cors_origins == ("https://a.example", "http://[::1]:8080")
    assert (rest.metrics, rest.hsts_s > 0) == (False, True)
    assert unknown_names({"HANDPOSE_API_KEY": ""}) == []


@pytest.mark.parametrize(
    ("host", "beyond"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True)]
)
def test_who_can_connect_follows_from_the_address(host: str, beyond: bool) -> None:
    environment = {"HANDPOSE_REST_HOST": host}
    assert Settings.from_environment(environment).listens_beyond_this_machine() is beyond
