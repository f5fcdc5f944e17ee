"""Variants' scores: exact on a Markov chain, laws that hold whatever the model, what is not scored and why."""

from __future__ import annotations

import math

import numpy as np
import pytest
from chains import Chain, codes, genome_of, letters, record
from genomes import random_bases, shared_model

from seqpope.domains.genome.sequences import other_strand
from seqpope.domains.genome.vcf import Record
from seqpope.score.likelihood import Likelihood
from seqpope.score.variants import (
    WHY,
    Contigs,
    Strand,
    costs,
    deltas,
    pairs,
    reach,
    score_records,
    why_not_allele,
)

PHASES = range(6)
BOTH = (False, True)


def scores(genome, *records, model=None, phases=PHASES, strands=BOTH):
    model = model or Chain()
    options = {"window": model.length, "phases": phases, "strands": strands}
    return score_records(records, Contigs(genome), model, **options)()


def one(genome, variant, **options):
    return scores(genome, variant, **options)[0][0]


def changed(bases: np.ndarray, variant: Record) -> np.ndarray:
    return np.concatenate(
        (bases[: variant.position], codes(variant.alts[0]), bases[variant.position + len(variant.ref) :])
    )


def cases(bases: np.ndarray, places=(40, 57)):
    """One of each kind of variant at some places: SNV, MNV, insertion, deletion, complex, long."""
    for place in places:
        here = [letters(bases[place : place + n]) for n in range(14)]
        other = "ACGT"[bases[place] % 4]
        yield record(place, here[1], other)
        yield record(place, here[3], letters(5 - bases[place : place + 3]))
        yield record(place, here[1], here[1] + "GATTACA")
        yield record(place, here[9], here[1])
        yield record(place, here[4], other + "TT")
        yield record(place, here[2], other + "TTCGCGAA")
        yield record(place, here[13], here[1])


def test_on_a_chain_the_delta_is_the_whole_sequences():
    bases = random_bases(120)
    model = Chain()
    for variant in cases(bases):
        found = one(genome_of(bases), variant, strands=(False,))
        expected = model.read(bases).sum() - model.read(changed(bases, variant)).sum()
        assert found.delta == pytest.approx(expected, abs=1e-5)
        assert found.sd == pytest.approx(0, abs=1e-5)  # a chain knows no tokens
        assert found.windows == 6
        back = one(genome_of(bases), variant, strands=(True,))
        there = other_strand(bases), other_strand(changed(bases, variant))
        assert back.delta == pytest.approx(model.read(there[0]).sum() - model.read(there[1]).sum(), abs=1e-5)


def test_the_mean_and_spread_are_those_of_the_windows():
    bases, model = random_bases(200), Chain(borders=True)
    variant = record(100, letters(bases[100:101]), "ACGT"[bases[100] % 4])
    parts = [
        one(genome_of(bases), variant, model=model, phases=(phase,), strands=(strand,)).delta
        for phase in PHASES
        for strand in BOTH
    ]
    whole = one(genome_of(bases), variant, model=model)
    assert len({round(part, 4) for part in parts}) == 12
    assert whole.delta == pytest.approx(np.mean(parts), abs=1e-6)
    assert whole.sd == pytest.approx(np.std(parts, ddof=1), abs=1e-6)
    assert whole.windows == 12
    assert math.isnan(one(genome_of(bases), variant, phases=(0,), strands=(False,)).sd)


def test_a_phase_is_the_bases_of_a_token_before_the_variant():
    bases, model = random_bases(200), Chain(borders=True)
    start = 100
    expected = []
    for phase in PHASES:
        alt = bases.copy()
        alt[start] = bases[start] % 4 + 1
        lead = (start - phase) % 6  # tokens begin at places that leave `phase` bases before the variant
        expected.append(model.read(bases, lead).sum() - model.read(alt, lead).sum())
    variant = record(start, letters(bases[100:101]), letters(alt[100:101]))
    found = [
        one(genome_of(bases), variant, model=model, phases=(phase,), strands=(False,)).delta for phase in PHASES
    ]
    assert found == pytest.approx(expected, abs=1e-5)


