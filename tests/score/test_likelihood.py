"""Per-base likelihoods against a naive fp64 sum over words, and the laws that hold whatever the model."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from genomes import random_bases, shared_model, tiny_model

from seqpope.domains.genome.tokenizer import BaseTokenizer, SixMerTokenizer
from seqpope.errors import SeqpopeError
from seqpope.score.likelihood import Likelihood, Row

WORDS = {6: ["".join(word) for word in itertools.product("ATCG", repeat=6)], 1: ["A", "C", "G", "T"]}
TOKENIZERS = {6: SixMerTokenizer(), 1: BaseTokenizer()}


def likelihood(k: int = 6, **options) -> Likelihood:
    return Likelihood(*shared_model(k), **options)


def naive(row: Row, k: int) -> np.ndarray:
    """Costs of a row's bases behind its context, in fp64 by lists of words: one pass of the model a token."""
    model, info = shared_model(k)
    first = int(TOKENIZERS[k].encode("A" * k)[0])
    text = "".join("?ACGT"[base & 7] for base in row.bases)
    costs, read = [], [info.padding_id]

    def mass(chances: np.ndarray, start: int, part: str) -> float:
        places = [place for place, word in enumerate(WORDS[k]) if word[start : start + len(part)] == part]
        return -float(np.log(chances[first:][places].sum()))

    pieces = [(k - row.lead, text[: row.lead])] if row.lead else []
    pieces += [(0, text[start : start + k]) for start in range(row.lead, len(text), k)]
    for start, piece in pieces:
        with torch.no_grad():
            chances = model.double()(torch.tensor([read]))[0, -1].softmax(-1).numpy()
        model.float()
        sums = [0.0, *(mass(chances, start, piece[: j + 1]) for j in range(len(piece)))]
        costs += np.diff(sums).tolist()
        if start == 0 and len(piece) == k:
            read.append(first + WORDS[k].index(piece))
    return np.array(costs[row.context :])


@pytest.mark.parametrize(
    ("size", "lead", "context"),
    [
        *((24, 0, 0), (25, 0, 0), (29, 0, 7), (31, 5, 0), (31, 5, 3), (31, 4, 4), (31, 1, 13), (12, 0, 11)),
        *((5, 0, 0), (1, 0, 0), (5, 5, 0), (3, 5, 0), (3, 5, 2), (6, 5, 5), (6, 5, 4), (0, 0, 0), (9, 2, 9)),
    ],
)
def test_six_mers_against_the_formula(size, lead, context):
    row = Row(random_bases(size, seed=size + lead), lead, context)
    [found] = likelihood().nats([row])
    assert found.shape == (size - context,)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive(row, 6), atol=2e-5, rtol=1e-5)


def test_single_bases_against_the_formula():
    row = Row(random_bases(17), context=3)
    [found] = likelihood(1).nats([row])
    np.testing.assert_allclose(found, naive(row, 1), atol=1e-5)


def test_soft_masking_changes_nothing():
    bases = random_bases(23)
    plain, masked = likelihood().nats([Row(bases, 2), Row(bases | 8, 2)])
    assert (plain == masked).all()


def test_alternatives_of_a_base_sum_to_one_and_of_a_first_base_to_the_mass_of_six_mers():
    scorer = likelihood()
    bases, lead = random_bases(22, seed=3), 4
    for place in range(len(bases)):
        rows = []
        for code in range(1, 5):
            other = bases[: place + 1].copy()
            other[place] = code
            rows.append(Row(other, lead, place))
        scores = scorer.begin(rows).result()
        total = sum(np.exp(-float(nats[0])) for nats in scores.nats)
        if place == 0:
            opening = scorer.begin([Row(bases[:6])]).result()
            assert total == pytest.approx(1 - opening.outside, abs=1e-5)
        elif (place - lead) % 6 == 0:
            assert scores.tokens == 4
            assert total == pytest.approx(1 - scores.outside / 4, abs=1e-5)
        else:
            assert total == pytest.approx(1, abs=1e-5)


