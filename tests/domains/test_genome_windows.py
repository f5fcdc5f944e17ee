"""Training windows of a genome: what is drawn is what the genome says, on either strand, everywhere alike."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from genomes import make_store, random_dna

from seqpope.data.shards import StoreError
from seqpope.domains.genome.bases import reverse_complement
from seqpope.domains.genome.reading import Reading, reading_of
from seqpope.domains.genome.sequences import SOFT_MASKED, other_strand
from seqpope.domains.genome.store import LEAST
from seqpope.domains.genome.tokenizer import BaseTokenizer, SixMerTokenizer

TOKENIZERS = [SixMerTokenizer(), BaseTokenizer()]


@pytest.fixture(params=TOKENIZERS, ids=["six", "one"])
def tokenizer(request):
    return request.param


def codes(text):
    table = np.zeros(256, np.uint8)
    for number, letter in enumerate("ACGT", 1):
        table[ord(letter)], table[ord(letter.lower())] = number, number | SOFT_MASKED
    return table[np.frombuffer(text.encode(), np.uint8)]


class TestReading:
    @pytest.mark.parametrize("tokens", [0, 1, 2, 7, 8191, 8192, 8193, 20_000])
    def test_ids_are_the_tokenizers(self, tokenizer, tokens):
        reading = Reading(tokenizer)
        text = random_dna(reading.k * tokens, tokens)
        ids = reading.ids(codes(text))
        assert ids.dtype == reading.dtype
        assert ids.tolist() == tokenizer.encode(text).tolist()
        lower = np.array([c.islower() for c in text], bool).reshape(-1, reading.k).sum(1)
        assert reading.soft(codes(text)).tolist() == lower.tolist()

    def test_the_other_strand(self, tokenizer):
        reading = Reading(tokenizer)
        text = random_dna(reading.k * 500)
        numbers = reading.numbers(codes(text))
        assert reading.forward[numbers].tolist() == tokenizer.encode(text).tolist()
        assert reading.reverse[numbers][::-1].tolist() == tokenizer.encode(reverse_complement(text)).tolist()
        assert (reading.numbers(other_strand(codes(text))) < 4**reading.k).all()

    def test_every_word_has_its_own_id(self, tokenizer):
        reading = Reading(tokenizer)
        assert len(set(reading.forward.tolist())) == 4**reading.k
        assert sorted(reading.reverse.tolist()) == sorted(reading.forward.tolist())

    def test_unknown_bases_stay_in_range(self, tokenizer):
        reading = Reading(tokenizer)
        text = random_dna(reading.k * 5000, 0, "ACGTacgtNn")
        assert (reading.numbers(codes(text)) < 4**reading.k).all()

    def test_another_tokenizer(self):
        with pytest.raises(StoreError, match="prepare the data again"):
            reading_of("ab" * 32)


def genome(tmp_path, tokenizer, **options):
    """One contig of which a middle part trains, and one whose stretches are shorter than a window."""
    random = np.random.default_rng(5)
    one = random_dna(3000, 1)
    two = "".join(random_dna(int(n), int(n)) + "N" * 3 for n in random.integers(LEAST, 2 * LEAST, 9))
    sequences = {"one": one, "two": two, "three": "N" * 40 + random_dna(700, 3)}
    rows = {"train": [("one", 500, 2500), ("two", 0, len(two)), ("three", 0, 740)], "test": [("one", 2500, 3000)]}
    return sequences, make_store(tmp_path / "s", sequences, rows, tokenizer, **options)


def rows_of(store, steps=20, length=40, batch_size=8, **options):
    windows = store.windows("train", length=length, batch_size=batch_size, seed=3, **options)
    for step in range(steps):
        yield from zip(*windows(step), strict=True)


def places(sequences):
    """Both strands of what trains, upper case."""
    known = [sequences["one"][500:2500], *sequences["two"].split("N"), sequences["three"][40:]]
    return [text for text in known if len(text) >= LEAST]


class TestWindows:
    def test_rows_are_the_genome_on_either_strand(self, tmp_path, tokenizer):
        sequences, store = genome(tmp_path, tokenizer)
        k, seen = store.reading.k, {"forward": 0, "reverse": 0, "before": 0, "padding": 0, "short": 0}
        texts = places(sequences)
        for ids, targets, counts in rows_of(store, length=40 if k == 6 else 200):
            size = int(counts.sum())
            assert counts.dtype == bool
            assert counts[:size].all()
            assert (targets[size:] == tokenizer.padding_id).all()
            assert (ids[size + 1 :] == tokenizer.padding_id).all()
            assert ids[1:size].tolist() == targets[: size - 1].tolist()
            begins = ids[0] == tokenizer.padding_id
            read = ([] if begins else [ids[0]]) + targets[:size].tolist()
            text = tokenizer.decode(np.array(read))
            forward = [t for t in texts if text in t.upper()]
            reverse = [t for t in texts if text in reverse_complement(t).upper()]
            assert forward or reverse
            seen["forward" if forward else "reverse"] += 1
            seen["padding" if begins else "before"] += 1
            if size < len(targets):
                seen["short"] += 1
                (found,) = {*forward, *reverse}
                assert len(found) - k * size < 2 * k  # to its end, from one of its first bases
        assert min(seen.values()) > 20, seen

    def test_one_strand_alone(self, tmp_path, tokenizer):
        sequences, store = genome(tmp_path, tokenizer)
        texts = [text.upper() for text in places(sequences)]
        for _, targets, counts in rows_of(store, reverse_complement=False):
            assert any(tokenizer.decode(targets[counts]) in text for text in texts)

    @pytest.mark.parametrize("weight", [0.0, 0.25])
    def test_soft_masked_tokens_have_their_weight(self, tmp_path, tokenizer, weight):
        sequences, store = genome(tmp_path, tokenizer)
        k = store.reading.k
        plain = list(rows_of(store))
        texts = [*places(sequences), *map(reverse_complement, places(sequences))]
        weighted, values = rows_of(store, soft_mask_weight=weight), set()
        for (ids, targets, counts), (a, b, whole) in zip(weighted, plain, strict=True):
            assert (ids == a).all()
            assert (targets == b).all()
            assert counts.dtype == np.float32
            text = tokenizer.decode(targets[whole])
            (found,) = {t[t.upper().index(text) :][: len(text)] for t in texts if text in t.upper()}
            lower = np.array([c.islower() for c in found]).reshape(-1, k).sum(1)
            assert counts[whole].tolist() == np.where(2 * lower > k, weight, 1).tolist()
            assert not counts[~whole].any()
            values |= set(counts[whole].tolist())
        assert values == {weight, 1.0}

    def test_every_base_as_often_as_any_other(self, tmp_path):
        """In long stretches and short ones alike, and in every phase; only the ends of long ones less."""
        text = random_dna(4000, 1) + "N" + random_dna(300, 2) + "N" + random_dna(200, 3)
        store = make_store(tmp_path / "s", {"a": text}, {"train": [("a", 0, len(text))]})
        windows = store.windows("train", length=60, batch_size=64, seed=0)
        at = {text[i : i + 30].upper(): i for i in range(len(text) - 29)}
        at |= {reverse_complement(t): -i - 30 for t, i in at.items()}
        seen, phases = np.zeros(len(text)), np.zeros(6)
        steps = 150
        for step in range(steps):
            for row, count in zip(*windows(step)[1:], strict=True):
                letters = store.reading.tokenizer.decode(row[count])
                place = at[letters[:30]]
                first = place if place >= 0 else -place - len(letters)
                seen[first : first + len(letters)] += 1
                phases[first % 6] += 1
        expected = steps * 64 * 360 / (4000 + 2 * 360)
        assert seen[:4000].mean() == pytest.approx(expected, rel=0.03)
        assert np.ptp(seen[360:3640].reshape(8, -1).mean(1)) < 0.2 * expected
        assert seen[4001 + 5 : 4301 - 5].mean() == pytest.approx(expected, rel=0.1)
        assert seen[4302 + 5 : 4502 - 5].mean() == pytest.approx(expected, rel=0.1)
        assert not seen[[4000, 4301]].any()
        assert phases.min() > 0.8 * phases.mean()

    def test_a_function_of_seed_and_step(self, tmp_path, tokenizer):
        _, store = genome(tmp_path, tokenizer)

        def drawn(seed, step, opened=store):
            windows = opened.windows("train", length=30, batch_size=5, seed=seed)
            return b"".join(np.ascontiguousarray(array).tobytes() for array in windows(step))

        assert drawn(0, 7) == drawn(0, 7, pickle.loads(pickle.dumps(store)))
        assert len({drawn(seed, step) for seed in (0, 1) for step in (0, 1, 7)}) == 6

    @pytest.mark.parametrize("bases", [1, 1000, 10**9])
    def test_however_many_rows_are_read_at_once(self, tmp_path, tokenizer, bases, monkeypatch):
        _, store = genome(tmp_path, tokenizer)
        expected = list(rows_of(store, steps=3, soft_mask_weight=0.5))
        monkeypatch.setattr("seqpope.domains.genome.windows._AT_ONCE", bases)
        for row, other in zip(expected, rows_of(store, steps=3, soft_mask_weight=0.5), strict=True):
            assert all((a == b).all() for a, b in zip(row, other, strict=True))

    def test_whole_says_whether_most_rows_fill_a_window(self, tmp_path, tokenizer):
        _, store = genome(tmp_path, tokenizer)
        k = store.reading.k
        sizes = np.diff(store.known("train")[:, 1:])[:, 0]
        for length, expected in ((100 // k, True), (sizes.max() // k + 1, False)):
            assert store.windows("train", length=int(length), batch_size=2, seed=0).whole == expected

    def test_a_split_without_bases(self, tmp_path, tokenizer):
        text = "N" * 50 + random_dna(LEAST - 1)
        store = make_store(tmp_path / "s", {"a": text}, {"train": [("a", 0, 169)], "test": []}, tokenizer)
        for name in ("train", "test"):
            with pytest.raises(StoreError, match="is empty"):
                store.windows(name, length=5, batch_size=1, seed=0)
        with pytest.raises(StoreError, match="'dev' was asked for"):
            store.windows("dev", length=5, batch_size=1, seed=0)
