"""Scores images with a trained CleanNet: the cosine between the embedding of an image and that of the class it was given.

    python inference.py --mode=inference --image_feature_list=data/all.tsv --checkpoint_dir=train/checkpoints \
        --output_file=runs/pred.txt
    python inference.py --mode=val --data_dir=data --checkpoint_dir=train/checkpoints --output_file=runs/val.txt

Line i of the output belongs to row i of the input. Low scores are mislabeled images.
"""
import os

import numpy as np
from absl import flags
from tqdm import tqdm

from util.lib import arrays, class_list, command, metrics, run_folder, score_table, threads, tsv
from util.lib.errors import UserError, warn

# Input.
flags.DEFINE_string("data_dir", "./data/", "Folder of val.npy; where it is given, its ref.npy is used too, not the run's own.")
flags.DEFINE_string(
    "image_feature_list", "./data/input_tsv.tsv",
    "Rows to score: tab-separated (key, class name, feature), .gz too, or a .npy of rows of a feature and its class id.",
)
flags.DEFINE_string("class_list", "./data/classes.txt", "Class list; taken from the run where it is not given, else compared with it.")
flags.DEFINE_string("heldout_class_list", None, "Classes to measure apart with --mode=val: class name, tab, 1 (keep) or 0 (held out).")
flags.DEFINE_enum(
    "on_bad_row", "error", ["error", "skip"],
    "error: stop at the first bad row. skip: write nan for it, count it, and list it in <output_file>.rejected.tsv.",
)
# Model.
flags.DEFINE_string("checkpoint_dir", "./runs/", "Folder of the training run.")
flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, latest, or the number of a step.")
flags.DEFINE_integer("img_dim", 2048, "Numbers a feature has; the run's where it is not given, else compared with it.", lower_bound=1)
flags.DEFINE_integer("num_ref", 32, "References a class; the run's where it is not given, else compared with it.", lower_bound=1)
flags.DEFINE_enum(
    "embed_norm", "log", ["log", "l2_norm", "l2norm", "no_norm"], "Normalisation; the run's where it is not given, else compared."
)
# Run.
flags.DEFINE_enum("mode", "inference", ["inference", "val"], "inference: score image_feature_list. val: score val.npy and measure.")
flags.DEFINE_string("output_file", "./runs/pred.txt", "Where the scores go, one a line; .gz too.")
flags.DEFINE_integer("batch_size", 64, "Rows scored at a time; 512 where it is not given, which is faster.", lower_bound=1)
flags.DEFINE_integer("num_samples", -1, "Rows to score, from the first; -1: all.", lower_bound=-1)
flags.DEFINE_string(
    "val_sim_thres", "0.1",
    "Score from which a label counts as correct; auto: the threshold that was best on the run's validation rows, kept with it.",
)
flags.DEFINE_enum(
    "score", "cosine", score_table.SCORES,
    f"What is written and compared with val_sim_thres: {score_table.SCORES_IN_WORDS}; the run's where not given.",
)
flags.DEFINE_enum(
    "output_format", "text", ["text", "tsv"],
    "text: the score alone. tsv: key, class, cosine, margin, probability, verdict, nearest class, its cosine. An output_file that "
    "ends in .npy or .parquet gets that format.",
)
flags.DEFINE_string("report_dir", None, "With --mode=val: folder for report.json and report.html, the measures with pictures.")
flags.DEFINE_integer("num_workers", 0, "Threads that parse text, and that score; 0: one a core, up to 8.", lower_bound=0, upper_bound=64)

ROWS_AT_ONCE = 4096  # of a .npy, in one piece of a thread's work
TEXT_AT_ONCE = 4 << 20  # bytes of a text file, the same: some 300 rows, since the model does small batches at half the speed


def check_shape(shape, opt):
    """A flag that was given must agree with the run's shape."""
    for name in ("img_dim", "num_ref", "embed_norm"):
        given = opt[name].value.replace("l2norm", "l2_norm") if name == "embed_norm" else opt[name].value
        if opt[name].present and given != shape[name]:
            raise UserError(
                f"--{name}={given}, but {opt.checkpoint_dir} was trained with {name}={shape[name]}; leave the flag out, "
                "or give another --checkpoint_dir"
            )


