"""The folder <output>.progress, in which a long command keeps what is done until its output is written, to resume from it."""
import contextlib
import glob
import json
import os

from util.lib import atomic
from util.lib.locks import Lock


class ProgressFolder:
    """Opens or makes the folder, with one writer at a time.

    Args:
        path: of the folder. identity: a dict for JSON; what the folder holds of another one is removed.
        patterns: of the names of the files that the command keeps in it. writes: False for a process that only reads what the one that
            writes keeps there.
    """

    def __init__(self, path, identity, patterns, writes=True):
        self._path, self._patterns, self.writes, run_json = path, patterns, writes, os.path.join(path, "run.json")
        if not writes:
            return
        atomic.make_folder(path)
        self._lock = Lock(path)  # until the process ends, or remove()
        try:
            with open(run_json, encoding="utf-8") as file:
                same = json.load(file) == identity
        except (OSError, ValueError, RecursionError):
            same = False
        if not same:
            self._remove_files()
            atomic.write_json(run_json, identity)

    def file(self, name):
        """The path of a file in the folder."""
        return os.path.join(self._path, name)

    def _remove_files(self):
        for pattern in self._patterns:
            for path in glob.glob(os.path.join(glob.escape(self._path), pattern)):
                os.remove(path)

    def remove(self):
        """Deletes the folder."""
        self._remove_files()
        os.remove(self.file("run.json"))
        with contextlib.suppress(OSError):  # a file of somebody else
            os.rmdir(self._path)
        self._lock.release()
