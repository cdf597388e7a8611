"""Reads rows whose features are in a .npy or .npz file, and whose other columns are in a table beside it.

A module of its own because of how it reads: never unpickling, and as a stream, since a member of an archive cannot be mapped.
"""
import contextlib
import itertools
import os
import zipfile
import zlib
from functools import partial

import numpy as np

from util.lib import arrays, csv_rows, paths, threads, tsv, tsv_kernel
from util.lib.errors import UserError

BLOCK = 4 << 20  # bytes of features per block
MOST_ROWS = 4096  # per block
EXPECTED = "(rows, numbers) features as float16, float32 or float64"


class ArrayRows:
    """The rows of an array of features and of a table with a header, for a rows.RowReader.

    Args:
        path: .npy, or .npz with one array or one that columns["feature"] names. table: its rows in the same order, .csv or
            tab-separated. parser: a tsv.Parser. columns: {field: name}, as csv_rows.COLUMNS. num_workers: threads that check rows.
    """

    def __init__(self, path, table, parser, *, columns, num_workers=0):
        self.path, self.parser, self.inputs, self.expected = table, parser, [path, table], parser.layout.columns
        self._features, self._member, self._num_threads = path, columns["feature"], threads.count(num_workers)
        self._header = csv_rows.Header(table, parser.layout.fields, columns, with_feature=False)
        with self._open() as (_, self._shape, self._dtype):
            pass

    def place(self, line):
        """Where a row is, for messages. line: of a Block."""
        return f"{self.path}:{line}"

    def class_sizes(self):
        """The rows of each class, int64 [num_class], bad ones too, by a first pass over the table. None for a pipe or gzip."""
        if not os.path.isfile(self.path) or self.path.endswith(".gz"):
            return None
        sizes = [0] * len(self.parser.class_names)
        for part in iter(partial(_take, self._lines(), MOST_ROWS), []):
            text, _ = self._header.as_text(b"\n".join(line for _, line in part))
            self.parser.count_classes(text, sizes)
        return np.array(sizes)

    def blocks(self):
        """Yields tsv.Blocks in the order of the table."""
        tsv_kernel.keep_freed_memory()
        pieces = self._pieces()
        for piece in pieces:  # until one has set the width
            yield self._parse(piece)
            if self.parser.width:
                break
        yield from threads.in_order(self._parse, pieces, self._num_threads)

    def _pieces(self):
        """Yields (line numbers, lines, their features as an array)."""
        num_rows, width = self._shape
        size = min(max(BLOCK // (self._dtype.itemsize * width), 16), MOST_ROWS)
        done = 0
        with self._open() as (file, *_):
            for part in iter(partial(_take, self._lines(), size), []):
                if done + len(part) <= num_rows:
                    yield *zip(*part), self._read(file, len(part))
                done += len(part)
        if done != num_rows:
            raise UserError(f"{self.path}: {done} rows for the {num_rows} features of {self._features}; give the table of that array")

    def _lines(self):
        """The lines of the table below its header, as tsv.read_lines yields them."""
        return itertools.islice(tsv.read_lines(self.path, self.expected, "reading"), 1, None)

    def _parse(self, piece):
        """A tsv.Block of a piece of _pieces."""
        numbers, lines, features = piece
        text, reasons = self._header.as_text(b"\n".join(lines))
        starts = np.arange(len(features) + 1) * features.shape[1]
        block = self.parser.parse(text, reasons, tsv.Numbers(features.ravel(), starts))
        rejected = [row._replace(line=numbers[row.line - 1]) for row in block.rejected]
        return block._replace(lines=np.array(numbers)[block.lines - 1], rejected=rejected)

    @contextlib.contextmanager
    def _open(self):
        """The features: (a binary file at the first number, the array's shape, its dtype). Raises UserError for any other content."""
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(paths.open_input(self._features, EXPECTED))
            with self._readable():
                size = os.fstat(raw.fileno()).st_size
                file, size = self._open_member(raw, stack) if self._features.endswith(".npz") else (raw, size)
                shape, dtype = arrays.read_header(file)
                if len(shape) != 2 or 0 in shape or dtype.kind != "f" or dtype.itemsize > 8:
                    raise UserError(f"{self._features}: found {dtype} {shape}, expected {EXPECTED}, in C order")
                if file.tell() + shape[0] * shape[1] * dtype.itemsize > size:
                    raise UserError(f"{self._features}: is cut off, expected {shape[0]} rows of {shape[1]} numbers; write it again")
            with self._readable():
                yield file, shape, dtype

    def _open_member(self, raw, stack):
        """The member of an archive that holds the features: (a binary file, closed with the stack; its size in bytes)."""
        archive = stack.enter_context(zipfile.ZipFile(raw))
        members = archive.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        member = members[0 if len(names) == 1 else csv_rows.find_column(self._features, "feature", self._member, names)]
        return stack.enter_context(archive.open(member)), member.file_size

    @contextlib.contextmanager
    def _readable(self):
        try:
            yield
        except (*arrays.UNREADABLE, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            why = " ".join(str(error).split())[:100]
            raise UserError(f"{self._features}: cannot be read ({why}); expected {EXPECTED}, never pickled; write it again") from None

    def _read(self, file, count):
        """The next rows of the features, float [count, D]."""
        rows = np.empty((count, self._shape[1]), self._dtype)
        left = memoryview(rows.reshape(-1).view(np.uint8))
        while left:
            size = file.readinto(left)
            if not size:
                raise UserError(f"{self._features}: was cut off while it was read; write it again")
            left = left[size:]
        return rows


def _take(items, count):
    """The next `count` of some items, fewer at their end: a list."""
    return list(itertools.islice(items, count))
