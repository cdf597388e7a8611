"""Scores images with a trained CleanNet: the cosine between the embedding of an image and that of its given class.

    python inference.py --mode=inference --image_feature_list=data/all.tsv --checkpoint_dir=train/checkpoints \
        --output_file=runs/pred.txt
    python inference.py --mode=val --data_dir=data --checkpoint_dir=train/checkpoints --output_file=runs/val.txt

Line i of the output is the score of row i of the input. Images that score low are likely mislabeled.
"""
import os
import sys

import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # PYTHONSAFEPATH leaves it out
from util.lib import arrays, atomic, class_list, command, metrics, paths, rows, run_folder, score_table, scoring, threads
from util.lib.errors import UserError, counted, warn

# Input.
flags.DEFINE_string("data_dir", "./data/", "Folder of val.npy. If given, its ref.npy replaces the run's own references.")
flags.DEFINE_string(
    "image_feature_list", "./data/input_tsv.tsv",
    "Rows to score: tab-separated (key, class name, feature), .csv with a header, either .gz too, .parquet (a pattern or a folder too), "
    "or a .npy of rows of a feature and its class id.",
)
flags.DEFINE_string("features", None, "Instead of image_feature_list: the features alone, .npy or .npz; table has the rest.")
flags.DEFINE_string("table", None, "With features: .csv or tab-separated, with a header, its rows in the order of the features.")
flags.DEFINE_string("key_column", "key", "Column of the keys, in parquet, CSV or table.")
flags.DEFINE_string("class_column", "class", "Column of the class names, in parquet, CSV or table.")
flags.DEFINE_string(
    "feature_column", "feature", "Column of the features, in parquet or CSV, or the array of features in a .npz of several."
)
flags.DEFINE_string("class_list", "./data/classes.txt", "Class list, compared with the run's. By default the run's.")
flags.DEFINE_string(
    "heldout_class_list", None, "With --mode=val: classes to measure apart. Lines of class name, tab, 1 (keep) or 0 (hold out)."
)
flags.DEFINE_enum(
    "on_bad_row", "error", ["error", "skip"],
    "error: stop at the first bad row. skip: write nan for a bad row, count it, and list it in <output_file>.rejected.tsv.",
)
# Model.
flags.DEFINE_string("checkpoint_dir", "./runs/", "Folder of the training run.")
flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, latest, or the number of a step.")
flags.DEFINE_integer("img_dim", 2048, "Numbers per feature, compared with the run's. By default the run's.", lower_bound=1)
flags.DEFINE_integer("num_ref", 32, "References per class, compared with the run's. By default the run's.", lower_bound=1)
flags.DEFINE_enum(
    "embed_norm", "log", [*arrays.EMBED_NORMS, "l2norm"],
    "Normalisation, compared with the run's. By default the run's.",
)
# Run.
flags.DEFINE_enum("mode", "inference", ["inference", "val"], "inference: score image_feature_list. val: score val.npy and measure.")
flags.DEFINE_string("output_file", "./runs/pred.txt", "Where the scores go, one per line. The suffix may be .gz, .csv, .npy or .parquet.")
flags.DEFINE_integer("batch_size", 64, "Rows per batch; does not change the scores. By default 512, the fastest.", lower_bound=1)
flags.DEFINE_integer("num_samples", -1, "How many rows to score, from the first on; -1: all.", lower_bound=-1)
flags.DEFINE_string(
    "val_sim_thres", "0.1",
    "Score from which a label counts as correct. auto: the threshold that was best on the run's validation rows, or without such "
    "rows was estimated from the scores alone. fdr:0.1: call as many labels wrong as possible, of which 10 % at most are expected to be "
    "correct, by the verified rows of data_dir's val.npy.",
)
flags.DEFINE_enum(
    "score", "cosine", score_table.SCORES,
    f"What is written and compared with val_sim_thres: {score_table.SCORES_IN_WORDS}. By default the run's.",
)
flags.DEFINE_enum(
    "output_format", "text", ["text", "tsv"],
    "text: the score alone. tsv: key, class, cosine, margin, probability, verdict, nearest class and its cosine.",
)
flags.DEFINE_bool("header", False, "Write the names of the columns first; for text. A .csv table has them always.")
flags.DEFINE_string(
    "probabilities_file", None,
    "Also write the probability of every class, softmax of the cosines / contrast_temperature: .npy, float32 [rows, classes].",
)
flags.DEFINE_string("report_dir", None, "With --mode=val: folder for report.json and report.html: every measure, with pictures.")
flags.DEFINE_string("image_dir", None, "With --report_dir: folder in which an image is found by its key; the report shows the worst ones.")
flags.DEFINE_integer("num_workers", 0, "Threads that parse and score; 0: one per core, 8 at most.", lower_bound=0, upper_bound=64)

