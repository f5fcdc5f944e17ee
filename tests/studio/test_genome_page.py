"""The page of genomes in a browser: a region from its name to files of what was found, by pointer and by keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

WAIT = 60_000  # milliseconds that a job may take on a loaded machine


@contextmanager
def opened(browser, address, **options) -> Iterator:
    """A page that fails the test if it says an error or asks another server for anything."""
    context = browser.new_context(accept_downloads=True, **options)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    # What the server refuses is told in words; the browser writes a line of its own.
    page.on(
        "console", lambda said: wrong.append(said.text) if said.type == "error" and "40" not in said.text else 0
    )
    page.on(
        "request",
        lambda asked: wrong.append(asked.url) if not asked.url.startswith((address, "data:", "blob:")) else 0,
    )
    page.goto(f"{address}/#genome")
    yield page
    context.close()
    assert wrong == []


def saved(page, name) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).click()
    return download.value.path().read_text()


def name_region(page, text):
    page.get_by_label("Region or gene").fill(text)
    page.locator(".means", has_text=text).wait_for()


def test_a_region_is_scored_marked_and_saved(browser, genome_studio):
    with opened(browser, genome_studio, viewport={"width": 375, "height": 800}) as page:
        field = page.get_by_label("Region or gene")
        page.locator(".means:not(:empty)").wait_for()
        field.fill("abc")
        page.locator("#genes option[value=ABC1]").wait_for(state="attached")
        field.fill("ABC1")
        page.locator(".means", has_text="ABC1, chr3:100-400: 301 bases, 60 of them N").wait_for()
        field.press("Enter")
        page.get_by_text("nats per base over 241 bases (forward strand, 1 phase").wait_for()
        page.locator(".igv").wait_for()
        rows = [line.split("\t") for line in saved(page, "bedGraph").splitlines()]
        assert len(rows) == 241
        page.get_by_label("Nats per base above").fill("1.5")
        page.get_by_label("At least … bases").fill("1")
        above = [int(start) for _, start, _, value in rows if float(value) > 1.5]
        page.locator("output", has_text=re.compile(rf"runs, {len(above)} bases")).wait_for()
        marked = [line.split("\t") for line in saved(page, "BED").splitlines()]
        assert [at for _, start, end, *_ in marked for at in range(int(start), int(end))] == above
        page.locator(".runs tbody button").first.click()
        page.locator("output", has_text="bases in view").filter(has_not_text="301 bases").wait_for()
        assert saved(page, "FASTA of the region").startswith(">chr3:100-400\n")
        assert page.evaluate("document.documentElement.scrollWidth") == 375


@pytest.mark.slow
def test_mutations_and_a_continuation(browser, genome_studio):
    with opened(browser, genome_studio) as page:
        page.locator(".means:not(:empty)").wait_for()
        page.get_by_label("Window").fill("chr3:299-301")
        page.get_by_role("button", name="Mutate").click()
        rows = saved(page, "TSV").splitlines()
        assert len(rows) == 2 + 6
        page.locator(".heat g").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        said = page.locator(".told").inner_text()
        assert said.startswith("chr3:300 ")
        assert "the genome" in said or "nats" in said
        page.get_by_label("Begin with").select_option("typed")
        page.get_by_label("Bases to continue").fill("acgtacgt")
        page.get_by_label("Bases to draw").fill("30")
        page.get_by_label("Forbidden sites").fill("NoSuchEnzyme")
        page.get_by_role("button", name="Continue").click()
        page.get_by_role("alert").get_by_text("NoSuchEnzyme").wait_for()
        page.get_by_label("Forbidden sites").fill("EcoRI")
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("30 bases drawn behind 8").wait_for()
        header, sequence = saved(page, "FASTA").splitlines()
        assert "length=38" in header
        assert re.fullmatch("ACGTACGT[ACGT]{30}", sequence)


@pytest.mark.slow
def test_what_is_no_region_is_told_and_a_job_is_stopped_while_another_waits(browser, genome_studio):
    with opened(browser, genome_studio) as page, opened(browser, genome_studio) as other:
        for each in (page, other):
            each.locator(".means:not(:empty)").wait_for()
        page.get_by_label("Region or gene").fill("<b>chr77:1-2")
        page.get_by_role("button", name="Score", exact=True).click()
        page.get_by_role("alert").get_by_text("no contig '<b>chr77'").wait_for()
        name_region(page, "chr3:1,001-21,000")
        page.get_by_label("Phases").select_option("6")
        page.get_by_role("button", name="Score", exact=True).click()
        page.get_by_text("working").or_(page.get_by_text(" left")).first.wait_for()
        name_region(other, "chr4:1-60")
        other.get_by_role("button", name="Score", exact=True).click()
        other.get_by_text("1 job before this one").wait_for()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("cancelled").wait_for()
        other.get_by_text("nats per base over 60 bases").wait_for()


@pytest.mark.slow
def test_without_a_genome_it_says_how_to_make_one(browser, studio):
    with opened(browser, studio) as page:
        page.get_by_text("seqpope prepare genome --source").wait_for()
        assert page.get_by_label("Bases to continue").is_visible()


def test_all_controls_have_names(browser, genome_studio):
    with opened(browser, genome_studio, color_scheme="dark") as page:
        page.locator(".means:not(:empty)").wait_for()
        for control in page.locator("main input, main select, main textarea, main button").all():
            named = "e => !!(e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.textContent).trim()"
            assert control.evaluate(named), control.evaluate("e => e.outerHTML")
