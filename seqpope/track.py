"""The verb `track`: scores of a region as one HTML page that opens from disk, igv.js and all data inside.

The page asks the network for nothing, and its content security policy forbids it to. Scores are embedded base by
base as whole thousandths; what a pixel shows (the mean of its bases) is worked out in the page.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqpope.domains.genome.sequences import Genome, as_text
from seqpope.domains.genome.tracks import (
    DELTA,
    Feature,
    Place,
    Report,
    TrackError,
    Variant,
    parse_place,
    read_features,
    read_scores,
    read_variants,
    runs_above,
)
from seqpope.files import write_text

ASSETS = Path(__file__).parent / "assets"
IGV = "3.8.10"
LIMIT = 2_000_000  # bases; a page of so many is about 5 MB with one score
RUNS = 200_000  # intervals above the threshold, over all scores
PARTS = 1000  # steps of a nat or bit in which values are embedded
GAP = {np.dtype("<i2"): -(1 << 15), np.dtype("<i4"): -(1 << 31)}
# Told apart in either scheme, and by eyes that tell red and green poorly (after Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LIKELIER, LESS_LIKELY, NOT_SCORED = "#0072b2", "#d55e00", "#888888"
SPREAD = "standard deviation over strands and phases"  # what `score --value spread` writes
_SAID = ("description", "model", "protocol", "settings", "date")  # of a score's header or the JSON beside it


class Score(NamedTuple):
    """A score of the region: what it is called, one value a base (nan without), and what is said of it."""

    name: str
    values: np.ndarray
    said: Mapping[str, str]


def write_page(
    out: Path,
    scores: Sequence[Path],
    genome: Genome,
    region: str,
    *,
    names: Sequence[str] = (),
    bed: Sequence[Path] = (),
    vcf: Path | None = None,
    threshold: float | None = None,
    bits: bool = False,
    report: Report | None = None,
) -> str:
    """Read what files say of a region and write the page; returns what there is to tell.

    Args:
        names: What to call each score; the name in its header or its file's if not given.
        threshold: Of the unit shown; each score's runs above it are a track of their own.
        bits: Show bits, not nats.

    Raises:
        TrackError: the region is too long, or a file does not fit it.
        SequenceError: there is no such contig.
    """
    if names and len(names) != len(scores):
        raise TrackError(f"there are {len(scores)} scores and {len(names)} names: expected one each")
    for path in (*scores, *bed, *([vcf] if vcf is not None else []), getattr(genome, "path", None)):
        if path is not None and Path(out).resolve() == Path(path).resolve():
            raise TrackError(f"{path} is what is read: writing there would destroy it, choose another --out")
    if len({_stem(path) for path in bed}) < len(bed):
        told = ", ".join(map(str, bed))
        raise TrackError(f"BED files of one name ({told}) cannot be told apart: copy or link one by another name")
    place = parse_place(region, genome)
    if place.end - place.start > LIMIT:
        raise TrackError(
            f"{place} has {place.end - place.start:,} bases: expected at most {LIMIT:,} in a page, "
            "name a shorter region"
        )
    read = []
    for number, path in enumerate(scores):
        values, header = read_scores(path, genome, place, report)
        settings = _sidecar(path).get("settings")
        value = settings.get("value") if isinstance(settings, dict) else None
        if value == "bits":
            values = values * math.log(2)
        name = names[number] if names else header.pop("name", "") or _stem(path)
        said = {key: header[key] for key in _SAID if key in header} | _said_beside(path)
        if value == "spread":
            said["description"] = SPREAD
        read.append(Score(name, values / math.log(2) if bits else values, said))
    if len({score.name for score in read}) < len(read):
        told = ", ".join(score.name for score in read)
        raise TrackError(f"scores of one name ({told}) cannot be told apart: give --names")
    page = build_page(
        place,
        genome.contigs[place.contig],
        as_text(genome.fetch(place.contig, place.start, place.end)),
        read,
        features={_stem(path): read_features(path, genome, place, report) for path in bed},
        variants=None if vcf is None else (_stem(vcf), read_variants(vcf, genome, place, report)),
        threshold=threshold,
        unit="bits" if bits else "nats",
    )
    write_text(out, page)
    scored = ", ".join(f"{s.name} {np.nanmean(s.values):.4f}" for s in read)
    return f"{place}, mean {'bits' if bits else 'nats'}/base: {scored}; {len(page.encode()) / 1e6:.1f} MB"


def build_page(
    place: Place,
    length: int,
    sequence: str,
    scores: Sequence[Score],
    *,
    features: Mapping[str, Sequence[Feature]] | None = None,
    variants: tuple[str, Sequence[Variant]] | None = None,
    threshold: float | None = None,
    unit: str = "nats",
) -> str:
    """The page's text; of the same input always the same.

    Args:
        length: Of the contig.
        sequence: The region's bases as letters.
        features: A track each.
        variants: A track's name and what is on it.
    """
    tracks: list[dict[str, Any]] = []
    for score, colour in zip(scores, _colours(len(scores)), strict=True):
        tracks.append({"kind": "score", "name": score.name, "colour": colour, **_packed(score.values)})
    if len(scores) == 2:
        name = f"{scores[0].name} − {scores[1].name}"  # noqa: RUF001 - a minus sign is meant
        tracks.append({"kind": "difference", "name": name, "colour": COLOURS[0], "other": COLOURS[1]})
    if threshold is not None:
        tracks += _above(place, scores, threshold, unit)
    if variants is not None:
        tracks += _variant_tracks(place, *variants)
    for name, found in (features or {}).items():
        tracks.append({"kind": "features", "name": name, "features": [_as_igv(place, f) for f in found]})
    content = {
        "contig": place.contig,
        "start": place.start,
        "end": place.end,
        "length": length,
        "parts": PARTS,
        "unit": unit,
        "threshold": threshold,
        "sequence": _base64(f">{place.contig}:{place.start + 1}-{place.end} @len={length}\n{sequence}\n".encode()),
        "tracks": tracks,
    }
    licence = (ASSETS / "igv.LICENSE.txt").read_text(encoding="utf-8")
    filled = {
        "title": html.escape(f"{place} in {unit} per base"),
        "place": html.escape(str(place)),
        "legend": _legend(place, scores, variants is not None, threshold, unit),
        "igv_version": IGV,
        "licence": html.escape(licence),
        "content": json.dumps(content, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c"),
        "igv": base64.b64encode((ASSETS / "igv.min.js.gz").read_bytes()).decode(),
    }
    text = (ASSETS / "track.html").read_text(encoding="utf-8")
    # Scripts run only with this word: nothing that a file's names could smuggle in knows it.
    filled["nonce"] = hashlib.sha256((text + filled["content"]).encode()).hexdigest()[:32]
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], text)


def unpack(text: str) -> dict[str, Any]:
    """What a page holds, read back; "sequence" as letters, each score's "values" as (L,) fp64 with nan."""
    start = text.index('id="content">') + len('id="content">')
    content = json.loads(text[start : text.index("</script>", start)])
    content["sequence"] = gzip.decompress(base64.b64decode(content["sequence"])).decode().split("\n")[1]
    for track in content["tracks"]:
        if track["kind"] == "score":
            codes = np.frombuffer(gzip.decompress(base64.b64decode(track.pop("data"))), f"<i{track['bytes']}")
            track["values"] = np.where(codes == GAP[codes.dtype], np.nan, codes / PARTS)
    return content


