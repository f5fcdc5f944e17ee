from __future__ import annotations

import itertools
import os
import signal

import numpy as np
import pytest
import torch
from genomes import make_store as make_genome
from genomes import random_dna
from stores import (
    ALIGNMENT,
    HIGHEST,
    LOWEST,
    PADDING,
    SILENCE,
    make_manifest,
    make_split,
    make_store,
)

from seqpope.config import DataConfig
from seqpope.data.datamodule import DrawnBatches, TokenDataModule, TrainingBatches, _mean_longest
from seqpope.data.shards import SCORED, pack
from seqpope.errors import SeqpopeError

LENGTHS = [21, 40, 8, 0, 33, 16]
FILLED = [0, 1, 2, 4, 5]


def numbered_split(lengths):
    """Token ids that tell their document and place: 100 document + place, from 100 up."""
    documents = [100 * (i + 1) + np.arange(n) for i, n in enumerate(lengths)]
    flags = [np.full(n, SCORED, np.uint8) for n in lengths]
    return pack(documents, flags, [str(i) for i in range(len(lengths))], np.uint16)


def make_batches(split=None, seed=0, manifest=None, length_multiple=1, **config):
    return TrainingBatches(
        make_split(LENGTHS) if split is None else split,
        manifest or make_manifest(),
        DataConfig(**{"length": 16, "batch_size": 3, **config}),
        seed,
        length_multiple=length_multiple,
    )


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


EVERYTHING = {"transpose": (-3, 3)}


