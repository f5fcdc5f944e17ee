"""The verb `compare`, and the report that ends an experiment: its text, and everything written together."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from seqpope.errors import SeqpopeError
from seqpope.figures import draw_extrapolation, draw_loss, draw_position, in_words
from seqpope.files import write_bytes, write_text
from seqpope.markdown import table
from seqpope.results import (
    ALL,
    IN_BITS,
    LENGTHS,
    READS,
    TOLD_BY_ACCURACY,
    analyse,
    analyse_lengths,
    check_comparable,
    find_lengths,
    group_by_position,
    load_lengths,
    load_results,
    precision_of,
    recipe,
    seed_of,
)
from seqpope.statistics import Estimate

# arXiv 2509.10534, table 2: test nats/token by the paper's protocol.
PUBLISHED = {"jsb": {"pope": 0.4889, "rope": 0.5081}}
PAPER_WINDOW = 2048


_aligned = functools.partial(table, aligned=True)


def _spread(e: dict[str, Any], digits: int = 4) -> str:
    return f"{e['mean']:.{digits}f}" + (f" ± {e['sd']:.{digits}f}" if e["sd"] is not None else "")


def markdown(
    results: list[dict[str, Any]], analysis: dict[str, Any], differing: dict[str, dict[str, list[Any]]]
) -> str:
    """The report as Markdown: protocol, means, baselines, paired differences, runs, recipe."""
    first = results[0]
    encodings = analysis["encodings"]
    parts = [
        f"# {first['dataset']}: {' against '.join(encodings)}",
        _protocol_text(results),
        *_recipes_text(differing),
        _means_table(first, analysis),
        _legend(first, encodings),
        *_baselines_text(first, encodings),
        *_references_text(first, analysis),
    ]
    if first["dataset"] in PUBLISHED and first["split"] == "test":
        window = first["protocol"]["window"]
        figures = ", ".join(f"{p} {v}" for p, v in PUBLISHED[first["dataset"]].items())
        parts.append(
            f"Published (arXiv 2509.10534, test nats/token; nearest to the paper's protocol here): {figures}. The "
            "paper says neither whether first tokens count nor what happens past 2048 tokens; its recipe has no "
            "augmentation."
            + ("" if window == PAPER_WINDOW else f" Its windows are {PAPER_WINDOW} tokens, these are {window}.")
        )
    parts.append("## Paired differences")
    parts += [_difference_text(difference) for difference in analysis["differences"]]
    if len(analysis["differences"]) > 1:
        parts.append(f"The intervals are not corrected for {len(analysis['differences'])} comparisons.")
    if not analysis["differences"]:
        parts.append("One encoding alone: nothing to compare with.")
    settings = yaml.safe_dump(recipe(first["config"]), sort_keys=False, allow_unicode=True).rstrip()
    parts += [
        "## Runs",
        _runs_table(results),
        _provenance_text(results),
        "## Recipe",
        *([f"That of {_run_names(results)[0]}; what differs in others stands at the top."] if differing else []),
        f"```yaml\n{settings}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _protocol_text(results: list[dict[str, Any]]) -> str:
    first, protocol = results[0], results[0]["protocol"]
    seeds = {p: ", ".join(str(seed_of(r)) for r in group) for p, group in group_by_position(results).items()}
    if len(set(seeds.values())) == 1:
        of_each = " of each encoding" if len(seeds) > 1 else ""
        numbers = next(iter(seeds.values()))
        seeds_text = f"Seed{'s' if ',' in numbers else ''} {numbers}{of_each}."
    else:
        seeds_text = f"Seeds: {'; '.join(f'{p} {numbers}' for p, numbers in seeds.items())}."
    reads = sorted({len(_reads(r)) for r in results})
    times = {0: "not logged", 1: "once a run"}.get(reads[0], f"{reads[0]} times a run")
    if len(reads) > 1:
        times = f"{reads[0]} to {reads[-1]} times a run"
    trained = _listed(precision_of(r) for r in results)
    unit = next((u for u in first["units"] if u in IN_BITS), None)

    def told(count: int, words: str = "") -> str:
        if unit is None:
            return f"{count}{words}"
        per = first["units"][unit]["count"] / first["tokens_scored"]
        return f"{count}{words} ({count * per:,.0f} {IN_BITS[unit]})"

    context = ""
    if unit is not None:
        least = told(protocol["window"] - protocol["stride"], " tokens")
        context = f" Past a piece's first window each token has at least {least} before it."
    return (
        f"Negative log-likelihood of the {first['split']} split: {told(first['tokens_scored'], ' tokens')} "
        f"of {len(first['documents'])} pieces, each scored once, in windows of {told(protocol['window'])} with "
        f"stride {told(protocol['stride'])}.{context} First token: {protocol.get('first_token', 'not told')}. "
        f"Padding is never a target. Scored in {protocol['precision']}, trained in {trained}. Weights: "
        f"{protocol.get('selection', 'not told')}; reads of the test split: {times}. {seeds_text}"
    )


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(sorted({str(v) for v in values}))


def _recipes_text(differing: dict[str, dict[str, list[Any]]]) -> list[str]:
    if not differing:
        return []
    lines = []
    for name, values in differing.items():
        each = "; ".join(f"{p} {' and '.join(map(_plain, group))}" for p, group in values.items())
        lines.append(f"- {name}: {each}")
    text = [
        "**These recipes differ: this is no comparison of twins**, and the differences below are not those of the "
        "encodings alone.\n\n" + "\n".join(lines)
    ]
    mixed = sorted({p for values in differing.values() for p, group in values.items() if len(group) > 1})
    if mixed:
        text.append(
            f"**Runs of {' and of '.join(mixed)} differ among themselves**: mean and spread below are not "
            "those of seeds of one recipe."
        )
    return text


def _plain(value: Any) -> str:
    return "not set" if value is None else str(value)


def _shown_strata(first: dict[str, Any]) -> list[str]:
    """Strata that say something: not empty, and not the whole split."""
    return [s for s, value in first["strata"].items() if 0 < value["tokens"] < first["tokens_scored"]]


def _truncated_name(first: dict[str, Any]) -> str:
    """What leaving out first tokens and later windows is called; with the paper's window it is the paper's way."""
    return "paper's protocol" if first["protocol"]["window"] == PAPER_WINDOW else "first window only"


def _means_table(first: dict[str, Any], analysis: dict[str, Any]) -> str:
    # Where baselines were measured stratum by stratum, strata have a table of their own.
    units, strata = list(first["units"]), [] if analysis["references"] else _shown_strata(first)
    accuracy = ["accuracy, %"] if first.get("domain") in TOLD_BY_ACCURACY else []
    head = ["encoding", "seeds", "nats/token", *accuracy, *map(_unit_head, units), *strata, _truncated_name(first)]
    rows = [
        [
            position,
            str(len(e["seeds"])),
            _spread(e["nats_per_token"]),
            *[_spread({**e["accuracy"], **_times(e["accuracy"], 100)}, 1) for _ in accuracy],
            *[_spread(_in_unit(e["units"][u], u), 3) for u in units],
            *[_spread(e["strata"][s]) for s in strata],
            _spread(e["paper_protocol"]) if e["paper_protocol"] else "",
        ]
        for position, e in analysis["encodings"].items()
    ]
    units_per_token = [
        value["count"] / first["tokens_scored"] * (math.log(2) if unit in IN_BITS else 1)
        for unit, value in first["units"].items()
    ]
    for name, value in analysis["baselines"].items():
        if value is not None:
            per_unit = [f"{value / per:.3f}" for per in units_per_token]
            rows.append([name, "", f"{value:.4f}", *["" for _ in accuracy], *per_unit, *[""] * len(strata), ""])
    return _aligned(head, rows)


def _unit_head(unit: str) -> str:
    return f"{'bits' if unit in IN_BITS else 'nats'}/{unit}"


def _in_unit(e: dict[str, Any], unit: str) -> dict[str, Any]:
    """An estimate in nats per unit as its column has it."""
    if unit not in IN_BITS:
        return e
    return {**e, **_times(e, 1 / math.log(2))}


def _times(e: dict[str, Any], factor: float) -> dict[str, float]:
    return {k: e[k] * factor for k in ("mean", "sd") if e[k] is not None}


def _references_text(first: dict[str, Any], analysis: dict[str, Any]) -> list[str]:
    """Every stratum beside what was measured on it, in bits where a unit is told in bits, and what follows."""
    found = analysis["references"]
    if not found:
        return []
    unit = next((u for u in first["units"] if u in IN_BITS), None)
    per_token = first["units"][unit]["count"] / first["tokens_scored"] if unit else 1.0
    scale, name = (1 / per_token / math.log(2), f"bits/{unit}") if unit else (1.0, "nats/token")
    shown = [ALL, *_shown_strata(first)]
    encodings = list(analysis["encodings"])
    by = {(r["stratum"], r["encoding"]): r for r in found}
    rows = []
    for stratum in shown:
        each = [by[stratum, p] for p in encodings]
        cells = [stratum, f"{each[0]['tokens']:,}"]
        if unit:
            cells.append(f"{each[0]['tokens'] * per_token:,.0f}")
        cells += [f"{r['nats_per_token'] * scale:.3f}" for r in each]
        cells += [f"{value * scale:.3f}" for value in each[0]["baselines"].values()]
        for r in each:
            mean, low, high = (r["difference"][part] * scale for part in ("mean", "low", "high"))
            cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
        rows.append(cells)
    head = ["tokens", *([IN_BITS[unit]] if unit else []), *encodings, *found[0]["baselines"]]
    claims = []
    for p in encodings:
        r = by[ALL, p]
        mean, low, high = (r["difference"][part] * scale for part in ("mean", "low", "high"))
        mark = "" if r["verdict"] == "beats" else "**"
        claims.append(
            f"- {mark}{p} {r['verdict']} {r['best']}, the best of them on all tokens: {mean:+.3f} {name} (95% "
            f"bootstrap over {r['documents']} pieces {low:+.3f} to {high:+.3f}).{mark}"
        )
    return [
        "## By stratum",
        f"In {name}, mean over seeds. Last the difference from the best of the measured baselines in that "
        "stratum, with a 95% bootstrap over pieces; below 0 the model is better. "
        + " ".join(first["references"]["text"]),
        _aligned(["stratum", *head, *(f"{p} - best" for p in encodings)], rows),
        "\n".join(claims),
    ]


def _legend(first: dict[str, Any], encodings: dict[str, Any]) -> str:
    one = [p for p, e in encodings.items() if len(e["seeds"]) == 1]
    parts = []
    if len(one) < len(encodings):
        parts.append("Mean over seeds ± sample standard deviation.")
    if one:
        parts.append(f"One seed of {' and of '.join(one)}: nothing is known of the spread over seeds.")
    strata = [(s, first["strata"][s]["tokens"]) for s in _shown_strata(first)]
    if strata and not first.get("references"):
        parts.append("; ".join(f"{s}: the {tokens} tokens of that kind" for s, tokens in strata) + ".")
    paper = first["paper_protocol"]
    parts.append(f"{_truncated_name(first).capitalize()}: {paper['definition']}, {paper['tokens']} tokens.")
    if any(value is not None for value in first["baselines"].values()):
        parts.append("Baselines are count tables of the training split, without augmented copies.")
    return " ".join(parts)


def _baselines_text(first: dict[str, Any], encodings: dict[str, Any]) -> list[str]:
    baselines = {name: value for name, value in first["baselines"].items() if value is not None}
    lines = []
    for position, e in encodings.items():
        mean = e["nats_per_token"]["mean"]
        beaten = [name for name, value in baselines.items() if mean < value]
        lost = [name for name in baselines if name not in beaten]
        if lost:
            lines.append(f"- **{position} does not beat: {'; '.join(lost)}.**")
        if beaten:
            lines.append(f"- {position} beats: {'; '.join(beaten)}.")
    return ["Against the baselines:\n\n" + "\n".join(lines)] if lines else []


def _run_names(results: list[dict[str, Any]]) -> list[str]:
    """Folder names; with the experiment's before them where two runs would be called alike."""
    folders = [Path(r["folder"]).resolve() for r in results]
    names = [folder.name for folder in folders]
    return [f"{f.parent.name}/{f.name}" if names.count(f.name) > 1 else f.name for f in folders]


