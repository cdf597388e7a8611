"""Trains an image classifier on noisy labels, with CleanNet's scores as weights (paper, section 3.4).

    python util/train_classifier.py --input_npy=data/all.npy --score_file=runs/scores.tsv --weights=soft \
        --verified=data/train.npy --test_data=data/val.npy --output_file=runs/classifier.keras --report_dir=runs/classifier
    python util/train_classifier.py --image_dir=images --class_list=data/classes.txt --keras_model=network.keras \
        --score_file=runs/scores.tsv --weights=soft --output_file=runs/classifier.keras

On features it trains one layer, or a hidden one and one more. On images it trains a new last layer for a network, then fine-tunes the
network. The result is a .keras model from features or pixels to the probabilities of the classes. With --folds=K every row also
gets the probabilities of a classifier that was not trained on it. The same command resumes a training. docs/classifier.md has more.
"""
import functools
import os
import shutil
import sys

import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import (
    arrays,
    atomic,
    calibration,
    checksums,
    classifier_data,
    classifier_parts,
    classifier_report,
    command,
    confident_joint,
    image_rows,
    images,
    locks,
    metrics,
    paths,
    score_table,
)
from util.lib.errors import UserError, counted
from util.lib.progress_folder import ProgressFolder

# Input.
flags.DEFINE_string("input_npy", None, "Rows to train on: all.npy, or an array like it in any order.")
flags.DEFINE_string("image_dir", None, "Folder of the images to train on, instead of input_npy; nothing outside it is read.")
flags.DEFINE_string("image_list", None, "Tab-separated list of images; by default each folder in image_dir is a class.")
flags.DEFINE_list("list_columns", ["key", "class"], "Columns of image_list, as of extract_features.py. A label is the row's weight.")
flags.DEFINE_enum("path_column", "key", ["key", "url"], "Column of image_list that holds the path below image_dir.")
flags.DEFINE_string("class_list", None, "Class list; by default classes.txt beside input_npy.")
flags.DEFINE_string("score_file", None, "Output of inference.py for these rows. A table is joined by key; plain scores are in their order.")
flags.DEFINE_enum(
    "weights", "none", ["none", "soft", "hard"],
    "Weight of a row. none: 1. soft: max(0, score). hard: 1 where the verdict of the score table is correct, else 0.",
)
flags.DEFINE_enum("score", None, score_table.SCORES, "Column of a score table to use. By default the one that decided its verdicts.")
flags.DEFINE_string("weight_file", None, "Output of export_weights.py, instead of scores: a weight per row, in the order of the rows.")
flags.DEFINE_list("verified", [], "Arrays of verified rows: rows with their keys get their label as weight, 1 or 0.")
flags.DEFINE_string("list_file", None, "Cleaned list of export_weights.py, for --relabel.")
flags.DEFINE_bool("relabel", False, "Give rows that the list relabels the suggested class and weight 1, and rows that it drops weight 0.")
flags.DEFINE_string(
    "test_data", None,
    "Rows to test on: an array like all.npy with true classes, or one of verified rows, of which the correct ones are taken. For images a "
    "list like image_list. Rows with their keys are left out of training.",
)
# Model.
flags.DEFINE_integer(
    "hidden_units", 512, "Units of the hidden layer; 0: a linear classifier. Not for images.",
    lower_bound=0, upper_bound=1 << 16,
)
flags.DEFINE_enum(
    "normalise", "log", ["log", "l2_norm", "standardise", "auto"],
    "Normalisation of features, part of the model: log(1 + x), x sqrt(D) / |x|, or (x - mean) / deviation over input_npy. auto: log if "
    "none is negative and their mean is 0.1 to 10, else standardise. Not for images.",
)
flags.DEFINE_float(
    "dropout_rate", 0.5, "Share of the hidden units that a step drops; of the numbers of a feature where there are none.",
    lower_bound=0.0, upper_bound=0.99,
)
flags.DEFINE_string("model", "ResNet50", "For images: name of a network in keras.applications.")
flags.DEFINE_string(
    "network_weights", "imagenet", "Weights of that network: imagenet (Keras downloads it), none (random) or the path of a file.",
)
flags.DEFINE_string("keras_model", None, "For images: your own network, a .keras file, instead of model and network_weights.")
flags.DEFINE_string("layer", None, "Layer of keras_model on which the classifier is put; by default the model's output.")
flags.DEFINE_integer("resize", 256, "Pixels of the shorter side of an image after resizing.", lower_bound=1)
flags.DEFINE_integer(
    "crop", 224, "Pixels of each side of what is cut out of an image: any part in training, else the middle.",
    lower_bound=1,
)
flags.DEFINE_bool("mirror", True, "For images: mirror half of them in training. false where left and right matter, as in digits.")
# Optimisation.
flags.DEFINE_integer("n_epoch", 20, "How often each row is seen; of images in the fine-tuning.", lower_bound=1, upper_bound=10**6)
flags.DEFINE_integer(
    "n_epoch_head", 2, "For images: how often each is seen before, while the last layer alone learns.",
    lower_bound=0, upper_bound=10**6,
)
flags.DEFINE_string("finetune_from", None, "For images: the first layer of the network that is fine-tuned; by default all are.")
flags.DEFINE_integer("batch_size", 256, "Rows per step.", lower_bound=1, upper_bound=1 << 16)
flags.DEFINE_float("learning_rate", 1e-3, "Learning rate of AdamW at the start; it falls to 0 by a cosine.", lower_bound=0.0)
flags.DEFINE_float("finetune_rate", 1e-4, "For images: the learning rate at the start of the fine-tuning.", lower_bound=0.0)
flags.DEFINE_float("weight_decay", 0.0, "Decay of the weights of AdamW.", lower_bound=0.0)
flags.DEFINE_float("label_smoothing", 0.0, "Share of the target that is spread evenly over all classes.", lower_bound=0.0, upper_bound=0.99)
flags.DEFINE_bool("class_balance", False, "Scale the weights so that those of each class have the same sum.")
flags.DEFINE_integer("folds", 0, "Folds for the out-of-fold probabilities of every row; 0: none.", lower_bound=0, upper_bound=100)
flags.DEFINE_integer(
    "passes", 1, "How often the folds are trained. Each further pass weights a row by its given class's probability in the pass before.",
    lower_bound=1, upper_bound=100,
)
flags.DEFINE_integer(
    "seed", 1, "Seed of the weights, of the order of the rows, of dropout and of the folds.", lower_bound=0, upper_bound=2**31 - 2,
)
# Output.
flags.DEFINE_string("output_file", None, "The classifier, trained on all rows: a .keras model that ends in probabilities.")
flags.DEFINE_string("probabilities_file", None, "Out-of-fold probabilities: .npy, float32 (rows, classes).")
flags.DEFINE_string("table_file", None, "Out-of-fold probabilities of the given classes as a table of scores: text, .csv, .gz or .parquet.")
flags.DEFINE_bool(
    "shift_classes", False,
    "Shift the logits of each class in that table, so that about as large a share of its rows is below 0.5 as the confident joint finds "
    "mislabeled.",
)
flags.DEFINE_float(
    "val_sim_thres", 0.1,
    "Probability from which that table calls a label correct; with shift_classes 0.5 by default. combine_scores.py chooses one.",
)
flags.DEFINE_string("report_dir", None, "Folder for test.json and confusion.png, of the rows to test on.")
# Run.
flags.DEFINE_string("log_dir", None, "Folder of the TensorBoard summaries; by default none.", allow_override=True)
flags.DEFINE_integer("log_interval", 100, "Steps between two summaries.", lower_bound=1)
flags.DEFINE_integer("save_interval", 1000, "Steps between two saves of the state, which a resume starts from.", lower_bound=1)
flags.DEFINE_integer("num_workers", 0, "Threads that read images; 0: one per core, at most 8.", lower_bound=0, upper_bound=256)
flags.DEFINE_bool("mixed_precision", False, "For images: compute in bfloat16, which is faster on GPUs that can. The model keeps that.")
flags.DEFINE_enum(
    "strategy", "default", ["default", "mirrored", "multi_worker"],
    "default: one device. mirrored: every GPU of this machine. multi_worker: the machines in TF_CONFIG, which must share the folder of "
    "the outputs.",
)
flags.DEFINE_integer("logical_cpus", 1, "Devices to split the CPU into, to try --strategy=mirrored without GPUs.", lower_bound=1)

