from __future__ import annotations

import math

import numpy as np
import pytest

from seqpope.domains.genome.bases import SequenceError, reverse_complement
from seqpope.domains.genome.leakage import find_shared
from seqpope.domains.genome.sequences import as_text, known_stretches, other_strand


def dna(size, seed=0):
    return np.random.default_rng(seed).integers(1, 5, size).astype(np.uint8)


def naive(test, training, k):
    """Words of both strands as a set of text, and masks base by base."""
    known = set()
    for stretch in training:
        for text in (as_text(stretch).upper(), reverse_complement(as_text(stretch).upper())):
            known.update(text[i : i + k] for i in range(len(text) - k + 1))
    words, shared, masks = 0, 0, []
    for stretch in test:
        text, mask = as_text(stretch).upper(), np.zeros(len(stretch), bool)
        for i in range(len(text) - k + 1):
            words += 1
            if text[i : i + k] in known:
                shared += 1
                mask[i : i + k] = True
        masks.append(mask)
    return words, shared, masks


def check(test, training, k):
    found = find_shared(test, iter(training), k)
    words, shared, masks = naive(test, training, k)
    assert (found.words, found.shared) == (words, shared)
    for one, other in zip(found.masks, masks, strict=True):
        assert one.tolist() == other.tolist()
    return found


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7, 11, 16, 17, 31, 32])
def test_as_a_set_of_words_would_have_it(k):
    whole = dna(4000, k)
    test = [
        dna(0),
        dna(max(0, k - 1), 1),  # shorter than a word
        whole[100 : 100 + k],  # exactly one
        np.concatenate([dna(200, 2), whole[300:390], dna(5, 3), other_strand(whole)[50:177]]),
        whole[500:700] | 8,  # soft-masked, the same bases
        dna(600, 4),
    ]
    training = [whole[:1000], dna(0), whole[1000 : 1000 + k], dna(k - 1, 5), whole[990:]]
    found = check(test, training, k)
    assert found.shared > 0


@pytest.mark.parametrize("k", [4, 32])
def test_palindromes_are_their_own_other_strand(k):
    half = dna(k // 2, 9)
    palindrome = np.concatenate([half, other_strand(half)])
    assert (palindrome == other_strand(palindrome)).all()
    found = check([palindrome, dna(90, 1)], [dna(50, 2), palindrome], k)
    assert found.masks[0].all()


def test_the_other_strand_of_the_training_sequences_counts():
    training = dna(500)
    assert find_shared([other_strand(training)], [training]).share == 1
    assert find_shared([(training)[::-1].copy()], [training]).share == 0


def test_no_word_reaches_across_n_or_from_one_stretch_into_the_next():
    bases = dna(200)
    broken = bases.copy()
    broken[100] = 0
    pieces = [broken[a:b] for a, b in known_stretches(broken)]
    assert [len(piece) for piece in pieces] == [100, 99]
    found = check([bases], pieces, 32)
    assert found.words - found.shared == 32  # those over the N
    assert found.masks[0].sum() == 199
    assert find_shared([bases[84:116]], pieces).share == 0


def test_nothing_given_is_nothing_found():
    assert math.isnan(find_shared([], [dna(50)]).share)
    assert find_shared([dna(50)], []).share == 0
    assert find_shared([dna(10)], [dna(50)]).masks[0].tolist() == [False] * 10


def test_batches_leave_no_gap(monkeypatch):
    monkeypatch.setattr("seqpope.domains.genome.kmers.kmer_batches.__defaults__", (57,))
    training = dna(5000)
    test = [training[i : i + 32] for i in range(0, 4968, 7)]
    assert find_shared(test, [training]).share == 1


def test_more_words_than_the_smallest_bitmap_holds():
    training, other = dna(30_000), dna(30_000, 1)
    found = find_shared([np.concatenate([training[:20_000], other])], [training])
    assert found.shared == 20_000 - 31


def test_progress_counts_training_bases():
    seen = []
    find_shared([dna(40)], [dna(100), dna(50)], progress=seen.append)
    assert seen == [100, 150]


def test_n_is_refused():
    with pytest.raises(SequenceError, match="cut sequences at N"):
        find_shared([np.zeros(40, np.uint8)], [])
    with pytest.raises(ValueError, match="1 to 32"):
        find_shared([dna(40)], [], 33)
