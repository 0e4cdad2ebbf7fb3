"""Prefect's pages as a person uses them: what is clicked, and what must then be visible."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import BrowserContext, FloatRect, Locator, expect, sync_playwright

from tests.support.paths import REPOSITORY
from tests.support.patience import patience

CHROMIUM = Path("/usr/bin/chromium")
SCREENSHOTS = REPOSITORY / "docs" / "screenshots"
TAKING_PICTURES = os.environ.get("A0BACKUP_SCREENSHOTS") == "1"
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# For pictures, wide enough for the note of a node that does not answer, without a log line cut in half.
VIEWPORT = {"width": 1840, "height": 1060} if TAKING_PICTURES else {"width": 1400, "height": 900}
A_WHILE = patience(120) * 1000  # milliseconds
RUN_PAGE = re.compile(r"/runs/flow-run/([0-9a-f-]{36})")

expect.set_options(timeout=A_WHILE)


@contextmanager
def browser(user_data: Path) -> Iterator[BrowserContext]:
    """Start a headless Chromium without a history."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            user_data, executable_path=CHROMIUM, args=ARGUMENTS, viewport=VIEWPORT
        )
        context.set_default_timeout(A_WHILE)
        try:
            yield context
        finally:
            context.close()


class UI:
    """The pages of the server at *address*, in the one tab of *context*."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.address = address
        self.page = context.pages[0]
        self.main = self.page.get_by_role("main")
        self.report = self.main.get_by_test_id("markdown-display")

    def log_in(self, user: str, password: str) -> None:
        """Open the server's first page, and log in if asked."""
        self.page.goto(self.address)
        asked, let_in = self.page.get_by_placeholder("admin:pass"), self.page.get_by_role("link", name="Deployments")
        expect(asked.or_(let_in)).to_be_visible()
        if asked.is_visible():
            asked.fill(f"{user}:{password}")
            self.page.get_by_role("button", name="Login").click()
        expect(let_in).to_be_visible()

    def screenshot(self, name: str) -> None:
        """Save the current view as docs/screenshots/NAME.png if A0BACKUP_SCREENSHOTS=1 is set."""
        if TAKING_PICTURES:
            SCREENSHOTS.mkdir(exist_ok=True)
            self.page.mouse.move(0, 0)
            # Notifications about something else disappear after some seconds.
            expect(self.page.get_by_role("region", name="Notifications").get_by_role("listitem")).to_have_count(0)
            (SCREENSHOTS / f"{name}.png").write_bytes(self._once_still())

    def _once_still(self) -> bytes:
        # A graph keeps moving for a while after it was painted.
        deadline = time.monotonic() + A_WHILE / 1000
        picture, former = self.page.screenshot(animations="disabled"), b""
        while picture != former:
            assert time.monotonic() < deadline, "the page does not come to rest"
            self.page.wait_for_timeout(1000)
            picture, former = self.page.screenshot(animations="disabled"), picture
        return picture

    # -- deployments -----------------------------------------------------------------------------------------------

    def open_deployment(self, name: str) -> None:
        self.page.get_by_role("link", name="Deployments", exact=True).first.click()
        self.main.get_by_role("link", name=name, exact=True).click()
        expect(self.page.get_by_role("button", name="Run", exact=True)).to_be_visible()

    def open_form(self, name: str) -> None:
        """Open the form of a custom run."""
        self.open_deployment(name)
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        expect(self.page.get_by_role("button", name="Submit")).to_be_visible()

    def field(self, label: str) -> Locator:
        return self.main.get_by_label(label, exact=True)

    def choices(self, label: str) -> list[str]:
        """Return the options of the select with this label, and leave it open."""
        self.main.get_by_role("button", name=f"Select {label}").click()
        expect(self.page.get_by_role("listbox")).to_be_visible()
        return self.page.get_by_role("option").all_inner_texts()

    def choose(self, text: str) -> None:
        """Take one of the open options."""
        self.page.get_by_role("option", name=text, exact=True).click()

    def submit(self) -> str:
        """Submit the form, go to the page of the run and return the run's id."""
        return self._start(lambda: self.page.get_by_role("button", name="Submit").click())

    def quick_run(self, name: str) -> str:
        """Run the deployment unchanged, go to the page of the run and return the run's id."""
        self.open_deployment(name)

        def ask() -> None:
            self.page.get_by_role("button", name="Run", exact=True).click()
            self.page.get_by_role("menuitem", name="Quick run").click()

        return self._start(ask)

    def _start(self, ask: Callable[[], None]) -> str:
        # The link to the run disappears after some seconds. The response to the page holds the same id.
        for _ in range(10):
            with self.page.expect_response(re.compile("/create_flow_run$")) as answer:
                ask()
            # If the server's database is busy (503), a person clicks again.
            if answer.value.status != 503:
                break
        run = str(answer.value.json()["id"])
        self.open_run(run)
        return run

    # -- runs ------------------------------------------------------------------------------------------------------

    def open_run(self, run: str, tab: str = "Logs") -> None:
        self.page.goto(f"{self.address}/v2/runs/flow-run/{run}?tab={tab.replace(' ', '')}")
        expect(self.tab(tab)).to_have_attribute("aria-selected", "true")

    def tab(self, name: str) -> Locator:
        return self.main.get_by_role("tab", name=name, exact=True)

    def open_tab(self, name: str) -> Locator:
        """Open a tab of the page and return its contents."""
        self.tab(name).click()
        return self.main.get_by_role("tabpanel", name=name, exact=True)

    def sees_state(self, state: str) -> None:
        """Wait until the run's open page shows this state."""
        expect(self.main.get_by_text(state, exact=True).first).to_be_visible()

    def from_menu(self, item: str, confirm: str) -> None:
        """Choose an item of the run's menu and confirm it."""
        self.main.get_by_role("button", name="Open menu").first.click()
        self.page.get_by_role("menuitem", name=item, exact=True).click()
        self.page.get_by_role("alertdialog").get_by_role("button", name=confirm, exact=True).click()

    def newest_first(self, line: str) -> None:
        """Sort the run's open log newest first, so that it begins with its last line, *line*."""
        order = self.main.get_by_role("combobox").filter(has_text=re.compile("Oldest|Newest"))
        order.click()
        self.page.get_by_role("option", name="Newest to oldest", exact=True).click()
        order.blur()
        expect(self.main.get_by_role("log").get_by_role("listitem").first).to_contain_text(line)

    def graph_is_painted(self) -> None:
        """Wait until the canvas of the run's graph shows bars in the colour of a state."""
        canvas = self.main.locator("canvas").first
        expect(canvas).to_be_visible()
        self.page.wait_for_function(_HAS_GREEN, arg=canvas.element_handle())

    def open_artifact(self, key: str) -> None:
        """From the run's page, open its artifact with this key."""
        self.open_tab("Artifacts").get_by_role("link", name=key).first.click()
        self.page.wait_for_url(re.compile("/artifacts/artifact/"))
        expect(self.tab("Artifact")).to_be_visible()

    def drawn(self, place: Locator) -> FloatRect:
        """Return where *place* is on the page. It has no box while the page redraws it."""
        deadline = time.monotonic() + A_WHILE / 1000
        while (box := place.bounding_box()) is None:
            assert time.monotonic() < deadline, f"{place} is not drawn"
            self.page.wait_for_timeout(100)
        return box

    def reload_until(self, place: Locator, text: str | re.Pattern[str]) -> None:
        """Reload the page until *place* has the text: Prefect's artifact pages do not refresh themselves."""
        deadline = time.monotonic() + A_WHILE / 1000
        while True:
            self.page.reload()
            try:
                expect(place).to_contain_text(text, timeout=3000)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            else:
                return


# A bar of a successful step has at least 200 such pixels.
_HAS_GREEN = """async canvas => {
    const image = await createImageBitmap(canvas)
    const copy = new OffscreenCanvas(image.width, image.height).getContext('2d')
    copy.drawImage(image, 0, 0)
    const bytes = copy.getImageData(0, 0, image.width, image.height).data
    let green = 0
    for (let i = 0; i < bytes.length; i += 4)
        green += bytes[i] < 80 && bytes[i + 1] > 130 && bytes[i + 2] < 110 && bytes[i + 3] > 200
    return green > 200
}"""
