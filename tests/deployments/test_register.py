"""`a0backup engine register` from the outside, on a server that has nothing yet."""

import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deployments.conftest import Desk
from tests.support.paths import REPOSITORY
from tests.support.patience import eventually

BIN = Path(sys.executable).parent
PASSWORD = "Canary7Password"

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_registering_creates_all_that_the_fleet_needs_and_a_second_time_changes_nothing(desk: Desk) -> None:
    dry = desk.register("--dry-run")
    assert "to make" in dry.stdout
    assert dry.stdout.endswith("nothing was changed, as this is a dry run\n")
    assert desk.client.post("/deployments/filter", json={}).json() == []
    assert desk.client.get("/work_pools/appliance").status_code == httpx.codes.NOT_FOUND

    first = desk.register()
    assert first.returncode == 0, first.stderr
    for name in ("appliance", "a0backup-a0-1", "a0backup-a0-2", "backup-fleet/nightly", "backup-node/of-fleet"):
        [line] = [line for line in first.stdout.splitlines() if f" {name} " in line]
        assert line.endswith("made"), line
    assert "nobody is notified of failed or late runs" in first.stderr
    assert "run `a0backup engine register --notify SLUG/NAME`" in first.stderr

    second = desk.register()
    assert "made" not in second.stdout
    assert "changed" not in second.stdout
    assert second.stdout.splitlines()[-1].endswith("there")
    limits = desk.client.post("/v2/concurrency_limits/filter", json={}).json()
    assert {limit["name"]: limit["limit"] for limit in limits if "deployment" not in limit["name"]} == {
        "a0backup": 16,
        "a0backup-a0-1": 1,
        "a0backup-a0-2": 1,
    }
    [zombies] = desk.client.post("/automations/filter", json={}).json()
    assert zombies["trigger"]["within"] >= 540
    # Also for a run whose worker died between taking it and starting it.
    assert "prefect.flow-run.Pending" in zombies["trigger"]["after"]
    assert zombies["actions"][0]["state"] == "CRASHED"


