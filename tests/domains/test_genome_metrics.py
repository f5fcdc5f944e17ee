from __future__ import annotations

import itertools
import json
import math
from difflib import SequenceMatcher

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqpope.domains.genome import metrics
from seqpope.domains.genome.bases import reverse_complement
from seqpope.domains.genome.codec import as_array
from seqpope.domains.genome.metrics import (
    chance_match,
    common_kmers,
    divergence,
    examine,
    gc_share,
    kmers,
    longest_matches,
    render,
    spectra,
)

DNA = st.text("ACGTN", max_size=60)


def random_dna(seed, length):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


def as_text(counts, k):
    return {word: int(count) for word, count in zip(kmers(k), counts, strict=True) if count}


def counted(text, k):
    words = [text[i : i + k] for i in range(len(text) - k + 1)]
    return {word: words.count(word) for word in words if "N" not in word}


class TestSpectra:
    @given(st.lists(DNA, max_size=3), st.booleans())
    def test_counts_are_those_of_counting(self, texts, both):
        found = spectra([as_array(text) for text in texts], both_strands=both)
        for k in metrics.KS:
            expected = {}
            for text in [*texts, *(map(reverse_complement, texts) if both else [])]:
                for word, count in counted(text, k).items():
                    expected[word] = expected.get(word, 0) + count
            assert as_text(found[k], k) == expected

    @pytest.mark.parametrize("chunk", [1, 4, 7])
    def test_chunks_do_not_matter(self, monkeypatch, chunk):
        text = random_dna(0, 50) + "NN" + random_dna(1, 9)
        whole = spectra([as_array(text)])
        monkeypatch.setattr(metrics, "_CHUNK", chunk)
        for k, counts in spectra([as_array(text)]).items():
            np.testing.assert_array_equal(counts, whole[k])

    def test_one_k(self):
        assert as_text(spectra([as_array("ACACA")], [2])[2], 2) == {"AC": 2, "CA": 2}
        assert common_kmers(spectra([as_array("ACACAC")], [2])[2], 2, 3) == [("AC", 0.6), ("CA", 0.4)]


def test_divergence():
    """By hand: shares 1, 0 and 1/2, 1/2; m is 3/4, 1/4."""
    expected = (math.log2(4 / 3) + 0.5 * math.log2(2 / 3) + 0.5 * math.log2(2)) / 2
    assert divergence(np.array([5, 0]), np.array([2, 2])) == pytest.approx(expected)
    assert divergence(np.array([1, 2]), np.array([10, 20])) == pytest.approx(0, abs=1e-12)
    assert divergence(np.array([1, 0]), np.array([0, 3])) == pytest.approx(1)
    assert divergence(np.array([0, 0]), np.array([0, 3])) is None


def test_gc():
    assert gc_share(as_array("GGCANN")) == 0.75
    assert gc_share(as_array("NN")) is None


def longest_by_search(sample, training):
    """Length of the longest stretch of bases in common on either strand."""
    best = 0
    for text, strand in itertools.product(training, (sample, reverse_complement(sample))):
        for a, b in itertools.product(text.split("N"), strand.split("N")):
            match = SequenceMatcher(None, a, b, autojunk=False).find_longest_match(0, len(a), 0, len(b))
            best = max(best, match.size)
    return best


def check(match, sample, training):
    """What a match says is so."""
    text = dict(training)[match.name][match.there : match.there + match.length]
    own = sample[match.start : match.start + match.length]
    assert "N" not in own
    assert len(own) == match.length
    assert own == (text if match.strand == "+" else reverse_complement(text))


def search(samples, training):
    return longest_matches([as_array(s) for s in samples], [(name, as_array(text)) for name, text in training])


