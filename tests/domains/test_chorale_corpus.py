from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import data_prep.chorales
import data_prep.jsb
from data_prep import stores
from seqpope.data.shards import SPLITS, TokenStore
from seqpope.domains.music.chorales import corpus
from seqpope.domains.music.chorales.codec import SILENCE, Chorale, CodecError
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.errors import SeqpopeError


def melody(pitches, lengths=None, name="") -> Chorale:
    """A chorale whose soprano is given, a quarter a note unless lengths (in sixteenths) say otherwise."""
    soprano = np.repeat(pitches, 4 if lengths is None else lengths)
    return Chorale(np.stack([soprano, *[np.full(len(soprano), SILENCE)] * 3], axis=1), name)


# Thirty-two notes without a long repetition, and another tune over the same notes.
# fmt: off
TUNE = np.array(
    [67, 67, 74, 72, 71, 69, 67, 74, 76, 74, 72, 71, 69, 71, 67, 62,
     64, 66, 67, 69, 71, 67, 72, 71, 69, 64, 62, 60, 59, 62, 66, 67]
)
OTHER = np.array(
    [60, 64, 67, 72, 67, 64, 60, 55, 65, 62, 59, 55, 57, 64, 60, 72,
     71, 62, 70, 69, 61, 68, 60, 66, 65, 58, 64, 56, 63, 54, 62, 72]
)
# fmt: on


# ---------------------------------------------------------------- music21's files


def test_corpus_of_music21(music21_parsed):
    chorales, skipped = music21_parsed
    assert len(chorales) == 365
    assert len(skipped) == 433 - 365
    names = [chorale.name for chorale in chorales]
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert {len(reason) > 10 for reason in skipped.values()} == {True}
    assert "between two sixteenths" in skipped["bwv432.mxl"]
    assert "5 parts: expected 4" in skipped["bwv1.6.mxl"]


@pytest.mark.slow
def test_every_file_is_what_the_codec_reads(music21_parsed):
    """The fixture reads most files in a quicker way."""
    chorales, skipped = corpus.music21_chorales()
    assert chorales == music21_parsed[0]
    assert skipped == music21_parsed[1]


def test_pieces_are_what_the_scores_say(chorales):
    """Openings of two well-known chorales, copied from the scores: pickup, voices, order."""
    by_name = {chorale.name: chorale for chorale in chorales}
    wachet_auf = by_name["bwv140.7.mxl"].pitches
    assert wachet_auf[0].tolist() == [63, 58, 55, 51]  # E flat major: E flat, B flat, G, E flat
    aus_meines = by_name["bwv269.mxl"].pitches
    assert aus_meines[:8:4].tolist() == [[67, 62, 59, 43], [67, 62, 59, 55]]
    sounding = np.concatenate([c.pitches[c.pitches != SILENCE] for c in chorales])
    assert (sounding.min(), sounding.max()) == (36, 81)
    for chorale in chorales:
        means = np.ma.masked_equal(chorale.pitches, SILENCE).mean(axis=0)
        assert (np.diff(means) < 0).all(), f"{chorale.name}: voices are not in the order soprano to bass"


def test_one_process_parses_alike_and_reports(monkeypatch, chorales):
    files = corpus.music21_files()[:6]
    monkeypatch.setattr(corpus, "music21_files", lambda: files)
    seen: list[tuple[int, int]] = []
    alone, skipped = corpus.music21_chorales(lambda done, total: seen.append((done, total)), processes=1)
    assert seen == [(done, 6) for done in range(1, 7)]
    assert len(alone) + len(skipped) == 6
    by_name = {chorale.name: chorale for chorale in chorales}
    assert alone
    assert all(by_name[chorale.name] == chorale for chorale in alone)


# ---------------------------------------------------------------- tunes


