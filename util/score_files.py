"""The files that scores are written to: one number a line, or a table, and how they are read again."""
from typing import NamedTuple

import numpy as np

from util import outputs


class Scores(NamedTuple):
    """Of N rows. cosine: float32 [N], to the given class. The others are None unless all classes were compared.

    margin: float32 [N], cosine minus the best cosine to any other class. nearest: int32 [N], the class with the highest
    cosine, which is nearest_cosine, float32 [N].
    """

    cosine: np.ndarray
    margin: np.ndarray | None = None
    nearest: np.ndarray | None = None
    nearest_cosine: np.ndarray | None = None

    def by(self, score):
        """The scores that --score names: `cosine` or `margin`."""
        return getattr(self, score)


class Block(NamedTuple):
    """Scores of consecutive rows. keys: list of str [N]. class_ids: int32 [N], -1 if unknown. scores: Scores of N rows."""

    keys: list
    class_ids: np.ndarray
    scores: Scores


def with_bad_rows(scored, block):
    """Puts bad rows where they were in the file, with NaN for a score. scored: Block of the good rows of a rows.Block."""
    lines = np.concatenate([block.lines, [row.line for row in block.rejected]])
    order = np.argsort(lines)
    num_bad = len(block.rejected)
    keys = scored.keys + [row.raw.split(b"\t")[0].decode(errors="replace") for row in block.rejected]

    def merged(column, filler):
        return None if column is None else np.concatenate([column, np.full(num_bad, filler, column.dtype)])[order]

    scores = Scores(*(merged(c, -1 if c is not None and c.dtype.kind == "i" else np.nan) for c in scored.scores))
    return Block([keys[i] for i in order], merged(scored.class_ids, -1), scores)


def write(path, blocks):
    """Writes one cosine a line, whole or not at all. Returns them, float32 [N]."""
    cosines = []
    with outputs.whole_file(path) as file:
        for block in blocks:
            file.write("".join([f"{value:.9g}\n" for value in block.scores.cosine.tolist()]).encode())
            cosines.append(block.scores.cosine)
    return np.concatenate(cosines)
