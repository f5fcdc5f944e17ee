from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from seqpope.data import shards
from seqpope.data.shards import (
    Manifest,
    StoreError,
    TokenStore,
    check_place,
    find_store,
    in_folder,
    pack,
    write_store,
)


def make_split(lengths, dtype=np.uint8):
    generator = np.random.default_rng(len(lengths))
    documents = [generator.integers(1, 90, length) for length in lengths]
    flags = [np.full(length, 1 + 2 * (index % 2), np.uint8) for index, length in enumerate(lengths)]
    return pack(documents, flags, [f"piece-{index}" for index in range(len(lengths))], dtype), documents


def make_manifest(**changes):
    values = {
        "domain": "music",
        "dataset": "d",
        "tokenizer": {"name": "t"},
        "fingerprint": shards.fingerprint({"name": "t"}),
        "vocabulary_size": 90,
        "padding_id": 0,
        "shift_range": (2, 89),
        "strata": ["changed"],
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def folder(tmp_path):
    splits = {
        name: make_split(lengths)[0] for name, lengths in (("train", [5, 0, 7]), ("validation", [3]), ("test", []))
    }
    write_store(tmp_path / "store", make_manifest(), splits)
    return tmp_path / "store"


def test_units_of_documents_are_read_as_written(tmp_path):
    ids = [np.array([1, 2]), np.array([3])]
    flags = [np.ones(2, np.uint8), np.ones(1, np.uint8)]
    packed = pack(ids, flags, ["a", "b"], np.uint8, {"note": [2, 1], "second": [0.1, 0.7]})
    write_store(tmp_path / "store", make_manifest(), {"train": packed})
    units = TokenStore(tmp_path / "store").split("train").units
    assert {name: counts.tolist() for name, counts in units.items()} == {"note": [2, 1], "second": [0.1, 0.7]}
    with pytest.raises(ValueError, match="for each document"):
        pack(ids, flags, ["a", "b"], np.uint8, {"note": [3]})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_read(tmp_path, dtype):
    packed, documents = make_split([5, 0, 7, 1], dtype)
    manifest = make_manifest(provenance={"source": "s"}, units={"step": 0.25})
    write_store(tmp_path / "a" / "store", manifest, {"train": packed})
    store = TokenStore(tmp_path / "a" / "store")
    assert store.manifest == manifest
    assert store.manifest.shift_range == (2, 89)
    split = store.split("train")
    assert split.tokens.dtype == dtype
    assert isinstance(split.tokens, np.memmap)
    assert len(split) == 4
    for index, document in enumerate(documents):
        assert split.document(index).tolist() == document.tolist()
    assert split.names == packed.names
    assert np.array_equal(split.flags, packed.flags)
    assert store.manifest.splits["train"] == {
        "documents": 4,
        "tokens": 13,
        "units": {},
        "scored": 13,
        "names": packed.names,
    }


def test_scored_tokens_are_counted(tmp_path):
    flags = [np.array([0, 1, 3, 2], np.uint8)]
    packed = pack([np.arange(4)], flags, ["a"], np.uint8)
    write_store(tmp_path / "store", make_manifest(), {"train": packed})
    assert TokenStore(tmp_path / "store").manifest.splits["train"]["scored"] == 2


def test_content_hash_follows_the_arrays(tmp_path):
    contents = []
    for number, lengths in enumerate(([4, 5], [4, 5], [5, 4])):
        manifest = make_manifest()
        write_store(tmp_path / str(number), manifest, {"train": make_split(lengths)[0]})
        contents.append(manifest.content)
    assert contents[0] == contents[1] != contents[2]


def test_fingerprint_ignores_order_only():
    assert shards.fingerprint({"a": 1, "b": [2]}) == shards.fingerprint({"b": [2], "a": 1})
    assert shards.fingerprint({"a": 1}) != shards.fingerprint({"a": 2})


def test_pack_refuses_what_does_not_correspond():
    one = [np.arange(3)]
    with pytest.raises(ValueError, match="one to one"):
        pack(one, [np.zeros(2)], ["a"], np.uint8)
    with pytest.raises(ValueError, match="one to one"):
        pack(one, [np.zeros(3)], [], np.uint8)


def test_missing_store_says_what_to_run(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match=f"run `seqpope prepare jsb --data-folder {tmp_path}` first"):
        TokenStore(tmp_path / "jsb")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="run `seqpope prepare jsb` first"):
        TokenStore(Path("data") / "jsb")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1}', '{"format": 1, "domain": 1}'])
