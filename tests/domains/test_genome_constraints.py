from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from seqpope.domains.genome import automaton
from seqpope.domains.genome.bases import IUPAC, SequenceError, gc_content, reverse_complement
from seqpope.domains.genome.constraints import DnaConstraint
from seqpope.domains.genome.rules import DnaRules
from seqpope.domains.genome.sites import ConstraintError, Site, find_sites, resolve_site

SINGLE = ["", *"ACGTNR", None]
SIX = ["", "", None, *map("".join, itertools.product("ATCG", repeat=6)), *"ATCGN", None, "", ""]
assert len(SIX) == 4107  # the Nucleotide Transformer's: 4096 + 5 and what is no DNA
MIXED = [
    *"TGCA",
    None,
    *map("".join, itertools.product("ACGT", repeat=2)),
    "GAT",
    "TAA",
    "GCG",
    "N",
    "R",
    "NA",
    "acg",
    "<pad>",
]
ENZYMES = ("EcoRI", "BamHI", "HindIII", "BsaI", "BsmBI", "NotI")
STOPS = ("TAA", "TAG", "TGA")


def free(rules, vocabulary):
    """All tokens that fit, wherever."""
    return DnaConstraint(rules, vocabulary, letters_anywhere=True)


def keeps(prompt: str, drawn: str, rules: DnaRules) -> bool:
    """The rules as anyone would check them."""
    text, first = prompt + drawn, 0 if rules.judge_prompt else len(prompt)
    if not set(drawn) <= set(rules.letters):
        return False
    for site in rules.forbidden_sites:
        size = len(resolve_site(site)[0][1])
        if any(found.position + size > first for found in find_sites(text, [site])):
            return False
    judged = text[first:]
    if rules.no_stop and any(find_stop(text[i : i + 3]) for i in range(max(0, first - 2), len(text) - 2)):
        return False
    if rules.open_frame is not None and any(
        find_stop(judged[i : i + 3]) for i in range(rules.open_frame, len(judged) - 2, 3)
    ):
        return False
    if rules.gc and judged and not rules.gc[0] <= gc_content(judged) <= rules.gc[1]:
        return False
    if rules.gc_window:
        low, high = rules.gc_window
        strong = np.concatenate(([0], np.cumsum([base in "GC" for base in judged])))
        shares = (strong[rules.window :] - strong[: -rules.window]) / rules.window
        return bool(((low <= shares) & (shares <= high)).all())
    return True


def find_stop(codon: str) -> bool:
    choices = itertools.product(*(IUPAC[letter] for letter in codon))
    return any("".join(choice) in STOPS for choice in choices)


def check_mask(constraint, state):
    """The mask, after a look at what is promised of it."""
    mask = constraint.allowed(state)
    assert mask.shape == (len(state), constraint.vocabulary_size)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask.any(1), ~state.done)
    return mask


def reachable(constraint, vocabulary, prompt, length):
    """All that can be drawn; fails at a dead end. Rows with the same text are followed once."""
    state, texts, found = constraint.start([prompt], [length]), [""], set()
    while texts:
        rows, tokens = np.nonzero(check_mask(constraint, state))
        found |= {texts[row] for row in np.flatnonzero(state.done)}
        after = [texts[row] + vocabulary[token] for row, token in zip(rows, tokens, strict=True)]
        once = [index for index, text in enumerate(after) if text not in found]
        once = list({after[index]: index for index in once}.values())
        state = constraint.advance(constraint.take(state, rows[once]), tokens[once])
        texts = [after[index] for index in once]
    return found


def drawable(rules, prompt, length):
    every = ("".join(letters) for letters in itertools.product(rules.letters, repeat=length))
    return {drawn for drawn in every if keeps(prompt, drawn, rules)}


