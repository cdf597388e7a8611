"""Trains an image classifier on noisy labels, with CleanNet's scores as weights (paper, section 3.4).

    python util/train_classifier.py --input_npy=data/all.npy --score_file=runs/scores.tsv --weights=soft \
        --verified=data/train.npy --test_data=data/val.npy --output_file=runs/classifier.keras --report_dir=runs/classifier

The classifier is one layer, or one hidden layer and one more, on the features. It is a .keras model from features to the
probabilities of the classes. With --folds=K every row also gets the probabilities of a classifier that was not trained on it.
An interrupted training resumes with the same command. docs/classifier.md has the recipe.
"""
import os
import shutil
import sys
from typing import NamedTuple

import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import arrays, atomic, class_list, classifier_report, command, metrics, paths, run_folder, sample_weights, score_table
from util.lib.errors import UserError, counted, warn
from util.lib.progress_folder import ProgressFolder

# Input.
flags.DEFINE_string("input_npy", None, "Rows to train on: all.npy, or an array like it in any order.", required=True)
flags.DEFINE_string("class_list", None, "Class list of the arrays; by default classes.txt beside input_npy.")
flags.DEFINE_string(
    "score_file", None, "Output of inference.py for these rows. A table is joined by key; plain scores are in the order of the array.",
)
flags.DEFINE_enum(
    "weights", "none", ["none", "soft", "hard"],
    "Weight of a row. none: 1. soft: max(0, score). hard: 1 where the verdict of the score table is correct, else 0.",
)
flags.DEFINE_enum("score", None, score_table.SCORES, "Column of a score table to use. By default the one that decided its verdicts.")
flags.DEFINE_string("weight_file", None, "Output of export_weights.py, instead of scores: a weight per row of input_npy, in its order.")
flags.DEFINE_list("verified", [], "Arrays of verified rows: rows of input_npy with their keys get their label as weight, 1 or 0.")
flags.DEFINE_string("list_file", None, "Cleaned list of export_weights.py, for --relabel.")
flags.DEFINE_bool("relabel", False, "Give rows that the list relabels the suggested class, with weight 1.")
flags.DEFINE_string(
    "test_data", None,
    "Rows to test on: an array like all.npy with true classes, or one of verified rows, of which the correct ones are taken. Rows of "
    "input_npy with their keys are left out of training.",
)
# Model.
flags.DEFINE_integer("hidden_units", 512, "Units of the hidden layer; 0: a linear classifier.", lower_bound=0, upper_bound=1 << 16)
flags.DEFINE_enum(
    "normalise", "log", ["log", "l2_norm", "standardise"],
    "Normalisation of features, part of the model: log(1 + x), x / |x|, or (x - mean) / deviation over input_npy.",
)
flags.DEFINE_float(
    "dropout_rate", 0.5, "Share of the hidden units that a step drops; of the numbers of a feature where there are none.",
    lower_bound=0.0, upper_bound=0.99,
)
# Optimisation.
flags.DEFINE_integer("n_epoch", 20, "How often each row is seen.", lower_bound=1, upper_bound=10**6)
flags.DEFINE_integer("batch_size", 256, "Rows per step.", lower_bound=1, upper_bound=1 << 16)
flags.DEFINE_float("learning_rate", 1e-3, "Learning rate of AdamW at the start; it falls to 0 by a cosine.", lower_bound=0.0)
flags.DEFINE_float("weight_decay", 0.0, "Decay of the weights of AdamW.", lower_bound=0.0)
flags.DEFINE_float("label_smoothing", 0.0, "Share of the target that is spread evenly over all classes.", lower_bound=0.0, upper_bound=0.99)
flags.DEFINE_bool("class_balance", False, "Scale the weights so that those of each class have the same sum.")
flags.DEFINE_integer("folds", 0, "Folds for the out-of-fold probabilities of every row; 0: none.", lower_bound=0, upper_bound=100)
flags.DEFINE_integer(
    "seed", 1, "Seed of the weights, of the order of the rows, of dropout and of the folds.", lower_bound=0, upper_bound=2**31 - 2,
)
# Output.
flags.DEFINE_string("output_file", None, "The classifier, trained on all rows: a .keras model from features to probabilities.")
flags.DEFINE_string("probabilities_file", None, "Out-of-fold probabilities: .npy, float32 (rows, classes).")
flags.DEFINE_string("table_file", None, "Out-of-fold probabilities of the given classes as a table of scores: text, .gz or .parquet.")
flags.DEFINE_float("val_sim_thres", 0.1, "Probability from which that table calls a label correct; combine_scores.py chooses one.")
flags.DEFINE_string("report_dir", None, "Folder for test.json and confusion.png, of the rows to test on.")
# Run.
flags.DEFINE_string("log_dir", None, "Folder of the TensorBoard summaries; by default none.", allow_override=True)
flags.DEFINE_integer("log_interval", 100, "Steps between two summaries.", lower_bound=1)
flags.DEFINE_integer("save_interval", 1000, "Steps between two saves of the state, which a resume starts from.", lower_bound=1)

