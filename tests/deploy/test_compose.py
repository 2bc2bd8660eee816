"""docker-compose.yml and what belongs to it: safe defaults, nothing misspelt, and no two files that disagree."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format

from deploy.stand_in.tensorflow_model_server import batching_parameters, monitoring_path, parser
from service.backends.tensorflow_serving.backend import MODEL_NAMES
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.routing_file import read_rules
from service.settings import Settings
from trainer.export import WARM_UP_BATCH_SIZES

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE = ROOT / "docker-compose.yml"
DEVICES = ROOT / "deploy/compose/tensorflow-serving.yml"
SERVING_FILES = ROOT / "deploy/compose/tensorflow-serving"
GATEWAY_ENV = ROOT / "deploy/compose/gateway/gateway.env"
ENV_EXAMPLE = ROOT / "deploy/compose/env.example"

_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::-([^}]*))?\}")

THAT_END = {"models", "manage"}


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """Variables replaced as Compose does it, for the one form of them that these files use."""
    return _VARIABLE.sub(lambda found: environment.get(found[1]) or found[2] or "", text)


def services(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What is composed in an environment; the one service that extends another holds that one's keys, too."""
    environment = environment or {}
    composed: dict[str, Any] = yaml.safe_load(interpolated(COMPOSE.read_text(), environment))["services"]
    for service in composed.values():
        if (extended := service.pop("extends", None)) is not None:
            assert ROOT / extended["file"] == DEVICES
            base = yaml.safe_load(interpolated(DEVICES.read_text(), environment))["services"][extended["service"]]
            service.update({**base, **service})
    return composed


def settings_in(text: str) -> set[str]:
    return set(re.findall(r"HANDPOSE_[A-Z0-9_]+", text))


def lines_of_environment(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z_]+=", line))


SERVICES = sorted(services())