class TestBases:
    def test_reverse_complement(self):
        assert reverse_complement("GAATTC") == "GAATTC"
        assert reverse_complement("aCGtN") == "NaCGt"
        assert reverse_complement("RYSWKMBDHVN") == "NBDHVKMWSRY"
        assert reverse_complement("") == ""
        for code, bases in IUPAC.items():
            partner = IUPAC[reverse_complement(code)]
            assert set(partner) == set(map(reverse_complement, bases))

    def test_reverse_complement_refuses_what_is_no_dna(self):
        with pytest.raises(SequenceError, match=r"'U' at position 2.*expected the IUPAC codes"):
            reverse_complement("ACU")

    def test_gc_content(self):
        assert gc_content("GGCA") == 0.75
        assert gc_content("gATNN") == 1 / 3
        assert np.isnan(gc_content("NN"))

    def test_find_sites(self):
        assert find_sites("ttGAATTCtt", ["EcoRI"]) == [Site(2, "EcoRI (GAATTC)", 1)]
        assert find_sites("GAGACCGGTCTC", ["BsaI"]) == [Site(0, "BsaI (GGTCTC)", -1), Site(6, "BsaI (GGTCTC)", 1)]
        assert [found.position for found in find_sites("AAAA", ["AA"])] == [0, 1, 2]  # overlapping
        assert find_sites("GATTC", ["GANTC"]) == [Site(0, "GANTC", 1)]
        assert find_sites("GNATC", ["GGATC"]) == [Site(0, "GGATC", 1)]  # N may be that
        assert find_sites("GCTGC", ["GCAGC"]) == [Site(0, "GCAGC", -1)]
        assert find_sites("GAATTC", []) == []

    @pytest.mark.parametrize("site", ["GANTC", "CCWGG", "VCW", "GRCGYC"])
    def test_find_sites_agrees_with_expansion(self, site):
        text = "".join(np.random.default_rng(0).choice(list("ACGT"), 3000))
        words = set(map("".join, itertools.product(*(IUPAC[code] for code in site))))
        both = words | set(map(reverse_complement, words))
        expected = {i for i in range(len(text)) if text[i : i + len(site)] in both}
        assert len(expected) > 1
        assert {found.position for found in find_sites(text, [site])} == expected

    def test_names(self):
        assert resolve_site("ecori") == resolve_site("EcoRI") == (("EcoRI (GAATTC)", "GAATTC"),)
        assert resolve_site("gaattc") == (("GAATTC", "GAATTC"),)
        assert [site for _, site in resolve_site("HpyUM037X")] == ["TNGGNAG", "GTGGNAG"]
        with pytest.raises(ConstraintError, match=r"unknown forbidden site 'EcoR1'.*did you mean .*EcoRI.*IUPAC"):
            resolve_site("EcoR1")
        with pytest.raises(ConstraintError, match="unknown forbidden site ''"):
            resolve_site("")

    def test_only_names_need_biopython(self, monkeypatch):
        resolve_site.cache_clear()
        monkeypatch.setitem(sys.modules, "Bio.Restriction.Restriction_Dictionary", None)
        assert resolve_site("GAATTC") == (("GAATTC", "GAATTC"),)
        with pytest.raises(ConstraintError, match="pip install 'biopython"):
            resolve_site("EcoRI")


