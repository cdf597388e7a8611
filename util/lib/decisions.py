"""The decisions file: what people said about rows, a line per decision, appended and never changed (docs/formats.md).

    log = decisions.Log("verified.tsv")
    log.append([decisions.make("a.png", "ramen", "0", "ann")])
    decisions.load("verified.tsv").resolve()
"""
import collections
import contextlib
import datetime
import os
import re
from typing import NamedTuple

from util.lib import atomic, locks, paths, tsv
from util.lib.errors import UserError, counted, reason, warn

COLUMNS = ("key", "class", "label", "author", "time", "right class")
CORRECT, MISLABELED, UNCLEAR, UNDO = LABELS = ("1", "0", "-1", "undo")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
MOST_OF_AN_AUTHOR = 80  # characters


class Decision(NamedTuple):
    """One line of the file, its columns as text. label: one of LABELS. right_class: empty unless a row is to be relabelled."""

    key: str
    class_name: str
    label: str
    author: str
    time: str
    right_class: str = ""


class Resolved(NamedTuple):
    """What people say together about a row. label: 1, 0 or -1. right_class: str, empty for none. authors: list of str. tied: bool."""

    label: int
    right_class: str
    authors: list
    tied: bool


def make(key, class_name, label, author, right_class=""):
    """A Decision of now."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return Decision(key, class_name, label, author, now.strftime("%Y-%m-%dT%H:%M:%SZ"), right_class)


def why_not(decision):
    """Why a Decision cannot be one, in words; None if it can."""
    if not decision.key or not decision.class_name:
        return f"an empty {'class' if decision.key else 'key'}"
    if decision.label not in LABELS:
        return f'label "{decision.label[:40]}", expected 1 (correct), 0 (mislabeled), -1 (unclear) or undo'
    if not decision.author.strip() or not decision.author.isprintable() or len(decision.author) > MOST_OF_AN_AUTHOR:
        return f'author "{decision.author[:40]}", expected 1 to {MOST_OF_AN_AUTHOR} printable characters'
    if not TIME.fullmatch(decision.time):
        return f'time "{decision.time[:40]}", expected UTC such as 2024-05-31T12:00:00Z'
    if decision.right_class and (decision.label != MISLABELED or decision.right_class == decision.class_name):
        return f'right class "{decision.right_class[:40]}", expected none unless the label is 0, and another one than the given class'
    broken = next((text for text in decision if re.search(r"[\t\r\n\0]", text)), None)
    return None if broken is None else "a tab, a NUL or the end of a line inside a column"


class Tally:
    """The decisions that stand.

    Attributes:
        standing: {(key, class name): {author: list of Decision}}, those that no `undo` has taken back, oldest first.
        in_order: {author: {((key, class name), how many of the author on the row): None}}, one per standing decision, oldest first.
        seen: set of the Decisions there ever were, those that were taken back too.
    """

    def __init__(self):
        self.standing, self.in_order, self.seen = {}, {}, set()

    def add(self, decision):
        """Adds a Decision, or takes the author's last one on the row back. Raises ValueError where there is none."""
        row, author = decision[:2], decision.author
        by_author = self.standing.get(row, {})
        if decision.label != UNDO:
            own = self.standing.setdefault(row, by_author).setdefault(author, [])
            own.append(decision)
            self.in_order.setdefault(author, {})[row, len(own)] = None
            self.seen.add(decision)
            return
        if author not in by_author:
            raise ValueError(f'undo, but no decision of "{author}" on "{decision.key}" stands')
        del self.in_order[author][row, len(by_author[author])]
        by_author[author].pop()
        if not by_author[author]:
            del by_author[author]
        if not by_author:
            del self.standing[row]

    def merge(self, other):
        """Adds the decisions that stand in another Tally."""
        for by_author in other.standing.values():
            for own in by_author.values():
                for decision in own:
                    self.add(decision)
                self.standing[own[0][:2]][own[0].author].sort(key=lambda decision: decision.time)

    def resolve(self):
        """What the last decisions of all authors say together: {(key, class name): Resolved}."""
        return {row: _resolve(by_author) for row, by_author in self.standing.items()}


