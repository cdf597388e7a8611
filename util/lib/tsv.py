"""Reads tab-separated rows whose last column is a feature of comma-separated numbers: the suite's only parser of text.

A file is cut into blocks of whole lines, which threads parse. Rows of plain numbers are parsed by compiled code, others
by exact Python; both give the same values and the same errors. The blocks come back in the order of the file. Memory is
constant. docs/formats.md describes the rows.
"""
import collections
import contextlib
import gzip
import itertools
import os
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from util.lib import arrays, class_list, paths, threads, tsv_kernel
from util.lib.errors import UserError, counted

MAX_LINE = 16 << 20  # bytes; a longer line is not text of this format
BLOCK = 1 << 20  # bytes of text parsed at a time, about what fits in a core's cache
SMALL = 12 << 20  # bytes of a file up to which plain Python is done before a compiled parser would be loaded
SAMPLE = 1 << 16  # bytes of text parsed first: if they are bad, the rest of the file is not counted
WIDTH_SAMPLE = 50  # rows whose most common width is that of the file, unless it is given
MOST_HINTS = 100  # bad rows per file whose class is compared with all names, which takes a while where there are thousands
SHOWN = 40  # characters of a bad value that a message shows
NOT_TEXT = {  # first bytes, and what they tell
    b"PK\x03\x04": "an archive such as .npz", b"\x93NUMPY": "a .npy array", b"PAR1": "a parquet file",
    b"\x1f\x8b": "gzip, whose name must then end in .gz",
}
BOM = b"\xef\xbb\xbf"
_NUMBER = rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
NUMBERS = re.compile(_NUMBER + rb"(?:," + _NUMBER + rb")*")


class Layout(NamedTuple):
    """The columns of a kind of row. An image url may follow the key, or a reference's class name, as one column more.

    key, class_name and label are indices into the columns in front of the feature; negative ones count from their end.
    """

    columns: str  # in words, without the url
    fields: tuple  # what the columns in front of the feature are, without the url
    num_columns: int  # without the url, with the feature
    key: int
    class_name: int
    label: int | None
    label_name: str = ""


VERIFIED = Layout("key, class name, verification label, feature", ("key", "class", "label"), 4, 0, -2, -1, "verification label")
UNVERIFIED = Layout("key, class name, feature", ("key", "class"), 3, 0, -1, None)
REFERENCES = Layout("class name, reference id, feature", ("class", "label"), 3, -1, 0, -1, "reference id")
VERIFICATION_LABELS = {b"1": 1, b"0": 0, b"-1": -1}
DROPPED = -1  # the label of rows that are left out


class Rejected(NamedTuple):
    """A row that cannot be used: its line number from 1, why, its bytes, and their offset in what was parsed."""

    line: int
    reason: str
    raw: bytes
    offset: int


class Block(NamedTuple):
    """Consecutive rows of a file.

    keys: list of str [n]. class_ids: int32 [n]. labels: int32 [n].
    lines: int64 [n], line numbers from 1; of the file, or within the bytes that a Parser was given.
    features: float32 [n, D]. rejected: list of Rejected.
    num_lines: lines read, blank ones included. num_dropped: rows labelled -1, left out.
    """

    keys: list
    class_ids: np.ndarray
    labels: np.ndarray
    lines: np.ndarray
    features: np.ndarray
    rejected: list
    num_lines: int
    num_dropped: int


class Numbers(NamedTuple):
    """Features that are numbers already: feature i is values[starts[i]:starts[i + 1]].

    values: float16, float32 or float64 [M]. starts: int64 [n + 1].
    """

    values: np.ndarray
    starts: np.ndarray


