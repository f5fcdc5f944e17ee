from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stores import PADDING, VOCABULARY

from seqpope import sampling
from seqpope.decoding import Decoder
from seqpope.errors import SeqpopeError
from seqpope.model.config import ModelConfig
from seqpope.model.positions import POSITIONS
from seqpope.model.transformer import Transformer
from seqpope.sampling import Chooser, SamplingConfig, next_distribution, penalise, resampled, sample

NO_PROMPT = torch.zeros(0, dtype=torch.long)
PROMPT = torch.tensor([3, 1, 4, 1, 5])


def make_model(position="pope", seed=0, scale=8.0):
    torch.manual_seed(seed)
    model = Transformer(VOCABULARY, position, ModelConfig(width=16, layers=2, heads=2)).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight *= 20
            block.attention.out.weight *= 10
        model.embedding.weight *= scale
    return model


class FixedModel(torch.nn.Module):
    """Always the same logits: what is drawn follows a distribution that is known."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.as_tensor(logits))
        self.config = ModelConfig(width=2, layers=1, heads=1)

        self.vocabulary_size = self.logits.shape[-1]

    def forward(self, ids, cache, *, last_only, ends=None):
        return self.logits.expand(ids.shape[0], 1, -1)


def draw(model, prompt=PROMPT, count=30, seeds=(0,), **config):
    drawn = sample(model, prompt, count, seeds=list(seeds), padding_id=PADDING, config=SamplingConfig(**config))
    assert not drawn.constraint_nats.any()
    return drawn.ids, drawn.nats


@pytest.mark.parametrize("position", POSITIONS)
def test_what_a_seed_draws_does_not_depend_on_its_neighbours(position):
    model = make_model(position)
    together, _ = draw(model, seeds=[7, 8, 9, 10])
    for row, seed in enumerate([7, 8, 9, 10]):
        assert torch.equal(draw(model, seeds=[seed])[0][0], together[row])
    assert torch.equal(draw(model, seeds=[10, 7])[0], together[[3, 0]])
    assert len({tuple(row.tolist()) for row in together}) == 4


def test_global_randomness_has_no_part():
    model = make_model()
    torch.manual_seed(1)
    first, _ = draw(model)
    torch.manual_seed(2)
    assert torch.equal(draw(model)[0], first)


@pytest.mark.parametrize("prompt", [NO_PROMPT, PROMPT])
@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_nats_are_those_of_an_uncached_forward(position, prompt):
    """Also under a temperature and cuts: the NLL is the untouched model's."""
    model = make_model(position)
    for config in ({}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}):
        drawn, nats = draw(model, prompt, seeds=[0, 1, 2], **config)
        whole = torch.cat((torch.tensor([PADDING]), prompt)).repeat(3, 1)
        logits = model(torch.cat((whole, drawn), 1)[:, :-1])[:, len(prompt) :]
        expected = -logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
        torch.testing.assert_close(nats, expected, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_temperature_zero_takes_the_likeliest():
    model = make_model()
    with torch.no_grad():
        model.embedding.weight[PADDING] *= 0.1
    drawn, _ = draw(model, count=12, temperature=0.0, seeds=[0, 1])
    assert torch.equal(drawn[0], drawn[1])
    ids = torch.cat((torch.tensor([PADDING]), PROMPT))[None]
    for token in drawn[0]:
        logits = model(ids)[0, -1]
        logits[PADDING] = float("-inf")
        assert int(token) == int(logits.argmax())
        ids = torch.cat((ids, token[None, None]), 1)


def test_the_prompt_matters_and_is_not_returned():
    model = make_model()
    drawn, nats = draw(model, count=9, seeds=[0, 1])
    assert drawn.shape == nats.shape == (2, 9)
    assert not torch.equal(draw(model, NO_PROMPT, count=9, seeds=[0, 1])[0], drawn)


@pytest.mark.parametrize("config", [{}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.01}])
def test_padding_is_never_drawn(config):
    logits = torch.zeros(VOCABULARY)
    logits[PADDING] = 20.0  # the model would take nothing else
    drawn, nats = draw(FixedModel(logits), count=200, seeds=range(4), **config)
    assert not (drawn == PADDING).any()
    assert (nats > 19).all()  # and its NLL says how unlikely all else was


