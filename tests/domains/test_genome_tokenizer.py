from __future__ import annotations

import itertools
import re
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqpope.data.shards import fingerprint
from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.tokenizer import BaseTokenizer, SixMerTokenizer, TokenError

SIX, BASE = SixMerTokenizer(), BaseTokenizer()
DNA = st.text("ACGTN", max_size=80)
MOSTLY_BASES = st.lists(st.sampled_from(["N", "A", "CG", "GATTACA", "ACGTTGCA" * 3]), max_size=12).map("".join)


def by_hand(text, align="start"):
    """Splitting as its description has it, one letter after the other."""
    pieces = re.findall("N|[ACGT]+", text)
    last = max((i for i, piece in enumerate(pieces) if piece != "N"), default=None)
    words = []
    for i, piece in enumerate(pieces):
        if piece == "N":
            words.append(piece)
            continue
        rest = len(piece) % 6
        if align == "end" and i == last:
            words += [*piece[:rest], *(piece[j : j + 6] for j in range(rest, len(piece), 6))]
        else:
            words += [*(piece[j : j + 6] for j in range(0, len(piece) - rest, 6)), *piece[len(piece) - rest :]]
    return words


def test_ids_of_six_mers():
    """By hand: A 0, T 1, C 2, G 3, the last base counts ones, and 4 specials come first."""
    for text, ids in (
        ("AAAAAA", [4]),
        ("AAAAAT", [5]),
        ("AAAAAC", [6]),
        ("AAAAAG", [7]),
        ("AAAATA", [8]),
        ("TAAAAA", [4 + 1024]),
        ("GAATTC", [4 + 3 * 1024 + 1 * 16 + 1 * 4 + 2]),
        ("GGGGGG", [4099]),
        ("ATCGN", [4100, 4101, 4102, 4103, 4104]),
        ("AAAAAAGNNAAAAATTC", [4, 4103, 4104, 4104, 5, 4101, 4102]),
        ("AAAAAN", [4100] * 5 + [4104]),
        ("", []),
    ):
        assert SIX.encode(text).tolist() == ids
    assert SIX.encode("GG").dtype == np.uint16


def test_vocabulary_is_the_published_one():
    words = ["<unk>", "<pad>", "<mask>", "<cls>", *map("".join, itertools.product("ATCG", repeat=6)), *"ATCGN"]
    words += ["<eos>", "<bos>"]
    assert len(words) == SIX.vocabulary_size == 4107
    assert [text or word for text, word in zip(SIX.strings, words, strict=True)] == words
    assert words[SIX.padding_id] == "<pad>"
    assert words[SIX.n_id] == "N"
    assert SIX.bases_of.tolist() == [0] * 4 + [6] * 4096 + [1] * 5 + [0] * 2
    for token in range(4, 4105):
        assert SIX.encode(SIX.strings[token]).tolist() == [token]


def test_ids_of_bases():
    assert BASE.encode("ACGTN").tolist() == [1, 2, 3, 4, 5]
    assert BASE.encode("").tolist() == []
    assert (BASE.vocabulary_size, BASE.padding_id, BASE.n_id) == (6, 0, 5)
    assert BASE.strings == ("", "A", "C", "G", "T", "N")
    assert BASE.bases_of.tolist() == [0, 1, 1, 1, 1, 1]


def test_fingerprints_are_those_of_the_specifications_and_stay():
    """Checkpoints carry them: a change of ids must change them, and nothing else may."""
    for tokenizer in (SIX, BASE):
        assert tokenizer.fingerprint == fingerprint(tokenizer.specification)
    assert SIX.fingerprint == "64158d2ed245711dfce4825501d5df895b996f2f8c08768ff7b669b19ba4c7af"
    assert BASE.fingerprint == "b07ed78d50dd351bb1342ed2e664840820223a2adcd4da666429a04ad58d13ad"


@given(DNA | MOSTLY_BASES, st.sampled_from(["start", "end"]))
def test_six_mers_split_as_described_and_round_trip(text, align):
    ids = SIX.encode(text, align=align)
    assert [SIX.strings[token] for token in ids] == by_hand(text, align)
    assert SIX.decode(ids) == text
    assert SIX.bases_of[ids].sum() == len(text)


@given(DNA)
def test_bases_round_trip(text):
    ids = BASE.encode(text)
    assert BASE.decode(ids) == text
    assert len(ids) == len(text)


@pytest.mark.parametrize("tokenizer", [SIX, BASE])
@given(text=st.text("ACGTNacgtn", max_size=60))
def test_text_bytes_and_letters_are_one_and_case_does_not_matter(tokenizer, text):
    expected = tokenizer.encode(text.upper()).tolist()
    letters = np.frombuffer(text.encode(), np.uint8)
    for form in (text, text.encode(), letters, np.repeat(letters, 2)[::2]):
        assert tokenizer.encode(form).tolist() == expected


@given(DNA | MOSTLY_BASES)
def test_aligned_to_the_end_what_follows_goes_on_in_six_mers(text):
    """The last stretch ends with a six-mer if it has one, so the bases that follow are in its phase."""
    ids = SIX.encode(text, align="end")
    stretch = re.search("[ACGT]*$", text).group()
    if len(stretch) >= 6:
        assert SIX.strings[ids[-1]] == text[-6:]