class Parser:
    """Turns bytes of whole lines into a Block. Knows the layout, the class names and the width, but no file.

    Args:
        layout: a Layout. class_names: list of str; the index of a name is its class id.
        labels: {bytes as written: int} for the layout's label column.
        width: numbers per feature, or None: as many as in most of the first rows. width_from: what set it, for messages.
        minimum: every number must be above it; None: no bound.
    """

    def __init__(self, layout, class_names, *, labels=None, width=None, width_from="", minimum=None):
        self.layout, self.class_names, self.labels = layout, class_names, labels
        self.width, self.width_from, self.minimum = width, width_from, minimum
        self._class_ids = {name.encode(): i for i, name in enumerate(class_names)}
        self._parse_plain, self._hints_left = None, MOST_HINTS

    def load_kernel(self):
        """Loads the compiled parser, which takes about a second and then parses many times as fast."""
        self._parse_plain = tsv_kernel.load()

    def parse(self, data, reasons=None, numbers=None):
        """Parses bytes of whole lines. Threads may share a Parser once its width is known.

        Args:
            data: bytes. reasons: {line number from 1: why it cannot be used}, known before.
            numbers: Numbers, the feature of every line, whose last column is then not read; None: it is in that column.

        Returns:
            A Block.
        """
        # found: (line, start, start of the feature, stop, columns in front of it, class id, label) of each good row
        found, rejected = [], []
        num_lines = num_dropped = 0
        layout = self.layout
        odd = bool(reasons) or b"\0" in data or _has_stray_returns(data) or not _is_utf8(data)
        for num_lines, start, feature, stop, columns in _lines(data):
            if start == stop:
                continue
            class_id = self._class_id(columns)
            label = 0
            if self.labels is not None and class_id is not None:
                label = self.labels.get(columns[layout.label])
            if class_id is None or label is None or odd or stop - start > MAX_LINE or why_not_columns(layout, columns):
                why = (reasons or {}).get(num_lines) or self._why_not(data[start:stop], columns)
                if why:
                    rejected.append(Rejected(num_lines, why, data[start:stop], start))
                    continue
            if label == DROPPED:
                num_dropped += 1
            else:
                found.append((num_lines, start, feature, stop, columns, class_id, label))
        features, bad = self._given_features(numbers, found) if numbers else self._features(data, found)
        for i in sorted(bad):
            line, start, _, stop, *_ = found[i]
            rejected.append(Rejected(line, bad[i], data[start:stop], start))
        if bad:
            good = [i for i in range(len(found)) if i not in bad]
            found, features = [found[i] for i in good], features[good]
        lines, _, _, _, columns, class_ids, labels = zip(*found) if found else [()] * 7
        return Block(
            [c[layout.key].decode() for c in columns], np.array(class_ids, np.int32), np.array(labels, np.int32),
            np.array(lines, np.int64), features, sorted(rejected), num_lines, num_dropped,
        )

    def count_classes(self, data, sizes):
        """Adds to sizes[i] the lines that name class i, in bytes of whole lines: its rows, and bad rows among them."""
        for *_, columns in _lines(data):
            class_id = self._class_id(columns)
            if class_id is not None:
                sizes[class_id] += 1

    def _class_id(self, columns):
        """The id of a row's class, from its columns in front of the feature; None if they are not those of a row."""
        layout = self.layout
        if len(columns) + 1 - layout.num_columns not in (0, 1):
            return None
        return self._class_ids.get(columns[layout.class_name])

    def _features(self, data, found):
        """Parses the features of the rows in `found`.

        Returns:
            (float32 [len(found), D], {index in found: what is wrong} of the rows that cannot be used).
        """
        self._set_width(self._parse_exactly(data[start:stop])[0] for _, _, start, stop, *_ in found[:WIDTH_SAMPLE])
        features, plain, reasons = np.empty((len(found), self.width or 0), np.float32), np.zeros(len(found), bool), {}
        if self._parse_plain and self.width and found:
            starts, stops = (np.array([row[i] for row in found], np.uint64) for i in (2, 3))
            plain = self._parse_plain(np.frombuffer(data, np.uint8), starts, stops, features)
            if self.minimum is not None:
                plain &= features.min(axis=1) > self.minimum
        for i in np.flatnonzero(~plain).tolist():
            values, why = self._parse_exactly(data[found[i][2] : found[i][3]])
            if why:
                reasons[i] = why
            else:
                features[i] = values
        return features, reasons

    def _given_features(self, numbers, found):
        """What _features returns, for features that are numbers already."""
        values, starts = numbers
        rows = np.array([line - 1 for line, *_ in found], np.int64)
        self._set_width(self._rounded(values[starts[row] : starts[row + 1]])[0] for row in rows[:WIDTH_SAMPLE])
        width = self.width or 0
        whole = (np.diff(starts)[rows] == width) & (width > 0)
        if whole.all() and len(rows) + 1 == len(starts):  # as a rule: the features of all lines, one behind the other
            features = values[starts[0] : starts[-1]].reshape(len(rows), width)
        else:
            features = np.zeros((len(rows), width), values.dtype)
            for i in np.flatnonzero(whole).tolist():
                features[i] = values[starts[rows[i]] : starts[rows[i]] + width]
        with np.errstate(over="ignore", invalid="ignore"):
            features = features.astype(np.float32, copy=False)
            plain = whole & np.isfinite(features.sum(axis=1))  # a finite sum has finite parts, and is quicker to test
        if self.minimum is not None and width:
            plain &= features.min(axis=1) > self.minimum
        reasons = {}
        for i in np.flatnonzero(~plain).tolist():
            _, why = self._rounded(values[starts[rows[i]] : starts[rows[i] + 1]])
            if why:
                reasons[i] = why
        return features, reasons

    def _set_width(self, features):
        """Sets the width, if it is not known, to that of most of some features, the first of equals. Bad ones are None."""
        if not self.width:
            widths = collections.Counter(len(values) for values in features if values is not None and len(values))
            self.width = widths.most_common(1)[0][0] if widths else None

    def _why_not(self, line, columns):
        """Why a row cannot be used, judged by its columns in front of the feature; None if they are fine."""
        layout = self.layout
        why = why_not_text(line, layout.columns) or why_not_columns(layout, columns)
        if why:
            return why
        name = columns[layout.class_name].decode()
        if self._class_ids.get(name.encode()) is None:
            self._hints_left -= 1
            hint = class_list.closest(name, self.class_names) if self._hints_left >= 0 else ""
            return f'class "{name[:SHOWN]}" is not in the class list ({len(self.class_names)} classes){hint}'
        if self.labels is not None and columns[layout.label] not in self.labels:
            known = list(self.labels)
            expected = "1 (correct), 0 (mislabeled) or -1 (invalid)" if layout is VERIFIED else f"0 to {len(known) - 1}"
            return f'{layout.label_name} "{_shown(columns[layout.label])}", expected {expected}'
        return None

    def likely_mistake(self, row):
        """What a user may have done to make a bad row, as an addition to its message, or nothing. row: Rejected."""
        *columns, feature = row.raw.split(b"\t")
        if row.line == 1 and columns and feature and not NUMBERS.fullmatch(feature):
            return "; it looks like a header line: remove it"
        if not columns or self._class_id(columns) is not None:
            return ""
        if columns[0] in self._class_ids:
            return "; the first column is a class: put the key in front of it"
        if self.layout is UNVERIFIED and columns[-1] in VERIFICATION_LABELS and columns[-2] in self._class_ids:
            return "; it looks like a verified row, which --split=train or val takes"
        return ""

    def _parse_exactly(self, text):
        """Parses a feature as docs/formats.md defines it. Returns (float32 [D], None) or (None, what is wrong)."""
        texts = text.split(b",")
        if not NUMBERS.fullmatch(text):
            index = next(i for i, value in enumerate(texts) if not NUMBERS.fullmatch(value))
            what = f'"{_shown(texts[index])}"' if texts[index] else "nothing"
            return None, f"value {index + 1} of the feature is {what}, expected a decimal number"
        return self._rounded(np.array([float(value) for value in texts]), lambda index: _shown(texts[index]))

    def _rounded(self, numbers, shown=None):
        """A feature as float32 [D], and None; or None, and what is wrong with it. numbers: float [D]. shown: of an index, a text."""
        with np.errstate(over="ignore"):
            values = numbers.astype(np.float32)
        too_large = ", too large for a float32" if shown else ", expected a number that is finite as a float32"
        for wrong, why in (
            (~np.isfinite(values), too_large),
            (values <= (-np.inf if self.minimum is None else self.minimum), f"; {arrays.LOG_NEEDS}"),
        ):
            if wrong.any():
                index = int(wrong.argmax())
                return None, f"value {index + 1} of the feature is {shown(index) if shown else numbers[index]}{why}"
        if len(values) != (self.width or len(values)) or not len(values):
            expected = f"{self.width} ({self.width_from or 'as in the first rows'})" if self.width else "as many as in other rows"
            return None, f"a feature of {counted(len(values), 'value')}, expected {expected}"
        return values, None


