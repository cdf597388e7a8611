"""Errors and warnings that a user can act on: one line each, of what was found, what was expected and what to do."""
import os
import sys


class UserError(Exception):
    """Something the user can fix. The text names where it is, what was found, what was expected and what to do."""


def warn(text):
    """Prints one line about something that does not stop the command."""
    print(f"{script_name()}: warning: {printable(text)}", file=sys.stderr, flush=True)


def printable(text):
    """The text on one line, without characters that a terminal would act on."""
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else c.encode("unicode_escape").decode() for c in text)


def reason(error):
    """An OSError in a few words, e.g. `No such file or directory`."""
    return getattr(error, "strerror", None) or str(error)


def counted(number, noun):
    """A number with its noun: `1 class`, `2 classes`, `3 rows`."""
    plural = f"{noun}es" if noun.endswith(("s", "x", "ch")) else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def script_name():
    """The name of the command that runs, e.g. `train.py`."""
    return os.path.basename(sys.argv[0])
