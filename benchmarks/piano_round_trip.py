"""What tokens keep of performances: every file of MAESTRO to tokens, to a MIDI file, and back.

    python benchmarks/piano_round_trip.py --source maestro-v3.0.0-midi.zip         both tokenizations, all files
    python benchmarks/piano_round_trip.py --source FOLDER --every 10 --processes 8

Checked of each performance: tokens -> MIDI file -> tokens is the identity; the file's pitches are those that were
played. The n-th note of a pitch in the file is compared with the n-th that was played: how far onset, length and
velocity are off (velocities would be off by more than half a bin if notes of a pitch changed places). Performance
tokens keep notes as long as they sound under the pedal, and one of two notes that strike a key within 10 ms: they
are compared with that. Result: piano-round-trip.json and piano-round-trip.md in --out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from seqpope.domains.base import find_dataset
from seqpope.domains.music.piano.codec import CodecError, Performance, parse_midi, read_midi, write_midi
from seqpope.domains.music.piano.corpus import midi_files, open_source
from seqpope.domains.music.piano.tokenizer import LONGEST_STEPS, STEPS_PER_SECOND, RemiTokenizer
from seqpope.errors import SeqpopeError
from seqpope.files import write_text
from seqpope.progress import Progress
from seqpope.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
DATASETS = ("maestro", "maestro-performance")
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
TAIL = 0.1  # of a performance's notes, at its end: drift would show there


def by_pitch(played: Performance) -> np.ndarray:
    """Order of notes by pitch, then time."""
    return np.lexsort((np.arange(len(played)), played.onset, played.pitch))


def meant(played: Performance, tokenizer: Any) -> Performance:
    """The notes that tokens stand for: as held, or as they sound without those that are struck again at once."""
    if isinstance(tokenizer, RemiTokenizer):
        return played
    heard = played.sounding()
    step = np.floor(heard.onset * tokenizer.steps_per_second + 0.5)
    order = np.lexsort((np.arange(len(step)), step, heard.pitch))
    same = (np.diff(step[order]) == 0) & (np.diff(heard.pitch[order].astype(int)) == 0)
    kept = np.sort(order[np.append(~same, True)[: len(order)]])
    parts = (heard.onset, heard.duration, heard.pitch, heard.velocity)
    return Performance(*(part[kept] for part in parts))


def compare(played: Performance, tokenizer: Any, file: Path) -> dict[str, Any]:
    """One performance there and back: what holds, counts, and errors in seconds."""
    ids = tokenizer.encode(played)
    decoded = tokenizer.decode(ids)
    write_midi(decoded, file)
    back = read_midi(file)
    kept = meant(played, tokenizer)
    result: dict[str, Any] = {
        "identity": bool(np.array_equal(tokenizer.encode(back), ids)),
        "skipped": decoded.skipped,
        "tokens": len(ids),
        "notes": len(played),
        "dropped": len(played) - len(kept),
        "pitches": bool(np.array_equal(np.sort(back.pitch), np.sort(kept.pitch))),
        "long": int((kept.duration * STEPS_PER_SECOND > LONGEST_STEPS + 0.5).sum()),
        "under_pedal": int((played.sounding().end > played.end + 1e-9).sum()),
    }
    if result["pitches"]:
        there, here = by_pitch(kept), by_pitch(back)
        late = back.onset[here] - kept.onset[there]
        result["onset"] = late.astype(np.float32)
        result["velocity"] = np.abs(back.velocity[here].astype(int) - kept.velocity[there]).astype(np.uint8)
        result["duration"] = (back.duration[here] - kept.duration[there]).astype(np.float32)
        result["tail"] = late[there >= (1 - TAIL) * len(kept)].astype(np.float32)
    return result


def run(source: Path, names: list[str], dataset: str) -> list[dict[str, Any]]:
    """`compare` of files of a source, one after another; files that are no performances say so."""
    tokenizer = find_dataset(dataset).load_tokenizer()
    results = []
    with open_source(source) as (_, read), tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                played = parse_midi(read(name), PurePosixPath(name).name)
                results.append(compare(played, tokenizer, Path(folder) / "a.mid") | {"name": name})
            except (CodecError, SeqpopeError) as error:
                results.append({"name": name, "unread": str(error)})
    return results


def distribution(errors: np.ndarray) -> dict[str, float]:
    """Mean with its sign, and of sizes mean, quantiles and greatest; milliseconds."""
    size = np.abs(errors)
    return {
        "mean_signed": float(errors.mean(dtype=np.float64)) * 1000,
        "mean": float(size.mean(dtype=np.float64)) * 1000,
        **{f"{100 * q:g}%": float(np.quantile(size, q)) * 1000 for q in QUANTILES},
        "most": float(size.max()) * 1000,
    }


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
    """All performances of one tokenization together."""
    read = [result for result in results if "unread" not in result]
    notes = sum(result["notes"] for result in read)
    joined = {key: np.concatenate([r[key] for r in read if key in r]) for key in ("onset", "duration", "tail")}
    return {
        "performances": len(read),
        "unread": {result["name"]: result["unread"] for result in results if "unread" in result},
        "notes": notes,
        "tokens_per_note": sum(result["tokens"] for result in read) / notes,
        "identical": sum(result["identity"] for result in read),
        "not_identical": [result["name"] for result in read if not result["identity"]],
        "skipped_tokens": sum(result["skipped"] for result in read),
        "same_pitches": sum(result["pitches"] for result in read),
        "notes_dropped": sum(result["dropped"] for result in read),
        "notes_longer_than_6_s": sum(result["long"] for result in read),
        "notes_ending_under_the_pedal": sum(result["under_pedal"] for result in read),
        "onset_ms": distribution(joined["onset"]),
        "onset_of_the_last_tenth_ms": distribution(joined["tail"]),
        "duration_ms": distribution(joined["duration"]),
        "velocity_most": int(max(result["velocity"].max(initial=0) for result in read if "velocity" in result)),
    }


def render(result: dict[str, Any]) -> str:
    """Tables of a result."""
    found = result["tokenizations"]
    lines = ["# Performances to tokens, to a MIDI file, and back", "", "| | " + " | ".join(found) + " |"]
    lines.append("|---" * (len(found) + 1) + "|")

    def row(label: str, value: Any) -> None:
        lines.append(f"| {label} | " + " | ".join(value(each) for each in found.values()) + " |")

    def share(key: str) -> Any:
        return lambda each: f"{each[key]:,} ({100 * each[key] / each['notes']:.3g}%)"

    row("performances", lambda each: f"{each['performances']:,}")
    row("notes", lambda each: f"{each['notes']:,}")
    row("tokens a note", lambda each: f"{each['tokens_per_note']:.3f}")
    row("tokens -> file -> tokens is the identity", lambda each: f"{each['identical']:,}")
    row("all pitches kept", lambda each: f"{each['same_pitches']:,}")
    row("notes dropped (struck again within 10 ms)", share("notes_dropped"))
    row("notes longer than 6 s (REMI clips them)", share("notes_longer_than_6_s"))
    row("notes released under the pedal", share("notes_ending_under_the_pedal"))
    row("velocity off by at most", lambda each: str(each["velocity_most"]))
    for key, label in (
        ("onset_ms", "onset error, ms"),
        ("onset_of_the_last_tenth_ms", "the same in the last tenth"),
        ("duration_ms", "duration error, ms"),
    ):
        for part in next(iter(found.values()))[key]:
            row(f"{label}: {part.replace('_', ', ')}", lambda each, k=key, p=part: f"{each[k][p]:.2f}")
    lines += [
        "",
        "Sizes of errors but for the signed mean, over all notes. REMI is compared with how long keys were",
    ]
    lines += ["held, performance tokens with how long notes sound under the pedal."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="zip archive or folder of MIDI files")
    parser.add_argument("--every", type=int, default=1, help="only every so manieth file")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    with open_source(options.source) as (names, _):
        files = midi_files(names)[:: options.every]
    if not files:
        parser.error(f"{options.source} has no MIDI files")
    result: dict[str, Any] = {"source": options.source.name, "tokenizations": {}, **provenance("cpu")}
    parts = [files[first : first + 8] for first in range(0, len(files), 8)]
    for dataset in DATASETS:
        begun, shown, results = time.perf_counter(), Progress(dataset, "files"), []
        with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
            for some in pool.map(run, [options.source] * len(parts), parts, [dataset] * len(parts)):
                results += some
                shown(len(results), len(files))
        summary = summarize(results)
        summary["seconds"] = round(time.perf_counter() - begun, 1)
        result["tokenizations"][dataset] = summary
    write_text(options.out / "piano-round-trip.json", json.dumps(result, indent=1) + "\n")
    write_text(options.out / "piano-round-trip.md", render(result))
    print(render(result))


if __name__ == "__main__":
    main()
