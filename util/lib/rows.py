"""Reads rows of any format: what happens to bad ones is the same for all of them."""
import contextlib
import os

import numpy as np

from util.lib import array_rows, atomic, csv_rows, parquet_rows, tsv
from util.lib.errors import UserError, counted, warn

LOOK_AHEAD = 1000  # rows read behind a bad one, to report how many more there are


def open_source(path, parser, *, columns, features=None, table=None, num_workers=0, block_size=tsv.BLOCK, description="reading"):
    """Opens rows in the format that the suffix of their path names, as a source for RowReader.

    Args:
        path: of rows with their features. features, table: None, or the two files that hold them instead.
        parser: a tsv.Parser. columns: {field: name of its column}, as csv_rows.COLUMNS; not for tab-separated rows.
        num_workers: threads; 0: one per core. block_size: bytes of text per block. description: of the progress bar.

    Returns:
        A source: an object with path, inputs (all its files), parser and expected, and the methods blocks, place and class_sizes.
    """
    if features or table:
        if path or not (features and table):
            raise UserError("--features and --table belong together, and replace the file of rows; give both, or neither")
        return array_rows.ArrayRows(features, table, parser, columns=columns, num_workers=num_workers)
    if path.endswith(".parquet"):
        return parquet_rows.ParquetRows(path, parser, columns=columns, num_workers=num_workers, description=description)
    header = csv_rows.Header(path, parser.layout.fields, columns) if csv_rows.is_csv(path) else None
    return tsv.TextRows(path, parser, num_workers=num_workers, block_size=block_size, description=description, header=header)


def columns_without_feature(path, layout, description):
    """Yields the columns in front of the feature of every row, a list of str. path, description: of open_source. layout: a tsv.Layout."""
    if path.endswith(".parquet"):
        parser = tsv.Parser(layout, [])
        yield from parquet_rows.ParquetRows(path, parser, columns=csv_rows.COLUMNS).columns_without_feature()
        return
    for _, columns, _ in (csv_rows if csv_rows.is_csv(path) else tsv).columns_without_feature(path, layout, description):
        yield columns


class RowReader:
    """Iterates over the tsv.Blocks of a source of rows, once.

    Args:
        source: of open_source.
        on_bad_row: "error" stops at the first bad row, "skip" leaves bad rows out and writes them to rejected_path.
        max_rows: stop after this many rows, good or bad; None: read all.

    Attributes:
        num_rows, num_rejected, num_dropped: rows read so far that are good, bad, or labelled -1.
    """

    def __init__(self, source, *, on_bad_row="error", rejected_path=None, max_rows=None):
        self.source, self.on_bad_row, self.rejected_path, self.max_rows = source, on_bad_row, rejected_path, max_rows
        self.num_rows = self.num_rejected = self.num_dropped = 0

    def __iter__(self):
        first_bad = None
        with contextlib.ExitStack() as stack:
            rejected = None
            if self.on_bad_row == "skip":
                rejected = stack.enter_context(atomic.WholeFile(self.rejected_path))
            blocks = stack.enter_context(contextlib.closing(self.source.blocks()))
            for block in blocks:
                block = self._cut(block)
                for row in block.rejected:
                    if rejected is None:
                        self._stop(row, block, blocks)
                    first_bad = first_bad or row
                    number = self.source.place(row.line).removeprefix(f"{self.source.path}:")
                    rejected.file.write(f"{number}\t{row.reason}\t".encode() + row.raw[:tsv.MAX_LINE] + b"\n")
                self.num_rows += len(block.keys)
                self.num_rejected += len(block.rejected)
                self.num_dropped += block.num_dropped
                yield block
                if self.num_rows + self.num_rejected == self.max_rows:
                    break
            if first_bad and not self.num_rows:
                none = f"none of the {self.num_rejected} rows can be used"
                raise UserError(f"{self.source.place(first_bad.line)}: {first_bad.reason} ({none})")
            if self.num_rejected > self.num_rows + self.num_dropped:
                raise UserError(
                    f"{self.source.place(first_bad.line)}: {first_bad.reason} ({self.num_rejected} of "
                    f"{self.num_rejected + self.num_rows + self.num_dropped} rows cannot be used, which is too many to skip)"
                )
            if not self.num_rows + self.num_dropped:
                raise UserError(f"{self.source.path}: has no rows, expected {self.source.expected}")
            if self.num_rejected:
                rejected.commit()
                bad = counted(self.num_rejected, "bad row")
                warn(f"{self.source.path}: {bad} left out; {self.rejected_path} has each with its reason")
            elif self.rejected_path:
                with contextlib.suppress(FileNotFoundError):  # of an earlier run
                    os.remove(self.rejected_path)

    def _cut(self, block):
        """A block without the rows beyond max_rows."""
        lines = np.sort(np.concatenate([block.lines, [row.line for row in block.rejected]]))
        left = len(lines) if self.max_rows is None else self.max_rows - self.num_rows - self.num_rejected
        if left >= len(lines):
            return block
        last = lines[left - 1] if left else 0
        rejected = [row for row in block.rejected if row.line <= last]
        n = left - len(rejected)
        return tsv.Block(*(column[:n] for column in block[:5]), rejected, block.num_lines, block.num_dropped)

    def _stop(self, first, block, blocks):
        """Raises the error of the first bad row, with the number of bad ones among the next LOOK_AHEAD rows."""
        following = []
        for _ in range(LOOK_AHEAD):  # a line without an end fills blocks in which no row begins
            if not block or len(following) >= LOOK_AHEAD or len(first.raw) > tsv.MAX_LINE:
                break
            following += [(line, False) for line in block.lines] + [(row.line, True) for row in block.rejected]
            following = sorted((line, bad) for line, bad in following if line > first.line)
            block = next(blocks, None)
        following = following[:LOOK_AHEAD]
        more = sum(bad for _, bad in following)
        more = counted(more, "more bad row")
        rest = f"{more} among the next {len(following)}" if following else "the last row"
        hint = self.source.parser.likely_mistake(first)
        raise UserError(f"{self.source.place(first.line)}: {first.reason}{hint} ({rest}; --on_bad_row=skip leaves bad rows out)")