# What changes the result: a training that was interrupted resumes only if all of these are the same.
SETTINGS = (
    "hidden_units", "normalise", "dropout_rate", "model", "network_weights", "layer", "crop", "mirror", "n_epoch", "n_epoch_head",
    "finetune_from", "batch_size", "learning_rate", "finetune_rate", "weight_decay", "label_smoothing", "folds", "passes", "seed",
    "mixed_precision", "strategy",
)


def check_input(
    *, input_npy, image_dir, image_list, class_path, list_columns, path_column, resize, crop, keras_model, layer, mixed_precision,
):
    """Checks the flags of what is read against each other; the arguments are their values."""
    if bool(input_npy) == bool(image_dir):
        raise UserError("give --input_npy to train on features, or --image_dir to train on images")
    if input_npy and (image_list or keras_model or mixed_precision):
        raise UserError("--image_list, --keras_model and --mixed_precision are for images; give --image_dir with them, or leave them out")
    if image_dir:
        image_rows.check_flags(
            image_dir=image_dir, image_list=image_list, list_columns=list_columns, path_column=path_column, resize=resize, crop=crop,
            keras_model=keras_model, layer=layer,
        )
        if not class_path:
            raise UserError("--image_dir needs a --class_list; extract_features.py --write_class_list makes one")


