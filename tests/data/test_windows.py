from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqpope.data.shards import pack
from seqpope.data.windows import Window, plan_windows, window_inputs
from seqpope.errors import SeqpopeError

PADDING = 99


def make_split(lengths):
    """Every token is its own place in the split, so that content shows where it came from."""
    ends = np.cumsum([0, *lengths])
    documents = [np.arange(a, b) for a, b in pairwise(ends)]
    flags = [np.ones(n, np.uint8) for n in lengths]
    return pack(documents, flags, [str(i) for i in range(len(lengths))], np.uint16)


sizes = st.lists(st.integers(0, 70), max_size=6)
plans = st.integers(1, 30).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length)))


@given(sizes, plans)
@settings(deadline=None, max_examples=300)
def test_laws_of_a_plan(lengths, plan):
    length, stride = plan
    split = make_split(lengths)
    scored = np.zeros(len(split.tokens), int)
    for window in plan_windows(split, length, stride):
        first, last = split.starts[window.document], split.starts[window.document + 1]
        assert first <= window.start <= window.score < window.end <= last  # never across documents
        assert window.end - window.start <= length
        assert (window.start - first) % stride == 0  # independent of where the document ends
        scored[window.score : window.end] += 1
        # Every scored token has the context that was promised, or all there is.
        assert window.score - window.start >= min(length - stride, window.score - first)
    assert (scored == 1).all()


@given(sizes, plans, st.integers(1, 40))
@settings(deadline=None)
def test_what_follows_changes_no_window(lengths, plan, more):
    """Cutting a document short never changes what an earlier token is scored from."""
    length, stride = plan

    def context(split, document):
        first = split.starts[document]
        return {
            int(token - first): int(window.start - first)
            for window in plan_windows(split, length, stride)
            if window.document == document
            for token in range(window.score, window.end)
        }

    lengths = [*lengths, 33]
    short, long = make_split(lengths), make_split([*lengths[:-1], 33 + more])
    last = len(lengths) - 1
    assert context(long, last).items() >= context(short, last).items()


def test_a_plan_by_hand():
    windows = plan_windows(make_split([0, 4, 11]), 4, 2)
    assert windows == [
        Window(1, 0, 0, 4),
        Window(2, 4, 4, 8),
        Window(2, 6, 8, 10),
        Window(2, 8, 10, 12),
        Window(2, 10, 12, 14),
        Window(2, 12, 14, 15),
    ]


def test_stride_of_a_whole_window_makes_disjoint_windows():
    windows = plan_windows(make_split([10]), 4, 4)
    assert [(w.start, w.score, w.end) for w in windows] == [(0, 0, 4), (4, 4, 8), (8, 8, 10)]


@pytest.mark.parametrize(("length", "stride"), [(8, 0), (8, 9), (8, -1), (0, 0)])
def test_stride_out_of_range(length, stride):
    with pytest.raises(SeqpopeError, match=f"between 1 and the window of {length} tokens, it is {stride}"):
        plan_windows(make_split([5]), length, stride)


def test_nothing_to_score():
    assert plan_windows(make_split([]), 8, 4) == []
    assert plan_windows(make_split([0, 0]), 8, 4) == []


@given(sizes, plans)
@settings(deadline=None)
def test_a_window_reads_the_tokens_before_those_it_predicts(lengths, plan):
    split = make_split(lengths)
    for window in plan_windows(split, *plan):
        ids = window_inputs(split, window.start, window.end, window.document, PADDING)
        assert ids.dtype == np.int64
        expected = np.arange(window.start, window.end) - 1
        if window.start == split.starts[window.document]:
            expected[0] = PADDING  # never the last token of the document before
        assert ids.tolist() == expected.tolist()