def test_draws_follow_the_distribution():
    logits = torch.tensor([5.0, 0.0, 1.0, -1.0, 2.0, float("-inf"), 0.5])
    count = 500
    drawn, _ = draw(FixedModel(logits), count=count, seeds=range(8))
    expected = logits.double().clone()
    expected[PADDING] = float("-inf")
    expected = expected.softmax(0).numpy()
    counts = np.bincount(drawn.flatten().numpy(), minlength=len(logits))
    n = counts.sum()
    assert counts[expected == 0].sum() == 0
    keep = expected > 0
    chi_square = ((counts[keep] - n * expected[keep]) ** 2 / (n * expected[keep])).sum()
    assert chi_square < 23.5  # 99.97% of draws from the right distribution, 5 - 1 degrees of freedom


def test_a_number_is_inverted_through_the_distribution(monkeypatch):
    """Of the probabilities 0, 1/2, 0, 1/4, 1/4 each token owns an interval; those of 0 own not even a point."""
    logits = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25]).log()
    numbers = iter([0.0, 0.25, 0.5 - 1e-6, 0.5 + 1e-6, 0.75 - 1e-6, 0.75 + 1e-6, 1 - 2**-24])
    monkeypatch.setattr(
        torch, "rand", lambda count, **_: torch.tensor([next(numbers) for _ in range(count)]).double()
    )
    drawn, _ = draw(FixedModel(logits), count=7)
    assert drawn[0].tolist() == [1, 1, 1, 3, 3, 4, 4]


def test_a_longer_sample_begins_as_a_shorter_one():
    logits = torch.zeros(50)
    short, long = (draw(FixedModel(logits), count=count)[0][0].tolist() for count in (13, 200))
    assert long[:13] == short
    assert len(set(long)) > 30


class TestNextDistribution:
    logits = torch.log(torch.tensor([[0.05, 0.4, 0.3, 0.15, 0.1], [0.1, 0.2, 0.3, 0.15, 0.25]]))

    def support(self, **config):
        got = next_distribution(self.logits, SamplingConfig(**config))
        torch.testing.assert_close(got.sum(-1), torch.ones(2, dtype=torch.float64))
        # What is kept keeps its proportions.
        for row, original in zip(got, self.logits.double().exp(), strict=True):
            kept = row > 0
            torch.testing.assert_close(row[kept], original[kept] / original[kept].sum())
        return [row.nonzero().flatten().tolist() for row in got]

    def test_untouched(self):
        assert self.support() == [[0, 1, 2, 3, 4]] * 2

    @pytest.mark.parametrize(
        ("k", "expected"),
        [(1, [[1], [2]]), (2, [[1, 2], [2, 4]]), (4, [[1, 2, 3, 4], [1, 2, 3, 4]]), (5, None), (99, None)],
    )
    def test_top_k(self, k, expected):
        assert self.support(top_k=k) == (expected or [[0, 1, 2, 3, 4]] * 2)

    @pytest.mark.parametrize(
        ("p", "expected"),
        [
            (1e-9, [[1], [2]]),
            (0.39, [[1], [2, 4]]),
            (0.41, [[1, 2], [2, 4]]),
            (0.71, [[1, 2, 3], [1, 2, 4]]),
            (0.96, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
        ],
    )
    def test_top_p_keeps_the_fewest_that_reach_it(self, p, expected):
        assert self.support(top_p=p) == expected

    def test_top_k_is_cut_before_top_p(self):
        # Among the two that are left, of 4/7 and 3/7, the first alone reaches a half.
        assert self.support(top_k=2, top_p=0.5)[0] == [1]

    def test_temperature(self):
        got = next_distribution(self.logits, SamplingConfig(temperature=2.0))
        root = self.logits.double().exp().sqrt()
        torch.testing.assert_close(got, root / root.sum(-1, keepdim=True))
        cold = next_distribution(self.logits, SamplingConfig(temperature=1e-3))
        assert torch.equal(cold.argmax(-1), torch.tensor([1, 2]))
        assert cold.max(-1).values.min() > 1 - 1e-9

    def test_temperature_zero_is_one_hot(self):
        got = next_distribution(self.logits, SamplingConfig(temperature=0.0))
        assert got.tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"temperature": 1e-310},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
    ],
)
def test_settings_that_mean_nothing(config):
    [(name, value)] = config.items()
    with pytest.raises(SeqpopeError, match=f"expected {name} .*, it is {value}"):
        SamplingConfig(**config)


