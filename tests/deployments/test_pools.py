"""The base job templates, rendered by Prefect's own workers for a run of a deployment."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

from tests.deployments.compose_file import SERVICES
from tests.support.paths import REPOSITORY

DEPLOYMENTS = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
API, AUTH = "https://backup.example.com/api", "operator:canary-auth"

POD = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "privileged": False,
    "capabilities": {"drop": ["ALL"]},
}


def template(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REPOSITORY / f"deployments/pools/{kind}.json").read_text())
    return found


def rendered(configuration: type[Any], kind: str, api: str = API, **values: object) -> Any:
    """Return the job that a worker renders from the template for a run of the first deployment."""
    given = DEPLOYMENTS[0]["work_pool"]["job_variables"] | values

    async def render() -> Any:
        job = await configuration.from_template_and_values(template(kind), given)
        job.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="backup-a0-1"))
        return job

    worker = {PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: AUTH, PREFECT_HOME: "/var/lib/a0backup-worker"}
    with temporary_settings(worker):
        return asyncio.run(render())


def docker(**values: Any) -> DockerWorkerJobConfiguration:
    job: DockerWorkerJobConfiguration = rendered(DockerWorkerJobConfiguration, "docker", **values)
    return job


def kubernetes(**values: Any) -> KubernetesWorkerJobConfiguration:
    job: KubernetesWorkerJobConfiguration = rendered(KubernetesWorkerJobConfiguration, "kubernetes", **values)
    return job


def test_the_templates_follow_those_of_the_installed_workers() -> None:
    for kind, worker, gone, own in (
        ("docker", DockerWorker, {"privileged"}, set()),
        (
            "kubernetes",
            KubernetesWorker,
            {"backoff_limit", "service_account_name"},
            {"folder_claim", "keys_secret", "password_secret"},
        ),
    ):
        ours, theirs = template(kind), worker.get_default_base_job_template()
        assert ours["job_configuration"].keys() == theirs["job_configuration"].keys()
        wanted = theirs["variables"]["properties"].keys() - gone | own
        assert ours["variables"]["properties"].keys() == wanted


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_image_is_the_one_that_compose_runs(kind: str) -> None:
    assert template(kind)["variables"]["properties"]["image"]["default"] == SERVICES["worker"]["image"]


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_every_variable_is_used_and_every_used_variable_exists(kind: str) -> None:
    whole = template(kind)
    text = json.dumps(whole["job_configuration"])
    for name in whole["variables"]["properties"]:
        assert f"{{{{ {name} }}}}" in text, name
    assert text.count("{{") == sum(text.count(f"{{{{ {name} }}}}") for name in whole["variables"]["properties"])


def test_a_container_runs_unprivileged_and_writes_only_to_the_vault() -> None:
    job = docker()
    assert job.container_create_kwargs is not None
    assert job.container_create_kwargs["user"] == SERVICES["worker"]["user"]
    assert job.container_create_kwargs["read_only"] is True
    assert job.container_create_kwargs["cap_drop"] == ["ALL"]
    assert job.container_create_kwargs["security_opt"] == ["no-new-privileges:true"]
    assert job.container_create_kwargs["pids_limit"] > 0
    assert job.container_create_kwargs["nano_cpus"] > 0
    assert job.mem_limit == job.memswap_limit == "1g"
    assert job.privileged is False
    writable = [volume for volume in job.volumes if not volume.endswith(":ro")]
    assert writable == ["/srv/a0backup/vault:/srv/a0backup/vault"]
    in_compose = {volume["target"] for volume in SERVICES["worker"]["volumes"]}
    assert {volume.split(":")[1] for volume in job.volumes} == in_compose
    assert job.auto_remove is True


def test_a_container_does_not_use_the_hosts_network_whatever_the_address_of_the_api() -> None:
    local = "http://127.0.0.1:4200/api"
    job = docker(api=local)
    with temporary_settings({PREFECT_API_URL: local}):
        assert job.get_network_mode() == "bridge"


def test_the_docker_client_accepts_the_container_settings() -> None:
    job = docker()
    with temporary_settings({PREFECT_API_URL: API}):
        worker = DockerWorker(work_pool_name="appliance", test_mode=True)

        class Client:
            def version(self) -> dict[str, str]:
                return {"Version": "28.2.2"}

        given = worker._build_container_settings(Client(), job)
    from docker.models.containers import _create_container_args

    made = _create_container_args(given | {"version": "1.41"})
    assert made["user"] == "10001:10001"
    assert made["host_config"]["ReadonlyRootfs"] is True
    assert made["host_config"]["CapDrop"] == ["ALL"]
    assert made["host_config"]["Tmpfs"].keys() == {"/tmp"}
    assert made["host_config"]["NetworkMode"] == "bridge"


@pytest.mark.parametrize("job", [docker, kubernetes])
def test_a_run_gets_the_settings_of_its_place_and_of_the_deployment(job: Any) -> None:
    made = job(env={"PREFECT_LOGGING_EXTRA_LOGGERS": "a0backup,more"})
    environment = (
        made.env
        if job is docker
        else {entry["name"]: entry.get("value") for entry in container(made)["env"] if "value" in entry}
    )
    assert environment["PREFECT_LOGGING_EXTRA_LOGGERS"] == "a0backup,more"
    # Not the worker's home, which is a folder that nobody may write to here.
    assert environment["PREFECT_HOME"] == "/tmp/prefect"
    assert environment["PREFECT_API_URL"] == API


def pod(job: KubernetesWorkerJobConfiguration) -> dict[str, Any]:
    spec: dict[str, Any] = job.job_manifest["spec"]["template"]["spec"]
    return spec


def container(job: KubernetesWorkerJobConfiguration) -> dict[str, Any]:
    [only] = pod(job)["containers"]
    found: dict[str, Any] = only
    return found


def test_a_pod_runs_unprivileged_and_without_a_token() -> None:
    job = kubernetes()
    assert pod(job)["securityContext"] == POD
    assert pod(job)["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod(job)
    for each in [container(job), *pod(job)["initContainers"]]:
        assert each["securityContext"] == CONTAINER
        assert each["resources"]["limits"].keys() == {"cpu", "memory"}
        assert each["image"] == SERVICES["worker"]["image"]
    assert job.job_manifest["spec"]["backoffLimit"] == 0
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod(job).keys()
    assert not [volume for volume in pod(job)["volumes"] if "hostPath" in volume]


def test_a_pod_writes_only_to_the_vault_and_its_own_temporary_folder() -> None:
    mounts = {mount["mountPath"]: mount for mount in container(kubernetes())["volumeMounts"]}
    assert {path for path, mount in mounts.items() if not mount.get("readOnly")} == {"/srv/a0backup/vault", "/tmp"}
    in_compose = {volume["target"] for volume in SERVICES["worker"]["volumes"]}
    assert mounts.keys() == in_compose - {"/etc/a0backup/runs"} | {"/etc/a0backup/runs/keys", "/tmp"}


def test_a_run_starts_in_no_folder_that_is_mounted() -> None:
    assert (docker().container_create_kwargs or {})["working_dir"] == "/"
    assert container(kubernetes())["workingDir"] == "/"


def test_every_mount_of_a_pod_has_a_volume() -> None:
    job = kubernetes(folder_claim="theirs")
    volumes = {volume["name"]: volume for volume in pod(job)["volumes"]}
    used = {mount["name"] for each in [container(job), *pod(job)["initContainers"]] for mount in each["volumeMounts"]}
    assert used == volumes.keys()
    assert volumes["folder"]["persistentVolumeClaim"] == {"claimName": "theirs"}
    assert volumes["keys"]["emptyDir"]["medium"] == "Memory"


def test_a_pods_manifest_contains_no_secret() -> None:
    job = kubernetes()
    secret = {"name": "a0backup-password", "key": "password", "optional": True}
    password = {"name": "A0_BACKUP_PASSWORD", "valueFrom": {"secretKeyRef": secret}}
    assert password in container(job)["env"]
    # Given the names of a Secret, the worker replaces the auth string that it would otherwise pass on in clear text.
    worker = KubernetesWorker(work_pool_name="appliance")
    asyncio.run(
        worker._replace_env_variable_with_secret(
            "PREFECT_API_AUTH_STRING", job, secret_name="a0backup-api", secret_key="auth-string"
        )
    )
    assert AUTH not in json.dumps(job.job_manifest)
    assert "a0backup-api" in json.dumps(job.job_manifest)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_template_contains_no_secret(kind: str) -> None:
    environment = template(kind)["variables"]["properties"]["env"]["default"]
    assert environment == {"PREFECT_LOGGING_EXTRA_LOGGERS": "a0backup", "PREFECT_HOME": "/tmp/prefect"}
