"""A newcomer's first minutes with the console, in a real browser: see a slow route, ask why, read the advice, change
its TTL, see the upstream asked less, purge a tag, see it fetched again."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.browser import needs_browser
from tests.support.processes import ROOT, Child, GatewayProcess, StartGateway, free_port

pytestmark = pytest.mark.timeout(180)
SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""A folder for pictures of what the browser showed."""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "gateway.demo.shop", "--port", str(port), "--delay", "100ms"]
    child = Child(command, output=tmp_path / "shop.log", cwd=ROOT)
    try:
        for _ in range(100):
            try:
                httpx.get(f"http://127.0.0.1:{port}/_demo")
                break
            except httpx.TransportError:
                threading.Event().wait(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.end()


@pytest.fixture
def gateway(start_gateway: StartGateway, shop: str) -> tuple[GatewayProcess, str]:
    """A gateway with a short TTL on its product pages, and the URL of its admin listener."""
    port = free_port()
    settings = {
        "redis_url": "embedded",
        "workers": 2,
        "access_log": False,
        "admin_listen": f"127.0.0.1:{port}",
        "upstreams": {"catalog": {"url": shop}},
        "routes": {
            "product": {
                "path": "/products/{id}",
                "upstream": "catalog",
                "upstream_path": "/v2/items/{id}",
                "ttl": "1s",
                "tags": ["product:{id}"],
            }
        },
    }
    return start_gateway(settings, environment={"GATEWAY_ADMIN_TOKEN": "secret"}), f"http://127.0.0.1:{port}"


class Page:
    """The console as a person uses it: by labels, buttons and what stands on the page."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(f"{url}/console")

    def text(self, css: str) -> str:
        return " ".join(each.text for each in self.driver.find_elements("css selector", css))

    def until(self, true: Callable[[], object], what: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 40, ignored_exceptions=None).until(lambda _: true(), message=what)

    def type(self, id: str, text: str) -> None:
        field = self.driver.find_element("id", id)
        field.clear()
        field.send_keys(text)

    def press(self, css: str) -> None:
        self.driver.execute_script("document.querySelector(arguments[0]).click()", css)

    def slide_to(self, index: int) -> None:
        self.driver.execute_script(
            "const slider = document.getElementById('tune-ttl'); slider.value = arguments[0];"
            "slider.dispatchEvent(new Event('input'))",
            index,
        )

    def refresh(self) -> None:
        """What the page does every five seconds."""
        self.driver.execute_async_script("refresh().then(arguments[0])")

    def shoot(self, name: str) -> None:
        if SCREENSHOTS:
            self.driver.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


class Traffic:
    """Requests for four products, all the while."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.failed = 0

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self._url) as client:
            number = 0
            while not self._stop.is_set():
                response = await client.get(f"/products/{1 + number % 4}")
                self.failed += response.status_code != 200
                number += 1
                await asyncio.sleep(0.02)


def asked(shop: str) -> int:
    return int(httpx.get(f"{shop}/_demo").json()["total"])


@needs_browser
def test_a_newcomers_ten_minutes(gateway: tuple[GatewayProcess, str], shop: str, browser: Any) -> None:
    process, admin = gateway
    with Traffic(process.url) as traffic:
        page = Page(browser, admin)
        page.type("token", "wrong")
        page.press("#login button")
        page.until(lambda: "GATEWAY_ADMIN_TOKEN" in page.text("#login-error"), "a wrong token is refused")
        page.type("token", "secret")
        page.press("#login button")

        page.until(lambda: "hit" in page.text("#outcomes"), "figures come by themselves")
        page.until(lambda: page.text("#route-rows .rate") not in ("", "–", "0"), "the route's rate is shown")
        page.until(
            lambda: "1s" in page.text("#route-rows") and "line" in page.text("#route-rows"), "its TTL, and who set it"
        )

        page.type("explain-target", "/products/1")
        page.press("#explain-form button[type=submit]")
        page.until(lambda: "ttl       1s:" in page.text("#explained"), "why it is fetched so often")
        assert "gateway.yaml line" in page.text("#explained")

        page.until(lambda: browser.find_elements("css selector", "#route-rows button"), "there is advice for it")
        page.press("#route-rows button")
        page.slide_to(8)
        page.until(lambda: "30s" in page.text("#tune-value"), "another TTL is looked at")
        foretold = page.text("#tune-tiles")
        assert "upstream requests" in foretold
        page.shoot("tune")

        before = asked(shop)
        page.until(lambda: asked(shop) - before >= 8, "the upstream is asked all the while")
        page.press("#tune-apply")
        page.until(lambda: "on all workers" in page.text("#tune-said"), "the TTL is another")
        page.until(lambda: "live override" in page.text("#route-rows"), "and it says who set it")
        page.until(lambda: "product.ttl 30s" in page.text("#override-rows"), "it is listed with what else is in force")
        calm = asked(shop)
        seen = threading.Event()
        seen.wait(5)
        assert asked(shop) - calm <= 8  # four products, once each, and a margin: before it was two a second and more

        page.driver.find_element("id", "purge-what").send_keys("tag")
        page.type("purge-name", "product:1")
        before = asked(shop)
        page.press("#purge-form button")
        page.until(lambda: "2 of 2 workers" in page.text("#purged"), "the purge is confirmed")
        page.until(lambda: asked(shop) > before, "and what was purged is fetched again")
        page.until(
            lambda: "purge" in page.text("#audit-rows") and "ttl set" in page.text("#audit-rows"), "it is all listed"
        )
        page.press("#override-rows button")
        page.until(lambda: "None is in force" in page.text("#override-rows"), "the override ends")
        page.until(lambda: "live override" not in page.text("#route-rows"), "and the route is as configured again")
        page.shoot("end")
    errors = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "401" not in entry["message"]
    ]
    assert errors == []
    assert traffic.failed == 0