class TestBatchIsAFunctionOfSeedAndStep:
    def test_same_step_same_batch_in_any_order(self):
        one, other = make_batches(**EVERYTHING), make_batches(**EVERYTHING)
        forward = [one[step] for step in range(12)]
        backward = [other[step] for step in reversed(range(12))][::-1]
        assert all(equal(a, b) for a, b in zip(forward, backward, strict=True))

    def test_global_randomness_has_no_part(self):
        torch.manual_seed(0)
        np.random.seed(0)
        first = make_batches(**EVERYTHING)[5]
        torch.manual_seed(1)
        np.random.seed(1)
        assert equal(make_batches(**EVERYTHING)[5], first)

    def test_steps_and_seeds_differ(self):
        split = numbered_split([40] * 6)
        batches = make_batches(split, seed=0)
        assert not equal(batches[0], batches[2])
        assert not equal(batches[0], make_batches(split, seed=1)[0])

    def test_the_seed_orders_documents(self):
        batches = [make_batches(numbered_split([9] * 30), batch_size=30, seed=seed)[0] for seed in (0, 1)]
        assert not equal(*batches)  # nothing to crop: only the order can differ

    def test_the_seed_cuts_and_moves_windows(self):
        split = make_split([200])  # one document: only crop and shift can differ
        for config in ({}, {"length": 200, "transpose": (-2, 4)}):
            one, other = (make_batches(split, batch_size=20, seed=seed, **config)[0] for seed in (0, 1))
            assert not equal(one, other)

    def test_no_two_rows_share_their_draws(self):
        """One long document, many rows: crops of a batch are drawn one by one, not once for all."""
        rows = make_batches(numbered_split([90]), batch_size=20, length=8)[0].targets
        assert len({int(row[0]) for row in rows}) > 5

    def test_through_the_loader_from_any_start(self, tmp_path):
        store = make_store(tmp_path)
        config = DataConfig(length=16, batch_size=3, **EVERYTHING)
        whole = list(TokenDataModule(store, config, seed=4, steps=9).train_dataloader())
        tail = list(TokenDataModule(store, config, seed=4, steps=9, start_step=5).train_dataloader())
        assert len(whole) == 9
        assert len(tail) == 4
        assert all(equal(a, b) for a, b in zip(whole[5:], tail, strict=True))

    def test_the_loader_reads_the_train_split_as_it_is_told(self, tmp_path):
        store = make_store(tmp_path)
        config = DataConfig(length=16, batch_size=3)
        module = TokenDataModule(store, config, seed=4, steps=3, length_multiple=24, workers=2)
        expected = make_batches(store.split("train"), seed=4, manifest=store.manifest, length_multiple=24)
        loader = module.train_dataloader()
        assert loader.num_workers == 2
        assert all(equal(batch, expected[step]) for step, batch in enumerate(loader))

    def test_a_resumed_loader_is_as_long_as_the_run(self, tmp_path):
        """Lightning counts the batches of earlier starts too when it asks which one is the last."""
        config = DataConfig(length=16, batch_size=3)
        module = TokenDataModule(make_store(tmp_path), config, seed=4, steps=9, start_step=5)
        assert len(module.train_dataloader()) == 9

    def test_workers_change_nothing(self, tmp_path):
        store = make_store(tmp_path)
        config = DataConfig(length=16, batch_size=3, **EVERYTHING)
        plain, parallel = (
            list(TokenDataModule(store, config, seed=4, steps=6, workers=w).train_dataloader()) for w in (0, 2)
        )
        assert all(equal(a, b) for a, b in zip(plain, parallel, strict=True))


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_each_pass_takes_every_document_once(batch_size):
    batches = make_batches(numbered_split(LENGTHS), batch_size=batch_size)
    passes = 4
    seen = []
    for step in range(-(-passes * len(FILLED) // batch_size)):
        seen += [int(row[0]) // 100 - 1 for row in batches[step].targets]
    orders = [seen[i * len(FILLED) : (i + 1) * len(FILLED)] for i in range(passes)]
    assert all(sorted(order) == FILLED for order in orders)
    assert len({tuple(order) for order in orders}) > 1  # each pass in an order of its own


def test_rows_are_crops_shifted_by_one():
    split = numbered_split(LENGTHS)
    batches = make_batches(split, length=16)
    for step in range(30):
        batch = batches[step]
        assert batch.ids.shape == batch.targets.shape == batch.scored.shape
        assert batch.ids.dtype == batch.targets.dtype == torch.int64
        assert batch.scored.dtype == torch.bool
        for ids, targets, scored in zip(*batch, strict=True):
            count = int((targets != PADDING).sum())
            document, start = int(targets[0]) // 100 - 1, int(targets[0]) % 100
            assert start % ALIGNMENT == 0  # crops begin at a time step
            assert start + count <= LENGTHS[document]
            assert targets[:count].tolist() == [100 * (document + 1) + start + i for i in range(count)]
            assert ids[1:count].tolist() == targets[: count - 1].tolist()
            assert int(ids[0]) == (int(targets[0]) - 1 if start else PADDING)
            # Padding only at the right, and never scored.
            assert scored.tolist() == [True] * count + [False] * (len(targets) - count)
            assert not ids[count:].any()
            assert count == min(16, LENGTHS[document]) or start + count == LENGTHS[document]


def test_crops_reach_both_ends():
    split = numbered_split([40])
    batches = make_batches(split, length=16, batch_size=1)
    rows = [batches[step].targets[0] for step in range(200)]
    starts = {int(row[0]) % 100 for row in rows}
    assert starts == set(range(0, 25, ALIGNMENT))
    assert max(int(row.max()) for row in rows) == 139
    # 41 tokens do not end on a crop of whole steps: the last one is shorter, but no token is out of reach.
    batches = make_batches(numbered_split([41]), length=16, batch_size=1)
    assert max(int(batches[step].targets.max()) for step in range(200)) == 140


@pytest.mark.parametrize(("multiple", "expected"), [(1, 16), (5, 20), (8, 16), (24, 24), (128, 16), (144, 18)])
def test_batches_are_no_longer_than_they_must_be(multiple, expected):
    batches = make_batches(numbered_split([8, 11, 16]), length=32, length_multiple=multiple)
    plain = make_batches(numbered_split([8, 11, 16]), length=32)
    for step in range(5):
        assert batches[step].targets.shape[1] == expected
        width = plain[step].targets.shape[1]
        assert width == 16
        for rounded, exact in zip(batches[step], plain[step], strict=True):
            assert torch.equal(rounded[:, :width], exact)
            assert not rounded[:, width:].any()  # padding id 0, not scored


def test_padding_is_the_id_that_the_manifest_says():
    split = numbered_split([40, 5])
    batches = make_batches(split, batch_size=2, manifest=make_manifest(padding_id=77), length_multiple=24)
    for step in range(10):
        for ids, targets, scored in zip(*batches[step], strict=True):
            count = int(scored.sum())
            assert set(ids[count:].tolist()) == set(targets[count:].tolist()) == {77}
            assert int(ids[0]) == (77 if int(targets[0]) % 100 == 0 else int(targets[0]) - 1)


def test_flags_say_what_is_scored():
    split = make_split([12], unscored=3)
    batch = make_batches(split, batch_size=1, length=16)[0]
    assert batch.scored[0].tolist() == [True, True, False] * 4


class TestTransposition:
    def shifts(self, transpose, split, steps=60):
        plain, moved = make_batches(split), make_batches(split, transpose=transpose)
        for step in range(steps):
            yield from zip(zip(*plain[step], strict=True), zip(*moved[step], strict=True), strict=True)

    def test_inputs_and_targets_move_alike_and_padding_and_silence_stay(self):
        split = make_split([16, 12, 9])  # nothing to crop: with and without transposition the rows are the same
        seen = set()
        for (ids, targets, scored), (moved_ids, moved_targets, moved_scored) in self.shifts((-5, 9), split):
            pitches = targets >= LOWEST
            shift = moved_targets[pitches] - targets[pitches]
            assert len(shift.unique()) == 1
            seen.add(int(shift[0]))
            for before, after in ((ids, moved_ids), (targets, moved_targets)):
                still = before < LOWEST
                assert torch.equal(after[still], before[still])
                assert torch.equal(after[~still], before[~still] + shift[0])
            assert torch.equal(scored, moved_scored)
            assert int(moved_targets.min()) >= PADDING
            assert int(moved_targets.max()) <= HIGHEST
        # The scales lie on ids 4..9 of 2..13: two down and four up fit, all are drawn.
        assert seen == set(range(-2, 5))

    def test_the_range_asked_for_is_the_range_drawn(self):
        split = make_split([16, 12, 9])
        seen = {int((moved[1] - plain[1])[plain[1] >= LOWEST][0]) for plain, moved in self.shifts((-1, 2), split)}
        assert seen == {-1, 0, 1, 2}

    def test_a_crop_moves_as_its_whole_document_may(self):
        """A crop is never moved to where the rest of its piece could not go, so its shifts tell nothing of it."""
        document = np.array([LOWEST] + [8] * 39)  # the first token forbids any shift down
        split = pack([document], [np.ones(40, np.uint8)], ["p"], np.uint8)
        batches = make_batches(split, batch_size=1, transpose=(-5, 0))
        assert all(int(batches[step].targets[0, -1]) == 8 for step in range(20))

    def test_each_document_has_its_own_room(self):
        """Ids of the range's two ends move and are bounds; ids beside it do neither, on either side."""
        lowest, highest = np.array([SILENCE, LOWEST, LOWEST + 1]), np.array([HIGHEST, HIGHEST - 1, HIGHEST + 1])
        split = pack([lowest, highest], [np.ones(3, np.uint8)] * 2, ["low", "high"], np.uint8)
        batches = make_batches(split, batch_size=2, transpose=(-2, 2))
        expected = [[SILENCE, LOWEST + k, LOWEST + 1 + k] for k in range(3)]
        expected += [[HIGHEST - k, HIGHEST - 1 - k, HIGHEST + 1] for k in range(3)]
        seen = [row for step in range(60) for row in batches[step].targets.tolist()]
        assert sorted(set(map(tuple, seen))) == sorted(map(tuple, expected))

    @pytest.mark.parametrize("transpose", [(0, 0), (0, 3)])
    def test_only_what_is_asked_for_is_moved(self, transpose):
        split = make_split([16, 12, 9])
        moved = [(m[1] - p[1]).flatten() for p, m in self.shifts(transpose, split, steps=20)]
        drawn = {int(shift) for row in moved for shift in row}
        assert drawn == set(range(transpose[1] + 1))
        if transpose == (0, 0):
            batches = make_batches(split, batch_size=1)
            documents = {tuple(split.document(i).tolist()) for i in range(3)}
            assert {tuple(batches[step].targets[0].tolist()) for step in range(20)} == documents

    def test_silence_alone_cannot_be_moved(self):
        split = pack([np.full(8, SILENCE)], [np.ones(8, np.uint8)], ["rest"], np.uint8)
        batch = make_batches(split, batch_size=1, transpose=(-5, 5))[0]
        assert set(batch.targets.flatten().tolist()) == {SILENCE}

    def test_data_that_cannot_be_transposed(self):
        with pytest.raises(SeqpopeError, match=r"tiny cannot be transposed: set data.transpose to \[0, 0\]"):
            make_batches(manifest=make_manifest(shift_range=None), transpose=(-1, 1))
        make_batches(manifest=make_manifest(shift_range=None))

    @pytest.mark.parametrize("transpose", [(1, 3), (-3, -1), (2, -2)])
    def test_a_range_without_zero(self, transpose):
        with pytest.raises(SeqpopeError, match=r"data\.transpose must be a range around 0"):
            DataConfig(transpose=transpose)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_empty_split(lengths):
    with pytest.raises(SeqpopeError, match="training split of tiny is empty: prepare the data again"):
        make_batches(make_split(lengths))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 1}, "data.length must be at least 2"),
        ({"batch_size": 0}, "data.batch_size at least 1"),
    ],
)
def test_settings_that_make_no_batch(changes, message):
    with pytest.raises(SeqpopeError, match=message):
        DataConfig(**changes)


