"""Score files, written and read again: one number per line or a table, as text, .npy or .parquet (docs/formats.md)."""
import contextlib
import gzip
import math
import zlib
from typing import NamedTuple

import numpy as np

from util.lib import arrays, atomic
from util.lib.errors import UserError, reason

SCORES = ("cosine", "margin", "probability")  # what --score may be
SCORES_IN_WORDS = (
    "the cosine to the given class; the margin, that minus the highest cosine to another class; the probability of the given class, "
    "softmax of the cosines / contrast_temperature"
)
COLUMNS = ("key", "class", *SCORES, "verdict", "nearest_class", "nearest_cosine")
TABLE_LINE = "{}\t{}\t{:.9g}\t{:.9g}\t{:.9g}\t{}\t{}\t{:.9g}\n"
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
    )


def table_lines(scored, class_names, score, threshold):
    """The lines of the table for ScoredRows, a list of str."""
    return list(map(TABLE_LINE.format, *_columns(scored, class_names, score, threshold)))


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


def read(path, score="cosine"):
    """Reads what write() wrote. score: the column of a table to use, one of SCORES. Returns a ScoreTable."""
    try:
        if path.endswith(".npy"):
            return ScoreTable(_plain_npy(path))
        if path.endswith(".parquet"):
            return _read_parquet(path, score)
        with gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8") as file:
            lines = file.read().removesuffix("\n").split("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: cannot read the scores: {reason(error)}; give an output file of inference.py") from None
    rows = [line.split("\t") for line in lines]
    width = len(rows[0])
    numbers = []
    for number, row in enumerate(rows, 1):
        if len(row) != width or width not in (1, len(COLUMNS)):
            raise UserError(
                f"{path}:{number}: {len(row)} columns, expected 1 or {len(COLUMNS)} ({', '.join(COLUMNS)}) in every line; "
                "give an output file of inference.py"
            )
        try:
            numbers.append(float(row[0 if width == 1 else COLUMNS.index(score)]))
        except ValueError:
            raise UserError(f'{path}:{number}: "{row[0][:40]}", expected a score; give an output file of inference.py') from None
    if width == 1:
        return ScoreTable(np.array(numbers))
    key, class_name, _, _, _, verdict, nearest_class, nearest_cosine = map(list, zip(*rows))
    return ScoreTable(np.array(numbers), key, class_name, verdict, nearest_class, np.array(list(map(float, nearest_cosine))))


def _plain_npy(path):
    array = arrays.open_array(path, "(num_samples,) scores", "inference.py", ndim=1)
    return np.array(array, np.float64)


def _read_parquet(path, score):
    import pyarrow
    from pyarrow import parquet

    try:
        columns = parquet.read_table(path).to_pydict()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: is not a parquet file ({error}); give an output file of inference.py") from None
    if list(columns) == ["score"]:
        return ScoreTable(np.array(columns["score"], np.float64))
    if tuple(columns) != COLUMNS:
        raise UserError(f"{path}: columns {', '.join(columns)}, expected {', '.join(COLUMNS)}; give an output file of inference.py")
    return ScoreTable(
        np.array(columns[score], np.float64), columns["key"], columns["class"], columns["verdict"], columns["nearest_class"],
        np.array(columns["nearest_cosine"], np.float64),
    )
