"""Chooses the rows that a person should verify: for validation a uniform random sample, for training the most useful ones.

    python util/choose_rows.py --for=val --image_feature_list=data/all.npy --num=500 --output_file=data/to_verify_val.tsv
    python util/choose_rows.py --for=train --image_feature_list=data/all.npy --num=200 --verified=data/val.npy \
        --output_file=data/to_verify.tsv

The list has key, class and why the row was chosen, in the order of choice: any first part of it is a choice too. docs/choosing.md
says how rows are chosen, and how many to take.
"""
import os
import sys
from typing import NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import arrays, atomic, class_list, command, neighbours, paths, score_table, tsv
from util.lib.errors import UserError, counted, warn
from util.lib.key_index import keys_of_verified_rows
from util.lib.rows import RowReader

# Input.
flags.DEFINE_string(
    "image_feature_list", None, "The rows to choose from: all.npy, or text (key, class name, feature), .gz too.", required=True
)
flags.DEFINE_string("class_list", None, "Class list. Needed for text; of an array it is classes.txt beside it.")
flags.DEFINE_list(
    "verified", [], "Files of verified rows, which are left out: .npy with their keys, text with keys in column 1, or CSV."
)
flags.DEFINE_string("score_file", None, "Scores of the rows, a table of inference.py, for --strategy=informative.")
# Choice.
flags.DEFINE_enum(
    "for", None, ["val", "train"], "What the rows will be: val.npy, which measures, or train.npy, which teaches.", required=True
)
flags.DEFINE_integer("num", 200, "Rows to choose.", lower_bound=1)
flags.DEFINE_integer("per_class", None, "With --for=val: rows to choose from each class, instead of --num.", lower_bound=1)
flags.DEFINE_enum(
    "strategy", "informative", ["random", "balanced", "informative"],
    "With --for=train. random: uniform. balanced: equally many per class. informative: balanced, and uncertain rows that differ.",
)
flags.DEFINE_string("classes", None, "Classes to choose from: names with commas between them, or a file with one per line. By default all.")
flags.DEFINE_integer("seed", 1, "Seed of the choice.", lower_bound=0, upper_bound=2**32 - 1)
# Run.
flags.DEFINE_string("output_file", None, "The list: key, class, why.", required=True)

POOL = 30_000  # rows, at most, that neighbours are searched among
CANDIDATES = 20_000  # rows, at most, that are looked at; or as many times the budget as the next says
PER_CHOSEN = 5
NEIGHBOURS = 20  # that vote
CERTAIN = 0.25  # weight of a row that is quite certain; the most uncertain has 1 more
ERROR_RATES = (0.05, 0.1, 0.2)  # for which the width of the interval is printed


class Rows(NamedTuple):
    """The rows to choose from. keys: list of str [N]. class_ids: int32 [N]. names: list of str [C].

    features: function of int [n], ascending indices of rows, to float32 [n, D].
    """

    keys: list
    class_ids: np.ndarray
    names: list
    features: object


def open_rows(path, class_path):
    """The Rows of a .npy file or of text. class_path: of the class list, or None: classes.txt beside a .npy."""
    if not class_path and not path.endswith(".npy"):
        raise UserError(f"--image_feature_list={path} is text, whose classes need a --class_list; name it")
    class_path = class_path or os.path.join(os.path.dirname(path), "classes.txt")
    names = class_list.load(class_path)
    if path.endswith(".npy"):
        class_list.check_beside(os.path.dirname(path), names, class_path)
        array = arrays.FeatureArray(path, class_names=names, verified=False)
        return Rows(array.sample_keys(), array.class_ids, names, array.features.__getitem__)
    id_of, keys, class_ids = {name: i for i, name in enumerate(names)}, [], []
    for number, columns, _ in tsv.columns_without_feature(path, tsv.UNVERIFIED, "reading the rows"):
        if columns[-1] not in id_of:
            raise UserError(f'{path}:{number}: class "{columns[-1]}" is not in {class_path}{class_list.closest(columns[-1], names)}')
        keys.append(columns[0])
        class_ids.append(id_of[columns[-1]])
    return Rows(keys, np.array(class_ids, np.int32), names, lambda rows: read_features(path, names, rows))