def test_it_registers_what_prefect_deploy_would_but_runs_start_in_no_folder_of_the_operator(desk: Desk) -> None:
    shutil.copy(REPOSITORY / "prefect.yaml", desk.folder)
    for command in (["work-pool", "create", "appliance", "--type", "process"], ["deploy", "--all"]):
        subprocess.run(
            [BIN / "prefect", "--no-prompt", *command],
            cwd=desk.folder,
            env=desk.environment,
            check=True,
            capture_output=True,
        )
    said = desk.register("--dry-run").stdout
    deployments = [line for line in said.splitlines() if line.startswith("deployment")]
    assert len(deployments) == len(yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"])
    assert all(line.endswith("  to change") for line in deployments), said
    details = [line.strip() for line in said.splitlines() if " -> " in line]
    names = [detail.partition(": ")[0] for detail in details]
    assert names == ["parameters", "folder"] * len(deployments), said
    assert f"folder: {desk.folder} -> /" in details
    assert desk.register().returncode == 0
    nightly = desk.deployment("backup-fleet/nightly")
    assert nightly["parameters"]["fleet"] == str(desk.folder / "fleet.yaml")
    assert str(desk.folder) not in str(nightly["pull_steps"])


def test_a_change_in_the_prefect_yaml_beside_fleet_yaml_is_shown_and_made_and_a_paused_schedule_stays_paused(
    desk: Desk,
) -> None:
    ours = (REPOSITORY / "prefect.yaml").read_text()
    assert desk.register().returncode == 0
    nightly, hourly = desk.deployment("backup-fleet/nightly"), desk.deployment("check-fleet/hourly-check")
    path = f"/deployments/{hourly['id']}/schedules/{hourly['schedules'][0]['id']}"
    desk.client.patch(path, json={"active": False}).raise_for_status()

    changed = ours.replace('cron: "0 2 * * *"', 'cron: "15 3 * * *"').replace("Look at every node", "Look at each node")
    (desk.folder / "prefect.yaml").write_text(changed)
    said = desk.register().stdout
    assert 'schedules: ["0 2 * * * Etc/UTC"] -> ["15 3 * * * Etc/UTC"]' in said
    [schedule] = desk.deployment("backup-fleet/nightly")["schedules"]
    assert (schedule["schedule"]["cron"], schedule["active"]) == ("15 3 * * *", True)
    assert desk.deployment("backup-fleet/nightly")["id"] == nightly["id"]
    assert desk.deployment("check-fleet/hourly-check")["description"].startswith("Look at each node")
    assert desk.deployment("check-fleet/hourly-check")["schedules"][0]["active"] is False

    off = changed.replace('cron: "15 3 * * *"', 'cron: "15 3 * * *"\n        active: false')
    (desk.folder / "prefect.yaml").write_text(off)
    said = desk.register().stdout
    assert 'schedules: ["15 3 * * * Etc/UTC"] -> ["15 3 * * * Etc/UTC, off"]' in said
    assert desk.deployment("backup-fleet/nightly")["schedules"][0]["active"] is False
    assert "changed" not in desk.register().stdout


@pytest.mark.parametrize(
    ("former", "latter", "said"),
    [
        ('"0 2 * * *"', '"0 2 * *"', "prefect.yaml: the deployment nightly: schedules.0.cron: Invalid cron string"),
        ("name: nightly", "name: nightly: x", "prefect.yaml cannot be used"),
    ],
)
def test_a_prefect_yaml_that_cannot_be_registered_is_refused_before_anything_is_changed(
    desk: Desk, former: str, latter: str, said: str
) -> None:
    ours = (REPOSITORY / "prefect.yaml").read_text()
    assert former in ours
    (desk.folder / "prefect.yaml").write_text(ours.replace(former, latter))
    ended = desk.register()
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert desk.client.get("/work_pools/appliance").status_code == httpx.codes.NOT_FOUND


def test_a_secret_block_comes_from_a_private_file_and_is_never_shown(desk: Desk) -> None:
    desk.fleet_yaml(password={"secret_block": "a0-password"})
    missing = desk.register()
    assert missing.returncode == 2
    assert "--secret a0-password=FILE" in missing.stderr
    assert desk.client.get("/work_pools/appliance").status_code == httpx.codes.NOT_FOUND

    file = desk.folder / "password"
    file.write_text(f"{PASSWORD}\n")
    file.chmod(0o644)
    open_to_all = desk.register("--secret", f"a0-password={file}")
    assert open_to_all.returncode == 1
    assert "gives others access" in open_to_all.stderr

    file.chmod(0o600)
    made = desk.register("--secret", f"a0-password={file}")
    again = desk.register("--secret", f"a0-password={file}")
    assert [line.split()[-1] for line in (made.stdout + again.stdout).splitlines() if "secret block" in line] == [
        "made",
        "there",
    ]
    file.write_text("Another8Password\n")
    changed = desk.register("--secret", f"a0-password={file}")
    assert "value: another -> the one given" in changed.stdout
    assert PASSWORD not in made.stdout + made.stderr + changed.stdout + changed.stderr
    path = "/block_types/slug/secret/block_documents/name/a0-password"
    block = desk.client.get(path, params={"include_secrets": True}).raise_for_status().json()
    assert block["data"]["value"] == "Another8Password"
    assert desk.register().returncode == 0


def test_the_secret_block_of_the_health_key_is_registered_too(desk: Desk) -> None:
    desk.fleet_yaml(health={"url": "https://{host}/health", "key": {"secret_block": "a0-health"}})
    missing = desk.register()
    assert missing.returncode == 2
    assert "--secret a0-health=FILE" in missing.stderr
    wrong = desk.register("--secret", "a0-other=FILE")
    assert f"--secret a0-other: {desk.folder / 'fleet.yaml'} names a0-health" in wrong.stderr
    file = desk.folder / "health.key"
    file.write_text("-key of the dashboard\n")
    file.chmod(0o600)
    assert desk.register("--secret", f"a0-health={file}").returncode == 0
    path = "/block_types/slug/secret/block_documents/name/a0-health"
    block = desk.client.get(path, params={"include_secrets": True}).raise_for_status().json()
    assert block["data"]["value"] == "-key of the dashboard"


def test_the_credentials_of_a_place_come_from_a_private_file_and_are_never_shown(desk: Desk) -> None:
    desk.fleet_yaml(copies=[{"name": "offsite", "url": "s3://bucket/vault", "secret_block": "a0-offsite"}])
    missing = desk.register()
    assert missing.returncode == 2
    assert "--secret a0-offsite=FILE" in missing.stderr

    file = desk.folder / "keys.json"
    file.touch(0o600)
    file.write_text(f'{{"aws_access_key_id": "AKIA", "aws_secret_key": "{PASSWORD}"}}')
    wrong = desk.register("--secret", f"a0-offsite={file}")
    assert wrong.returncode == 1
    assert "does not hold credentials" in wrong.stderr
    assert desk.client.get("/work_pools/appliance").status_code == httpx.codes.NOT_FOUND

    keys = {"aws_access_key_id": "AKIA", "aws_secret_access_key": PASSWORD}
    file.write_text(json.dumps(keys, indent=1) + "\n")
    made = desk.register("--secret", f"a0-offsite={file}")
    assert made.returncode == 0, made.stderr
    assert PASSWORD not in wrong.stdout + wrong.stderr + made.stdout + made.stderr
    path = "/block_types/slug/secret/block_documents/name/a0-offsite"
    block = desk.client.get(path, params={"include_secrets": True}).raise_for_status().json()
    assert json.loads(block["data"]["value"]) == keys
    assert desk.register().returncode == 0


def test_nothing_is_changed_if_the_value_of_the_secret_block_is_missing_and_nobody_can_be_asked(desk: Desk) -> None:
    desk.fleet_yaml(password={"secret_block": "a0-password"})
    # As `a0backup serve` does without a terminal.
    serves = (
        "import asyncio, pathlib\n"
        "from a0backup.fleet.load import load_fleet\n"
        "from deployments.register import register\n"
        "asyncio.run(register(load_fleet(pathlib.Path('fleet.yaml'))))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", serves], cwd=desk.folder, env=desk.environment, capture_output=True, text=True
    )
    assert "EngineError: there is no Secret block a0-password" in ended.stderr
    assert desk.client.get("/work_pools/appliance").status_code == httpx.codes.NOT_FOUND


