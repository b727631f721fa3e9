"""The page of `seqrec serve --demo` in a browser, by keyboard: pytest -m browser.

Needs Chromium with its driver (Debian's chromium-driver) and `pip install "seqrec[browser]"`. If `SEQREC_AXE` names the
file `axe.min.js` of npm's axe-core, it also looks for barriers, here and on the page of a run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars
import pytest
from served_models import ITEMS, model, serving

from seqrec.catalogue.item_columns import ItemColumns
from seqrec.experiments.report import report
from seqrec.inference.sessions import InMemoryStore, SessionRecommender
from seqrec.serving.app import create_app

pytestmark = pytest.mark.browser
webdriver = pytest.importorskip("selenium.webdriver", reason='needs pip install "seqrec[browser]"')

TOKEN = "a-token-of-some-length"
HOSTILE = "<img src=x onerror=alert(1)>"
# A request for the user "late" fails when `failLate` is called.
LATE_FAILURE = """
const fetchNow = window.fetch;
window.fetch = (path, options) => options.body !== undefined && JSON.parse(options.body).user === "late"
  ? new Promise((_, reject) => { window.failLate = () => reject(new TypeError()); }) : fetchNow(path, options);
"""
LOOK_UP = "document.getElementById('user').value = arguments[0]; document.getElementById('find').requestSubmit();"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if found is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found
    for word in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    if os.geteuid() == 0:
        # Chromium's sandbox refuses the superuser.
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield started
    finally:
        started.quit()


class Page:
    """The page as a user of a keyboard meets it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def texts(self, selector: str) -> list[str]:
        return [each.text for each in self.browser.find_elements("css selector", selector)]

    def wait(self, text: str) -> None:
        """Wait until the status contains a text."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 60).until(lambda _: text in self.texts("#status")[0])

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.browser.switch_to.active_element.send_keys(text)

    def focused(self) -> str:
        element = self.browser.switch_to.active_element
        return element.get_attribute("aria-label") or element.get_attribute("id")

    def tab_to(self, name: str) -> None:
        for _ in range(50):
            if self.focused() == name:
                return
            self.type("\ue004")
        raise AssertionError(f"{name} cannot be reached by Tab; the focus is at {self.focused()}")

    def barriers(self) -> list[str]:
        """Return what axe finds, as rules and elements; nothing if it is not here."""
        file = os.environ.get("SEQREC_AXE")
        if file is None:
            return []
        self.browser.execute_script(Path(file).read_text(encoding="utf-8"))
        found = self.browser.execute_async_script("axe.run().then(arguments[0])")
        assert len(found["passes"]) > 10
        return [f"{each['id']}: {node['html']}" for each in found["violations"] for node in each["nodes"]]

    def resize(self, width: int, scheme: str) -> None:
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_a_user_is_looked_up_and_changed_by_keyboard(browser: Any):
    served = model()
    titles = polars.DataFrame({"item_id": ITEMS, "title": [f"{HOSTILE} {item}" for item in ITEMS]})
    recommender = SessionRecommender(served, InMemoryStore(keep_events=100))
    columns = ItemColumns.read(titles, served.item_vocabulary)
    page = Page(browser)
    with serving(create_app(recommender, demo=True, titles=columns, token=TOKEN)) as url:
        browser.get(url)
        page.wait("needs a token")
        assert page.focused() == "token"
        page.type("another-token-of-some-length\n")
        page.wait("This token is wrong")
        page.type(f"{TOKEN}\n")
        page.wait("Look up a user")
        page.type("ada\n")
        page.wait("No event of user ada is known")
        page.tab_to("item")
        page.type("30\n")
        page.wait("Added an event of 30 to user ada. 10 recommendations.")
        # The first recommendation becomes an event, and the list changes.
        best = [each.item for each in recommender.recommend("ada")]
        page.tab_to(f"Add an event of {HOSTILE} {best[0]}")
        page.type("\n")
        page.wait(f"Added an event of {HOSTILE} {best[0]}")
        after = [each.item for each in recommender.recommend("ada")]
        assert page.texts("#items .name") == [f"{HOSTILE} {item} ({item})" for item in after]
        assert page.texts("#events .name") == [f"{HOSTILE} {item} ({item})" for item in (best[0], 30)]
        assert page.texts("#items .change").count("new") == len(set(after) - set(best))
        # The focus stays in the list, and another item is explained.
        assert page.focused() == f"Add an event of {HOSTILE} {after[0]}"
        page.tab_to(f"Why {HOSTILE} {after[1]}")
        page.type(" ")
        page.wait(f"Explained: {HOSTILE} {after[1]}")
        # A failure that comes late leaves what was asked for later, and a double click adds one event.
        browser.execute_script(LATE_FAILURE)
        recommender.observe("bob", 50)
        browser.execute_script(LOOK_UP, "late")
        browser.execute_script(LOOK_UP, "bob")
        page.wait("10 recommendations for user bob.")
        browser.execute_async_script("window.failLate(); setTimeout(arguments[0], 100)")
        assert page.texts("#status") == ["10 recommendations for user bob."]
        assert page.texts("#events .name") == [f"{HOSTILE} 50 (50)"]
        browser.execute_script("const add = document.querySelector('#items .add'); add.click(); add.click();")
        page.wait("to user bob.")
        assert recommender.events_seen("bob") == 2
        browser.execute_script(LOOK_UP, "ada")
        page.wait("for user ada.")
        page.tab_to(f"Why {HOSTILE} {after[1]}")
        page.type(" ")
        page.wait(f"Explained: {HOSTILE} {after[1]}")
        shares = served.explain([30, best[0]], after[1]).contributions.tolist()
        assert page.texts("#events .number") == [f"{share:+.3f}".replace("-", "\u2212") for share in reversed(shares)]
        for width in (390, 1280):
            for scheme, back in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(15, 20, 25)")):
                page.resize(width, scheme)
                assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
                assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == back
                assert page.barriers() == []
    # Titles stay text, nothing is stored, and nobody else is asked.
    assert not browser.find_elements("css selector", "img, iframe, main script")
    assert browser.execute_script("return localStorage.length + sessionStorage.length + document.cookie.length") == 0
    requests = browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert {request.removeprefix(url) for request in requests} == {"/demo/about", "/demo/user", "/observe"}
    errors = [
        each["message"] for each in browser.get_log("browser") if "the server responded with" not in each["message"]
    ]
    assert errors == []


@pytest.mark.skipif("SEQREC_AXE" not in os.environ, reason="needs axe-core: npm install axe-core, and SEQREC_AXE")
def test_axe_finds_nothing_on_the_page_of_a_run(browser: Any, tmp_path: Path):
    run = Path(__file__).parents[1] / "compatibility" / "v0_1_0" / "mambarec"
    report(str(shutil.copytree(run, tmp_path / "run")), output=str(tmp_path / "page"), examples=0)
    browser.get((tmp_path / "page" / "report.html").as_uri())
    page = Page(browser)
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            page.resize(width, scheme)
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
            assert page.barriers() == []