def _lines(data):
    """Yields (number from 1, start, start of the last column, stop, the columns in front of it) of every line in bytes.

    `stop` is the offset of the line's end, a newline or CRLF.
    """
    next_start, end, number = 0, len(data), 0
    while next_start < end:
        start = next_start
        stop = data.find(b"\n", start)
        stop = end if stop < 0 else stop
        next_start = stop + 1
        number += 1
        if stop > start and data[stop - 1] == 13:  # CRLF
            stop -= 1
        tab = data.rfind(b"\t", start, stop)
        yield number, start, tab + 1, stop, data[start:tab].split(b"\t") if tab >= 0 else []


def joined_columns(columns):
    """Rows of text, with nothing in the column of the feature.

    Args:
        columns: lists of bytes, one for each column in front of the feature.

    Returns:
        (bytes, {line number from 1: why it cannot be used}), as Parser.parse takes them.
    """
    lines, reasons = list(map(b"\t".join, zip(*columns, itertools.repeat(b"")))), {}
    text = b"\n".join([*lines, b""])
    if b"\r" in text or text.count(b"\n") != len(lines) or text.count(b"\t") != len(lines) * len(columns):
        for i, line in enumerate(lines):
            if b"\r" in line or b"\n" in line or line.count(b"\t") != len(columns):
                reasons[i + 1], lines[i] = "a tab or line break inside a value; remove it", b" ".join(line.split())
        text = b"\n".join([*lines, b""])
    return text, reasons


