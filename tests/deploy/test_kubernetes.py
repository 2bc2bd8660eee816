"""The manifests are what Kubernetes accepts, and fit the gateway's settings, each other and the compose stack.

Every whole manifest is checked as it lies there. What the overlays make of them is built by kustomize, where kubectl or
kustomize is installed. Custom resources (KEDA, the Prometheus operator) have no schema in Kubernetes: theirs is written
down below by hand, no wider than what is used. No cluster is asked, here or anywhere in the suite.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import yaml

from deploy.stand_in.tensorflow_model_server import parser
from service.routing_file import parse_rules
from service.settings import PREFIX, Settings, unknown_names

ROOT: Final = Path(__file__).resolve().parents[2]
MANIFESTS: Final = ROOT / "deploy" / "kubernetes"
COMPOSE: Final = ROOT / "deploy" / "compose"
COMPONENTS: Final = ("keda", "service-monitor")
OLDEST_AND_NEWEST: Final = ("1.30", "1.34")
PATCHES: Final = {MANIFESTS / "overlays" / "gpu" / "tensorflow-serving.yaml"}

Manifest = dict[str, Any]


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


_TEXT: Final = {"type": "string", "minLength": 1}
_TEXTS: Final = {"type": "object", "additionalProperties": _TEXT}
_NUMBER: Final = {"type": "integer", "minimum": 0}
_DURATION: Final = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
CUSTOM: Final = {
    # keda.sh/docs: scaled object specification, Prometheus trigger
    "keda.sh/v1alpha1/ScaledObject": _object(
        ("scaleTargetRef", "triggers"),
        scaleTargetRef=_object(("name",), apiVersion=_TEXT, kind=_TEXT, name=_TEXT),
        pollingInterval=_NUMBER,
        cooldownPeriod=_NUMBER,
        minReplicaCount=_NUMBER,
        maxReplicaCount=_NUMBER,
        fallback=_object(("failureThreshold", "replicas"), failureThreshold=_NUMBER, replicas=_NUMBER),
        advanced=_object(
            (),
            horizontalPodAutoscalerConfig=_object((), behavior={"type": "object"}),  # the HPA's own: see below
        ),
        triggers={
            "type": "array",
            "minItems": 1,
            "items": _object(
                ("type", "metadata"),
                type={"const": "prometheus"},
                metricType={"enum": ["AverageValue", "Value"]},
                metadata=_object(
                    ("serverAddress", "query", "threshold"),
                    serverAddress={"type": "string", "pattern": "^https?://"},
                    query=_TEXT,
                    threshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
                    activationThreshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
                    ignoreNullValues={"enum": ["true", "false"]},
                ),
            ),
        },
    ),
    # prometheus-operator.dev: API reference of monitoring.coreos.com/v1
    "monitoring.coreos.com/v1/ServiceMonitor": _object(
        ("selector", "endpoints"),
        jobLabel=_TEXT,
        selector=_object((), matchLabels=_TEXTS),
        endpoints={
            "type": "array",
            "minItems": 1,
            "items": _object(("port",), port=_TEXT, path=_TEXT, interval=_DURATION, scrapeTimeout=_DURATION),
        },
    ),
}


def check(manifest: Manifest, version: str) -> None:
    """Raise ValidationError unless this is, to the last field, what that version of Kubernetes takes."""
    custom = CUSTOM.get(f"{manifest['apiVersion']}/{manifest['kind']}")
    if custom is None:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    of_metadata = _object(("name",), name=_TEXT, namespace=_TEXT, labels=_TEXTS, annotations=_TEXTS)
    schema = _object(
        ("apiVersion", "kind", "metadata", "spec"), apiVersion=_TEXT, kind=_TEXT, metadata=of_metadata, spec=custom
    )
    jsonschema.validate(manifest, schema)


def name_of(manifest: Manifest) -> str:
    """Its name, or what its name begins with where the server makes one for each that is created."""
    metadata = manifest["metadata"]
    return str(metadata.get("name") or metadata["generateName"])


def whole_manifests() -> Iterator[tuple[str, Manifest]]:
    for path in sorted(MANIFESTS.rglob("*.yaml")):
        if path.name in {"kustomization.yaml", "routing.yaml"} or path in PATCHES:
            continue
        for manifest in yaml.safe_load_all(path.read_text()):
            yield f"{path.relative_to(MANIFESTS)}:{manifest['kind']}/{name_of(manifest)}", manifest


WHOLE: Final = dict(whole_manifests())


def kustomize(folder: Path) -> list[Manifest]:
    """What kustomize makes of a folder."""
    if (kubectl := shutil.which("kubectl")) is not None:
        command = [kubectl, "kustomize", str(folder)]
    elif (binary := shutil.which("kustomize")) is not None:
        command = [binary, "build", str(folder)]
    else:
        pytest.skip("neither kubectl nor kustomize is installed")
    built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Manifest]]:
    """An overlay with every component, as its kustomization.yaml says how to add them; its name and its manifests."""
    folder = tmp_path_factory.mktemp(request.param)
    above = os.path.relpath(MANIFESTS, folder.resolve())
    description = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{above}/overlays/{request.param}"],
        "components": [f"{above}/components/{name}" for name in COMPONENTS],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(description))
    return request.param, kustomize(folder)


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The manifest of that kind and name, or of a name with kustomize's hash behind it."""
    (found,) = (
        each
        for each in manifests
        if each["kind"] == kind and re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", each["metadata"]["name"])
    )
    return found


