"""Reads rows from parquet files, batch by batch: what pandas, Polars, Spark and `datasets` write.

A module of its own because pyarrow is imported for parquet only.
"""
import bisect
import contextlib
import glob
import itertools
import json
import os
from functools import partial

import numpy as np
from tqdm import tqdm

from util.lib import csv_rows, paths, threads, tsv
from util.lib.errors import UserError

BATCH = 4 << 20  # bytes of features per batch
MOST_ROWS = 4096  # per batch
BUFFER = 1 << 20  # bytes that are read at a time; a row group may hold gigabytes


class ParquetRows:
    """The rows of one parquet file or several, for a rows.RowReader.

    Args:
        path: a file, a pattern of files, or a folder of them, as Spark writes it. parser: a tsv.Parser.
        columns: {field: name of its column}, as csv_rows.COLUMNS. num_workers: threads that check rows; 0: one per core.
        description: of the progress bar.
    """

    def __init__(self, path, parser, *, columns, num_workers=0, description="reading"):
        self.path, self.parser, self.expected = path, parser, parser.layout.columns
        self._columns = {field: columns[field] for field in (*parser.layout.fields, "feature")}
        self._description, self._num_threads = description, threads.count(num_workers)
        self.inputs = _files_of(path)
        sizes = [self._check(name) for name in self.inputs]
        self._starts = [0, *itertools.accumulate(sizes)]  # the rows in front of each file

    def place(self, row):
        """Where a row is, for messages. row: from 1 over all files."""
        file = bisect.bisect_left(self._starts, row) - 1
        return f"{self.inputs[file]}:{row - self._starts[file]}"

    def class_sizes(self):
        """The rows of each class, int64 [num_class], bad ones too: a first pass that reads the column of classes alone."""
        import pyarrow.compute as pc

        ids, sizes = {name.encode(): i for i, name in enumerate(self.parser.class_names)}, np.zeros(len(self.parser.class_names), np.int64)
        for path in self.inputs:
            for batch, names in self._batches(path, ["class"], 1 << 16):
                counts = pc.value_counts(batch.column(0))
                for name, count in zip(_texts(counts.field(0), names), counts.field(1).to_pylist()):
                    if name in ids:
                        sizes[ids[name]] += count
        return sizes

    def blocks(self):
        """Yields tsv.Blocks in the order of the files, their lines counted from 1 over all of them."""
        rows = 0
        with tqdm(total=self._starts[-1], desc=self._description, unit="row", unit_scale=True, disable=None, delay=1) as bar:
            batches = (batch for path in self.inputs for batch in self._batches(path, list(self._columns)))
            for batch in batches:  # until one has set the width
                yield (block := _shifted(self._parse(batch), rows))
                rows += block.num_lines
                bar.update(block.num_lines)
                if self.parser.width:
                    break
            decoded = threads.in_order(lambda _: next(batches, None), itertools.count(), 1)  # in a thread of its own: it takes longest
            for block in threads.in_order(self._parse, iter(partial(next, decoded), None), self._num_threads):
                yield _shifted(block, rows)
                rows += block.num_lines
                bar.update(block.num_lines)

    def _parse(self, batch):
        """A tsv.Block of a batch of _batches, its lines counted from 1."""
        fronts = self._fronts(*batch)
        text, reasons = tsv.joined_columns(fronts)
        return self.parser.parse(text, reasons, _numbers(batch[0].column(len(fronts))))

    def _fronts(self, batch, class_names):
        """The columns of a batch of _batches in front of the feature, lists of bytes."""
        fields = enumerate(self.parser.layout.fields)
        return [_texts(batch.column(i), class_names if field == "class" else None) for i, field in fields]

    def columns_without_feature(self):
        """Yields the columns in front of the feature of every row, a list of str; no feature is read."""
        numbers = itertools.count(1)
        for path in self.inputs:
            for batch in self._batches(path, self.parser.layout.fields, 1 << 16):
                for columns, number in zip(zip(*self._fronts(*batch)), numbers):
                    why = tsv.why_not_columns(self.parser.layout, columns)
                    if why:
                        raise UserError(f"{self.place(number)}: {why}")
                    yield [column.decode() for column in columns]

    def _open(self, file, path):
        """A pyarrow.parquet.ParquetFile on an open file."""
        from pyarrow import parquet

        with _readable(path):
            return parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)

    def _check(self, path):
        """Checks the columns of a file. Returns its number of rows."""
        with paths.open_input(path, f"a parquet file ({self.expected})") as raw:
            opened = self._open(raw, path)
            schema = opened.schema_arrow
            for field, name in self._columns.items():
                csv_rows.find_column(path, field, name, schema.names)
                kind = schema.field(name).type
                if not (_is_feature(kind) if field == "feature" else _is_text(kind, field)):
                    vector = "; of a vector, Spark's vector_to_array makes one" if _is_struct(kind) else ""
                    expected = {"feature": f"lists of float16, float32 or float64{vector}", "label": "whole numbers"}.get(field, "text")
                    raise UserError(f'{path}: column "{name}" holds {str(kind)[:80]}, expected {expected}')
            return opened.metadata.num_rows

    def _batches(self, path, fields, rows=None):
        """Yields (pyarrow.RecordBatch of some columns, the names that a column of class numbers stands for or None) of a file.

        Args:
            rows: per batch; None: so many that their features have about BATCH bytes.
        """
        names = [self._columns[field] for field in fields]
        with paths.open_input(path, "a parquet file") as raw, _readable(path):
            opened = self._open(raw, path)
            class_names = _label_names(opened.schema_arrow, self._columns["class"])
            for batch in opened.iter_batches(rows or self._rows_per_batch(opened), columns=names):
                yield batch.select(names), class_names

    def _rows_per_batch(self, opened):
        """Rows whose features have about BATCH bytes, if all are as wide as the first."""
        first = next(opened.iter_batches(1, columns=[self._columns["feature"]]), None)
        width = len(_numbers(first.column(0)).values) if first else 0
        return min(max(BATCH // (4 * max(width, 1)), 16), MOST_ROWS)


def _files_of(path):
    """The files that a path names: itself, those of a folder, or those that a pattern matches, sorted."""
    if os.path.isdir(path):
        path = os.path.join(glob.escape(path), "*.parquet")
    found = [path] if os.path.exists(path) or not glob.has_magic(path) else sorted(glob.glob(path))
    if not found:
        raise UserError(f"{path}: no file matches; give a pattern of parquet files, in quotes")
    return found


@contextlib.contextmanager
def _readable(path):
    """Raises a UserError about `path` where pyarrow cannot read it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        why = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: is not a parquet file, or a damaged one ({why}); write it again") from None


def _shifted(block, rows):
    """A tsv.Block whose lines are counted from a row further up."""
    return block._replace(lines=block.lines + rows, rejected=[row._replace(line=row.line + rows) for row in block.rejected])


def _is_feature(kind):
    """Whether a type of pyarrow is that of a feature."""
    import pyarrow as pa

    kind = getattr(kind, "storage_type", kind)
    is_list = any(is_kind(kind) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))
    return is_list and pa.types.is_floating(kind.value_type)


def _is_struct(kind):
    """Whether a type of pyarrow is one of structs, as Spark keeps the vectors of its machine learning."""
    from pyarrow import types

    return types.is_struct(kind)


def _is_text(kind, field):
    """Whether a type of pyarrow is one of texts or whole numbers; a verification label may be a bool, or a float as pandas has it."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return texts or types.is_integer(kind) or (field == "label" and (types.is_floating(kind) or types.is_boolean(kind)))


def _texts(array, names=None):
    """A column as a list of bytes, empty for null. names: what whole numbers from 0 stand for, or None."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    if pa.types.is_floating(array.type):
        return [b"" if x is None else f"{x:g}".encode() for x in array.to_pylist()]
    if pa.types.is_integer(array.type):
        known = dict(enumerate(names or []))
        return [b"" if x is None else known.get(x, str(x).encode()) for x in array.to_pylist()]
    return [x or b"" for x in array.cast(pa.large_binary()).to_pylist()]


def _numbers(array):
    """The tsv.Numbers of a column of lists; null is an empty list, and nan inside one."""
    import pyarrow.compute as pc

    array = getattr(array, "storage", array)
    sizes = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return tsv.Numbers(array.flatten().to_numpy(zero_copy_only=False), np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))


def _label_names(schema, column):
    """The names that the numbers of a column stand for, as `datasets` keeps them, a list of bytes; None if it keeps none."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
        return [name.encode() for name in names]
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        return None