class TestOneShape:
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_longest_of_a_batch(self, count):
        lengths = [21, 40, 8, 33, 16, 16]
        expected = np.mean([max(drawn) for drawn in itertools.product(lengths, repeat=count)])
        assert _mean_longest(np.array(lengths), count) == pytest.approx(expected)

    def test_batches_fill_half_a_window(self):
        """Of 8 and 30 tokens the longest has 19 on average, and 24.5 of two."""
        for batch, length, whole in [(1, 38, True), (1, 39, False), (2, 49, True), (2, 50, False), (1, 8, True)]:
            config = DataConfig(length=length, batch_size=batch)
            assert TrainingBatches(make_split([8, 30]), make_manifest(), config, 0).whole == whole

    def test_batches_are_then_as_long_as_it_and_say_the_same(self):
        for step in range(20):
            short, padded = (
                TrainingBatches(
                    make_split([21, 8]), make_manifest(), DataConfig(length=12, batch_size=1), 0, pad_whole=pad
                )[step]
                for pad in (False, True)
            )
            assert padded.ids.shape == (1, 12)
            size = short.ids.shape[1]
            for a, b in zip(short, padded, strict=True):
                assert torch.equal(a, b[:, :size])
            assert not padded.scored[:, size:].any()
            assert (padded.ids[:, size:] == PADDING).all()

    def test_no_batch_is_longer_than_the_longest_document(self):
        """Or training would take memory for a window that nothing fills."""
        config = DataConfig(length=40, batch_size=1)
        for multiple in (1, 16):  # there is one shape already: no grid of them is needed
            batches = TrainingBatches(
                make_split([21, 24]), make_manifest(), config, 0, pad_whole=True, length_multiple=multiple
            )
            assert batches.whole
            assert {batches[step].ids.shape for step in range(10)} == {(1, 24)}

    def test_batches_of_short_documents_stay_short(self):
        batches = TrainingBatches(
            make_split([8, 8, 30]), make_manifest(), DataConfig(length=40, batch_size=1), 0, pad_whole=True
        )
        assert min(batches[step].ids.shape[1] for step in range(10)) == 8


