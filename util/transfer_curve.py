"""Measures transfer: the error in classes without verified rows, against the share of classes that have some.

    python util/transfer_curve.py --data_dir=data --output_dir=runs/transfer --shares=0.1,0.5,0.9 --seeds=1,2,3 \
        --train_flags="--n_step=3000 --lr_update=2000"

For each share and seed, a random part of the classes keeps its verified rows. train.py learns from those, and its last
validation measures kept and held-out classes apart (paper, section 4.3) at thresholds that are cross-fitted on kept
classes. Trainings that are complete are not repeated. Writes transfer.json and transfer.png.
"""
import os
import sys

import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import atomic, class_list, command, figures, run_folder, subcommand
from util.lib.errors import UserError

flags.DEFINE_string("data_dir", None, "Folder of the converted data, with verified rows of all classes.", required=True)
flags.DEFINE_string("output_dir", None, "Folder for the trainings, transfer.json and transfer.png.", required=True)
flags.DEFINE_list(
    "shares", ["0.1", "0.3", "0.5", "0.7", "0.9", "1.0"],
    "Shares of the classes that keep their verified rows, separated by commas.",
)
flags.DEFINE_list(
    "seeds", ["1", "2", "3"], "Seeds of the choice of classes and of the training, separated by commas."
)
flags.DEFINE_string("train_flags", "", "Further flags of train.py, as one string.")

GROUPS = (  # key in transfer.json, label and colour in the picture
    ("heldout", "classes without verifications", figures.RED), ("kept", "classes with verifications", figures.BLUE),
)


def parse_numbers(texts, kind, low, high, flag):
    """The values of a list flag as int or float (`kind`), each from low to high."""
    values = [command.parse_number(text) for text in texts]
    if not values or any(value is None or kind(value) != value or not low <= value <= high for value in values):
        raise UserError(f"--{flag}={','.join(texts)}: expected numbers from {low} to {high}, separated by commas")
    return list(map(kind, values))


def train(folder, class_names, share, seed, *, data_dir, train_flags):
    """Trains in a folder with a share of the classes verified, unless that is done. Returns their number."""
    kept = np.random.default_rng(seed).permutation(len(class_names))[: max(1, round(share * len(class_names)))]
    arguments = [
        f"--data_dir={data_dir}", f"--checkpoint_dir={folder}/run", f"--log_dir={folder}/log", f"--seed={seed}",
        *subcommand.split_flags("train_flags", train_flags),
    ]
    if len(kept) < len(class_names):
        heldout = os.path.join(folder, "heldout.tsv")
        atomic.write_text(heldout, "".join(f"{name}\t{int(c in kept)}\n" for c, name in enumerate(class_names)))
        arguments.append(f"--heldout_class_list={heldout}")
    subcommand.run(f"training with {share:g} of the classes, seed {seed}", "train.py", arguments)
    return len(kept)


def last_errors(run):
    """The average error rates at the last validation of a run folder: {"kept": float, "heldout": float or None}."""
    last = run_folder.load_state(run, run_folder.pick_step(run, "latest"))["history"][-1]
    if "all" not in last:
        raise UserError(f"{run}: was trained without val.npy, so nothing was measured; verify rows for validation, and convert them")
    if "heldout" not in last:
        return {"kept": last["all"]["chosen"]["average_error_rate"], "heldout": None}
    return {group: last[group]["chosen"]["average_error_rate"] for group in ("kept", "heldout")}


def mean_and_spread(errors):
    """Mean and standard deviation of errors over seeds, in percent, as text; an empty text for no errors."""
    if not errors:
        return ""
    spread = f" ± {100 * np.std(errors, ddof=1):.2f}" if len(errors) > 1 else ""
    return f"{100 * np.mean(errors):.2f}{spread}"


def draw(results, path):
    """Draws the errors against the number of classes with verifications: a dot per seed, a line through the means."""
    figure, axes = figures.figure(6.5, 4)
    for group, label, colour in GROUPS:
        points = [(r["classes_verified"], 100 * r[group]) for r in results if r[group] is not None]
        if not points:
            continue
        x, y = np.array(points).T
        axes.plot(x, y, "o", color=colour, alpha=0.4)
        means = [(n, y[x == n].mean()) for n in np.unique(x)]
        axes.plot(*zip(*means), color=colour, label=label)
    axes.set(xlabel="classes with verifications", ylabel="average error rate over classes, %")
    axes.set_ylim(bottom=0)
    axes.legend()
    figures.save_png(figure, path)


def print_table(results, shares, num_classes):
    """Prints mean and spread of each share as a table in Markdown."""
    print("| classes with verifications | error, classes without, % | error, classes with, % |\n|---|---|---|")
    for share in shares:
        of_share = [r for r in results if r["share"] == share]
        cells = [mean_and_spread([r[group] for r in of_share if r[group] is not None]) for group, _, _ in GROUPS]
        print(f"| {of_share[0]['classes_verified']} of {num_classes} | {cells[0]} | {cells[1]} |")


def main():
    opt = flags.FLAGS
    class_names = class_list.load(os.path.join(opt.data_dir, "classes.txt"))
    shares = parse_numbers(opt.shares, float, 0, 1, "shares")
    seeds = parse_numbers(opt.seeds, int, 0, 2**31 - 1, "seeds")
    atomic.make_folder(opt.output_dir)
    results = []
    for share in tqdm(shares, desc="shares", unit="share", disable=None):
        for seed in seeds:
            folder = os.path.join(opt.output_dir, f"share{share:g}_seed{seed}")
            num_kept = train(folder, class_names, share, seed, data_dir=opt.data_dir, train_flags=opt.train_flags)
            errors = last_errors(os.path.join(folder, "run"))
            results.append({"share": share, "seed": seed, "classes_verified": num_kept, **errors})
            atomic.write_json(os.path.join(opt.output_dir, "transfer.json"), results)
    draw(results, os.path.join(opt.output_dir, "transfer.png"))
    print_table(results, shares, len(class_names))
    print(f"{opt.output_dir}: transfer.json, transfer.png")


if __name__ == "__main__":
    command.run(main)
