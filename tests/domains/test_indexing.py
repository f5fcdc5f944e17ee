"""Indirect Indexing: examples are what the task says, and the target alone is scored."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_prep.indexing import prepare
from seqpope.config import DataConfig
from seqpope.data.datamodule import TokenDataModule
from seqpope.data.shards import SCORED, StoreError
from seqpope.domains.base import find_kind, open_store
from seqpope.domains.indexing.store import IndexingStore
from seqpope.domains.indexing.task import LONGEST, IndexingTokenizer, draw
from seqpope.errors import SeqpopeError

COUNTS = {"train": 40, "validation": 7, "test": 5}
EXAMPLE = re.compile(r"([A-Za-z]{20,40}), ([A-Za-z]), (-?[1-9][0-9]?|0), ([A-Za-z])")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "indexing"
    prepare(folder, counts=COUNTS, progress=lambda _: None)
    return open_store(folder)


class TestTask:
    def test_every_example_is_solved_by_its_target(self):
        tokenizer = IndexingTokenizer()
        shifts, lengths = [], []
        for row in draw(3, 0, 3000):
            match = EXAMPLE.fullmatch(tokenizer.decode(row))
            assert match, tokenizer.decode(row)
            text, letter, shift, target = match.groups()
            assert len(set(text)) == len(text)
            assert text[text.index(letter) + int(shift)] == target
            assert text.index(letter) + int(shift) >= 0
            shifts.append(int(shift))
            lengths.append(len(text))
        assert set(shifts) == set(range(-15, 16))
        assert set(lengths) == set(range(20, 41))

    def test_longest_example_fits_and_fills_a_row(self):
        longest = np.count_nonzero(draw(0, 0, 20_000), axis=1)
        assert longest.max() == LONGEST == 51

    def test_is_a_function_of_seed_and_split_whatever_the_count(self):
        assert (draw(1, 0, 50) == draw(1, 0, 50)).all()
        assert (draw(1, 0, 50) != draw(1, 1, 50)).any()
        assert (draw(1, 0, 50) != draw(2, 0, 50)).any()

    def test_text_round_trip(self):
        tokenizer = IndexingTokenizer()
        text = "XubjOYAnEGDZepwTWJlm, Z, -13, H"
        assert tokenizer.decode(tokenizer.encode(text)) == text
        with pytest.raises(SeqpopeError, match="'\\+' came"):
            tokenizer.encode("ab, a, +1, b")
        with pytest.raises(SeqpopeError, match="1 to 66 came"):
            tokenizer.decode(np.array([1, 66]))


class TestStore:
    def test_only_targets_are_scored(self, store):
        split = store.split("test")
        assert len(split) == COUNTS["test"]
        for document in range(len(split)):
            flags = split.flags[split.starts[document] : split.starts[document + 1]]
            assert (flags == [0] * (len(flags) - 1) + [SCORED]).all()
            assert EXAMPLE.fullmatch(IndexingTokenizer().decode(split.document(document)))

    def test_a_pass_reads_every_example_once(self, store):
        windows = store.windows("train", length=51, batch_size=6, seed=4)
        rows = np.concatenate([windows(step)[1] for step in range(20)])  # three passes of 40
        for each in np.split(rows, 3):
            assert {bytes(row.astype(np.uint8)) for row in each} == {bytes(row) for row in store.examples("train")}
        assert (rows[:40] != rows[40:80]).any()

    def test_batches_predict_a_token_from_those_before_it(self, store):
        data = TokenDataModule(store, DataConfig(51, 4), seed=0, steps=3, length_multiple=128, pad_whole=True)
        batch = data.batches[2]
        assert batch.ids.shape == (4, 51)
        assert (batch.ids[:, 0] == 0).all()
        assert (batch.ids[:, 1:] == batch.targets[:, :-1]).all()
        assert (batch.scored.sum(1) == 1).all()
        last = batch.scored.int().argmax(1)
        assert (batch.targets[range(4), last] > 0).all()
        for row, place in enumerate(last):
            assert (batch.targets[row, place + 1 :] == 0).all()

    def test_a_window_too_short_for_an_example_is_refused(self, store):
        with pytest.raises(SeqpopeError, match=r"data.length is 40, and an example has up to 51"):
            store.windows("train", length=40, batch_size=1, seed=0)

    def test_weights_of_what_it_has_not_are_refused(self, store):
        with pytest.raises(SeqpopeError, match="no soft-masked tokens"):
            store.windows("train", length=51, batch_size=1, seed=0, soft_mask_weight=0.5)

    def test_prepared_once(self, tmp_path):
        said: list[str] = []
        first = prepare(tmp_path / "indexing", counts=COUNTS, progress=said.append)
        again = prepare(tmp_path / "indexing", counts=COUNTS, progress=said.append)
        assert first.content == again.content
        assert "already prepared" in said[-1]
        more = prepare(tmp_path / "indexing", counts={**COUNTS, "test": 6}, progress=said.append)
        assert more.content != first.content
        with pytest.raises(SeqpopeError, match="take no source"):
            prepare(tmp_path / "indexing", source=Path("x"))

    def test_damage_is_told(self, tmp_path):
        prepare(tmp_path / "indexing", counts=COUNTS, progress=lambda _: None)
        np.save(tmp_path / "indexing" / "test.examples.npy", np.zeros((3, LONGEST), np.uint8))
        with pytest.raises(StoreError, match="should be \\(5, 51\\), it is \\(3, 51\\)"):
            IndexingStore(tmp_path / "indexing")
        (tmp_path / "indexing" / "test.examples.npy").unlink()
        with pytest.raises(StoreError, match="prepare it again"):
            open_store(tmp_path / "indexing")

    def test_damage_elsewhere(self, tmp_path):
        """A store of another name and place is made again there; other kinds of numbers are no examples."""
        folder = tmp_path / "mine"
        prepare(folder, counts=COUNTS, progress=lambda _: None)
        np.save(folder / "test.examples.npy", np.zeros((COUNTS["test"], LONGEST)))
        with pytest.raises(StoreError, match=r"uint8, it is float64.*prepare indexing --out .*mine --force"):
            IndexingStore(folder)
        prepare(folder, counts=COUNTS, progress=lambda _: None)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "provenance": {}}))
        said: list[str] = []
        prepare(folder, counts=COUNTS, progress=said.append)
        assert "test 5 examples" in said[-1]

    def test_nothing_is_drawn_from_its_models(self):
        with pytest.raises(SeqpopeError, match="nothing can be drawn from a model of 'indexing'"):
            find_kind("indexing", "indexing")
