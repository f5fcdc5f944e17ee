"""The page about models in a browser: an experiment chosen, its curves by keyboard, a run that trains."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from pages import running_studio

pytestmark = pytest.mark.slow  # a browser; test_genome_page.py is the one that always runs

RESULTS = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "results"
BEFORE = (
    "seconds,step,train_nats_per_token,validation_nats_per_token\n"
    + "".join(f"{step},{step},{4 - step / 50},\n" for step in range(1, 11))
    + "10,10,,3.6\n"
)
CONFIG = "dataset: chorales\nposition: pope\nbaseline: none\noptimizer:\n  steps: 100\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(RESULTS / "genome-small", folder / "runs" / "genome")
    run = folder / "runs" / "live" / "pope-seed0"
    (run / "logs" / "version_0").mkdir(parents=True)
    (run / "logs" / "version_0" / "metrics.csv").write_text(BEFORE)
    for place in (run, run.parent):
        (place / "config.yaml").write_text(CONFIG)
    (run / "best.safetensors").write_bytes(b"half")
    (run.parent / "report.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with running_studio(folder) as address:
        yield address


@pytest.fixture(params=[(1280, "light"), (375, "dark")], ids=["wide", "narrow"])
def page(request, browser, address):
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}/#models")
    page.wait_for_selector(".detail h2")
    yield page
    assert said == []
    context.close()


def test_an_experiment_is_chosen_and_read(page):
    page.get_by_label("Filter by name, data set or encoding").fill("grch38 rope")
    assert page.locator(".entries a").count() == 1
    page.locator(".entries a").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("h2:focus:has-text('genome')")
    assert re.search(r"#models/[0-9a-f]{12}$", page.url)
    text = page.locator(".detail").inner_text()
    assert "the intervals over seeds and over pieces exclude 0" in text
    assert "\u22120.0052 (\u22120.0079 to \u22120.0025)" in text  # bits/base, as the report's nats/token
    page.get_by_label("Unit").select_option("nats")
    text = page.locator(".detail").inner_text()
    assert "\u22120.0216 (\u22120.0327 to \u22120.0105)" in text
    assert "6.1992 ± 0.0031" in text
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_run_that_trains_grows(page, folder):
    log = folder / "runs" / "live" / "pope-seed0" / "logs" / "version_0" / "metrics.csv"
    log.write_text(BEFORE)
    page.locator(".entries a", has_text="live").click()
    page.wait_for_selector("h2:has-text('live')")
    page.wait_for_selector(".detail >> text=step 10 of 100")
    assert "report.json cannot be read" in page.locator(".problems").inner_text()
    chart = page.get_by_role("application").first
    chart.focus()
    told = page.locator(".told").first
    page.keyboard.press("End")
    assert told.inner_text() == "pope-seed0, validation: 3.6000 nats/token at step 10"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    assert told.inner_text() == "pope-seed0, training: 3.9800 nats/token at step 1"
    log.write_text(BEFORE + "11,11,3.5,\n")
    page.wait_for_selector(".detail >> text=step 11 of 100", timeout=15_000)  # the list knows it a request earlier
    page.keyboard.press("End")  # the chart has kept the focus
    assert told.inner_text() == "pope-seed0, training: 3.5000 nats/token at step 11"
    page.locator("summary", has_text="Values as a table").first.click()
    page.locator(".values tbody tr").first.wait_for()  # it is filled when it has opened
    assert page.locator(".values tbody tr").count() == 11


def test_everything_has_a_name(page):
    page.wait_for_selector("text=Models that come with seqpope")
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, select, a, [tabindex='0'], img, progress")]
            .filter((one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim() || one.alt))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    page.locator(".shipped summary").first.click()
    assert "0.3252 nats/token" in page.locator(".shipped").inner_text()
