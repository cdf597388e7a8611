"""Joins files by the keys of their rows, and refuses keys that cannot be joined."""
import itertools

import numpy as np

from util.lib import arrays, csv_rows, tsv
from util.lib.errors import UserError, counted, warn


def keys_of_verified_rows(path):
    """The keys in a file of verified rows, a list of str: of an array those beside it, of a CSV its column key, of text the first."""
    if path.endswith(".npy"):
        array = arrays.open_array(path, "verified rows", "util/convert_data.py")
        return arrays.load_keys(path, len(array))
    lines = tsv.read_lines(path, "key, …", "reading verified rows")
    if csv_rows.is_csv(path):
        header = csv_rows.Header(path, ("key",), csv_rows.COLUMNS, with_feature=False)
        lines = ((number, header.as_text(line)[0]) for number, line in itertools.islice(lines, 1, None))
    return [line.split(b"\t")[0].decode() for _, line in lines]


class KeyIndex:
    """Finds rows by their keys. keys: list of str [N], of the rows. source: the file that they are of, for messages."""

    def __init__(self, keys, source):
        self.keys, self._source = keys, source
        self._row_of = None

    def rows_of(self, keys, source):
        """The row of each of some keys: list of str [M] -> int [M], -1 where there is none. source: of these keys, for messages.

        Raises UserError where rows share a key, unless both files have the same keys in the same order.
        """
        if keys == self.keys:
            return np.arange(len(keys))
        if self._row_of is None:
            self._row_of = {key: row for row, key in enumerate(self.keys)}
        if len(self._row_of) < len(self.keys):
            twice = next(key for row, key in enumerate(self.keys) if self._row_of[key] != row)
            raise UserError(
                f'{self._source}: has the key "{twice[:80]}" twice, so {source}, whose rows are others, cannot be joined with it; '
                "give each row a key of its own, and make both files again"
            )
        return np.array([self._row_of.get(key, -1) for key in keys], np.int64)


def check_same_class(key, name, other_name, source, other_source):
    """Raises UserError unless two files give a key the same class. source: file and line of `name`, for messages."""
    if name != other_name:
        raise UserError(
            f'{source}: class "{name[:40]}" of "{key[:80]}", but "{other_name[:40]}" in {other_source}; use files that were made from '
            "the same rows"
        )


def rows_in_table(array, class_names, keys, names, path):
    """Where the rows of an array are in a table with their given classes: int [N], -1 where there is none.

    Args:
        array: arrays.FeatureArray with keys. class_names: list of str. keys, names: list of str [M], key and class of the table's rows.
        path: of the table, for messages. Raises UserError where the two give a row another class.
    """
    own = array.sample_keys()
    given = np.flatnonzero([bool(name) for name in names])  # bad rows that were skipped have no class, and perhaps no key
    found = KeyIndex([keys[i] for i in given], path).rows_of(own, array.path)
    found[found >= 0] = given[found[found >= 0]]
    for i in np.flatnonzero(found >= 0):
        source = f"{arrays.keys_path(array.path)}:{i + 1}"
        check_same_class(own[i], class_names[array.class_ids[i]], names[found[i]], source, path)
    return found


def rows_of_verified(verified, class_names, table, path):
    """rows_in_table() of verified rows, without those that are in no table, of which it warns.

    Args:
        verified: arrays.FeatureArray with labels. class_names: list of str. table: columns, as score_table.read_columns gives them.
        path: of the table, for messages.

    Returns:
        (rows of the table, int [V'], which verified rows these are, int [V']).
    """
    rows = rows_in_table(verified, class_names, table["key"], table["class"], path)
    known = np.flatnonzero(rows >= 0)
    if len(known) < len(rows):
        warn(f"{verified.path}: {counted(len(rows) - len(known), 'row')} without a score in {path}: left out")
    return rows[known], known