def test_the_bases_of_a_token_sum_to_its_own_nats():
    """Against logits through the model's usual call and the one NLL formula."""
    from seqpope.nll import token_nats

    model, info = shared_model()
    bases = random_bases(60, seed=5)
    ids = torch.from_numpy(SixMerTokenizer().encode("".join("?ACGT"[b] for b in bases)).astype(np.int64))
    with torch.inference_mode():
        logits = model(torch.cat((torch.tensor([info.padding_id]), ids[:-1]))[None])
    own = token_nats(logits, ids[None])[0].numpy()
    [found] = likelihood().nats([Row(bases)])
    np.testing.assert_allclose(found.reshape(-1, 6).sum(1), own, atol=2e-5)
    scores = likelihood().begin([Row(bases)]).result()
    outside = 1 - logits.double().softmax(-1)[0, :, 4:4100].sum(-1)
    assert scores.tokens == 10
    assert scores.outside == pytest.approx(float(outside.sum()), abs=1e-5)
    assert scores.outside > 1e-4  # or the comparison says nothing


def test_a_lead_is_no_context_of_what_follows():
    bases = random_bases(30, seed=1)
    [with_lead], [without] = likelihood().nats([Row(bases, 4)]), likelihood().nats([Row(bases[4:])])
    np.testing.assert_allclose(with_lead[4:], without, atol=1e-6)


def test_context_and_what_follows_change_no_number():
    bases = random_bases(64, seed=2)
    scorer = likelihood()
    [whole] = scorer.nats([Row(bases, 3)])
    for context, end in ((0, 40), (2, 41), (3, 42), (20, 64), (33, 50), (40, 41)):
        [part] = scorer.nats([Row(bases[:end], 3, context)])
        np.testing.assert_allclose(part, whole[context:end], atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 7, 64, 100_000])
def test_a_rows_numbers_depend_on_no_other_row(batch_tokens):
    random = np.random.default_rng(0)
    rows = []
    for number in range(40):
        size = int(random.integers(0, 90))
        rows.append(Row(random_bases(size, number), int(random.integers(6)), int(random.integers(size + 1))))
    together = likelihood(batch_tokens=batch_tokens).begin(rows).result()
    assert together.tokens > 100
    for row, found in zip(rows, together.nats, strict=True):
        [alone] = likelihood().nats([row])
        np.testing.assert_allclose(found, alone, atol=1e-5)


def test_masses_too_small_for_fp32_are_still_told_apart():
    """Log masses, not masses: exp(-200) is 0 in fp32."""
    model, info = tiny_model()
    with torch.no_grad():
        model.embedding.weight[4 : 4 + 4**5] *= 300  # all that begin with A
    bases = np.frombuffer(bytes([1] * 6 + [4] * 6 + [1, 2, 3, 4, 1, 2] * 3), np.uint8)
    [found] = Likelihood(model, info).nats([Row(bases)])
    assert np.isfinite(found).all()
    assert found.max() > 200


def test_few_logits_are_there_at_once(monkeypatch):
    from seqpope.score import likelihood as module

    bases = random_bases(100)
    [whole] = likelihood().nats([Row(bases)])
    monkeypatch.setattr(module, "HEAD", 3)
    [parts] = likelihood().nats([Row(bases)])
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_bf16_is_close():
    bases = random_bases(60)
    model, info = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.2)
    [plain], [half] = (Likelihood(model, info, precision=p).nats([Row(bases)]) for p in ("fp32", "bf16"))
    assert 0 < np.abs(plain - half).max() < 0.1


@pytest.mark.slow
def test_compiled_batches_say_the_same():
    rows = [Row(random_bases(96, seed)) for seed in range(9)]
    rows += [Row(random_bases(40 + seed, seed), 2) for seed in range(5)]
    plain, compiled = (likelihood(batch_tokens=64, compile=c).nats(rows) for c in (False, True))
    for one, other in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(np.array([1, 0, 2], np.uint8)), "cut it at N"),
        (Row(np.array([1, 5], np.uint8)), "cut it at N"),
        (Row(np.array([1, 2], np.int64)), "uint8"),
        (Row(random_bases(8), lead=6), "0 to 5"),
        (Row(random_bases(8), context=9), "as context"),
    ],
)
def test_rows_that_cannot_be(row, message):
    with pytest.raises(ValueError, match=message):
        likelihood().nats([row])


def test_models_of_something_else_are_refused():
    model, info = shared_model()
    with pytest.raises(SeqpopeError, match="give a checkpoint of --domain genome"):
        Likelihood(model, replace(info, fingerprint="0" * 64, dataset="jsb", domain="music"))
    with pytest.raises(SeqpopeError, match="fp32 or bf16"):
        Likelihood(model, info, precision="fp8")  # type: ignore[arg-type]
