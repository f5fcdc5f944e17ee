"""Windows, phases and strands against a plain reading of the definition, and what must not change a number."""

from __future__ import annotations

import numpy as np
import pytest
from genomes import random_bases, shared_model

from seqpope.domains.genome.sequences import ArrayGenome, known_stretches, other_strand
from seqpope.errors import SeqpopeError
from seqpope.score.likelihood import Likelihood, Row
from seqpope.score.regions import Reading, RegionSums, Span, SpanScores


def genome() -> ArrayGenome:
    """Two contigs with N at awkward places: single ones, at both ends, stretches shorter than a token."""
    first = random_bases(300, 1)
    first[[0, 57, 130, 133, 140, 141, 299]] = 0
    first[200:250] = 0
    second = random_bases(131, 2) | np.where(np.arange(131) % 50 < 20, 8, 0).astype(np.uint8)
    return ArrayGenome({"a": first, "b": second})


def score(span: Span, reading: Reading, of: ArrayGenome | None = None) -> SpanScores:
    scores = SpanScores(of or genome(), span, reading)
    scores.fill(Likelihood(*shared_model(reading.k)).nats(scores.rows))
    return scores


def span(contig: str, *wanted: tuple[int, int]) -> Span:
    return Span(contig, np.array(wanted))


def whole(contig: str) -> Span:
    return span(contig, (0, genome().contigs[contig]))


def by_definition(bases: np.ndarray, reading: Reading, phase: int) -> tuple[np.ndarray, np.ndarray]:
    """Costs and context of each base of a strand, one row a base."""
    k, scorer = reading.k, Likelihood(*shared_model(reading.k))
    rows, places = [], []
    context = np.zeros(len(bases), int)
    for first, last in known_stretches(bases).tolist():
        boundary = next(d for d in range(first, first + k) if d % k == phase % k)
        for d in range(first, last):
            if d < boundary:
                rows.append(Row(bases[first : d + 1], boundary - first, d - first))
                context[d] = d - first
            else:
                block = (d - phase) // k // reading.stride
                start = max(boundary, phase + k * (block * reading.stride - (reading.window - reading.stride)))
                rows.append(Row(bases[start : d + 1], 0, d - start))
                context[d] = d - start
            places.append(d)
    costs = np.full(len(bases), np.nan)
    costs[places] = [nats[0] for nats in scorer.nats(rows)]
    return costs, context


@pytest.mark.parametrize(
    ("contig", "window", "stride", "k"),
    [("a", 8, 3, 6), ("b", 8, 3, 6), ("b", 8, 8, 6), ("b", 9, 1, 6), ("b", 5, 4, 6), ("a", 8, 3, 1)],
)
def test_every_base_costs_what_the_definition_says(contig, window, stride, k):
    reading = Reading(k, window, stride, phases=k)
    found = score(whole(contig), reading)
    bases = genome().fetch(contig, 0, genome().contigs[contig])
    for number, (strand, phase) in enumerate(reading.passes):
        read = bases if strand == "+" else other_strand(bases)
        costs, context = by_definition(read, reading, phase)
        back = slice(None) if strand == "+" else slice(None, None, -1)
        np.testing.assert_allclose(found.values[number], costs[back], atol=1e-5)
        np.testing.assert_array_equal(found.context[number][found.known], context[back][found.known])
    assert (np.isnan(found.values) == ~found.known).all()
    assert max(len(row.bases) for row in found.rows) <= k * window + k - 1  # and a lead


@pytest.mark.parametrize("strands", ["both", "+", "-"])
def test_a_region_alone_costs_what_it_costs_among_others(strands):
    reading = Reading(6, 8, 3, strands)
    every = score(whole("a"), reading)
    for start, end in [(1, 2), (0, 300), (100, 137), (132, 139), (141, 142), (180, 290), (260, 298), (57, 58)]:
        alone = score(span("a", (start, end)), reading)
        np.testing.assert_allclose(alone.values, every.values[:, start:end], atol=1e-5)
        np.testing.assert_array_equal(alone.context[:, alone.known], every.context[:, start:end][:, alone.known])
    together = score(span("a", (3, 5), (9, 40), (41, 60), (128, 135), (290, 299)), reading)
    for start, end in together.span.wanted.tolist():
        np.testing.assert_allclose(together.values[:, start - 3 : end - 3], every.values[:, start:end], atol=1e-5)