EXACT = [
    ({}, "", 4),
    ({}, "GATTACA", 3),
    ({"forbidden_sites": ["GAT"]}, "", 6),
    ({"forbidden_sites": ["GAT"]}, "CCGA", 5),
    ({"forbidden_sites": ["GANTC", "CW"]}, "GA", 6),
    ({"forbidden_sites": ["TAN", "AA"]}, "C", 6),  # TA may only end
    ({"forbidden_sites": ["A", "CC"]}, "", 6),  # and T with it: the other strand
    ({"forbidden_sites": ["SW"]}, "", 6),  # its other strand is WS: kinds never change
    ({"open_frame": 0}, "", 6),
    ({"open_frame": 1}, "", 6),
    ({"open_frame": 2}, "TA", 5),
    ({"open_frame": 0}, "CTA", 5),
    ({"open_frame": 1}, "CTA", 5),
    ({"open_frame": 2, "judge_prompt": False}, "CTA", 5),
    ({"open_frame": 0, "judge_prompt": False}, "TAATA", 5),
    ({"no_stop": True}, "TG", 6),
    ({"no_stop": True, "judge_prompt": False}, "TAATA", 5),
    ({"no_stop": True, "open_frame": 1, "forbidden_sites": ["CAT"]}, "", 5),
    ({"forbidden_sites": ["TAATA", "ATAA", "AT"], "judge_prompt": False}, "TAATA", 5),
    ({"letters": "ACGTN", "forbidden_sites": ["GAT"]}, "", 5),
    ({"letters": "NACGTR", "open_frame": 0}, "TN", 4),
    ({"gc": (0.4, 0.6)}, "", 6),
    ({"gc": (0.1, 0.3)}, "GGAT", 6),
    ({"gc": (0.5, 0.5), "judge_prompt": False}, "GGAT", 6),
    ({"gc": (0.9, 1), "forbidden_sites": ["GC"]}, "", 6),
    ({"gc": (0.3, 0.5), "forbidden_sites": ["GG", "CG", "AA"], "open_frame": 0}, "", 6),
    ({"gc": (0.6, 0.7), "no_stop": True, "forbidden_sites": ["GC"]}, "TAC", 6),
    ({"gc_window": (1 / 3, 2 / 3), "window": 3}, "", 6),
    ({"gc_window": (0, 0.5), "window": 4}, "GA", 6),
    ({"gc_window": (0.5, 0.5), "window": 2}, "GAGA", 5),
    ({"gc_window": (0.5, 0.5), "window": 2, "judge_prompt": False}, "GGG", 5),
    ({"gc_window": (0.2, 0.6), "window": 5, "gc": (0.5, 0.6)}, "", 6),
    ({"gc_window": (0.25, 0.5), "window": 4, "gc": (0.4, 0.6)}, "AGA", 6),
    ({"gc_window": (0, 1), "window": 1, "gc": (0.5, 0.5)}, "A", 5),
    ({"gc_window": (0.3, 0.7), "window": 3, "no_stop": True, "forbidden_sites": ["GC", "TTG"]}, "T", 6),
    # States from which only one kind is open, so that bases ahead are looked at.
    ({"gc_window": (0.3, 0.7), "window": 3, "forbidden_sites": ["TAW", "GCS"]}, "", 6),
    ({"gc_window": (0.2, 0.8), "window": 4, "gc": (0.4, 0.5), "forbidden_sites": ["BBCGD"]}, "GA", 6),
    ({"gc_window": (0.4, 0.6), "window": 40, "gc": (0.3, 0.9)}, "GA", 5),  # no window at all
]


@pytest.mark.parametrize(("settings", "prompt", "length"), EXACT)
def test_what_can_be_drawn_is_what_keeps_the_rules(settings, prompt, length):
    rules = DnaRules(**settings)
    expected = drawable(rules, prompt, length)
    assert expected
    for vocabulary in (SINGLE, MIXED):
        constraint = free(rules, vocabulary)
        assert reachable(constraint, vocabulary, prompt, length) == expected | (set() if length else {""})
        assert constraint.exact


def test_both_vocabularies_draw_the_same():
    rules = DnaRules(forbidden_sites=("GAT", "CC"), open_frame=1, gc=(0.3, 0.5))
    expected = drawable(rules, "TG", 7)
    for vocabulary in (SINGLE, SIX):
        assert reachable(free(rules, vocabulary), vocabulary, "TG", 7) == expected


CAUTIOUS = [
    ({"forbidden_sites": ["SW"], "gc": (0, 1)}, ""),  # all kinds alike: counts 0 and 6
    ({"forbidden_sites": ["SW"], "gc": (0, 0.2)}, ""),
    ({"forbidden_sites": ["SW"], "gc": (0.9, 1)}, ""),
    ({"forbidden_sites": ["VCW"], "gc_window": (0.2, 0.6), "window": 5}, ""),
    ({"forbidden_sites": ["CCDS"], "gc_window": (0.4, 0.8), "window": 5, "gc": (0.3, 0.7)}, "A"),
]


