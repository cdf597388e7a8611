"""Score files, written and read again: one number per line or a table, as text, .npy or .parquet (docs/formats.md)."""
import contextlib
import gzip
import math
import zlib
from typing import NamedTuple

import numpy as np

from util.lib import arrays, atomic, paths
from util.lib.errors import UserError, counted

SCORES = ("cosine", "margin", "probability")  # what --score may be
SCORES_IN_WORDS = (
    "the cosine to the given class; the margin, that minus the highest cosine to another class; the probability of the given class, "
    "softmax of the cosines / contrast_temperature"
)
COLUMNS = ("key", "class", *SCORES, "verdict", "nearest_class", "nearest_cosine", "decided_by")  # the last: the verdict's score
TABLE_LINE = "{}\t{}\t{:.9g}\t{:.9g}\t{:.9g}\t{}\t{}\t{:.9g}\t{}\n"
CORRECT, MISLABELED, UNKNOWN = "correct", "mislabeled", "unknown"  # verdicts; unknown: the row has no score


class Scores(NamedTuple):
    """Scores of N rows. cosine: float32 [N], to the given class. The others are None unless all classes were compared.

    margin: float32 [N], cosine minus the best cosine to any other class. probability: float32 [N], of the given class in
    the softmax over all classes of cosine / temperature. nearest: int32 [N], the class with the highest cosine, which is
    nearest_cosine, float32 [N].
    """

    cosine: np.ndarray
    margin: np.ndarray | None = None
    probability: np.ndarray | None = None
    nearest: np.ndarray | None = None
    nearest_cosine: np.ndarray | None = None

    def by(self, score):
        """The column that `score` names, one of SCORES: float32 [N]."""
        return getattr(self, score)


class ScoredRows(NamedTuple):
    """Consecutive rows with their scores. keys: list of str [N]. class_ids: int32 [N], -1 if unknown. scores: Scores of N rows."""

    keys: list
    class_ids: np.ndarray
    scores: Scores


def with_bad_rows(scored, block):
    """Adds the bad rows of a tsv.Block where they were in the file, each with NaN for a score.

    Args:
        scored: ScoredRows of the good rows of the block. block: tsv.Block.

    Returns:
        ScoredRows of all rows of the block.
    """
    order = np.argsort(np.concatenate([block.lines, [row.line for row in block.rejected]]))
    num_bad = len(block.rejected)
    # These keys are unchecked: each ends at a tab, and white space that would break a line of the table is folded.
    bad_keys = [" ".join(row.raw[:200].split(b"\t")[0].decode(errors="replace").split()) for row in block.rejected]
    keys = scored.keys + bad_keys

    def merged(column):
        if column is None:
            return None
        filler = -1 if column.dtype.kind == "i" else np.nan
        return np.concatenate([column, np.full(num_bad, filler, column.dtype)])[order]

    scores = Scores(*map(merged, scored.scores))
    return ScoredRows([keys[i] for i in order], merged(scored.class_ids), scores)


def verdicts(scores, threshold):
    """The verdict on each label: `correct` at or above the threshold, `unknown` for NaN. float [N] -> list of str [N]."""
    return [UNKNOWN if math.isnan(s) else CORRECT if s >= threshold else MISLABELED for s in scores.tolist()]


def _columns(scored, class_names, score, threshold):
    """The table's columns for ScoredRows: lists in the order of COLUMNS."""
    names = [*class_names, ""]  # -1, unknown, is the last
    s = scored.scores
    return (
        scored.keys, [names[c] for c in scored.class_ids.tolist()], s.cosine.tolist(), s.margin.tolist(),
        s.probability.tolist(), verdicts(s.by(score), threshold), [names[c] for c in s.nearest.tolist()], s.nearest_cosine.tolist(),
        [score] * len(scored.keys),
    )


def table_lines(scored, class_names, score, threshold):
    """The lines of the table for ScoredRows, a list of str."""
    return list(map(TABLE_LINE.format, *_columns(scored, class_names, score, threshold)))


def check_table_path(path):
    """Raises UserError where a table would be written under a name that promises something else."""
    if path.endswith(".npy"):
        raise UserError(f"{path} can hold one number per row only; name a .tsv or .parquet file for a table")
    if path.endswith(".csv"):
        raise UserError(f"{path} would get tabs, not commas; name a .tsv or .parquet file for a table")


def write(path, blocks, *, class_names, score="cosine", threshold=0.1, table=False):
    """Writes scores, whole or not at all, in the format that the suffix of the path names: .npy, .parquet, or text (.gz too).

    Args:
        blocks: iterable of ScoredRows. class_names: list of str. score: one of SCORES. threshold: float, of the verdicts.
        table: write all COLUMNS, not the score alone.

    Returns:
        The scores, float32 [N].
    """
    scores = []
    with atomic.whole_file(path) as file, contextlib.ExitStack() as stack:
        if path.endswith(".npy"):
            write_block = _npy_writer(file, stack)
        elif path.endswith(".parquet"):
            write_block = _parquet_writer(file, stack, table)
        else:
            def write_block(columns):
                lines = map(TABLE_LINE.format if table else "{:.9g}\n".format, *columns)
                file.write("".join(lines).encode())
        for scored in blocks:
            values = scored.scores.by(score)
            scores.append(values)
            write_block(_columns(scored, class_names, score, threshold) if table else [values.tolist()])
    return np.concatenate(scores)


