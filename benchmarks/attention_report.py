"""attention.md and attention.png from the numbers in attention.json; computes ratios, measures nothing."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seqpope.files import write_bytes, write_text

OURS = "pope-triton"
BOTH = "forward+backward"
MODES = {
    f"{BOTH}/graph": "Forward + backward, replayed from a CUDA graph",
    f"{BOTH}/eager": "Forward + backward, eager calls",
    "forward/graph": "Forward, replayed from a CUDA graph",
    "forward/eager": "Forward, eager calls",
}
LAUNCH_BOUND = {"JSB"}  # judged under CUDA graphs: its kernels are shorter than their launches
EQUAL = 1.02  # at 16384 keys being as fast as Cartesian with cuDNN is enough
LONG = 16384
DIFFERENT = 0.05  # results further than this from ours (RoPE: from seqpope's RoPE) are something else
# Matrix products of width D that attention needs for each pair of query and key: RoPE and PoPE, by mode.
PRODUCTS = {"forward": (2, 3), BOTH: (7, 11)}
ERRORS = ("out", "dq", "dk", "dv", "ddelta")
COLOURS = {
    OURS: "#0b6e99",
    "rope-flash": "#d1541f",
    "rope-cudnn": "#e8a33d",
    "cartesian-cudnn": "#3a7d44",
    "cartesian-flash": "#8fbf7f",
    "flex": "#7b4fa3",
    "pope-pytorch": "#4d4d4d",
}


def write(result: dict[str, Any], folder: Path) -> str:
    """Write attention.md and attention.png beside attention.json; the Markdown."""
    text = render(result)
    write_text(folder / "attention.md", text)
    picture = draw(result)
    if picture is not None:
        write_bytes(folder / "attention.png", picture)
    return text


def best(times: dict[str, Any], encoding: str) -> tuple[str, float] | None:
    """The fastest contender whose name begins so, and its ms."""
    found = {name: each["ms"] for name, each in times.items() if name.startswith(encoding)}
    return min(found.items(), key=lambda item: item[1]) if found else None


def cartesian(times: dict[str, Any]) -> tuple[str, float] | None:
    """Cartesian with cuDNN, or with flash attention where cuDNN refuses."""
    return best(times, "cartesian-cudnn") or best(times, "cartesian-flash")


def roofline(shape: list[int], mode: str, times: dict[str, Any]) -> dict[str, float]:
    """TFLOP/s of ours and RoPE, and the share of PoPE's floor, RoPE's time x products ratio / ours."""
    batch, heads, length, dim = shape
    unit = batch * heads * length * (length + 1) / 2 * 2 * dim  # flops of one product over all visible pairs
    rope_products, pope_products = PRODUCTS[mode]
    rope, found = best(times, "rope"), {}
    if rope is not None:
        found["rope"] = rope_products * unit / rope[1] / 1e9
    if OURS in times:
        found["ours"] = pope_products * unit / times[OURS]["ms"] / 1e9
    if rope is not None and OURS in times:
        found["floor_share"] = pope_products / rope_products * rope[1] / times[OURS]["ms"]
    return found


def render(result: dict[str, Any]) -> str:
    """The whole page."""
    lines = ["# Attention: PoPE's Triton kernels against RoPE and other ways to PoPE", ""]
    lines += _made_with(result)
    if result["device"] == "cpu":
        lines += ["**Run on a CPU in Triton's interpreter to test the script: these times say nothing.**", ""]
    lines += _verdicts(result)
    for mode, title in MODES.items():
        rows = [
            (name, each["shape"], each["times"][mode])
            for name, each in result["shapes"].items()
            if each["times"].get(mode)
        ]
        if rows:
            lines += [f"## {title}", "", *_times(rows, result), ""]
    lines += _limits(result) + _errors(result) + _memory(result) + _kernels(result)
    rows = [
        (name, each["shape"], each["times"].get(f"{BOTH}/graph") or each["times"].get(f"{BOTH}/eager"))
        for name, each in result["sweep"].items()
    ]
    if any(times for _, _, times in rows):
        lines += ["## Length, at 16384 tokens a batch (forward + backward, graph where there is one)", ""]
        lines += [*_times([row for row in rows if row[2]], result), ""]
    lines += _decoding(result) + _not_run(result)
    return "\n".join(lines).rstrip() + "\n"


def _made_with(result: dict[str, Any]) -> list[str]:
    made = result.get("provenance", {})
    versions = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items() if version)
    lines = [f"`{result['command']}`", ""]
    lines += [f"{made.get('device')}; {versions}; commit {made.get('commit')}; {made.get('date')}", ""]
    if ceilings := result["ceilings"]:
        lines += [
            f"Ceilings of this machine in this run: bf16 matrix product {ceilings['matmul_tflops']:.0f} TFLOP/s, "
            f"copy {ceilings['copy_gbs']:.0f} GB/s (read and written).",
            "",
        ]
    lines += [
        "bf16, causal; inputs are strided views of one projection. ms are medians over calls with the L2 cache "
        "flushed before each, then over rounds in which contenders take turns. RoPE is compiled rotation and the "
        "faster of torch's flash and cuDNN attention; Cartesian is PoPE by compiled rotation to 2D and torch's "
        "attention.",
        "",
    ]
    return lines


def _verdicts(result: dict[str, Any]) -> list[str]:
    rows, faster, met, slower, unmet = [], [], [], [], []
    for name, each in result["shapes"].items():
        judged = "graph" if name in LAUNCH_BOUND and each["times"].get(f"{BOTH}/graph") else "eager"
        times = each["times"].get(f"{BOTH}/{judged}", {})
        rope, other = best(times, "rope"), cartesian(times)
        if OURS not in times:
            rows.append([name, "not timed: " + (each["gate"]["reason"] or "see below"), *[""] * 5])
            continue
        ours = times[OURS]["ms"]
        long = each["shape"][2] >= LONG
        to_rope, to_other = rope and ours / rope[1], other and ours / other[1]
        goal = 1.35 if long else 1.25
        wins = to_other is not None and to_other < (EQUAL if long else 1.0)
        near = to_rope is not None and to_rope <= goal
        (faster if wins else slower).append(name)
        (met if near else unmet).append(name)
        which = other[0] if other else "none ran"
        row = [name, judged, _ratio(to_other), which, "yes" if wins else "no"]
        rows.append([*row, f"{_ratio(to_rope)} of {goal}", "yes" if near else "no"])
    if not rows:
        return []
    return [
        "## Verdict (forward + backward)",
        "",
        f"Faster than Cartesian with cuDNN (at {LONG}: within {EQUAL - 1:.0%}): {_list(faster)}; "
        f"not: {_list(slower)}.",
        "",
        f"At most 1.25 times RoPE (1.35 at {LONG}): {_list(met)}; not: {_list(unmet)}.",
        "",
        *_table(["shape", "judged", "ours / Cartesian", "which", "faster", "ours / RoPE", "met"], rows),
        "",
    ]


def _times(rows: list[tuple[str, list[int], dict[str, Any]]], result: dict[str, Any]) -> list[str]:
    different = {
        (name, contender)
        for part in ("shapes", "sweep")
        for name, each in result[part].items()
        for contender, distance in each["difference"].items()
        if distance is None or distance > DIFFERENT
    }
    names = [name for name in COLOURS if any(name in times for _, _, times in rows)]
    table = []
    for shape_name, shape, times in rows:
        rope, other, ours = best(times, "rope"), cartesian(times), times.get(OURS, {}).get("ms")
        cells = []
        for name in names:
            mark = "†" if (shape_name, name) in different else ""
            cells.append(f"{_ms(times[name])}{mark}" if name in times else "-")
        cells.append(_ratio(ours and rope and ours / rope[1]))
        cells.append(_ratio(ours and other and ours / other[1]))
        cells.append(_ratio(other and rope and other[1] / rope[1]))
        table.append([f"{shape_name} {','.join(map(str, shape))}", *cells])
    heads = ["shape (B,H,L,D), ms", *names, "ours / RoPE", "ours / Cartesian", "Cartesian / RoPE"]
    lines = _table(heads, table)
    if any("†" in cell for row in table for cell in row):
        lines += ["", f"† its result differs by more than {DIFFERENT:.0%}: not the same function."]
    return lines


def _limits(result: dict[str, Any]) -> list[str]:
    ceiling, rows = result["ceilings"].get("matmul_tflops"), []
    for name, each in result["shapes"].items():
        for where in MODES:
            mode, how = where.split("/")
            found = roofline(each["shape"], mode, each["times"].get(where, {}))
            if "ours" not in found or (how == "eager" and each["times"].get(f"{mode}/graph")):
                continue
            share = f"{found['ours'] / ceiling:.0%}" if ceiling else "-"
            rope_share = f"{found['rope'] / ceiling:.0%}" if ceiling and "rope" in found else "-"
            floor = f"{found['floor_share']:.0%}" if "floor_share" in found else "-"
            rope = f"{found['rope']:.0f}" if "rope" in found else "-"
            rows.append([name, mode, f"{found['ours']:.0f}", share, rope, rope_share, floor])
    if not rows:
        return []
    heads = ["shape", "mode", "ours TFLOP/s", "of matmul", "RoPE TFLOP/s", "of matmul", "share of floor"]
    return [
        "## Against the arithmetic",
        "",
        "A product of width D over the visible pairs is B H L (L + 1) / 2 x 2 D flops; RoPE needs 2 forward and 5 "
        "backward, PoPE 3 and 8. Share of floor: RoPE's time x 11/7 (forward: 3/2) over ours.",
        "",
        *_table(heads, rows),
        "",
    ]


def _errors(result: dict[str, Any]) -> list[str]:
    rows = []
    for part in ("shapes", "sweep"):
        for name, each in result[part].items():
            gate = each["gate"]
            ours, measure = gate.get("ours") or {}, gate.get("cartesian") or {}
            passed = "passed" if gate["passed"] else f"FAILED: {_short(gate['reason'])}"
            cells = [f"{_small(ours.get(key))} / {_small(measure.get(key))}" for key in ERRORS]
            rows.append([name, passed, *cells, gate["measure"] or "nothing"])
    if not rows:
        return []
    return [
        "## Errors against fp64, relative, ours / Cartesian",
        "",
        *_table(["shape", "gate", *ERRORS, "measured by"], rows),
        "",
    ]


def _memory(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, each in result["shapes"].items():
        totals = {who: memory["total"] for who, memory in each["memory"].items() if memory}
        rope = min((total for who, total in totals.items() if who.startswith("rope")), default=None)
        if OURS in totals:
            cells = [f"{totals[who]:.0f}" if who in totals else "-" for who in COLOURS]
            extra = f"{each['memory'][OURS]['extra']:.0f}"
            rows.append([name, *cells, extra, _ratio(rope and totals[OURS] / rope)])
    if not rows:
        return []
    return [
        "## Peak memory of one forward + backward, MiB with inputs and the upstream gradient",
        "",
        *_table(["shape", *COLOURS, "ours without inputs", "ours / least RoPE"], rows),
        "",
    ]


def _kernels(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, each in result["shapes"].items():
        if each["kernels"]:
            parts = [f"{row['kernel'][:60]} {row['ms']:.3f}" for row in each["kernels"] if row["ms"] >= 0.001]
            lines.append(f"- {name}: {'; '.join(parts)}")
    return ["## Ours by kernel, ms of one forward + backward", "", *lines, ""] if lines else []


def _decoding(result: dict[str, Any]) -> list[str]:
    decode, ceiling, rows = result["decode"], result["ceilings"].get("copy_gbs"), []
    for row in decode.get("rows", []):
        times, name = row.get("times", {}), f"{row['batch']} x {row['keys']}"
        if OURS not in times:
            reason = row.get("not_run", {}).get("case") or row.get("not_run", {}).get(OURS) or "gate failed"
            rows.append([name, reason, *[""] * 5])
            continue
        rope, ours = best(times, "rope"), times[OURS]["ms"]
        speed = row["cache_bytes"] / ours / 1e6
        share = f"{speed / ceiling:.0%}" if ceiling else "-"
        errors = f"{_small(row['gate']['ours']['out'])} / {_small(row['gate']['cartesian']['out'])}"
        rope_cell = f"{rope[1]:.4f} ({rope[0]})" if rope else "-"
        rows.append([name, f"{ours:.4f}", rope_cell, _ratio(rope and ours / rope[1])])
        rows[-1] += [f"{speed:.0f}", share, errors]
    if not rows:
        return []
    heads = ["batch x keys", "ours ms", "RoPE ms", "ours / RoPE", "ours GB/s", "of copy", "error ours / Cartesian"]
    return [
        f"## Decoding: one query, H = {decode['heads']}, D = {decode['dim']}, CUDA graph",
        "",
        "RoPE's step is torch's attention on a cache whose keys are rotated already, by the fastest backend; ours "
        "reads keys as projected. GB/s count the cache once.",
        "",
        *_table(heads, rows),
        "",
    ]


def _not_run(result: dict[str, Any]) -> list[str]:
    lines = [f"- {name}: {_short(reason)}" for name, reason in result["failed"].items()]
    for part in ("shapes", "sweep"):
        for name, each in result[part].items():
            lines += [f"- {name}, {what}: {_short(why)}" for what, why in each["not_run"].items()]
    for row in result["decode"].get("rows", []):
        name = f"decoding {row['batch']} x {row['keys']}"
        lines += [f"- {name}, {what}: {_short(why)}" for what, why in row.get("not_run", {}).items()]
    if result["decode"].get("not_run"):
        lines.append(f"- decoding: {_short(result['decode']['not_run'])}")
    return ["## Not run", "", *lines, ""] if lines else []


def draw(result: dict[str, Any]) -> bytes | None:
    """Time of forward + backward against length as PNG, both axes logarithmic; None without a sweep."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for each in result["sweep"].values():
        times = each["times"].get(f"{BOTH}/graph") or each["times"].get(f"{BOTH}/eager") or {}
        for name, found in times.items():
            curves.setdefault(name, []).append((each["shape"][2], found["ms"]))
    if not curves:
        return None
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, colour in COLOURS.items():
        if name in curves:
            lengths, times = zip(*sorted(curves[name]), strict=True)
            axes.plot(lengths, times, "o-", color=colour, label=name, linewidth=2 if name == OURS else 1.2)
    lengths = sorted({length for curve in curves.values() for length, _ in curve})
    axes.set(xscale="log", yscale="log", xlabel="length L (16384 tokens a batch, 16 heads, D = 64)", ylabel="ms")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    title = "Causal attention, forward + backward, bf16"
    device = result.get("provenance", {}).get("device")
    axes.set_title(f"{title}, {device}" if result["device"] == "cuda" else "Interpreter: times say nothing")
    axes.legend(frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)
    return file.getvalue()


def _table(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines]


def _ms(found: dict[str, Any]) -> str:
    spread = f" ±{found['spread'] / 2:.0%}" if found["spread"] > 0.02 else ""
    return f"{found['ms']:.3f}{spread}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _small(value: float | None) -> str:
    return "nan" if value is None else f"{value:.1e}"


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _short(reason: str) -> str:
    return " ".join(str(reason).split())[:300]
