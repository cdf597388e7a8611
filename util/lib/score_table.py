"""Score files, written and read again: one number per line or a table, as text, .npy or .parquet (docs/formats.md)."""
import contextlib
import csv
import gzip
import math
import zlib
from typing import NamedTuple

import numpy as np

from util.lib import arrays, atomic, csv_rows, paths
from util.lib.errors import UserError, counted

SCORES = ("cosine", "margin", "probability")  # what --score may be
SCORES_IN_WORDS = (
    "the cosine to the given class; the margin, that minus the highest cosine to another class; the probability of the given class, "
    "softmax of the cosines / contrast_temperature"
)
COLUMNS = ("key", "class", *SCORES, "verdict", "nearest_class", "nearest_cosine", "decided_by")  # the last: the verdict's score
TABLE_LINE = "{}\t{}\t{:.9g}\t{:.9g}\t{:.9g}\t{}\t{}\t{:.9g}\t{}\n"
ESTIMATED = " (estimated threshold)"  # follows the score in decided_by where no verified row chose the threshold
CALIBRATED = " (calibrated)"  # follows it where verified rows made the probability what it says
CORRECT, MISLABELED, UNKNOWN = "correct", "mislabeled", "unknown"  # verdicts; unknown: the row has no score


class Scores(NamedTuple):
    """Scores of N rows. cosine: float32 [N], to the given class. The others are None unless all classes were compared.

    margin: float32 [N], cosine minus the best cosine to any other class. probability: float32 [N], of the given class in
    the softmax over all classes of cosine / temperature. nearest: int32 [N], the class with the highest cosine, which is
    nearest_cosine, float32 [N]. probabilities: float32 [N, C], that softmax, if it was asked for.
    """

    cosine: np.ndarray
    margin: np.ndarray | None = None
    probability: np.ndarray | None = None
    nearest: np.ndarray | None = None
    nearest_cosine: np.ndarray | None = None
    probabilities: np.ndarray | None = None

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
        return np.concatenate([column, np.full((num_bad, *column.shape[1:]), filler, column.dtype)])[order]

    scores = Scores(*map(merged, scored.scores))
    return ScoredRows([keys[i] for i in order], merged(scored.class_ids), scores)


def verdicts(scores, threshold):
    """The verdict on each label: `correct` at or above the threshold, `unknown` for NaN. float [N] -> list of str [N]."""
    return [UNKNOWN if math.isnan(s) else CORRECT if s >= threshold else MISLABELED for s in scores.tolist()]


def _columns(scored, class_names, score, threshold, ending):
    """The table's columns for ScoredRows: lists in the order of COLUMNS. ending: of decided_by, "", ESTIMATED or CALIBRATED."""
    names = [*class_names, ""]  # -1, unknown, is the last
    s = scored.scores
    return (
        scored.keys, [names[c] for c in scored.class_ids.tolist()], s.cosine.tolist(), s.margin.tolist(),
        s.probability.tolist(), verdicts(s.by(score), threshold), [names[c] for c in s.nearest.tolist()], s.nearest_cosine.tolist(),
        [score + ending] * len(scored.keys),
    )


def table_lines(scored, class_names, score, threshold, estimated):
    """The lines of the table for ScoredRows, a list of str. Arguments as in write."""
    return list(map(TABLE_LINE.format, *_columns(scored, class_names, score, threshold, ESTIMATED * estimated)))


def check_table_path(path):
    """Raises UserError where a table would be written under a name that promises something else."""
    if path.endswith(".npy"):
        raise UserError(f"{path} can hold one number per row only; name a .tsv, .csv or .parquet file for a table")