def _runs_table(results: list[dict[str, Any]]) -> str:
    head = ["run", "encoding", "seed", "parameters", "best step", "validation", "test", "reads of test"]
    rows = []
    for name, result in zip(_run_names(results), results, strict=True):
        trained = result["trained"]
        validation = trained.get("validation_nats_per_token")
        rows.append(
            [
                name,
                result["position"],
                str(seed_of(result)),
                f"{result['parameters']:,}",
                str(trained.get("step", "")),
                "" if validation is None else f"{validation:.4f}",
                f"{result['nats_per_token']:.4f}",
                str(len(_reads(result)) or "not logged"),
                f"{trained['seconds'] / 60:.1f}" if "seconds" in trained else "",
            ]
        )
    return _aligned([*head, "minutes to best"], rows)


def _provenance_text(results: list[dict[str, Any]]) -> str:
    first = results[0]
    packages = dict.fromkeys(name for r in results for name in r["versions"])
    versions = [f"{name} {_listed(r['versions'].get(name, 'none') for r in results)}" for name in packages]
    dates = sorted({r["date"] for r in results})
    read_by: dict[str, int] = {}
    for read in (read for r in results for read in _reads(r)):
        key = str(read.get("commit") or "unknown")
        read_by[key] = read_by.get(key, 0) + 1
    reads = "; ".join(f"{commit} {count}" for commit, count in sorted(read_by.items())) or "not logged"
    return (
        f"Scored on: {'; '.join(sorted({r['device'] for r in results}))}. "
        f"Commit: {_listed(r['commit'] or 'unknown' for r in results)}. Reads of test by commit: {reads}. "
        f"{'; '.join(versions)}. Data {first['content'][:12]}, tokenizer {first['fingerprint'][:12]}. "
        f"Scored {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
    )


