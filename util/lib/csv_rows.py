"""CSV, and tab-separated text whose first line names the columns: turned into the rows of text that tsv parses, and written.

A line becomes a line, so that line numbers stay, and every rule for text holds. docs/formats.md describes the columns.
"""
import contextlib
import csv
import io
import itertools
import re

from util.lib import class_list, tsv
from util.lib.errors import UserError, counted

COLUMNS = {"key": "key", "class": "class", "label": "label", "feature": "feature"}  # the name of each column, unless flags rename it
WHOLE = {b"1.0": b"1", b"0.0": b"0", b"-1.0": b"-1", b"True": b"1", b"False": b"0"}  # labels as pandas writes floats and bools
csv.field_size_limit(tsv.MAX_LINE)


def is_csv(path):
    """Whether the suffix of a path is that of CSV."""
    return path.endswith((".csv", ".csv.gz"))


def to_text(path, rows):
    """Rows of str as text, in the format that the suffix of a path names: CSV, or columns with tabs between them."""
    if not is_csv(path):
        return "".join("\t".join(row) + "\n" for row in rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def find_column(path, field, name, names):
    """The index of a column in a list of names. field: what it is, for the flag that renames it. Raises UserError if it is not one."""
    if names.count(name) == 1:
        return names.index(name)
    if name in names:
        raise UserError(f'{path}: has {names.count(name)} columns "{name}"; rename all but one')
    hint = class_list.closest(name, names)
    raise UserError(
        f'{path}: has no column "{name}"{hint}; its columns: {", ".join(names)[:200]}; --{field}_column names another for the {field}'
    )


class Header:
    """The first line of a file, which names its columns.

    Args:
        path: of the file; .csv or .csv.gz has commas between the values, any other name tabs. fields: of a tsv.Layout.
        columns: {field: name} as COLUMNS. with_feature: whether the file has the feature too.
    """

    def __init__(self, path, fields, columns, with_feature=True):
        self._separator = b"," if is_csv(path) else b"\t"
        with contextlib.closing(tsv.read_lines(path, "a line of column names, then rows", "reading the header")) as lines:
            number, line = next(lines, (0, b""))
        if number != 1:
            raise UserError(f"{path}:1: is blank, expected the names of the columns")
        cells, why = self._split(line)
        if why:
            raise UserError(f"{path}:1: {why}")
        names = [cell.decode(errors="surrogateescape").strip() for cell in cells]
        self._num_columns = len(names)
        self._front = [find_column(path, field, columns[field], names) for field in fields]
        self._label = fields.index("label") if "label" in fields else None
        self._feature = _feature_columns(path, columns["feature"], names) if with_feature else []

    def as_text(self, data):
        """Turns bytes of whole lines into as many lines of tab-separated text: the columns in front of the feature, and the feature.

        Returns:
            (bytes, {line number from 1: why it cannot be used}), as tsv.Parser.parse takes them.
        """
        texts, reasons = [], {}
        for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
            line = line.removesuffix(b"\r")
            cells, why = self._split(line)
            if line and not why and len(cells) != self._num_columns:
                why = f"{counted(len(cells), 'value')}, expected {self._num_columns}, as in the header"
            row = [] if why or not line else [*(cells[i] for i in self._front), self._feature_text(cells)]
            if row and self._label is not None:
                row[self._label] = WHOLE.get(row[self._label], row[self._label])
            if any(b"\t" in cell or b"\r" in cell for cell in row):
                why = "a tab or carriage return inside a value; remove it"
            if why:
                reasons[number] = why
            texts.append(line.replace(b"\t", b" ") if why else b"\t".join(row))
        return b"\n".join([*texts, b""]), reasons

    def _split(self, line):
        """The values of a line, a list of bytes, and None; or an empty list, and why it has none."""
        if b'"' not in line:
            return line.split(self._separator), None
        try:
            text = line.decode(errors="surrogateescape")
            (cells,) = csv.reader([text], delimiter=self._separator.decode(), strict=True)
        except (csv.Error, ValueError) as error:
            return [], f"quotes that cannot be read ({error}); a row is one line, and a quote inside a value is doubled"
        return [cell.encode(errors="surrogateescape") for cell in cells], None

    def _feature_text(self, cells):
        if len(self._feature) != 1:  # none, or a column per number
            return b",".join([cells[i] for i in self._feature])
        text = cells[self._feature[0]].strip(b"[] ")
        return text.replace(b", ", b",") if b"," in text else b",".join(text.split())


def columns_without_feature(path, layout, description):
    """What tsv.columns_without_feature yields, for a file with a header. The feature need not be there."""
    header = Header(path, layout.fields, COLUMNS, with_feature=False)
    for number, line in itertools.islice(tsv.read_lines(path, layout.columns, description), 1, None):
        text, reasons = header.as_text(line)
        *columns, _ = text.split(b"\t")
        why = reasons.get(1) or tsv.why_not_columns(layout, columns)
        if why:
            raise UserError(f"{path}:{number}: {why}")
        yield number, [column.decode() for column in columns], line


def _feature_columns(path, name, names):
    """The indices of the columns of a feature: the one of that name, or those named f0, f1, ... or by the name and a number."""
    numbered = [re.fullmatch(rf"(?:f|{re.escape(name)}_?)([0-9]{{1,9}})", column) for column in names]
    found = [(int(match[1]), index) for index, match in enumerate(numbered) if match]
    if name in names or not found:
        return [find_column(path, "feature", name, names)]
    if [number for number, _ in found] != list(range(len(found))):
        raise UserError(f"{path}: the columns of the feature are {_listed(names, found)}; expected f0, f1, … in order, each once")
    return [index for _, index in found]


def _listed(names, found):
    shown = [names[index] for _, index in found[:5]]
    return ", ".join(shown) + (", …" if len(found) > len(shown) else "")
