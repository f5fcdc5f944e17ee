"""Sequential Monte Carlo: samples that know what is coming, and how their particles are weighed and resampled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_models import NO_PROMPT, PROMPT, PROMPTS, Alternate, Ending, FixedModel, make_model
from stores import PADDING, VOCABULARY

from seqpope import sampling
from seqpope.model.positions import POSITIONS
from seqpope.sampling import Chooser, SamplingConfig, next_distribution, resampled, sample


class CopyModel(FixedModel):
    """Gives all tokens alike, then the one before last: whoever wants a 1 at the end must have drawn it before."""

    def forward(self, ids, cache, *, last_only, ends=None):
        logits = torch.zeros(len(ids), VOCABULARY)
        cache.length += ids.shape[1]
        if cache.length > 1:
            logits[torch.arange(len(ids)), ids[:, -1]] = 6.0
        return logits[:, None]


def test_particles_know_what_is_coming():
    """Straight on, the first token is a 1 by chance and the last one is forced; particles draw for it."""
    model = CopyModel(torch.zeros(VOCABULARY))
    seeds = list(range(60))
    share, nats = {}, {}
    for particles in (1, 32):
        drawn = sample(
            model, torch.zeros(0, dtype=torch.long), 3, seeds=seeds, padding_id=PADDING, constraint=Ending(),
            particles=particles,
        )  # fmt: skip
        assert (drawn.ids[:, -1] == 1).all()
        share[particles] = float((drawn.ids[:, 0] == 1).float().mean())
        nats[particles] = float(drawn.nats.mean())
    assert share[1] < 0.5 < 0.8 < share[32]
    assert nats[32] < nats[1] - 0.5


class ChainModel(FixedModel):
    """Each token depends on the one before it alone: probabilities of whole sequences can be added up."""

    def forward(self, ids, cache, *, last_only, ends=None):
        cache.length += ids.shape[1]
        return self.logits[ids[:, -1]][:, None]


class Later:
    """The third token must be 1 or 2; the fifth and last 3. The state counts tokens."""

    def begin(self, prompts, count):
        return np.zeros(len(prompts), int)

    def allowed(self, state):
        tokens = np.arange(VOCABULARY)[None]
        step = state[:, None]
        return np.where(step == 2, (tokens == 1) | (tokens == 2), np.where(step == 4, tokens == 3, tokens > 0))

    def done(self, state):
        return np.zeros(len(state), bool)

    def advance(self, state, tokens):
        return state + 1

    def take(self, state, rows):
        return state[rows]


@pytest.mark.parametrize(
    ("temperature", "cut"),
    [
        (1.0, {}),
        (0.6, {"top_k": 3}),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((0.6, {}), (1.0, {"top_k": 3}))),
    ],
)
def test_particles_stand_for_the_distribution_given_the_constraint(temperature, cut):
    """Pairs of first tokens, against the sum over all that may follow; straight on they would be far off."""
    generator = torch.Generator().manual_seed(4)
    logits = 1.5 * torch.randn(VOCABULARY, VOCABULARY, generator=generator)
    model, config = ChainModel(logits), SamplingConfig(temperature, **cut)
    constraint = Later()
    state = constraint.begin([np.zeros(0, int)], 5)
    forward = torch.zeros(1, VOCABULARY, dtype=torch.float64)  # joint mass of (first two tokens, last token)
    pairs = {(): forward.index_fill(1, torch.tensor([PADDING]), 1.0)[0]}
    for step in range(5):
        allowed = torch.from_numpy(constraint.allowed(state))[0] & (torch.arange(VOCABULARY) != PADDING)
        share = logits.double().clone()
        share[:, PADDING] = float("-inf")
        kept = next_distribution(share.masked_fill(~allowed, float("-inf")), config) > 0
        moves = (share / temperature).softmax(-1) * kept
        later = {}
        for pair, mass in pairs.items():
            for token in range(VOCABULARY):
                new = torch.zeros(VOCABULARY, dtype=torch.float64)
                new[token] = (mass * moves[:, token]).sum()
                key = (*pair, token) if step < 2 else pair
                later[key] = later.get(key, 0) + new
        pairs = later
        state = constraint.advance(state, np.zeros(1, int))
    exact = {pair: float(mass.sum()) for pair, mass in pairs.items() if float(mass.sum()) > 0}
    exact = {pair: mass / sum(exact.values()) for pair, mass in exact.items()}

    def distance(particles):
        drawn = sample(
            model, torch.zeros(0, dtype=torch.long), 5, seeds=list(range(1500)), padding_id=PADDING, config=config,
            constraint=Later(), particles=particles, pick="any",
        )  # fmt: skip
        found = {}
        for pair in drawn.ids[:, :2].tolist():
            found[tuple(pair)] = found.get(tuple(pair), 0) + 1 / 1500
        return sum(abs(exact.get(pair, 0) - found.get(pair, 0)) for pair in {*exact, *found}) / 2

    assert distance(48) < 0.09
    assert distance(1) > 0.12


def test_what_belongs_to_a_row_moves_with_it():
    """Ids, costs and what has been seen of a particle are those of the particle that it became."""
    model = CopyModel(torch.zeros(VOCABULARY))
    drawn = sample(
        model, torch.zeros(0, dtype=torch.long), 6, seeds=list(range(20)), padding_id=PADDING, constraint=Ending(),
        particles=8, config=SamplingConfig(repetition_penalty=1.5),
    )  # fmt: skip
    for row in drawn.ids:
        ids = torch.cat((torch.tensor([PADDING]), row))
        expected = []
        for previous, token in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
            logits = torch.zeros(VOCABULARY)
            if previous != PADDING:
                logits[previous] = 6.0
            expected.append(float(-logits.log_softmax(-1)[token]))
        own = drawn.nats[(drawn.ids == row).all(-1)][0]
        torch.testing.assert_close(own, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert (drawn.constraint_nats[:, -1] > 0).all()
    assert (drawn.constraint_nats[:, :-1] < 1e-5).all()


class Near(Alternate):
    """Each token lies beside the one before it."""

    def allowed(self, state):
        return np.abs(np.arange(VOCABULARY)[None] - state[:, None]) == 1


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_a_particle_goes_on_from_its_own_past(position):
    """Cache and state of the constraint move with it: its NLL is that of an uncached forward."""
    model = make_model(position)
    drawn = sample(
        model, PROMPT, 25, seeds=list(range(30)), padding_id=PADDING, constraint=Near(), particles=12, pick="any"
    )
    whole = torch.cat((torch.tensor([PADDING]), PROMPT)).repeat(30, 1)
    whole = torch.cat((whole, drawn.ids), 1)
    assert ((whole[:, 6:] - whole[:, 5:-1]).abs() == 1).all()
    logits = model(whole[:, :-1])[:, len(PROMPT) :]
    expected = -logits.log_softmax(-1).gather(-1, drawn.ids[..., None])[..., 0]
    torch.testing.assert_close(drawn.nats, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("particles", "greed"), [(1, 0.0), (8, 0.0), (8, 1.0)])
def test_what_is_told_stays(particles, greed):
    """Each token of the samples once, in order; early where particles come to agree, as resampling has them."""
    told, steps = [], []
    drawn = sample(
        make_model(), PROMPTS[:2], 30, seeds=[0, 1], padding_id=PADDING, constraint=Near(), particles=particles,
        greed=greed, watch=lambda ids, nats: told.append((ids, nats)),
        progress=lambda done, _: steps.append((done // 2, len(told))),
    )  # fmt: skip
    assert torch.equal(torch.stack([ids for ids, _ in told], 1), drawn.ids)
    torch.testing.assert_close(torch.stack([nats for _, nats in told], 1), drawn.nats, atol=1e-5, rtol=1e-5)
    behind = [done - there for done, there in steps]
    assert min(behind) >= 0
    assert (max(behind) > 0) == (particles > 1)
    assert steps[-1][0] == 30
    assert steps[-1][1] > 15 or not greed


def test_greed_finds_what_is_likelier():
    model = make_model()
    found = {
        greed: sample(
            model, PROMPT, 20, seeds=list(range(10)), padding_id=PADDING, particles=16, greed=greed, pick="any"
        ).nats.mean()
        for greed in (0.0, 1.0)
    }
    assert found[1.0] < found[0.0] - 0.1


def test_resampling():
    """Weights that are alike change nothing; one that has all takes all; shares are kept to within one."""
    generators = [torch.Generator().manual_seed(0)]
    assert resampled(torch.zeros(1, 8, dtype=torch.float64), generators) is None
    weights = torch.full((1, 8), -50.0, dtype=torch.float64)
    weights[0, 3] = 0.0
    assert resampled(weights, generators).tolist() == [3] * 8
    assert not weights.any()
    weights = torch.tensor([[0.7, 0.1, 0.1, 0.02, 0.02, 0.02, 0.02, 0.02]], dtype=torch.float64).log()
    counts = np.bincount(resampled(weights.clone(), generators), minlength=8)
    assert counts.sum() == 8
    assert (np.abs(counts - 8 * weights.exp().numpy()[0]) < 1).all()


def test_resampling_is_unbiased():
    """Each particle has P times its share of heirs in the mean, over starts of the one random number."""
    share = torch.tensor([0.0, 0.55, 0.02, 0.3, 0.13, 0.0], dtype=torch.float64)
    heirs = np.zeros(6)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    rows = resampled(share.log().repeat(4000, 1), generators)
    heirs = np.bincount(rows.numpy() % 6, minlength=6) / 4000
    np.testing.assert_allclose(heirs, 6 * share.numpy(), atol=0.03)
    assert (rows.view(4000, 6) // 6 == torch.arange(4000)[:, None]).all()


def test_those_that_have_ended_are_not_resampled():
    """Neither their weights nor their generators move: what they draw next is what they draw alone."""
    weights = torch.tensor([[0.0, -9.0, -9.0, -9.0]] * 2, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    rows = resampled(weights, generators, np.array([True, False]))
    assert rows.tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert weights.tolist() == [[0.0, -9.0, -9.0, -9.0], [0.0] * 4]
    assert generators[0].get_state().equal(torch.Generator().manual_seed(1).get_state())
    assert not generators[1].get_state().equal(torch.Generator().manual_seed(2).get_state())


def test_resampling_comes_after_every_so_many_tokens(monkeypatch):
    """A sample's voices are drawn one by one: particles are weighed when a chord is whole."""
    weighed = []

    def watched(weights, generators, ended):
        weighed.append(float(weights.min()))

    monkeypatch.setattr(sampling, "resampled", watched)
    for every, times in ((1, 7), (3, 2), (7, 1), (8, 0)):
        weighed.clear()
        sample(
            make_model(), PROMPT, 7, seeds=[0], padding_id=PADDING, constraint=Alternate(), particles=4,
            resample_every=every,
        )  # fmt: skip
        assert len(weighed) == times
    one, three = [], []
    for every, found in ((1, one), (3, three)):
        weighed.clear()
        sample(
            make_model(), PROMPT, 3, seeds=[0], padding_id=PADDING, constraint=Alternate(), particles=4,
            resample_every=every,
        )  # fmt: skip
        found += weighed
    assert three == one[2:]  # the third token is weighed too