def _has_stray_returns(data):
    """Whether bytes hold a carriage return that does not end a line. Most hold none at all, which is quick to see."""
    return b"\r" in data and data.count(b"\r") > data.count(b"\r\n")


def _is_utf8(data):
    try:
        return data.isascii() or data.decode() is not None
    except UnicodeDecodeError:
        return False


def why_not_text(line, columns_in_words):
    """Why a line cannot be a row of any kind; None if it can."""
    if len(line) > MAX_LINE:
        return f"a line longer than {MAX_LINE >> 20} MB; expected one row ({columns_in_words}) per line"
    kind = next((kind for magic, kind in NOT_TEXT.items() if line.startswith(magic)), None)
    if kind:
        return f"the file is {kind}, expected text"
    if b"\0" in line:
        return "a NUL byte; the file is damaged or not text, write it again"
    if b"\r" in line:
        return "a carriage return inside the line; end lines with a newline"
    if not _is_utf8(line):
        return "bytes that are not UTF-8; save the file as UTF-8"
    return None


def why_not_columns(layout, columns):
    """Why the columns in front of a feature cannot be those of a row of this layout; None if they can."""
    if len(columns) + 1 not in (layout.num_columns, layout.num_columns + 1):
        return (
            f"{counted(len(columns) + 1, 'tab-separated column')}, expected {layout.num_columns} ({layout.columns}) "
            f"or {layout.num_columns + 1} (with an image url in column 2)"
        )
    if not columns[layout.key]:
        return "an empty key; every row needs one"
    return None


