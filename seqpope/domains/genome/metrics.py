"""What sampled DNA is like: k-mer spectra, GC, and the longest stretch that it shares with given sequences.

Sequences are (L,) uint8 numbers here, A, C, G, T being 0 to 3 and all else 4 (`codec.as_array`): a base's
complement is 3 minus it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from seqpope.domains.genome.bases import BASES
from seqpope.markdown import table

KS = range(1, 7)
SEEDS = (32, 20, 12, 6, 1)  # bases; whoever shares fewer is looked for with the next
COPY_BASES = 64  # a stretch shared of this length or more is told as a copy
WINDOWS = 100  # of the reference, as long as each sample, for scale
_CHUNK = 1 << 20  # bases
_PAIRS = 1 << 22  # words found in both at once


def kmers(k: int) -> list[str]:
    """All words of k bases in the order of their counts: AA, AC, AG ..."""
    return ["".join(word) for word in itertools.product(BASES, repeat=k)]


def spectra(
    sequences: Iterable[np.ndarray], ks: Sequence[int] = KS, both_strands: bool = False
) -> dict[int, np.ndarray]:
    """How often each k-mer occurs, overlapping ones too: for each k counts (4^k,) int64, in the order of `kmers`.

    Words with a letter beside ACGT do not count.

    Args:
        both_strands: A word counts on the other strand too: a word and its reverse complement have equal counts.
    """
    counts = {k: np.zeros(4**k, np.int64) for k in ks}
    longest = max(ks)
    for sequence in sequences:
        for start in range(0, len(sequence), _CHUNK):
            # A word belongs to the chunk in which it begins.
            chunk = sequence[start : start + _CHUNK + longest - 1]
            words = np.zeros(len(chunk) + 1, np.int32)
            known = np.ones(len(chunk) + 1, bool)
            for k in range(1, min(longest, len(chunk)) + 1):
                last = chunk[k - 1 :]
                words = (words[: len(last)] << 2) + np.minimum(last, 3)
                known = known[: len(last)] & (last < 4)
                if k in counts:
                    counts[k] += np.bincount(words[:_CHUNK][known[:_CHUNK]], minlength=4**k)
    if both_strands:
        for k in ks:
            counts[k] = counts[k] + counts[k][_other_strand(k)]
    return counts


def _other_strand(k: int) -> np.ndarray:
    """(4^k,): where each word's reverse complement is."""
    digits = np.arange(4**k)[:, None] // 4 ** np.arange(k) % 4  # the last base first
    return ((3 - digits) * 4 ** np.arange(k - 1, -1, -1)).sum(1)


def divergence(a: np.ndarray, b: np.ndarray) -> float | None:
    """Jensen-Shannon divergence of two counts in bits, 0 for equal shares to 1; None if one has none."""
    from scipy.spatial.distance import jensenshannon

    if not a.sum() or not b.sum():
        return None
    return float(np.nan_to_num(jensenshannon(a, b, base=2)) ** 2)


def gc_share(sequence: np.ndarray) -> float | None:
    """The share of G and C among the bases; None if there are none."""
    counts = np.bincount(sequence, minlength=5)[:4]
    return float((counts[1] + counts[2]) / counts.sum()) if counts.sum() else None


# ---------------------------------------------------------------- shared stretches


@dataclass(frozen=True)
class Match:
    """A stretch of a sample that stands in another sequence too.

    Args:
        length: bases.
        start: where it begins in the sample, from 0.
        name: the other sequence's; its bases are `there` to `there + length`, from 0, half open.
        strand: "-" if the sample has their reverse complement.
    """

    length: int
    start: int
    name: str
    there: int
    strand: str


def longest_matches(
    samples: Sequence[np.ndarray], training: Sequence[tuple[str, np.ndarray]]
) -> list[Match | None]:
    """For each sample the longest stretch of bases, on either strand, that a training sequence has too.

    Of several as long the one first found. Exact: words of 32 bases are looked up, rolling over the training
    sequences in chunks, and matches of neighbouring words are one stretch; samples that share none are looked for
    again with shorter words. Memory beside the sequences: some 100 bytes a base of the samples and of a chunk.

    Args:
        samples: (L,) uint8 numbers each.
        training: names and sequences, uint8 numbers too (memory-mapped if they are large).
    """
    best: list[Match | None] = [None] * len(samples)
    for k in SEEDS:
        left = [number for number, match in enumerate(best) if match is None and len(samples[number]) >= k]
        if left:
            for number, match in zip(left, _with_words([samples[i] for i in left], training, k), strict=True):
                best[number] = match
    return best