def test_ref_against_itself_is_nothing():
    bases = random_bases(60)
    for size in (1, 5):
        here = letters(bases[20 : 20 + size])
        found = one(genome_of(bases), record(20, here, here.lower()))
        assert found[:2] == (0, 0)
        assert found.why == ""


@pytest.mark.parametrize("borders", [False, True])
def test_exchanging_ref_and_alt_negates(borders):
    bases, model = random_bases(130, seed=1), Chain(borders=borders)
    for variant in cases(bases):
        there = one(genome_of(bases), variant, model=model)
        back = record(variant.position, variant.alts[0], variant.ref)
        back = one(genome_of(changed(bases, variant)), back, model=model)
        assert back.delta == pytest.approx(-there.delta, abs=1e-5)
        assert back.corrected == pytest.approx(-there.corrected, abs=1e-5)
        if len(variant.ref) == len(variant.alts[0]):
            assert back.sd == pytest.approx(there.sd, abs=1e-5)


@pytest.mark.parametrize("borders", [False, True])
def test_the_other_strand_of_genome_and_variant_has_the_same_score(borders):
    bases, model = random_bases(130, seed=2), Chain(borders=borders)
    for variant in cases(bases):
        end = variant.position + len(variant.ref)
        turned = record(
            len(bases) - end,
            letters(other_strand(codes(variant.ref))),
            letters(other_strand(codes(variant.alts[0]))),
        )
        there, back = (
            one(genome_of(genome), each, model=model)
            for genome, each in ((bases, variant), (other_strand(bases), turned))
        )
        assert back[:4] == pytest.approx(there[:4], abs=1e-9)
        if borders:  # the law is not met by the strands being alike
            assert one(genome_of(bases), variant, model=model, strands=(False,)).delta != pytest.approx(
                there.delta, abs=1e-3
            )


@pytest.mark.parametrize("unit", ["A", "CA", "GAT", "CAGCAT"])
@pytest.mark.parametrize("borders", [False, True])
def test_an_indel_in_a_repeat_has_one_score_wherever_it_is_written(unit, borders):
    sides = letters(random_bases(90, seed=3)) + "T", "C" + letters(random_bases(90, seed=4))
    text = sides[0] + unit * 7 + sides[1]
    first, last = len(sides[0]), len(sides[0]) + 7 * len(unit)
    model = Chain(length=20, borders=borders)
    size = len(unit)
    for insertion in (False, True):
        found = []
        for place in range(first, last + 1 if insertion else last - size + 1):
            anchor = text[place - 1]
            inside = (unit * 2)[(place - first) % size :][:size]
            ref, alt = (anchor, anchor + inside) if insertion else (anchor + inside, anchor)
            found.append(one(genome_of(text), record(place - 1, ref, alt), model=model))
            # The anchor may also be the base after it, or several bases.
            after = text[place : place + 3] if insertion else text[place + size : place + size + 3]
            ref, alt = (after, inside + after) if insertion else (inside + after, after)
            found.append(one(genome_of(text), record(place, ref, alt), model=model))
        assert len(found) > 2
        assert len({each[:4] for each in found}) == 1, found


def test_normal_forms():
    strand = Strand(genome_of("TTCACACAG"), "c", False)
    start, old, new = strand.normal(6, "CAG", "G")  # the last CA of three, written at its right end
    assert (start, letters(old), letters(new)) == (2, "CA", "")
    start, old, new = Strand(genome_of("TTCACACAG"), "c", True).normal(1, "TCA", "T")
    assert (start, letters(old), letters(new)) == (1, "TG", "")  # the strand reads CTGTGTGAA
    start, old, new = strand.normal(1, "TCAC", "TGAC")
    assert (start, letters(old), letters(new)) == (2, "C", "G")