def test_damaged_manifest(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match="--force"):
        TokenStore(folder)


def test_other_format(folder):
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**raw, "format": 99}))
    with pytest.raises(StoreError, match="format 99, this version reads 1"):
        TokenStore(folder)


class TestPlaces:
    def test_a_store_is_found_in_a_folder_of_its_name_or_as_the_folder_itself(self, tmp_path, folder):
        write_store(tmp_path / "all" / "d", make_manifest(), {"train": make_split([3])[0]})
        assert find_store(tmp_path / "all", "d") == tmp_path / "all" / "d"
        assert find_store(folder, "d") == folder

    def test_one_of_another_data_set_is_not_taken(self, tmp_path, folder):
        with pytest.raises(StoreError, match="is a store of d, not of jsb: give a store of jsb, or a folder that"):
            find_store(folder, "jsb")
        with pytest.raises(StoreError, match=f"run `seqpope prepare jsb --data-folder {tmp_path}` first"):
            TokenStore(find_store(tmp_path, "jsb"))

    def test_what_may_be_replaced(self, tmp_path, folder):
        (tmp_path / "empty").mkdir()
        for place in (tmp_path / "new", tmp_path / "empty", folder):
            check_place(place, "d")
        with pytest.raises(StoreError, match="is a store of d: name another folder for one of jsb"):
            check_place(folder, "jsb")
        (folder / "manifest.json").write_text("{")
        check_place(folder, "jsb")  # a store that is damaged is no one's
        (folder / "notes").mkdir()
        with pytest.raises(StoreError, match="holds notes, which is no part of a store"):
            check_place(folder, "d")
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="is a file"):
            check_place(tmp_path / "file", "d")

    def test_errors_say_where_to_prepare(self, folder):
        (folder / "train.tokens.npy").unlink()
        with pytest.raises(StoreError, match=f"with `seqpope prepare d --out {folder} --force`"):
            TokenStore(folder).split("train")

    def test_options_that_make_a_store_in_its_place(self):
        assert in_folder(Path("data") / "jsb", "jsb") == ""
        assert in_folder(Path("my data") / "jsb", "jsb") == " --data-folder 'my data'"
        assert in_folder(Path("data") / "my jsb", "jsb") == " --out 'data/my jsb'"


def test_fields_of_a_later_version_are_ignored(folder):
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**raw, "colour": "blue"}))
    assert TokenStore(folder).manifest.dataset == "d"


def test_unknown_split(folder):
    with pytest.raises(StoreError, match="train, validation, test; 'dev' was asked for"):
        TokenStore(folder).split("dev")


@pytest.mark.parametrize("part", ["tokens", "starts", "flags"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "shorter", "pickle"])
def test_damaged_arrays(folder, part, damage):
    path = folder / f"train.{part}.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "shorter":
        np.save(path, np.load(path)[:-1])
    else:
        np.save(path, np.array([{"a": 1}], dtype=object))
    with pytest.raises(StoreError, match="prepare it again"):
        TokenStore(folder).split("train")


def test_empty_split_opens(folder):
    assert len(TokenStore(folder).split("test")) == 0


def test_failure_leaves_the_old_store_and_no_rubbish(folder):
    before = (folder / "manifest.json").read_bytes()

    def interrupted():
        with shards.replace_folder(folder) as fresh:
            (fresh / "half").write_text("written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (folder / "manifest.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["store"]


def test_replacing_leaves_nothing_of_the_old_store(folder):
    write_store(folder, make_manifest(dataset="new"), {"train": make_split([2])[0]})
    store = TokenStore(folder)
    assert store.manifest.dataset == "new"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "train.flags.npy",
        "train.starts.npy",
        "train.tokens.npy",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["store"]