def _npy_writer(file, stack):
    file.write(atomic.npy_header((0,)))
    count = 0

    def write_block(columns):
        nonlocal count
        count += len(columns[0])
        file.write(np.float32(columns[0]).data)

    def finish():
        file.seek(0)
        file.write(atomic.npy_header((count,)))

    stack.callback(finish)
    return write_block


def _parquet_writer(file, stack, table):
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {name: pa.float32() if name in (*SCORES, "nearest_cosine") else pa.string() for name in COLUMNS}
    schema = pa.schema(list(kinds.items()) if table else [("score", pa.float32())])
    writer = stack.enter_context(parquet.ParquetWriter(file, schema))

    def write_block(columns):
        writer.write_table(pa.table(dict(zip(schema.names, columns)), schema=schema))

    return write_block


class ScoreTable(NamedTuple):
    """A score file. score: float64 [N], NaN where a row has none. The others are lists of N; None where the file has scores only."""

    score: np.ndarray
    key: list | None = None
    class_name: list | None = None
    verdict: list | None = None
    nearest_class: list | None = None
    nearest_cosine: np.ndarray | None = None


REMEDY = "give an output file of inference.py"


def read(path, score=None):
    """Reads what write() wrote.

    Args:
        path: of the file. score: the column of a table to use, one of SCORES, or None: the one that decided its verdicts.

    Returns:
        ScoreTable. Raises UserError where the file holds anything else.
    """
    if path.endswith(".npy"):
        array = arrays.open_array(path, "(num_samples,) scores", "inference.py", ndim=1)
        return ScoreTable(_numbers(path, array.tolist(), "score"))
    columns = _columns_of(path)
    if "key" not in columns:
        return ScoreTable(_numbers(path, columns["score"], "score"))
    decided_by = set(columns["decided_by"])
    if score is None and len(decided_by) > 1:
        raise UserError(f"{path}: its verdicts are by {' and '.join(sorted(decided_by))}; give the --score to use, or score again")
    score = score or decided_by.pop()
    return ScoreTable(
        _numbers(path, columns[score], score), columns["key"], columns["class"], columns["verdict"], columns["nearest_class"],
        _numbers(path, columns["nearest_cosine"], "nearest_cosine"),
    )


def read_columns(path):
    """Reads a table: {column: list of str, or float64 [N] for numbers}. Raises UserError where the file holds anything else."""
    columns = {} if path.endswith(".npy") else _columns_of(path)
    if "key" not in columns:
        raise UserError(f"{path}: has scores only, expected a table; run inference.py with --output_format=tsv")
    return columns | {name: _numbers(path, columns[name], name) for name in (*SCORES, "nearest_cosine")}


def _columns_of(path):
    """The columns of a file, whose words are checked and whose numbers are not."""
    columns = _parquet_columns(path) if path.endswith(".parquet") else _text_columns(path)
    if "key" in columns:
        _check_words(path, columns)
    return columns


def _numbers(path, values, column):
    """The numbers of a column, str or float, as float64 [N]. NaN is a row without a score; anything else must be finite."""
    found = np.empty(len(values))
    for i, value in enumerate(values):
        try:
            found[i] = float(value)
        except (TypeError, ValueError):
            found[i] = np.inf
        if np.isinf(found[i]):
            raise UserError(f'{path}:{i + 1}: "{str(value)[:40]}", expected a {column}, a number or nan; {REMEDY}')
    return found


def _check_words(path, columns):
    """Raises UserError where a column of words holds others than the suite writes."""
    allowed = {"verdict": {CORRECT, MISLABELED, UNKNOWN}, "decided_by": set(SCORES)}
    for name in ("key", "class", "verdict", "nearest_class", "decided_by"):
        for i, word in enumerate(columns[name]):
            if not isinstance(word, str) or word not in allowed.get(name, {word}):
                expected = " or ".join(sorted(allowed.get(name, ["text"])))
                raise UserError(f'{path}:{i + 1}: {name} "{str(word)[:40]}", expected {expected}; {REMEDY}')


def _text_columns(path):
    """The columns of a text file, {name: list of str}: `score` alone, or COLUMNS. An older table was decided by the cosine."""
    try:
        with paths.open_input(path, "the scores", stream=True) as raw:
            text = (gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw).read().decode()
    except (EOFError, UnicodeDecodeError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: cannot read the scores: {error}; {REMEDY}") from None
    rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    names = {1: ("score",), len(COLUMNS): COLUMNS, len(COLUMNS) - 1: COLUMNS[:-1]}.get(len(rows[0]), COLUMNS)
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise UserError(
                f"{path}:{number}: {counted(len(row), 'column')}, expected 1 or {len(COLUMNS)} ({', '.join(COLUMNS)}) in every "
                f"line; {REMEDY}"
            )
    columns = dict(zip(names, map(list, zip(*rows))))
    return columns if len(names) == 1 else {"decided_by": ["cosine"] * len(rows), **columns}


def _parquet_columns(path):
    """The columns of a parquet file, as _text_columns, with numbers as they are."""
    import pyarrow
    from pyarrow import parquet

    try:
        with paths.open_input(path, "the scores") as file:
            columns = parquet.read_table(file).to_pydict()
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise UserError(f"{path}: is not a parquet file ({str(error)[:100]}); {REMEDY}") from None
    if tuple(columns) == COLUMNS[:-1]:
        columns["decided_by"] = ["cosine"] * len(columns["key"])
    if tuple(columns) not in (COLUMNS, ("score",)):
        raise UserError(f"{path}: columns {', '.join(columns)[:200]}, expected {', '.join(COLUMNS)}; {REMEDY}")
    return columns
