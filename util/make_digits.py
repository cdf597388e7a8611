"""Writes a small real data set with known label errors in the suite's input formats: the demo's data.

    python util/make_digits.py --output_dir=demo/data

The 1,797 handwritten digits that scikit-learn ships; a feature is a digit's 64 pixels (0 to 16). About a quarter of the
labels are made wrong with a seed, half of them to a look-alike digit, half to any other. Writes classes.txt, all.tsv,
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

flags.DEFINE_string("output_dir", None, "Folder to write to; it is created.", required=True)
flags.DEFINE_integer("seed", 1, "Seed of the wrong labels and of which rows are verified.", lower_bound=0)
flags.DEFINE_float("noise", 0.25, "Share of the labels made wrong.", lower_bound=0.0, upper_bound=1.0)
flags.DEFINE_integer("num_train", 600, "Rows verified for training.", lower_bound=1)
flags.DEFINE_integer("num_val", 600, "Rows verified for validation.", lower_bound=1)
flags.DEFINE_integer("image_size", 32, "Side of the PNG pictures, in pixels.", lower_bound=8, upper_bound=512)

CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LOOK_ALIKE = [6, 7, 3, 8, 9, 6, 5, 1, 3, 4]  # a digit that each digit is taken for


def wrong_labels(truth, noise, rng):
    """Makes a share of the labels wrong, half of them the look-alike's. truth: int [N]. Returns int [N]."""
    given = truth.copy()
    for i in np.flatnonzero(rng.random(len(truth)) < noise):
        given[i] = LOOK_ALIKE[truth[i]] if rng.random() < 0.5 else (truth[i] + rng.integers(1, 10)) % 10
    return given


def main():
    opt = flags.FLAGS
    digits = load_digits()
    features, truth = digits.data, digits.target
    if opt.num_train + opt.num_val > len(truth):
        raise UserError(f"--num_train={opt.num_train} and --num_val={opt.num_val} need more than the {len(truth)} digits there are")
    rng = np.random.default_rng(opt.seed)
    given = wrong_labels(truth, opt.noise, rng)
    verified = rng.permutation(len(truth))[: opt.num_train + opt.num_val]
    keys = [f"digit_{i:04d}.png" for i in range(len(truth))]

    def write(name, rows, label=None):
        with atomic.whole_file(os.path.join(opt.output_dir, name)) as file:
            for i in rows:
                columns = [keys[i], CLASSES[given[i]]] + ([str(int(given[i] == truth[i]))] if label else [])
                file.write("\t".join([*columns, ",".join(f"{x:g}" for x in features[i])]).encode() + b"\n")

    images = os.path.join(opt.output_dir, "images")
    atomic.make_folder(images)
    atomic.write_text(os.path.join(opt.output_dir, "classes.txt"), "\n".join(CLASSES) + "\n")
    write("all.tsv", range(len(truth)))
    write("train.tsv", np.sort(verified[: opt.num_train]), label=True)
    write("val.tsv", np.sort(verified[opt.num_train :]), label=True)
    truth_lines = (f"{key}\t{CLASSES[digit]}\n" for key, digit in zip(keys, truth))
    atomic.write_text(os.path.join(opt.output_dir, "truth.tsv"), "".join(truth_lines))
    for key, image in zip(keys, digits.images):
        pixels = cv2.resize(255 - image * (255 / 16), (opt.image_size, opt.image_size), interpolation=cv2.INTER_CUBIC)
        png = cv2.imencode(".png", np.clip(pixels, 0, 255).astype(np.uint8))[1]
        with atomic.whole_file(os.path.join(images, key)) as file:
            file.write(png.tobytes())
    print(
        f"{opt.output_dir}: {len(truth)} digits, {100 * np.mean(given != truth):.1f} % mislabeled, "
        f"{opt.num_train} + {opt.num_val} verified, pictures in {images}"
    )


if __name__ == "__main__":
    command.run(main)