ESTIMATE = ", a threshold estimated from the scores alone"
ARRAY_ROWS = 4096  # of a .npy per block
TEXT_BLOCK = 4 << 20  # bytes of text per block: about 300 rows, since small batches take twice as long per row


def check_flags(
    *, mode, heldout_class_list, report_dir, image_dir, list_given, num_samples, output_file, output_format, header, probabilities_file,
    val_sim_thres,
):
    """Raises UserError where flags contradict each other. list_given: whether --image_feature_list was given."""
    command.check_report_flags(report_dir, image_dir)
    if mode != "val":
        for name, value in (("heldout_class_list", heldout_class_list), ("report_dir", report_dir)):
            if value:
                raise UserError(f"--{name} goes with verified rows; give --mode=val with it, or leave it out")
    elif list_given:
        raise UserError("--mode=val scores val.npy of data_dir, not an --image_feature_list; leave one of them out")
    elif command.parse_fdr(val_sim_thres):
        raise UserError(f"--val_sim_thres={val_sim_thres} is chosen by all of val.npy, which --mode=val measures; give auto or a number")
    if num_samples == 0:
        raise UserError("--num_samples=0 scores nothing; give the number of rows, or -1 for all")
    if output_format == "tsv":
        score_table.check_table_path(output_file)
    if header and output_file.endswith((".npy", ".parquet")):
        raise UserError(f"--header goes with text, which {output_file} is not; leave it out, or name a .txt, .tsv or .csv file")
    if probabilities_file and not probabilities_file.endswith(".npy"):
        raise UserError(f"--probabilities_file={probabilities_file}: expected a name that ends in .npy")


def check_paths(
    run, *, data_dir, to_score, class_list_path, heldout_class_list, output_file, probabilities_file, report_dir, image_dir
):
    """Raises UserError where an output is an input or another output, or cannot be written."""
    inputs = {"image_feature_list": to_score, "class_list": class_list_path, "heldout_class_list": heldout_class_list}
    for folder, _, names in os.walk(run.folder):
        inputs |= {f"run file {folder}/{name}": os.path.join(folder, name) for name in names}
    inputs |= {f"data file {name}": os.path.join(data_dir, name) for name in run_folder.DATA_FILES}
    outputs = {"output_file": output_file, "rejected rows": f"{output_file}.rejected.tsv", "probabilities_file": probabilities_file}
    if report_dir:
        from util.lib import report  # late: its libraries take a second

        outputs |= report.files_in(report_dir)
    paths.check_distinct(outputs, inputs)
    if image_dir:
        from util.lib import images  # late: few calls need it

        images.check_outputs(outputs, image_dir)
    atomic.check_writable(outputs.values())
    if report_dir:
        report.lock(report_dir)


def check_run(run, *, img_dim, num_ref, embed_norm, class_list_path):
    """Raises UserError where a flag that was given (not None) contradicts the run."""
    given = {"img_dim": img_dim, "num_ref": num_ref, "embed_norm": embed_norm and embed_norm.replace("l2norm", "l2_norm")}
    for name, value in given.items():
        if value is not None and value != run.shape[name]:
            raise UserError(
                f"--{name}={value}, but {run.folder} was trained with {name}={run.shape[name]}; leave the flag out, "
                "or give another --checkpoint_dir"
            )
    if class_list_path:
        kept = os.path.join(run.folder, "classes.txt")
        class_list.check_same(class_list.load(class_list_path), class_list_path, run.class_names, kept)


