"""The verb `examine`: scores in, a report out; what copies is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import stores
from genomes import make_store as make_genome
from piano_pieces import random_performance

from seqpope.data.shards import Manifest, pack, write_store
from seqpope.domains.genome.codec import Record, read_fasta, write_fasta
from seqpope.domains.music.chorales.codec import Chorale, CodecError, write_midi
from seqpope.domains.music.chorales.notation import write_musicxml
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.domains.music.piano.codec import write_midi as write_performance
from seqpope.domains.music.piano.tokenizer import RemiTokenizer
from seqpope.errors import SeqpopeError
from seqpope.examine import examine_files

TOKENIZER = ChoraleTokenizer()


def make_piece(seed, steps=64):
    generator = np.random.default_rng(seed)
    chords = np.array([72, 67, 60, 48]) + generator.integers(-3, 4, (steps // 4, 4))
    return Chorale(np.repeat(chords, 4, axis=0).astype(np.int16), f"piece {seed}")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "chorales"
    splits = {}
    for name, seeds in (("train", range(5)), ("validation", [5]), ("test", [6, 7])):
        documents = [TOKENIZER.encode(make_piece(seed)) for seed in seeds]
        flags = [np.zeros(len(document), np.uint8) for document in documents]
        splits[name] = pack(documents, flags, [str(seed) for seed in seeds], np.uint8)
    manifest = Manifest(
        domain="music", dataset="chorales", tokenizer=TOKENIZER.specification, fingerprint=TOKENIZER.fingerprint,
        vocabulary_size=TOKENIZER.vocabulary_size, padding_id=0,
    )  # fmt: skip
    write_store(folder, manifest, splits)
    return folder


def test_a_folder_beside_the_data(tmp_path, data):
    write_midi(make_piece(20), tmp_path / "own.mid")
    moved = Chorale(make_piece(3).pitches + 2)
    write_midi(moved, tmp_path / "copy.mid")
    write_musicxml(moved, tmp_path / "copy.musicxml")  # the same sample once more
    text = examine_files([tmp_path], data, tmp_path / "report")
    result = json.loads((tmp_path / "report" / "examine.json").read_text())
    assert (tmp_path / "report" / "examine.md").read_text() == text
    own, copy = sorted(result["samples"]["pieces"], key=lambda piece: piece["name"] == "copy")
    assert (own["name"], copy["name"]) == ("own", "copy")
    assert copy["copied"]["piece"] == "train 3"
    assert copy["copied"]["transposition"] == 2
    assert own["values"]["copied_changes"] < result["copy_changes"] <= copy["values"]["copied_changes"]
    assert len(result["reference"]["pieces"]) == 2
    assert "copy" in text
    assert "train 3" in text


def test_without_data(tmp_path):
    write_midi(make_piece(1), tmp_path / "a.mid")
    assert "parallel fifths" in examine_files([tmp_path / "a.mid"])


def test_refused(tmp_path, data):
    with pytest.raises(SeqpopeError, match="no samples in"):
        examine_files([tmp_path])
    (tmp_path / "bad.mid").write_bytes(b"no music")
    with pytest.raises(CodecError, match="bad"):
        examine_files([tmp_path])
    write_midi(make_piece(1), tmp_path / "bad.mid")
    with pytest.raises(SeqpopeError, match="does not hold chorales"):
        examine_files([tmp_path / "bad.mid"], stores.make_store(tmp_path).folder)


class TestDna:
    def make(self, folder):
        generator = np.random.default_rng(0)
        text = "".join(generator.choice(list("ACGT"), 5000))
        write_fasta(folder / "training.fa", [Record("chr1", "", text)])
        own = "".join(generator.choice(list("ACGT"), 600))
        (folder / "samples").mkdir()
        write_fasta(folder / "samples" / "own.fa", [Record("own", "seed=0 prompt=300", text[:300] + own)])
        write_fasta(folder / "samples" / "copy.fa", [Record("copy", "seed=0 prompt=0", own + text[1000:1100])])
        return folder / "samples", folder / "training.fa"

    def test_copies_are_told_and_prompts_are_none(self, tmp_path):
        samples, training = self.make(tmp_path)
        text = examine_files([samples], training, tmp_path / "report")
        assert "**copy copies chr1**: 10" in text
        assert "**own" not in text
        result = json.loads((tmp_path / "report" / "examine.json").read_text())
        assert {row["name"]: row["bases"] for row in result["samples"]} == {"own": 600, "copy": 700}
        assert (tmp_path / "report" / "examine.md").read_text() == text

    def test_a_prepared_genome_gives_its_training_split(self, tmp_path):
        samples, training = self.make(tmp_path)
        text = next(read_fasta(training)).sequence
        for part, copied in (((900, 1200), True), ((1200, 5000), False)):
            store = make_genome(tmp_path / f"{part}", {"chr1": "NNN" + text}, {"train": [("chr1", *part)]})
            told = examine_files([samples], store.folder)
            assert ("**copy copies chr1:901-1200**: 10" in told) == copied

    def test_refused(self, tmp_path):
        samples, training = self.make(tmp_path)
        write_midi(make_piece(0), tmp_path / "a.mid")
        with pytest.raises(SeqpopeError, match=r"is DNA and .*a\.mid a score: examine samples of one domain"):
            examine_files([samples, tmp_path / "a.mid"])
        with pytest.raises(SeqpopeError, match="holds no prepared genome: give data/genome, or a FASTA"):
            examine_files([samples], tmp_path)
        training.write_text(">p\nMKTAYIAKQR\n")
        with pytest.raises(SeqpopeError, match=r"training\.fa, sequence p: 'I' at position 5"):
            examine_files([samples], training)


@pytest.fixture(scope="module")
def performances(tmp_path_factory):
    tokenizer = RemiTokenizer()
    folder = tmp_path_factory.mktemp("data") / "maestro"
    splits = {}
    for name, seeds in (("train", range(4)), ("validation", [4]), ("test", [5, 6])):
        documents = [tokenizer.encode(random_performance(seed)) for seed in seeds]
        flags = [np.zeros(len(document), np.uint8) for document in documents]
        splits[name] = pack(documents, flags, [f"{name} {seed}" for seed in seeds], np.uint16)
    manifest = Manifest(
        domain="music", dataset="maestro", tokenizer=tokenizer.specification,
        fingerprint=tokenizer.fingerprint, vocabulary_size=tokenizer.vocabulary_size, padding_id=0,
    )  # fmt: skip
    write_store(folder, manifest, splits)
    return folder


class TestPiano:
    def test_beside_the_data(self, tmp_path, performances):
        write_performance(random_performance(20), tmp_path / "own.mid")
        write_performance(random_performance(3), tmp_path / "copy.mid")
        text = examine_files([tmp_path], performances, tmp_path / "report")
        result = json.loads((tmp_path / "report" / "examine.json").read_text())
        assert (tmp_path / "report" / "examine.md").read_text() == text
        copied, own = result["samples"]["pieces"]
        assert (copied["name"], own["name"]) == ("copy", "own")
        assert copied["values"]["copied_notes_exact"] > 200
        assert copied["copied"]["piece_name"] == "train 3"
        assert own["values"]["copied_notes"] < result["copy_notes"]
        assert len(result["reference"]["pieces"]) == 2
        assert "**copy copies train 3**" in text

    def test_without_data_it_is_what_it_can_be_read_as(self, tmp_path):
        write_performance(random_performance(1), tmp_path / "a.mid")
        assert "notes sounding" in examine_files([tmp_path / "a.mid"])

    def test_what_was_a_prompt_is_left_out(self, tmp_path):
        played = random_performance(1)
        write_performance(played, tmp_path / "a.mid")
        sidecar = {"model": {"dataset": "maestro"}, "settings": {"prompt_seconds": 5.0, "seconds": 10.0}}
        (tmp_path / "a.json").write_text(json.dumps(sidecar))
        examine_files([tmp_path], None, tmp_path / "report")
        [piece] = json.loads((tmp_path / "report" / "examine.json").read_text())["samples"]["pieces"]
        assert piece["notes"] == (played.onset >= 5.0).sum()
        assert piece["values"]["notes_per_second"] == pytest.approx(piece["notes"] / 10)
