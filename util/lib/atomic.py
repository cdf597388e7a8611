"""Outputs that appear whole or not at all: written under a temporary name beside the final one, then renamed."""
import contextlib
import errno
import glob
import gzip
import io
import json
import os
import shutil
import socket

import numpy as np

from util.lib.errors import UserError, reason
from util.lib.locks import Lock, short_name

FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # no room, file-size limit, quota

_in_use = set()  # temporary names that this process uses


def make_folder(path):
    """Creates a folder and its parents."""
    try:
        os.makedirs(path or ".", exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot create this folder: {reason(error)}; choose another one") from None


def temporary_name(path):
    """A name in the folder of `path` for this process; removes what killed processes left for the same path."""
    folder, name = os.path.split(os.path.abspath(path))
    name = short_name(name)
    remove_stale(folder, glob.escape(name))
    temporary = os.path.join(folder, f".{name}.new.{socket.gethostname()}.{os.getpid()}.tmp")
    _in_use.add(temporary)
    return temporary


def remove_stale(folder, pattern):
    """Removes the temporary files that killed processes of this machine left for names that match a glob pattern."""
    host = glob.escape(socket.gethostname())
    for stale in set(glob.glob(os.path.join(glob.escape(folder), f".{pattern}.*.{host}.*.tmp"))) - _in_use:
        pid = stale.split(".")[-2]
        if pid.isascii() and pid.isdigit() and len(pid) < 10 and not _is_running(int(pid)):
            shutil.rmtree(stale) if os.path.isdir(stale) else os.remove(stale)


def _is_running(pid):
    if pid == os.getpid():  # an earlier process with our number, as after the restart of a container
        return False
    if os.name != "posix":  # on Windows os.kill(pid, 0) would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def full_disk_is_a_user_error(path):
    """Raises a UserError about `path` instead of an OSError that says that the disk or quota is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{path}: cannot write: {reason(error)}; what was there is as before, make room and run again"
        ) from None


def check_output(path):
    """Raises UserError where a path is none that a file can be written to."""
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder, expected the name of a file to write")
    if path.startswith(("/dev/std", "/dev/fd/", "/proc/")) or (os.path.exists(path) and not os.path.isfile(path)):
        raise UserError(f"{path}: is a device or a pipe, which would be replaced; expected a file to write")


def check_writable(paths):
    """Raises UserError unless a file could be written under every path that is not None; creates their folders."""
    for path in paths:
        if path is None:
            continue
        with WholeFile(path):
            pass


class WholeFile:
    """A file that gets its final name only by commit(). Use `with`: leaving it without commit() removes the file.

    Nobody else can write the same file meanwhile.

    Attributes:
        file: the open binary file. temporary: its name until commit().
    """

    def __init__(self, path):
        check_output(path)
        make_folder(os.path.dirname(path))
        self.path, self._target = path, os.path.realpath(path)  # a link stays, and its target is replaced
        try:
            self._lock = Lock(self._target)
            self.temporary = temporary_name(self._target)
            self.file = open(self.temporary, "w+b")  # noqa: SIM115
            if os.path.exists(path):
                shutil.copymode(path, self.temporary)
        except OSError as error:
            raise UserError(f"{path}: cannot write here: {reason(error)}; choose another folder") from None

    def __enter__(self):
        return self

    def finish(self):
        """Forces the contents to disk and closes the file; only the rename is left."""
        if not self.file.closed:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()

    def commit(self):
        """Gives the file its final name."""
        self.finish()
        os.replace(self.temporary, self._target)

    def __exit__(self, kind, error, _):
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            os.remove(self.temporary)
        self._lock.release()
        if isinstance(error, OSError) and error.errno in FULL:
            with full_disk_is_a_user_error(self.path):
                raise error


@contextlib.contextmanager
def whole_file(path):
    """A binary file to write, compressed if `path` ends in .gz. It appears if the `with` block ends without error."""
    with WholeFile(path) as whole:
        if path.endswith(".gz"):
            with gzip.GzipFile(filename="", fileobj=whole.file, mode="wb", compresslevel=6, mtime=0) as file:
                yield file
        else:
            yield whole.file
        whole.commit()


def write_text(path, text):
    """Writes UTF-8 text, whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json(path, value):
    """Writes readable JSON, whole or not at all."""
    write_text(path, json_text(value))


def json_text(value):
    """A value as readable JSON."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_npy(path, array):
    """Writes an array in memory as a .npy file, whole or not at all."""
    with whole_file(path) as file:
        write_array(file, array)


def write_array(file, array):
    """Writes an array in memory to a binary file in the .npy format."""
    # Through memory: np.save would write past the Python file object and lose a full disk's errno.
    file.write(npy_header(array.shape, array.dtype))
    file.write(np.ascontiguousarray(array).data)


def npy_header(shape, dtype=np.float32):
    """The header of a .npy file, bytes; their number is the same for any number of rows."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": tuple(shape)})
    return header.getvalue()


def commit_together(*files):
    """Commits WholeFiles that belong together, the last of which tells readers that all are there: it goes first and comes last."""
    for file in files:
        file.finish()
    with contextlib.suppress(FileNotFoundError):
        os.remove(files[-1].path)
    for file in files:
        file.commit()