@pytest.mark.parametrize("penalty", [1.0, 2.0])
def test_a_weight_is_the_tempered_share_of_what_is_kept(penalty):
    """Of what the rule and top-k leave, against all but padding; the cost knows the rule alone."""
    logits = torch.tensor([[3.0, 1.0, 0.5, 2.0, -1.0], [0.0, 1.0, 2.0, 3.0, 4.0]])
    seen = torch.tensor([[False, True, False, False, False], [False, False, True, False, True]])
    allowed = torch.tensor([[True, True, True, False, True], [True, False, True, True, True]])
    config = SamplingConfig(0.7, top_k=2, repetition_penalty=penalty)
    chooser = Chooser(
        logits, config, 0, constrained=True, weighed=True, seen=seen.clone() if penalty > 1 else None
    )
    chooser.allowed.copy_(allowed)
    chosen, nats, cost, weight = chooser(logits)
    for row in range(2):
        mass = [math.exp((x / penalty if s and x > 0 else x * penalty if s else x) / 0.7)
                for x, s in zip(logits[row].tolist(), seen[row].tolist(), strict=True)]  # fmt: skip
        open_ = sorted((mass[token] for token in range(1, 5) if allowed[row, token]), reverse=True)
        assert float(weight[row]) == pytest.approx(math.log(sum(open_[:2]) / sum(mass[1:])), abs=1e-6)
        share = logits[row].double().softmax(0)
        assert float(cost[row]) == pytest.approx(-math.log(share[allowed[row]].sum()), abs=1e-6)
        assert float(nats[row]) == pytest.approx(-math.log(share[chosen[row]]), abs=1e-6)