def test_ports_are_published_to_this_machine_only() -> None:
    published = [(name, port) for name, service in services().items() for port in service.get("ports", ())]
    assert published
    assert [each for each in published if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", each[1])] == []


def test_the_model_server_is_not_published_at_all() -> None:
    assert "ports" not in services()["tensorflow-serving"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_says_how_it_is_and_one_that_ends_stays_ended(name: str) -> None:
    service = services()[name]
    if name in THAT_END:
        assert service["healthcheck"] == {"disable": True}
        assert service["restart"] == "no"
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_bounds_and_no_privileges(name: str) -> None:
    service = services()[name]
    assert re.fullmatch(r"\d+[gm]", service["mem_limit"])
    assert service["pids_limit"] > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", ["models", "gateway", "embedded", "manage"])
def test_our_own_images_run_on_a_root_that_cannot_be_written_to(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]


def test_the_model_server_starts_when_the_models_are_there_and_the_gateway_after_it() -> None:
    composed = services()
    assert composed["tensorflow-serving"]["depends_on"] == {"models": {"condition": "service_completed_successfully"}}
    assert composed["gateway"]["depends_on"] == {"tensorflow-serving": {"condition": "service_healthy"}}


@pytest.mark.parametrize(("device", "image"), [("gpu", "2.19.1-gpu"), ("cpu", "2.19.1")])
def test_one_variable_chooses_the_model_server_with_or_without_a_gpu(device: str, image: str) -> None:
    server = services({"DEVICE": device})["tensorflow-serving"]

    assert server["image"] == f"tensorflow/serving:{image}"
    assert services({"DEVICE": device, "TENSORFLOW_SERVING_IMAGE": "mine"})["tensorflow-serving"]["image"] == "mine"
    devices = server.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
    gpu = [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert devices == (gpu if device == "gpu" else None)


def test_a_gpu_is_what_is_taken_when_nothing_is_said() -> None:
    assert services()["tensorflow-serving"] == services({"DEVICE": "gpu"})["tensorflow-serving"]


def test_the_model_server_is_started_so_that_it_can_be_stopped() -> None:
    server = services()["tensorflow-serving"]
    assert server["init"] is True
    assert server["entrypoint"] == ["tensorflow_model_server"]


def test_the_model_server_gets_flags_that_it_has() -> None:
    given = parser().parse_args(services()["tensorflow-serving"]["command"])

    assert given.port == 8500
    assert given.rest_api_port == 8501
    assert given.enable_batching
    assert given.allow_version_labels_for_unavailable_models
    assert given.grpc_max_threads == 256
    assert (given.max_num_load_retries, given.load_retry_interval_micros) == (2, 1_000_000)
    for file in (given.batching_parameters_file, given.monitoring_config_file):
        assert file.parent == Path("/config")
        assert (SERVING_FILES / file.name).is_file()


def test_the_embedded_gateway_starts_only_by_name_and_answers_to_the_gateways() -> None:
    embedded = services()["embedded"]
    assert embedded["profiles"] == ["embedded"]
    assert embedded["networks"] == {"default": {"aliases": ["gateway"]}}
    assert embedded["ports"] == services()["gateway"]["ports"]
    assert "depends_on" not in embedded


def test_docker_waits_longer_than_the_gateway_takes_to_stop() -> None:
    for name in ("gateway", "embedded"):
        grace = int(services()[name]["stop_grace_period"].removesuffix("s"))
        assert grace >= Settings.from_environment({}).grace_period_s + 5


def test_the_model_server_forms_the_batches_that_the_models_are_warmed_up_with() -> None:
    text = (SERVING_FILES / "batching.config").read_text()
    parameters = batching_parameters(text)  # which checks that the last size is the largest

    assert tuple(map(int, re.findall(r"^allowed_batch_sizes: (\d+)", text, re.MULTILINE))) == WARM_UP_BATCH_SIZES
    assert "batch_timeout_micros { value: 0 }" in text  # the gateway waits, and one wait is enough
    assert Settings.from_environment({}).max_batch_size <= parameters.max_batch_size


def test_what_prometheus_scrapes_is_what_the_model_server_exports() -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    by_target = {target: job for job in scraped for each in job["static_configs"] for target in each["targets"]}

    assert by_target.keys() == {"gateway:8000", "tensorflow-serving:8501"}
    path = monitoring_path((SERVING_FILES / "monitoring.config").read_text())
    assert by_target["tensorflow-serving:8501"]["metrics_path"] == path


def test_the_gateway_reads_the_model_servers_own_files() -> None:
    gateway, server = services()["gateway"], services()["tensorflow-serving"]
    given = parser().parse_args(server["command"])

    assert gateway["environment"]["HANDPOSE_TFS_CONFIG_FILE"] == str(given.model_config_file)
    assert gateway["environment"]["HANDPOSE_TFS_BATCHING_FILE"] == str(given.batching_parameters_file)
    assert set(server["volumes"]) <= set(gateway["volumes"])


def test_the_first_configuration_of_models_serves_the_first_version_of_both_as_stable() -> None:
    config = text_format.Parse((SERVING_FILES / "models.config").read_text(), wire.ModelServerConfig())

    assert {each.name for each in config.model_config_list.config} == set(MODEL_NAMES.values())
    for each in config.model_config_list.config:
        assert each.base_path == f"/models/{each.name}"
        assert list(each.model_version_policy.specific.versions) == [1]
        assert dict(each.version_labels) == {"stable": 1}


@pytest.mark.parametrize(
    "file", ["docker-compose.yml", "Dockerfile", "deploy/compose/gateway/gateway.env", "deploy/image/healthcheck.py"]
)
def test_every_setting_that_is_named_exists(file: str) -> None:
    named = settings_in((ROOT / file).read_text())
    assert named
    assert named - {f"HANDPOSE_{name.upper()}" for name in Settings.model_fields} == set()


@pytest.mark.parametrize("name", ["gateway", "embedded", "manage"])
def test_the_settings_that_are_given_and_those_that_are_proposed_are_accepted(name: str) -> None:
    proposed = re.sub(r"^#(?=HANDPOSE_)", "", GATEWAY_ENV.read_text(), flags=re.MULTILINE)
    for given in (GATEWAY_ENV.read_text(), proposed):
        environment = {**lines_of_environment(given), **services()[name]["environment"]}
        backend = Settings.from_environment(environment).backend
        assert (backend == "tensorflow_serving") == (name == "gateway")


def test_the_routing_rules_are_accepted() -> None:
    assert read_rules(ROOT / "deploy/compose/gateway/routing.yaml").default is not None


def test_every_variable_of_compose_is_explained_with_the_default_that_it_has() -> None:
    used = dict(_VARIABLE.findall(COMPOSE.read_text()))
    explained = lines_of_environment(ENV_EXAMPLE.read_text())

    assert explained == used
    of_devices = {name for name, _ in _VARIABLE.findall(DEVICES.read_text())}
    assert of_devices == {"TENSORFLOW_SERVING_IMAGE"}
    assert "\n#TENSORFLOW_SERVING_IMAGE=" in ENV_EXAMPLE.read_text()


def test_every_folder_that_is_mounted_is_in_the_project() -> None:
    sources = {mounted.split(":")[0] for service in services().values() for mounted in service.get("volumes", ())}
    folders = {source for source in sources if source.startswith(".")}
    assert folders
    assert {source for source in folders if not (ROOT / source).is_dir()} == set()


# The images


DOCKERFILE = (ROOT / "Dockerfile").read_text()


def stages() -> dict[str, str]:
    """What each stage of the Dockerfile says, by its name."""
    parts = re.split(r"^FROM (?:\S+) AS (\w+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("target", ["gateway", "embedded", "trainer"])
def test_an_image_is_not_started_as_root(target: str) -> None:
    users = re.findall(r"^USER (.+)$", stages()[target], re.MULTILINE)
    assert users[-1:] == ["10001:10001"]


@pytest.mark.parametrize("target", ["gateway", "embedded"])
def test_an_image_that_serves_can_be_asked_how_it_is(target: str) -> None:
    assert 'CMD ["python", "healthcheck.py"]' in stages()[target]


@pytest.mark.parametrize("target", ["gateway", "embedded", "trainer"])
def test_an_image_says_the_version_of_the_project(target: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nARG VERSION={version}\n" in stages()[target]


def test_compose_builds_stages_that_exist_from_the_base_that_the_dockerfile_names() -> None:
    built = {name: service["build"] for name, service in services().items() if "build" in service}

    assert {name: build["target"] for name, build in built.items()} == {
        "models": "trainer",
        "gateway": "gateway",
        "embedded": "embedded",
    }
    for build in built.values():
        assert build["target"] in stages()
        assert f"\nARG PYTHON_IMAGE={build['args']['PYTHON_IMAGE']}\n" in DOCKERFILE


def test_everything_that_an_image_copies_reaches_the_builder() -> None:
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    ]
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]

    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert any(path == each or path.startswith(f"{each}/") for each in let_through), path


def test_the_dockerfile_is_one_for_the_classic_builder_too() -> None:
    assert not re.search(r"^(RUN|COPY|ADD) --(mount|link|chmod|security|network)|<<-?EOF", DOCKERFILE, re.MULTILINE)