# What changes the result: a training that was interrupted resumes only if all of these are the same.
SETTINGS = (
    "hidden_units", "normalise", "dropout_rate", "n_epoch", "batch_size", "learning_rate", "weight_decay", "label_smoothing", "folds",
    "seed",
)
BLOCK_ROWS = 1024  # rows of an array or of probabilities that are in memory at once


def check_flags(
    *, score_file, weights, weight_file, list_file, relabel, test_data, output_file, probabilities_file, table_file, report_dir, folds,
):
    """Checks flags against each other; the arguments are their values."""
    if (weights != "none") != bool(score_file):
        raise UserError(f"--weights={weights} and --score_file={score_file}: soft and hard weights need scores, and scores one of the two")
    if score_file and weight_file:
        raise UserError("--score_file and --weight_file both weight the rows; give one of them")
    if relabel != bool(list_file):
        raise UserError("--relabel needs a --list_file, and a --list_file is for --relabel; give both or none")
    if bool(probabilities_file or table_file) != bool(folds):
        raise UserError(f"--folds={folds}: folds and a file for what they give, --probabilities_file or --table_file, go together")
    if folds == 1:
        raise UserError("--folds=1: with one fold nothing is left to train on; give 2 or more")
    if not (output_file or folds):
        raise UserError("nothing to write: give --output_file for the classifier, or --folds with a file, or both")
    if output_file and not output_file.endswith(".keras"):
        raise UserError(f"--output_file={output_file}: is a Keras model, so its name must end in .keras")
    if probabilities_file and not probabilities_file.endswith(".npy"):
        raise UserError(f"--probabilities_file={probabilities_file}: is an array, so its name must end in .npy")
    if table_file:
        score_table.check_table_path(table_file)
    if bool(test_data) != bool(report_dir) or (test_data and not output_file):
        raise UserError("--test_data needs a --report_dir for the result, and an --output_file, the classifier to test; give all or none")


class Data(NamedTuple):
    """What is trained and tested on, checked.

    class_names: list of str [C]. array: arrays.FeatureArray. rows: sample_weights.Rows, what to learn from its rows.
    test: arrays.FeatureArray or None. tested: int [T], its rows that are of their class for sure.
    """

    class_names: list
    array: arrays.FeatureArray
    rows: sample_weights.Rows
    test: arrays.FeatureArray | None
    tested: np.ndarray | None


def open_test_data(path, class_names, img_dim):
    """Opens rows to test on, with verification labels or without. Returns (arrays.FeatureArray, int [T]) as Data has them."""
    width = arrays.open_array(path, "rows of a feature, its class id and perhaps its verification label", "util/convert_data.py").shape[1]
    verified = width == img_dim + 2
    test = arrays.FeatureArray(path, num_classes=len(class_names), verified=verified, img_dim=img_dim, keys=False)
    tested = np.flatnonzero(test.labels == 1) if verified else np.arange(test.num_rows)
    if not len(tested):
        raise UserError(f"{path}: none of its rows is verified as correct, so there is nothing to test on; verify more")
    return test, tested