@pytest.mark.parametrize(
    "variant",
    [
        melody(TUNE + 5),
        melody(np.concatenate([TUNE, OTHER])),
        melody(TUNE, 8),  # doubled lengths
        melody(np.concatenate([[SILENCE] * 3, TUNE])),  # another pickup
        melody(np.where(np.arange(32) % 9 == 3, TUNE - 3, TUNE) - 2),  # four notes changed, transposed
        melody(np.insert(TUNE, 8, TUNE[8] + 1), [4] * 7 + [2, 2] + [4] * 24),  # a passing note
    ],
)
def test_variants_of_a_tune_are_related(variant):
    matrix = corpus.related([melody(TUNE), variant])
    assert matrix.tolist() == [[False, True], [True, False]]


def test_other_tunes_are_not_related():
    assert not corpus.related([melody(TUNE), melody(OTHER), melody(TUNE[::-1]), melody(-TUNE + 130)]).any()


def test_harmony_alone_relates_pieces():
    generator = np.random.default_rng(0)
    grid = np.sort(generator.integers(40, 76, (60, 4)), axis=1)[:, ::-1]
    excerpt = generator.integers(40, 76, (60, 4))
    excerpt[20:30] = grid[5:15] + 4
    nine = generator.integers(40, 76, (60, 4))
    nine[20:29] = grid[5:14] + 4
    assert corpus.related([Chorale(grid), Chorale(excerpt)])[0, 1]
    assert not corpus.related([Chorale(grid), Chorale(nine)])[0, 1]


def test_groups_carry_sharing_on():
    bridge = Chorale(np.concatenate([melody(TUNE).pitches, melody(OTHER).pitches]))
    assert corpus.tune_groups([melody(TUNE), melody(OTHER)]) == [[0], [1]]
    assert corpus.tune_groups([melody(TUNE), melody(OTHER), bridge]) == [[0, 1, 2]]


def test_silent_and_short_pieces_have_no_tune():
    silent = Chorale(np.full((100, 4), SILENCE))
    short = melody(TUNE[:4])
    empty = Chorale(np.zeros((0, 4), int))
    assert not corpus.related([silent, silent, short, short, empty]).any()
    assert corpus.opening(silent) is corpus.opening(short) is corpus.opening(empty) is None


def test_sharing_is_counted_across_splits_only():
    splits = {
        "train": [melody(TUNE), melody(TUNE + 1)],
        "validation": [melody(OTHER)],
        "test": [melody(OTHER - 3), melody(TUNE[::-1])],
    }
    expected = {"train": [False, False], "validation": [True], "test": [True, False]}
    assert corpus.shares_opening(splits) == expected
    assert corpus.shares_tune(splits) == expected


# ---------------------------------------------------------------- the fixed split


@pytest.fixture(scope="module")
def fixed(music21_parsed):
    return corpus.split_chorales(*music21_parsed)[0]


def test_split_names_every_piece_once(chorales, fixed):
    split = corpus.load_split()
    names = [name for key in SPLITS for name in split[key]]
    assert sorted(names) == sorted(chorale.name for chorale in chorales)
    for name, share in corpus.SHARES.items():
        assert abs(len(fixed[name]) / len(chorales) - share) < 0.01


def test_split_is_what_its_generator_makes(chorales):
    """The file can be made again: nobody has moved a piece by hand."""
    split = corpus.load_split()
    assert corpus.make_split(chorales) == {name: split[name] for name in SPLITS}
    assert split["music21"].startswith("10.")


def test_no_tune_is_in_two_splits(fixed):
    assert not any(any(shared) for shared in corpus.shares_tune(fixed).values())
    assert not any(any(shared) for shared in corpus.shares_opening(fixed).values())


def beat_shapes(chorales) -> tuple[np.ndarray, np.ndarray]:
    """Each beat's chord and the soprano's step into it, in any key, as a number: (pieces, beats), lengths."""
    numbers: dict[tuple[int, ...], int] = {}
    rows = []
    for chorale in chorales:
        beats = chorale.pitches[::4].astype(int)
        shapes = np.column_stack([beats[1:] - beats[1:, :1], np.diff(beats[:, 0])])
        rows.append([numbers.setdefault(tuple(shape), len(numbers)) for shape in shapes.tolist()])
    matrix = np.full((len(rows), max(map(len, rows)) + 16), -1)
    for row, values in zip(matrix, rows, strict=True):
        row[8 : 8 + len(values)] = values
    return matrix, np.array([len(row) for row in rows])


