"""The deployment files, which cannot be run here.

Schemas check their form, and these tests check that they match the routes, settings and timeouts of the service.
"""

import json
import re
import tomllib
from dataclasses import fields
from importlib.metadata import requires
from importlib.resources import files

import jsonschema
import kubernetes_validate
import pytest
import yaml
from helpers.deploy import (
    COMPOSE,
    DEPLOY,
    KUBERNETES,
    answering,
    by_kind,
    compose_check,
    container,
    container_of,
    deployment,
    documents,
    environment,
    image_check,
    limits,
    load,
    n_bytes,
    pod,
    run_check,
)
from helpers.serving import ROOT, free_port
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from starlette.routing import Route
from starlette.testclient import TestClient

from repstitch.server.app import create_app
from repstitch.server.settings import Settings
from repstitch.stitchers.registry import Registry

VERSIONS = ("1.25", "1.31", "1.37")
SETTINGS = {f"REPSTITCH_{each.name.upper()}" for each in fields(Settings)}
PRESTOP_S = 5  # the least time that endpoints need to drop a pod
TORCH_BYTES = 3 * 2**29  # two processes with torch, measured on CPU at 1.35 GB


def check_compose(config: dict) -> None:
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(config)


def check_kubernetes(document: dict, version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


# --- schemas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_follow_the_compose_specification(name):
    check_compose(load(name))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_files_follow_the_api_of_old_and_new_clusters(name, version):
    for document in documents(name):
        check_kubernetes(document, version)


@pytest.mark.parametrize(
    "wrong",
    [
        {"restrat": "always"},
        {"ports": "3000:3000"},
        {"read_only": ["yes"]},
        {"healthcheck": {"test": "true", "periodSeconds": 5}},
        {"deploy": {"resources": {"limits": {"memory_bytes": 5}}}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_compose_file_is_refused(wrong):
    config = load("compose.yaml")
    config["services"]["repstitch"] |= wrong
    with pytest.raises(jsonschema.ValidationError):
        check_compose(config)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda spec: spec.update(replicas="two"),
        lambda spec: spec.pop("selector"),
        lambda spec: spec["template"]["spec"].update(terminationGracePeriod=90),
        lambda spec: container(spec).update(livenessprobe={}),
        lambda spec: container(spec)["readinessProbe"]["httpGet"].pop("port"),
        lambda spec: container(spec)["lifecycle"]["preStop"].update(sleeping={"seconds": 5}),
        lambda spec: container(spec)["volumeMounts"][0].update(readonly=True),
    ],
    ids=["replicas", "selector", "grace period", "probe's name", "probe's port", "preStop", "mount"],
)
def test_a_wrong_kubernetes_file_is_refused(break_it):
    deployment = by_kind("kubernetes.yaml", "Deployment")
    break_it(deployment["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
        check_kubernetes(deployment, VERSIONS[-1])


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_every_setting_named_in_a_deployment_file_exists(path):
    assert set(re.findall(r"REPSTITCH_[A-Z_]+[A-Z]", path.read_text())) <= SETTINGS


@pytest.mark.parametrize("where", ["compose.yaml", "compose.gpu.yaml", *KUBERNETES])
def test_the_environment_of_every_deployment_gives_valid_settings(where):
    environ = environment(where)
    settings = Settings.from_env(environ | {"REPSTITCH_API_KEYS": "key"})
    assert settings.workers == 1
    assert settings.device == ("cuda" if "gpu" in where else "cpu")


@pytest.mark.parametrize("where", ["compose.yaml", *KUBERNETES])
def test_torch_uses_as_many_threads_as_the_cpu_limit_allows(where):
    assert environment(where)["OMP_NUM_THREADS"] == str(limits(where)[0])


@pytest.mark.parametrize("where", ["compose.yaml", "compose.gpu.yaml", *KUBERNETES])
def test_the_memory_limit_covers_torch_and_all_request_bodies(where):
    settings = Settings()
    temporary = 64 * 2**20
    assert limits(where)[1] >= TORCH_BYTES + settings.max_held_bytes + settings.max_body_bytes + temporary


@pytest.mark.parametrize("where", ["compose.yaml", *KUBERNETES])
def test_the_service_writes_to_a_writable_tmp(where):
    assert environment(where)["BENTOML_HOME"].startswith("/tmp/")
    if where in COMPOSE:
        service = load(where)["services"]["repstitch"]
        assert service["read_only"]
        assert [entry.split(":")[0] for entry in service["tmpfs"]] == ["/tmp"]
    else:
        spec = pod(where)
        assert container_of(where)["securityContext"]["readOnlyRootFilesystem"]
        (mount,) = [m for m in container_of(where)["volumeMounts"] if m["mountPath"] == "/tmp"]
        (volume,) = [v for v in spec["volumes"] if v["name"] == mount["name"]]
        assert n_bytes(volume["emptyDir"]["sizeLimit"]) <= 64 * 2**20


@pytest.mark.parametrize("where", ["compose.yaml", *KUBERNETES])
def test_stitchers_are_mounted_read_only_at_the_folder_of_the_service(where):
    folder = environment(where)["REPSTITCH_STITCHERS"]
    if where in COMPOSE:
        (mount,) = [v for v in load(where)["services"]["repstitch"]["volumes"] if v["target"] == folder]
        assert mount["read_only"]
        assert mount["bind"]["create_host_path"] is False
        default = re.fullmatch(r"\$\{REPSTITCH_STITCHERS:-(.+)\}", mount["source"])
        assert default
        assert (DEPLOY / default[1]).resolve() == ROOT / Settings().stitchers
    else:
        (mount,) = [m for m in container_of(where)["volumeMounts"] if m["mountPath"] == folder]
        (volume,) = [v for v in pod(where)["volumes"] if v["name"] == mount["name"]]
        assert mount["readOnly"]
        assert volume["persistentVolumeClaim"]["readOnly"]
        claim = by_kind("kubernetes.yaml", "PersistentVolumeClaim")
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


# --- keys -------------------------------------------------------------------------------------------------------------


def test_compose_requires_a_key_and_has_no_default():
    key = load("compose.yaml")["services"]["repstitch"]["environment"]["REPSTITCH_API_KEYS"]
    assert re.fullmatch(r"\$\{REPSTITCH_API_KEYS:\?.+\}", key)


@pytest.mark.parametrize("where", KUBERNETES)
def test_kubernetes_takes_the_keys_from_a_secret_that_is_in_no_file(where):
    (entry,) = [e for e in container_of(where)["env"] if e["name"] == "REPSTITCH_API_KEYS"]
    assert set(entry["valueFrom"]) == {"secretKeyRef"}
    assert not entry["valueFrom"]["secretKeyRef"].get("optional")
    assert not [document for document in documents(where) if document["kind"] == "Secret"]


def test_key_files_are_kept_out_of_git_and_of_the_bento():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"service/deploy/.env", "service/deploy/*.key"} <= set(ignored)
    assert load("compose.yaml")["secrets"]["metrics_key"]["file"] == "./metrics.key"
    bentofile = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    assert "service/deploy/" in bentofile["exclude"]
    assert not (DEPLOY / ".env").exists()


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_prometheus_scrapes_the_port_of_the_service_with_a_key_from_a_file():
    config, compose = load("prometheus.yml"), load("compose.yaml")
    assert set(config) == {"global", "scrape_configs"}
    (job,) = config["scrape_configs"]
    assert set(job) == {"job_name", "metrics_path", "authorization", "static_configs"}
    assert job["job_name"] == "repstitch"
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in compose["services"]
    assert compose["services"][host]["ports"] == [f"127.0.0.1:{port}:3000"]
    assert job["authorization"] == {"type": "Bearer", "credentials_file": "/run/secrets/metrics_key"}
    prometheus = compose["services"]["prometheus"]
    assert prometheus["secrets"] == ["metrics_key"]
    # Compose cannot mount a secret from the environment into a read-only root file system.
    assert "environment" not in compose["secrets"]["metrics_key"]
    (mount,) = [v for v in prometheus["volumes"] if isinstance(v, dict)]
    assert (DEPLOY / mount["source"]).is_file()
    assert mount["target"] == "/etc/prometheus/prometheus.yml"


def test_the_metrics_path_of_prometheus_requires_a_key(stitchers):
    (job,) = load("prometheus.yml")["scrape_configs"]
    settings = Settings(stitchers=stitchers, api_keys=("callers", "metrics"))
    with TestClient(create_app(Registry(stitchers), settings)) as client:
        assert client.get(job["metrics_path"]).status_code == 401
        key = {"authorization": f"{job['authorization']['type']} metrics"}
        answer = client.get(job["metrics_path"], headers=key)
    assert answer.status_code == 200
    assert "repstitch_stitchers_loaded" in answer.text


@pytest.mark.parametrize("where", KUBERNETES)
def test_the_pod_annotations_point_to_the_metrics(where):
    notes = deployment(where)["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/scrape"] == "true"
    assert notes["prometheus.io/path"] in open_routes()
    assert notes["prometheus.io/port"] == str(container_of(where)["ports"][0]["containerPort"])


# --- health checks and shutdown ---------------------------------------------------------------------------------------


def open_routes() -> set[str]:
    app = create_app(Registry("models/stitchers"), Settings())
    return {route.path for route in app.routes if isinstance(route, Route)}


@pytest.mark.parametrize("where", KUBERNETES)
def test_probes_use_routes_that_need_no_key(where, stitchers):
    spec = container_of(where)
    paths = {name: spec[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    # An empty stitchers folder must not restart a pod, because the folder would still be empty afterwards.
    assert paths == {"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    assert set(paths.values()) <= open_routes()
    assert {spec[name]["httpGet"]["port"] for name in paths} == {spec["ports"][0]["name"]}
    with TestClient(create_app(Registry(stitchers), Settings(stitchers=stitchers, api_keys=("key",)))) as client:
        assert {client.get(path).status_code for path in paths.values()} <= {200, 503}


@pytest.mark.parametrize("where", KUBERNETES)
def test_a_pod_has_time_to_finish_its_requests(where):
    (sleep, seconds) = container_of(where)["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert float(seconds) >= PRESTOP_S
    # A request may take the timeout twice: once until it is answered, and once until the client has read the response.
    assert pod(where)["terminationGracePeriodSeconds"] > float(seconds) + 2 * Settings().timeout_s


def test_a_container_has_time_to_finish_its_requests():
    grace = load("compose.yaml")["services"]["repstitch"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > 2 * Settings().timeout_s


def test_the_image_checks_livez_and_compose_checks_readyz():
    assert "'/livez'" in image_check()[-1]
    assert compose_check() == [part.replace("/livez", "/readyz") for part in image_check()]


@pytest.mark.parametrize("status", [200, 503, 404])
@pytest.mark.parametrize("check", [image_check, compose_check])
def test_a_health_check_fails_unless_the_answer_is_200(check, status):
    path = "/livez" if check is image_check else "/readyz"
    with answering({path: status}) as port:
        assert run_check(check(), port) == (status == 200)


def test_a_health_check_fails_where_nothing_answers():
    assert not run_check(image_check(), free_port())


# --- permissions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["repstitch", "prometheus"])
def test_a_container_has_minimal_permissions(name):
    service = load("compose.yaml")["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}


@pytest.mark.parametrize("where", KUBERNETES)
def test_a_pod_has_minimal_permissions(where):
    from bentoml._internal.container.generate import BENTO_UID_GID

    spec = pod(where)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    user = {"runAsNonRoot": True, "runAsUser": BENTO_UID_GID, "runAsGroup": BENTO_UID_GID}
    assert spec["securityContext"] == {**user, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container_of(where)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_third_party_images_are_pinned_to_a_version():
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", load("compose.yaml")["services"]["prometheus"]["image"])


# --- several pods, GPUs -----------------------------------------------------------------------------------------------


def test_the_service_and_the_disruption_budget_select_the_pods_of_both_deployments():
    selectors = [
        by_kind("kubernetes.yaml", "Service")["spec"]["selector"],
        by_kind("kubernetes.yaml", "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ]
    match_labels = []
    for where in KUBERNETES:
        labels = deployment(where)["spec"]["template"]["metadata"]["labels"]
        match_labels.append(deployment(where)["spec"]["selector"]["matchLabels"])
        assert match_labels[-1].items() <= labels.items()
        assert all(selector.items() <= labels.items() for selector in selectors)
    assert match_labels[0] != match_labels[1]  # two Deployments that select the same pods conflict
    (port,) = by_kind("kubernetes.yaml", "Service")["spec"]["ports"]
    assert port["targetPort"] == container_of("kubernetes.yaml")["ports"][0]["name"]
    # With one replica, the budget would prevent a node from draining.
    assert deployment("kubernetes.yaml")["spec"]["replicas"] > 1


def test_the_gpu_deployment_differs_only_in_what_a_gpu_needs():
    cpu, gpu = deployment("kubernetes.yaml"), deployment("kubernetes-gpu.yaml")
    assert container(gpu["spec"])["resources"]["limits"]["nvidia.com/gpu"] == 1
    differing = {path for path, _ in leaves(cpu) ^ leaves(gpu)}
    assert {re.sub(r"\.\d+", "", path) for path in differing} == {
        "metadata.name",
        "metadata.labels.app.kubernetes.io/component",
        "spec.replicas",
        "spec.selector.matchLabels.app.kubernetes.io/component",
        "spec.strategy.rollingUpdate.maxSurge",
        "spec.strategy.rollingUpdate.maxUnavailable",
        "spec.template.metadata.labels.app.kubernetes.io/component",
        "spec.template.spec.containers.env.value",
        "spec.template.spec.containers.resources.limits.memory",
        "spec.template.spec.containers.resources.limits.nvidia.com/gpu",
        "spec.template.spec.containers.resources.requests.memory",
        "spec.template.spec.tolerations.effect",
        "spec.template.spec.tolerations.key",
        "spec.template.spec.tolerations.operator",
    }


def leaves(node, path: str = "") -> set[tuple[str, str]]:
    """Return every value of a document together with its path."""
    if not isinstance(node, dict | list):
        return {(path, json.dumps(node))}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return set().union(*(leaves(value, f"{path}.{key}" if path else str(key)) for key, value in items))


def test_compose_reserves_a_gpu_only_for_the_service():
    override = load("compose.gpu.yaml")["services"]
    assert set(override) == {"repstitch"}
    (device,) = override["repstitch"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_the_image_installs_torch_with_cuda_and_pins_its_libraries():
    """The default wheel for Linux requires the CUDA libraries. A "+cpu" build or an unpinned requirement fails here."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if "==" in line)
    pins: dict[str, str] = {canonicalize_name(name): version for name, version in versions.items()}
    assert "+" not in pins["torch"]
    assert {"cuda-toolkit", "cuda-bindings", "triton", "nvidia-cublas", "nvidia-cuda-runtime"} <= set(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch_requirement,) = [r for each in project["dependencies"] if (r := Requirement(each)).name == "torch"]
    assert pins["torch"] in torch_requirement.specifier
    linux = {"platform_system": "Linux", "sys_platform": "linux", "python_version": "3.11", "extra": ""}
    for text in requires("torch") or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(linux):
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, text
