from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import NO_PROMPT, PROMPT, PROMPTS, Alternate, FixedModel, make_model
from stores import PADDING, VOCABULARY

from seqpope.decoding import Decoder
from seqpope.errors import SeqpopeError
from seqpope.model.config import ModelConfig
from seqpope.model.positions import POSITIONS
from seqpope.model.transformer import Transformer
from seqpope.sampling import SamplingConfig, next_distribution, penalise, sample


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
