"""Joins files by the keys of their rows, and refuses keys that cannot be joined."""
import numpy as np

from util.lib import arrays
from util.lib.errors import UserError, counted, warn


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


def rows_of_verified(array, class_names, table, path):
    """Where the rows of an array of verified rows are in a table of scores.

    Args:
        array: arrays.FeatureArray. class_names: list of str, its classes. table: {column: list}, with key and class. path: of the table.

    Returns:
        (int [V], rows of the table; int [V], which rows of the array they are). Warns of rows that the table does not have.
    """
    keys = array.sample_keys()
    rows = KeyIndex(table["key"], path).rows_of(keys, array.path)
    known = np.flatnonzero(rows >= 0)
    if len(known) < len(keys):
        warn(f"{array.path}: {counted(len(keys) - len(known), 'row')} without a score in {path}: left out")
    for i in known:
        name = class_names[array.class_ids[i]]
        check_same_class(keys[i], name, table["class"][rows[i]], f"{arrays.keys_path(array.path)}:{i + 1}", path)
    return rows[known], known
