"""What an operator does in the browser: read the form, start a run, watch it, cancel it, retry it."""

import re

import pytest
from playwright.sync_api import expect

from a0backup.vault.lock import is_held
from a0backup.vault.vault import Vault
from simulator.fleet import SimulatedFleet
from tests.support.deployed import Deployed
from tests.support.patience import eventually
from tests.system.browser.ui import UI

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def is_retrieved(deployed: Deployed, node: str) -> bool:
    """Return whether bytes of the node's backup are arriving now."""
    return bool([*Vault(deployed.folder / "vault").work(node).glob("*/*.tar.gz.enc")])


def test_the_form_explains_each_field_its_choices_and_what_is_wrong(ui: UI, appliances: SimulatedFleet) -> None:
    ui.open_deployment("single-node")
    expect(ui.open_tab("Description")).to_contain_text("Back up one node now.")
    ui.open_form("single-node")
    for text in (
        "The node's name in the fleet file, such as a0-1.",
        "The fleet file, as an absolute path on the machine that runs this.",
        "What to do with a backup on the node that this vault did not start.",
    ):
        expect(ui.main.get_by_text(text)).to_be_visible()
    expect(ui.field("fleet (Optional)")).to_have_value("fleet.yaml")

    ui.page.get_by_role("button", name="Submit").click()
    expect(ui.main.get_by_text("'node' is a required property", exact=True)).to_be_visible()

    assert ui.choices("existing") == ["as in fleet.yaml", "preserve", "replace", "fail"]
    ui.choose("preserve")
    expect(ui.main.get_by_role("button", name="Select existing")).to_contain_text("preserve")


def test_a_custom_run_of_one_node_is_started_watched_and_leaves_its_report(
    ui: UI, deployed: Deployed, appliances: SimulatedFleet
) -> None:
    before = len(appliances.calls("a0-1", "backup"))
    ui.open_form("single-node")
    ui.field("node").fill("a0-1")
    ui.choices("existing")
    ui.screenshot("deployment-form")
    ui.choose("fail")
    run = ui.submit()
    ui.sees_state("Completed")
    expect(ui.main.get_by_role("navigation", name="breadcrumb").first).to_contain_text("backup-a0-1")
    chosen = {"node": "a0-1", "fleet": "fleet.yaml", "existing": "fail", "fleet_run": ""}
    assert deployed.get(f"flow_runs/{run}")["parameters"] == chosen
    assert len(appliances.calls("a0-1", "backup")) == before + 1

    ui.open_run(run)
    ui.sees_state("Completed")
    ui.graph_is_painted()
    expect(ui.main.get_by_role("log")).to_contain_text("a0-1: nothing is on the node: start a backup")
    ui.newest_first("Finished in state Completed()")
    ui.screenshot("run-graph")
    expect(ui.open_tab("Task Runs").get_by_role("link", name="store-backup-a0-1")).to_be_visible()
    ui.open_artifact("backup-report")
    expect(ui.report).to_contain_text("1 node backup: 1 stored")
    expect(ui.report.get_by_role("table")).to_contain_text("contents: 5 members")


def test_a_night_shows_its_progress_while_it_runs_and_ends_when_it_is_cancelled(
    ui: UI, deployed: Deployed, appliances: SimulatedFleet
) -> None:
    # Two that end, one whose retrieval takes longer than anybody watches, one that never finishes.
    appliances.tell("a0-2", "backup-retrieve", "drip", bytes_per_second=40_000)
    appliances.tell("a0-3", None, "unreachable")
    appliances.tell("a0-4", "backup-status", "in_progress")
    run = ui.quick_run("nightly")
    ui.sees_state("Running")
    ui.open_run(run, "Artifacts")
    ui.reload_until(ui.main, "2 of 4 nodes ended, at ")
    ui.graph_is_painted()
    ui.open_artifact("backup-steps")
    steps = ui.main.get_by_role("table")
    ui.reload_until(steps, re.compile(r"\d [kM]B of about \d"))
    for node, step in (("a0-1", "stored"), ("a0-2", "retrieve"), ("a0-3", "unreachable"), ("a0-4", "await")):
        expect(steps.get_by_role("row", name=node)).to_contain_text(step)
    expect(ui.main.get_by_role("link", name="backup-fleet-")).to_be_visible()
    ui.screenshot("run-steps")

    ui.open_run(run)
    ui.from_menu("Cancel", confirm="Cancel Flow Run")
    ui.sees_state("Cancelled")
    assert eventually(lambda: deployed.a0clis() == [], 3)
    assert not is_held(deployed.folder / "vault/a0-2/lock")
    ui.open_run(run, "Task Runs")
    ui.sees_state("Cancelled")
    ui.graph_is_painted()
    expect(ui.main.get_by_role("link", name="retrieve-backup-a0-2")).to_be_visible()
    ui.open_artifact("backup-steps")
    expect(steps.get_by_role("row", name="a0-2")).to_contain_text("retrieve")

    appliances.forget()
    night = deployed.run("backup-fleet/nightly").raise_for_status().json()["id"]
    assert deployed.ends_as("Completed", night, 120)