def _with_words(
    samples: Sequence[np.ndarray], training: Sequence[tuple[str, np.ndarray]], k: int
) -> list[Match | None]:
    """The longest matches of at least k bases."""
    # All samples and their other strands end to end, each closed by a letter that matches nothing.
    strands = [strand for sample in samples for strand in (sample, _reverse_complement(sample))]
    query = np.concatenate([piece for strand in strands for piece in (strand, np.full(1, 5, np.uint8))])
    ends = np.cumsum([len(strand) + 1 for strand in strands])
    words, known = _words(query, k)
    places = np.flatnonzero(known)
    order = places[np.argsort(words[places], kind="stable")]
    wanted = words[order]
    bits = int(np.clip(np.ceil(np.log2(8 * max(1, len(wanted)))), 12, 26))
    maybe = np.zeros(1 << bits, bool)  # most words of the training sequences fall beside it: fast to see
    maybe[_hashed(wanted, bits)] = True
    best: list[Match | None] = [None] * len(samples)
    for name, sequence in training:
        pending = [(start, min(start + _CHUNK, len(sequence))) for start in range(0, len(sequence), _CHUNK)][::-1]
        while pending:
            start, stop = pending.pop()
            chunk = np.asarray(sequence[start : stop + k - 1])
            if len(chunk) < k or (chunk > 3).all():
                continue
            there_words, there_known = _words(chunk, k)
            there = np.flatnonzero(maybe[_hashed(there_words, bits)] & there_known)
            low = np.searchsorted(wanted, there_words[there], "left")
            count = np.searchsorted(wanted, there_words[there], "right") - low
            if count.sum() > _PAIRS and stop - start > 1:  # a run of one base in both, or the like
                middle = (start + stop) // 2
                pending += [(middle, stop), (start, middle)]
                continue
            if not count.any():
                continue
            there, low, count = there[count > 0], low[count > 0], count[count > 0]
            nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            here = order[np.repeat(low, count) + nth]
            there = np.repeat(there, count)
            # Words that follow each other on both sides are one stretch: same difference, places in a row.
            sort = np.lexsort((there, there - here))
            here, there = here[sort], there[sort]
            new = np.ones(len(here), bool)
            new[1:] = (np.diff(there - here) != 0) | (np.diff(there) != 1)
            first = np.flatnonzero(new)
            runs = np.diff(np.append(first, len(here)))
            owner = np.searchsorted(ends, here[first], "right") // 2
            # A chunk's end may cut a stretch: those that touch it are followed, besides each sample's longest.
            touching = (there[first] == 0) | (there[first] + runs == len(there_words))
            ranked = np.lexsort((-runs, owner))
            longest = ranked[np.unique(owner[ranked], return_index=True)[1]]
            for index in np.union1d(longest, np.flatnonzero(touching)).tolist():
                number = int(owner[index])
                a, b = _stretch(query, int(here[first[index]]), sequence, start + int(there[first[index]]))
                length = a[1] - a[0]
                known_best = best[number]
                if known_best is None or length > known_best.length:
                    strand = int(np.searchsorted(ends, a[0], "right"))
                    begin = a[0] - (int(ends[strand - 1]) if strand else 0)
                    size = len(strands[strand])
                    own = begin if strand % 2 == 0 else size - begin - length
                    best[number] = Match(length, own, name, b, "+" if strand % 2 == 0 else "-")
    return best


def _stretch(query: np.ndarray, here: int, sequence: np.ndarray, there: int) -> tuple[tuple[int, int], int]:
    """How far two sequences agree around a place: begin and end in the query, begin in the sequence."""
    back = _agreeing(query[:here][::-1], sequence[:there][::-1])
    return (here - back, here + _agreeing(query[here:], sequence[there:])), there - back


