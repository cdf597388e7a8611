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
from util.lib import array_writer, arrays, atomic, checksums, class_list, command, kmeans, paths
from util.lib.errors import UserError, counted, warn

flags.DEFINE_string("class_list", None, "Text file with one class name per line.", required=True)
flags.DEFINE_string("input_npy", None, "all.npy, written by util/convert_data.py --split=all.", required=True)
flags.DEFINE_string("output_dir", None, "Folder for ref.npy; it is created.", required=True)
flags.DEFINE_integer("num_ref", 32, "References per class.", lower_bound=1)
flags.DEFINE_integer("img_dim", 2048, "Numbers per feature; if not given, those of the array.", lower_bound=1)
flags.DEFINE_enum(
    "kmeans", "numpy", ["numpy", "tensorflow", "opencv"],
    "Engine: numpy, several times faster than opencv; tensorflow, the same on a GPU; opencv, like the 2018 release.",
)
flags.DEFINE_integer("seed", 1, "Seed of the first centres.", lower_bound=0, upper_bound=2**31 - 1)
flags.DEFINE_bool(
    "skip_empty_classes", False,
    "Give classes without rows references of zeros, which train.py with the same flag leaves out. Otherwise an error.",
)

SHOWN = 5  # classes that a message names


def opencv_centres(features, num_ref, seed):
    """Centres by cv2.kmeans, the best of ten attempts: float32 [N, D] -> float32 [num_ref, D]."""
    cv2.setRNGSeed(seed % 2**31)  # of the last classes it may be larger
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, kmeans.ITERATIONS, kmeans.TOLERANCE)
    return cv2.kmeans(features, num_ref, None, criteria, 10, cv2.KMEANS_PP_CENTERS)[2]


ENGINES = {
    "numpy": lambda *arguments: kmeans.centres_of(*arguments)[0],
    "tensorflow": lambda *arguments: kmeans.centres_of(*arguments, kmeans.tensorflow_product)[0],
    "opencv": opencv_centres,
}


def find_references(array, num_ref, seed, engine):
    """The references of all classes, one class in memory at a time.

    Args:
        array: arrays.FeatureArray, grouped by class. seed: int; class c gets seed + c. engine: a key of ENGINES.

    Returns:
        float32 [C, num_ref, D].
    """
    num_classes = len(array.first) - 1
    references = np.zeros((num_classes, num_ref, array.img_dim), np.float32)
    with tqdm(total=array.num_rows, desc="finding references", unit="row", unit_scale=True, disable=None) as bar:
        for c in range(num_classes):
            features = np.array(array.features[array.first[c] : array.first[c + 1]])
            references[c] = kmeans.references_of_class(features, num_ref, seed + c, ENGINES[engine])
            bar.update(len(features))
    return references


def named(class_names, ids):
    """The names of the first few classes in `ids`, for a message."""
    return ", ".join(f'"{class_names[i]}"' for i in ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")


def check_class_sizes(array, class_names, num_ref, skip_empty_classes):
    """Refuses classes without rows, unless they may be skipped, and warns of classes with fewer rows than num_ref."""
    sizes = np.diff(array.first)
    empty, small = np.flatnonzero(sizes == 0), np.flatnonzero((sizes > 0) & (sizes < num_ref))
    if len(empty) and not skip_empty_classes:
        raise UserError(
            f"{array.path}: no rows of {counted(len(empty), 'class')}: {named(class_names, empty)}; add images, "
            "remove them from the class list, or give --skip_empty_classes here and in train.py"
        )
    if len(small):
        classes = counted(len(small), "class")
        warn(f"{classes} with fewer than num_ref={num_ref} rows, which are repeated: {named(class_names, small)}")


def main():
    opt = flags.FLAGS
    class_names = class_list.load(opt.class_list)
    path = os.path.join(opt.output_dir, "ref.npy")
    paths.check_distinct(
        {"the references": path, "their checksums": checksums.beside(path)},
        {**arrays.files_of("--input_npy", opt.input_npy), "--class_list": opt.class_list},
    )
    class_list.require_beside(os.path.dirname(opt.input_npy), class_names, opt.class_list)
    array = arrays.FeatureArray(
        opt.input_npy, class_names=class_names, verified=False, grouped=True, img_dim=command.given(opt, "img_dim")
    )
    check_class_sizes(array, class_names, opt.num_ref, opt.skip_empty_classes)
    if opt.kmeans == "tensorflow":
        command.import_tensorflow()
    atomic.make_folder(opt.output_dir)
    class_list.check_beside(opt.output_dir, class_names, opt.class_list)
    atomic.check_writable([path, checksums.beside(path)])
    references = find_references(array, opt.num_ref, opt.seed, opt.kmeans)
    array_writer.write_references(path, references, class_names, source=array)
    print(f"{path}: {opt.num_ref} references of {array.img_dim} numbers for each of {len(class_names)} classes")


if __name__ == "__main__":
    command.run(main)
