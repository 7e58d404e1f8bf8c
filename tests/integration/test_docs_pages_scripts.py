"""The documentation pages and the console in a real browser: what stands in descriptions and names never runs."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.browser import needs_browser
from tests.support.processes import GatewayProcess, StartGateway, free_port

pytestmark = pytest.mark.timeout(180)
RUN = "document.title = 'it ran'; window.ran = 1"
EVIL = " ".join(
    (
        "A <b>product</b>",
        f'<img src="x" onerror="{RUN}">',
        f"<script>{RUN}</script>",
        f'<svg onload="{RUN}"></svg>',
        f'<iframe srcdoc="<script>parent.{RUN.replace("window.", "parent.")}</script>"></iframe>',
        f'<details open ontoggle="{RUN}">x</details>',
        f"[link](javascript:{RUN.replace(' ', '')})",
        '<form action="http://127.0.0.1:9/x"><input autofocus onfocus="' + RUN + '"></form>',
    )
)


@pytest.fixture
def gateway(start_gateway: StartGateway) -> tuple[GatewayProcess, str]:
    port = free_port()
    settings = {
        "redis_url": "none",
        "admin_listen": f"127.0.0.1:{port}",
        "upstreams": {"api": {"url": "http://127.0.0.1:9"}},
        "routes": {
            "product": {
                "path": "/product/{id}",
                "upstream": "api",
                "ttl": "1s",
                "summary": EVIL[:500],
                "description": EVIL,
                "examples": {"id": EVIL},
                "tags": ["<img/src=x/onerror=window.ran=1>"],
            }
        },
    }
    return start_gateway(settings, environment={"GATEWAY_ADMIN_TOKEN": "secret"}), f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_policy_lets_no_inline_script_run_but_the_pages_own(gateway: tuple[GatewayProcess, str], page: str) -> None:
    first, second = (httpx.get(gateway[0].url + page) for _ in range(2))
    scripts = first.headers["content-security-policy"].partition("script-src")[2].partition(";")[0]
    assert "unsafe-inline" not in scripts
    assert "unsafe-eval" not in scripts
    assert first.headers["content-security-policy"] != second.headers["content-security-policy"]
    assert first.text.count("<script>") == 0


@needs_browser
@pytest.mark.parametrize("page", ["/docs", "/redoc", "/console"])
def test_a_description_runs_nothing(gateway: tuple[GatewayProcess, str], browser: Any, page: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    public, admin = gateway[0].url, gateway[1]
    shown = WebDriverWait(browser, 60)
    browser.get((admin if page == "/console" else public) + page)
    if page == "/docs":
        shown.until(lambda _: browser.find_elements(By.CSS_SELECTOR, ".opblock-summary-control"))
        operation = next(
            each
            for each in browser.find_elements(By.CSS_SELECTOR, ".opblock-summary-control")
            if "product" in each.text
        )
        operation.click()
        shown.until(lambda _: browser.find_elements(By.CSS_SELECTOR, ".opblock-description"))
    elif page == "/redoc":
        shown.until(lambda _: "product" in browser.find_element(By.TAG_NAME, "body").text)
        shown.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "[data-section-id], .redoc-markdown"))
    else:
        browser.execute_script("return document.readyState")
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    assert browser.execute_script("return window.ran") is None
    assert browser.title != "it ran"