def test_what_is_wanted_of_a_block_is_read_once():
    reading = Reading(6, 8, 4)
    near, far = span("b", (60, 62), (64, 66)), span("b", (60, 62))
    assert len(score(near, reading).rows) <= len(score(far, reading).rows) + 6
    last = max(len(row.bases) for row in score(far, reading).rows)
    assert last <= 6 * 8
    assert last < max(len(row.bases) for row in score(whole("b"), reading).rows)


def test_the_other_strand_of_the_genome_is_the_same_genome():
    reading = Reading(6, 8, 3)
    of = ArrayGenome({name: other_strand(genome().fetch(name, 0, n)) for name, n in genome().contigs.items()})
    plain, turned = score(whole("a"), reading), score(whole("a"), reading, of)
    np.testing.assert_allclose(turned.mean()[::-1], plain.mean(), atol=1e-5)
    np.testing.assert_allclose(turned.spread()[::-1], plain.spread(), atol=1e-5)
    assert np.nanmax(plain.spread()) > 0.1  # or it says nothing
    forward = score(whole("a"), Reading(6, 8, 3, "+"))
    backward = score(whole("a"), Reading(6, 8, 3, "-"), of)
    np.testing.assert_allclose(backward.values[:, ::-1], forward.values, atol=1e-5)


def test_sums_of_regions_are_sums_of_their_bases():
    reading = Reading(6, 8, 3)
    scores = score(whole("a"), reading)
    intervals = np.array([(0, 300), (10, 20), (10, 11), (57, 58), (200, 250), (199, 251), (30, 290), (12, 18)])
    sums = scores.sums(intervals)
    for row, (start, end) in enumerate(intervals):
        known = scores.known[start:end]
        assert sums.scored[row] == known.sum()
        assert sums.unknown[row] == end - start - known.sum()
        values = scores.values[:, start:end][:, known].astype(np.float64)
        np.testing.assert_allclose(sums.nats[row], values.sum(1), atol=1e-9)
        context = scores.context[:, start:end][:, known]
        assert sums.context[row] == context.sum()
        if known.any():
            assert sums.least[row] == context.min()
    parts, added = RegionSums.zeros(2, 12), RegionSums.zeros(2, 12)
    parts.add(np.array([1, 1]), scores.sums(np.array([(10, 60), (60, 150)])))
    added.add(np.array([1]), scores.sums(np.array([(10, 150)])))
    for name in RegionSums.__dataclass_fields__:
        np.testing.assert_allclose(getattr(parts, name), getattr(added, name), atol=1e-9)


@pytest.mark.parametrize("strands", ["both", "+", "-"])
def test_what_is_read_for_nobody_is_in_no_sum(strands):
    """Regions of one span may be so far apart that bases between them are never read: those are nan."""
    reading = Reading(6, 8, 8, strands)
    intervals = np.array([(3, 20), (120, 130), (270, 299)])
    together = score(span("a", *intervals.tolist()), reading)
    between = together.values[:, 20 - 3 : 120 - 3][:, together.known[20 - 3 : 120 - 3]]
    assert np.isnan(between).any()
    sums = together.sums(intervals)
    for row, (start, end) in enumerate(intervals.tolist()):
        alone = score(span("a", (start, end)), reading).sums(np.array([(start, end)]))
        assert np.isfinite(sums.nats[row]).all()
        for name in RegionSums.__dataclass_fields__:
            np.testing.assert_allclose(getattr(sums, name)[row], getattr(alone, name)[0], atol=1e-5)


def test_phases_are_spread_evenly():
    assert [phase for _, phase in Reading(6, 8, 8, "+", 1).passes] == [0]
    assert [phase for _, phase in Reading(6, 8, 8, "+", 2).passes] == [0, 3]
    assert [phase for _, phase in Reading(6, 8, 8, "+", 4).passes] == [0, 1, 3, 4]
    assert len(Reading(6, 8, 8).passes) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phases": 7}, "1 to 6 phases"),
        ({"phases": 0}, "1 to 6 phases"),
        ({"k": 1, "phases": 2}, "1 to 1 phases"),
        ({"stride": 9}, "stride <= window"),
        ({"stride": 0}, "stride <= window"),
        ({"strands": "x"}, "both"),
    ],
)
def test_readings_that_cannot_be(options, message):
    with pytest.raises(SeqpopeError, match=message):
        Reading(**{"k": 6, "window": 8, "stride": 4, **options})
