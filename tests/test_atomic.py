"""util/lib/atomic.py: outputs appear whole or not at all. Killed processes and full disks are in test_crash.py."""
import gzip
import os
import socket

import numpy as np
import pytest

from util.lib import atomic
from util.lib.errors import UserError

pytestmark = pytest.mark.check


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "x.txt"
    with atomic.whole_file(str(path)) as file:
        file.write(b"text")
        assert not path.exists()
    assert path.read_bytes() == b"text"
    assert names(path.parent) == {"x.txt"}


def test_an_error_leaves_the_older_file(tmp_path):
    (tmp_path / "x.txt").write_text("older")
    with pytest.raises(KeyError), atomic.whole_file(str(tmp_path / "x.txt")) as file:
        file.write(b"newer")
        raise KeyError
    assert (tmp_path / "x.txt").read_text() == "older"
    assert names(tmp_path) == {"x.txt"}


def test_compressed_files_have_the_same_bytes_each_time(tmp_path):
    """No time and no name is in them."""
    for name in ("a.gz", "b.gz"):
        atomic.write_text(str(tmp_path / name), "text\n" * 100)
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == b"text\n" * 100
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(str(tmp_path / "x.json"), {"x": float("nan")})
    assert not names(tmp_path)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (5, 3), (2, 5, 3)])
def test_arrays_are_what_numpy_reads(tmp_path, shape):
    """Also of an array that is not contiguous."""
    array = np.random.default_rng(0).random(shape, np.float32)
    for values in (array, np.asfortranarray(array), array.astype(np.int64)):
        atomic.write_npy(str(tmp_path / "x.npy"), values)
        found = np.load(tmp_path / "x.npy", allow_pickle=False)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


def test_a_header_has_one_length_for_any_number_of_rows():
    assert len({len(atomic.npy_header((rows, 13))) for rows in (0, 1, 10**6, 10**12)}) == 1


def test_what_ended_processes_left_is_removed(tmp_path):
    """Of the same output and machine, and only where the process does not run any more."""
    host = socket.gethostname()
    left = {f".x.npy.new.{host}.{pid}.tmp": kept for pid, kept in ((2**22 + 7, False), (os.getppid(), True))}
    left |= {f".y.npy.new.{host}.{2**22 + 7}.tmp": True, f".x.npy.new.elsewhere.{2**22 + 7}.tmp": True}
    for name in left:
        (tmp_path / name).write_text("half")
    atomic.write_npy(str(tmp_path / "x.npy"), np.zeros(3))
    assert names(tmp_path) == {"x.npy", *(name for name, kept in left.items() if kept)}


def test_a_pair_is_never_new_keys_with_an_old_array(tmp_path, monkeypatch):
    """The old keys go first: at no rename are there keys that are not those of the array."""
    array, keys = tmp_path / "a.npy", tmp_path / "a_keys.txt"
    for text in ("old", "new"):
        seen, replace = [], os.replace

        def watched(source, target, replace=replace, seen=seen):
            seen.append((array.exists() and array.read_text(), keys.exists() and keys.read_text()))
            replace(source, target)

        monkeypatch.setattr(os, "replace", watched)
        with atomic.WholeFile(str(array)) as one, atomic.WholeFile(str(keys)) as other:
            one.file.write(text.encode())
            other.file.write(text.encode())
            atomic.commit_together(one, other)
        monkeypatch.undo()
    assert seen == [("old", False), ("new", False)]
    assert (array.read_text(), keys.read_text()) == ("new", "new")


def test_a_folder_or_a_device_is_no_output(tmp_path):
    for path, what in ((str(tmp_path), "is a folder"), (os.devnull, "is a device or a pipe")):
        with pytest.raises(UserError, match=what):
            atomic.WholeFile(path)
