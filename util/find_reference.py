"""Finds the reference features of every class: the centres of k-means over its rows of all.npy (paper, section 3.1).

    python util/find_reference.py --class_list=data/classes.txt --input_npy=data/all.npy --output_dir=data
"""
import os
import sys

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import arrays, atomic, class_list, command, kmeans
from util.lib.errors import UserError, warn

flags.DEFINE_string("class_list", None, "Text file, one class name a line.", required=True)
flags.DEFINE_string("input_npy", None, "all.npy, as util/convert_data.py --split=all writes it.", required=True)
flags.DEFINE_string("output_dir", None, "Folder for ref.npy; it is created.", required=True)
flags.DEFINE_integer("num_ref", 32, "References a class.", lower_bound=1)
flags.DEFINE_integer("img_dim", 2048, "Numbers a feature has; taken from the array where it is not given.", lower_bound=1)
flags.DEFINE_enum(
    "kmeans", "numpy", ["numpy", "tensorflow", "opencv"],
    "What computes: numpy, several times faster than opencv; tensorflow, the same on a GPU; opencv, as the 2018 release.",
)
flags.DEFINE_integer("seed", 1, "Seed of the first centres.", lower_bound=0)
flags.DEFINE_bool(
    "skip_empty_classes", False,
    "Give classes without any row references of zeros; train.py with the same flag leaves them out. Otherwise an error.",
)

SHOWN = 5  # classes that a message names


def opencv_centres(features, num_ref, seed):
    """Centres by cv2.kmeans, ten attempts, float32 [num_ref, D]."""
    cv2.setRNGSeed(seed)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, kmeans.ITERATIONS, kmeans.TOLERANCE)
    return cv2.kmeans(features, num_ref, None, criteria, 10, cv2.KMEANS_PP_CENTERS)[2]


ENGINES = {
    "numpy": lambda *arguments: kmeans.centres_of(*arguments)[0],
    "tensorflow": lambda *arguments: kmeans.centres_of(*arguments, kmeans.tensorflow_product)[0],
    "opencv": opencv_centres,
}


def class_centres(features, num_ref, seed, engine):
    """float32 [num_ref, D] from float32 [N, D]; fewer rows than num_ref are repeated to fill it, none give zeros."""
    if not len(features):
        return 0
    if len(features) <= num_ref:
        return features[np.arange(num_ref) % len(features)]
    return ENGINES[engine](features, num_ref, seed)


def find_references(rows, num_ref, seed, engine):
    """One class after the other, so that one is in memory. rows: arrays.FeatureArray, grouped. Returns float32 [C, num_ref, D]."""
    num_classes = len(rows.first) - 1
    references = np.zeros((num_classes, num_ref, rows.img_dim), np.float32)
    bar = tqdm(total=rows.num_rows, desc="finding references", unit="row", unit_scale=True, disable=None)
    with bar:
        for c in range(num_classes):
            features = np.array(rows.features[rows.first[c] : rows.first[c + 1]])
            references[c] = class_centres(features, num_ref, seed + c, engine)
            bar.update(len(features))
    return references


def named(class_names, ids):
    """A few classes by name, for a message."""
    return ", ".join(f'"{class_names[i]}"' for i in ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")


def main():
    opt = flags.FLAGS
    class_names = class_list.load(opt.class_list)
    rows = arrays.FeatureArray(
        opt.input_npy, num_classes=len(class_names), verified=False, grouped=True,
        img_dim=opt.img_dim if opt["img_dim"].present else None,
    )
    class_list.require_beside(os.path.dirname(opt.input_npy), class_names, opt.class_list)
    sizes = np.diff(rows.first)
    empty, small = np.flatnonzero(sizes == 0), np.flatnonzero((sizes > 0) & (sizes < opt.num_ref))
    if len(empty) and not opt.skip_empty_classes:
        raise UserError(
            f"{opt.input_npy}: no rows of {len(empty)} classes: {named(class_names, empty)}; add images of them, take them out of "
            "the class list, or leave them out of training with --skip_empty_classes (here and in train.py)"
        )
    if len(small):
        warn(f"{len(small)} classes have fewer than num_ref={opt.num_ref} rows, which are repeated: {named(class_names, small)}")
    if opt.kmeans == "tensorflow":
        command.import_tensorflow()
    path = os.path.join(opt.output_dir, "ref.npy")
    atomic.make_folder(opt.output_dir)
    class_list.check_beside(opt.output_dir, class_names, opt.class_list)
    atomic.write_npy(path, find_references(rows, opt.num_ref, opt.seed, opt.kmeans))
    class_list.keep_beside(opt.output_dir, class_names)
    print(f"{path}: {opt.num_ref} references of {rows.img_dim} numbers for each of {len(class_names)} classes")


if __name__ == "__main__":
    command.run(main)