def read_features(path, names, rows):
    """The features of some rows of a text file, float32 [n, D]. names: the class list. rows: int [n], ascending."""
    found, done = [], 0
    for block in RowReader(tsv.TextRows(path, tsv.Parser(tsv.UNVERIFIED, names), description="reading features")):
        first, last = np.searchsorted(rows, [done, done + len(block.keys)])
        found.append(block.features[rows[first:last] - done])
        done += len(block.keys)
    return np.concatenate(found)


def class_ids_of(text, names):
    """The ids of the classes that --classes names, with commas or in a file; all of them for None."""
    if text is None:
        return list(range(len(names)))
    wanted = class_list.load(text) if os.path.isfile(text) and text not in names else text.split(",")
    id_of = {name: i for i, name in enumerate(names)}
    for name in wanted:
        if name not in id_of:
            raise UserError(f'--classes: "{name}" is neither a class nor a file{class_list.closest(name, names)}')
    return sorted({id_of[name] for name in wanted})


def eligible_rows(rows, class_ids, verified_lists):
    """Indices of the rows that may be chosen, int [n]: of the given classes, not verified, and each key once."""
    taken = {key for path in verified_lists for key in keys_of_verified_rows(path)}
    wanted, found = np.isin(rows.class_ids, class_ids), []
    for i in np.flatnonzero(wanted).tolist():
        if rows.keys[i] not in taken:
            taken.add(rows.keys[i])
            found.append(i)
    return np.array(found, np.int64)