def test_an_indel_moves_through_more_than_a_chunk_and_stops_at_n_and_the_contigs_start():
    for text, least in (("A" * 3000 + "C", 0), ("N" + "A" * 1500 + "C", 1), ("G" + "A" * 1024 + "C", 1)):
        start, old, _ = Strand(genome_of(text), "c", False).normal(len(text) - 3, "AA", "A")
        assert (start, letters(old)) == (least, "A")


def test_length_correction():
    flat = Chain()
    flat.tables[:] = math.log(4)
    bases = random_bases(130)
    for variant in cases(bases):
        found = one(genome_of(bases), variant, model=flat)
        grown = len(variant.alts[0]) - len(variant.ref)
        assert found.delta == pytest.approx(-grown * math.log(4), abs=1e-4)
        assert found.corrected == pytest.approx(0, abs=1e-4)


def test_costs_and_deltas_by_hand():
    ref = [costs(np.array([1.0, 2, 4]), 1, 1), costs(np.array([1.0, 3, 7]), 1, 1)]
    alt = [costs(np.array([1.0, 5, 3, 9]), 1, 2), costs(np.array([1.0, 6, 2, 8]), 1, 2)]
    assert ref[0] == (7, 3, 2, 4)
    assert alt[0] == (18, 4, 8, 9)
    assert deltas(ref, alt, 0) == [(2 - 8 + 4 - 9, -11 + 25 / 7), (3 - 8 + 7 - 8, -6 + 28 / 7)]
    assert [total for total, _ in deltas(ref, alt, 1)] == [2 - 8 + 4 - 8, 3 - 8 + 7 - 9]


def test_an_indels_delta_is_free_of_where_tokens_begin_behind_it():
    """What follows costs a lot more in one phase than in another: in the mean and in the spread that cancels."""
    bases, model = random_bases(400, seed=8), Chain(length=60, borders=True)
    model.tables += np.linspace(0, 3, 6)[:, None, None]
    place = 200
    variant = record(place, letters(bases[place : place + 1]), letters(bases[place : place + 1]) + "GA")
    found = one(genome_of(bases), variant, model=model)
    naive = []
    for phase in PHASES:
        start = Strand(genome_of(bases), "c", False).normal(place, variant.ref, variant.alts[0]).start
        lead = (start - phase) % 6
        end = start + 180 - 2
        one_way = bases[:end], changed(bases[:end], variant)
        naive.append(np.subtract(*(model.read(each, lead).sum() for each in one_way)))
    forward = one(genome_of(bases), variant, model=model, strands=(False,))
    assert forward.delta == pytest.approx(np.mean(naive), abs=1e-4)
    assert forward.sd < np.std(naive, ddof=1) / 1.5
    # So it is read in all phases, whichever are asked for; others are not.
    assert one(genome_of(bases), variant, model=model, phases=(0,)) == found
    six = variant._replace(alts=(variant.ref + "GATACA",))
    assert one(genome_of(bases), six, model=model, phases=(0,)).windows == 2


@pytest.mark.parametrize("length", [8, 9, 16])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_windows_are_where_it_is_said(k, length):
    bases = random_bases(400, seed=5)
    before, after, _ = reach(k, length)
    assert before + after == k * length
    strand = Strand(genome_of(bases), "c", False)
    for ref, alt in (("", "ACG"), ("x", "y"), ("xx", "")):
        place = 200
        old = letters(bases[place : place + len(ref)])
        new = "ACGT"[bases[place] % 4] if alt == "y" else alt
        anchor = letters(bases[place - 1 : place])
        change = strand.normal(place - 1, anchor + old, anchor + new)
        found = list(pairs(strand, change, k, length, range(k)))
        assert len(found) == k
        for phase, pair in enumerate(found):
            context = pair.ref.context + pair.before
            assert context % k == phase
            assert before - k < context <= before
            end = change.start + len(change.ref) + after - max(len(old), len(new))
            assert letters(pair.ref.bases) == letters(bases[change.start - context : end])
            whole = np.concatenate((bases[: change.start], change.alt, bases[change.start + len(change.ref) :]))
            assert letters(pair.alt.bases) == letters(whole[change.start - context : end + len(new) - len(old)])


