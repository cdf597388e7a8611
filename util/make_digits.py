"""Writes the demo's data: real images with known label errors, in the suite's input formats.

    python util/make_digits.py --output_dir=demo/data

The images are the 1,797 handwritten digits of scikit-learn; a feature is a digit's 64 pixels, 0 to 16. About a quarter
of the labels are made wrong: half of them to a look-alike digit, half to any other. Writes classes.txt, all.tsv,
train.tsv and val.tsv (verified), truth.tsv (key, true class) and images/<key>, a PNG of each digit.
"""
import os
import sys

import cv2
import numpy as np
from absl import flags
from sklearn.datasets import load_digits

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import atomic, command
from util.lib.errors import UserError

flags.DEFINE_string("output_dir", None, "Folder for the data; it is created.", required=True)
flags.DEFINE_integer("seed", 1, "Seed of the wrong labels and of which rows are verified.", lower_bound=0)
flags.DEFINE_float("noise", 0.25, "Share of the labels made wrong.", lower_bound=0.0, upper_bound=1.0)
flags.DEFINE_integer("num_train", 600, "Rows verified for training.", lower_bound=1)
flags.DEFINE_integer("num_val", 600, "Rows verified for validation.", lower_bound=1)
flags.DEFINE_integer("image_size", 32, "Side of the PNG pictures, in pixels.", lower_bound=8, upper_bound=512)

CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LOOK_ALIKE = [6, 7, 3, 8, 9, 6, 5, 1, 3, 4]  # for each digit one that it may be taken for


def wrong_labels(truth, noise, rng):
    """Makes a share `noise` of the labels wrong, half of them the look-alike's. truth: int [N]. Returns int [N]."""
    given = truth.copy()
    for i in np.flatnonzero(rng.random(len(truth)) < noise):
        given[i] = LOOK_ALIKE[truth[i]] if rng.random() < 0.5 else (truth[i] + rng.integers(1, 10)) % 10
    return given


def write_rows(path, columns, features):
    """Writes rows as text. columns: per row a list of str. features: float [N, D]."""
    with atomic.whole_file(path) as file:
        for texts, feature in zip(columns, features):
            file.write("\t".join([*texts, ",".join(f"{x:g}" for x in feature)]).encode() + b"\n")


def write_image(path, image, size):
    """Writes a digit as a PNG of size x size pixels, dark on white. image: float [8, 8], 0 to 16."""
    pixels = cv2.resize(255 - image * (255 / 16), (size, size), interpolation=cv2.INTER_CUBIC)
    png = cv2.imencode(".png", np.clip(pixels, 0, 255).astype(np.uint8))[1]
    with atomic.whole_file(path) as file:
        file.write(png.tobytes())


def main():
    opt = flags.FLAGS
    digits = load_digits()
    truth, num_verified = digits.target, opt.num_train + opt.num_val
    if num_verified > len(truth):
        raise UserError(
            f"--num_train={opt.num_train} and --num_val={opt.num_val} need more than the {len(truth)} digits there are"
        )
    rng = np.random.default_rng(opt.seed)
    given = wrong_labels(truth, opt.noise, rng)
    verified = rng.permutation(len(truth))[:num_verified]
    keys = [f"digit_{i:04d}.png" for i in range(len(truth))]
    unverified_rows = [[key, CLASSES[label]] for key, label in zip(keys, given)]
    verified_rows = [[*row, str(int(is_correct))] for row, is_correct in zip(unverified_rows, given == truth)]

    images = os.path.join(opt.output_dir, "images")
    atomic.make_folder(images)
    atomic.write_text(os.path.join(opt.output_dir, "classes.txt"), "\n".join(CLASSES) + "\n")
    write_rows(os.path.join(opt.output_dir, "all.tsv"), unverified_rows, digits.data)
    for split, indices in (("train", verified[: opt.num_train]), ("val", verified[opt.num_train :])):
        indices = np.sort(indices)
        path = os.path.join(opt.output_dir, f"{split}.tsv")
        write_rows(path, [verified_rows[i] for i in indices], digits.data[indices])
    truth_lines = (f"{key}\t{CLASSES[digit]}\n" for key, digit in zip(keys, truth))
    atomic.write_text(os.path.join(opt.output_dir, "truth.tsv"), "".join(truth_lines))
    for key, image in zip(keys, digits.images):
        write_image(os.path.join(images, key), image, opt.image_size)
    print(
        f"{opt.output_dir}: {len(truth)} digits, {100 * np.mean(given != truth):.1f} % mislabeled, "
        f"{opt.num_train} + {opt.num_val} verified, pictures in {images}"
    )


if __name__ == "__main__":
    command.run(main)
