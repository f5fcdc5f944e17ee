from __future__ import annotations

import csv
import io
import json
import zipfile

import numpy as np
import pytest
from piano_pieces import midi_bytes, note, wait

import data_prep.maestro
import data_prep.maestro_performance
from seqpope.cli import main
from seqpope.data.shards import SCORED, TokenStore
from seqpope.domains.music.piano.codec import Performance, parse_midi
from seqpope.domains.music.piano.corpus import (
    CorpusError,
    Recording,
    divide,
    divide_by_piece,
    find_catalogue,
    is_stretched,
    midi_files,
    open_source,
    read_catalogue,
    stretched_name,
)
from seqpope.domains.music.piano.tokenizer import PerformanceTokenizer, RemiTokenizer
from seqpope.errors import SeqpopeError

COLUMNS = ["canonical_composer", "canonical_title", "split", "year", "midi_filename", "audio_filename", "duration"]


def piece(number: int) -> bytes:
    """Some notes that no other piece has."""
    return midi_bytes(b"".join(note(40 + (number * 7 + k) % 50, 100 + k, before=200 + number) for k in range(20)))


def catalogue(lines: list[tuple[str, str, str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([composer, title, split, 2018, file, "a.wav", 1.0] for composer, title, split, file in lines)
    return text.getvalue().encode()


LINES = [
    ("Bach", "Prelude, in C", "train", "2018/a.midi"),
    ("Bach", "Prelude, in C", "test", "2018/b.midi"),
    ("Liszt", "Étude", "validation", "2018/c.midi"),
    ("Liszt", "Sonata", "train", "2018/bad.midi"),
    ("Liszt", "Drums", "train", "2018/drums.midi"),
    ("Liszt", "Lost", "train", "2018/lost.midi"),
    ("Ravel", "Low", "train", "2018/low.midi"),
]
FILES = {
    "2018/a.midi": piece(0),
    "2018/b.midi": piece(1),
    "2018/c.midi": piece(2),
    "2018/bad.midi": piece(3)[:-20],
    "2018/drums.midi": midi_bytes(note(36, 10, channel=9)),
    "2018/low.midi": midi_bytes(note(12, 10)),
    "2018/extra.midi": piece(4),
    "maestro-v3.0.0.csv": catalogue(LINES),
    "README": b"read me",
    "__MACOSX/2018/._a.midi": b"junk",
}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "maestro.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in FILES.items():
            file.writestr(f"maestro-v3.0.0/{name}", content)
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "midi"
    path.mkdir()
    for number in range(20):
        (path / f"piece{number:02}.mid").write_bytes(piece(number))
    return path


def prepare(target, source, **options):
    said: list[str] = []
    options.setdefault("processes", 1)
    manifest = data_prep.maestro.prepare(target, source=source, progress=said.append, **options)
    return manifest, said


class TestArchive:
    def test_what_is_in_the_store(self, tmp_path, archive):
        manifest, said = prepare(tmp_path / "data" / "maestro", archive)
        store = TokenStore(tmp_path / "data" / "maestro")
        train = store.split("train")
        played = parse_midi(FILES["2018/a.midi"])
        ids = RemiTokenizer().encode(played)
        assert train.names == ["maestro-v3.0.0/2018/a.midi"]
        assert train.tokens.dtype == np.uint16
        assert train.document(0).tolist() == ids.tolist()
        assert train.units["note"].tolist() == [20]
        assert train.units["second"].tolist() == [played.seconds]
        assert [store.split(name).names for name in ("validation", "test")] == [
            ["maestro-v3.0.0/2018/c.midi"],
            ["maestro-v3.0.0/2018/b.midi"],
        ]
        assert (manifest.dataset, manifest.domain, manifest.vocabulary_size) == ("maestro", "music", 328)
        assert manifest.provenance["totals"]["train"]["note"] == 20
        assert manifest.provenance["split"] == "official"
        assert manifest.provenance["official file"] is False
        assert not list((tmp_path / "data").glob(".maestro.parts"))
        assert any("left out" in line for line in said)

    def test_files_left_out_are_named_with_their_reasons(self, tmp_path, archive):
        manifest, _ = prepare(tmp_path / "maestro", archive)
        skipped = {name.rpartition("/")[2]: reason for name, reason in manifest.provenance["skipped"].items()}
        assert skipped.keys() == {"bad.midi", "drums.midi", "low.midi", "lost.midi", "extra.midi"}
        assert "not a MIDI file that can be read" in skipped["bad.midi"]
        assert "drums only" in skipped["drums.midi"]
        assert "pitch 12 is outside a piano's" in skipped["low.midi"]
        assert skipped["lost.midi"] == "the catalogue lists it, the source lacks it"
        assert skipped["extra.midi"] == "the catalogue does not list it"

    def test_strata_are_kinds_of_tokens(self, tmp_path, archive):
        manifest, _ = prepare(tmp_path / "maestro", archive)
        split = TokenStore(tmp_path / "maestro").split("test")
        words = [RemiTokenizer().vocabulary[i].split("_")[0] for i in split.tokens.tolist()]
        bit = {name: 2 << place for place, name in enumerate(manifest.strata)}
        kind = {
            "Bar": "time",
            "Position": "time",
            "Pitch": "pitch",
            "Velocity": "velocity",
            "Duration": "duration",
        }
        assert split.flags.tolist() == [SCORED | (bit[kind[w]] if w in kind else 0) for w in words]

    def test_by_piece(self, tmp_path):
        lines = [(f"C{k // 2}", "Title", "train", f"{k}.midi") for k in range(40)]
        files = {f"{k}.midi": piece(k) for k in range(40)}
        with zipfile.ZipFile(tmp_path / "m.zip", "w") as file:
            for name, content in {**files, "maestro-v3.0.0.csv": catalogue(lines)}.items():
                file.writestr(name, content)
        manifest, _ = prepare(tmp_path / "maestro", tmp_path / "m.zip", split="by-piece")
        assert manifest.provenance["split"] == "by-piece"
        assert {name: part["documents"] for name, part in manifest.splits.items()} == {
            "train": 36,
            "validation": 2,
            "test": 2,
        }
        store = TokenStore(tmp_path / "maestro")
        for name in ("validation", "test"):
            first, second = (int(file.partition(".")[0]) for file in sorted(store.split(name).names))
            assert first // 2 == second // 2
        # the official split is another store, and here has nothing to validate on
        with pytest.raises(SeqpopeError, match="leaves nothing for validation and test"):
            prepare(tmp_path / "maestro", tmp_path / "m.zip")

    def test_prepared_once(self, tmp_path, archive):
        first, _ = prepare(tmp_path / "maestro", archive)
        again, said = prepare(tmp_path / "maestro", archive)
        assert said == [f"{tmp_path / 'maestro'} is already prepared (--force prepares it again)"]
        assert again == first
        forced, said = prepare(tmp_path / "maestro", archive, force=True)
        assert "already prepared" not in "".join(said)
        assert forced == first

    @pytest.mark.slow  # TestStretch has it too
    def test_processes_make_the_same_store(self, tmp_path, archive, monkeypatch):
        alone, _ = prepare(tmp_path / "a", archive)
        monkeypatch.setattr(data_prep.maestro, "FILES_AT_ONCE", 2)
        together, _ = prepare(tmp_path / "b", archive, processes=2)
        assert together.content == alone.content
        assert together.provenance == alone.provenance

    def test_interrupted_work_resumes(self, tmp_path, folder, monkeypatch):
        monkeypatch.setattr(data_prep.maestro, "FILES_AT_ONCE", 5)
        whole, _ = prepare(tmp_path / "whole", folder)
        real, done = data_prep.maestro._tokenize_files, []

        def interrupt(job):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(job.files)
            real(job)

        monkeypatch.setattr(data_prep.maestro, "_tokenize_files", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "maestro", folder)
        assert not (tmp_path / "maestro").exists()
        monkeypatch.setattr(data_prep.maestro, "_tokenize_files", lambda job: (done.append(job.files), real(job)))
        resumed, _ = prepare(tmp_path / "maestro", folder)
        assert len(done) == 4
        assert sorted(file for files in done for file in files) == [f"piece{k:02}.mid" for k in range(20)]
        assert resumed.content == whole.content

    def test_performance_tokens_are_the_other_entry(self, tmp_path, archive):
        manifest = data_prep.maestro_performance.prepare(
            tmp_path / "p", source=archive, processes=1, progress=lambda line: None
        )
        assert (manifest.dataset, manifest.vocabulary_size) == ("maestro-performance", 309)
        assert manifest.strata == ["time", "note-on", "note-off", "velocity"]
        remi, _ = prepare(tmp_path / "m", archive)
        assert manifest.provenance["totals"] == remi.provenance["totals"]  # so that figures can be compared

    def test_from_the_command_line(self, tmp_path, archive, capsys, monkeypatch):
        monkeypatch.setattr("os.cpu_count", lambda: 1)
        words = ["prepare", "maestro", "--source", str(archive), "--data-folder", str(tmp_path / "d")]
        assert main(words) == 0
        assert TokenStore(tmp_path / "d" / "maestro").manifest.dataset == "maestro"
        assert main([*words, "--split", "random"]) != 0
        assert "has no split 'random': expected one of official, by-piece, by-content" in capsys.readouterr().err
        assert main(["prepare", "jsb", "--split", "by-piece"]) != 0
        assert "jsb has no split 'by-piece'" in capsys.readouterr().err


def slower(content: bytes, factor: float) -> Performance:
    """What a file holds, with its times multiplied one by one."""
    played = parse_midi(content)
    return Performance(
        [time * factor for time in played.onset],
        [time * factor for time in played.duration],
        played.pitch,
        played.velocity,
        [[down * factor, up * factor] for down, up in played.pedal],
    )


class TestStretch:
    def test_training_performances_are_there_stretched_too(self, tmp_path, archive):
        plain, _ = prepare(tmp_path / "plain", archive)
        manifest, said = prepare(tmp_path / "maestro", archive, stretch=(1.05, 0.5))
        store = TokenStore(tmp_path / "maestro")
        train, name = store.split("train"), "maestro-v3.0.0/2018/a.midi"
        assert train.names == [name, f"{name} [x0.5]", f"{name} [x1.05]"]
        for index, factor in enumerate((1.0, 0.5, 1.05)):
            played = slower(FILES["2018/a.midi"], factor)
            assert train.document(index).tolist() == RemiTokenizer().encode(played).tolist()
            assert train.units["second"][index] == played.seconds
        assert train.units["note"].tolist() == [20, 20, 20]
        assert len({train.document(index).tobytes() for index in range(3)}) == 3
        for held_out in ("validation", "test"):
            assert manifest.splits[held_out] == plain.splits[held_out]
            same = TokenStore(tmp_path / "plain").split(held_out)
            assert store.split(held_out).tokens.tolist() == same.tokens.tolist()
        assert any("2 of train's pieces are stretched copies, by 0.5, 1.05" in line for line in said)

    def test_the_manifest_counts_what_was_played_and_copies_apart(self, tmp_path, archive):
        plain, _ = prepare(tmp_path / "plain", archive)
        manifest, _ = prepare(tmp_path / "maestro", archive, stretch=(0.5, 2))
        assert plain.provenance["stretch"] == []
        assert manifest.provenance["stretch"] == [0.5, 2.0]
        copies = manifest.provenance["stretched copies, not in the totals"]
        tokens = np.diff(TokenStore(tmp_path / "maestro").split("train").starts).tolist()
        seconds = parse_midi(FILES["2018/a.midi"]).seconds
        for place, factor in enumerate((0.5, 2.0), 1):
            assert copies[str(factor)] == {
                "documents": 1,
                "tokens": tokens[place],
                "note": 20,
                "second": pytest.approx(seconds * factor, abs=1e-3),
            }
        for key in ("totals", "tokens per note", "skipped"):  # a damaged file is left out once, not thrice
            assert manifest.provenance[key] == plain.provenance[key]
        assert manifest.baselines == plain.baselines
        assert (
            json.loads((tmp_path / "maestro" / "manifest.json").read_text())["provenance"] == manifest.provenance
        )

    def test_the_pedal_is_stretched(self, tmp_path):
        """A key let go under the pedal sounds until the pedal goes up: at 1.5 s, or twice as late."""
        (tmp_path / "midi").mkdir()
        for number in range(20):
            down, up = wait(0) + b"\xb0\x40\x7f", wait(960) + b"\xb0\x40\x00"
            content = midi_bytes(note(40 + number, 480) + down + up + note(30, 480, before=480))
            (tmp_path / "midi" / f"{number:02}.mid").write_bytes(content)
        manifest = data_prep.maestro_performance.prepare(
            tmp_path / "p", source=tmp_path / "midi", stretch=(2,), processes=1, progress=lambda line: None
        )
        train = TokenStore(tmp_path / "p").split("train")
        ends = {}
        for index, name in enumerate(train.names):
            heard = PerformanceTokenizer().decode(train.document(index))
            ends.setdefault(is_stretched(name), set()).add(tuple(heard.end.tolist()))
        assert ends == {False: {(1.5, 2.5)}, True: {(3.0, 5.0)}}
        assert manifest.splits["train"]["documents"] == 36

    def test_a_store_is_made_again_for_other_factors_only(self, tmp_path, archive):
        def prepared(**options):
            manifest, said = prepare(tmp_path / "maestro", archive, **options)
            return manifest, "is already prepared" not in "".join(said)

        plain, _ = prepared()
        first, made = prepared(stretch=(0.9, 1.1))
        assert made
        assert prepared(stretch=[1.1, 0.9]) == (first, False)
        other, made = prepared(stretch=(0.9,))
        assert made
        assert len({plain.content, first.content, other.content}) == 3
        again, made = prepared()
        assert (again, made) == (plain, True)
        # Stores from before there were stretched ones say nothing of it.
        file = tmp_path / "maestro" / "manifest.json"
        old = json.loads(file.read_text())
        del old["provenance"]["stretch"]
        file.write_text(json.dumps(old))
        assert prepared()[1] is False
        assert prepared(stretch=(0.9, 1.1)) == (first, True)

    def test_interrupted_work_resumes_with_the_same_or_other_factors(self, tmp_path, folder, monkeypatch):
        monkeypatch.setattr(data_prep.maestro, "FILES_AT_ONCE", 5)
        whole = {factor: prepare(tmp_path / f"x{factor}", folder, stretch=(factor,))[0] for factor in (0.9, 1.1)}
        real = data_prep.maestro._tokenize_files

        for factor, further in ((0.9, [0.9, 0.9]), (1.1, [1.1] * 4)):
            done: list[float] = []

            def interrupt(job, done=done):
                if len(done) == 6:
                    raise KeyboardInterrupt
                done.append(job.factor)
                real(job)

            monkeypatch.setattr(data_prep.maestro, "_tokenize_files", interrupt)
            with pytest.raises(KeyboardInterrupt):
                prepare(tmp_path / "maestro", folder, stretch=(0.9,), force=True)
            assert done == [1.0] * 4 + [0.9] * 2
            done.clear()
            resumed, _ = prepare(tmp_path / "maestro", folder, stretch=(factor,), force=True)
            assert done == further
            assert resumed.content == whole[factor].content
            assert resumed.provenance == whole[factor].provenance
            assert not (tmp_path / ".maestro.parts").exists()

    def test_processes_make_the_same_store(self, tmp_path, archive, monkeypatch):
        alone, _ = prepare(tmp_path / "a", archive, stretch=(0.95,))
        monkeypatch.setattr(data_prep.maestro, "FILES_AT_ONCE", 2)
        together, _ = prepare(tmp_path / "b", archive, stretch=(0.95,), processes=2)
        assert together == alone

    @pytest.mark.parametrize(
        ("factors", "message"),
        [
            ((0.95, 0.4), r"stretched by 0\.4: expected factors of time from 0\.5 to 2"),
            ((2.1,), "stretched by 2.1"),
            ((0,), "stretched by 0.0"),
            ((-1,), "stretched by -1.0"),
            ((float("nan"), 0.95), "stretched by nan"),
            ((float("inf"),), "stretched by inf"),
            ((0.95, 1), "that is there anyway: leave 1 out"),
            ((0.95, 1.05, 0.950), "by 0.95 is asked for twice"),
        ],
    )
    def test_factors_that_are_refused(self, tmp_path, archive, factors, message):
        with pytest.raises(SeqpopeError, match=message):
            prepare(tmp_path / "maestro", archive, stretch=factors)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["maestro.zip"]

    def test_from_the_command_line(self, tmp_path, archive, capsys, monkeypatch):
        monkeypatch.setattr("os.cpu_count", lambda: 1)
        for dataset in ("maestro", "maestro-performance"):
            words = ["prepare", dataset, "--source", str(archive), "--data-folder", str(tmp_path / "d")]
            assert main([*words, "--stretch", "0.95, 1.05"]) == 0
            assert TokenStore(tmp_path / "d" / dataset).manifest.provenance["stretch"] == [0.95, 1.05]
        for given, message in [
            ("fast", "--stretch takes numbers such as 0.95,1.05, it is 'fast'"),
            (",", "--stretch takes numbers such as 0.95,1.05, it is ','"),
            ("0.95,3", "cannot be stretched by 3.0"),
        ]:
            assert main([*words, "--stretch", given]) == 1
            assert message in capsys.readouterr().err
        assert main(["prepare", "jsb", "--stretch", "0.95"]) == 1
        assert "--stretch is for maestro, maestro-performance" in capsys.readouterr().err

    def test_names(self):
        names = [stretched_name("2018/a [x2].mid", factor) for factor in (0.95, np.float64(0.9500000000000001), 2)]
        assert names == [f"2018/a [x2].mid [x{factor}]" for factor in ("0.95", "0.9500000000000001", "2.0")]
        assert [is_stretched(name) for name in (*names, "2018/a [x2].mid", "b.midi")] == [True] * 3 + [False] * 2


class TestFolder:
    def test_any_folder_is_divided_by_content(self, tmp_path, folder):
        (folder / "sub").mkdir()
        (folder / "sub" / "copy.MIDI").write_bytes(piece(3))
        (folder / "notes.txt").write_text("no music")
        manifest, _ = prepare(tmp_path / "a", folder)
        assert manifest.provenance["split"] == "by-content"
        names = {name: part["names"] for name, part in manifest.splits.items()}
        assert sum(map(len, names.values())) == 21
        assert all(names.values())
        assert sum({"piece03.mid", "sub/copy.MIDI"} <= set(part) for part in names.values()) == 1

    def test_a_changed_file_makes_it_again(self, tmp_path, folder):
        first, _ = prepare(tmp_path / "a", folder)
        (folder / "piece00.mid").write_bytes(piece(99))
        again, said = prepare(tmp_path / "a", folder)
        assert "already prepared" not in "".join(said)
        assert again.content != first.content

    def test_what_cannot_be_prepared(self, tmp_path, folder):
        (tmp_path / "empty").mkdir()
        (tmp_path / "no.zip").write_bytes(b"no zip")
        with pytest.raises(SeqpopeError, match=r"empty has no MIDI files"):
            prepare(tmp_path / "a", tmp_path / "empty")
        with pytest.raises(SeqpopeError, match=r"none: expected a zip archive or a folder"):
            prepare(tmp_path / "a", tmp_path / "none")
        with pytest.raises(SeqpopeError, match=r"no\.zip is not a zip archive that can be read"):
            prepare(tmp_path / "a", tmp_path / "no.zip")
        with pytest.raises(SeqpopeError, match=r"has no catalogue.*leave the split out"):
            prepare(tmp_path / "a", folder, split="official")
        with pytest.raises(SeqpopeError, match="unknown split 'x'"):
            prepare(tmp_path / "a", folder, split="x")
        assert not (tmp_path / "a").exists()

    def test_a_damaged_member_is_left_out(self, tmp_path, archive):
        raw = bytearray(archive.read_bytes())
        with zipfile.ZipFile(archive) as file:
            info = file.getinfo("maestro-v3.0.0/2018/extra.midi")
        at = info.header_offset + 30 + len(info.filename) + 20
        raw[at : at + 20] = bytes(20)
        archive.write_bytes(bytes(raw))
        manifest, _ = prepare(tmp_path / "a", archive, split="by-content")
        reason = manifest.provenance["skipped"]["maestro-v3.0.0/2018/extra.midi"]
        assert reason.startswith("it is damaged in the archive")


class TestCorpus:
    def test_sources_are_read_alike(self, archive, tmp_path):
        with zipfile.ZipFile(archive) as file:
            file.extractall(tmp_path / "unpacked")
        with open_source(archive) as (names, read), open_source(tmp_path / "unpacked") as (others, read_other):
            assert names == others == sorted(f"maestro-v3.0.0/{name}" for name in FILES)
            assert all(read(name) == read_other(name) for name in names)
            assert find_catalogue(names) == "maestro-v3.0.0/maestro-v3.0.0.csv"
            assert len(midi_files(names)) == 7

    def test_catalogue(self):
        recordings = read_catalogue(FILES["maestro-v3.0.0.csv"], "m.csv")
        assert recordings[2] == Recording("2018/c.midi", "Liszt", "Étude", "validation")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "has no canonical_composer"),
            (b"midi_filename,split\na,train\n", "has no canonical_composer, canonical_title"),
            (catalogue([("a", "b", "dev", "c")]), "it also has dev"),
            (b"\xff\xfe\x00", "expected CSV in UTF-8"),
        ],
    )
    def test_other_tables(self, content, message):
        with pytest.raises(CorpusError, match=message):
            read_catalogue(content, "m.csv")

    def test_division(self):
        """By whole groups, in the stated shares, and the same whatever the order files come in."""
        keys = {f"file{k}": f"piece{k % 200}" for k in range(1000)}
        split = divide(keys)
        assert split == divide(dict(reversed(keys.items())))
        counts = {name: list(split.values()).count(name) for name in ("train", "validation", "test")}
        assert counts == {"train": 900, "validation": 50, "test": 50}
        assert len({(keys[file], part) for file, part in split.items()}) == 200

    def test_one_title_by_two_composers_is_two_pieces(self):
        recordings = [Recording(f"{c}{k}", c, "Sonata", "train") for c in "abcdefghij" for k in range(2)]
        split = divide_by_piece(recordings)
        assert set(split.values()) == {"train", "validation", "test"}
        assert all(split[f"{c}0"] == split[f"{c}1"] for c in "abcdefghij")