def test_at_a_contigs_first_and_last_base():
    bases, model = random_bases(40, seed=6), Chain(borders=True)
    text = letters(bases)
    for place in (0, 1, 4, 5, 38, 39):
        variant = record(place, text[place], "ACGT"[bases[place] % 4])
        found = one(genome_of(bases), variant, model=model)
        assert found.why == ""
        assert found.windows == 12
        for phase in PHASES:
            lead = (place - phase) % 6
            cut = 0 if lead > place else lead  # bases before the first token are left out if it can be
            ref, alt = bases[cut:], changed(bases, variant)[cut:]
            exact = model.read(ref, lead - cut).sum() - model.read(alt, lead - cut).sum()
            one_way = one(genome_of(bases), variant, model=model, strands=(False,), phases=(phase,))
            assert one_way.delta == pytest.approx(exact, abs=1e-5)
    for variant in (
        record(0, text[0], "GG" + text[0]),
        record(39, text[39], text[39] + "GG"),
        record(0, text[:3], text[2]),
        record(36, text[36:], text[36]),
        record(0, text, text[0]),
        record(0, text[:2], "A"),
    ):
        found = one(genome_of(bases), variant, model=Chain(length=40))
        assert found.why == ""
        assert math.isfinite(found.delta)
        assert math.isfinite(found.corrected)
        assert found.windows == 12


@pytest.mark.parametrize(
    ("text", "ref", "alt"), [("A", "A", "C"), ("A", "A", "AC"), ("A", "A", "CA"), ("NAN", "A", "T")]
)
def test_a_single_known_base_is_enough(text, ref, alt):
    found = one(genome_of(text), record(text.index("A"), ref, alt))
    assert found.why == ""
    assert math.isfinite(found.corrected)
    assert found.windows == 12


def test_n_cuts_windows():
    bases = random_bases(200, seed=7)
    place = 100
    variant = record(place, letters(bases[place : place + 1]), "ACGT"[bases[place] % 4])
    holed = bases.copy()
    holed[[90, 112]] = 0
    found = one(genome_of(holed), variant)
    assert found == one(genome_of(bases[91:112]), variant._replace(position=place - 91))
    holed[place + 1] = 0
    assert one(genome_of(holed), variant).why == ""


def test_soft_masking_and_lower_case_change_nothing():
    bases = random_bases(100)
    variant = record(50, letters(bases[50:52]), "ACGTA")
    soft = record(50, letters(bases[50:52]).lower(), "acgta")
    assert one(genome_of(bases | 8), soft) == one(genome_of(bases), variant)


@pytest.mark.parametrize(
    ("variant", "why"),
    [
        (record(5, "A", "C", contig="d"), "no_contig"),
        (record(-1, "A", "C"), "outside"),
        (record(19, "AC", "A"), "outside"),
        (record(2000, "A", "C"), "outside"),
        (record(4, "C", "G"), "ref_mismatch"),
        (record(8, "N", "G"), "ref_unknown"),
        (record(8, "A", "G"), "ref_unknown"),
        (record(4, "R", "G"), "ref_unknown"),
        (record(4, "AZ", "G"), "not_dna"),
        (record(4, "A"), "no_alt"),
        (record(4, "A", "<DEL>"), "symbolic"),
        (record(4, "A", "*"), "symbolic"),
        (record(4, "A", "A[c:9["), "symbolic"),
        (record(4, "A", "]c:9]A"), "symbolic"),
        (record(4, "A", "AC."), "symbolic"),
        (record(4, "A", ".A"), "symbolic"),
        (record(4, "A", "ANC"), "alt_unknown"),
        (record(4, "A", "y"), "alt_unknown"),
        (record(4, "A", "C-"), "not_dna"),
        (record(4, "A", "A" + "ACGTT" * 30), "too_long"),
    ],
)
def test_what_is_not_scored_says_why(variant, why):
    genome = genome_of("AAAAAAAANAAAAAAAAAAA")
    model = Chain()
    found = one(genome, variant, model=model)
    assert found.why == why
    assert why in WHY
    assert math.isnan(found.delta)
    assert math.isnan(found.corrected)
    assert model.rows == 0


