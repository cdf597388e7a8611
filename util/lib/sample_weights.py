"""The class and the weight with which each row trains a classifier: from scores, a file, verified rows and a cleaned list.

Rows are joined by their keys.
"""
import csv
import gzip
import itertools
import zlib

import numpy as np

from util.lib import arrays, atomic, class_list, command, csv_rows, metrics, paths, score_table, tsv
from util.lib.errors import UserError, counted, warn
from util.lib.key_index import KeyIndex, check_same_class

LIST_COLUMNS = ("key", "given_class", "suggested_class", "action", "score", "reason")  # of a cleaned list
READ_COLUMNS = LIST_COLUMNS[:4]
ACTIONS = ("keep", "relabel", "recheck", "drop")
LIST_REMEDY = "give the --list_file of util/export_weights.py"


def taken_for_correct(table, threshold=None):
    """Which labels count as correct, bool [N].

    Args:
        table: score_table.ScoreTable. threshold: float, or None: its verdicts decide, or 0.1 where it has none.
    """
    if threshold is None and table.verdict:
        return np.array([verdict == score_table.CORRECT for verdict in table.verdict])
    return table.score >= (metrics.FIXED_THRESHOLD if threshold is None else threshold)


def of_scores(scores, kind, is_correct):
    """Weights of rows (paper, section 3.4), float32 [N]; 0 for rows without a score (NaN).

    Args:
        scores: float [N]. kind: `soft`, max(0, score), or `hard`, 1 or 0. is_correct: bool [N], the label is taken for correct.
    """
    return np.float32(np.nan_to_num(np.maximum(scores, 0)) if kind == "soft" else is_correct)


def write(path, weights):
    """Writes float32 [N] weights as .npy, or as text with one per line."""
    if path.endswith(".npy"):
        atomic.write_npy(path, weights)
    else:
        atomic.write_text(path, "".join(f"{w:.9g}\n" for w in weights.tolist()))


def read(path, num_rows, array_path):
    """Reads what write() wrote for the rows of an array. Returns float32 [num_rows]; raises UserError for other numbers of rows."""
    remedy = "make it with util/export_weights.py from the scores of that array"
    if path.endswith(".npy"):
        weights = np.array(arrays.open_array(path, "(num_samples,) weights", "util/export_weights.py", ndim=1))
    else:
        weights = np.array([_weight(path, *numbered) for numbered in enumerate(_lines(path), 1)], np.float32)
    if len(weights) != num_rows:
        raise UserError(f"{path}: {len(weights)} weights for {num_rows} rows of {array_path}; {remedy}")
    bad = ~np.isfinite(weights) | (weights < 0)
    if bad.any():
        raise UserError(f"{path}: weight {weights[np.argmax(bad)]} of row {np.argmax(bad)}, expected numbers from 0 on; {remedy}")
    return weights


