"""Measures transfer: how well classes do in which nobody verified anything, against the share of classes with verifications.

    python util/transfer_curve.py --data_dir=data --output_dir=runs/transfer --shares=0.1,0.3,0.5,0.7,0.9 --seeds=1,2,3 \
        --train_flags="--n_step=3000 --lr_update=2000"

For each share and seed, a random part of the classes keeps its verified rows, train.py learns from those, and validation measures held-out
and kept classes apart (paper, section 4.3). Thresholds are cross-fitted on kept classes. Runs that are there are not trained again. Writes
transfer.json and transfer.png.
"""
import os
import shlex
import subprocess
import sys

import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import atomic, class_list, command, run_folder
from util.lib.errors import UserError

flags.DEFINE_string("data_dir", None, "Folder of the converted data, with verified rows of all classes.", required=True)
flags.DEFINE_string("output_dir", None, "Folder for the runs, transfer.json and transfer.png.", required=True)
flags.DEFINE_list("shares", ["0.1", "0.3", "0.5", "0.7", "0.9", "1.0"], "Shares of classes with verifications, by commas.")
flags.DEFINE_list("seeds", ["1", "2", "3"], "Seeds of the choice of classes and of the training, by commas.")
flags.DEFINE_string("train_flags", "", "Further flags of train.py, in one string.")

TRAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "train.py")


def numbers(texts, kind, low, high, name):
    """Parses the values of a list flag."""
    try:
        values = [kind(text) for text in texts]
    except ValueError:
        values = []
    if not values or not all(low <= value <= high for value in values):
        raise UserError(f"--{name}={','.join(texts)}: expected numbers from {low} to {high}, separated by commas")
    return values


def train_one(opt, names, share, seed):
    """Trains with a share of the classes verified, unless that was done. Returns the last validation's measures."""
    folder = os.path.join(opt.output_dir, f"share{share:g}_seed{seed}")
    kept = np.random.default_rng(seed).permutation(len(names))[: max(1, round(share * len(names)))]
    command = [
        sys.executable, TRAIN, f"--data_dir={opt.data_dir}", f"--checkpoint_dir={folder}/run", f"--log_dir={folder}/log", f"--seed={seed}",
        *shlex.split(opt.train_flags),
    ]
    if len(kept) < len(names):
        heldout = os.path.join(folder, "heldout.tsv")
        atomic.write_text(heldout, "".join(f"{name}\t{int(c in kept)}\n" for c, name in enumerate(names)))
        command.append(f"--heldout_class_list={heldout}")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last_words = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"training with {share:g} of the classes, seed {seed}: {last_words[:500]}")
    run = os.path.join(folder, "run")
    last = run_folder.load_state(run, run_folder.pick_step(run, "latest"))["history"][-1]["chosen"]
    everything = last["average_error_rate"]
    return {
        "share": share, "seed": seed, "classes_verified": len(kept),
        "kept": last.get("kept_average_error_rate", everything), "heldout": last.get("heldout_average_error_rate"),
    }


def mean_and_spread(shares):
    """Mean and standard deviation over seeds, in percent, as text; nothing for no values."""
    if not shares:
        return ""
    spread = f" ± {100 * np.std(shares, ddof=1):.2f}" if len(shares) > 1 else ""
    return f"{100 * np.mean(shares):.2f}{spread}"


def draw(results, path):
    """Error on held-out and kept classes against the number of classes with verifications, each seed a dot, means a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for group, colour in (("heldout", "#d1495b"), ("kept", "#2f6db3")):
        points = [(r["classes_verified"], 100 * r[group]) for r in results if r[group] is not None]
        if not points:
            continue
        x, y = np.array(points).T
        axis.plot(x, y, "o", color=colour, alpha=0.4)
        means = [(n, y[x == n].mean()) for n in np.unique(x)]
        label = "classes without verifications" if group == "heldout" else "classes with verifications"
        axis.plot(*zip(*means), color=colour, label=label)
    axis.set(xlabel="classes with verifications", ylabel="average error rate over classes, %")
    axis.set_ylim(bottom=0)
    axis.legend()
    with atomic.whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


def main():
    opt = flags.FLAGS
    names = class_list.load(os.path.join(opt.data_dir, "classes.txt"))
    shares, seeds = numbers(opt.shares, float, 0, 1, "shares"), numbers(opt.seeds, int, 0, 2**31 - 1, "seeds")
    atomic.make_folder(opt.output_dir)
    results = []
    for share in tqdm(shares, desc="shares", unit="share", disable=None):
        for seed in seeds:
            results.append(train_one(opt, names, share, seed))
            atomic.write_json(os.path.join(opt.output_dir, "transfer.json"), results)
    draw(results, os.path.join(opt.output_dir, "transfer.png"))
    print("| classes with verifications | error, classes without, % | error, classes with, % |\n|---|---|---|")
    for share in shares:
        rows = [r for r in results if r["share"] == share]
        cells = [mean_and_spread([r[group] for r in rows if r[group] is not None]) for group in ("heldout", "kept")]
        print(f"| {rows[0]['classes_verified']} of {len(names)} | {cells[0]} | {cells[1]} |")
    print(f"{opt.output_dir}: transfer.json, transfer.png")


if __name__ == "__main__":
    command.run(main)