def _shown(value):
    return value[:SHOWN].decode(errors="replace") + ("…" if len(value) > SHOWN else "")


def complete_lines(file, size):
    """Reads `size` bytes from a binary file and the rest of the last line, at most MAX_LINE + 1 bytes of it."""
    data = file.read(size)
    if data and not data.endswith(b"\n"):
        data += file.readline(MAX_LINE + 1)
    return data


def lines_of_range(file, start, end):
    """The bytes of the lines that begin in [start, end) of a seekable binary file, and their offset in it."""
    if start == 0:
        file.seek(0)
        data = complete_lines(file, end)
        return data.removeprefix(BOM), len(data) - len(data.removeprefix(BOM))
    file.seek(start - 1)
    data = file.read(end - start + 1)
    newline = data.find(b"\n")
    if newline < 0 or newline + 1 == len(data):
        return b"", end
    data = data[newline + 1 :]
    return data if data.endswith(b"\n") else data + file.readline(MAX_LINE + 1), start + newline


def _open(path, columns_in_words):
    """Opens a file of rows. Returns (the binary file, its size in bytes or None for a pipe)."""
    file = paths.open_input(path, f"a tab-separated file ({columns_in_words})", stream=True)
    return file, os.path.getsize(path) if os.path.isfile(path) else None


def blocks_of_stream(stream, block_size=BLOCK):
    """Yields (bytes of whole lines, bytes of text read so far) of a binary stream."""
    done = 0
    while data := complete_lines(stream, block_size):
        first = done == 0
        done += len(data)
        whole = data.endswith(b"\n")
        yield (data.removeprefix(BOM) if first else data), done
        if not whole:  # the end of the file, or a line longer than MAX_LINE, whose rest is skipped
            while (rest := stream.readline(BLOCK)) and not rest.endswith(b"\n"):
                done += len(rest)
            done += len(rest)


def _blocks_of_file(path, file, size, block_size=BLOCK):
    """Yields (bytes of whole lines, the offset in the file where they end) of a plain or .gz file, read to its end."""
    stream = gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file
    done = 0
    try:
        for data, done in blocks_of_stream(stream, block_size):
            yield data, file.tell() if size else done
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: the gzip data is cut off or damaged after {done} bytes of text ({error}); compress the file again"
        ) from None


def read_lines(path, columns_in_words, description):
    """Yields (line number from 1, bytes without the line's end) of the lines of a file that are not blank; .gz too."""
    file, size = _open(path, columns_in_words)
    number = 0
    with file, tqdm(total=size, desc=description, unit="B", unit_scale=True, disable=None, delay=1) as bar:
        for data, end in _blocks_of_file(path, file, size):
            for line in data.removesuffix(b"\n").split(b"\n"):
                number += 1
                line = line.removesuffix(b"\r")
                why = why_not_text(line, columns_in_words)
                if why:
                    raise UserError(f"{path}:{number}: {why}")
                if line:
                    yield number, line
            bar.update(end - bar.n)
    if not number:
        raise UserError(f"{path}: has no rows, expected {columns_in_words}, tab-separated")


def columns_without_feature(path, layout, description):
    """Reads a file of rows, but not their features.

    Yields:
        (line number from 1, the columns in front of the feature as a list of str, the line as bytes without its end).
    """
    for number, line in read_lines(path, layout.columns, description):
        columns = line[: max(line.rfind(b"\t"), 0)].split(b"\t") if b"\t" in line else []
        why = why_not_columns(layout, columns)
        if why:
            raise UserError(f"{path}:{number}: {why}")
        yield number, [column.decode() for column in columns], line


def plain_columns(path, names, description):
    """Reads a tab-separated file without features. Yields (line number from 1, one str for each of `names`)."""
    for number, line in read_lines(path, ", ".join(names), description):
        columns = line.decode().split("\t")
        if len(columns) != len(names):
            found = counted(len(columns), "tab-separated column")
            raise UserError(f"{path}:{number}: {found}, expected {len(names)} ({', '.join(names)})")
        yield number, columns