def quotas(sizes, budget):
    """Shares a budget evenly over classes that may have fewer rows than their share. sizes: int [C]. Returns int [C]."""
    found = np.zeros_like(sizes)
    for c in np.argsort(sizes, kind="stable"):  # the smallest first: what they lack goes to the others
        left = np.count_nonzero(sizes) - np.count_nonzero(found)
        found[c] = min(sizes[c], -(-(budget - found.sum()) // left)) if left else 0
    return found


def in_turn(groups):
    """Items of several lists: the first of each, then the second of each, and so on."""
    longest = max(map(len, groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]


def choose_evenly(rows, eligible, budget, rng):
    """Random rows, equally many per class, the classes in turn: int [n]. eligible: int, indices of rows."""
    shuffled = rng.permutation(eligible)
    ids = rows.class_ids[shuffled]
    groups = arrays.rows_by_class(ids, len(rows.names))
    counts = quotas(np.array([len(members) for members in groups]), budget)
    return np.array(in_turn([shuffled[members[:n]].tolist() for members, n in zip(groups, counts) if n]), np.int64)


def vote_certainties(rows, candidates, unit, places, rng):
    """For each candidate the share of its nearest rows that were given the same class, and that in words.

    Args:
        candidates: int [n], indices of rows. unit: float32 [P, D], of rows with indices `places`, int [P], ascending.
        rng: draws the rows that vote.
    """
    pool = np.sort(rng.choice(len(places), min(POOL, len(places)), replace=False))
    own = np.searchsorted(places, candidates)
    most = min(NEIGHBOURS, len(pool) - 1)
    nearest = places[neighbours.nearest(unit, own, pool, most)]
    agree = (rows.class_ids[nearest] == rows.class_ids[candidates][:, None]).sum(axis=1)
    return agree / max(most, 1), [f"{n} of {most} neighbours have its class" for n in agree]


def score_certainties(rows, path):
    """For each row, how far its score is from the threshold, 0 to 1 by rank with the threshold at 0.5, NaN without a score.

    Returns:
        (float [N], a function of an index to that in words).
    """
    table = score_table.read(path)
    if table.verdict is None:
        raise UserError(f"{path}: has scores only, a choice needs keys and verdicts; run inference.py with --output_format=tsv")
    place = {key: i for i, key in enumerate(table.key)}
    missing = next((key for key in rows.keys if key not in place), None)
    if missing is not None:
        raise UserError(f'{path}: has no score of "{missing[:80]}"; score the rows to choose from')
    index = np.array([place[key] for key in rows.keys])
    scores, correct = table.score[index], np.array([table.verdict[i] == score_table.CORRECT for i in index])
    certain = np.full(len(scores), np.nan)
    for side in (correct, ~correct):
        members = np.flatnonzero(side & np.isfinite(scores))
        ranks = np.empty(len(members))
        ranks[np.argsort(scores[members], kind="stable")] = np.arange(len(members))
        share = (ranks + 0.5) / max(len(members), 1)
        certain[members] = (1 + share) / 2 if side is correct else share / 2
    return certain, lambda i: f"score {scores[i]:.3f}, {table.verdict[index[i]]}"


def spread(unit, weights, count, rng):
    """Chooses rows that are far from each other, rows of large weight first.

    Each row is drawn with a probability of its weight times its squared distance from the nearest row that was drawn before.

    Args:
        unit: float32 [n, D], of length 1. weights: float [n]. count: rows to choose, at most n.

    Returns:
        list of int, indices.
    """
    chosen, distance = [], np.ones(len(unit))
    for _ in range(count):
        chance = weights * distance
        chance[chosen] = 0
        if not chance.sum() > 0:  # only copies of chosen rows are left
            chance = np.ones(len(unit))
            chance[chosen] = 0
        chosen.append(int(rng.choice(len(unit), p=chance / chance.sum())))
        distance = np.minimum(distance, np.maximum(1 - unit @ unit[chosen[-1]], 0))
    return chosen


def choose_informative(rows, eligible, budget, score_path, rng):
    """Uncertain rows that differ, equally many per class: (int [n], why, a list of str)."""
    if score_path:
        certain, in_words = score_certainties(rows, score_path)
        eligible = eligible[np.isfinite(certain[eligible])]
        if not len(eligible):
            raise UserError(f"{score_path}: none of the rows to choose from has a score; choose without --score_file")
    candidates = np.sort(choose_evenly(rows, eligible, max(CANDIDATES, PER_CHOSEN * budget), rng))
    others = [] if score_path else rng.choice(len(rows.keys), min(POOL, len(rows.keys)), replace=False)
    places = np.union1d(candidates, others).astype(np.int64)
    features = rows.features(places)
    unit = neighbours.unit_rows(neighbours.prepared(features, features.min() > -1))
    if score_path:
        certain, why = certain[candidates], [in_words(i) for i in candidates]
    else:
        certain, why = vote_certainties(rows, candidates, unit, places, rng)
    unit, ids = unit[np.searchsorted(places, candidates)], rows.class_ids[candidates]
    weights = CERTAIN + 1 - np.abs(2 * certain - 1)
    groups, of_class = [], arrays.rows_by_class(ids, len(rows.names))
    counts = quotas(np.array([len(members) for members in of_class]), budget)
    for members, count in zip(of_class, tqdm(counts, desc="choosing", unit="class", disable=None)):
        groups.append(members[spread(unit[members], weights[members], count, rng)].tolist() if count else [])
    order = in_turn(groups)
    return candidates[order], [why[i] for i in order]


def choose(rows, eligible, *, purpose, strategy, num, per_class, score_file, rng):
    """Chooses rows: (int [n], their indices in the order of choice; why, a list of str).

    Args:
        eligible: int, indices of the rows to choose from. purpose: val or train. strategy: random, balanced or informative.
        num: the budget. per_class: rows of each class, or None. score_file: path or None. rng: np.random.Generator.
    """
    if per_class:
        budget = int(np.minimum(np.bincount(rows.class_ids[eligible]), per_class).sum())
        chosen, why = choose_evenly(rows, eligible, budget, rng), "random, in its class"
    elif purpose == "val" or strategy == "random":
        chosen, why = rng.permutation(eligible)[:num], "random"
    elif strategy == "balanced":
        chosen, why = choose_evenly(rows, eligible, num, rng), "random, in its class"
    else:
        return choose_informative(rows, eligible, num, score_file, rng)
    return chosen, [why] * len(chosen)


def half_width(class_counts, error_rate):
    """Half the 95 % interval of the average error rate over classes, if each class has this error rate. class_counts: int [C]."""
    counts = class_counts[class_counts > 0]
    return 1.96 * np.sqrt(error_rate * (1 - error_rate) * np.sum(1 / counts)) / len(counts)


def print_interval(class_counts):
    """Prints what a random sample is worth. class_counts: int [C], chosen rows of each class to choose from."""
    widths = ", ".join(f"{100 * p:g} ± {100 * half_width(class_counts, p):.1f}" for p in ERROR_RATES)
    print("a random sample: only that keeps measures unbiased, so it never looks at scores or neighbours")
    print(f"95 % interval of an average error rate over classes that is 5, 10 or 20 %: {widths}")
    without = np.count_nonzero(class_counts == 0)
    if without:
        print(f"{counted(without, 'class')} without a row, which the average leaves out; --per_class takes some of each")


def check_flags(*, purpose, per_class, num_given, strategy_given, strategy, score_file):
    """Raises UserError where flags contradict each other."""
    if purpose == "val" and (strategy_given or score_file):
        raise UserError(
            "--for=val takes a random sample and nothing else, or its measures would be biased; leave --strategy and --score_file out"
        )
    if purpose == "train" and per_class:
        raise UserError("--per_class goes with --for=val; give --num, which is shared evenly over classes")
    if per_class and num_given:
        raise UserError("--num and --per_class are two budgets; give one of them")
    if score_file and strategy != "informative":
        raise UserError(f"--score_file has no say in --strategy={strategy}; leave one of them out")


def check_paths(*, output_file, rows_path, class_list_path, verified_lists, score_file, classes):
    """Raises UserError where the output is an input, or cannot be written."""
    inputs = {"--image_feature_list": rows_path, "--class_list": class_list_path, "--score_file": score_file, "--classes": classes}
    inputs |= {f"--verified {path}": path for path in verified_lists}
    inputs |= {f"keys of {path}": arrays.keys_path(path) for path in (rows_path, *verified_lists) if path.endswith(".npy")}
    inputs["the class list"] = os.path.join(os.path.dirname(rows_path), "classes.txt")
    paths.check_distinct({"--output_file": output_file}, inputs)
    atomic.check_writable([output_file])


def main():
    opt = flags.FLAGS
    purpose = opt["for"].value
    check_flags(
        purpose=purpose, per_class=opt.per_class, num_given=opt["num"].present, strategy_given=opt["strategy"].present,
        strategy=opt.strategy, score_file=opt.score_file,
    )
    check_paths(
        output_file=opt.output_file, rows_path=opt.image_feature_list, class_list_path=opt.class_list, verified_lists=opt.verified,
        score_file=opt.score_file, classes=opt.classes,
    )
    rows = open_rows(opt.image_feature_list, opt.class_list)
    wanted = class_ids_of(opt.classes, rows.names)
    eligible = eligible_rows(rows, wanted, opt.verified)
    if not len(eligible):
        raise UserError(f"{opt.image_feature_list}: no row is left to choose, all are verified or of other classes; add rows")
    if purpose == "val" and opt.verified:
        warn("--verified rows are left out: choose rows for validation first, or at random, or those that are left are no fair sample")
    chosen, why = choose(
        rows, eligible, purpose=purpose, strategy=opt.strategy, num=opt.num, per_class=opt.per_class, score_file=opt.score_file,
        rng=np.random.default_rng(opt.seed),
    )
    lines = (f"{rows.keys[i]}\t{rows.names[rows.class_ids[i]]}\t{reason}\n" for i, reason in zip(chosen, why))
    atomic.write_text(opt.output_file, "".join(lines))
    all_of_them = ", all that there are" if len(chosen) == len(eligible) else f" of {len(eligible)} that may be chosen"
    print(f"{opt.output_file}: {counted(len(chosen), 'row')}{all_of_them}")
    if purpose == "val":
        print_interval(np.bincount(rows.class_ids[chosen], minlength=len(rows.names))[wanted])


if __name__ == "__main__":
    command.run(main)
