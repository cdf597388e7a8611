"""Draws a mosaic of the images that fit their class worst and best, a line of images per class.

    python util/draw_examples.py --score_file=runs/scores.tsv --image_feature_list=data/all.tsv \
        --image_dir=data/images --output_file=runs/examples.png

An image is found below image_dir by its key, or by its url column where that is a local path. The text below an image
is its file name, its score with the class it fits best if that is another one, and its verification label if --verified_list has it. A
second score file adds a second line per class: in the paper's figure, "F" was trained on all classes and "D" without
the one that is drawn.
"""
import os
import sys
from typing import NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import command, figures, images, paths, rows, score_table, tsv
from util.lib.errors import UserError, warn

flags.DEFINE_string(
    "score_file", None,
    "Scores of the rows of image_feature_list; the best class is shown only with a table (--output_format=tsv).",
    required=True,
)
flags.DEFINE_string("second_score_file", None, "Scores of the same rows by another model, drawn below the first.")
flags.DEFINE_list("score_names", ["F", "D"], "Names of the two score files in the picture.")
flags.DEFINE_enum("score", None, score_table.SCORES, "Column of a table to use. By default the score that decided its verdicts.")
flags.DEFINE_string(
    "image_feature_list", None,
    "The rows that were scored: key, [url,] class name, feature; .gz too. Or .csv or .parquet, with columns key and class.", required=True,
)
flags.DEFINE_string("image_dir", None, "Folder in which an image is found by its key.")
flags.DEFINE_list("verified_list", [], "Files of verified rows, separated by commas, whose labels are shown.")
flags.DEFINE_list("classes", [], "Classes to draw, separated by commas; by default the first max_classes.")
flags.DEFINE_integer("max_classes", 20, "Classes drawn at most.", lower_bound=1)
flags.DEFINE_integer("num_examples", 10, "Lowest and highest scoring images per class.", lower_bound=1, upper_bound=50)
flags.DEFINE_integer("image_size", 96, "Side of an image in the picture, in pixels.", lower_bound=16, upper_bound=512)
flags.DEFINE_string("output_file", None, "The picture, a PNG.", required=True)


class Line(NamedTuple):
    """A line of the mosaic: its title, its scores, and the indices of the rows drawn, two int arrays."""

    title: str
    table: score_table.ScoreTable
    lowest: np.ndarray
    highest: np.ndarray


def read_list(path):
    """The keys, urls and classes of the rows of a file, three lists; a url is empty where there is none."""
    keys, urls, names = [], [], []
    for columns in rows.columns_without_feature(path, tsv.UNVERIFIED, "reading the list"):
        keys.append(columns[0])
        urls.append(columns[1] if len(columns) == 3 else "")
        names.append(columns[-1])
    return keys, urls, names


def read_labels(verified_lists):
    """The verification labels in files of verified rows, {(key, class): 1, 0 or -1}."""
    labels = {}
    for path in verified_lists:
        for columns in rows.columns_without_feature(path, tsv.VERIFIED, "reading labels"):
            labels[columns[0], columns[-2]] = tsv.VERIFICATION_LABELS.get(columns[-1].encode())
    return labels


def read_tables(score_files, score, keys, list_path):
    """The score files, each a score_table.ScoreTable of the same rows as the list, whose keys are given."""
    tables = [score_table.read(path, score) for path in score_files]
    for path, table in zip(score_files, tables):
        if len(table.score) != len(keys):
            raise UserError(f"{path}: {len(table.score)} scores for {len(keys)} rows of {list_path}; score that list")
        for number, (scored, listed) in enumerate(zip(table.key or keys, keys), 1):
            if scored != listed:
                raise UserError(
                    f'{path}:{number}: the score of "{scored[:80]}", but row {number} of {list_path} is "{listed[:80]}"; score that list'
                )
    return tables


