"""One writer per output: a lock of the operating system, which ends with the process that holds it, however that ends.

    with locks.Lock("runs/scores.tsv"):
        ...

The lock is on a small file `.NAME.lock` beside the output, which says who holds it. A crash may leave that file, but not the lock.
"""
import contextlib
import os
import sys
import time
import zlib

from util.lib.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


class Busy(UserError):
    """Another process holds the lock."""


_held = set()  # the locks of this process


def release_all():
    """Releases what this process still holds; command.run does so at its end."""
    for lock in list(_held):
        lock.release()


class Lock:
    """Holds an output for this process until release(). Raises UserError, which names the other process, where one holds it.

    Args:
        path: of the output, a file or a folder; its folder must exist.
    """

    def __init__(self, path):
        folder, name = os.path.split(os.path.realpath(path))
        self._path = os.path.join(folder, f".{short_name(name)}.lock")
        while True:  # until the file that is locked is still the one with that name
            self._file = open(self._path, "a+b")  # noqa: SIM115
            if not self._lock():
                holder = self._holder()
                self._file.close()
                raise Busy(
                    f"{path}: another process is writing it{holder}; wait until that has ended, or name another output"
                )
            if self._is_current():
                break
            self._file.close()
        _held.add(self)
        self._file.truncate(0)
        self._file.write(f"{os.getpid()} {' '.join(sys.argv)[:200]}".encode(errors="replace"))
        self._file.flush()

    def _lock(self):
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                self._file.seek(1 << 30)  # beyond the text, which others may read
                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _is_current(self):
        """Whether the open file still has its name: the process before may have removed it on its way out."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _holder(self):
        """The process that holds the lock, for the message; it may not have written its name yet."""
        for _ in range(50):
            self._file.seek(0)
            pid, _, what = self._file.read(300).decode(errors="replace").partition(" ")
            if pid.isdigit():
                return f" (process {pid}: {what})"
            time.sleep(0.02)
        return ""

    def release(self):
        """Lets others have the output."""
        _held.discard(self)
        if not self._file.closed:
            with contextlib.suppress(OSError):  # Windows removes no open file
                os.remove(self._path)
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()


def short_name(name, most=120):
    """A file name that leaves room for more within the system's 255 bytes; two long names hardly ever get the same."""
    if len(name.encode(errors="surrogateescape")) <= most:
        return name
    return f"{name[: most // 4]}.{zlib.crc32(name.encode(errors='surrogateescape')):08x}"