@pytest.mark.parametrize(("settings", "prompt"), CAUTIOUS)
def test_caution_gives_up_sequences_but_has_no_dead_end(settings, prompt):
    rules = DnaRules(**settings)
    constraint = free(rules, MIXED)
    found = reachable(constraint, MIXED, prompt, 6)
    assert found
    assert found <= drawable(rules, prompt, 6)
    assert not constraint.exact


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_counts_that_windows_leave_open_are_those_of_enumeration(window):
    """The closed form of difference constraints against all kinds of bases, prompts shorter and longer."""
    beyond = 6
    pasts = [kinds for size in range(window + 2) for kinds in itertools.product([0, 1], repeat=size)]
    for low, high in itertools.combinations_with_replacement(range(window + 1), 2):
        band = (low / window, high / window)
        constraint = free(DnaRules(gc=(0, 1), gc_window=band, window=window), SINGLE)
        rows, expected = [], []
        for past, length in itertools.product(pasts, range(beyond + 1)):
            futures = np.array(list(itertools.product([0, 1], repeat=length)), np.int64).reshape(2**length, length)
            whole = np.concatenate((np.tile(np.array(past, np.int64), (len(futures), 1)), futures), 1)
            total = np.concatenate((np.zeros((len(whole), 1), np.int64), whole.cumsum(1)), 1)
            counts = total[:, window:] - total[:, :-window]
            possible = futures[((low <= counts) & (counts <= high)).all(1)].sum(1)
            prompt = "".join("AG"[kind] for kind in past)
            if len(possible):
                rows.append((prompt, length))
                expected.append((possible.min(), possible.max()))
                assert len(set(possible.tolist())) == possible.max() - possible.min() + 1
            elif length in (0, 1, beyond):
                with pytest.raises(ConstraintError, match="window"):
                    constraint.start([prompt], [length])
        least, most = constraint._totals(constraint.start(*zip(*rows, strict=True)))
        assert list(zip(least[:, 0].tolist(), most[:, 0].tolist(), strict=True)) == expected


# --- Walks -----------------------------------------------------------------------------------------------------

SHARE = {id(v): np.array([gc_content(token or "") for token in v]) for v in (SINGLE, SIX)}
CHOICES = {
    "uniform": lambda mask, generator, share: (mask * generator.random(mask.shape, np.float32)).argmax(1),
    "first": lambda mask, generator, share: mask.argmax(1),
    "last": lambda mask, generator, share: mask.shape[1] - 1 - mask[:, ::-1].argmax(1),
    "strong": lambda mask, generator, share: np.where(mask, share, -1).argmax(1),
    "weak": lambda mask, generator, share: np.where(mask, 1 - share, -1).argmax(1),
}
KINDS = {
    "letters": {},
    "sites": {"forbidden_sites": ENZYMES},
    "gapped sites": {"forbidden_sites": ("BglI", "GCNNGC", "CCWGG")},
    "frame": {"open_frame": 1, "forbidden_sites": ("CTN",)},
    "no stop": {"no_stop": True, "forbidden_sites": ENZYMES},
    "gc": {"gc": (0.45, 0.5), "forbidden_sites": ENZYMES, "open_frame": 0},
    "window": {"gc_window": (0.4, 0.6), "window": 20, "forbidden_sites": ENZYMES},
    "window of the drawn": {"gc_window": (0.5, 0.55), "window": 21, "judge_prompt": False, "no_stop": True},
    "cautious": {"gc_window": (0.3, 0.5), "window": 10, "forbidden_sites": ("VCW",), "gc": (0.35, 0.45)},
    "all": {
        "gc": (0.48, 0.52),
        "gc_window": (0.3, 0.6),
        "window": 23,
        "forbidden_sites": (*ENZYMES, "GGNCC", "TTTTT"),
        "open_frame": 2,
    },
}


def walk(constraint, vocabulary, prompts, lengths, choose, seed=0):
    generator = np.random.default_rng(seed)
    share = np.nan_to_num(SHARE[id(vocabulary)])
    state, texts = constraint.start(prompts, lengths), [""] * len(prompts)
    while not state.done.all():
        tokens = choose(check_mask(constraint, state), generator, share)
        for row in np.flatnonzero(~state.done):
            texts[row] += vocabulary[tokens[row]]
        state = constraint.advance(state, tokens)
    assert list(map(len, texts)) == list(lengths)
    return texts