def with_references_of(run, data_dir):
    """The run with the ref.npy of a folder in place of its own."""
    references = scoring.load_references(data_dir, run.shape, len(run.class_names))
    arrays.check_references_checksum(data_dir, references, run.class_names)
    return run.with_references(references, source=data_dir)


def open_array(path, run, *, verified, num_samples):
    """The arrays.FeatureArray to score and the keys of its rows, num_samples of them at most (-1: all)."""
    class_list.check_beside(os.path.dirname(path), run.class_names, os.path.join(run.folder, "classes.txt"))
    array = arrays.FeatureArray(
        path, class_names=run.class_names, verified=verified, img_dim=run.shape["img_dim"], embed_norm=run.shape["embed_norm"],
        keys=verified,
    )
    has_keys = os.path.exists(arrays.keys_path(path))
    keys = array.sample_keys() if has_keys else [str(row) for row in range(array.num_rows)]
    return array, keys[:num_samples] if num_samples >= 0 else keys


def load_scorer(run, *, batch_size, table, all_probabilities):
    """The Scorer of a run, to be called by several threads.

    Args:
        batch_size: rows per batch, or None: the fastest. table, all_probabilities: whether the table, the probability of every class
            are asked for.
    """
    tf = command.import_tensorflow()  # late: what is wrong with the flags or files is reported before
    from util.lib.scorer import BATCH_SIZE

    tf.config.threading.set_intra_op_parallelism_threads(1)  # threads score blocks side by side instead
    compare_classes = table or all_probabilities or run.score != "cosine"
    return run.make_scorer(batch_size=batch_size or BATCH_SIZE, compare_classes=compare_classes, all_probabilities=all_probabilities)


def score_rows(source, scorer, *, on_bad_row, rejected_path, num_workers, num_samples):
    """Scores a source of rows.open_source by blocks. Returns an iterator of ScoredRows, in its order; bad rows score NaN."""
    reader = rows.RowReader(
        source, on_bad_row=on_bad_row, rejected_path=rejected_path, max_rows=num_samples if num_samples >= 0 else None
    )

    def score(block):
        scored = score_table.ScoredRows(block.keys, block.class_ids, scorer.score(block.features, block.class_ids))
        return score_table.with_bad_rows(scored, block) if block.rejected else scored

    return threads.in_order(score, reader, threads.count(num_workers))


def score_array(array, keys, scorer, *, num_workers):
    """Scores the first rows of an arrays.FeatureArray, one per key, by blocks. Yields ScoredRows in the order of the array."""

    def score(start):
        part = slice(start, min(start + ARRAY_ROWS, len(keys)))
        class_ids = array.class_ids[part]
        return score_table.ScoredRows(keys[part], class_ids, scorer.score(array.features[part], class_ids))

    with tqdm(total=len(keys), desc="scoring", unit="row", unit_scale=True, disable=None, delay=1) as bar:
        for scored in threads.in_order(score, range(0, len(keys), ARRAY_ROWS), threads.count(num_workers)):
            yield scored
            bar.update(len(scored.keys))


def with_fdr_threshold(scored, val, scorer, run, *, rate, num_workers):
    """Scores all rows, to choose the threshold below which at most a share of them is expected to be correct.

    Args:
        scored: iterator of ScoredRows. val: arrays.FeatureArray, a verified random sample. run: scoring.OpenRun. rate: the share.

    Returns:
        (list of ScoredRows, which has no features and so fits into memory; the run with that threshold).
    """
    blocks = [rows._replace(scores=rows.scores._replace(probabilities=None)) for rows in scored]
    verified = score_array(val, range(val.num_rows), scorer, num_workers=num_workers)
    verified_scores = np.concatenate([rows.scores.by(run.score) for rows in verified])
    usable = np.isfinite(verified_scores)
    scores = np.concatenate([rows.scores.by(run.score) for rows in blocks])
    threshold = metrics.fdr_threshold(scores, verified_scores[usable], val.labels[usable], rate)
    return blocks, run._replace(threshold=threshold)