def _lines(path):
    with paths.open_input(path, "weights, one per line") as raw:
        try:
            return (gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw).read().decode().split()
        except (EOFError, UnicodeDecodeError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: cannot read the weights: {error}; make it with util/export_weights.py") from None


def _weight(path, number, text):
    weight = command.parse_number(text)
    if weight is None:
        raise UserError(f'{path}:{number}: "{text[:40]}", expected a weight, a number; make it with util/export_weights.py')
    return weight


class Rows:
    """Rows with what a classifier is to learn from each.

    Args:
        keys: list of str [N]. given: int32 [N], the given classes. class_names: list of str. path: where the rows are, for messages.

    Attributes:
        keys, given: as above. class_ids: int32 [N], to learn, the given ones at first. weights: float32 [N], 1 at first.
    """

    def __init__(self, keys, given, class_names, path):
        self.keys, self.given, self.class_ids, self.weights = keys, given, given.copy(), np.ones(len(keys), np.float32)
        self._names, self._path, self._index = class_names, path, KeyIndex(keys, path)

    def weight_by_scores(self, path, kind, score=None):
        """Weights the rows by a score file. kind: `soft` or `hard`, by the verdicts. score: column of a table, or None: the decisive."""
        table = score_table.read(path, score)
        if kind == "hard" and not table.verdict:
            raise UserError(f"{path}: has no verdicts, which --weights=hard needs; run inference.py with --output_format=tsv")
        found = of_scores(table.score, kind, taken_for_correct(table))
        if table.key is None:
            if len(found) != len(self.keys):
                raise UserError(f"{path}: {len(found)} scores for {len(self.keys)} rows of {self._path}; score that array")
            self.weights = found
            return
        rows = self._index.rows_of(table.key, path)
        weights = np.full(len(self.keys), -1, np.float32)
        weights[rows[rows >= 0]] = found[rows >= 0]
        missing = np.flatnonzero(weights < 0)
        if len(missing):
            raise UserError(
                f'{path}: has no score of "{self.keys[missing[0]][:80]}", which {self._path} has, nor of {len(missing) - 1} other rows; '
                "score that array"
            )
        self._check_given(rows, table.class_name, path, itertools.count(table.first))
        unscored = int(np.isnan(table.score[rows >= 0]).sum())
        if unscored:
            warn(f"{path}: {counted(unscored, 'row')} without a score: weight 0")
        self.weights = weights

    def _check_given(self, rows, names, path, lines):
        """Raises UserError where a file has another class for a row.

        Args:
            rows: int [M], -1 for none. names: list of str [M]. lines: iterable of int, their lines, for messages.
        """
        for row, name, number in zip(rows.tolist(), names, lines):
            if row >= 0:
                check_same_class(self.keys[row], name, self._names[self.given[row]], f"{path}:{number}", self._path)

    def relabel(self, path):
        """Gives the rows that a cleaned list relabels its suggested class and the weight 1, and those that it drops the weight 0.

        Returns:
            (number of rows relabelled, number dropped).
        """
        columns = read_list(path)
        rows = self._index.rows_of(columns["key"], path)
        self._check_given(rows, columns["given_class"], path, columns["line"])
        id_of = {name: i for i, name in enumerate(self._names)}
        done = {"relabel": 0, "drop": 0}
        for number, row, name, action in zip(columns["line"], rows, columns["suggested_class"], columns["action"]):
            if row < 0 or action not in done:
                continue
            if action == "relabel" and name not in id_of:
                raise UserError(f'{path}:{number}: class "{name[:40]}" is not in the class list{class_list.closest(name, self._names)}')
            if action == "relabel":
                self.class_ids[row] = id_of[name]
            self.weights[row] = action == "relabel"
            done[action] += 1
        return done["relabel"], done["drop"]

    def verify(self, verified):
        """Weights verified rows by their label, 1 or 0, and gives correct ones their given class back. Returns how many.

        A mislabeled row that is relabelled keeps its new class: the label was about the given one.

        Args:
            verified: arrays.FeatureArray with labels.
        """
        rows = self._index.rows_of(verified.sample_keys(), verified.path)
        self._check_given(rows, [self._names[c] for c in verified.class_ids], arrays.keys_path(verified.path), itertools.count(1))
        known = rows >= 0
        if not known.all():
            warn(f"{verified.path}: {counted(int((~known).sum()), 'row')} that {self._path} does not have: left out")
        correct, wrong = (rows[known & (verified.labels == label)] for label in (1, 0))
        self.class_ids[correct], self.weights[correct] = self.given[correct], 1
        self.weights[wrong[self.class_ids[wrong] == self.given[wrong]]] = 0
        return int(known.sum())

    def leave_out(self, keys, path):
        """Gives the rows with some keys the weight 0. Returns how many there are."""
        rows = self._index.rows_of(keys, path)
        self.weights[rows[rows >= 0]] = 0
        return int((rows >= 0).sum())

    def balance(self):
        """Scales the weights so that each class that has any has the same sum."""
        sums = np.bincount(self.class_ids, self.weights, len(self._names))
        self.weights *= np.divide(sums.sum() / np.count_nonzero(sums), sums, out=np.zeros_like(sums), where=sums > 0)[self.class_ids]


def read_list(path):
    """Reads a cleaned list, whose first line names its columns: text or CSV, .gz too.

    Returns:
        {name: list of str} of READ_COLUMNS, and `line`: list of int, from 1. Raises UserError where a column is missing, or an
        action is unknown.
    """
    rows = _list_rows(path)
    _, header = next(rows, (1, []))
    for name in READ_COLUMNS:
        if header.count(name) != 1:
            raise UserError(f'{path}:1: no column "{name}", expected a header with {", ".join(READ_COLUMNS)}; {LIST_REMEDY}')
    found = {name: [] for name in ("line", *READ_COLUMNS)}
    for number, values in rows:
        if len(values) != len(header):
            raise UserError(f"{path}:{number}: {counted(len(values), 'column')}, expected {len(header)} as in the header; {LIST_REMEDY}")
        found["line"].append(number)
        for name in READ_COLUMNS:
            found[name].append(values[header.index(name)])
        if found["action"][-1] not in ACTIONS:
            raise UserError(f'{path}:{number}: action "{found["action"][-1][:40]}", expected {", ".join(ACTIONS)}; {LIST_REMEDY}')
    return found


def _list_rows(path):
    """Yields (line number from 1, the values of the line, a list of str) of a cleaned list."""
    for number, line in tsv.read_lines(path, ", ".join(LIST_COLUMNS), "reading the list"):
        text = line.decode()
        try:
            values = next(csv.reader([text], strict=True)) if csv_rows.is_csv(path) else text.split("\t")
        except csv.Error as error:
            raise UserError(f"{path}:{number}: quotes that cannot be read ({error}); {LIST_REMEDY}") from None
        yield number, values