def check_output(
    *, score_file, weights, weight_file, list_file, relabel, test_data, output_file, probabilities_file, table_file, shift_classes,
    report_dir, folds, passes, list_columns,
):
    """Checks the other flags against each other; the arguments are their values."""
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
    if passes > 1 and not folds:
        raise UserError(f"--passes={passes}: a further pass weights rows by their out-of-fold probabilities; give --folds")
    if passes > 1 and "label" in list_columns:
        raise UserError(f"--passes={passes}: labels in the image_list are the weights of every pass; give --passes=1, or leave label out")
    if not (output_file or folds):
        raise UserError("nothing to write: give --output_file for the classifier, or --folds with a file, or both")
    if output_file and not output_file.endswith(".keras"):
        raise UserError(f"--output_file={output_file}: is a Keras model, so its name must end in .keras")
    if probabilities_file and not probabilities_file.endswith(".npy"):
        raise UserError(f"--probabilities_file={probabilities_file}: is an array, so its name must end in .npy")
    if table_file:
        score_table.check_table_path(table_file)
    elif shift_classes:
        raise UserError("--shift_classes shifts the probabilities of a table of scores; give --table_file, or leave it out")
    if bool(test_data) != bool(report_dir) or (test_data and not output_file):
        raise UserError("--test_data needs a --report_dir for the result, and an --output_file, the classifier to test; give all or none")


def write_model(net, path, progress):
    """Writes a model as a .keras file, whole or not at all. progress: ProgressFolder."""
    net.save(progress.file("model.keras"))  # Keras wants this suffix, which a temporary name lacks
    with open(progress.file("model.keras"), "rb") as model, atomic.whole_file(path) as file:
        shutil.copyfileobj(model, file)