def _resolve(by_author):
    last = [own[-1] for own in by_author.values()]
    label = _majority([decision.label for decision in last])
    right = _majority([decision.right_class for decision in last if decision.label == label])
    return Resolved(int(label or UNCLEAR), right or "", list(by_author), label is None)


def _majority(values):
    """The most common value; None where two are equally common, or there is none."""
    ranked = collections.Counter(values).most_common(2)
    return ranked[0][0] if len(ranked) == 1 or (ranked and ranked[0][1] > ranked[1][1]) else None


def in_words(resolved):
    """A line about decisions. resolved: dict of Resolved."""
    labels = [r.label for r in resolved.values()]
    text = f"{counted(len(labels), 'row')} decided: {labels.count(1)} correct, {labels.count(0)} mislabeled, {labels.count(-1)} unclear"
    tied = sum(r.tied for r in resolved.values())
    return text + (f" ({tied} of them since people disagree)" if tied else "")


def load(path):
    """Reads a decisions file, all of it. Returns a Tally. A cut-off last line is left out, with a warning."""
    with paths.open_input(path, f"decisions ({', '.join(COLUMNS)})") as file:
        return _parse(path, file.read())[0]


def _parse(path, data):
    """(Tally, bytes of whole lines) of the bytes of a decisions file."""
    whole, tally = data.rfind(b"\n") + 1, Tally()
    for number, line in enumerate(data[:whole].removeprefix(tsv.BOM).split(b"\n"), 1):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        why = tsv.why_not_text(line, ", ".join(COLUMNS))
        columns = [] if why else line.decode().split("\t")
        if not why and len(columns) != len(COLUMNS):
            why = f"{counted(len(columns), 'tab-separated column')}, expected {len(COLUMNS)} ({', '.join(COLUMNS)})"
        why = why or why_not(Decision(*columns))
        try:
            if not why:
                tally.add(Decision(*columns))
        except ValueError as error:
            why = str(error)
        if why:
            raise UserError(f"{path}:{number}: {why}; mend or remove this line")
    if whole < len(data):
        warn(f"{path}: its last line has no end and is left out, as a killed process leaves it; if it is whole, end it with a newline")
    return tally, whole


class Log:
    """Appends to a decisions file, which no other process writes until close().

    Attributes:
        tally: the Tally of the whole file, kept up to date.
    """

    def __init__(self, path):
        atomic.check_output(path)
        atomic.make_folder(os.path.dirname(path))
        self.path = path
        try:
            self._lock = locks.Lock(path)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{path}: cannot write here: {reason(error)}; choose another folder") from None
        self._file.seek(0)
        data = self._file.read()
        self.tally, self._end = _parse(path, data)
        self._size = len(data)

    def append(self, decisions):
        """Writes decisions to disk, all or none, and adds them to the tally. Raises UserError where that fails."""
        self._check_unaltered()
        text = "".join("\t".join(decision) + "\n" for decision in decisions).encode()
        try:
            self._file.truncate(self._end)  # takes a line off that a killed process has cut off
            self._file.write(text)
            os.fsync(self._file.fileno())
            if os.fstat(self._file.fileno()).st_size != self._end + len(text):
                raise OSError("only a part was written")
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
                self._size = self._end
            raise UserError(f"{self.path}: cannot write: {reason(error)}; what was there is as before, make room") from None
        self._end += len(text)
        self._size = self._end
        for decision in decisions:
            self.tally.add(decision)

    def _check_unaltered(self):
        """Raises UserError where somebody else has changed, replaced or removed the file since."""
        try:
            now = os.stat(self.path)
        except OSError:
            now = None
        if now is None or now.st_size != self._size or not os.path.samestat(now, os.fstat(self._file.fileno())):
            raise UserError(f"{self.path}: was changed by something else since this command opened it; end the command and start it again")

    def close(self):
        """Lets others have the file."""
        self._file.close()
        self._lock.release()
