from __future__ import annotations

import gc
import weakref

import pytest
import torch

from seqpope.decoding import Decoder, Replayed
from seqpope.errors import SeqpopeError
from seqpope.model.config import ModelConfig
from seqpope.model.positions import POSITIONS
from seqpope.model.transformer import Transformer
from seqpope.sampling import Chooser, SamplingConfig, sample

VOCABULARY, LENGTH = 29, 40


def make_model(position, device="cpu", **changes):
    torch.manual_seed(0)
    model = Transformer(VOCABULARY, position, ModelConfig(**{"width": 32, "layers": 2, "heads": 2, **changes}))
    with torch.no_grad():  # at its start a model hardly attends
        for block in model.blocks:
            block.attention.qkv.weight *= 8
            block.attention.out.weight *= 5
    return model.to(device).eval()


def make_ids(batch, length):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def steps(model, ids, ends, settled, **options):
    """Logits (B, steps, V) of a decoder that has read prompts that end at `ends` and goes on to the end of ids."""
    decoder = Decoder(model, len(ids), LENGTH, **options)
    logits = [decoder.read(ids[:, : int(ends.max())], ends)]
    if settled:
        decoder.cache.settle()
    logits += [
        decoder.step(column.to(model.embedding.weight.device)).clone() for column in ids[:, int(ends.max()) :].T
    ]
    assert decoder.cache.length == ids.shape[1]
    return torch.stack(logits, 1), decoder


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_steps_are_the_whole_model_read_at_once(position, settled):
    """Whether the cache is handed out as far as it is filled, or whole with what lies behind masked."""
    model, ids, ends = make_model(position), make_ids(3, 20), torch.tensor([9, 2, 6])
    got, decoder = steps(model, ids, ends, settled)
    for row, end in enumerate(ends.tolist()):
        own = torch.cat((ids[row, :end], ids[row, 9:]))
        whole = model(own[None])[0, end - 1 :]
        torch.testing.assert_close(got[row], whole, atol=2e-4, rtol=2e-4)
    assert decoder.cache.lengths.tolist() == [20, 13, 17]


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_a_prompt_that_all_share_is_read_once(position, settled):
    model, ids, read = make_model(position), make_ids(1, 20).repeat(3, 1), []
    ids[:, 9:] = make_ids(3, 11)  # only the prompt is the same
    hook = model.register_forward_pre_hook(lambda _, words: read.append(tuple(words[0].shape)))
    decoder = Decoder(model, 3, LENGTH)
    got = [decoder.read(ids[:, :9])]
    if settled:
        decoder.cache.settle()
    got += [decoder.step(column).clone() for column in ids[:, 9:].T]
    hook.remove()
    assert read == [(1, 9)] + 11 * [(3, 1)]
    torch.testing.assert_close(torch.stack(got, 1), model(ids)[:, 8:], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_a_settled_cache_moves_and_changes_places_at_one_address(position):
    model, ids = make_model(position, layers=1), make_ids(2, 20)
    _, decoder = steps(model, ids, torch.tensor([12, 12]), True)
    address = decoder.cache.lengths.data_ptr()
    decoder.cache.select(torch.tensor([1, 1]))
    decoder.cache.keep_last(8)
    assert (decoder.cache.length, decoder.cache.lengths.tolist()) == (8, [8, 8])
    got = decoder.step(torch.tensor([5, 5]))
    whole = model(torch.cat((ids[1, 12:], torch.tensor([5])))[None])[0, -1]  # of one layer: keys know no past
    torch.testing.assert_close(got, whole.expand(2, -1), atol=2e-4, rtol=2e-4)
    assert decoder.cache.lengths.data_ptr() == address


@torch.no_grad()
def test_a_full_cache_says_so():
    decoder = Decoder(make_model("pope"), 1, 3)
    decoder.read(make_ids(1, 3))
    with pytest.raises(ValueError, match="holds 3 positions and is full"):
        decoder.step(torch.tensor([1]))


def test_what_is_not_recorded_runs_each_time():
    calls = []
    again = Replayed(lambda: calls.append(1) or len(calls), recorded=False)
    assert [again(), again(), again()] == [1, 2, 3]


@torch.no_grad()
def test_a_cache_is_freed_with_its_decoder():
    """Not when Python's cycle collector next runs: batch after batch would keep its cache until then."""
    gc.collect()
    gc.disable()
    try:
        decoder = Decoder(make_model("pope"), 1, 3)
        chooser = Chooser(
            decoder.read(make_ids(1, 1)), SamplingConfig(), 0, constrained=True, weighed=True, seen=None
        )
        chooser(decoder.step(torch.tensor([1])))
        held = [weakref.ref(decoder.cache), weakref.ref(chooser.logits), weakref.ref(decoder.again)]
        del decoder, chooser
        assert [each() for each in held] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("cache_dtype", [torch.float32, None])
    @pytest.mark.parametrize("position", POSITIONS)
    @torch.inference_mode()
    def test_a_replayed_graph_is_the_whole_model(self, position, cache_dtype):
        model, ids, ends = make_model(position, "cuda"), make_ids(3, 36), torch.tensor([9, 2, 6])
        got, decoder = steps(model, ids, ends, False, cache_dtype=cache_dtype)
        assert decoder.again.graph is not None
        assert decoder.cache.settled
        limit = 2e-3 if cache_dtype == torch.float32 else 3e-2
        for row, end in enumerate(ends.tolist()):
            own = torch.cat((ids[row, :end], ids[row, 9:])).cuda()
            whole = model(own[None])[0, end - 1 :]
            torch.testing.assert_close(got[row], whole, atol=limit, rtol=limit)

    @pytest.mark.parametrize("position", POSITIONS)
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"config": SamplingConfig(temperature=0.0)},
            {"config": SamplingConfig(0.9, 7, 0.9, 0.01, 1.2)},
            {"context": 24},
        ],
        ids=str,
    )
    def test_samples_are_those_of_the_steps_taken_one_by_one(self, position, options, monkeypatch):
        """The same kernels on the same numbers, replayed or launched: the same tokens and nats, to the bit."""
        model = make_model(position, "cuda")
        prompts = [make_ids(1, length)[0] for length in (3, 9, 1)]

        def drawn():
            return sample(model, prompts, 60, seeds=[1, 2, 3], padding_id=0, **options)

        replayed, again = drawn(), drawn()
        assert torch.equal(replayed.ids, again.ids)
        assert torch.equal(replayed.nats, again.nats)
        monkeypatch.setattr(Replayed, "__call__", lambda self: self.function())
        launched = drawn()
        assert torch.equal(replayed.ids, launched.ids)
        assert torch.equal(replayed.nats, launched.nats)
        assert len(set(replayed.ids[0].tolist())) > 3 or options.get("config") is not None

    def test_batch_after_batch_takes_no_more_memory(self):
        model = make_model("pope", "cuda")
        used = []
        gc.disable()
        try:
            for _ in range(4):
                sample(model, make_ids(1, 3)[0], 9, seeds=range(4), padding_id=0)
                used.append(torch.cuda.memory_allocated())
        finally:
            gc.enable()
        assert used[3] == used[1]

    def test_a_cache_that_is_full_is_told(self):
        model = make_model("pope", "cuda")
        with pytest.raises(SeqpopeError, match="does not fit half a context"):
            sample(model, make_ids(1, 30)[0], 4, seeds=[0], padding_id=0, context=20)