def test_a_worker_outlives_the_signals_that_its_trainer_answers(tmp_path):
    """Ctrl-C and a cluster's TERM reach the whole process group; the step being finished needs its data."""
    module = TokenDataModule(
        make_store(tmp_path), DataConfig(length=16, batch_size=2), seed=0, steps=50, workers=1
    )
    loader = iter(module.train_dataloader())
    first = next(loader)
    for number in (signal.SIGINT, signal.SIGTERM):
        for worker in loader._workers:
            os.kill(worker.pid, number)
    rest = list(loader)
    assert len(rest) == 49
    assert torch.equal(first.ids, module.batches[0].ids)


class TestDrawnBatches:
    """Batches of a store that draws its windows itself."""

    @pytest.fixture
    def store(self, tmp_path):
        texts = {"a": random_dna(900, 1), "b": random_dna(150, 2), "c": random_dna(140, 3)}
        return make_genome(tmp_path / "g", texts, {"train": [("a", 0, 900), ("b", 0, 150), ("c", 3, 130)]})

    def test_through_the_loader_from_any_start_and_in_workers(self, store):
        config = DataConfig(length=30, batch_size=3, soft_mask_weight=0.5)
        whole, workers = (
            list(TokenDataModule(store, config, seed=4, steps=9, workers=w).train_dataloader()) for w in (0, 2)
        )
        tail = list(TokenDataModule(store, config, seed=4, steps=9, start_step=5).train_dataloader())
        assert all(equal(a, b) for a, b in zip(whole, workers, strict=True))
        assert all(equal(a, b) for a, b in zip(whole[5:], tail, strict=True))
        assert whole[0].scored.dtype == torch.float32
        assert whole[0].ids.dtype == whole[0].targets.dtype == torch.int64

    @pytest.mark.parametrize("weight", [1.0, 0.5])
    def test_of_one_shape_where_most_fill_a_window(self, store, weight):
        config = DataConfig(length=30, batch_size=1, soft_mask_weight=weight)
        short = DrawnBatches(store, config, 0)
        padded = DrawnBatches(store, config, 0, pad_whole=True, length_multiple=32)
        assert short.whole
        sizes = set()
        for step in range(40):
            a, b = short[step], padded[step]
            size = a.ids.shape[1]
            sizes.add(size)
            assert b.ids.shape == b.targets.shape == b.scored.shape == (1, 30)
            assert all(torch.equal(x, y[:, :size]) for x, y in zip(a, b, strict=True))
            assert not b.scored[:, size:].any()
            assert (b.ids[:, size:] == store.manifest.padding_id).all()
        assert max(sizes) == 30 > min(sizes)

    def test_what_one_kind_of_data_has_not(self, store):
        with pytest.raises(SeqpopeError, match="g cannot be transposed"):
            DrawnBatches(store, DataConfig(length=30, transpose=(-1, 1)), 0)
        with pytest.raises(SeqpopeError, match="tiny has no soft-masked tokens"):
            make_batches(soft_mask_weight=0.5)
        with pytest.raises(SeqpopeError, match=r"data.soft_mask_weight must be from 0 to 1"):
            DataConfig(soft_mask_weight=1.5)