def load_data(
    *, input_npy, class_path, verified, test_data, score_file, weights, score, weight_file, list_file, class_balance
):
    """Opens the arrays and finds the class and the weight of each row; the arguments are flags. Prints how many rows there are."""
    names = class_list.load(class_path)
    for path in filter(None, (input_npy, *verified, test_data)):
        class_list.check_beside(os.path.dirname(path), names, class_path)
    array = arrays.FeatureArray(input_npy, num_classes=len(names), verified=False, keys=False)
    test, tested = open_test_data(test_data, names, array.img_dim) if test_data else (None, None)
    rows, done = sample_weights.Rows(array, names), []
    if score_file:
        rows.weight_by_scores(score_file, weights, score)
    elif weight_file:
        rows.weights = sample_weights.read(weight_file, array.num_rows, input_npy)
    if list_file:
        done.append(f"{rows.relabel(list_file)} relabelled")
    for path in verified:
        found = rows.verify(arrays.FeatureArray(path, num_classes=len(names), img_dim=array.img_dim, verified=True))
        done.append(f"{found} verified in {path}")
    if test and os.path.exists(arrays.keys_path(test_data)):
        done.append(f"{rows.leave_out(test.sample_keys(), test_data)} left out, to test on")
    if class_balance:
        rows.balance()
    used = rows.weights > 0
    without = np.flatnonzero(np.bincount(rows.class_ids[used], minlength=len(names)) == 0)
    if len(without) > len(names) - 2:
        left = counted(len(names) - len(without), "class")
        raise UserError(f"{input_npy}: rows of {left} have a weight above 0, expected two classes or more; weight more rows")
    if len(without):
        warn(f"{input_npy}: {counted(len(without), 'class')} without a row of weight above 0, {names[without[0]]} for one")
    print(", ".join([f"{input_npy}: {array.num_rows} rows of {len(names)} classes", f"{int(used.sum())} of weight above 0", *done]))
    return Data(names, array, rows, test, tested)


def feature_statistics(array, normalise):
    """Mean and variance of each number of the features, float32 [D] twice, or None where the normalisation needs none."""
    if normalise == "l2_norm":
        return None
    total, squares = np.zeros(array.img_dim), np.zeros(array.img_dim)
    for start in range(0, array.num_rows, BLOCK_ROWS):
        block = array.features[start : start + BLOCK_ROWS]
        if normalise == "log" and block.min() <= -1:
            row = start + int(np.argmax(block.min(axis=1) <= -1))
            raise UserError(
                f"{array.path}: row {row} has {block.min():g}, and --normalise=log takes log(1 + x), which needs every feature above -1; "
                "give --normalise=l2_norm or standardise"
            )
        total += block.sum(axis=0, dtype=np.float64)
        squares += np.square(block, dtype=np.float64).sum(axis=0)
    mean = total / array.num_rows
    variance = np.maximum(squares / array.num_rows - mean**2, 1e-12)
    return np.float32(mean), np.float32(variance)


class Part(NamedTuple):
    """One training of a command. number: int, from 0. name: of progress bars and logs. rows: int [n], to train on."""

    number: int
    name: str
    rows: np.ndarray


def make_parts(fold, weights, output_file):
    """The trainings: one per fold, without its rows, and one on all rows. fold: int [N], or None. weights: float32 [N]."""
    folds = range(0 if fold is None else fold.max() + 1)
    parts = [Part(k, f"fold {k + 1} of {len(folds)}", np.flatnonzero((weights > 0) & (fold != k))) for k in folds]
    if output_file:
        parts.append(Part(len(folds), "all rows", np.flatnonzero(weights > 0)))
    for part in parts:
        if not len(part.rows):
            raise UserError(f"--folds={len(folds)}: {part.name} leaves no row of weight above 0 to train on; give fewer folds")
    return parts


def write_model(net, path, progress):
    """Writes a model as a .keras file, whole or not at all. progress: ProgressFolder."""
    net.save(progress.file("model.keras"))  # Keras wants this suffix, which a temporary name lacks
    with open(progress.file("model.keras"), "rb") as model, atomic.whole_file(path) as file:
        shutil.copyfileobj(model, file)


