"""Runs commands of the suite from within a command, each in a process of its own, with further flags of the user's."""
import os
import shlex
import subprocess
import sys

from util.lib.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def split_flags(name, text):
    """The flags in the text of a flag, split as a shell would. name: of that flag."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"--{name}={text[:80]}: cannot be split into flags ({error}); close every quote") from None


def run(what, script, arguments):
    """Runs a command to its end. Where this process is ended, the command ends too, after it has saved what it can resume from.

    Args:
        what: what it does, for the message. script: its path below the repository. arguments: list of str.

    Returns:
        (the lines of its stdout, of its stderr). Raises UserError with its last words where it fails.
    """
    line = [sys.executable, os.path.join(ROOT, script), *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
    with subprocess.Popen(line, **streams) as process:
        try:
            output, errors = process.communicate()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        last_words = (errors.strip() or f"exit code {process.returncode}").splitlines()[-1]
        raise UserError(f"{what}: {last_words[:500]}")
    return output.splitlines(), errors.splitlines()