def test_no_near_duplicate_is_in_two_splits(chorales, fixed):
    """Checked by another measure than the one that made the split: beats alike, in any key, shifted or not.

    Settings of different tunes agree in a fifth of their beats at most, the same one twice in nine tenths.
    """
    matrix, lengths = beat_shapes(chorales)
    split_of = {chorale.name: name for name, pieces in fixed.items() for chorale in pieces}
    label = np.array([split_of[chorale.name] for chorale in chorales])
    alike = np.zeros((len(chorales), len(chorales)))
    for shift in range(-8, 9):
        shifted = np.full_like(matrix, -2)
        width = matrix.shape[1]
        shifted[:, max(0, shift) : width + min(0, shift)] = matrix[:, max(0, -shift) : width - max(0, shift)]
        for index, row in enumerate(shifted):
            agreeing = ((matrix == row) & (matrix >= 0)).sum(axis=1)
            alike[index] = np.maximum(alike[index], agreeing / np.minimum(lengths, lengths[index]))
    np.fill_diagonal(alike, 0)
    across = label[:, None] != label
    assert alike[~across].max() > 0.9, "the measure does not even find the duplicates there are"
    assert alike[across].max() < 0.25


def test_missing_and_unknown_pieces(chorales, fixed):
    with pytest.raises(corpus.CorpusError, match=r"1 chorales.*bwv10\.7\.mxl.*install that version"):
        corpus.split_chorales([c for c in chorales if c.name != "bwv10.7.mxl"], {})
    extra = Chorale(np.full((4, 4), 60), "bwv9999.mxl")
    splits, skipped = corpus.split_chorales([*chorales, extra], {"a": "b"})
    assert skipped == {"a": "b", "bwv9999.mxl": "not part of the fixed split"}
    assert splits == fixed


# ---------------------------------------------------------------- preparing


@pytest.fixture
def parsed_once(monkeypatch, music21_parsed):
    monkeypatch.setattr(data_prep.chorales, "music21_chorales", lambda progress=None: music21_parsed)


def test_prepare_chorales(tmp_path, parsed_once, fixed):
    said: list[str] = []
    manifest = data_prep.chorales.prepare(tmp_path / "chorales", progress=said.append)
    store = TokenStore(tmp_path / "chorales")
    tokenizer = ChoraleTokenizer()
    assert store.manifest == manifest
    assert manifest.fingerprint == tokenizer.fingerprint
    assert (manifest.domain, manifest.dataset, manifest.vocabulary_size) == ("music", "chorales", 90)
    assert manifest.strata[:2] == ["changed", "novel tune"]
    assert "commercial" in manifest.provenance["licence"]
    assert len(manifest.provenance["skipped"]) == 68
    for name in SPLITS:
        split = store.split(name)
        assert split.names == [chorale.name for chorale in fixed[name]]
        for index in (0, len(split) - 1):
            assert tokenizer.decode(split.document(index), split.names[index]) == fixed[name][index]
        assert (split.flags & stores.SCORED).all()
        assert (split.flags & stores.NOVEL_TUNE).all()
        assert (split.flags & stores.NOVEL_VARIANT).all()
    floors = [figures["test"] for figures in manifest.baselines.values()]
    assert floors == sorted(floors, reverse=True)
    assert 0.5 < floors[-1] < floors[0] < 4
    # a second time it is left alone, though it could not be parsed any more
    before = os.stat(tmp_path / "chorales" / "manifest.json").st_mtime_ns
    again = data_prep.chorales.prepare(tmp_path / "chorales", progress=said.append)
    assert again == manifest
    assert "already prepared" in said[-1]
    assert os.stat(tmp_path / "chorales" / "manifest.json").st_mtime_ns == before
    forced = data_prep.chorales.prepare(tmp_path / "chorales", force=True, progress=said.append)
    assert forced.content == manifest.content
    assert os.stat(tmp_path / "chorales" / "manifest.json").st_mtime_ns != before