@given(DNA | MOSTLY_BASES)
def test_prompts_end_with_a_six_mer_and_leave_out_less_than_one(text):
    ids, dropped = SIX.encode_prompt(text)
    assert SIX.decode(ids) == text[dropped:]
    assert dropped == (0 if "N" in text else len(text) % 6)
    if "N" not in text:
        assert (SIX.bases_of[ids] == 6).all()
    assert BASE.encode_prompt(text)[1] == 0
    assert BASE.decode(BASE.encode_prompt(text)[0]) == text


@pytest.mark.parametrize("tokenizer", [SIX, BASE])
def test_codes_for_several_bases_are_counted_or_refused(tokenizer):
    replaced = Counter()
    text = "ACGTACGRyNRACGTAC"
    assert tokenizer.decode(tokenizer.encode(text, replaced)) == "ACGTACGNNNNACGTAC"
    assert replaced == {"R": 2, "Y": 1}
    with pytest.raises(
        SequenceError, match=r"'R' at position 7 .*stands for several bases.*Counter as `replaced`"
    ):
        tokenizer.encode(text)


@pytest.mark.parametrize("tokenizer", [SIX, BASE])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ACGTACU", "'U' at position 6 .*RNA"),
        ("ACGTAC-GTACGTACGT", "'-' at position 6 .*gaps"),
        ("MKTAYIAKQR", "'I' at position 5 .*protein"),
        ("ACG T", "' ' at position 3"),
        ("ACGÄ", "'Ä' at position 3"),
        ("ACGTA\x00", r"'\\x00' at position 5"),
    ],
)
def test_what_is_no_dna_is_named_with_its_place(tokenizer, text, message):
    with pytest.raises(SequenceError, match=message):
        tokenizer.encode(text, Counter())


def test_arrays_are_uint8_letters():
    with pytest.raises(SequenceError, match=r"int64 of shape \(3,\)"):
        SIX.encode(np.array([65, 67, 71]))
    with pytest.raises(SequenceError, match=r"uint8 of shape \(2, 6\)"):
        SIX.encode(np.zeros((2, 6), np.uint8))


class TestBatch:
    def letters(self, *texts):
        return np.array([list(text.encode()) for text in texts], np.uint8)

    def test_windows_are_what_each_is_alone(self):
        generator = np.random.default_rng(0)
        for length, letters in (
            (0, b"A"),
            (6, b"ACGT"),
            (30, b"ACGTacgt"),
            (18, b"ACGT" * 9 + b"N"),
            (31, b"ACGT"),
            (40, b"ACGTNn"),
        ):
            windows = generator.choice(np.frombuffer(letters, np.uint8), (5, length))
            ids, lengths = SIX.encode_batch(windows)
            assert ids.dtype == np.uint16
            for window, row, count in zip(windows, ids, lengths, strict=True):
                alone = SIX.encode(window)
                assert row.tolist() == [*alone, *[SIX.padding_id] * (ids.shape[1] - len(alone))]
                assert count == len(alone)

    def test_a_mapped_file_is_read_where_it_lies(self, tmp_path):
        np.save(tmp_path / "bases.npy", self.letters("ACGTACTTTTTTGGGGGG" * 2)[0])
        mapped = np.load(tmp_path / "bases.npy", mmap_mode="r")
        windows = np.lib.stride_tricks.sliding_window_view(mapped, 12)[::5]
        ids, _ = SIX.encode_batch(windows)
        assert [SIX.decode(row) for row in ids] == [bytes(window).decode() for window in windows]
        assert SIX.decode(SIX.encode(mapped)) == "ACGTACTTTTTTGGGGGG" * 2

    def test_errors_name_the_window(self):
        with pytest.raises(SequenceError, match="window 1: 'X' at position 2"):
            SIX.encode_batch(self.letters("ACGTAC", "ACXTAC"))
        with pytest.raises(SequenceError, match=r"shape \(B, L\), they are int64"):
            SIX.encode_batch(np.zeros((2, 6), int))

    @pytest.mark.slow
    def test_fifty_million_tokens_a_second(self):
        windows = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), (1024, 6000))
        took = []
        for _ in range(5):
            begun = time.perf_counter()
            SIX.encode_batch(windows)
            took.append(time.perf_counter() - begun)
        assert windows.size / 6 / min(took) > 50e6


class TestDecode:
    @pytest.mark.parametrize("tokenizer", [SIX, BASE])
    def test_padding_at_the_end_is_left_out(self, tokenizer):
        padded = [*tokenizer.encode("ACGTACG"), *[tokenizer.padding_id] * 3]
        assert tokenizer.decode(padded) == "ACGTACG"
        assert tokenizer.decode([tokenizer.padding_id] * 2) == ""
        assert tokenizer.decode([]) == ""

    def test_what_is_no_sequence_is_refused(self):
        for ids, message in (
            ([4, 1, 5], r"token 1 is 1, a special .*padding may only follow"),
            ([3, 4], "token 0 is 3, a special"),
            ([4107], r"token 0 is 4107, outside the vocabulary's 0\.\.4106"),
            ([-1], "token 0 is -1, outside"),
            ([4.0], "must be a list of integers, they are float64"),
            ([[4]], r"of shape \(1, 1\)"),
        ):
            with pytest.raises(TokenError, match=message):
                SIX.decode(ids)
        with pytest.raises(TokenError, match=r"0\.\.5"):
            BASE.decode([6])