def _reads(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The run's logged reads of the test split; a line that cannot be read was a read too."""
    file = Path(result["folder"]) / READS
    reads = []
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else []:
        try:
            read = json.loads(line)
        except ValueError:
            read = None
        reads.append(read if isinstance(read, dict) else {})
    return reads


def _difference_text(difference: dict[str, Any]) -> str:
    text = f"{difference['a']} - {difference['b']}: "
    if difference["seeds"]:
        e = Estimate(**difference["over_seeds"])
        text += f"{e.mean:+.4f} nats/token over {e.n} seed{'s' if e.n > 1 else ''} "
        if e.low is None or e.high is None:
            text += "(no interval over seeds: one seed has no spread)"
        else:
            text += f"(95% t interval {e.low:+.4f} to {e.high:+.4f}; each: "
            text += ", ".join(f"{d:+.4f}" for d in difference["paired"]) + ")"
        p = difference["over_pieces"]
        interval = f"{p['low']:+.4f} to {p['high']:+.4f}"
        text += f"; over the {p['pieces']} pieces, these seeds given: 95% bootstrap {interval}. "
        if "detectable" in difference:
            text += (
                f"Smallest difference that so many seeds find four times in five: {difference['detectable']:.4f}. "
            )
        if difference["seeds_without_twin"]:
            alone = ", ".join(map(str, difference["seeds_without_twin"]))
            text += f"Not in it, having no twin: seed {alone}. "
    return text + difference["verdict"]


def compare(paths: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Put finished runs side by side; write report.md, report.json and figures to `out` if given.

    Returns:
        The analysis with the Markdown text under "markdown".

    Raises:
        SeqpopeError: there are no runs, some are not finished, or they cannot be compared.
    """
    results = load_results(paths)
    differing = check_comparable(results)
    analysis = analyse(results, differing)
    text = markdown(results, analysis, differing)
    if out is not None:
        # Where a run lay on its machine is nobody's business; its pieces' NLLs stay in its own result.json.
        left_out = ("documents", "by_position", "references", "folder")
        kept = [{k: v for k, v in r.items() if k not in left_out} for r in results]
        for result in kept:
            result["config"] = recipe(result["config"])
        report = {**analysis, "recipes_differ_in": differing, "results": kept}
        write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
        write_text(out / "report.md", text)
        write_bytes(out / "position.png", draw_position(results))
        loss = draw_loss(results)
        if loss is not None:
            write_bytes(out / "loss.png", loss)
        else:  # one of an earlier report would be of other runs
            (out / "loss.png").unlink(missing_ok=True)
        folders = [Path(r["folder"]) for r in results]
        try:
            find_lengths(folders)
        except SeqpopeError:  # none that all runs have, or several to choose from
            for name in ("lengths.md", "lengths.json", "lengths.png"):
                (out / name).unlink(missing_ok=True)
        else:
            compare_lengths(folders, out)
    return {**analysis, "markdown": text}


def compare_lengths(paths: Sequence[Path], out: Path | None = None, name: str = LENGTHS) -> dict[str, Any]:
    """Put runs that were read in several lengths side by side; write lengths.md, .json and .png to `out`.

    Args:
        paths: folders of runs or of experiments.
        name: of the files that `seqpope evaluate --lengths` wrote, or its beginning (`results.find_lengths`).

    Returns:
        Estimates by encoding and length with the Markdown text under "markdown".

    Raises:
        SeqpopeError: a folder holds no such file, several are meant, or they cannot be compared.
    """
    results = load_lengths(paths, name)
    analysis = analyse_lengths(results)
    text = lengths_markdown(results, analysis)
    if out is not None:
        write_text(out / "lengths.json", json.dumps(analysis, indent=1) + "\n")
        write_text(out / "lengths.md", text)
        write_bytes(out / "lengths.png", draw_extrapolation(results))
    return {**analysis, "markdown": text}


def lengths_markdown(results: list[dict[str, Any]], analysis: dict[str, Any]) -> str:
    """NLL by length as Markdown: protocol, each length's own targets, the same targets at all lengths."""
    first, targets, protocol = results[0], analysis["targets"], analysis["protocol"]
    lengths, trained = protocol["lengths"], analysis["trained_length"]
    same = f"{targets['same_tokens']:,} tokens of {len(targets['same_documents'])} pieces"
    deep = f"{targets['same_tokens_second_half']:,}"
    if protocol["strides"] == lengths:
        windows = "side by side in a piece"
    else:
        windows = f"with strides of {', '.join(map(str, protocol['strides']))}"
    parts = [
        f"# {first['dataset']}: beyond the training length",
        f"Negative log-likelihood of the {first['split']} split in nats/token. Trained on windows of {trained} "
        f"tokens, read in windows of {', '.join(map(str, lengths))} {windows}, without fine-tuning. Scored in "
        f"{protocol['precision']}. Weights: best validation step. First token of a piece: scored, predicted "
        "from padding. Mean over seeds ± sample standard deviation.",
        "## The same targets at every length",
        f"The {same} that whole windows of {lengths[-1]} score, at every length. Second half: the {deep} of "
        "them that lie in the second half of a window at every length, so that each has at least half a window "
        "before it. Lengths are to be compared by this table.",
        _lengths_table(analysis, "same_targets"),
        *_length_differences(analysis),
        "## Each length's own targets",
        "All tokens of whole windows, and those of their second halves. Longer windows fit into fewer, longer "
        "pieces: down a column encodings are compared on the same targets, along a row targets change with the "
        "length.",
        _lengths_table(analysis, "own"),
        f"![NLL by position](lengths.png)\n\nScored on: {_listed(r['device'] for r in results)}. "
        f"Commit: {_listed(r['commit'] or 'unknown' for r in results)}. Data {first['content'][:12]}, "
        f"tokenizer {first['fingerprint'][:12]}.",
    ]
    return "\n\n".join(parts) + "\n"


def _length_differences(analysis: dict[str, Any]) -> list[str]:
    rows = []
    for difference in analysis["differences"]:
        names = f"{in_words(difference['a'])} - {in_words(difference['b'])}"
        for half, part in (("whole", "whole window"), ("second_half", "second half")):
            cells = []
            for each in difference["lengths"]:
                e = each[half]
                interval = f" ({e['low']:+.3f} to {e['high']:+.3f})" if e and e["low"] is not None else ""
                cells.append(f"{e['mean']:+.3f}{interval}" if e else "none")
            rows.append([names, str(len(difference["seeds"])), part, *cells])
    if not rows:
        return []
    head = ["difference", "seeds", "part", *(f"{length:,}" for length in analysis["protocol"]["lengths"])]
    return [
        "Differences on these targets, paired by seed, with 95% t intervals over seeds where there are two or "
        "more, not corrected for the number of comparisons:",
        _aligned(head, rows),
    ]


def _lengths_table(analysis: dict[str, Any], targets: str) -> str:
    head = ["encoding", "seeds", "part", *(f"{length:,}" for length in analysis["protocol"]["lengths"])]
    rows = []
    for label, entry in analysis["encodings"].items():
        for half, part in (("whole", "whole window"), ("second_half", "second half")):
            values = [each[targets][half]["nats_per_token"] for each in entry["lengths"]]
            cells = ["none" if value is None else _spread(value, 3) for value in values]
            rows.append([in_words(label), str(len(entry["seeds"])), part, *cells])
    for half, part in (("whole", "whole window"), ("second_half", "second half")):
        counts = next(iter(analysis["encodings"].values()))["lengths"]
        rows.append(["tokens scored", "", part, *(f"{each[targets][half]['tokens']:,}" for each in counts)])
    return _aligned(head, rows)


def write_report(runs: Sequence[Path], folder: Path) -> None:
    """Write the report of an experiment's runs into its folder."""
    compare(runs, folder)
