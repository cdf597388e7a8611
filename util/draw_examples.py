"""Draws a mosaic of the images of each class that fit it worst and best, to look at.

    python util/draw_examples.py --score_file=runs/scores.tsv --image_feature_list=data/all.tsv --image_dir=data/images \
        --output_file=runs/examples.png

Images are found in image_dir by their key, or by the url column where that is a local path. Under each: its score, the class it
fits best if that is another, and what a person said of it if --verified_list has it. With a second score file (the paper's figure:
"F", trained on all classes, and "D", with the class held out) each class has a second line.
"""
import os
import sys

import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import atomic, command, score_table, tsv
from util.lib.errors import UserError, warn

flags.DEFINE_string("score_file", None, "Scores of the rows of image_feature_list; best as --output_format=tsv.", required=True)
flags.DEFINE_string("second_score_file", None, "Scores of the same rows by another model, drawn below the first.")
flags.DEFINE_list("score_names", ["F", "D"], "What the two score files are called in the picture.")
flags.DEFINE_enum("score", "cosine", score_table.SCORES, "Which column of a table counts.")
flags.DEFINE_string("image_feature_list", None, "The rows that were scored: key, [url,] class name, feature; .gz too.", required=True)
flags.DEFINE_string("image_dir", None, "Folder in which an image is found by its key.")
flags.DEFINE_list("verified_list", [], "Verified rows (tab-separated files, by commas), whose labels are shown.")
flags.DEFINE_list("classes", [], "Classes to draw, by commas; none: the first max_classes.")
flags.DEFINE_integer("max_classes", 20, "Classes drawn at most.", lower_bound=1)
flags.DEFINE_integer("num_examples", 10, "Lowest, and highest, scoring images of each class.", lower_bound=1, upper_bound=50)
flags.DEFINE_integer("image_size", 96, "Side of an image in the picture, in pixels.", lower_bound=16, upper_bound=512)
flags.DEFINE_string("output_file", None, "The picture, a PNG.", required=True)

LABELS = {"1": ("correct", "#2b7a2b"), "0": ("wrong", "#c0233b")}
MAX_PIXELS = 1 << 27  # of an image file; a larger one is drawn as a placeholder


def read_list(path):
    """The keys, urls and classes of the rows, three lists."""
    keys, urls, names = [], [], []
    for _, columns, _ in tsv.columns_without_feature(path, tsv.UNVERIFIED, "reading the list"):
        keys.append(columns[0])
        urls.append(columns[1] if len(columns) == 3 else "")
        names.append(columns[-1])
    return keys, urls, names


def read_labels(paths):
    """{key: "1" or "0"} of verified rows."""
    labels = {}
    for path in paths:
        for _, columns, _ in tsv.columns_without_feature(path, tsv.VERIFIED, "reading labels"):
            labels[columns[0]] = columns[-1]
    return labels


def find_image(key, url, image_dir):
    """The path of an image, or None: image_dir/key (never outside image_dir), else the url if it is a local file."""
    if image_dir:
        folder = os.path.realpath(image_dir)
        path = os.path.realpath(os.path.join(folder, key))
        if path.startswith(folder + os.sep) and os.path.isfile(path):
            return path
    path = url.removeprefix("file://")
    return path if path and os.path.isfile(path) else None


def load_image(path, size):
    """uint8 [size, size, 3] RGB, the middle square of the image; None if it cannot be read."""
    import cv2

    if path is None:
        return None
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    except (OSError, cv2.error):
        return None
    if image is None or image.shape[0] * image.shape[1] > MAX_PIXELS:
        return None
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_NEAREST)[:, :, ::-1]


def pick(scores, members, count):
    """The `count` lowest, ascending, and the `count` highest, descending, of the rows `members`: two int arrays, no row twice."""
    order = members[np.argsort(scores[members], kind="stable")]
    order = order[np.isfinite(scores[order])]
    lowest = order[:count]
    return lowest, order[len(lowest) :][::-1][:count]