class TextRows:
    """The rows of a tab-separated file, for a rows.RowReader.

    Args:
        path: plain text, or gzip if it ends in .gz. parser: a Parser; the first row sets its width if it has none.
        num_workers: threads that parse; 0: one per core, at most threads.MOST. description: of the progress bar.
        block_size: bytes of text per block, to which the rest of the last line is added.
        header: csv_rows.Header, the columns that the first line names; None: tab-separated rows from the first line on.
    """

    def __init__(self, path, parser, *, num_workers=0, block_size=BLOCK, description="reading", header=None):
        self.path, self.parser, self.inputs = path, parser, [path]
        self.expected = parser.layout.columns + ("" if header else ", tab-separated")
        self._header, self._description, self._block_size = header, description, block_size
        self._file, self._size = _open(path, parser.layout.columns)
        self._num_threads = threads.count(num_workers)

    def place(self, line):
        """Where a row is, for messages. line: of a Block."""
        return f"{self.path}:{line}"

    def class_sizes(self):
        """Counts the rows of each class by a first pass over the file, which parses no features and is quick.

        Returns:
            int64 [num_class]; a class has at most so many rows, since bad ones are counted too. None for a pipe,
            gzip or CSV, which are not read twice, and if the first rows are bad, so that their error comes without delay.
        """
        if self._size is None or self._header or self.path.endswith(".gz"):
            return None
        first, _ = next(_blocks_of_file(self.path, self._file, self._size, SAMPLE), (b"", 0))
        self._file.seek(0)
        if self.parser.parse(first).rejected:
            return None
        sizes = [0] * len(self.parser.class_names)
        bar = tqdm(
            total=self._size, desc="counting rows", unit="B", unit_scale=True, disable=None, leave=False, delay=1
        )
        with bar, ThreadPoolExecutor(1) as thread:
            if self._size > SMALL:
                tsv_kernel.keep_freed_memory()
                thread.submit(self.parser.load_kernel)  # while this thread counts
            # Large blocks, for few waits for the GIL.
            for data, end in _blocks_of_file(self.path, self._file, self._size, 4 * BLOCK):
                self.parser.count_classes(data, sizes)
                bar.update(end - bar.n)
        self._file.seek(0)
        return np.array(sizes)

    def blocks(self):
        """Yields the Blocks of the file in order, their lines counted from its start, and closes it."""
        lines = 0
        with self._file, contextlib.closing(self._blocks()) as blocks:
            for block in blocks:
                shifted = [row._replace(line=row.line + lines) for row in block.rejected]
                yield block._replace(lines=block.lines + lines, rejected=shifted)
                lines += block.num_lines

    def _blocks(self):
        """The blocks in order: those of a small file are parsed here, those of a large one by threads."""
        with tqdm(total=self._size, desc=self._description, unit="B", unit_scale=True, disable=None, delay=1) as bar:
            sources = self._texts()
            for data, end in sources:
                if max(end, self._size or 0) > SMALL:
                    tsv_kernel.keep_freed_memory()
                    self.parser.load_kernel()
                    if self.parser.width:
                        sources = itertools.chain([(data, end)], sources)
                        break
                yield self._parse(data)
                bar.update(end - bar.n)

            def parse(source):
                return self._parse(source[0]), source[1]

            for block, end in threads.in_order(parse, sources, self._num_threads):
                yield block
                bar.update(end - bar.n)

    def _texts(self):
        """What _blocks_of_file yields, with a blank line in place of a header."""
        texts = _blocks_of_file(self.path, self._file, self._size, self._block_size)
        if self._header:
            data, end = next(texts)
            yield b"\n" + data.partition(b"\n")[2], end
        yield from texts

    def _parse(self, data):
        return self.parser.parse(*self._header.as_text(data)) if self._header else self.parser.parse(data)