def write_scores(path, scored, run, *, table, header):
    """Writes ScoredRows as score_table.write does, and prints how many are below the run's threshold. Returns their scores, float32 [N]."""
    scores = score_table.write(
        path, scored, class_names=run.class_names, score=run.score, threshold=run.threshold, estimated=run.estimated, table=table,
        header=header,
    )
    below = int(np.sum(scores.astype(np.float64) < run.threshold))
    print(f"{path}: {len(scores)} scores, {below} below {run.threshold:g}{ESTIMATE * run.estimated}")
    return scores


def percent(share):
    """A share in percent, or why there is none."""
    return "undefined, no rows" if share is None else f"{100 * share:.2f} %"


def print_validation(found, class_ids, num_classes, *, chosen_first, chosen_here, estimated, choice):
    """Prints what --mode=val found.

    Args:
        found: of metrics.evaluate. class_ids: int [N], of the rows. num_classes: int.
        chosen_first: begin with the cross-fitted threshold. chosen_here: the fixed threshold was chosen on these very rows.
        estimated: the fixed threshold was estimated from scores alone. choice: metrics.Choice of the checkpoint, or None.
    """
    everything = found["all"]
    print(f"{everything['rows']} verified rows; classes without any: {num_classes - len(np.unique(class_ids))}")
    print(f"trusting every label: average error rate over classes {percent(everything['trusting_every_label'])}")
    biased = ", which was chosen on these very rows" if chosen_here else ""
    thresholds = {"fixed": f"at {found['threshold']:.4g}{biased}{ESTIMATE * estimated}"}
    if found["chosen_threshold"] is not None:
        chosen = "cross-fitted, with the choice of the checkpoint" if choice else "cross-fitted"
        thresholds["chosen"] = f"at the best threshold, {found['chosen_threshold']:.4g} ({chosen})"
    for decision in sorted(thresholds, reverse=not chosen_first):
        measures = everything[decision]
        if measures["accuracy"] is not None:
            error = percent(measures["average_error_rate"])
            print(f"{thresholds[decision]}: accuracy {measures['accuracy']:.4f}, average error rate over classes {error}")
    for group, words in (("kept", "kept"), ("heldout", "held-out")):
        if group in found:
            error = percent(found[group]["fixed"]["average_error_rate"])
            print(f"{words} classes at {found['threshold']:.4g}: average error rate {error}")
    if found["rows_without_score"]:
        warn(f"{counted(found['rows_without_score'], 'row')} without a score, of classes without references")


def measure(scores, array, keys, run, *, choice, heldout_ids, chosen_first, report_dir, image_dir):
    """Prints how well the scores of verified rows tell right from wrong, and writes the report, if there is a folder for it.

    Args:
        scores: float32 [N], of the first rows of an arrays.FeatureArray. keys: of these rows. run: scoring.OpenRun.
        choice: of the run, by these rows, or None.
        heldout_ids: of class_list. chosen_first: the threshold is the run's own choice. image_dir: of the images in the report, or None.
    """
    labels, class_ids = array.labels[: len(scores)], array.class_ids[: len(scores)]
    choice = choice and choice.of(slice(len(scores)))  # --num_samples
    choice = choice if choice and choice.explains(scores) else None
    found = metrics.evaluate(scores, labels, class_ids, run.threshold, heldout_ids, choice)
    chosen_here = chosen_first and run.validated_on(array)
    print_validation(
        found, class_ids, len(run.class_names), chosen_first=chosen_first, chosen_here=chosen_here, estimated=run.estimated, choice=choice
    )
    if report_dir:
        from util.lib import report

        report.write(
            report_dir, scores, labels, class_ids, run.class_names, threshold=run.threshold, estimated=run.estimated,
            heldout_ids=heldout_ids, score=run.score, choice=choice, pictured=report.Pictured(keys, image_dir) if image_dir else None,
        )
        print(f"{report_dir}: report.json, report.html")