@needs_browser
def test_the_page_is_for_keyboards_and_screen_readers_too(gateway: tuple[GatewayProcess, str], browser: Any) -> None:
    _, admin = gateway
    page = Page(browser, admin)
    page.type("token", "secret\n")
    page.until(lambda: page.text("#state") == "Live", "the form is sent by Enter")
    unnamed = browser.execute_script(
        """return [...document.querySelectorAll('input, select, textarea, button')].filter((each) => !each.hidden
        && !(each.labels && each.labels.length) && !each.textContent.trim() && !each.getAttribute('aria-label'))
        .map((each) => each.outerHTML)"""
    )
    assert unnamed == []
    assert browser.execute_script("return document.documentElement.lang") == "en"
    assert browser.execute_script("return document.querySelectorAll('th:not([scope])').length") == 0
    browser.set_window_size(390, 800)
    width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1], "on a phone nothing but tables scrolls sideways"


def focused(driver: Any) -> str:
    """What has the keyboard's focus, by its id or its words."""
    here = driver.switch_to.active_element
    return str(here.get_attribute("id") or here.get_attribute("aria-label") or here.text)


@needs_browser
def test_who_has_only_a_keyboard_reaches_all_and_is_not_thrown_out_by_what_comes_anew(
    gateway: tuple[GatewayProcess, str], browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    process, admin = gateway
    with Traffic(process.url):
        page = Page(browser, admin)
        page.until(lambda: focused(browser) == "token", "the field for the token has the focus")
        browser.switch_to.active_element.send_keys("secret", Keys.ENTER)
        page.until(lambda: browser.find_elements("css selector", "#route-rows button"), "there is advice")
        route = browser.find_element("css selector", "#route-rows button")
        browser.execute_script("document.getElementById('leave').focus()")
        walked = []
        for _ in range(40):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            walked.append(focused(browser))
            if walked[-1] == "product":
                break
        assert walked[-1] == "product", walked

        for _ in range(2):
            page.refresh()
            assert browser.execute_script("return document.activeElement.textContent") == "product"

        assert route.get_attribute("aria-expanded") == "false"
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        page.until(lambda: focused(browser) == "tune-ttl", "the slider has the focus")
        assert browser.find_element("css selector", "#route-rows button").get_attribute("aria-expanded") == "true"
        before = page.text("#tune-value")
        browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        assert page.text("#tune-value") != before
        for expected in ("tune-for", "tune-apply", "Live overrides"):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            assert focused(browser) == expected

        browser.execute_script(
            "window.said = 0; new MutationObserver(() => said++)"
            ".observe(document.getElementById('tune-value'), { childList: true })"
        )
        for _ in range(2):
            page.refresh()
        assert browser.execute_script("return said") == 0, "nothing is read aloud again that is the same"


@needs_browser
def test_everything_is_purged_only_after_a_second_word(gateway: tuple[GatewayProcess, str], browser: Any) -> None:
    _, admin = gateway
    page = Page(browser, admin)
    page.type("token", "secret\n")
    page.until(lambda: page.text("#state") == "Live", "the console is there")
    browser.find_element("id", "purge-what").send_keys("everything")
    page.press("#purge-form button")
    browser.switch_to.alert.dismiss()
    page.until(lambda: "Nothing was purged" in page.text("#purged"), "it was not meant")
    page.press("#purge-form button")
    browser.switch_to.alert.accept()
    page.until(lambda: "2 of 2 workers" in page.text("#purged"), "it was meant")