def test_what_was_seen_moves_with_a_particle(monkeypatch):
    """All become the second: what is penalised next is what it has drawn, not what was in their places."""
    monkeypatch.setattr(sampling, "resampled", lambda weights, *_: torch.tensor([1, 1, 1]))
    told = []
    monkeypatch.setattr(sampling, "penalise", lambda logits, seen, _: told.append(seen.clone()) or logits)
    drawn = sample(
        FixedModel(torch.zeros(50)), NO_PROMPT, 4, seeds=[3], padding_id=PADDING, particles=3,
        config=SamplingConfig(repetition_penalty=2.0),
    )  # fmt: skip
    for step, seen in enumerate(told):
        own = torch.zeros(50, dtype=torch.bool)
        own[drawn.ids[0, :step]] = True
        assert (seen == own).all()


def test_a_particle_of_no_weight_has_no_heir(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda count, **_: torch.zeros(count).double())
    weights = torch.tensor([[-1e9, 0.0, -1e9, -1e9, -1e9]], dtype=torch.float64)
    assert resampled(weights, [torch.Generator()]).tolist() == [1] * 5


def test_resampling_waits_until_half_of_the_particles_count():
    """The effective number of n alike ones of 8 is n."""
    for alike, waits in ((3, False), (4, True), (5, True)):
        weights = torch.full((1, 8), -1e9, dtype=torch.float64)
        weights[0, :alike] = 0.0
        assert (resampled(weights, [torch.Generator()]) is None) == waits
