"""Looks at the data before anything is trained: duplicates, and images of another style than the rest.

    python util/check_data.py --data_dir=data --image_dir=data/images --output_file=runs/odd.tsv --picture_file=runs/odd.png

Duplicates are found by features: the same ones, and those whose cosine is at least near_cosine. They matter across classes, where
one label is wrong, and across train and val, where validation measures what training has seen. Styles are found by looking at
images: grey ones, line drawings, near-empty and tiny ones. The list has key, class, what and group.
"""
import collections
import hashlib
import itertools
import os
import sys
from typing import NamedTuple

import numpy as np
from absl import flags
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import arrays, atomic, class_list, command, figures, images, neighbours, paths, run_folder, styles
from util.lib.errors import UserError, counted

flags.DEFINE_string("data_dir", None, "Folder of all.npy and classes.txt, and of train.npy and val.npy if they are there.", required=True)
flags.DEFINE_string("image_dir", None, "Folder in which an image is found by its key. Without it only duplicates are found.")
flags.DEFINE_float(
    "near_cosine", 0.98, "Cosine of two features, less their mean, from which rows are near duplicates.", lower_bound=0.5, upper_bound=1.0
)
flags.DEFINE_integer("images_per_class", 200, "Images per class, at most, whose style is looked at.", lower_bound=1)
flags.DEFINE_integer("seed", 1, "Seed of the rows that are compared first, and of the images that are looked at.", lower_bound=0)
flags.DEFINE_string("output_file", None, "The list: key, class, what, group.", required=True)
flags.DEFINE_string("picture_file", None, "With --image_dir: a PNG of the groups.")

BLOCK = 4096  # rows read at once
COMPARE_ALL = 4000  # rows up to which each is compared with each
MEAN_OVER = 10_000  # rows that the mean feature is taken over
ONE_STYLE = 0.9  # share of a class's images from which it is of one style
LINES, IMAGES_PER_LINE, IMAGE_SIZE = 40, 8, 96  # of the picture; the last in pixels


class Rows:
    """The rows of all.npy, and those of train.npy and val.npy that it lacks.

    Attributes:
        names: the class list. keys: list of str [N]. class_ids: int32 [N]. splits: list of "train", "val" or "", [N].
    """

    def __init__(self, data_dir):
        class_path = os.path.join(data_dir, "classes.txt")
        self.names, self.keys, self._parts, ids = class_list.load(class_path), [], [], []
        split_of, known = {}, set()
        for split in ("all", "train", "val"):
            path = os.path.join(data_dir, f"{split}.npy")
            if split != "all" and not os.path.exists(path):
                continue
            array = arrays.FeatureArray(
                path, class_names=self.names, verified=split != "all", img_dim=self._parts[0][0].img_dim if self._parts else None
            )
            keys = array.sample_keys()
            rows = list(zip(keys, array.class_ids.tolist()))  # an image may be in several classes, a row of each
            split_of |= dict.fromkeys(rows, split) if split != "all" else {}
            new = np.array([i for i, row in enumerate(rows) if split == "all" or row not in known], np.int64)
            known |= set(rows)
            self._parts.append((array, new))
            self.keys += [keys[i] for i in new]
            ids.append(array.class_ids[new])
        self.class_ids = np.concatenate(ids)
        self.splits = [split_of.get(row, "") for row in zip(self.keys, self.class_ids.tolist())]
        self._starts = np.cumsum([0] + [len(new) for _, new in self._parts])

    def features(self, rows):
        """The features of rows, float32 [n, D]. rows: int [n]."""
        found = np.empty((len(rows), self._parts[0][0].img_dim), np.float32)
        for (array, new), start, end in zip(self._parts, self._starts, self._starts[1:]):
            here = np.flatnonzero((rows >= start) & (rows < end))
            found[here] = array.features[new[rows[here] - start]]
        return found


def blocks(rows, text):
    """Yields int arrays of up to BLOCK of the given rows, under a progress bar."""
    with tqdm(total=len(rows), desc=text, unit="row", unit_scale=True, disable=None) as bar:
        for start in range(0, len(rows), BLOCK):
            yield rows[start : start + BLOCK]
            bar.update(min(BLOCK, len(rows) - start))