def choose_classes(names, wanted, most, list_path):
    """The classes to draw: the wanted ones, which must be among `names`, or else the first `most`, sorted."""
    known = set(names)
    for name in wanted:
        if name not in known:
            raise UserError(f'--classes: no row of {list_path} is of class "{name}"')
    drawn = wanted or sorted(known)[:most]
    if not wanted and len(known) > len(drawn):
        count = f"{len(drawn)} of {len(known)} classes are drawn"
        warn(f"{count}; choose others with --classes, or more with --max_classes")
    return drawn


def pick(scores, members, count):
    """The `count` lowest, ascending, and the `count` highest, descending, of the rows with indices `members`.

    Returns:
        Two int arrays of indices, none of them twice; rows without a score (NaN) are left out.
    """
    order = members[np.argsort(scores[members], kind="stable")]
    order = order[np.isfinite(scores[order])]
    lowest = order[:count]
    return lowest, order[len(lowest) :][::-1][:count]


def caption(table, index, key, name, label):
    """The lines below an image, and their colour. index: of the row. name: its class. label: 1, 0 or None."""
    text = f"{table.score[index]:.2f}"
    if table.nearest_class and table.nearest_class[index] != name:
        text += f" → {table.nearest_class[index]}"
    verified, colour = figures.LABELS.get(label, figures.UNVERIFIED)
    return [os.path.basename(key), text, verified], colour


def draw(lines, cell, count, size, path):
    """Writes the mosaic.

    Args:
        lines: list of Line. cell: function of (line, index) that returns its figures.Cell. count: images drawn at each end of a
            line. size: side of an image in pixels.
    """
    drawn = []
    for line in lines:
        lowest, highest = ([cell(line, index) for index in members] for members in (line.lowest, line.highest))
        drawn.append((line.title, [*lowest, *[None] * (count + 1 - len(lowest)), *highest]))
    figures.mosaic(drawn, size, path, {0: "lowest scores", count + 1: "highest scores"})


def main():
    opt = flags.FLAGS
    score_files = [opt.score_file] + ([opt.second_score_file] if opt.second_score_file else [])
    if len(opt.score_names) < len(score_files):
        raise UserError(
            f"--score_names={','.join(opt.score_names)}: expected a name for each of the {len(score_files)} score files"
        )
    inputs = {"--score_file": opt.score_file, "--second_score_file": opt.second_score_file}
    inputs |= {"--image_feature_list": opt.image_feature_list} | {f"--verified_list {path}": path for path in opt.verified_list}
    paths.check_distinct({"--output_file": opt.output_file}, inputs)
    images.check_outputs({"--output_file": opt.output_file}, opt.image_dir)
    keys, urls, names = read_list(opt.image_feature_list)
    tables = read_tables(score_files, opt.score, keys, opt.image_feature_list)
    labels = read_labels(opt.verified_list)
    drawn = choose_classes(names, opt.classes, opt.max_classes, opt.image_feature_list)
    class_of, lines = np.array(names), []
    for name in drawn:
        members = np.flatnonzero(class_of == name)
        for table, score_name in zip(tables, opt.score_names):
            title = name if len(tables) == 1 else f"{name} ({score_name})"
            lines.append(Line(title, table, *pick(table.score, members, opt.num_examples)))
    wanted = sorted({int(index) for line in lines for index in (*line.lowest, *line.highest)})
    pixels = {}
    for index in tqdm(wanted, desc="reading images", unit="image", disable=None):
        pixels[index] = images.thumbnail(images.find(keys[index], urls[index], opt.image_dir), opt.image_size)

    def cell(line, index):
        text, colour = caption(line.table, index, keys[index], names[index], labels.get((keys[index], names[index])))
        return figures.Cell(pixels[index], "\n".join(figures.fitted(part, opt.image_size) for part in text), colour)

    draw(lines, cell, opt.num_examples, opt.image_size, opt.output_file)
    unreadable = sum(image is None for image in pixels.values())
    note = f", {unreadable} of them unreadable" if unreadable else ""
    print(f"{opt.output_file}: {len(pixels)} images of {len(drawn)} classes{note}")


if __name__ == "__main__":
    command.run(main)