class Listener(http.server.BaseHTTPRequestHandler):
    """Receives notifications."""

    def do_POST(self) -> None:
        self.server.told.append(self.rfile.read(int(self.headers["content-length"])).decode())  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the terminal of the tests clean."""


@pytest.fixture
def told() -> Iterator[tuple[str, list[str]]]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        server.told = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", server.told  # type: ignore[attr-defined]
        server.shutdown()


def test_a_failed_night_is_sent_to_the_notification_block_but_one_nodes_part_of_it_is_not(
    desk: Desk, told: tuple[str, list[str]]
) -> None:
    address, messages = told
    for name, reason in (("custom-webhook/ops", "there is no block"), ("secret/a0-password", "there is no block")):
        refused = desk.register("--notify", name)
        assert (refused.returncode, reason in refused.stderr) == (1, True), refused.stderr
    make = (
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Hook\n"
        "import sys\n"
        "Hook(name='ops', url=sys.argv[1], json_data={'text': '{{subject}} | {{body}}'}).save('ops')\n"
        "from prefect.blocks.system import Secret\n"
        "Secret(value='x').save('mute')\n"
    )
    subprocess.run([sys.executable, "-c", make, address], env=desk.environment, check=True, capture_output=True)
    mute = desk.register("--notify", "secret/mute")
    assert (mute.returncode, "cannot send notifications" in mute.stderr) == (1, True), mute.stderr

    registered = desk.register("--notify", "custom-webhook/ops")
    assert registered.returncode == 0, registered.stderr
    assert "nobody is notified" not in registered.stderr
    assert "nobody is notified" not in desk.register().stderr

    for name, failure in (("backup-node/of-fleet", "one node"), ("backup-fleet/nightly", "2 of 5 node backups failed")):
        parameters = {"node": "a0-1"} if name.startswith("backup-node") else {}
        body = {"parameters": parameters, "state": {"type": "RUNNING", "name": "Running"}}
        run = desk.client.post(f"/deployments/{desk.deployment(name)['id']}/create_flow_run", json=body).json()
        failed = {"state": {"type": "FAILED", "name": "Failed", "message": failure}}
        desk.client.post(f"/flow_runs/{run['id']}/set_state", json=failed).raise_for_status()
    assert eventually(lambda: bool(messages), 60)
    [message] = messages
    assert "2 of 5 node backups failed" in message
    assert "a0backup: " in message
    assert run["id"] in message


def test_a_fleet_in_another_folder_is_not_overwritten(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert desk.register().returncode == 0
    other = Desk(tmp_path_factory.mktemp("other"), desk.api)
    refused = other.register()
    assert refused.returncode == 1
    assert f"is registered for the fleet in {desk.folder}" in refused.stderr
    assert "prefect deployment delete" in refused.stderr


def test_an_engine_that_refuses_access_or_is_missing_is_a_clear_error(desk: Desk) -> None:
    stranger = desk.register(PREFECT_API_AUTH_STRING="a0backup:guess")
    assert stranger.returncode == 1
    assert "HINT: set PREFECT_API_AUTH_STRING" in stranger.stderr
    nobody = desk.register(PREFECT_API_URL="http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES="0")
    assert nobody.returncode == 1
    assert "does not answer" in nobody.stderr
    none = desk.register(PREFECT_API_URL="", XDG_STATE_HOME=str(desk.folder / "state"))
    assert none.returncode == 1
    assert "no engine is named, and no `a0backup serve` is running" in none.stderr
    for ended in (stranger, nobody, none):
        assert "Traceback" not in ended.stderr