def _base64(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def _packed(values: np.ndarray) -> dict[str, Any]:
    """Values as whole thousandths, of two bytes or, where one is beyond 32, of four; the lowest is a gap."""
    known = ~np.isnan(values)
    rounded = np.round(np.where(known, values, 0) * PARTS)
    largest = float(np.abs(rounded).max(initial=0))
    if largest > (1 << 31) - 1:
        raise TrackError(f"a value of {largest / PARTS:.3g} is no score a base: expected nats, a few to tens")
    dtype = np.dtype("<i2" if largest < 1 << 15 else "<i4")
    codes = np.where(known, rounded, GAP[dtype]).astype(dtype)
    return {"bytes": dtype.itemsize, "data": _base64(codes.tobytes())}


def _above(place: Place, scores: Sequence[Score], threshold: float, unit: str) -> list[dict[str, Any]]:
    """A track of each score's runs above the threshold."""
    runs = [runs_above(score.values, threshold) for score in scores]
    count = sum(len(run) for run in runs)
    if count > RUNS:
        raise TrackError(
            f"{count:,} intervals are above {threshold:g} {unit}: expected at most {RUNS:,}, raise --threshold "
            "or name a shorter region"
        )
    return [
        {
            "kind": "above",
            "name": f"{score.name} > {threshold:g}",
            "colour": colour,
            "runs": (run + place.start).reshape(-1).tolist(),
        }
        for score, run, colour in zip(scores, runs, _colours(len(scores)), strict=True)
    ]


def _variant_tracks(place: Place, name: str, variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Variants as features coloured by what the model says of them, and their numbers as points."""
    drawn, points = [], []
    for variant in variants:
        change = f"{variant.reference}>{variant.alternative}"
        delta = variant.delta
        feature = {
            "chr": place.contig,
            "start": variant.position,
            "end": min(variant.position + len(variant.reference), place.end),
            "name": change if len(change) <= 12 else f"{change[:11]}…",
            "color": NOT_SCORED if delta is None else LIKELIER if delta >= 0 else LESS_LIKELY,
            "change": change,
        }
        if variant.name:
            feature["id"] = variant.name
        feature[DELTA] = "not scored" if delta is None else f"{delta:.4f} nats"
        drawn.append(feature)
        if delta is not None:
            points.append([variant.position, round(delta, 4), f"{variant.name} {change}".strip()])
    tracks: list[dict[str, Any]] = [{"kind": "features", "name": name, "features": drawn, "variants": True}]
    if points:
        tracks.insert(
            0,
            {
                "kind": "points",
                "name": f"{name}: {DELTA}",
                "points": points,
                "colour": LIKELIER,
                "other": LESS_LIKELY,
            },
        )
    return tracks


def _as_igv(place: Place, feature: Feature) -> dict[str, Any]:
    """A feature as igv.js draws it; where it was cut, its popup names the whole."""
    start, end, name, score, strand, thick, colour, blocks, whole = feature
    drawn: dict[str, Any] = {"chr": place.contig, "start": start, "end": end}
    drawn |= {key: value for key, value in (("name", name), ("strand", strand)) if value}
    if score:
        drawn["info"] = score
    if colour:
        drawn["color"] = f"rgb({colour})"
    if thick is not None:
        drawn["cdStart"], drawn["cdEnd"] = thick
    if blocks:
        drawn["exons"] = [{"start": a, "end": b} for a, b in blocks]
    if whole != (start, end):
        drawn["whole"] = str(Place(place.contig, *whole))
    return drawn


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _stem(path: Path) -> str:
    """A file's name without what it ends in."""
    name = Path(path).name
    for ending in (".gz", ".bgz", ".bedgraph", ".bedGraph", ".bdg", ".bigwig", ".bigWig", ".bw", ".bed", ".vcf"):
        name = name.removesuffix(ending)
    return name


def _sidecar(path: Path) -> dict[str, Any]:
    """The JSON beside a score, of whose making it tells; {} if there is none."""
    try:
        said = json.loads(Path(f"{path}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _said_beside(path: Path) -> dict[str, str]:
    """What the JSON beside a score says, in words."""
    said = _sidecar(path)
    return {key: words for key in _SAID if (words := _in_words(said.get(key)))}


def _in_words(value: Any) -> str:
    """A value of JSON in a line; of paths the last two parts, for pages travel, of checksums enough to compare."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {words}" for key, v in value.items() if (words := _in_words(v)))
    if isinstance(value, list):
        return ", ".join(filter(None, map(_in_words, value)))
    if value is None:
        return ""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,}", value):
        return value[:12]
    if isinstance(value, str) and "/" in value:
        return "/".join(Path(value).parts[-2:])
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _sign_told(scores: Sequence[Score]) -> str:
    """What high and low mean, as far as the values' signs tell."""
    if any(score.said.get("description") == SPREAD for score in scores):
        return f"A {SPREAD} is high where the model does not agree with itself."
    if all(np.nanmin(score.values) >= 0 for score in scores):
        return "They are &minus;log p: the higher, the less the model expected the base."
    if all(np.nanmax(score.values) <= 0 for score in scores):
        return "They are log p: the lower, the less the model expected the base."
    return "They have either sign."


def _legend(place: Place, scores: Sequence[Score], variants: bool, threshold: float | None, unit: str) -> str:
    """A table of the scores, and what is to be known to read the page."""
    rows = []
    for score, colour in zip(scores, _colours(len(scores)), strict=True):
        known = int((~np.isnan(score.values)).sum())
        said = "; ".join(value if key == "description" else f"{key}: {value}" for key, value in score.said.items())
        rows.append(
            f'<tr><th scope="row"><i style="background:{colour}"></i>{html.escape(score.name)}</th>'
            f"<td>{np.nanmean(score.values):.4f}</td><td>{known:,} of {place.end - place.start:,}</td>"
            f"<td>{html.escape(said) or 'nothing said beside the file'}</td></tr>"
        )
    notes = [
        f"One value a base, in {unit}, on one axis for all scores; embedded in steps of {1 / PARTS:g} {unit}.",
        _sign_told(scores),
        "Where a pixel spans several bases its bar is their mean (the track's gear: highest, lowest, letters). "
        "No bar: no value, as where the sequence is N.",
    ]
    if len(scores) == 2:
        first, second = (html.escape(score.name) for score in scores)
        notes.append(
            f"The difference is {first} less {second}, in the colour of the one that is higher, where both have "
            "a value."
        )
    if threshold is not None:
        notes.append(f"Marked under the scores: unbroken runs of bases above {threshold:g} {unit}.")
    if variants:
        notes.append(
            f"{DELTA} is log p(alternative) &minus; log p(reference) in nats: "
            f'<i style="background:{LIKELIER}"></i>the alternative is likelier, '
            f'<i style="background:{LESS_LIKELY}"></i>less likely, '
            f'<i style="background:{NOT_SCORED}"></i>not scored.'
        )
    notes.append(
        "Only this region is in the page; beyond it there is nothing to see. Features are cut at its ends."
    )
    return (
        f"<table><thead><tr><th>score</th><th>mean {unit}/base</th><th>bases</th><th>made with</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table><p>{' '.join(notes)}</p>"
    )
