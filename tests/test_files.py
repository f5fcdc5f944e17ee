from __future__ import annotations

import errno
import threading
from contextlib import nullcontext

import pytest

from seqpope.errors import SeqpopeError
from seqpope.files import held, locked, wait_until_free, write_bytes, write_files


def assert_waits(holds, waits):
    """`waits`, given what to call when it must wait, comes after a thread that is in `holds`, and says so."""
    order, holding, told = [], threading.Event(), threading.Event()

    def first():
        with holds:
            holding.set()
            assert told.wait(10)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert holding.wait(10)
    with waits(told.set):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_second_waits_for_the_first_and_says_so(tmp_path):
    pytest.importorskip("fcntl")
    assert_waits(locked(tmp_path / "lock"), lambda told: locked(tmp_path / "lock", told))
    with locked(tmp_path / "lock", lambda: pytest.fail("nobody holds it any more")):
        pass


def test_several_files_are_written_all_or_none(tmp_path):
    write_files({tmp_path / "new" / "a": b"1", tmp_path / "b": b"2"})
    assert [(tmp_path / name).read_bytes() for name in ("new/a", "b")] == [b"1", b"2"]
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o644
    (tmp_path / "c").mkdir()
    with pytest.raises(IsADirectoryError) as told:
        write_files({tmp_path / "b": b"3", tmp_path / "c": b"3"})
    assert told.value.filename == str(tmp_path / "c")
    assert (tmp_path / "b").read_bytes() == b"2"
    with pytest.raises(NotADirectoryError) as told:
        write_bytes(tmp_path / "b" / "d", b"3")
    assert told.value.filename == str(tmp_path / "b" / "d")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "new"]


def test_a_file_that_cannot_be_renamed_is_named(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted", "the file beside it")

    monkeypatch.setattr("os.replace", refused)
    with pytest.raises(PermissionError) as told:
        write_bytes(tmp_path / "a", b"1")
    assert told.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_what_fails_inside_lets_go(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "lock"):
        raise RuntimeError
    with locked(tmp_path / "lock", lambda: pytest.fail("it is held still")):
        pass


def test_a_folder_is_held_by_one_alone_and_stays_as_it_was(tmp_path):
    pytest.importorskip("fcntl")
    with held(tmp_path, "x"):
        with (
            pytest.raises(SeqpopeError, match=r"at work in .*: wait for it, or go away"),
            held(tmp_path, "go away"),
        ):
            pass
        assert list(tmp_path.iterdir()) == []
    with held(tmp_path, "x"):
        pass


def test_who_can_wait_for_a_folder_waits(tmp_path):
    pytest.importorskip("fcntl")
    assert_waits(held(tmp_path, "x"), lambda told: nullcontext(wait_until_free(tmp_path, told)))
    for free in (tmp_path, tmp_path / "nowhere"):
        wait_until_free(free, lambda: pytest.fail("nobody holds it"))
    with held(tmp_path, "x"):  # it is not kept
        pass