def draw(lines, images, captions, count, size, path):
    """Writes the mosaic.

    Args:
        lines: list of (title, lowest rows, highest rows). images: {row: uint8 image or None}. captions: function
            (line number, row) -> (text, colour).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["text.parse_math"] = False  # a dollar in a class name is a dollar
    dpi, gap, text = 100, 8, 34
    width, height = (2 * count + 1) * (size + gap) + 130, len(lines) * (size + text + gap) + 40
    figure = plt.figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    figure.text(130 / width, 1 - 20 / height, "lowest scores", fontsize=11, weight="bold")
    figure.text((130 + (count + 1) * (size + gap)) / width, 1 - 20 / height, "highest scores", fontsize=11, weight="bold")
    for n, (title, lowest, highest) in enumerate(lines):
        top = 36 + n * (size + text + gap)
        figure.text(8 / width, 1 - (top + size / 2) / height, title, fontsize=10, va="center", wrap=True)
        for block, members in enumerate((lowest, highest)):
            for i, row in enumerate(members):
                left = 130 + (block * (count + 1) + i) * (size + gap)
                axis = figure.add_axes((left / width, 1 - (top + size) / height, size / width, size / height))
                axis.set_xticks([])
                axis.set_yticks([])
                if images[row] is None:
                    axis.text(0.5, 0.5, "no image", ha="center", va="center", fontsize=7, color="gray")
                else:
                    axis.imshow(images[row])
                caption, colour = captions(n, row)
                for spine in axis.spines.values():
                    spine.set_color(colour)
                    spine.set_linewidth(2)
                axis.set_xlabel(caption, fontsize=7, color=colour, labelpad=2)
    with atomic.whole_file(path) as file:
        figure.savefig(file, format="png")
    plt.close(figure)


def main():
    opt = flags.FLAGS
    paths = [opt.score_file] + ([opt.second_score_file] if opt.second_score_file else [])
    if len(opt.score_names) < len(paths):
        raise UserError(f"--score_names={','.join(opt.score_names)}: expected a name for each of the {len(paths)} score files")
    keys, urls, names = read_list(opt.image_feature_list)
    tables = [score_table.read(path, opt.score) for path in paths]
    for path, table in zip(paths, tables):
        if len(table.score) != len(keys):
            raise UserError(f"{path}: {len(table.score)} scores for {len(keys)} rows of {opt.image_feature_list}; score that list")
    labels = read_labels(opt.verified_list)
    known = list(dict.fromkeys(names))
    for name in opt.classes:
        if name not in known:
            raise UserError(f'--classes: no row of {opt.image_feature_list} is of class "{name}"')
    drawn = opt.classes or sorted(known)[: opt.max_classes]
    if not opt.classes and len(known) > len(drawn):
        warn(f"{len(drawn)} of {len(known)} classes are drawn; choose others with --classes, or more with --max_classes")

    names, lines, table_of_line = np.array(names), [], []
    for name in drawn:
        for table, called in zip(tables, opt.score_names):
            title = name if len(tables) == 1 else f"{name} ({called})"
            lines.append((title, *pick(table.score, np.flatnonzero(names == name), opt.num_examples)))
            table_of_line.append(table)
    wanted = sorted({int(row) for _, lowest, highest in lines for row in (*lowest, *highest)})
    images = {}
    for row in tqdm(wanted, desc="reading images", unit="image", disable=None):
        images[row] = load_image(find_image(keys[row], urls[row], opt.image_dir), opt.image_size)

    def caption(line, row):
        table = table_of_line[line]
        text = f"{table.score[row]:.2f}"
        said, colour = LABELS.get(labels.get(keys[row]), ("", "#777777"))
        if table.nearest_class and table.nearest_class[row] != names[row]:
            text += f" → {table.nearest_class[row]}"
        return f"{text}\n{said}".rstrip(), colour

    draw(lines, images, caption, opt.num_examples, opt.image_size, opt.output_file)
    unreadable = sum(image is None for image in images.values())
    print(f"{opt.output_file}: {len(images)} images of {len(drawn)} classes" + (f", {unreadable} of them unreadable" if unreadable else ""))


if __name__ == "__main__":
    command.run(main)