def _agreeing(a: np.ndarray, b: np.ndarray) -> int:
    """How many of the first letters are the same bases."""
    size, done = 64, 0
    while True:
        x, y = a[done : done + size], b[done : done + size]
        shared = min(len(x), len(y))
        differ = np.flatnonzero((x[:shared] != y[:shared]) | (x[:shared] > 3))
        if len(differ):
            return done + int(differ[0])
        done += shared
        if shared < size:
            return done
        size *= 2


def _words(sequence: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The word of k <= 32 bases that begins at each place, as uint64, and whether it is of bases alone."""
    part, size = np.minimum(sequence, 3).astype(np.uint64), 1
    whole, length = None, 0  # doubled sizes put together: 20 = 16 + 4
    while True:
        if k & size:
            if whole is None:
                whole = part
            else:
                fit = min(len(whole), max(0, len(part) - length))
                whole = (whole[:fit] << np.uint64(2 * size)) | part[length : length + fit]
            length += size
        size *= 2
        if size > k:
            break
        half = size // 2
        part = (part[: max(0, len(part) - half)] << np.uint64(2 * half)) | part[half:]
    assert whole is not None
    whole = whole[: max(0, len(sequence) - k + 1)]
    unknown = sequence > 3
    if not unknown.any():
        return whole, np.ones(len(whole), bool)
    total = np.concatenate(([0], np.cumsum(unknown)))
    return whole, total[k : k + len(whole)] == total[: len(whole)]


def _hashed(words: np.ndarray, bits: int) -> np.ndarray:
    return ((words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits)).astype(np.int64)


def _reverse_complement(sequence: np.ndarray) -> np.ndarray:
    return np.where(sequence < 4, 3 - sequence, sequence).astype(np.uint8)[::-1]


def chance_match(bases: int, training: int) -> float:
    """About how long the longest match of random sequences of so many bases is, both strands counted."""
    return math.log(max(1, 2 * bases * training), 4)


# ---------------------------------------------------------------- many samples


def examine(
    samples: Sequence[tuple[str, np.ndarray]],
    training: Sequence[tuple[str, np.ndarray]] = (),
    both_strands: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything measured of samples and, if there are training sequences, beside them, as JSON can hold it.

    Returns:
        "samples", a list of: name; bases; gc; divergence (for each k, in bits, of the sample's k-mers from all of
        the training sequences'; None without); match (a `Match` as a dict, or None); chance (`chance_match`).
        "mean" of those. "pooled": for each k the divergence of all samples together. "windows": the mean gc and
        divergence of random training windows as long as the samples, for scale, each from all that is there.
        "common": the commonest k-mers of the samples with their shares. "training_bases", "copy_bases".
    """
    spectra_of = [spectra([sequence], both_strands=both_strands) for _, sequence in samples]
    pool = {k: np.sum([each[k] for each in spectra_of], axis=0) for k in KS}
    whole = spectra([sequence for _, sequence in training], both_strands=both_strands) if training else None
    total = sum(int((sequence < 4).sum()) for _, sequence in training)
    matches = longest_matches([sequence for _, sequence in samples], training) if training else []
    rows: list[dict[str, Any]] = []
    for number, ((name, sequence), counts) in enumerate(zip(samples, spectra_of, strict=True)):
        match = matches[number] if training else None
        rows.append(
            {
                "name": name,
                "bases": len(sequence),
                "gc": gc_share(sequence),
                "divergence": _divergences(counts, whole),
                "match": None if match is None else asdict(match),
                "chance": chance_match(len(sequence), total) if training else None,
            }
        )
    windows = None
    if whole is not None:
        found = list(_windows([len(sequence) for _, sequence in samples], training, seed))
        each = [_divergences(spectra([window], both_strands=both_strands), whole) for window in found]
        windows = {
            "count": len(found),
            "gc": _mean([gc_share(window) for window in found]),
            "divergence": {str(k): _mean([row[str(k)] for row in each]) for k in KS},
        }
    return {
        "samples": rows,
        "mean": {
            "gc": _mean([row["gc"] for row in rows]),
            "divergence": {str(k): _mean([row["divergence"][str(k)] for row in rows]) for k in KS},
        },
        "pooled": _divergences(pool, whole),
        "windows": windows,
        "common": {str(k): common_kmers(pool[k], k, 8) for k in KS},
        "both_strands": both_strands,
        "training_bases": total,
        "copy_bases": COPY_BASES,
    }


def common_kmers(counts: np.ndarray, k: int, number: int) -> list[tuple[str, float]]:
    """The commonest k-mers with their shares."""
    names, total = kmers(k), max(1, int(counts.sum()))
    top = np.argsort(-counts, kind="stable")[:number]
    return [(names[index], float(counts[index] / total)) for index in top if counts[index]]


def _divergences(counts: dict[int, np.ndarray], whole: dict[int, np.ndarray] | None) -> dict[str, float | None]:
    return {str(k): None if whole is None else divergence(counts[k], whole[k]) for k in KS}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _windows(
    lengths: Sequence[int], training: Sequence[tuple[str, np.ndarray]], seed: int
) -> Iterable[np.ndarray]:
    """Random stretches of the training sequences, as long as the samples by turns; none is N by half or more."""
    generator = np.random.default_rng(seed)
    sizes = np.array([len(sequence) for _, sequence in training], float)
    for number in range(WINDOWS):
        length = lengths[number % len(lengths)]
        room = np.maximum(0, sizes - length + 1)
        if not room.sum():
            continue
        sequence = training[int(generator.choice(len(training), p=room / room.sum()))][1]
        start = int(generator.integers(len(sequence) - length + 1))
        window = sequence[start : start + length]
        if (window < 4).mean() > 0.5:
            yield np.asarray(window)


def render(result: dict[str, Any]) -> str:
    """What `examine` found as Markdown: a table, what it means, and a sentence for each sample that copies."""
    sets = [("samples", result["mean"])]
    if result["windows"] is not None:
        sets += [("pooled", {"gc": None, "divergence": result["pooled"]}), ("training windows", result["windows"])]
    heads = {"samples": f"samples ({len(result['samples'])})", "pooled": "all samples together"}
    lines = [["% of G and C", *[_cell(found["gc"], 100, 1) for _, found in sets]]]
    if result["windows"] is not None:
        for k in KS:
            cells = [_cell(found["divergence"][str(k)], 1, 4) for _, found in sets]
            lines.append([f"{k}-mers: bits from the training sequences", *cells])
    text = [table(["", *[heads.get(name, name) for name, _ in sets]], lines, aligned=True)]
    strands = "both strands" if result["both_strands"] else "the forward strand"
    if result["windows"] is not None:
        text.append(
            f"Bits: Jensen-Shannon divergence of k-mer shares, {strands}, means over samples. Short sequences "
            f"diverge by chance: {result['windows']['count']} random training windows as long stand beside."
        )
    common = (
        ", ".join(f"{word} {100 * share:.2f}%" for word, share in result["common"][str(k)][:5]) for k in (2, 3, 6)
    )
    text.append(f"Commonest in the samples ({strands}): " + "; ".join(common) + ".")
    if result["windows"] is None and not result["training_bases"]:
        return "\n\n".join([*text, "Copies were not looked for: no training sequences were given."]) + "\n"
    copies = [row for row in result["samples"] if row["match"] and row["match"]["length"] >= result["copy_bases"]]
    for row in copies:
        match = row["match"]
        share = "all of it" if match["length"] == row["bases"] else f"from base {match['start']}"
        strand = "" if match["strand"] == "+" else ", reverse complement"
        text.append(
            f"**{row['name']} copies {match['name']}**: {match['length']} bases of {row['bases']}, {share}, are "
            f"{match['name']}:{match['there']}-{match['there'] + match['length']}{strand} (0-based, half open)."
        )
    if not copies:
        longest = max(result["samples"], key=lambda row: row["match"]["length"] if row["match"] else 0)
        match = longest["match"]
        text.append(
            f"No sample shares {result['copy_bases']} bases in a row with the {result['training_bases']:,} given"
            + (
                f"; the longest stretch has {match['length']} ({longest['name']} from {match['start']}, "
                f"{match['name']}:{match['there']}-{match['there'] + match['length']}), in random sequences of "
                f"these lengths it would have about {longest['chance']:.0f}."
                if match
                else "."
            )
        )
    return "\n\n".join(text) + "\n"


def _cell(value: float | None, scale: float, digits: int) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"
