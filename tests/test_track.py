"""The page of a region: what it holds, that it holds no more and loads nothing, and what a browser makes of it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from seqpope.cli import main
from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.sequences import ArrayGenome, as_text
from seqpope.domains.genome.tracks import Place, TrackError
from seqpope.track import ASSETS, COLOURS, IGV, LIMIT, Score, build_page, unpack, write_page

LENGTH = 3000
REGION = "chr1:1,001-2,501"
START, END = 1000, 2501
GAP = slice(1200, 1260)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    codes = np.random.default_rng(0).integers(1, 5, LENGTH).astype(np.uint8)
    codes[1500:1700] |= 8
    codes[GAP] = 0
    return codes


@pytest.fixture(scope="module")
def genome(codes) -> ArrayGenome:
    return ArrayGenome({"chr1": codes, "chr2": codes[:50]})


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """Two models' nats a base, (2, L), nan where the sequence is not known."""
    values = np.random.default_rng(1).gamma(2, 0.7, (2, LENGTH))
    values[:, GAP] = np.nan
    return values


@pytest.fixture(scope="module")
def files(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("track")
    for name, each in zip(("pope", "rope"), values, strict=True):
        lines = [f"chr1\t{i}\t{i + 1}\t{v:.7g}\n" for i, v in enumerate(each) if v == v]
        (folder / f"{name}.bedgraph").write_text("".join(lines))
    said = {"model": {"checkpoint": "/home/someone/runs/a/best.safetensors", "position": "pope"}, "date": None}
    (folder / "pope.bedgraph.json").write_text(json.dumps(said))
    (folder / "genes.bed").write_text(
        "chr1\t500\t1900\tFIRST\t0\t+\nchr1\t2000\t2100\t<img src=http://example.org/x.png onerror=alert(1)>\n"
        "chr1\t2600\t2700\tBEHIND\n"
    )
    (folder / "scored.vcf").write_text(
        '##fileformat=VCFv4.2\n##INFO=<ID=SP_DLL,Number=A,Type=Float,Description="x">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t1801\trs1\tA\tC,G\t.\t.\tSP_DLL=-1.5,2.25\nchr1\t1901\t.\tA\tC\t.\t.\tSP_DLL=.\n"
        "chr1\t2800\trs9\tA\tC\t.\t.\tSP_DLL=3\n"
    )
    return folder


@pytest.fixture(scope="module")
def page(files, genome):
    """A page with everything in it."""
    out = files / "page.html"
    write_page(
        out,
        [files / "pope.bedgraph", files / "rope.bedgraph"],
        genome,
        REGION,
        names=("PoPE", "RoPE"),
        bed=[files / "genes.bed"],
        vcf=files / "scored.vcf",
        threshold=2.5,
    )
    return out


class Loads(HTMLParser):
    """What a page would load, and its policy."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.policy = ""
        self.runs: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "data", "srcset", "action", "poster")]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        if tag == "script" and given.get("type") in (None, "module", "text/javascript"):
            self.runs.append(given)


class TestPage:
    def test_loads_nothing_and_is_forbidden_to(self, page):
        found = Loads(page.read_text())
        assert found.loads == ["data:,"]
        policy = dict(part.strip().split(" ", 1) for part in found.policy.split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["img-src"] == "data:"
        assert set(policy) == {"default-src", "script-src", "style-src", "img-src"}
        nonce = re.fullmatch(r"'nonce-(\w{16,})'", policy["script-src"])
        assert nonce is not None
        assert [run.get("nonce") for run in found.runs] == [nonce[1]]
        assert "@import" not in page.read_text()
        assert "url(" not in page.read_text()

    def test_holds_the_region_and_no_base_more(self, page, codes):
        held = unpack(page.read_text())
        assert (held["contig"], held["start"], held["end"], held["length"]) == ("chr1", START, END, LENGTH)
        assert held["sequence"] == as_text(codes[START:END])
        text = page.read_text().split('id="content">')[1].split("</script>")[0]
        packed = json.loads(text)["sequence"]
        assert gzip.decompress(base64.b64decode(packed)).decode().split("\n")[0] == ">chr1:1001-2501 @len=3000"
        assert "BEHIND" not in text
        assert "rs9" not in text
        for track in held["tracks"]:
            for feature in track.get("features", []):
                assert START <= feature["start"] < feature["end"] <= END

    def test_values_come_back(self, page, values):
        tracks = unpack(page.read_text())["tracks"]
        assert [t["name"] for t in tracks[:3]] == ["PoPE", "RoPE", "PoPE − RoPE"]  # noqa: RUF001
        for track, each in zip(tracks, values, strict=False):
            np.testing.assert_allclose(track["values"], each[START:END], atol=0.0005001)
            assert np.isnan(track["values"][GAP.start - START : GAP.stop - START]).all()

    def test_runs_above_the_threshold(self, page, values):
        tracks = {t["name"]: t for t in unpack(page.read_text())["tracks"] if t["kind"] == "above"}
        assert list(tracks) == ["PoPE > 2.5", "RoPE > 2.5"]
        for track, each in zip(tracks.values(), values, strict=True):
            marked = np.zeros(LENGTH, bool)
            for start, end in np.reshape(track["runs"], (-1, 2)):
                marked[start:end] = True
            np.testing.assert_array_equal(marked[START:END], each[START:END] > 2.5)

    def test_features_and_variants(self, page):
        tracks = {t["name"]: t for t in unpack(page.read_text())["tracks"]}
        gene = tracks["genes"]["features"][0]
        assert (gene["start"], gene["end"], gene["whole"]) == (START, 1900, "chr1:501-1,900")
        variants = tracks["scored"]["features"]
        assert [(v["start"], v["change"], v["color"]) for v in variants] == [
            (1800, "A>C", COLOURS[1]),
            (1800, "A>G", COLOURS[0]),
            (1900, "A>C", "#888888"),
        ]
        assert tracks["scored: SP_DLL"]["points"] == [[1800, -1.5, "rs1 A>C"], [1800, 2.25, "rs1 A>G"]]

    def test_legend_tells_what_the_scores_are(self, page, values):
        legend = page.read_text().split('class="legend"')[1].split("</div>")[0]
        for word in (f"{np.nanmean(values[0, START:END]):.4f}", "1,441 of 1,501", "position pope", "2.5 nats"):
            assert word in legend
        assert "a/best.safetensors" in legend
        assert "someone" not in page.read_text()

    def test_the_same_input_gives_the_same_page(self, page, files, genome):
        again = files / "again.html"
        scores = [files / "pope.bedgraph", files / "rope.bedgraph"]
        more = {"bed": [files / "genes.bed"], "vcf": files / "scored.vcf", "threshold": 2.5}
        write_page(again, scores, genome, REGION, names=("PoPE", "RoPE"), **more)
        assert again.read_bytes() == page.read_bytes()

    def test_bits(self, files, genome, values):
        told = write_page(files / "bits.html", [files / "pope.bedgraph"], genome, "chr1:1001-1001", bits=True)
        track = unpack((files / "bits.html").read_text())["tracks"][0]
        np.testing.assert_allclose(track["values"], values[:1, START] / np.log(2), atol=0.0005001)
        assert "bits/base" in told
        assert track["name"] == "pope"

    @pytest.mark.parametrize("largest", [32.767, 32.768, 5000.0])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_large_values_take_more_bytes(self, largest, sign):
        values = np.array([0.0, np.nan, sign * largest, -0.0005])
        page = build_page(Place("c", 5, 9), 20, "ACGT", [Score("s", values, {})])
        track = unpack(page)["tracks"][0]
        np.testing.assert_allclose(track["values"], values, atol=0.0005001)
        assert track["bytes"] == (2 if largest < 32.768 else 4)

    def test_markup_in_names_stays_text(self):
        evil = "</script><script>alert(1)</script>{{igv}}<!--"
        page = build_page(Place("c", 0, 1), 1, "A", [Score(evil, np.ones(1), {"model": evil})])
        assert len(Loads(page).runs) == 1
        assert unpack(page)["tracks"][0]["name"] == evil
        assert "alert(1)</script>" not in page

    def test_the_library_is_the_one_that_its_licence_names(self, page):
        text = (ASSETS / "igv.LICENSE.txt").read_text()
        code = gzip.decompress((ASSETS / "igv.min.js.gz").read_bytes())
        assert f"igv {IGV}," in text
        assert hashlib.sha256(code).hexdigest() in text
        assert "Broad Institute" in page.read_text()


class TestWhatScoreWrote:
    @pytest.fixture
    def scored(self, tmp_path):
        def write(value):
            (tmp_path / "a.bedgraph").write_text("chr2\t0\t50\t2\n")
            (tmp_path / "a.bedgraph.json").write_text(json.dumps({"settings": {"value": value}}))
            return tmp_path / "a.bedgraph"

        return write

    def test_bits_are_no_nats(self, scored, genome):
        path = scored("bits")
        assert "nats/base: a 1.3863" in write_page(path.with_name("p.html"), [path], genome, "chr2")
        assert "bits/base: a 2.0000" in write_page(path.with_name("p.html"), [path], genome, "chr2", bits=True)

    def test_a_spread_is_no_likelihood(self, scored, genome):
        path = scored("spread")
        write_page(path.with_name("p.html"), [path], genome, "chr2")
        text = path.with_name("p.html").read_text()
        assert "standard deviation over strands and phases" in text
        assert "&minus;log p:" not in text


class TestErrors:
    @pytest.mark.parametrize("name", ["pope.bedgraph", "genes.bed", "scored.vcf"])
    def test_what_is_read_is_not_written_over(self, files, genome, name):
        before = (files / name).read_bytes()
        options = {"bed": [files / "genes.bed"], "vcf": files / "scored.vcf"}
        with pytest.raises(TrackError, match="is what is read"):
            write_page(files / name, [files / "pope.bedgraph"], genome, REGION, **options)
        assert (files / name).read_bytes() == before

    def test_bed_files_of_one_name(self, files, genome, tmp_path):
        shutil.copy(files / "genes.bed", tmp_path)
        beds = [files / "genes.bed", tmp_path / "genes.bed"]
        with pytest.raises(TrackError, match="cannot be told apart"):
            write_page(tmp_path / "p.html", [files / "pope.bedgraph"], genome, REGION, bed=beds)

    def test_regions(self, files, genome):
        scores = [files / "pope.bedgraph"]
        out = files / "never.html"
        with pytest.raises(TrackError, match="no region"):
            write_page(out, scores, genome, "chr1:5", names=())
        with pytest.raises(SequenceError, match="chr7"):
            write_page(out, scores, genome, "chr7:1-5")
        with pytest.raises(TrackError, match="not inside"):
            write_page(out, scores, genome, "chr1:1-3001")
        with pytest.raises(TrackError, match="no value in chr2:1-50"):
            write_page(out, scores, genome, "chr2")
        with pytest.raises(TrackError, match="no value in chr1:1,201-1,260"):
            write_page(out, scores, genome, "chr1:1201-1260")
        huge = ArrayGenome({"chr1": np.zeros(LIMIT + 1, np.uint8)})
        with pytest.raises(TrackError, match=f"at most {LIMIT:,}"):
            write_page(out, scores, huge, "chr1")
        assert not out.exists()

    def test_names_and_thresholds(self, files, genome):
        scores = [files / "pope.bedgraph", files / "rope.bedgraph"]
        with pytest.raises(TrackError, match="2 scores and 1 names"):
            write_page(files / "never.html", scores, genome, REGION, names=("a",))
        with pytest.raises(TrackError, match="cannot be told apart"):
            write_page(files / "never.html", scores, genome, REGION, names=("a", "a"))

    def test_too_many_runs(self):
        values = np.tile([0.0, 1.0], 200_001)
        with pytest.raises(TrackError, match="raise --threshold"):
            build_page(Place("c", 0, len(values)), len(values), "A", [Score("s", values, {})], threshold=0.5)


def test_the_verb(files, codes, capsys):
    fasta = files / "genome.fa"
    fasta.write_text(f">chr1\n{as_text(codes)}\n")
    out = files / "verb" / "page.html"
    words = ["track", str(files / "pope.bedgraph"), str(files / "rope.bedgraph"), "--fasta", str(fasta)]
    words += ["--region", REGION, "--out", str(out), "--names", "PoPE,RoPE", "--bed", str(files / "genes.bed")]
    assert main(words) == 0
    assert "chr1:1,001-2,501" in capsys.readouterr().out
    assert unpack(out.read_text())["sequence"] == as_text(codes[START:END])
    assert main([*words[:4], str(fasta), "--region", "chr1:9-2", "--out", str(out)]) == 1
    assert "not inside chr1" in capsys.readouterr().err


def until(view, expression, expected):
    """Wait for what an expression gives (Playwright's own waiting needs eval, which the page forbids)."""
    for _ in range(100):
        found = view.evaluate(expression)
        if found == expected:
            return
        view.wait_for_timeout(100)
    raise AssertionError(f"{expression} is still {found!r}, not {expected!r}")


def clicked(view, name, at):
    """What the popups say after a click on a track's base."""
    middle = """async ([name, at]) => {
        await seqpope.go(at - 20, at + 21);
        const {trackView} = seqpope.browser.findTracks(track => track.name === name)[0];
        const box = trackView.viewports[0].viewportElement.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + 0.9 * box.height];
    }"""
    view.mouse.click(*view.evaluate(middle, [name, at]))
    popups = 'document.getElementById("igv").shadowRoot.querySelectorAll(".igv-ui-popover")'
    shown = f"[...{popups}].filter(popup => popup.offsetParent).map(popup => popup.innerText)"
    for _ in range(20):  # igv.js waits half a second for a second click
        view.wait_for_timeout(100)
        if found := view.evaluate(shown):
            break
    view.evaluate(f"for (const popup of {popups}) popup.firstChild.lastChild.click()")  # their crosses
    return [" ".join(text.split()) for text in found]


@pytest.mark.parametrize(("width", "scheme"), [pytest.param(1280, "light", marks=pytest.mark.slow), (390, "dark")])
def test_in_a_browser(browser, page, values, width, scheme):
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(page.as_uri())
    view.wait_for_selector("#told.ready, #told.failed", timeout=60_000)
    bases = 'document.getElementById("told").textContent.split(" ")[0]'
    until(view, bases, "1,501")
    assert view.evaluate("document.documentElement.scrollWidth") <= width

    # The page's own buttons and keys stay within the region.
    view.click("[data-move=in]")
    until(view, bases, "751")
    view.focus("#tracks")
    for _ in range(4):
        view.keyboard.press("ArrowRight")
        view.wait_for_timeout(200)
    until(view, 'seqpope.browser.currentLoci().split("-")[1]', str(END))
    view.keyboard.press("Home")
    until(view, bases, "1,501")

    # A click on a bar tells the file's value; where there is none, nothing.
    for name, each in zip(("PoPE", "RoPE"), values, strict=True):
        (told,) = clicked(view, name, 1800)
        position, value = re.fullmatch(r"Position: ([\d,]+) Value: ([\d.]+)", told).groups()
        assert position == "1,801"
        assert float(value) == pytest.approx(each[1800], abs=0.0006)
        assert clicked(view, name, GAP.start + 30) == []

    # Beyond the region, and after names that nothing knows, there is still nothing to ask the network for.
    for place in ("chr1:1-900", "FIRST", "NOBODY"):
        view.evaluate("place => seqpope.browser.search(place)", place)
        view.wait_for_timeout(200)
    assert view.evaluate("seqpope.browser.currentLoci()").startswith("chr1:")
    assert said == []
    assert asked == [page.as_uri()]
    view.close()