class TestMatches:
    @settings(max_examples=200, deadline=None)
    @given(st.lists(DNA, min_size=1, max_size=3), st.lists(DNA, max_size=3), st.integers(0, 3))
    def test_as_long_as_by_search(self, samples, texts, planted):
        if texts and planted:
            texts[0] += samples[0][planted:] + "T"
            texts[-1] = reverse_complement(samples[-1])[:-planted] + texts[-1]
        training = [(str(i), text) for i, text in enumerate(texts)]
        for sample, match in zip(samples, search(samples, training), strict=True):
            expected = longest_by_search(sample, texts)
            assert (match.length if match else 0) == expected
            if match:
                check(match, sample, training)

    @pytest.mark.parametrize("strand", "+-")
    @pytest.mark.parametrize("length", [33, 64, 500, 2000])
    def test_a_planted_copy_is_found_where_it_is(self, strand, length):
        sample, other = random_dna(1, 2000), random_dna(2, 300)
        start = (2000 - length) // 2
        copy = sample[start : start + length]
        copy = copy if strand == "+" else reverse_complement(copy)
        training = [("x", random_dna(3, 5000)), ("y", f"{random_dna(4, 3000)}N{copy}N{random_dna(5, 2000)}")]
        match, none = search([sample, other], training)
        assert (match.length, match.start, match.name, match.there, match.strand) == (
            length, start, "y", 3001, strand,
        )  # fmt: skip
        assert none.length < 20
        check(none, other, training)

    @pytest.mark.parametrize("chunk", [40, 64, 1000])
    @pytest.mark.parametrize("pairs", [1, 1 << 22])
    def test_chunks_cut_nothing(self, monkeypatch, chunk, pairs):
        """The longest stretch lies over several chunks, shorter ones within one of them."""
        sample = random_dna(1, 600)
        monkeypatch.setattr(metrics, "_CHUNK", chunk)
        monkeypatch.setattr(metrics, "_PAIRS", pairs)
        training = [("x", random_dna(2, 777) + sample[100:135] + "N" + random_dna(3, 50) + sample[200:500] + "N")]
        (match,) = search([sample], training)
        assert match.start <= 200
        assert 300 <= match.length < 310
        check(match, sample, training)

    def test_runs_of_one_base(self):
        """Every word matches at every place."""
        training = [("x", "C" * 30 + "A" * 3000 + "G"), ("y", "T" * 50)]
        (match,) = search(["G" + "A" * 2000 + "C"], training)
        assert match.length == 2000
        check(match, "G" + "A" * 2000 + "C", training)

    def test_nothing_in_common(self):
        assert search(["AAAA", "", "NN"], [("x", "CCCC")]) == [None, None, None]
        assert search(["ACGT"], []) == [None]
        assert search([], [("x", "ACGT")]) == []


def test_chance():
    """Random sequences have about so long a match."""
    found = []
    for seed in range(20):
        (match,) = search([random_dna(seed, 1000)], [("x", random_dna(100 + seed, 20_000))])
        found.append(match.length)
    assert np.mean(found) == pytest.approx(chance_match(1000, 20_000), abs=1.5)


class TestExamine:
    def make(self, copied=0):
        training = [("chr1", random_dna(1, 20_000)), ("chr2", "N" * 500 + random_dna(2, 5000))]
        own = random_dna(3, 600)
        text = own[:100] + reverse_complement(training[0][1][700 : 700 + copied]) + own[100 + copied :]
        samples = [("a", as_array(text)), ("b", as_array(random_dna(4, 900)))]
        return examine(samples, [(name, as_array(text)) for name, text in training])

    def test_json_holds_it(self):
        result = self.make(200)
        assert json.loads(json.dumps(result))["samples"][0]["bases"] == 600
        assert result["training_bases"] == 25_000

    def test_copies_are_told(self):
        text = render(self.make(200))
        assert "**a copies chr1**: 20" in text
        assert "reverse complement" in text
        assert "**b" not in text

    def test_no_copy_is_told_with_what_chance_would_do(self):
        text = render(self.make())
        assert "No sample shares 64 bases in a row with the 25,000 given; the longest stretch has 1" in text
        assert "copies" not in text

    def test_short_windows_of_the_training_sequences_diverge_as_much_as_random_samples(self):
        result = self.make()
        for k in "3", "6":
            assert result["mean"]["divergence"][k] == pytest.approx(result["windows"]["divergence"][k], rel=0.5)
        biased = examine([("a", as_array("ACGGC" * 200))], [("x", as_array(random_dna(1, 20_000)))])
        assert biased["mean"]["divergence"]["3"] > 5 * biased["windows"]["divergence"]["3"]

    def test_without_training_sequences(self):
        result = examine([("a", as_array("ACGT"))])
        assert result["windows"] is result["samples"][0]["match"] is None
        assert "not looked for" in render(result)

    def test_nothing_in_common(self):
        result = examine([("a", as_array("NNNN"))], [("x", as_array("ACGTACGT"))])
        assert "No sample shares" in render(result)
