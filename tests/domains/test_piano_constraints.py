"""Rules of performances: kept, canonical, and never a state without a token. Checked on what is decoded."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from piano_pieces import chords, random_performance

from seqpope.domains.music.piano.constraints import PerformanceConstraint, RemiConstraint
from seqpope.domains.music.piano.tokenizer import PerformanceTokenizer, RemiTokenizer
from seqpope.errors import SeqpopeError

REMI, EVENTS = RemiTokenizer(), PerformanceTokenizer()
KINDS = {"remi": (REMI, RemiConstraint, 16), "performance": (EVENTS, PerformanceConstraint, 100)}
BOTH = pytest.mark.parametrize("kind", KINDS)
# Of REMI's tokens one letter each: bar, position, tempo, chord, pitch, velocity, duration.
LETTERS = dict(zip(("Bar", "Position", "Tempo", "Chord", "Pitch", "Velocity", "Duration"), "bstcpvd", strict=True))
REMI_GRAMMAR = re.compile(r"bst(c?(pvd)+)?(b|sc?(pvd)+)*s?")
PIECES = [random_performance(seed, 60) for seed in range(3)] + [chords()]


def walk(constraint, count, prompts=((),), seed=0, choose="any"):
    """Random continuations that keep to a constraint, a list of ids each, all drawn to their end.

    `choose`: any token, the first or last by id, or of one kind of token as often as of another.
    """
    generator = np.random.default_rng(seed)
    state = constraint.begin([np.array(prompt, int) for prompt in prompts], count)
    drawn: list[list[int]] = [[] for _ in prompts]
    for _ in range(count):
        done = constraint.done(state)
        if done.all():
            break
        allowed = constraint.allowed(state)
        assert (allowed.any(-1) | done).all(), "no token is left"
        assert not allowed[:, 0].any(), "padding is allowed"
        tokens = np.zeros(len(prompts), int)
        for row in np.flatnonzero(~done):
            options = np.flatnonzero(allowed[row])
            if choose == "even":
                tokenizer = REMI if isinstance(constraint, RemiConstraint) else EVENTS
                spans = [span for spans in tokenizer.kinds.values() for span in spans]
                groups = [options[(options >= low) & (options <= high)] for low, high in spans]
                groups = [group for group in groups if len(group)] or [options]
                options = groups[generator.integers(len(groups))]
            place = {"first": 0, "last": -1}.get(choose, generator.integers(len(options)))
            tokens[row] = options[place]
            drawn[row].append(int(tokens[row]))
        state = constraint.advance(state, tokens)
    assert constraint.done(state).all(), "the music did not end"
    return drawn


def spelled(ids):
    return "".join(LETTERS.get(REMI.vocabulary[i].split("_")[0], "?") for i in ids)


def on_grid(kind, played):
    """Onsets and ends in steps, (N,) each: decoding places notes of one REMI position ticks apart."""
    rate = KINDS[kind][2]
    return np.floor(played.onset * rate + 1e-6), np.floor(played.end * rate + 1e-6)


def most_sounding(kind, played, since=0.0):
    """The most notes that sound at once where one is struck from `since` on."""
    onset, end = on_grid(kind, played)
    at = onset[played.onset >= since]
    return max((int(((onset <= now) & (end > now)).sum()) for now in at), default=0)


def without_chords(ids):
    return [i for i in ids if not REMI.vocabulary[i].startswith("Chord")]


class TestGrammar:
    @pytest.mark.parametrize("choose", ["any", "first", "last", "even"])
    @pytest.mark.parametrize("ends", [None, 3.0])
    def test_remi(self, choose, ends):
        [ids] = walk(RemiConstraint(ends=ends), 900, choose=choose)
        assert REMI_GRAMMAR.fullmatch(spelled(ids))
        assert REMI.vocabulary[ids[1]] == "Position_0"
        assert REMI.vocabulary[ids[2]] == "Tempo_120.0"
        played = REMI.decode(ids)
        assert played.skipped == 0
        last = max(place for place, letter in enumerate(spelled(ids)) if letter in "td") + 1
        assert without_chords(REMI.encode(played)) == without_chords(ids[:last])

    @pytest.mark.parametrize("choose", ["any", "first", "last", "even"])
    @pytest.mark.parametrize("ends", [None, 3.0])
    def test_performance_tokens_are_those_of_the_encoder(self, choose, ends):
        [ids] = walk(PerformanceConstraint(ends=ends), 900, choose=choose)
        played = EVENTS.decode(ids)
        assert played.skipped == 0
        last = max((place for place, i in enumerate(ids) if i < 177), default=-1) + 1
        again = EVENTS.encode(played).tolist()
        # Without an end asked for it ends where its tokens do, perhaps after a shift: then two stand in a row.
        same = len(ids) - 95 if ends is None else last
        assert again[:same] == ids[:last][:same]

    @BOTH
    @pytest.mark.parametrize("played", PIECES, ids=lambda played: played.name)
    def test_all_that_encoders_write_is_allowed(self, kind, played):
        """But in REMI for a key struck again at its position."""
        tokenizer, constraint, _ = KINDS[kind]
        rules = constraint()
        ids = tokenizer.encode(played).astype(int)
        state = rules.begin([np.zeros(0, int)], len(ids) + 100)
        refused = []
        for place, token in enumerate(ids):
            if not rules.allowed(state)[0, token]:
                refused.append(place)
            state = rules.advance(state, np.array([token]))
        onset, _ = on_grid(kind, tokenizer.decode(ids))
        again = (
            len(onset) - len(set(zip(onset.tolist(), played.pitch.tolist(), strict=True))) if kind == "remi" else 0
        )
        assert len(refused) == again

    def test_chords_need_room(self):
        constraint = RemiConstraint(keys=(60, 66), polyphony=3)
        state = constraint.begin([np.array([4, 189, 312])], 100)
        found = {REMI.vocabulary[i] for i in np.flatnonzero(constraint.allowed(state)[0])}
        assert {word for word in found if word.startswith("Chord")} == {"Chord_dim"}
        assert "Position_0" not in found
        assert "Position_1" in found


@BOTH
class TestLimits:
    @pytest.mark.parametrize("choose", ["any", "first", "last", "even"])
    @pytest.mark.parametrize("keys", [(60, 60), (21, 21), (108, 108), (48, 72)])
    def test_keys(self, kind, keys, choose):
        tokenizer, constraint, _ = KINDS[kind]
        for ids in walk(constraint(keys=keys, ends=20.0), 600, [()] * 3, choose=choose):
            played = tokenizer.decode(ids)
            assert len(played)
            assert ((played.pitch >= keys[0]) & (played.pitch <= keys[1])).all()

    @pytest.mark.parametrize("choose", ["any", "even", "first", "last"])
    @pytest.mark.parametrize("polyphony", [1, 2, 5])
    def test_polyphony(self, kind, polyphony, choose):
        tokenizer, constraint, _ = KINDS[kind]
        found = 0
        for ids in walk(constraint(polyphony=polyphony, ends=30.0), 1500, [()] * 3, choose=choose):
            played = tokenizer.decode(ids)
            found = max(found, most_sounding(kind, played))
        assert found <= polyphony
        if choose == "even":
            assert found == polyphony
            [free] = walk(constraint(ends=30.0), 1500, choose=choose)
            assert most_sounding(kind, tokenizer.decode(free)) > polyphony

    def test_a_sounding_key_is_not_struck(self, kind):
        tokenizer, constraint, _ = KINDS[kind]
        for ids in walk(constraint(keys=(60, 62), ends=30.0), 1500, [()] * 3, choose="even"):
            played = tokenizer.decode(ids)
            onset, end = on_grid(kind, played)
            for key in (60, 61, 62):
                mine = played.pitch == key
                if kind == "performance":
                    assert (onset[mine][1:] >= end[mine][:-1]).all()
                else:
                    assert (np.diff(onset[mine]) > 0).all()  # not twice at a position

    @pytest.mark.parametrize("ends", [0.1, 0.5, 2.0, 3.99, 4.0, 61.03])
    def test_ends(self, kind, ends):
        tokenizer, constraint, rate = KINDS[kind]
        for seed in range(5):
            for ids in walk(constraint(ends=ends), 9000, [()] * 2, seed=seed, choose="even"):
                played = tokenizer.decode(ids)
                _, end = on_grid(kind, played)
                assert end.max(initial=0) <= ends * rate + 1e-6
                assert len(ids) < 9000
                if kind == "performance":  # what sounds at the end is released there
                    assert sum(token - 176 for token in ids if 177 <= token <= 276) == int(ends * rate + 1e-6)
                    assert sum(1 <= token <= 88 for token in ids) == sum(89 <= token <= 176 for token in ids)

    def test_starts(self, kind):
        tokenizer, constraint, _ = KINDS[kind]
        for starts in (0.01, 1.0, 2.5, 7.77):
            for ids in walk(constraint(starts=starts, ends=starts + 5), 2000, [()] * 2, choose="even"):
                played = tokenizer.decode(ids)
                assert len(played)
                assert played.onset.min() >= starts

    def test_ends_in_time_whatever_is_chosen(self, kind):
        """A model that never lets time pass has it pass at last: the tokens that are left suffice to end."""
        tokenizer, constraint, _ = KINDS[kind]
        for count in (60, 200):
            for choose in ("first", "last", "any"):
                for starts in (0.0, 33.33, 39.9):
                    [ids] = walk(constraint(starts=starts, ends=40.0), count, choose=choose)
                    assert len(ids) <= count
                    played = tokenizer.decode(ids)
                    assert played.skipped == 0
                    assert len(played)

    def test_rows_do_not_mix(self, kind):
        """Rows of several prompts, done at different times, have what each has alone."""
        tokenizer, constraint, _ = KINDS[kind]
        rules = constraint(polyphony=3, ends=9.0)
        prompts = [(), tokenizer.encode(PIECES[0])[:40], tokenizer.encode(PIECES[1])[:25]]
        state = rules.begin([np.array(prompt, int) for prompt in prompts], 700)
        alone = [rules.begin([np.array(prompt, int)], 700) for prompt in prompts]
        generator, ended = np.random.default_rng(1), set()
        for _ in range(700):
            done, allowed = rules.done(state), rules.allowed(state)
            ended.add(int(done.sum()))
            if done.all():
                break
            tokens = np.zeros(3, int)
            for row in range(3):
                assert rules.done(alone[row])[0] == done[row]
                if not done[row]:
                    assert np.array_equal(rules.allowed(alone[row])[0], allowed[row])
                    tokens[row] = generator.choice(np.flatnonzero(allowed[row]))
                alone[row] = rules.advance(alone[row], tokens[row : row + 1])
            state = rules.advance(state, tokens)
        assert len(ended) > 2

    def test_rows_can_be_taken_apart(self, kind):
        _, constraint, _ = KINDS[kind]
        rules = constraint(polyphony=2, ends=9.0)
        state = rules.begin([np.zeros(0, int)] * 3, 300)
        generator = np.random.default_rng(0)
        for _ in range(40):
            allowed = rules.allowed(state)
            state = rules.advance(state, np.array([generator.choice(np.flatnonzero(row)) for row in allowed]))
        again = rules.take(state, np.array([2, 0, 2]))
        assert np.array_equal(rules.allowed(again), rules.allowed(state)[[2, 0, 2]])


@BOTH
class TestPrompts:
    @pytest.mark.parametrize("length", range(14))
    def test_may_end_anywhere(self, kind, length):
        """In the head, in a bar, in a note: what was begun is finished first."""
        tokenizer, constraint, _ = KINDS[kind]
        for played in PIECES:
            prompt = tokenizer.encode(played)[:length]
            [ids] = walk(constraint(keys=(60, 60), polyphony=1, ends=20.0), 400, [prompt], choose="even")
            whole = [*prompt.tolist(), *ids]
            decoded = tokenizer.decode(whole)
            assert decoded.skipped == 0
            if kind == "remi":
                text = spelled(prompt)
                # A position at which more notes than the limit sound is left without a note.
                text = text[:-1] if text.endswith("ds") and spelled(ids)[0] in "bs" else text
                assert REMI_GRAMMAR.fullmatch(text + spelled(ids))
            low, high = tokenizer.kinds["pitch" if kind == "remi" else "note-on"][0]
            begun = [i for i in prompt if low <= i <= high]
            assert (decoded.pitch[len(begun) :] == 60).all()

    def test_that_breaks_the_limit(self, kind):
        """No note is struck until fewer sound than the limit."""
        tokenizer, constraint, _ = KINDS[kind]
        prompt = tokenizer.encode(chords())
        start = tokenizer.decode(prompt).onset.max() + 0.01
        if kind == "performance":
            prompt = prompt[: np.flatnonzero(prompt < 89)[-1] + 1]  # the last chord sounds on
        for seed in range(5):
            rules = constraint(polyphony=2, starts=start, ends=start + 60)
            [ids] = walk(rules, 900, [prompt], seed=seed, choose="even")
            played = tokenizer.decode([*prompt.tolist(), *ids])
            assert (played.onset >= start).sum() > 3
            assert most_sounding(kind, played, since=start) <= 2

    def test_that_reaches_beyond_the_end(self, kind):
        tokenizer, constraint, _ = KINDS[kind]
        prompt = tokenizer.encode(PIECES[0]).astype(int)
        with pytest.raises(SeqpopeError, match=r"prompt reaches [\d.]+ s and the music is to end at 1 s: ask"):
            constraint(ends=1.0).begin([prompt], 1000)

    def test_of_ids_that_are_none(self, kind):
        with pytest.raises(SeqpopeError, match="the prompt has ids -1 to 5: expected 0 to"):
            KINDS[kind][1]().begin([np.array([5, -1])], 100)


@BOTH
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_state_is_without_a_token(kind, data):
    """Whatever is asked for, whatever the prompt is and wherever it stops, whatever is chosen."""
    tokenizer, constraint, _ = KINDS[kind]
    low = data.draw(st.integers(21, 108))
    prompt = data.draw(
        st.one_of(
            st.builds(
                lambda played, length: tokenizer.encode(played)[:length].tolist(),
                st.sampled_from(PIECES),
                st.integers(0, 200),
            ),
            st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=30),
        )
    )
    reached = tokenizer.decode([*prompt, *((4, 4) if kind == "remi" else ())]).onset.max(initial=0)
    time = reached + sum(i == 4 for i in prompt) * 2 + sum(max(0, i - 176) for i in prompt if i < 277) / 100
    starts = data.draw(st.one_of(st.just(0.0), st.floats(0, 2 * time + 3)))
    ends = data.draw(st.one_of(st.none(), st.floats(0.2, 12).map(lambda more: max(starts, time + 2.1) + more)))
    rules = constraint(
        keys=(low, data.draw(st.integers(low, 108))),
        polyphony=data.draw(st.one_of(st.none(), st.integers(1, 4))),
        starts=starts,
        ends=ends,
    )
    least = int((time + 15) * 2 + starts) + 100
    count = data.draw(st.integers(least, least + 300))
    choose = data.draw(st.sampled_from(["any", "first", "last", "even"]))
    [ids] = walk(rules, count, [prompt], seed=data.draw(st.integers(0, 99)), choose=choose)
    played = tokenizer.decode([*prompt, *ids])
    assert played.skipped <= tokenizer.decode(prompt).skipped
    assert len(played) or ends is None


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"keys": (60, 59)}, "the keys 60-59 must lie in a piano's 21-108, the lower one first"),
            ({"keys": (20, 60)}, "the keys 20-60"),
            ({"keys": (60, 109)}, "the keys 60-109"),
            ({"polyphony": 0}, "the polyphony must be at least 1, it is 0"),
            ({"starts": -1.0}, "must start at 0 seconds or later"),
            ({"starts": float("nan")}, "must start at 0 seconds or later"),
            ({"starts": 5.0, "ends": 5.0}, r"must end at least 0\.\d+ s after 5 s, where it starts, not at 5"),
            ({"ends": 0.0}, "must end at least"),
            ({"ends": float("inf")}, "must end at least"),
        ],
        ids=str,
    )
    @BOTH
    def test_settings(self, kind, options, message):
        with pytest.raises(SeqpopeError, match=message):
            KINDS[kind][1](**options)

    @BOTH
    def test_too_few_tokens(self, kind):
        with pytest.raises(SeqpopeError, match=r"20 tokens are too few: to end, the music needs \d+"):
            KINDS[kind][1](ends=60.0).begin([np.zeros(0, int)], 20)