def test_chorales_take_no_source(tmp_path):
    with pytest.raises(SeqpopeError, match="take no source"):
        data_prep.chorales.prepare(tmp_path / "a", source=tmp_path)
    assert not (tmp_path / "a").exists()


def jsb_file(path: Path) -> Path:
    def grid(pitches):
        return melody(pitches).pitches.tolist()

    content = {
        "train": [grid(TUNE), grid(TUNE[::-1])],
        "valid": [grid(OTHER)],
        "test": [grid(TUNE + 2), grid(OTHER[::-1])],
    }
    path.write_text(json.dumps(content))
    return path


def test_prepare_jsb_from_another_file_says_so(tmp_path):
    said: list[str] = []
    source = jsb_file(tmp_path / "mine.json")
    manifest = data_prep.jsb.prepare(tmp_path / "jsb", source=source, progress=said.append)
    assert any("not comparable" in line for line in said)
    assert manifest.provenance["official file"] is False
    assert manifest.provenance["source"] == "mine.json"
    test = TokenStore(tmp_path / "jsb").split("test")
    assert [int(test.flags[start] & stores.NOVEL_TUNE) for start in test.starts[:-1]] == [
        0,
        stores.NOVEL_TUNE,
    ]
    # the soprano starts a note every fourth step, here always another; the silent voices never change again
    changed = (test.document(0).reshape(-1, 4) > 0) & (
        test.flags[: test.starts[1]].reshape(-1, 4) & stores.CHANGED > 0
    )
    repeats = np.flatnonzero(np.diff(TUNE) == 0) + 1
    assert np.flatnonzero(changed[:, 0]).tolist() == [4 * k for k in range(32) if k not in repeats]
    assert np.flatnonzero(changed[:, 1:].any(axis=1)).tolist() == [0]
    # another source makes the store again, the same one does not
    data_prep.jsb.prepare(tmp_path / "jsb", source=source, progress=said.append)
    assert "already prepared" in said[-1]
    source.write_text(source.read_text() + "\n")
    data_prep.jsb.prepare(tmp_path / "jsb", source=source, progress=said.append)
    assert "already prepared" not in said[-1]


def test_prepare_jsb_leaves_no_trace_of_a_bad_source(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(CodecError, match="not valid JSON"):
        data_prep.jsb.prepare(tmp_path / "jsb", source=tmp_path / "bad.json", progress=lambda line: None)
    with pytest.raises(SeqpopeError, match="there is no file"):
        data_prep.jsb.prepare(tmp_path / "jsb", source=tmp_path / "none.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".jsb.lock", "bad.json"]


def test_two_at_once_prepare_one_store(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    source = jsb_file(tmp_path / "mine.json")
    said: list[str] = []

    def prepare(_):
        return data_prep.jsb.prepare(tmp_path / "jsb", source=source, progress=said.append).content

    with ThreadPoolExecutor(4) as pool:  # flock holds between file descriptors, so threads test it too
        contents = set(pool.map(prepare, range(4)))
    assert len(contents) == 1
    assert sum("already prepared" in line for line in said) == 3


def test_damaged_store_is_prepared_again(tmp_path):
    source = jsb_file(tmp_path / "mine.json")
    manifest = data_prep.jsb.prepare(tmp_path / "jsb", source=source, progress=lambda line: None)
    tokens = tmp_path / "jsb" / "test.tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-7])
    again = data_prep.jsb.prepare(tmp_path / "jsb", source=source, progress=lambda line: None)
    assert again.content == manifest.content
    assert len(TokenStore(tmp_path / "jsb").split("test").tokens) == manifest.splits["test"]["tokens"]