def load_classes_and_references(opt, run):
    """The class list and the references of the run, or of an explicit data_dir, compared with every list that was given."""
    kept = os.path.join(opt.checkpoint_dir, "classes.txt")
    names = class_list.load(kept)
    if opt["class_list"].present:
        class_list.check_same(class_list.load(opt.class_list), opt.class_list, names, kept)
    folder = opt.checkpoint_dir
    if opt["data_dir"].present or opt.mode == "val":
        class_list.require_beside(opt.data_dir, names, kept)
        if opt["data_dir"].present:
            folder = opt.data_dir
    references = run_folder.load_references(folder, run["shape"], len(names))
    if (
        folder != opt.checkpoint_dir and run_folder.embeds_by_rows(run["settings"])
        and not np.array_equal(references, run_folder.load_references(opt.checkpoint_dir, run["shape"], len(names)))
    ):
        raise UserError(
            f"{folder}: its ref.npy is not that of {opt.checkpoint_dir}, a run that embeds classes by their rows and uses no other; "
            "leave --data_dir out, or train with --class_embedding=references"
        )
    return names, references


def load_scorer(opt, run, references, compare_classes):
    """Builds the model, reads its checkpoint and embeds the classes. Returns a scorer.Scorer and the checkpoint's state."""
    step = run_folder.pick_step(opt.checkpoint_dir, opt.checkpoint)

    command.import_tensorflow()  # late: what is wrong with the flags is told at once
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)  # threads score blocks side by side instead
    from util.lib.scorer import BATCH_SIZE, restored_scorer

    batch_size = opt.batch_size if opt["batch_size"].present else BATCH_SIZE
    scorer, state = restored_scorer(
        opt.checkpoint_dir, step, run, references, batch_size=batch_size, compare_classes=compare_classes
    )
    print(f"{opt.checkpoint_dir}: checkpoint of step {step}")
    return scorer, state


def score_text(opt, names, shape, scorer):
    """An iterator of a score_table.Block for every block of rows of a text file, in order; bad rows score NaN."""
    parser = tsv.Parser(
        tsv.UNVERIFIED, names, width=shape["img_dim"], width_from=f"img_dim of {opt.checkpoint_dir}",
        minimum=-1 if shape["embed_norm"] == "log" else None,
    )
    reader = tsv.RowReader(
        opt.image_feature_list, parser, on_bad_row=opt.on_bad_row, rejected_path=f"{opt.output_file}.rejected.tsv",
        num_workers=opt.num_workers, max_rows=opt.num_samples if opt.num_samples >= 0 else None, block_size=TEXT_AT_ONCE,
        description="scoring",
    )

    def score(block):
        scored = score_table.Block(block.keys, block.class_ids, scorer.score(block.features, block.class_ids))
        return score_table.with_bad_rows(scored, block) if block.rejected else scored

    return threads.in_order(score, reader, threads.count(opt.num_workers))


def score_array(opt, array, keys, scorer):
    """Yields a score_table.Block for every ROWS_AT_ONCE rows of an arrays.FeatureArray, in order. keys: list of str."""

    def score(start):
        part = slice(start, min(start + ROWS_AT_ONCE, len(keys)))
        class_ids = array.class_ids[part]
        return score_table.Block(keys[part], class_ids, scorer.score(array.features[part], class_ids))

    with tqdm(total=len(keys), desc="scoring", unit="row", unit_scale=True, disable=None, delay=1) as bar:
        for block in threads.in_order(score, range(0, len(keys), ROWS_AT_ONCE), threads.count(opt.num_workers)):
            yield block
            bar.update(len(block.keys))


def open_array(opt, path, names, shape, verified):
    """The arrays.FeatureArray to score and the keys of its rows, as many as --num_samples asks for."""
    beside = os.path.join(os.path.dirname(path), "classes.txt")
    if os.path.exists(beside):
        class_list.check_same(class_list.load(beside), beside, names, os.path.join(opt.checkpoint_dir, "classes.txt"))
    array = arrays.FeatureArray(
        path, num_classes=len(names), verified=verified, img_dim=shape["img_dim"], embed_norm=shape["embed_norm"], keys=verified
    )
    has_keys = os.path.exists(arrays.keys_path(path))
    keys = array.sample_keys() if has_keys else [str(row) for row in range(array.num_rows)]
    return array, keys[: opt.num_samples] if opt.num_samples >= 0 else keys


def percent(value):
    """A share in percent, or a word where it is undefined."""
    return "undefined, no rows" if value is None else f"{100 * value:.2f} %"