def test_a_cancelled_run_shows_where_it_stopped_and_the_next_one_keeps_its_backup(
    ui: UI, deployed: Deployed, appliances: SimulatedFleet
) -> None:
    before = len(appliances.calls("a0-2", "backup"))
    appliances.tell("a0-2", "backup-retrieve", "drip", bytes_per_second=40_000)
    run = deployed.run("backup-node/single-node", node="a0-2").raise_for_status().json()["id"]
    assert eventually(lambda: is_retrieved(deployed, "a0-2"), 60)
    ui.open_run(run)
    ui.from_menu("Cancel", confirm="Cancel Flow Run")
    ui.sees_state("Cancelled")
    ui.open_run(run, "Task Runs")
    retrieval = ui.main.get_by_role("listitem").filter(has_text="retrieve-backup-a0-2").first
    ui.reload_until(retrieval, "Crashed")
    ui.open_run(run)
    ui.sees_state("Cancelled")
    ui.graph_is_painted()
    ui.newest_first("Flow run was cancelled.")
    expect(ui.main.get_by_role("log")).to_contain_text("retrieve-backup-a0-2: cancelled")
    ui.screenshot("run-cancelled")

    appliances.forget()
    following = deployed.run("backup-node/single-node", node="a0-2").raise_for_status().json()["id"]
    assert deployed.ends_as("Completed", following)
    ui.open_run(following, "Artifacts")
    ui.open_artifact("backup-report")
    # The cancelled run had not opened it, so nothing proves that it is ours: it is kept, and another one is made.
    expect(ui.report).to_contain_text("a backup that an earlier run may have started was on the node")
    assert len(appliances.calls("a0-2", "backup")) == before + 2


def test_the_report_of_a_night_names_the_failed_nodes_and_reasons_and_fits_its_page(
    ui: UI, deployed: Deployed, appliances: SimulatedFleet
) -> None:
    appliances.tell("a0-3", None, "unreachable")
    run = deployed.run("backup-fleet/nightly").raise_for_status().json()["id"]
    assert deployed.ends_as("Failed", run, 120)
    ui.open_run(run, "Artifacts")
    expect(ui.main.get_by_text("4 of 4 nodes ended, at ")).to_be_visible()
    ui.open_artifact("backup-report")
    expect(ui.report).to_contain_text("4 node backups: 3 stored, 1 failed (1 unreachable)")
    expect(ui.report).to_contain_text("HINT: check host, port")
    # No part of the table is hidden beside the page's own column.
    table = ui.drawn(ui.report.get_by_role("table"))
    beside = ui.drawn(ui.main.get_by_text("Flow Run", exact=True).first)
    assert table["x"] + table["width"] <= beside["x"]
    ui.screenshot("report")


def test_a_retry_of_a_run_that_failed_after_storing_finds_the_retrieve_step_cached(
    ui: UI, deployed: Deployed, appliances: SimulatedFleet
) -> None:
    # Slow, so that the node refuses the status right before the deletion and none earlier.
    appliances.tell("a0-4", "backup-retrieve", "drip", bytes_per_second=1_000_000)
    run = deployed.run("backup-node/single-node", node="a0-4").raise_for_status().json()["id"]
    assert eventually(lambda: is_retrieved(deployed, "a0-4"), 60)
    appliances.tell("a0-4", "backup-status", "refuse")
    assert deployed.ends_as("Failed", run)
    retrieved = len(appliances.calls("a0-4", "backup-retrieve"))
    appliances.forget()

    ui.open_run(run)
    ui.sees_state("Failed")
    ui.from_menu("Retry", confirm="Retry")
    assert eventually(lambda: deployed.get(f"flow_runs/{run}")["run_count"] == 2, 60)
    assert deployed.ends_as("Completed", run)
    ui.open_run(run, "Task Runs")
    ui.sees_state("Completed")
    ui.main.get_by_placeholder("Search by run name").fill("retrieve")
    found = ui.main.get_by_role("tabpanel", name="Task Runs")
    expect(found).to_contain_text("(1 Cached, 1 Completed)")
    expect(found.get_by_role("link", name="retrieve-backup-a0-4")).to_have_count(2)
    ui.graph_is_painted()
    ui.screenshot("retry-cached")
    assert len(appliances.calls("a0-4", "backup-retrieve")) == retrieved
    assert appliances.holds("a0-4") is None
    found.get_by_role("link", name="retrieve-backup-a0-4").first.click()
    expect(ui.main).to_contain_text("verified in the vault as a0-4/")