def exact_copies(rows):
    """For each row the first one with the same feature, int [N]."""
    first, found = {}, np.arange(len(rows.keys))
    for part in blocks(found.copy(), "exact duplicates"):
        for i, feature in zip(part, rows.features(part)):
            found[i] = first.setdefault(hashlib.blake2b(feature, digest_size=16).digest(), i)
    return found


def cells_of(members, unit, pivots):
    """Rows that may be near duplicates: those that have a pivot among their two nearest ones, a list of int [n].

    Args:
        members: int [M]. unit: function of rows to float32 [n, D] of length 1. pivots: float32 [P, D] of length 1.
    """
    if len(pivots) == 1:
        return [members]
    nearest = np.concatenate([
        np.argpartition(-(unit(part) @ pivots.T), 1, axis=1)[:, :2].copy()  # a view would keep all P columns
        for part in blocks(members, "parting the rows")
    ]).ravel()
    order = np.argsort(nearest, kind="stable")
    ends = np.searchsorted(nearest[order], np.arange(len(pivots) + 1))
    return [members[order[first:end] // 2] for first, end in itertools.pairwise(ends)]


def near_pairs(members, unit, near_cosine):
    """Pairs of rows of a cell that join its near duplicates: (int [n], int [n]). Arguments as in cells_of."""
    features, pairs = unit(members), []
    for start in range(0, len(members), neighbours.BLOCK):
        i, j = np.nonzero(features[start : start + neighbours.BLOCK] @ features.T >= near_cosine)
        pairs.append(np.stack([i + start, j])[:, i + start < j])
    i, j = np.concatenate(pairs, axis=1)
    return members[i], members[j]


def duplicates(rows, near_cosine, rng):
    """Groups of duplicates: (int [N], the group of each row; bool [N], whether another row has the same feature)."""
    total = len(rows.keys)
    copy_of = exact_copies(rows)
    is_copy = np.bincount(copy_of, minlength=total)[copy_of] > 1
    members = np.unique(copy_of)
    sample = np.sort(rng.choice(members, min(MEAN_OVER, len(members)), replace=False))
    mean = rows.features(sample).mean(axis=0)

    def unit(part):
        return neighbours.unit_rows(rows.features(part) - mean)

    num_pivots = 1 if len(members) <= COMPARE_ALL else int(2 * np.sqrt(len(members)))
    pivots = unit(np.sort(rng.choice(members, num_pivots, replace=False)))
    pairs = [(np.arange(total), copy_of)]
    for cell in tqdm(cells_of(members, unit, pivots), desc="near duplicates", unit="cell", disable=None):
        pairs.append(near_pairs(cell, unit, near_cosine))
    i, j = (np.concatenate(column) for column in zip(*pairs))
    graph = coo_matrix((np.ones(len(i), bool), (i, j)), (total, total))
    return connected_components(graph, directed=False)[1], is_copy


class Group(NamedTuple):
    """Rows that go together. rows: list of int. what: list of str, of each row. name: str."""

    rows: list
    what: list
    name: str


def duplicate_groups(rows, group_of, is_copy):
    """The groups of two rows or more, those across train and val first, then those across classes: a list of Group."""
    order = np.argsort(group_of, kind="stable")
    found = []
    for members in np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1):
        if len(members) > 1:
            splits, num_classes = {rows.splits[i] for i in members}, len(set(rows.class_ids[members].tolist()))
            across = [", train and val"] * ({"train", "val"} <= splits) + [", several classes"] * (num_classes > 1)
            found.append((members.tolist(), "".join(across)))
    found.sort(key=lambda group: (", train" not in group[1], not group[1], group[0]))
    return [
        Group(members, [("exact" if is_copy[i] else "near") + " duplicate" + across for i in members], f"duplicates {number}")
        for number, (members, across) in enumerate(found, 1)
    ]


def style_groups(rows, found):
    """Images of another style than most.

    Args:
        found: {index of a row: its style}.

    Returns:
        (list of Group, one per class and style, those of a whole class first, then the largest; the usual style;
        {class name: style} of the classes of one other style).
    """
    usual = collections.Counter(found.values()).most_common(1)[0][0]
    by_class = collections.defaultdict(dict)
    for i, style in found.items():
        by_class[rows.names[rows.class_ids[i]]].setdefault(style, []).append(i)
    groups, one_style = [], {}
    for name, members in sorted(by_class.items()):
        total = sum(map(len, members.values()))
        for style, indices in sorted(members.items()):
            if style != usual:
                whole = len(indices) >= ONE_STYLE * total
                one_style |= {name: style} if whole else {}
                groups.append(Group(indices, [style + ", as its class" * whole] * len(indices), f"{style}: {name}"))
    groups.sort(key=lambda group: (", as" not in group.what[0], -len(group.rows)))
    return groups, usual, one_style


def draw(rows, groups, image_dir, path):
    """Draws a line of images per group."""
    lines = []
    for group in tqdm(groups, desc="drawing", unit="group", disable=None):
        cells = []
        for i in group.rows[:IMAGES_PER_LINE]:
            pixels = images.thumbnail(images.find(rows.keys[i], "", image_dir), IMAGE_SIZE)
            text = [os.path.basename(rows.keys[i]), rows.names[rows.class_ids[i]], rows.splits[i]]
            cells.append(figures.Cell(pixels, "\n".join(figures.fitted(part, IMAGE_SIZE) for part in text), figures.UNVERIFIED[1]))
        what = [part for part in group.what[0].split(", ") if part not in group.name]
        lines.append(("\n".join([*group.name.split(": "), *what, counted(len(group.rows), "row")]), cells))
    figures.mosaic(lines, IMAGE_SIZE, path)


def print_duplicates(groups):
    """Says how many duplicates there are. groups: of duplicate_groups."""
    size = sum(len(group.rows) for group in groups)
    across = [sum(text in group.what[0] for group in groups) for text in ("several classes", "train and val")]
    print(
        f"duplicates: {counted(size, 'row')} in {counted(len(groups), 'group')}; {across[0]} across classes, "
        f"{across[1]} across train and val"
    )


def print_styles(found, usual, one_style):
    """Says which styles there are. found, usual, one_style: as in style_groups."""
    counts = collections.Counter(found.values()).most_common()
    print(f"styles of {counted(len(found), 'image')}: {', '.join(f'{style} {n}' for style, n in counts)}; {usual} is the usual one")
    if one_style:
        print("classes of one other style: " + ", ".join(f"{name} ({style})" for name, style in one_style.items()))


def look_at_styles(rows, image_dir, most, rng):
    """The styles of some images of each class, {index of a row: style}. most: images per class, at most."""
    shuffled = rng.permutation(len(rows.keys))
    groups = arrays.rows_by_class(rows.class_ids[shuffled], len(rows.names))
    chosen = sorted(int(row) for members in groups for row in shuffled[members[:most]])
    bar = tqdm(chosen, desc="looking at images", unit="image", disable=None)
    return dict(zip(chosen, styles.styles_of(images.find(rows.keys[i], "", image_dir) for i in bar)))


def main():
    opt = flags.FLAGS
    if opt.picture_file and not opt.image_dir:
        raise UserError("--picture_file shows images; give their --image_dir, or leave it out")
    outputs = {"--output_file": opt.output_file, "--picture_file": opt.picture_file}
    paths.check_distinct(outputs, {name: os.path.join(opt.data_dir, name) for name in run_folder.DATA_FILES})
    images.check_outputs(outputs, opt.image_dir)
    rows, rng = Rows(opt.data_dir), np.random.default_rng(opt.seed)
    atomic.check_writable(outputs.values())
    groups = duplicate_groups(rows, *duplicates(rows, opt.near_cosine, rng))
    print_duplicates(groups)
    drawn = groups[: LINES // 2]
    if opt.image_dir:
        found = look_at_styles(rows, opt.image_dir, opt.images_per_class, rng)
        odd, usual, one_style = style_groups(rows, found)
        print_styles(found, usual, one_style)
        groups, drawn = groups + odd, drawn + odd[: LINES // 2]
    lines = [
        f"{rows.keys[i]}\t{rows.names[rows.class_ids[i]]}\t{what}\t{group.name}\n" for group in groups
        for i, what in zip(group.rows, group.what)
    ]
    atomic.write_text(opt.output_file, "".join(lines))
    print(f"{opt.output_file}: {counted(len(lines), 'row')} in {counted(len(groups), 'group')}")
    if opt.picture_file and drawn:
        draw(rows, drawn, opt.image_dir, opt.picture_file)
        print(f"{opt.picture_file}: {counted(len(drawn), 'group')}")


if __name__ == "__main__":
    command.run(main)