def pods(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Every workload with its pods' template."""
    for each in manifests:
        if each["kind"] in {"Deployment", "StatefulSet", "Job"}:
            yield each, each["spec"]["template"]


def containers(template: Manifest) -> list[Manifest]:
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector means something with these labels."""
    matched = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return matched and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))


# Schemas


@pytest.mark.parametrize("version", OLDEST_AND_NEWEST)
@pytest.mark.parametrize("name", WHOLE)
def test_every_manifest_is_what_kubernetes_takes(name: str, version: str) -> None:
    check(WHOLE[name], version)


def test_what_the_overlays_make_of_them_is_too(overlay: tuple[str, list[Manifest]]) -> None:
    for manifest in overlay[1]:
        check(manifest, OLDEST_AND_NEWEST[0])
    kinds = {each["kind"] for each in overlay[1]}
    assert kinds >= {"Deployment", "StatefulSet", "Job", "HorizontalPodAutoscaler", "ScaledObject", "ServiceMonitor"}


@pytest.mark.parametrize("folder", ["overlays/cpu", "overlays/gpu", "base"])
def test_each_folder_builds_by_itself(folder: str) -> None:
    manifests = kustomize(MANIFESTS / folder)

    assert not {each["kind"] for each in manifests} & {"ScaledObject", "ServiceMonitor"}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("gateway.yaml:Deployment/gateway", "replicaCount"),
        ("keda/scaled-object.yaml:ScaledObject/tensorflow-serving", "maxReplicas"),
        ("service-monitors.yaml:ServiceMonitor/tensorflow-serving", "endpoint"),
    ],
)
def test_a_misspelt_field_is_noticed(name: str, field: str) -> None:
    (manifest,) = (each for key, each in WHOLE.items() if key.endswith(name))
    spoilt = {**manifest, "spec": {**manifest["spec"], field: 3}}

    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError), match=field):
        check(spoilt, OLDEST_AND_NEWEST[-1])


def test_the_model_servers_autoscaler_behaves_as_an_autoscaler_may() -> None:
    scaled = WHOLE["components/keda/scaled-object.yaml:ScaledObject/tensorflow-serving"]["spec"]

    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "made-by-keda"},
        "spec": {
            "scaleTargetRef": scaled["scaleTargetRef"],
            "maxReplicas": scaled["maxReplicaCount"],
            "behavior": scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        },
    }

    check(autoscaler, OLDEST_AND_NEWEST[-1])


# What the files say


def gateway_environment() -> dict[str, str]:
    lines = (MANIFESTS / "base" / "config" / "gateway.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_every_setting_of_the_gateway_exists_and_is_right() -> None:
    environment = gateway_environment()

    assert unknown_names(environment) == []
    assert Settings.from_environment(environment).backend == "tensorflow_serving"


def test_no_manifest_names_a_setting_that_does_not_exist() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for path in [*MANIFESTS.rglob("*.yaml"), *MANIFESTS.rglob("*.env"), ROOT / "docs" / "kubernetes.md"]:
        assert set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", path.read_text())) <= known, path


def test_the_routing_file_is_right_and_the_stack_s_own() -> None:
    content = (MANIFESTS / "base" / "config" / "routing.yaml").read_bytes()

    assert parse_rules(content).default is not None
    assert content == (COMPOSE / "gateway" / "routing.yaml").read_bytes()


@pytest.mark.parametrize("name", ["batching.config", "models.config", "monitoring.config"])
def test_model_servers_are_configured_as_in_the_compose_stack(name: str) -> None:
    assert (MANIFESTS / "base" / "config" / name).read_bytes() == (COMPOSE / "tensorflow-serving" / name).read_bytes()


def test_a_gateway_s_batch_fits_the_model_servers() -> None:
    batching = (MANIFESTS / "base" / "config" / "batching.config").read_text()
    (largest,) = re.findall(r"max_batch_size \{ value: (\d+) \}", batching)

    assert Settings.from_environment(gateway_environment()).max_batch_size <= int(largest)


def test_the_model_servers_get_flags_that_they_have_and_the_startup_probe_waits_for_their_retries() -> None:
    pod = WHOLE["base/tensorflow-serving.yaml:StatefulSet/tensorflow-serving"]["spec"]["template"]["spec"]
    server = pod["containers"][0]
    environment = {each["name"]: each["value"] for each in server["env"]}
    args = [re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], each) for each in server["args"]]
    given = parser().parse_args(args)

    assert given.grpc_max_threads == 256
    probe = server["startupProbe"]
    retries_s = given.max_num_load_retries * given.load_retry_interval_micros / 1e6
    assert retries_s + 120 <= probe["periodSeconds"] * probe["failureThreshold"]  # two minutes for loading itself


def test_the_job_that_manages_versions_asks_servers_one_by_one() -> None:
    job = WHOLE["manage.yaml:Job/manage-"]["spec"]["template"]["spec"]["containers"][0]
    settings = Settings.from_environment({each["name"]: each["value"] for each in job["env"]})
    servers = WHOLE["base/tensorflow-serving.yaml:StatefulSet/tensorflow-serving"]["spec"]

    assert settings.tfs_addresses == tuple(
        f"tensorflow-serving-{number}.{servers['serviceName']}:8500" for number in range(servers["replicas"])
    )
    assert job["command"][:4] == ["python", "-m", "service", "models"]


def test_the_job_that_manages_versions_can_be_made_again_while_the_last_one_is_still_there() -> None:
    assert "name" not in WHOLE["manage.yaml:Job/manage-"]["metadata"]


# What fits together


def test_no_request_outlives_the_gateway_that_answers_it() -> None:
    settings = Settings.from_environment(gateway_environment())
    spec = WHOLE["base/gateway.yaml:Deployment/gateway"]["spec"]
    pod = spec["template"]["spec"]
    before_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert settings.max_deadline_ms / 1000 <= settings.grace_period_s
    assert before_s + settings.grace_period_s + 5 <= pod["terminationGracePeriodSeconds"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_a_model_server_stays_until_no_gateway_is_connected_to_it() -> None:
    pod = WHOLE["base/tensorflow-serving.yaml:StatefulSet/tensorflow-serving"]["spec"]["template"]["spec"]
    server = pod["containers"][0]
    (age_ms,) = re.findall(r"max_connection_age_ms=(\d+)", " ".join(server["args"]))
    dns_remembers_s = 30
    stays_s = server["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert 1.1 * int(age_ms) / 1000 + dns_remembers_s <= stays_s  # gRPC shortens or lengthens by up to a tenth
    assert stays_s < pod["terminationGracePeriodSeconds"]


def test_no_pod_may_do_more_than_it_needs(overlay: tuple[str, list[Manifest]]) -> None:
    for workload, template in pods([*overlay[1], WHOLE["manage.yaml:Job/manage-"]]):
        spec, name = template["spec"], name_of(workload)
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] >= 10000, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(template):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, f"{name}/{container['name']}"
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), f"{name}/{container['name']}"
            assert "memory" in container["resources"]["limits"], f"{name}/{container['name']}"


def test_what_runs_for_ever_is_probed_and_spread_over_zones(overlay: tuple[str, list[Manifest]]) -> None:
    for workload, template in pods(overlay[1]):
        if workload["kind"] == "Job":
            continue
        spread = {each["topologyKey"] for each in template["spec"]["topologySpreadConstraints"]}
        assert spread == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        for container in template["spec"]["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


def test_every_image_is_named_with_a_tag(overlay: tuple[str, list[Manifest]]) -> None:
    images = {container["image"] for _, template in pods(overlay[1]) for container in containers(template)}
    names = {image.rpartition(":")[0] for image in images}
    on_gpu = overlay[0] == "gpu"

    assert names == {"handpose-gateway", "handpose-trainer", "tensorflow/serving"}
    assert {image.endswith("-gpu") for image in images if image.startswith("tensorflow/")} == {on_gpu}


def test_only_model_servers_of_the_gpu_overlay_take_gpus(overlay: tuple[str, list[Manifest]]) -> None:
    of_servers = one(overlay[1], "StatefulSet", "tensorflow-serving")["spec"]["template"]["spec"]
    gpus = [
        (container["name"], container["resources"]["limits"]["nvidia.com/gpu"])
        for _, template in pods(overlay[1])
        for container in containers(template)
        if "nvidia.com/gpu" in container["resources"]["limits"]
    ]

    assert gpus == ([("tensorflow-serving", "1")] if overlay[0] == "gpu" else [])
    assert ("tolerations" in of_servers) == (overlay[0] == "gpu")


def test_what_pods_mount_and_read_is_there(overlay: tuple[str, list[Manifest]]) -> None:
    there = {(each["kind"], each["metadata"]["name"]) for each in overlay[1]}
    for _, template in pods(overlay[1]):
        volumes = template["spec"]["volumes"]
        for volume in volumes:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
        for container in containers(template):
            assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in volumes}
            for source in container.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in there


def test_the_files_that_are_named_are_in_the_folders_that_are_mounted(overlay: tuple[str, list[Manifest]]) -> None:
    settings = Settings.from_environment(gateway_environment())

    assert settings.routing_file is not None
    assert settings.routing_file.name in one(overlay[1], "ConfigMap", "gateway-files")["data"]
    of_servers = one(overlay[1], "ConfigMap", "tensorflow-serving-files")["data"]
    (server,) = one(overlay[1], "StatefulSet", "tensorflow-serving")["spec"]["template"]["spec"]["containers"]
    named = re.findall(r"=/config/(\S+)", " ".join(server["args"]))
    assert sorted(named) == sorted(of_servers)
    assert settings.tfs_batching_file == Path("/config/batching.config")
    (gateway,) = one(overlay[1], "Deployment", "gateway")["spec"]["template"]["spec"]["containers"]
    assert {"name": "model-servers", "mountPath": "/config", "readOnly": True} in gateway["volumeMounts"]


def test_services_reach_pods_that_listen_there(overlay: tuple[str, list[Manifest]]) -> None:
    services = [each for each in overlay[1] if each["kind"] == "Service"]
    assert services
    for service in services:
        (template,) = (
            template
            for _, template in pods(overlay[1])
            if selects({"matchLabels": service["spec"]["selector"]}, template["metadata"]["labels"])
        )
        ports = {port["name"] for container in template["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, service["metadata"]["name"]


def test_the_gateway_asks_the_headless_service_of_the_model_servers(overlay: tuple[str, list[Manifest]]) -> None:
    (address,) = Settings.from_environment(gateway_environment()).tfs_addresses
    host, _, port = address.partition(":")
    service = one(overlay[1], "Service", host)

    assert service["spec"]["clusterIP"] == "None"
    assert int(port) in {each["port"] for each in service["spec"]["ports"]}


def test_the_gateway_listens_where_probes_and_services_look() -> None:
    settings = Settings.from_environment(gateway_environment())
    container = WHOLE["base/gateway.yaml:Deployment/gateway"]["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    assert ports == {"http": settings.rest_port, "grpc": settings.rest_port + 1, "admin": settings.admin_port}
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "admin"}


def test_budgets_and_autoscalers_mean_something_that_is_there(overlay: tuple[str, list[Manifest]]) -> None:
    labels = [template["metadata"]["labels"] for _, template in pods(overlay[1])]
    workloads = {(workload["kind"], workload["metadata"]["name"]) for workload, _ in pods(overlay[1])}
    assert {"PodDisruptionBudget", "HorizontalPodAutoscaler", "ScaledObject"} <= {each["kind"] for each in overlay[1]}
    for each in overlay[1]:
        if each["kind"] == "PodDisruptionBudget":
            assert sum(selects(each["spec"]["selector"], these) for these in labels) == 1
        if each["kind"] in {"HorizontalPodAutoscaler", "ScaledObject"}:
            target = each["spec"]["scaleTargetRef"]
            assert (target["kind"], target["name"]) in workloads
            workload = one(overlay[1], target["kind"], target["name"])
            assert "replicas" not in workload["spec"]  # two hands on one number


def test_service_monitors_find_services_and_ports(overlay: tuple[str, list[Manifest]]) -> None:
    services = [each for each in overlay[1] if each["kind"] == "Service"]
    jobs = set()
    for monitor in (each for each in overlay[1] if each["kind"] == "ServiceMonitor"):
        (service,) = (
            each for each in services if selects(monitor["spec"]["selector"], each["metadata"].get("labels", {}))
        )
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
        jobs.add(service["metadata"]["labels"][monitor["spec"]["jobLabel"]])

    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert jobs == {each["job_name"] for each in scraped}


def test_the_queue_that_scales_model_servers_is_a_metric_of_the_gateway() -> None:
    from prometheus_client import CollectorRegistry

    from service.observability.metrics import PrometheusObserver
    from tests.support.models import served_model

    registry = CollectorRegistry()
    PrometheusObserver(registry).queue_changed(served_model("lightweight"), 3)
    (trigger,) = WHOLE["components/keda/scaled-object.yaml:ScaledObject/tensorflow-serving"]["spec"]["triggers"]
    (name,) = re.findall(r"handpose_\w+", trigger["metadata"]["query"])

    assert name in {family.name for family in registry.collect()}


# Who may talk to whom


def allowed(policies: list[Manifest], sender: dict[str, str], receiver: dict[str, str], port: str) -> bool:
    """Whether the policies let one pod of the namespace connect to a port of another."""

    def lets(policy: Manifest, direction: str, other: dict[str, str]) -> bool:
        for rule in policy["spec"].get(direction.lower(), []):
            peers = rule.get("from" if direction == "Ingress" else "to")
            fits = peers is None or any("podSelector" in peer and selects(peer["podSelector"], other) for peer in peers)
            if fits and any(each["port"] == port for each in rule["ports"]):
                return True
        return False

    def passes(direction: str, whose: dict[str, str], other: dict[str, str]) -> bool:
        about = [
            policy
            for policy in policies
            if direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], whose)
        ]
        return not about or any(lets(policy, direction, other) for policy in about)

    return passes("Egress", sender, receiver) and passes("Ingress", receiver, sender)


@pytest.mark.parametrize(
    ("sender", "receiver", "port", "may"),
    [
        ("handpose-gateway", "tensorflow-serving", "grpc", True),
        ("handpose-manage", "tensorflow-serving", "grpc", True),
        ("handpose-gateway", "tensorflow-serving", "metrics", False),
        ("tensorflow-serving", "handpose-gateway", "http", False),
        ("handpose-models", "tensorflow-serving", "grpc", False),
        ("handpose-gateway", "handpose-gateway", "admin", False),
        ("somebody-else", "tensorflow-serving", "grpc", False),
    ],
)
def test_pods_talk_to_those_that_they_need_only(sender: str, receiver: str, port: str, may: bool) -> None:
    policies = [manifest for name, manifest in WHOLE.items() if "NetworkPolicy" in name]
    name = "app.kubernetes.io/name"

    assert allowed(policies, {name: sender}, {name: receiver}, port) is may