def write_out_of_fold(out_of_fold, rows, class_names, *, probabilities_file, table_file, shift_classes, val_sim_thres):
    """Writes the out-of-fold probabilities of rows, a sample_weights.Rows, in the formats that are asked for."""
    if probabilities_file:
        classifier_parts.write_blocks(probabilities_file, (block for _, block in out_of_fold.blocks()), out_of_fold.shape)
        print(f"{probabilities_file}: out-of-fold probabilities {out_of_fold.shape}")
    if table_file:
        shifted = None
        if shift_classes:
            found = out_of_fold.of(rows.given)
            shares = confident_joint.shares_mislabeled(out_of_fold.blocks(), rows.given, found, len(class_names))
            shifted = confident_joint.shift_classes(found, rows.given, *shares)
        blocks = out_of_fold.scored_rows(rows.keys, rows.given, shifted)
        scores = score_table.write(
            table_file, blocks, class_names=class_names, score="probability", threshold=val_sim_thres, table=True
        )
        print(f"{table_file}: {counted(len(scores), 'row')}, {int((scores < val_sim_thres).sum())} of them below {val_sim_thres:g}")


def report_test(net, data, folder):
    """Tests a classifier, writes the report and prints its head."""
    from util.lib import classifier

    found = classifier.probabilities(net, data.test.inputs, data.tested, "testing")
    counts = classifier_report.count(found, data.test.class_ids[data.tested], len(data.class_names))
    report = classifier_report.write(folder, *counts, data.class_names)
    texts = [
        f"{words} {100 * report[name]['value']:.2f} % ({100 * report[name]['low']:.2f} to {100 * report[name]['high']:.2f})"
        for name, words in (("top_1", "top-1"), ("top_5", "top-5"), ("mean_over_classes", "mean over classes"))
        if report[name]["value"] is not None
    ]
    print(f"{folder}: {counted(len(data.tested), 'row')}: {', '.join(texts)}")


def choose(flag_values, *names):
    """Some of the flags: {name: value}."""
    return {name: flag_values[name] for name in names}


def load_data(class_path, flag_values):
    """Opens and labels the rows, and prints how many there are.

    Returns:
        classifier_data.Data, and a function that labels them for a further pass: weights, float32 [N] -> sample_weights.Rows.
    """
    if flag_values["input_npy"]:
        found = classifier_data.open_arrays(class_path=class_path, **choose(flag_values, "input_npy", "test_data", "verified"))
    else:
        found = classifier_data.open_images(class_path=class_path, **choose(
            flag_values, "image_dir", "image_list", "list_columns", "path_column", "test_data", "resize", "crop", "mirror",
            "num_workers", "keras_model", "network_weights",
        ))
    names, source, test = found
    label = functools.partial(classifier_data.label_rows, *found, **choose(
        flag_values, "verified", "score_file", "weights", "score", "weight_file", "list_file", "class_balance"
    ))
    rows, in_words = label()
    print(in_words)
    tested = classifier_data.rows_to_test(test) if test else None
    return classifier_data.Data(names, source, rows, test, tested), lambda soft: label(soft=soft)[0]


def check_paths(class_path, flag_values):
    """Raises UserError where an output is an input. Returns the paths of the outputs, the classifier's first if there is one."""
    outputs = choose(flag_values, "output_file", "probabilities_file", "table_file")
    outputs |= {path: path for path in (classifier_report.paths_in(flag_values["report_dir"]) if flag_values["report_dir"] else ())}
    inputs = choose(flag_values, "score_file", "weight_file", "list_file", "image_list", "keras_model", "network_weights")
    for path in filter(None, (flag_values["input_npy"], *flag_values["verified"], flag_values["test_data"])):
        inputs |= {path: path, f"the keys of {path}": arrays.keys_path(path), f"the checksums of {path}": checksums.beside(path)}
    paths.check_distinct(outputs, inputs | {"the class list": class_path})
    images.check_outputs(outputs, flag_values["image_dir"])
    return [path for path in outputs.values() if path]