def write(
    path, blocks, *, class_names, score="cosine", threshold=0.1, estimated=False, calibrated=False, table=False, header=False
):
    """Writes scores, whole or not at all, in the format that the suffix of the path names: .npy, .parquet, .csv, or text (.gz too).

    Args:
        blocks: iterable of ScoredRows. class_names: list of str. score: one of SCORES. threshold: float, of the verdicts.
        estimated: whether no verified row chose the threshold. calibrated: whether verified rows made the probability.
        table: write all COLUMNS, not the score alone.
        header: of text: write the names first; a table of CSV has them always.

    Returns:
        The scores, float32 [N].
    """
    scores, ending = [], CALIBRATED if calibrated else ESTIMATED * estimated
    with atomic.whole_file(path) as file, contextlib.ExitStack() as stack:
        if path.endswith(".npy"):
            write_block = _npy_writer(file, stack)
        elif path.endswith(".parquet"):
            write_block = _parquet_writer(file, stack, table)
        else:
            write_block = _text_writer(file, path, table, header)
        for scored in blocks:
            values = scored.scores.by(score)
            scores.append(values)
            write_block(_columns(scored, class_names, score, threshold, ending) if table else [values.tolist()])
    return np.concatenate(scores)


def _text_writer(file, path, table, header):
    if header or (table and csv_rows.is_csv(path)):
        file.write(csv_rows.to_text(path, [COLUMNS if table else ["score"]]).encode())

    def write_block(columns):
        lines = map(TABLE_LINE.format if table else "{:.9g}\n".format, *columns)
        text = csv_rows.to_text(path, (line[:-1].split("\t") for line in lines)) if csv_rows.is_csv(path) else "".join(lines)
        file.write(text.encode())

    return write_block


def keeping_probabilities(path, blocks, num_classes):
    """Passes ScoredRows on, and writes their probabilities, float32 [N, C], whole or not at all, to a .npy file."""
    count = 0
    with atomic.WholeFile(path) as whole:
        whole.file.write(atomic.npy_header((0, num_classes)))
        for scored in blocks:
            whole.file.write(scored.scores.probabilities.data)
            count += len(scored.keys)
            yield scored
        whole.file.seek(0)
        whole.file.write(atomic.npy_header((count, num_classes)))
        whole.commit()


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
    """A score file. score: float64 [N], NaN where a row has none. The others are lists of N; None where the file has scores only.

    estimated: whether the threshold of the verdicts is an estimate from scores alone. calibrated: whether verified rows made the
    probability what it says, so that it is too good on them. first: the line of the first row, for messages.
    """

    score: np.ndarray
    key: list | None = None
    class_name: list | None = None
    verdict: list | None = None
    nearest_class: list | None = None
    nearest_cosine: np.ndarray | None = None
    estimated: bool = False
    calibrated: bool = False
    first: int = 1


REMEDY = "give an output file of inference.py"
SCORES_ONLY = "{}: has scores only, expected a table; run inference.py with --output_format=tsv"


def read(path, score=None):
    """Reads what write() wrote.

    Args:
        path: of the file. score: the column of a table to use, one of SCORES, or None: the one that decided its verdicts.

    Returns:
        ScoreTable. Raises UserError where the file holds anything else.
    """
    if path.endswith(".npy"):
        array = arrays.open_array(path, "(num_samples,) scores", "inference.py", ndim=1)
        return ScoreTable(_numbers(path, array.tolist(), "score", 1))
    columns, first = _columns_of(path)
    if "key" not in columns:
        return ScoreTable(_numbers(path, columns["score"], "score", first), first=first)
    decided_by = {word.removesuffix(ESTIMATED).removesuffix(CALIBRATED) for word in columns["decided_by"]}
    estimated, calibrated = (any(word.endswith(ending) for word in columns["decided_by"]) for ending in (ESTIMATED, CALIBRATED))
    if score is None and len(decided_by) > 1:
        raise UserError(f"{path}: its verdicts are by {' and '.join(sorted(decided_by))}; give the --score to use, or score again")
    score = score or decided_by.pop()
    return ScoreTable(
        _numbers(path, columns[score], score, first), columns["key"], columns["class"], columns["verdict"], columns["nearest_class"],
        _numbers(path, columns["nearest_cosine"], "nearest_cosine", first), estimated, calibrated, first,
    )