def main():
    opt = flags.FLAGS
    verified = opt.mode == "val"
    check_flags(
        mode=opt.mode, heldout_class_list=opt.heldout_class_list, report_dir=opt.report_dir, image_dir=opt.image_dir,
        output_file=opt.output_file, num_samples=opt.num_samples, output_format=opt.output_format, header=opt.header,
        probabilities_file=opt.probabilities_file, list_given=opt["image_feature_list"].present or bool(opt.features or opt.table),
        val_sim_thres=opt.val_sim_thres,
    )
    rate = command.parse_fdr(opt.val_sim_thres)
    threshold = metrics.FIXED_THRESHOLD if rate else command.parse_threshold(opt.val_sim_thres)
    run = scoring.open_run(opt.checkpoint_dir, opt.checkpoint, command.given(opt, "score"), threshold)
    check_run(
        run, img_dim=command.given(opt, "img_dim"), num_ref=command.given(opt, "num_ref"),
        embed_norm=command.given(opt, "embed_norm"), class_list_path=command.given(opt, "class_list"),
    )
    if verified or rate or opt["data_dir"].present:
        class_list.require_beside(opt.data_dir, run.class_names, os.path.join(run.folder, "classes.txt"))
    if opt["data_dir"].present:
        run = with_references_of(run, opt.data_dir)
    heldout_ids = class_list.heldout_ids(opt.heldout_class_list, run.class_names)
    path = os.path.join(opt.data_dir, "val.npy") if verified else opt.image_feature_list
    if opt.features or opt.table:
        path = command.given(opt, "image_feature_list")
    is_array = not (opt.features or opt.table) and path.endswith(".npy")
    if not is_array:
        source = rows.open_source(
            path, run.make_parser(), features=opt.features, table=opt.table, num_workers=opt.num_workers, block_size=TEXT_BLOCK,
            columns={"key": opt.key_column, "class": opt.class_column, "feature": opt.feature_column}, description="scoring",
        )
    check_paths(
        run, data_dir=opt.data_dir, to_score=path if is_array else source.inputs, class_list_path=command.given(opt, "class_list"),
        heldout_class_list=opt.heldout_class_list, output_file=opt.output_file, report_dir=opt.report_dir,
        probabilities_file=opt.probabilities_file, image_dir=opt.image_dir,
    )
    if is_array:
        array, keys = open_array(path, run, verified=verified, num_samples=opt.num_samples)
    val = open_array(os.path.join(opt.data_dir, "val.npy"), run, verified=True, num_samples=-1)[0] if rate else None
    scorer = load_scorer(
        run, batch_size=command.given(opt, "batch_size"), table=opt.output_format == "tsv", all_probabilities=bool(opt.probabilities_file)
    )
    choice = run.choice(array) if verified else None
    print(run.about(array if verified else None))
    if is_array:
        scored = score_array(array, keys, scorer, num_workers=opt.num_workers)
    else:
        scored = score_rows(
            source, scorer, on_bad_row=opt.on_bad_row, rejected_path=f"{opt.output_file}.rejected.tsv",
            num_workers=opt.num_workers, num_samples=opt.num_samples,
        )
    if opt.probabilities_file:
        scored = score_table.keeping_probabilities(opt.probabilities_file, scored, len(run.class_names))
    if rate:
        scored, run = with_fdr_threshold(scored, val, scorer, run, rate=rate, num_workers=opt.num_workers)
    scores = write_scores(opt.output_file, scored, run, table=opt.output_format == "tsv", header=opt.header)
    if verified:
        measure(
            scores, array, keys, run, choice=choice, heldout_ids=heldout_ids, chosen_first=threshold is None, report_dir=opt.report_dir,
            image_dir=opt.image_dir,
        )


if __name__ == "__main__":
    command.run(main)