def write_results(net, out_of_fold, data, progress, flag_values):
    """Writes what was asked for, and removes the progress folder. net, out_of_fold: of classifier_parts.train_passes."""
    if out_of_fold:
        write_out_of_fold(
            out_of_fold, data.rows, data.class_names,
            **choose(flag_values, "probabilities_file", "table_file", "shift_classes", "val_sim_thres"),
        )
    if flag_values["report_dir"]:
        report_test(net, data, flag_values["report_dir"])
    if flag_values["output_file"]:
        write_model(net, flag_values["output_file"], progress)
        print(f"{flag_values['output_file']}: the classifier, {net.count_params()} weights")
    progress.remove()


def identity_of(data, label, flag_values):
    """What a training must have in common with an interrupted one to resume it, as a dict for JSON. data, label: of load_data."""
    further = data.rows  # of passes
    if flag_values["passes"] > 1:  # verified rows may act on these alone
        further = label(np.full(len(data.rows.weights), 0.5, np.float32))
    return choose(flag_values, *SETTINGS) | {
        "rows": data.source.identity(), "classes": data.class_names, "class_ids": checksums.of(data.rows.class_ids),
        "weights of rows": checksums.of(data.rows.weights), "weights of further passes": checksums.of(further.weights),
    }


def main():
    opt = flags.FLAGS
    flag_values = command.own_flags(opt)
    if opt.shift_classes and not command.given(opt, "val_sim_thres"):
        flag_values["val_sim_thres"] = calibration.EVEN
    class_path = opt.class_list or (opt.input_npy and os.path.join(os.path.dirname(opt.input_npy), "classes.txt"))
    check_input(class_path=class_path, **choose(
        flag_values, "input_npy", "image_dir", "image_list", "list_columns", "path_column", "resize", "crop", "keras_model", "layer",
        "mixed_precision",
    ))
    check_output(**choose(
        flag_values, "score_file", "weights", "weight_file", "list_file", "relabel", "test_data", "report_dir", "output_file",
        "probabilities_file", "table_file", "shift_classes", "folds", "passes", "list_columns",
    ))
    outputs = check_paths(class_path, flag_values)
    data, label = load_data(class_path, flag_values)
    fold = metrics.split_evenly(opt.folds, data.source.class_ids, seed=opt.seed) if opt.folds else None
    classifier_parts.make_parts(fold, data.rows.weights, opt.output_file)  # what is wrong with them is reported before the work
    stages = classifier_parts.make_stages(bool(opt.image_dir), **choose(
        flag_values, "n_epoch", "n_epoch_head", "learning_rate", "finetune_rate", "finetune_from"
    ))
    command.import_tensorflow()
    from util.lib import devices, tensorboard_log

    strategy = devices.make_strategy(
        opt.strategy, logical_cpus=opt.logical_cpus, deterministic=True, batch_sizes={"batch_size": opt.batch_size}
    )
    make_net = classifier_parts.net_maker(data, **choose(
        flag_values, "normalise", "hidden_units", "dropout_rate", "seed", "model", "network_weights", "keras_model", "layer", "crop",
        "mixed_precision",
    ))
    identity = identity_of(data, label, flag_values)
    with devices.lost_worker_is_a_user_error(opt.strategy):
        chief = devices.join_cluster(opt.strategy, strategy, [identity, outputs])
        if chief:
            atomic.check_writable(outputs)
            if opt.report_dir:
                locks.Lock(os.path.join(opt.report_dir, "test"))  # of both files, until the end of the command
        progress = ProgressFolder(f"{outputs[0]}.progress", identity, classifier_parts.FILES, writes=chief)
        devices.wait_for_all(strategy)  # the chief has removed what is of another training
        net, out_of_fold = classifier_parts.train_passes(
            opt.passes, stages, make_net, data, fold, progress, label=label, strategy=strategy,
            output_file=opt.output_file, log=tensorboard_log.open_log(opt.log_dir, flag_values, chief=chief and bool(opt.log_dir)),
            **choose(flag_values, "batch_size", "weight_decay", "label_smoothing", "seed", "log_interval", "save_interval"),
        )
        if chief:
            write_results(net, out_of_fold, data, progress, flag_values)
        devices.leave_together(strategy, chief)


if __name__ == "__main__":
    command.run(main)