@pytest.mark.parametrize("samples", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("vocabulary", [SINGLE, SIX], ids=["single", "six"])
@pytest.mark.parametrize("kind", KINDS)
def test_walks_keep_the_rules(kind, vocabulary, samples):
    """So many samples a kind, prompts and lengths of all sorts in a batch, and choosers that look for trouble."""
    rules = DnaRules(**KINDS[kind])
    constraint = free(rules, vocabulary)
    generator = np.random.default_rng(1)
    # Prompts: beginnings of what keeps the rules, cut anywhere, so that they end amid sites and codons.
    starts = walk(constraint, vocabulary, [""] * 30, [90] * 30, CHOICES["uniform"], seed=2)
    rows = [("", 70), *((start[: generator.integers(91)], int(generator.integers(60, 80))) for start in starts)]
    if rules.gc:  # a cut may have left more G and C, or fewer, than what is to come can mend
        rows = [row for row in rows if accepted(constraint, *row)]
        assert len(rows) > 10
    samples = samples if vocabulary is SINGLE else max(60, samples // 5)
    for choice, count in (("uniform", samples), *((name, len(rows)) for name in CHOICES if name != "uniform")):
        several = [rows[i % len(rows)] for i in range(count)]
        drawn = walk(constraint, vocabulary, *zip(*several, strict=True), CHOICES[choice])
        for (prompt, _), text in zip(several, drawn, strict=True):
            assert keeps(prompt, text, rules), (choice, prompt, text)
        assert choice != "uniform" or len(set(drawn)) == len(drawn)


def accepted(constraint, prompt, length):
    try:
        constraint.start([prompt], [length])
    except ConstraintError:
        return False
    return True


def test_a_long_walk_through_windows_of_a_hundred():
    rules = DnaRules(gc=(0.495, 0.505), gc_window=(0.45, 0.55), forbidden_sites=ENZYMES, no_stop=True)
    constraint = free(rules, SIX)
    assert constraint.exact
    for choice in CHOICES.values():
        drawn = walk(constraint, SIX, ["", "ACGT", "ggat"] * 2, [601, 250, 99, 100, 101, 97], choice)
        for prompt, text in zip(["", "ACGT", "GGAT"] * 2, drawn, strict=True):
            assert keeps(prompt, text, DnaRules(gc_window=rules.gc_window, no_stop=True))
            assert not find_sites(prompt + text, ENZYMES)
            assert 0.495 <= gc_content(prompt + text) <= 0.505


# --- Whole words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "prompt", "length"), EXACT)
def test_whole_words_cut_at_the_end_draw_what_keeps_the_rules(settings, prompt, length):
    """MIXED has all pairs, so with them alone (and other letters) the same can be drawn, odd lengths too."""
    rules = DnaRules(**settings)
    for size in (length, length - 1):
        constraint, found = DnaConstraint(rules, MIXED), set()
        assert constraint.word == 2
        try:
            state, texts = constraint.start([prompt], [size]), [""]
        except ConstraintError:
            assert not drawable(rules, prompt, size)
            continue
        while texts:
            mask = check_mask(constraint, state)
            found |= {texts[row][:size] for row in np.flatnonzero(state.done)}
            rows, tokens = np.nonzero(mask)
            drawn = [MIXED[token] for token in tokens]
            assert all(len(token) == 2 or not set(token) <= set("ACGT") for token in drawn)
            after = [texts[row] + token for row, token in zip(rows, drawn, strict=True)]
            once = list({text: index for index, text in enumerate(after)}.values())
            state = constraint.advance(constraint.take(state, rows[once]), tokens[once])
            texts = [after[index] for index in once]
        expected = drawable(rules, prompt, size)
        if rules.letters == "ACGT":
            assert found == expected
        else:  # words stay whole before another letter
            assert {text for text in expected if set(text) <= set("ACGT")} < found < expected


@pytest.mark.parametrize("kind", KINDS)
def test_walks_in_six_mers_keep_the_rules(kind):
    """Prompts of all lengths, rows that end at different times; single letters are never drawn."""
    rules = DnaRules(**KINDS[kind])
    constraint = DnaConstraint(rules, SIX)
    starts = walk(free(rules, SINGLE), SINGLE, [""] * 20, [60] * 20, CHOICES["uniform"], seed=5)
    generator, share = np.random.default_rng(3), np.nan_to_num(SHARE[id(SIX)])
    rows = [("", 70), *((start[: generator.integers(61)], int(generator.integers(50, 80))) for start in starts)]
    rows = [row for row in rows if accepted(constraint, *row)]
    assert len(rows) > 5
    for choose in CHOICES.values():
        state, texts, tokens_drawn = constraint.start(*zip(*rows, strict=True)), [""] * len(rows), [0] * len(rows)
        while not constraint.done(state).all():
            tokens = choose(check_mask(constraint, state), generator, share)
            for row in np.flatnonzero(~state.done):
                assert len(SIX[tokens[row]]) == 6
                texts[row] += SIX[tokens[row]]
                tokens_drawn[row] += 1
            state = constraint.advance(state, tokens)
        for (prompt, length), text, count in zip(rows, texts, tokens_drawn, strict=True):
            assert keeps(prompt, text[:length], rules), (prompt, text, length)
            assert count == constraint.most_tokens(length) == -(-length // 6)


def test_other_letters_may_come_between_words():
    constraint = DnaConstraint(DnaRules(letters="ACGTN"), SIX)
    mask = constraint.allowed(constraint.start(["", ""], [9, 2]))
    for row in mask:
        assert {SIX[token] for token in np.flatnonzero(row)} == {"N", *SIX[3 : 3 + 4096]}
    assert constraint.most_tokens(9) == 9


class TestBegin:
    """Prompts of token ids, as sampling has them."""

    def ids(self, *tokens):
        return np.array([SIX.index(token) for token in tokens], np.int64)

    def test_is_start_after_the_bases_that_tokens_stand_for(self):
        rules = DnaRules(forbidden_sites=("EcoRI",), gc=(0.3, 0.6))
        constraint = DnaConstraint(rules, SIX, bases=40, unseen="GG")
        begun = constraint.begin([self.ids("TTGAAT", "T"), self.ids()], 7)
        started = constraint.start(["GGTTGAATT", "GG"], [40, 40])
        for one, other in (
            (begun, started),
            (constraint.advance(begun, constraint.allowed(begun).argmax(1)),) * 2,
        ):
            np.testing.assert_array_equal(constraint.allowed(one), constraint.allowed(other))
            np.testing.assert_array_equal(one.remaining, other.remaining)
        assert not constraint.allowed(begun)[0][SIX.index("CAAAAA")]  # it would complete EcoRI
        assert constraint.allowed(begun)[1][SIX.index("CAAAAA")]

    def test_without_a_number_of_bases_tokens_are_whole_words(self):
        assert DnaConstraint(DnaRules(), SIX).begin([self.ids()], 7).remaining.tolist() == [42]
        assert free(DnaRules(), SIX).begin([self.ids()], 7).remaining.tolist() == [7]
        assert DnaConstraint(DnaRules(), SINGLE).begin([self.ids()], 7).remaining.tolist() == [7]

    def test_what_cannot_be(self):
        constraint = DnaConstraint(DnaRules(), SIX, bases=40)
        with pytest.raises(ConstraintError, match="40 bases may take 7 tokens and 6 are to be drawn"):
            constraint.begin([self.ids()], 6)
        with pytest.raises(ConstraintError, match=r"prompt 1: token 1 \(0\) stands for no bases"):
            constraint.begin([self.ids(), np.array([5, 0])], 7)


# --- The protocol ----------------------------------------------------------------------------------------------


def test_a_site_does_not_cross_the_prompts_border():
    state = (constraint := free(DnaRules(forbidden_sites=("EcoRI",)), SIX)).start(["TTGAATT"], [40])
    mask = constraint.allowed(state)[0]
    for token, open_ in zip(SIX, mask, strict=True):
        assert open_ == bool(token and "N" not in token and not token.startswith("C") and token != "GAATTC")


def test_only_tokens_that_fit_are_allowed():
    constraint = free(DnaRules(), SIX)
    for length, expected in ((0, 0), (1, 4), (5, 4), (6, 4100), (7, 4100)):
        assert constraint.allowed(constraint.start([""], [length])).sum() == expected
    constraint = free(DnaRules(letters="ACGTN"), SIX)
    assert constraint.allowed(constraint.start(["NN"], [6])).sum() == 4101


def test_lower_case_prompts_count_as_upper_case():
    constraint = free(DnaRules(forbidden_sites=("GAATTC",)), SINGLE)
    lower, upper = (constraint.allowed(constraint.start([text], [3])) for text in ("gaatt", "GAATT"))
    np.testing.assert_array_equal(lower, upper)
    assert lower.sum() == 3


def test_rows_are_duplicated_and_dropped():
    rules = DnaRules(forbidden_sites=("EcoRI",), open_frame=0, gc=(0.2, 0.8), gc_window=(0.1, 0.9), window=10)
    constraint = free(rules, SIX)
    prompts, lengths = ["", "GAATT", "CCTA"], [30, 25, 19]
    state = constraint.start(prompts, lengths)
    alone = [constraint.start([prompt], [length]) for prompt, length in zip(prompts, lengths, strict=True)]
    for _ in range(3):
        mask = constraint.allowed(state)
        tokens = mask.argmax(1)
        for row in range(3):
            np.testing.assert_array_equal(constraint.allowed(alone[row])[0], mask[row])
            alone[row] = constraint.advance(alone[row], tokens[[row]])
        state = constraint.advance(state, tokens)
    rows = np.array([2, 0, 2, 1])
    np.testing.assert_array_equal(
        constraint.allowed(constraint.take(state, rows)), constraint.allowed(state)[rows]
    )
    kept = constraint.take(state, np.array([True, False, True]))
    np.testing.assert_array_equal(constraint.allowed(kept), constraint.allowed(state)[[0, 2]])
    assert len(constraint.take(state, np.zeros(0, np.int64))) == 0
    assert constraint.allowed(constraint.start([], [])).shape == (0, len(SIX))


def test_done_rows_stay_and_have_no_token():
    constraint = free(DnaRules(gc_window=(0.2, 0.8), window=5), SINGLE)
    state = constraint.start(["", ""], [1, 3])
    state = constraint.advance(state, np.array([1, 2]))
    assert state.done.tolist() == [True, False]
    assert check_mask(constraint, state)[0].sum() == 0
    after = constraint.advance(state, np.array([-1, 1]))
    assert after.remaining.tolist() == [0, 1]
    assert after.seen.tolist() == [1, 2]
    np.testing.assert_array_equal(after.recent[0], state.recent[0])


def test_tokens_that_are_not_allowed_are_refused():
    constraint = free(DnaRules(forbidden_sites=("CG",)), SINGLE)
    state = constraint.start(["C", "C"], [3, 3])
    for tokens in ([1, 3], [1, 0], [1, 5], [1, 99], [1, -1]):
        with pytest.raises(ConstraintError, match=rf"row 1: token {tokens[1]} is not allowed with 3 bases"):
            constraint.advance(state, np.array(tokens))
    for tokens in ([1], [1.0, 1.0]):
        with pytest.raises(ConstraintError, match="expected 2 token ids"):
            constraint.advance(state, np.array(tokens))


# --- What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"letters": "ACG"}, "letters must be ACGT.*'ACG'"),
        ({"letters": "ACGTX"}, "letters must be"),
        ({"letters": "ACGTN", "gc": (0.4, 0.6)}, r"gc counts G and C.*expected letters='ACGT'"),
        ({"forbidden_sites": "EcoRI"}, r"must be a list.*write \['EcoRI'\]"),
        ({"open_frame": 3}, "open_frame must be 0, 1, 2"),
        ({"open_frame": True}, "open_frame must be"),
        ({"gc": (0.6, 0.4)}, "gc must be two shares"),
        ({"gc": (40, 60)}, "gc must be two shares.*for 40 to 60%"),
        ({"gc_window": (0.4,)}, "gc_window must be two shares"),
        ({"gc_window": (0.4, 0.6), "window": 0}, "window must be a whole number"),
        ({"gc_window": (0.51, 0.52), "window": 10}, r"no whole count of 10 bases: 5 .* too few, 6 too many"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ConstraintError, match=message):
        DnaRules(**settings)


def test_vocabulary_and_automaton_that_cannot_do():
    with pytest.raises(ConstraintError, match="has none for G alone"):
        DnaConstraint(DnaRules(), ["", "A", "C", "T", "GG"])
    with pytest.raises(ConstraintError, match=r"automaton of \d+ states, the limit is 2000.*long runs of N"):
        free(DnaRules(forbidden_sites=("CCNNNNNNNNNNNNTGG",)), SINGLE)
    with pytest.raises(ConstraintError, match="more than 60000 states before merging"):
        free(DnaRules(forbidden_sites=("ANNNNNNNNNNNNNNNNNNNNA",)), SINGLE)


@pytest.mark.parametrize(
    ("settings", "prompt", "length", "message"),
    [
        ({}, "ACGNT", 9, r"prompt 1 has 'N' at position 3 .*expected only ACGT.*letters='ACGTN'"),
        ({"gc": (0.4, 0.6)}, "ACGNT", 9, r"'N' at position 3 .*replace the letter$"),
        ({}, "ACG T", 9, "has ' ' at position 3"),
        (
            {"forbidden_sites": ("EcoRI",)},
            "TTGAATTCT",
            9,
            r"prompt 1 already holds the forbidden site EcoRI \(GAATTC\) at position 2",
        ),
        ({"forbidden_sites": ("BsaI",)}, "GAGACC", 9, r"BsaI \(GGTCTC\) \(other strand\) at position 0"),
        ({"no_stop": True}, "CCTAGC", 9, "holds stop codon TAG at position 2"),
        ({"open_frame": 2}, "CCTAGC", 9, "holds stop codon TAG in frame 2 at position 2"),
        (
            {"forbidden_sites": ("GAN",)},
            "CCGA",
            9,
            r"ends in 'GA' \(from position 2\), after which no more than 0 of the 9 .*forbidden site GAN",
        ),
        (
            {"open_frame": 0, "forbidden_sites": ("TAY",)},
            "TA",
            9,
            "ends in 'TA'.*TAY.* or stop codon TAA in frame 0",
        ),
        (
            {"forbidden_sites": ("A", "CC", "CG")},
            "",
            9,
            "no 9 bases avoid forbidden sites A, CC, CG, at most 2 do",
        ),
        ({"forbidden_sites": ("N",)}, "", 9, "no 9 bases avoid forbidden sites N, at most 0 do"),
        (
            {"gc": (0.9, 1), "forbidden_sites": ("GG", "GC", "CG")},
            "",
            10,
            r"gc 0.9-1 over 10 bases .* need 9 to 10 G and C, but under forbidden sites GG, GC, CG they can "
            "have 0 to 5: widen gc",
        ),
        ({"gc": (0.5, 0.6)}, "A" * 10, 5, r"10 there, 5 to draw\).*need 8 to 9 G and C, but they can have 0 to 5"),
        ({"gc": (0, 0.1)}, "G" * 10, 5, "need 9 fewer than it already has G and C"),
        ({"gc": (0.51, 0.52)}, "", 10, "holds no whole count of 10 bases"),
        (
            {"gc_window": (0.4, 0.6), "window": 10},
            "AGAG" + "A" * 8,
            5,
            r"its 10 bases from position 0 .* have 2 G",
        ),
        ({"gc_window": (0.4, 0.6), "window": 10}, "A" * 8, 5, r"has 0 G and C in 8 bases; the first window of 10"),
        (
            {"gc": (0.7, 0.8), "gc_window": (0.4, 0.5), "window": 10},
            "",
            40,
            r"need 28 to 32 G and C, but under gc_window 0.4-0.5 of 10 bases they can have 16 to 20",
        ),
        (
            {"gc_window": (0.3, 0.5), "window": 10, "forbidden_sites": ("GG", "GC", "CG")},
            "",
            40,
            r"gc_window cannot be guaranteed .*after '[CG]' neither G nor C may follow.*drop one of these",
        ),
    ],
)
def test_conflicts_are_named_at_the_start(settings, prompt, length, message):
    constraint = free(DnaRules(**settings), SINGLE)
    good = constraint.start([""], [0])  # an empty row beside it, so that the row is the one named
    assert good.done.all()
    with pytest.raises(ConstraintError, match=message):
        constraint.start(["", prompt], [0, length])


def test_a_prompt_that_is_context_may_hold_anything():
    rules = {"forbidden_sites": ("EcoRI",), "no_stop": True, "gc_window": (0.4, 0.6), "window": 10}
    prompt = "NNNNNNGAATTCTAATAGA" + "A" * 40
    constraint = free(DnaRules(**rules, judge_prompt=False), SIX)
    assert constraint.allowed(constraint.start([prompt], [30])).any()
    with pytest.raises(ConstraintError, match="'N' at position 7"):
        constraint.start(["GAATTCGN"], [30])  # so near the border it could be part of a site


def test_start_wants_lists():
    constraint = free(DnaRules(), SINGLE)
    with pytest.raises(ConstraintError, match="the text 'ACGT' and 4"):
        constraint.start("ACGT", [1, 2, 3, 4])
    with pytest.raises(ConstraintError, match="they are 2 and 1"):
        constraint.start(["", ""], [1])
    with pytest.raises(ConstraintError, match="whole numbers of bases"):
        constraint.start([""], [-1])


def test_too_long_a_table_of_counts_is_refused(monkeypatch):
    monkeypatch.setattr(automaton, "COUNT_TABLE_LIMIT", 1000)
    constraint = free(DnaRules(gc=(0.4, 0.6), forbidden_sites=("EcoRI",)), SINGLE)
    with pytest.raises(ConstraintError, match=r"gc over 900 drawn bases.*the limit is 1000"):
        constraint.start([""], [900])