PROMPTS = [
    torch.tensor([3, 1, 4, 1, 5]),
    torch.zeros(0, dtype=torch.long),
    torch.tensor([2, 2]),
    torch.arange(1, 9),
]


@pytest.mark.parametrize("position", POSITIONS)
def test_prompts_of_different_lengths_know_nothing_of_each_other(position):
    model = make_model(position)
    together = sample(model, PROMPTS, 12, seeds=[5, 6, 7, 8], padding_id=PADDING)
    for row, prompt in enumerate(PROMPTS):
        alone = sample(model, prompt, 12, seeds=[5 + row], padding_id=PADDING)
        assert torch.equal(together.ids[row], alone.ids[0])
        torch.testing.assert_close(together.nats[row], alone.nats[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_full_context_forgets_its_older_half(position):
    """What is drawn until then is what a longer context draws."""
    model = make_model(position)
    long = sample(model, PROMPT, 40, seeds=[1], padding_id=PADDING, context=24)
    assert long.forgotten.tolist() == [45 - 21 - 1]  # of 45 that were read 21 remain, and BOS is no token
    free = sample(model, PROMPT, 18, seeds=[1], padding_id=PADDING)
    assert torch.equal(long.ids[0, :18], free.ids[0])  # 1 + 5 + 18 = 24: until then nothing is forgotten
    again = sample(model, [PROMPT, PROMPT], 40, seeds=[9, 1], padding_id=PADDING, context=24)
    assert torch.equal(again.ids[1], long.ids[0])
    prompts, seeds = [PROMPTS[1], PROMPT, PROMPTS[3], PROMPT[1:]], [9, 1, 4, 2]  # two are apart by one token
    mixed = sample(model, prompts, 40, seeds=seeds, padding_id=PADDING, context=24)
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = sample(model, prompt, 40, seeds=[seed], padding_id=PADDING, context=24)
        assert torch.equal(mixed.ids[row], alone.ids[0])


def test_what_each_row_has_forgotten(monkeypatch):
    """As its own cache says, whatever was drawn beside it: rows fill at different steps."""
    model, held, differ = make_model(), [], False
    step = Decoder.step

    def watched(self, ids):
        got = step(self, ids)
        lengths = self.cache.position
        held.append(lengths.tolist() if isinstance(lengths, torch.Tensor) else [lengths] * len(ids))
        return got

    monkeypatch.setattr(Decoder, "step", watched)
    for count in (2, 15, 16, 17, 18, 19, 27, 40):
        held.clear()
        drawn = sample(model, PROMPTS, count, seeds=[1, 2, 3, 4], padding_id=PADDING, context=19)
        read = [1 + len(prompt) + count - 1 for prompt in PROMPTS]
        gone = [max(0, all_ - own - 1) for all_, own in zip(read, held[-1], strict=True)]
        assert drawn.forgotten.tolist() == gone
        differ |= len(set(gone)) > 1
    assert differ


def test_a_row_that_is_done_forgets_no_more():
    together = TestDone().draw(list(range(6)), context=16)
    for seed in range(6):
        alone = TestDone().draw([seed], context=16)
        assert int(together.forgotten[seed]) == int(alone.forgotten[0])
    assert len(set(together.forgotten.tolist())) > 1


def test_a_prompt_longer_than_the_context():
    with pytest.raises(SeqpopeError, match="a prompt of 5 tokens does not fit half a context of 10"):
        sample(make_model(), PROMPT, 4, seeds=[0], padding_id=PADDING, context=10)


class Alternate:
    """Even tokens after odd ones, and odd ones after even ones; the state is the last token."""

    def begin(self, prompts, count):
        return np.array([prompt[-1] if len(prompt) else 0 for prompt in prompts])

    def allowed(self, state):
        return (np.arange(VOCABULARY)[None] + state[:, None]) % 2 == 1

    def done(self, state):
        return np.zeros(len(state), bool)

    def advance(self, state, tokens):
        return tokens.copy()

    def take(self, state, rows):
        return state[rows]


class TestConstraint:
    def draw(self, particles=1, seeds=(0, 1, 2), model=None, **options):
        return sample(
            model or make_model(), PROMPTS[: len(seeds)], 20, seeds=list(seeds), padding_id=PADDING,
            constraint=Alternate(), particles=particles, **options,
        )  # fmt: skip

    @pytest.mark.parametrize("particles", [1, 5])
    def test_is_kept(self, particles):
        drawn = self.draw(particles)
        for row, prompt in enumerate(PROMPTS[:3]):
            whole = torch.cat((prompt[-1:], drawn.ids[row]))
            assert ((whole[1:] + whole[:-1]) % 2 == 1).all()
        assert (drawn.constraint_nats > 0).any()
        assert (drawn.constraint_nats <= drawn.nats + 1e-5).all()

    @torch.no_grad()
    def test_its_cost_is_what_the_model_gave_to_all_that_was_allowed(self):
        model = make_model()
        drawn = self.draw(seeds=(0,), model=model)
        ids = torch.cat((torch.tensor([PADDING]), PROMPT, drawn.ids[0]))
        share = model(ids[None, :-1])[0, len(PROMPT) :].softmax(-1)
        allowed = torch.from_numpy(Alternate().allowed(ids[len(PROMPT) : -1].numpy()))
        expected = -(share * allowed).sum(-1).log()
        torch.testing.assert_close(drawn.constraint_nats[0], expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("particles", [1, 6])
    def test_a_seed_draws_the_same_beside_others(self, particles):
        together = self.draw(particles)
        alone = sample(
            make_model(),
            PROMPTS[1],
            20,
            seeds=[1],
            padding_id=PADDING,
            constraint=Alternate(),
            particles=particles,
        )
        assert torch.equal(together.ids[1], alone.ids[0])

    def test_without_a_token_left_it_says_so(self):
        constraint = Alternate()
        constraint.allowed = lambda state: np.zeros((len(state), VOCABULARY), bool)
        with pytest.raises(SeqpopeError, match="leaves no token at position 0"):
            sample(make_model(), PROMPT, 3, seeds=[0], padding_id=PADDING, constraint=constraint)
        constraint.allowed = lambda state: np.arange(VOCABULARY)[None].repeat(len(state), 0) == PADDING
        with pytest.raises(SeqpopeError, match="leaves no token at position 0"):
            sample(make_model(), PROMPT, 3, seeds=[0], padding_id=PADDING, constraint=constraint)


class Ending:
    """All that is drawn is free, but the last token must be 1."""

    def begin(self, prompts, count):
        return np.full(len(prompts), count)

    def allowed(self, state):
        last = state[:, None] == 1
        return ~last | (np.arange(VOCABULARY)[None] == 1)

    def done(self, state):
        return np.zeros(len(state), bool)

    def advance(self, state, tokens):
        return state - 1

    def take(self, state, rows):
        return state[rows]


class Until:
    """Anything until a 1 or a 2, after which a row is done. The state is the last token."""

    def begin(self, prompts, count):
        return np.zeros(len(prompts), int)

    def allowed(self, state):
        return np.tile(~self.done(state)[:, None], VOCABULARY) & (np.arange(VOCABULARY) != 5)

    def done(self, state):
        return (state == 1) | (state == 2)

    def advance(self, state, tokens):
        return np.where(self.done(state), state, tokens)

    def take(self, state, rows):
        return state[rows]


class TestDone:
    """Rows that end before others."""

    def draw(self, seeds, particles=1, count=200, **options):
        return sample(
            make_model(), PROMPT, count, seeds=seeds, padding_id=PADDING, constraint=Until(), particles=particles,
            **options,
        )  # fmt: skip

    @pytest.mark.parametrize("particles", [1, 4])
    def test_padding_follows_at_no_cost_and_all_ends_with_the_last(self, particles):
        drawn = self.draw([0, 1, 2, 3, 4, 5], particles)
        last = []
        for ids, nats, cost in zip(drawn.ids, drawn.nats, drawn.constraint_nats, strict=True):
            end = int(((ids == 1) | (ids == 2)).nonzero()[0])
            assert (ids[: end + 1] != PADDING).all()
            assert (nats[: end + 1] > 0).all()
            assert (cost[: end + 1] > 0).all()
            assert (ids[end + 1 :] == PADDING).all()
            assert (nats[end + 1 :] == 0).all()
            assert (cost[end + 1 :] == 0).all()
            last.append(end)
        assert len(set(last)) > 2
        if particles == 1:
            assert drawn.ids.shape[1] == max(last) + 1

    @pytest.mark.parametrize("particles", [1, 4])
    @pytest.mark.parametrize("pick", [pytest.param("likeliest", marks=pytest.mark.slow), "any"])
    @pytest.mark.parametrize("config", [{}, {"temperature": 0.5, "top_k": 5}, {"repetition_penalty": 1.3}])
    def test_a_seed_draws_the_same_beside_longer_ones(self, particles, pick, config):
        options = {"pick": pick, "config": SamplingConfig(**config), "resample_every": 3, "count": 50}
        together = self.draw(list(range(6)), particles, **options)
        for seed in range(6):
            alone = self.draw([seed], particles, **options)
            assert torch.equal(alone.ids[0], together.ids[seed, : alone.ids.shape[1]])
            assert (together.ids[seed, alone.ids.shape[1] :] == PADDING).all()

    def test_done_from_the_start(self):
        constraint = Until()
        constraint.begin = lambda prompts, count: np.ones(len(prompts), int)
        drawn = sample(make_model(), PROMPT, 9, seeds=[0, 1], padding_id=PADDING, constraint=constraint)
        assert drawn.ids.shape == drawn.nats.shape == (2, 0)


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


@pytest.mark.parametrize("particles", [1, 3])
def test_nothing_to_draw(particles):
    drawn = sample(make_model(), PROMPT, 0, seeds=[0, 1], padding_id=PADDING, particles=particles)
    assert drawn.ids.shape == drawn.nats.shape == (2, 0)


def test_a_model_that_gives_no_numbers():
    model = make_model()
    with torch.no_grad():
        model.blocks[1].mlp_out.weight[0, 0] = float("nan")
    with pytest.raises(SeqpopeError, match="the model gives no numbers"):
        sample(model, PROMPT, 4, seeds=[0], padding_id=PADDING, constraint=Alternate())


def test_a_model_that_would_drop_out():
    model = Transformer(VOCABULARY, "pope", ModelConfig(width=16, layers=1, heads=2, dropout=0.1))
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        sample(model, PROMPT, 4, seeds=[0], padding_id=PADDING)


def test_min_p_and_penalty():
    logits = torch.log(torch.tensor([[0.05, 0.4, 0.3, 0.15, 0.1]]))
    kept = next_distribution(logits, SamplingConfig(min_p=0.4))[0]
    assert kept.nonzero().flatten().tolist() == [1, 2]
    assert next_distribution(logits, SamplingConfig(min_p=1.0))[0].nonzero().flatten().tolist() == [1]
    bent = penalise(torch.tensor([[2.0, -2.0, 2.0, -2.0]]), torch.tensor([[True, True, False, False]]), 2.0)
    assert bent.tolist() == [[1.0, -4.0, 2.0, -2.0]]
    logits = torch.tensor([-9.0, 2.0, 1.9, -9.0, -9.0, -9.0, -9.0])
    drawn, _ = draw(FixedModel(logits), prompt=torch.tensor([1]), count=3, temperature=0.0, repetition_penalty=2.0)
    assert drawn[0].tolist() == [2, 1, 1]  # 1 has sounded, then both have


def test_progress():
    calls = []
    sample(
        make_model(),
        PROMPT,
        3,
        seeds=[0],
        padding_id=PADDING,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