def print_validation(scores, array, threshold, heldout, names):
    """Prints what --mode=val finds. scores: float32 [N], of the first N rows of the arrays.FeatureArray."""
    labels, class_ids = array.labels[: len(scores)], array.class_ids[: len(scores)]
    found = metrics.evaluate(scores, labels, class_ids, threshold, heldout)
    trusting = metrics.average_error_rate(np.ones(len(scores), bool), labels, class_ids)
    print(f"{found['rows']} verified rows; classes without any: {len(names) - len(np.unique(class_ids))}")
    print(f"trusting every label: average error rate over classes {percent(trusting)}")
    thresholds = {"fixed": f"at {threshold:g}", "chosen": "at the best threshold, none"}
    if found["chosen_threshold"] is not None:
        thresholds["chosen"] = f"at the best threshold, {found['chosen_threshold']:.4g} (cross-fitted)"
    for decided, where in thresholds.items():
        measures = found.get(decided)
        if measures and measures["accuracy"] is not None:
            error = percent(measures["average_error_rate"])
            print(f"{where}: accuracy {measures['accuracy']:.4f}, average error rate over classes {error}")
    for group, what in (("kept", "kept"), ("heldout", "held-out")):
        if f"{group}_accuracy" in found["fixed"]:
            print(f"{what} classes at {threshold:g}: average error rate {percent(found['fixed'][f'{group}_average_error_rate'])}")
    if found["rows_without_score"]:
        warn(f"{found['rows_without_score']} rows are of classes without references and have no score")


def check_relations(opt):
    """Flags that contradict each other."""
    if opt.mode != "val":
        for name in ("heldout_class_list", "report_dir"):
            if opt[name].value:
                raise UserError(f"--{name} goes with verified rows; give --mode=val with it, or leave it out")
    elif opt["image_feature_list"].present:
        raise UserError("--mode=val scores val.npy of data_dir, not an --image_feature_list; leave one of them out")
    if opt.num_samples == 0:
        raise UserError("--num_samples=0 scores nothing; give the number of rows, or -1 for all")
    if os.path.realpath(opt.output_file) == os.path.realpath(opt.image_feature_list):
        raise UserError(f"--output_file={opt.output_file} is the list to score, which it would replace; name another file")
    if opt.output_format == "tsv" and opt.output_file.endswith(".npy"):
        raise UserError(f"--output_format=tsv: {opt.output_file} can hold one number a row only; name a .tsv or .parquet file")


def main():
    opt = flags.FLAGS
    check_relations(opt)
    threshold = metrics.parse_threshold(opt.val_sim_thres)
    run = run_folder.load_run(opt.checkpoint_dir)
    check_shape(run["shape"], opt)
    score = opt.score if opt["score"].present else run["settings"]["score"]
    if threshold is None:
        run_folder.check_threshold_is_of(opt.checkpoint_dir, run, score)
    names, references = load_classes_and_references(opt, run)
    heldout = class_list.heldout_ids(opt.heldout_class_list, names)
    path = os.path.join(opt.data_dir, "val.npy") if opt.mode == "val" else opt.image_feature_list
    array = None
    if path.endswith(".npy"):
        array, keys = open_array(opt, path, names, run["shape"], verified=opt.mode == "val")
    scorer, state = load_scorer(opt, run, references, compare_classes=opt.output_format == "tsv" or score != "cosine")
    if threshold is None:
        threshold = run_folder.chosen_threshold(opt.checkpoint_dir, state)
    blocks = score_array(opt, array, keys, scorer) if array else score_text(opt, names, run["shape"], scorer)
    scores = score_table.write(
        opt.output_file, blocks, class_names=names, score=score, threshold=threshold, table=opt.output_format == "tsv"
    )
    print(f"{opt.output_file}: {len(scores)} scores, {int(np.sum(scores < threshold))} below {threshold:g}")
    if opt.mode == "val":
        print_validation(scores, array, threshold, heldout, names)
    if opt.report_dir:
        from util.lib import report

        n = len(scores)
        report.write(
            opt.report_dir, scores, array.labels[:n], array.class_ids[:n], names, threshold=threshold, heldout_ids=heldout, score=score
        )
        print(f"{opt.report_dir}: report.json, report.html")


if __name__ == "__main__":
    command.run(main)
