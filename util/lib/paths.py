"""The boundary between the commands and the user's files: what may be read, and that no output is an input."""
import os
import stat

from util.lib.errors import UserError, reason

STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # pipes that the shell opened for us


def open_input(path, expected, stream=False):
    """Opens a file for reading as bytes; never waits for a pipe that nobody writes to.

    Args:
        path: str. expected: what the file should be, for messages. stream: whether a pipe of the shell will do.

    Returns:
        The open binary file. Raises UserError for anything but a regular file.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path}: is a folder, expected {expected}")
        if not stat.S_ISREG(mode) and not (stream and path.startswith(STREAMS)):
            raise UserError(f"{path}: is a pipe, a socket or a device, expected {expected}; write it to a file first")
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot read: {reason(error)}; expected {expected}") from None


def check_distinct(outputs, inputs):
    """Raises UserError where an output is an input, or two outputs are one file, under whatever names.

    Args:
        outputs, inputs: {flag or description: path, or None or "" for none}. An input may be a list of paths.
    """
    outputs = {name: path for name, path in outputs.items() if path}
    inputs = [(name, path) for name, given in inputs.items() if given for path in ([given] if isinstance(given, str) else given)]
    seen = {}
    for name, path in inputs:
        for identity in _identities(path):
            seen.setdefault(identity, f"{name}={path}, which it would replace")
    for name, path in outputs.items():
        identities = _identities(path)
        for identity in identities:
            if identity in seen:
                raise UserError(f"{name}={path} is the same file as {seen[identity]}; name another file")
        seen |= dict.fromkeys(identities, f"{name}={path}")


def _identities(path):
    """What two names of one file have in common: the real path and, where the file exists, its device and inode."""
    found = [os.path.normcase(os.path.realpath(path))]
    try:
        status = os.stat(path)
    except OSError:
        return found
    return [*found, (status.st_dev, status.st_ino)] if stat.S_ISREG(status.st_mode) else found