def test_longest_allele():
    model = Chain(length=16)
    longest = reach(6, 16).longest
    assert longest == 24
    bases = random_bases(200)
    genome = genome_of(bases)
    for size in (longest, longest + 1):
        insert = letters(random_bases(size, seed=9))
        for variant in (
            record(100, letters(bases[100:101]), letters(bases[100:101]) + insert),
            record(100, letters(bases[100 : 101 + size]), letters(bases[100:101])),
        ):
            assert one(genome, variant, model=model).why == ("" if size == longest else "too_long")
    # What REF and ALT share does not count.
    assert why_not_allele("A" * 500, "A" * 499, longest) == ""


def test_each_allele_has_its_own_score_and_the_reference_is_read_once():
    bases = random_bases(200)
    here = letters(bases[100:101])
    others = [letter for letter in "ACGT" if letter != here]
    genome, model = genome_of(bases), Chain(borders=True)
    (together,) = scores(
        genome, record(100, here, others[0], "<DEL>", others[1], here + "AC", others[2]), model=model
    )
    assert model.rows == 12 * 4 + 24
    alone = [one(genome, record(100, here, alt), model=model) for alt in (*others[:2], here + "AC", others[2])]
    assert [together[i] for i in (0, 2, 3, 4)] == alone
    assert together[1].why == "symbolic"


def test_a_score_does_not_depend_on_what_else_is_scored():
    bases, model = random_bases(300), Chain(borders=True)
    variants = list(cases(bases, places=(30, 31, 44, 120, 280)))
    genome = genome_of(bases)
    alone = [one(genome, variant, model=model) for variant in variants]
    assert [each[0] for each in scores(genome, *variants, model=model)] == alone
    assert [each[0] for each in scores(genome, *variants[::-1], model=model)] == alone[::-1]
    assert len({each.delta for each in alone}) > 30


@pytest.mark.parametrize("k", [1, 6])
def test_a_transformers_scores_keep_the_laws(k):
    model = Likelihood(*shared_model(k, length=96 // k))
    text = letters(random_bases(50, seed=3)) + "T" + "GAT" * 4 + "C" + letters(random_bases(40, seed=4))
    bases, options = codes(text), {"model": model, "phases": range(k)}
    for place, ref, alt in ((0, text[0], None), (2, text[2], None), (50, "TGAT", "T"), (95, text[95], "ACGTA")):
        variant = record(place, ref, alt or "ACGT"[codes(ref)[0] % 4])
        found = one(genome_of(bases), variant, **options)
        assert found.windows == 2 * k
        end = len(bases) - place - len(ref)
        turned = record(end, *(letters(other_strand(codes(each))) for each in (ref, variant.alts[0])))
        assert one(genome_of(other_strand(bases)), turned, **options)[:3] == pytest.approx(found[:3], abs=1e-4)
        back = one(genome_of(changed(bases, variant)), record(place, variant.alts[0], ref), **options)
        assert back[:2] == pytest.approx([-each for each in found[:2]], abs=1e-4)
        assert abs(found.delta) > 0.01
    elsewhere = one(genome_of(bases), record(59, "TGAT", "T"), **options)
    assert elsewhere == one(genome_of(bases), record(50, "TGAT", "T"), **options)