def write_blocks(path, blocks, shape):
    """Writes blocks of rows, float32 [n, C], as a .npy file of a shape (N, C), whole or not at all."""
    with atomic.whole_file(path) as file:
        file.write(atomic.npy_header(shape))
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)


class OutOfFold:
    """Out-of-fold probabilities, read block by block from an array per fold. path_of: function of a fold. fold: int [N]."""

    def __init__(self, path_of, fold):
        self._fold, self._arrays = fold, [np.load(path_of(k), mmap_mode="r") for k in range(fold.max() + 1)]
        self.shape = len(fold), self._arrays[0].shape[1]
        self._index = np.empty(len(fold), np.int64)  # of each row, in the array of its fold
        for k in range(len(self._arrays)):
            self._index[fold == k] = np.arange(np.count_nonzero(fold == k))

    def blocks(self):
        """Yields (first row, float32 [n, C])."""
        for start in range(0, len(self._fold), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            block = np.empty((len(self._fold[part]), self.shape[1]), np.float32)
            for k, array in enumerate(self._arrays):
                here = self._fold[part] == k
                block[here] = array[self._index[part][here]]
            yield start, block

    def scored_rows(self, keys, class_ids):
        """Yields the blocks as score_table.ScoredRows of the given classes, int [N]. A classifier has no cosines."""
        for start, block in self.blocks():
            given = class_ids[start : start + len(block)]
            here, nothing = np.arange(len(block)), np.full(len(block), np.nan, np.float32)
            own, nearest = block[here, given], block.argmax(axis=1).astype(np.int32)
            others = block.copy()
            others[here, given] = -1
            scores = score_table.Scores(nothing, own - others.max(axis=1), own, nearest, nothing)
            yield score_table.ScoredRows(keys[start : start + len(block)], given, scores)


def train_parts(parts, progress, data, fold, *, settings, statistics, log, log_interval, save_interval):
    """Trains what is not trained yet, and keeps the probabilities of each fold.

    Args:
        parts: list of classifier.Part. progress: ProgressFolder. data: Data. fold: int [N], or None. settings: {name: flag} of SETTINGS.
        statistics: of feature_statistics. log: tensorboard_log.TensorBoardLog.

    Returns:
        The last classifier, a keras.Model, or None where nothing was left to train.
    """
    from util.lib import classifier

    def chosen(*names):
        return {name: settings[name] for name in names}

    stop, net, num_classes, inputs_of = command.stop_on_signals(), None, len(data.class_names), data.array.features.__getitem__
    for part in parts:
        path = progress.file(f"fold-{part.number}.npy")
        if os.path.exists(path):
            continue
        net = classifier.make_head(
            data.array.img_dim, num_classes, statistics=statistics, **chosen("normalise", "hidden_units", "dropout_rate", "seed")
        )
        n_step = -(-settings["n_epoch"] * len(part.rows) // settings["batch_size"])
        trainer = classifier.Trainer(net, n_step=n_step, **chosen("learning_rate", "weight_decay", "label_smoothing"))
        batches = classifier.Batches(part, inputs_of, data.rows.class_ids, data.rows.weights, **chosen("batch_size", "seed"))
        classifier.train(
            trainer, batches, part, n_step=n_step, state_path=progress.file("state.npz"), save_interval=save_interval,
            log_interval=log_interval, log=log, stop=stop,
        )
        if part.number < settings["folds"]:
            of_fold = np.flatnonzero(fold == part.number)
            found = classifier.probabilities(net, inputs_of, of_fold, f"scoring {part.name}")
            write_blocks(path, found, (len(of_fold), num_classes))
    return net


def write_out_of_fold(out_of_fold, data, probabilities_file, table_file, threshold):
    """Writes the out-of-fold probabilities in the formats that are asked for."""
    if probabilities_file:
        write_blocks(probabilities_file, (block for _, block in out_of_fold.blocks()), out_of_fold.shape)
        print(f"{probabilities_file}: out-of-fold probabilities {out_of_fold.shape}")
    if table_file:
        blocks = out_of_fold.scored_rows(data.rows.keys, data.rows.given)
        scores = score_table.write(table_file, blocks, class_names=data.class_names, score="probability", threshold=threshold, table=True)
        print(f"{table_file}: {counted(len(scores), 'row')}, {int((scores < threshold).sum())} of them below {threshold:g}")


def report_test(net, data, folder):
    """Tests a classifier, writes the report and prints its head."""
    from util.lib import classifier

    found = classifier.probabilities(net, lambda rows: data.test.features[data.tested[rows]], np.arange(len(data.tested)), "testing")
    counts = classifier_report.count(found, data.test.class_ids[data.tested], len(data.class_names))
    report = classifier_report.write(folder, *counts, data.class_names)
    texts = [
        f"{words} {100 * report[name]['value']:.2f} % ({100 * report[name]['low']:.2f} to {100 * report[name]['high']:.2f})"
        for name, words in (("top_1", "top-1"), ("top_5", "top-5"), ("mean_over_classes", "mean over classes"))
        if report[name]["value"] is not None
    ]
    print(f"{folder}: {counted(len(data.tested), 'row')}: {', '.join(texts)}")


def main():
    opt = flags.FLAGS
    values = command.own_flags(opt)

    def chosen(*names):
        return {name: values[name] for name in names}

    check_flags(**chosen(
        "score_file", "weights", "weight_file", "list_file", "relabel", "test_data", "report_dir", "output_file", "probabilities_file",
        "table_file", "folds",
    ))
    class_path = opt.class_list or os.path.join(os.path.dirname(opt.input_npy), "classes.txt")
    outputs = chosen("output_file", "probabilities_file", "table_file")
    outputs |= {path: path for path in (classifier_report.paths_in(opt.report_dir) if opt.report_dir else ())}
    inputs = {"class_list": class_path, **chosen("score_file", "weight_file", "list_file")}
    for path in filter(None, (opt.input_npy, *opt.verified, opt.test_data)):
        inputs |= {path: path, f"the keys of {path}": arrays.keys_path(path)}
    paths.check_distinct(outputs, inputs)
    data = load_data(class_path=class_path, **chosen(
        "input_npy", "verified", "test_data", "score_file", "weights", "score", "weight_file", "list_file", "class_balance"
    ))
    statistics = feature_statistics(data.array, opt.normalise)
    fold = metrics.split_evenly(opt.folds, data.array.class_ids, seed=opt.seed) if opt.folds else None
    parts = make_parts(fold, data.rows.weights, opt.output_file)
    atomic.check_writable(outputs.values())
    identity = chosen(*SETTINGS) | {
        "input_npy": data.array.identity(), "class_list": data.class_names, "class_ids": run_folder.checksum(data.rows.class_ids),
        "weights": run_folder.checksum(data.rows.weights),
    }
    progress = ProgressFolder(f"{next(filter(None, outputs.values()))}.progress", identity, ("state.npz", "fold-*.npy", "model.keras"))
    tf = command.import_tensorflow()
    tf.config.experimental.enable_op_determinism()
    from util.lib import tensorboard_log

    net = train_parts(
        parts, progress, data, fold, settings=chosen(*SETTINGS), statistics=statistics,
        log=tensorboard_log.open_log(opt.log_dir, values, chief=bool(opt.log_dir)), **chosen("log_interval", "save_interval"),
    )
    if opt.folds:
        out_of_fold = OutOfFold(lambda k: progress.file(f"fold-{k}.npy"), fold)
        write_out_of_fold(out_of_fold, data, opt.probabilities_file, opt.table_file, opt.val_sim_thres)
    if opt.report_dir:
        report_test(net, data, opt.report_dir)
    if opt.output_file:
        write_model(net, opt.output_file, progress)
        print(f"{opt.output_file}: the classifier, {net.count_params()} weights")
    progress.remove()


if __name__ == "__main__":
    command.run(main)
