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

FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # no room, file-size limit, quota


_in_use = set()  # temporary names that this process gave out


def make_folder(path):
    """Creates a folder and its parents."""
    try:
        os.makedirs(path or ".", exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot create this folder: {reason(error)}; choose another one") from None


def temporary_name(path):
    """A name beside `path` for this process; what a killed process left for the same path is removed first."""
    folder, name = os.path.split(os.path.abspath(path))
    remove_stale(folder, glob.escape(name))
    temporary = os.path.join(folder, f".{name}.new.{socket.gethostname()}.{os.getpid()}.tmp")
    _in_use.add(temporary)
    return temporary


def remove_stale(folder, pattern):
    """Removes what killed processes of this machine left on the way to names that match a glob pattern."""
    host = glob.escape(socket.gethostname())
    for stale in set(glob.glob(os.path.join(glob.escape(folder), f".{pattern}.*.{host}.*.tmp"))) - _in_use:
        if not _is_running(int(stale.split(".")[-2])):
            shutil.rmtree(stale) if os.path.isdir(stale) else os.remove(stale)


def _is_running(pid):
    if pid == os.getpid():  # of a process before us that had our number, as in a container that was started again
        return False
    if os.name != "posix":  # there os.kill(pid, 0) would end the process
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
    """Turns the errors of a disk or quota without room into one line about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(f"{path}: cannot write: {reason(error)}; nothing was changed, make room and run again") from None


class WholeFile:
    """A file that gets its final name only by commit(). Use `with`: leaving it without commit() removes the rest.

    `file` is the open binary file, `temporary` its name until then; the path's folder is created.
    """

    def __init__(self, path):
        self.path = path
        if os.path.isdir(path):
            raise UserError(f"{path}: is a folder, expected the name of a file to write")
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path}: is a device or a pipe, which would be replaced; name a file to write")
        make_folder(os.path.dirname(path))
        try:
            self.temporary = temporary_name(path)
            self.file = open(self.temporary, "w+b")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{path}: cannot write here: {reason(error)}; choose another folder") from None

    def __enter__(self):
        return self

    def finish(self):
        """Forces the contents to disk; from here on only the rename is left."""
        if not self.file.closed:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()

    def commit(self):
        """Gives the file its final name."""
        self.finish()
        os.replace(self.temporary, self.path)

    def __exit__(self, kind, error, _):
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            os.remove(self.temporary)
        if isinstance(error, OSError) and error.errno in FULL:
            with full_disk_is_a_user_error(self.path):
                raise error


@contextlib.contextmanager
def whole_file(path):
    """A binary file to write; it appears under `path`, gzip-compressed for `.gz`, if the block ends without error."""
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
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_npy(path, array):
    """Writes one array that is in memory."""
    with whole_file(path) as file:
        # Through memory: np.save would write past the Python file object and lose a full disk's errno.
        file.write(npy_header(array.shape, array.dtype))
        file.write(np.ascontiguousarray(array).data)


def npy_header(shape, dtype=np.float32):
    """The bytes in front of a .npy file's numbers; as long for any number of rows."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": tuple(shape)})
    return header.getvalue()


def commit_pair(array, keys):
    """Gives an array and its keys their names so that no reader can take new keys for an old array."""
    array.finish()
    keys.finish()
    with contextlib.suppress(FileNotFoundError):
        os.remove(keys.path)
    array.commit()
    keys.commit()