def read_table(path):
    """What read() returns, of a table. Raises UserError where the file has scores only."""
    table = read(path)
    if table.key is None:
        raise UserError(SCORES_ONLY.format(path))
    return table


def read_columns(path):
    """Reads a table.

    Returns:
        ({column: list of str, or float64 [N] for numbers}, the line of the first row). Raises UserError where the file holds
        anything else.
    """
    columns, first = ({}, 1) if path.endswith(".npy") else _columns_of(path)
    if "key" not in columns:
        raise UserError(SCORES_ONLY.format(path))
    return columns | {name: _numbers(path, columns[name], name, first) for name in (*SCORES, "nearest_cosine")}, first


def check_probabilities(values, path, first):
    """Raises UserError where a probability is not from 0 to 1. values: float64 [N], NaN for none. first: line of the first one."""
    outside = (values < 0) | (values > 1)
    if outside.any():
        row = int(np.argmax(outside))
        raise UserError(f"{path}:{first + row}: probability {values[row]:g}, expected 0 to 1; score the rows again")


def _columns_of(path):
    """The columns of a file, whose words are checked and whose numbers are not, and the line of the first row."""
    columns, first = (_parquet_columns(path), 1) if path.endswith(".parquet") else _text_columns(path)
    if "key" in columns:
        _check_words(path, columns, first)
    return columns, first


def _numbers(path, values, column, first):
    """The numbers of a column, str or float, as float64 [N]. NaN is a row without a score; anything else must be finite.

    first: the line of the first of them, for messages.
    """
    found = np.empty(len(values))
    for i, value in enumerate(values):
        try:
            found[i] = float(value)
        except (TypeError, ValueError):
            found[i] = np.inf
        if np.isinf(found[i]):
            raise UserError(f'{path}:{i + first}: "{str(value)[:40]}", expected a {column}, a number or nan; {REMEDY}')
    return found


def _check_words(path, columns, first):
    """Raises UserError where a column of words holds others than the suite writes. first: the line of the first row."""
    allowed = {
        "verdict": {CORRECT, MISLABELED, UNKNOWN},
        "decided_by": {*SCORES, *(score + ESTIMATED for score in SCORES), "probability" + CALIBRATED},
    }
    for name in ("key", "class", "verdict", "nearest_class", "decided_by"):
        for i, word in enumerate(columns[name]):
            if not isinstance(word, str) or word not in allowed.get(name, {word}):
                expected = " or ".join(sorted(allowed.get(name, ["text"])))
                raise UserError(f'{path}:{i + first}: {name} "{str(word)[:40]}", expected {expected}; {REMEDY}')


def _text_columns(path):
    """The columns of text or CSV, with a header or without: ({name: list of str}, the line of the first row).

    They are `score` alone, or COLUMNS. An older table was decided by the cosine.
    """
    try:
        with paths.open_input(path, "the scores", stream=True) as raw:
            text = (gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw).read().decode("utf-8-sig")
        lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
        rows = list(csv.reader(lines, strict=True)) if csv_rows.is_csv(path) else [line.split("\t") for line in lines]
    except (EOFError, UnicodeDecodeError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
        raise UserError(f"{path}: cannot read the scores: {error}; {REMEDY}") from None
    headers = [list(names) for names in (("score",), COLUMNS, COLUMNS[:-1])]
    first = 2 if rows[0] in headers else 1
    names = next((names for names in headers if len(names) == len(rows[0])), COLUMNS)
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise UserError(
                f"{path}:{number}: {counted(len(row), 'column')}, expected 1 or {len(COLUMNS)} ({', '.join(COLUMNS)}) in every "
                f"line; {REMEDY}"
            )
    if len(rows) < first:
        raise UserError(f"{path}: has no scores below its header; {REMEDY}")
    columns = dict(zip(names, map(list, zip(*rows[first - 1 :]))))
    return columns if len(names) == 1 else {"decided_by": ["cosine"] * len(columns["key"]), **columns}, first


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
