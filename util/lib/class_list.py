"""Reads and compares class lists and held-out lists, and keeps the class list beside the arrays made with it."""
import difflib
import os
import time

from util.lib import atomic, locks, paths
from util.lib.errors import UserError

MOST_COMPARED = 2000  # names that are compared letter by letter, which takes 30 microseconds for each
PATIENCE = 10  # seconds for which another process may write the same class list
MAX_CLASSES = 1 << 24  # up to here a float32 holds every class id exactly


def read_lines(path, what):
    """The lines of a small UTF-8 text file, without their ends, a list of str. what: names the file in messages."""
    with paths.open_input(path, f"the {what}") as file:
        text = file.read()
    try:
        text = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: bytes that are not UTF-8; save the {what} as UTF-8") from None
    return text.replace("\r\n", "\n").rstrip("\n").split("\n") if text.strip("\r\n") else []


def load(path):
    """Reads a class list, one name per line. Returns a list of str; the index of a name is its class id."""
    names = read_lines(path, "class list")
    if not names:
        raise UserError(f"{path}: the class list is empty, expected one class name per line")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{path}: {len(names)} classes, expected at most {MAX_CLASSES}")
    if len(names) == 1 and names[0].count(",") > 1:
        raise UserError(f'{path}:1: "{names[0][:40]}", with commas; expected one class name per line')
    first_line = {}
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(f"{path}:{number}: an empty class name; remove the line, or name the class")
        if "\t" in name or "\0" in name:
            raise UserError(
                f"{path}:{number}: a tab or NUL in a class name; expected one name per line and nothing else"
            )
        if "\r" in name or "\ufeff" in name:
            raise UserError(
                f"{path}:{number}: a carriage return or byte-order mark in a class name; save the file as plain UTF-8"
            )
        if first_line.setdefault(name, number) != number:
            raise UserError(f'{path}:{number}: class "{name}" is already in line {first_line[name]}; names must differ')
    return names


def check_same(names, path, other_names, other_path):
    """Raises a UserError that shows the first difference between two class lists."""
    if names == other_names:
        return
    for i in range(max(len(names), len(other_names))):
        a, b = (f'"{x[i]}"' if i < len(x) else "nothing" for x in (names, other_names))
        if a != b:
            raise UserError(
                f"{path}:{i + 1}: class {i} is {a}, but {b} in {other_path}; "
                "use the class list that the arrays and the checkpoint were made with, or make them again"
            )


def load_heldout(path, class_names=None):
    """Reads a held-out list: lines of class name, tab, and 1 (keep) or 0 (hold out).

    Args:
        class_names: every name in the list must be one of them; None: any name.

    Returns:
        The set of names held out.
    """
    kept, known = {}, None if class_names is None else set(class_names)
    for number, line in enumerate(read_lines(path, "held-out list"), 1):
        if not line.strip():
            continue
        name, _, value = line.rpartition("\t")
        if not name or value not in ("0", "1"):
            raise UserError(
                f'{path}:{number}: found "{line[:80]}", expected a class name, a tab, and 1 (keep) or 0 (hold out)'
            )
        if name in kept:
            raise UserError(f'{path}:{number}: class "{name}" is in the list twice; keep one of the lines')
        if known is not None and name not in known:
            raise UserError(f'{path}:{number}: class "{name}" is not in the class list{closest(name, class_names)}')
        kept[name] = value == "1"
    if not kept:
        raise UserError(
            f"{path}: the held-out list is empty, expected lines of class name, tab, and 1 (keep) or 0 (hold out)"
        )
    return {name for name, keep in kept.items() if not keep}


def heldout_ids(path, class_names):
    """The ids of the classes that a held-out list holds out, a sorted list; empty if path is None."""
    if not path:
        return []
    heldout = load_heldout(path, class_names)
    return [i for i, name in enumerate(class_names) if name in heldout]


def closest(name, names):
    """A hint with the one of `names` that is most like `name`, or an empty string if none is."""
    if len(names) > MOST_COMPARED:
        same = [known for known in names if known.strip().casefold() == name.strip().casefold()]
        return f'; the closest is "{same[0]}"' if same else ""
    match = difflib.get_close_matches(name, names, n=1)
    return f'; the closest is "{match[0]}"' if match else ""


def require_beside(folder, names, path):
    """Refuses a folder of arrays whose classes.txt is missing, or is not `names`, which come from `path`."""
    beside = os.path.join(folder, "classes.txt")
    if not os.path.exists(beside):
        raise UserError(
            f"{beside}: not found; convert the data again, so that the arrays keep the class list they were made with"
        )
    check_beside(folder, names, path)


def check_beside(folder, names, path):
    """Refuses a folder whose classes.txt, if it has one, is not `names`, which come from `path`."""
    beside = os.path.join(folder, "classes.txt")
    if os.path.exists(beside):
        check_same(names, path, load(beside), beside)


def keep_beside(folder, names):
    """Keeps the class list that arrays are made with as classes.txt beside them; call it before they get their names.

    Where the folder has one by now, of another command perhaps, it must be the same.
    """
    beside, end = os.path.join(folder, "classes.txt"), time.monotonic() + PATIENCE
    while not os.path.exists(beside):
        try:
            with atomic.WholeFile(beside) as whole:  # nobody else writes it meanwhile
                if not os.path.exists(beside):
                    whole.file.write(("\n".join(names) + "\n").encode())
                    whole.commit()
        except locks.Busy:  # a conversion of another split, which may end at the same moment
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
    check_beside(folder, names, "the class list of this command")
