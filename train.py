"""Trains CleanNet on verified and unverified rows, with validation, checkpoints and exact resume.

    python train.py --data_dir=data --checkpoint_dir=train/checkpoints --img_dim=2048 --num_ref=32

Reads train.npy, val.npy, all.npy, ref.npy and classes.txt from data_dir. The same command started again goes on where the
last checkpoint ends, and arrives at the weights that an uninterrupted run would have.
"""
import os
import platform
import signal
import sys
import tempfile
import time
import zlib

import numpy as np
from absl import flags
from tqdm import tqdm

import data_loader
from util.lib import arrays, atomic, class_list, command, devices, metrics, run_folder, score_table
from util.lib.errors import UserError, warn

# Input.
flags.DEFINE_string("data_dir", "./data/", "Folder of train.npy, val.npy, all.npy, ref.npy and classes.txt.")
flags.DEFINE_string(
    "heldout_class_list", None,
    "Lines of class name, tab, 1 (keep) or 0 (hold out). Verified rows of held-out classes are not trained on, and validation "
    "measures these classes apart.",
)
flags.DEFINE_integer("img_dim", 2048, "Numbers a feature has; taken from the data where it is not given.", lower_bound=1)
flags.DEFINE_integer("num_ref", 32, "References a class; taken from ref.npy where it is not given.", lower_bound=1)
flags.DEFINE_bool("skip_empty_classes", False, "Leave classes without any row in all.npy out of training; otherwise an error.")
# Model and loss.
flags.DEFINE_enum("embed_norm", "log", ["log", "l2_norm", "l2norm", "no_norm"], "Normalisation: log(1 + x), x / |x|, or none.")
flags.DEFINE_float("dropout_rate", 0.0, "Share of the reference encoder's 512 units dropped.", lower_bound=0.0, upper_bound=0.99)
flags.DEFINE_float(
    "query_dropout_rate", 0.0, "Share of the numbers of a feature that training hides from the query encoder.", lower_bound=0.0,
    upper_bound=0.99,
)
flags.DEFINE_float("neg_weight", 5.0, "Weight of rows verified as mislabeled in the loss.", lower_bound=0.0)
flags.DEFINE_float(
    "class_contrast", 0.0,
    "Weight of the class contrast in the loss: a row of a class is pushed away from all others. 0, the paper's loss, is without.",
    lower_bound=0.0,
)
flags.DEFINE_float("contrast_temperature", 0.1, "What the class contrast divides cosines by.", lower_bound=1e-3)
flags.DEFINE_float(
    "contrast_smoothing", 0.0, "Share of the class contrast's target that is spread over all classes.", lower_bound=0.0, upper_bound=0.99
)
flags.DEFINE_integer("contrast_classes", 256, "Classes that the contrast compares with in a step, drawn if there are more.", lower_bound=1)
flags.DEFINE_enum(
    "class_embedding", "references", ["references", "rows", "auto"],
    "What stands for a class in validation and inference. references: phi_s, the paper's. rows: the mean of phi_q over its rows in "
    "all.npy (1,000 of them at most), each weighted by its probability. auto: rows with a --heldout_class_list, else references.",
)
flags.DEFINE_enum(
    "score", "cosine", score_table.SCORES, f"What validation and inference score by: {score_table.SCORES_IN_WORDS}.",
)
flags.DEFINE_float("weight_decay", 1e-4, "Factor of sum |W|^2 / 2 over the weight matrices.", lower_bound=0.0)
# Optimisation.
flags.DEFINE_integer("batch_size_sup", 32, "Verified rows a step.", lower_bound=1)
flags.DEFINE_integer("batch_size_unsup", 32, "Unverified rows a step; 0 trains without all.npy.", lower_bound=0)
flags.DEFINE_integer("n_step", 60000, "Steps in all.", lower_bound=1)
flags.DEFINE_float("learning_rate", 0.01, "Rate of the first steps.", lower_bound=0.0)
flags.DEFINE_integer("lr_update", 30000, "Steps after which the rate is multiplied by lr_decay, again and again.", lower_bound=1)
flags.DEFINE_float("lr_decay", 0.1, "Factor of the rate every lr_update steps.", lower_bound=0.0)
flags.DEFINE_float("momentum", 0.9, "Momentum.", lower_bound=0.0, upper_bound=1.0)
flags.DEFINE_integer("seed", 1, "Seed of the weights, of the order of the rows and of dropout.", lower_bound=0, upper_bound=2**31 - 1)
# Run.
flags.DEFINE_string("checkpoint_dir", "./train/checkpoints/", "Folder of the run; a run that is there is resumed.")
flags.DEFINE_string("log_dir", "./train/log/", "Folder of the TensorBoard summaries.", allow_override=True)
flags.DEFINE_integer("log_interval", 100, "Steps between two summaries.", lower_bound=1)
flags.DEFINE_integer("val_interval", 2000, "Steps between two validations, each with a checkpoint.", lower_bound=1)
flags.DEFINE_integer("val_batch_size", 64, "Rows scored at a time in validation; does not change the result.", lower_bound=1)
flags.DEFINE_string("val_sim_thres", "0.1", "Score from which a label counts as correct in validation.")
flags.DEFINE_integer("max_to_keep", 3, "Latest checkpoints kept, beside the best.", lower_bound=1)
flags.DEFINE_bool("deterministic", True, "Repeat a run bit for bit, which an exact resume needs; false may be faster on a GPU.")

flags.DEFINE_enum(
    "strategy", "default", ["default", "mirrored", "multi_worker"],
    "default: one device. mirrored: every GPU of this machine. multi_worker: the machines that TF_CONFIG names; checkpoint_dir must "
    "be a folder that all of them see.",
)
flags.DEFINE_integer("logical_cpus", 1, "Splits the CPU into so many devices, to try --strategy=mirrored without GPUs.", lower_bound=1)

STEPS_PER_CALL = 10  # steps in one call of the compiled function: what a signal waits for
# Flags that may change when a run is resumed; all others make it what it is.
FREE_FLAGS = {
    "data_dir", "checkpoint_dir", "log_dir", "n_step", "log_interval", "val_interval", "val_batch_size", "max_to_keep",
    "deterministic", "heldout_class_list", "skip_empty_classes", "strategy", "logical_cpus",
}
SHAPE_FLAGS = ("img_dim", "num_ref", "embed_norm")
METRICS = (
    "loss/total", "loss/supervised", "loss/unsupervised", "loss/reconstruction", "loss/contrast", "loss/weight_penalty", "accuracy",
)


def learning_rates(first, last, *, learning_rate, lr_decay, lr_update):
    """Rates of steps first .. last - 1, float32 [last - first]: learning_rate * lr_decay^floor(completed steps / lr_update)."""
    return np.float32([learning_rate * lr_decay ** (step // lr_update) for step in range(first, last)])


def make_train_steps(net, velocity, references, *, opt, strategy):
    """Compiles the function that trains a chunk of steps.

    Args:
        net: model.CleanNet. velocity: list of tf.Variable like its trainable variables. references: float32 [C, R, D], raw.
        opt: a dict of the flags dropout_rate, query_dropout_rate, neg_weight, weight_decay, momentum, seed, class_contrast,
            contrast_temperature, contrast_smoothing, contrast_classes.

    Returns:
        train_steps(features [K, B, D], class_ids [K, B], labels [K, B], verified [B], rates [K], first_step) -> the means of
        METRICS of each step, float32 [K, 7]; the last is the share of right decisions on verified rows, at the loss's margin.
    """
    import tensorflow as tf

    import model

    replicas = strategy.num_replicas_in_sync
    weights = [w.value for w in net.trainable_variables]
    usable = np.flatnonzero(arrays.classes_with_references(references)).astype(np.int32)
    v_s_all = model.normalize_features(references, net.embed_norm)  # [C, R, D]

    def classes_to_encode(class_ids, global_class_ids, step):
        """The classes that a replica encodes, each once, [C]; and the place among them of each row's class, [B]."""
        wanted = class_ids
        if opt["class_contrast"]:
            others = tf.constant(usable)
            if len(usable) > opt["contrast_classes"]:
                key = tf.stack([tf.constant(opt["seed"], tf.int32), step])
                others = tf.gather(usable, tf.random.stateless_uniform([opt["contrast_classes"]], key, 0, len(usable), tf.int32))
            wanted = tf.concat([class_ids, global_class_ids, others], axis=0)
        classes, place = tf.unique(wanted)
        return classes, place[: tf.shape(class_ids)[0]]

    def replica_step(features, class_ids, labels, verified, step):
        """The part of a step that one replica does: gradients and metrics of its rows, to be summed over replicas."""
        batch, global_class_ids = tf.cast(tf.shape(features)[0], tf.float32), class_ids
        mine = tf.distribute.get_replica_context().replica_id_in_sync_group

        def share(x):
            """Every n-th row, so that each replica has its share of verified and of unverified ones."""
            return tf.reshape(x, [-1, replicas, *x.shape[1:]])[:, mine]

        seen = 1.0
        if opt["query_dropout_rate"]:
            rate, num_rows = opt["query_dropout_rate"], tf.shape(features)[0]
            seen = share(model.query_dropout_mask(num_rows, net.img_dim, seed=opt["seed"], step=step, rate=rate))  # [B, D]
        features, class_ids, labels, verified = map(share, (features, class_ids, labels, verified))
        with tf.GradientTape() as tape:
            classes, place = classes_to_encode(class_ids, global_class_ids, step)  # [C], [B]
            mask = None
            if opt["dropout_rate"]:
                mask = model.dropout_masks(classes, seed=opt["seed"], step=step, rate=opt["dropout_rate"], num_ref=net.num_ref)
            phi_s = model.unit_length(net.ref_set_encoder(tf.gather(v_s_all, classes), mask))  # [C, E]
            v_q = model.normalize_features(features, net.embed_norm)  # [B, D]
            phi_q, v_qr = net.query_encoder(v_q * seen)  # [B, E], [B, D]
            phi_q = model.unit_length(phi_q)  # [B, E]
            s = tf.reduce_sum(phi_q * tf.gather(phi_s, place), axis=-1)  # [B]
            supervised = verified * model.cosine_loss(s, labels, opt["neg_weight"])  # [B]
            unsupervised = model.GAMMA * (1 - verified) * model.unsupervised_loss(s, opt["neg_weight"])  # [B]
            reconstruction = model.BETA * model.reconstruction_loss(v_q, v_qr)  # [B]
            contrast = tf.zeros_like(s)  # [B]
            if opt["class_contrast"]:
                sure = verified * labels + (1 - verified) * tf.nn.relu(s)  # [B]
                cosines = tf.matmul(phi_q, phi_s, transpose_b=True)  # [B, C]
                contrast = opt["class_contrast"] * model.contrast_loss(
                    cosines, place, sure, opt["contrast_temperature"], opt["contrast_smoothing"]
                )
            terms = [tf.reduce_sum(term) / batch for term in (supervised, unsupervised, reconstruction, contrast)]
            terms.append(opt["weight_decay"] * model.weight_penalty(net.weight_matrices) / replicas)
            loss = tf.add_n(terms)
        right = verified * tf.cast((s >= model.MARGIN) == (labels == 1), tf.float32)  # [B]
        accuracy = tf.reduce_sum(right) / (tf.reduce_sum(verified) * replicas)
        return tape.gradient(loss, weights), tf.stack([loss, *terms, accuracy])

    def apply_momentum(w, v, gradient, rate):
        """v = momentum * v + gradient; w -= rate * v. The rate is not part of v: SPEC.md section 8."""
        tf.raw_ops.ResourceApplyMomentum(var=w.handle, accum=v.handle, lr=rate, grad=gradient, momentum=opt["momentum"])

    @tf.function(reduce_retracing=True)
    def train_steps(features, class_ids, labels, verified, rates, first_step):
        results = tf.TensorArray(tf.float32, tf.shape(rates)[0], element_shape=[len(METRICS)])
        for k in tf.range(tf.shape(rates)[0]):
            gradients, metric_values = strategy.run(
                replica_step, (features[k], class_ids[k], labels[k], verified, first_step + k)
            )
            results = results.write(k, strategy.reduce("SUM", metric_values, axis=None))
            for w, v, gradient in zip(weights, velocity, gradients):
                gradient = strategy.reduce("SUM", gradient, axis=None)
                strategy.extended.update(w, apply_momentum, (v, gradient, rates[k]))
        return results.stack()  # [K, 7]

    return train_steps


def call_bounds(step, n_step, *intervals):
    """Yields (first, last) of the calls from `step` on: STEPS_PER_CALL at most, and ending at every multiple of an interval."""
    while step < n_step:
        last = min([n_step, step + STEPS_PER_CALL] + [(step // interval + 1) * interval for interval in intervals])
        yield step, last
        step = last


def check_finite(values, first, opt):
    """Stops the run if a loss is not finite. values: float32 [K, 7], the metrics of the steps from `first` on."""
    bad = ~np.isfinite(values).all(axis=1)
    if not bad.any():
        return
    step = first + int(np.argmax(bad))
    term = next((name for name, value in zip(METRICS[1:], values[np.argmax(bad), 1:]) if not np.isfinite(value)), METRICS[0])
    cause = "features are very large: use --embed_norm=log or l2_norm" if opt.embed_norm == "no_norm" else "the rate is too high"
    raise UserError(
        f"step {step} (of the steps {first} to {first + len(values) - 1}): {term} is not finite; the likely cause is that {cause}, "
        f"so try a --learning_rate below {opt.learning_rate:g} with a new --checkpoint_dir; the last checkpoint is intact"
    )


def stop_on_signals():
    """Collects SIGINT and SIGTERM in the list that is returned. A second SIGINT ends the process at once."""
    received = []

    def note(number, _):
        received.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return received


def is_better(entry, best, criterion):
    """Whether a validation beats the best one so far; the first of equals stays."""
    return best is None or entry_score(entry, criterion) > best["score"]


def entry_score(entry, criterion):
    """What the best checkpoint is chosen by, the higher the better. criterion: (`fixed` or `chosen`, name of a measure)."""
    value = entry[criterion[0]][criterion[1]]
    return -value if criterion[1].endswith("error_rate") else value


def describe(entry, is_best):
    """One line about a validation."""

    def errors_of(measures):
        groups = {"kept": measures.get("kept_average_error_rate"), "held-out": measures.get("heldout_average_error_rate")}
        groups = ", ".join(f"{group} classes {100 * error:.2f} %" for group, error in groups.items() if error is not None)
        return f"{100 * measures['average_error_rate']:.2f} %{f' ({groups})' if groups else ''}"

    return (
        f"step {entry['step']}: validation at {entry['threshold']:g}: accuracy {entry['fixed']['accuracy']:.4f}, average error "
        f"{errors_of(entry['fixed'])}; at the best threshold ({entry['chosen_threshold']:.3f}): {errors_of(entry['chosen'])}"
        f"{' (best so far)' if is_best else ''}"
    )


def train(net, velocity, state, *, opt, criterion, batches, train_steps, embed_classes, validate, log, stop):
    """Trains from state["step"] to opt.n_step. Returns the state at the end, or at the signal that ended it.

    Args:
        state: dict of step, history (a list of validations) and best. batches: data_loader.Batches.
        embed_classes: function -> the class embeddings to keep with a checkpoint, or None. validate: function step -> entry of the
            history, which follows it. log: function (split, step, {name: scalar}).
        stop: list that a signal number is put into to end the training after the running call.
    """
    saved = state["step"]
    bounds = list(call_bounds(saved, opt.n_step, opt.log_interval, opt.val_interval))
    values, since = [], time.monotonic()
    with tqdm(total=opt.n_step, initial=saved, desc="training", unit="step", disable=None if devices.is_chief(opt) else True) as bar:
        for (first, last), chunk in zip(bounds, batches.chunks(bounds)):
            rates = learning_rates(
                first, last, learning_rate=opt.learning_rate, lr_decay=opt.lr_decay, lr_update=opt.lr_update
            )
            values.append(train_steps(*chunk, rates, np.int32(first)).numpy())
            check_finite(values[-1], first, opt)
            bar.update(last - first)
            state = {**state, "step": last}
            at_end = last == opt.n_step
            if last % opt.log_interval == 0 or at_end:
                scalars = dict(zip(METRICS, np.concatenate(values).mean(axis=0)))
                rows = sum(map(len, values)) * chunk.features.shape[1]
                log("train", last, {**scalars, "learning_rate": rates[-1], "examples_per_second": rows / (time.monotonic() - since)})
                bar.set_postfix(loss=f"{scalars['loss/total']:.3f}")
                values, since = [], time.monotonic()
            if last % opt.val_interval == 0 or at_end:
                class_embeddings = embed_classes()
                entry = validate(last)
                best = is_better(entry, state["best"], criterion)
                if best:
                    state["best"] = {
                        "step": last, "score": entry_score(entry, criterion), "criterion": " ".join(criterion),
                        "threshold": entry["chosen_threshold"],
                    }
                state["history"] = [*state["history"], entry]
                tqdm.write(describe(entry, best), file=sys.stdout)
                log("val", last, {**entry["fixed"], **{f"chosen/{name}": value for name, value in entry["chosen"].items()}})
                saved = save_state(state, net, velocity, opt, class_embeddings)
                since = time.monotonic()
            if stop and not at_end:
                if saved != last:
                    save_state(state, net, velocity, opt, embed_classes())
                break
    return state


def save_state(state, net, velocity, opt, class_embeddings):
    """Saves a checkpoint and brings the run folder up to it. Returns its step."""
    kept = {part: state[part] for part in ("history", "best")}
    if devices.is_chief(opt):
        run_folder.save(opt.checkpoint_dir, state["step"], net, velocity, kept, class_embeddings)
        run_folder.publish(opt.checkpoint_dir, state, opt.max_to_keep)
    else:  # every worker saves, since reading a variable may need all of them; only the chief's is kept
        with tempfile.TemporaryDirectory() as folder:
            run_folder.save(folder, state["step"], net, velocity, kept)
    return state["step"]


def criterion_of(opt, heldout):
    """What chooses the best checkpoint: right decisions at a fixed threshold, or the error at the chosen one."""
    kept = "kept_" if heldout else ""
    if metrics.parse_threshold(opt.val_sim_thres) is None:
        return "chosen", f"{kept}average_error_rate"
    return "fixed", f"{kept}accuracy"


def describe_run(opt, names, heldout, references, data):
    """What run.json keeps: the shape and settings that must not change, and the rest for the record."""
    values = {flag.name: flag.value for flag in opt.get_key_flags_for_module(sys.argv[0])}
    settings = {name: value for name, value in values.items() if name not in FREE_FLAGS and name not in SHAPE_FLAGS}
    settings["heldout_classes"] = [names[c] for c in heldout]
    settings |= {os.path.basename(rows.path): f"{rows.num_rows} rows, checksum {rows.checksum:08x}" for rows in data if rows}
    settings["ref.npy"] = f"checksum {zlib.crc32(references.data):08x}"
    num_class, num_ref, img_dim = references.shape
    import tensorflow as tf

    return {
        "shape": {"num_class": num_class, "num_ref": num_ref, "img_dim": img_dim, "embed_norm": opt.embed_norm},
        "settings": settings,
        "flags": values,
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__, "numpy": np.__version__},
    }


def main():
    opt = flags.FLAGS
    if opt.embed_norm == "l2norm":
        opt.embed_norm = "l2_norm"
    threshold = metrics.parse_threshold(opt.val_sim_thres)
    for flag in opt.get_key_flags_for_module(sys.argv[0]):
        if isinstance(flag.value, float) and not np.isfinite(flag.value):
            raise UserError(f"--{flag.name}={flag.value}: expected a finite number")
    if not opt["embed_norm"].present and os.path.isdir(opt.checkpoint_dir) and run_folder.steps(opt.checkpoint_dir):
        opt.embed_norm = run_folder.load_run(opt.checkpoint_dir)["shape"]["embed_norm"]  # a run that is taken up has its own
    names, train_rows, val, unverified, references = data_loader.load(opt)
    heldout = class_list.heldout_ids(opt.heldout_class_list, names)
    by_rows = run_folder.embeds_by_rows({"class_embedding": opt.class_embedding, "heldout_classes": heldout})
    if by_rows and unverified is None:
        raise UserError(
            f"--class_embedding={opt.class_embedding} takes means over all.npy, which --batch_size_unsup=0 leaves out; give one of them up"
        )
    usable = data_loader.usable_classes(names, unverified, references, opt.skip_empty_classes, opt.data_dir)
    rows = data_loader.rows_to_train_on(train_rows, usable, heldout)
    unserved = np.flatnonzero(usable & (np.bincount(train_rows.class_ids[rows], minlength=len(names)) == 0))
    if len(unserved) and not heldout:
        warn(
            f"{train_rows.path}: {len(unserved)} classes have no verified row ({names[unserved[0]]}{', …' if len(unserved) > 1 else ''}); "
            "name them in a --heldout_class_list and give --class_embedding=auto, which serves them better"
        )
    if not (usable[val.class_ids] & ~np.isin(val.class_ids, heldout)).any():
        raise UserError(f"{val.path}: no row is of a class that is kept, so no checkpoint could be chosen; verify rows of kept classes")
    if len(names) < 2 and (opt.score != "cosine" or opt.class_contrast):
        raise UserError("--score=margin or probability and --class_contrast compare classes, and there is one only; leave them out")

    tf = command.import_tensorflow()  # late: what is wrong with the flags or the data is told at once
    import model
    from util.lib.scorer import Scorer
    from util.lib.tensorboard_log import NoSummaries, Summaries

    if opt.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = devices.make_strategy(opt, tf)
    with strategy.scope():
        net = model.CleanNet(references.shape[1], references.shape[2], opt.embed_norm, opt.seed)
        velocity = [tf.Variable(tf.zeros_like(w.value), trainable=False) for w in net.trainable_variables]
    chief = devices.is_chief(opt)
    if not chief:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - one worker reports
    run = describe_run(opt, names, heldout, references, (train_rows, val, unverified))
    if opt.strategy == "multi_worker":
        devices.check_same_run(strategy, run, tf)
    if chief:
        run_folder.start(opt.checkpoint_dir, run, names, references)
    atomic.make_folder(opt.checkpoint_dir)
    state = run_folder.restore_latest(opt.checkpoint_dir, net, velocity) or {"step": 0, "history": [], "best": None}
    if state["step"] >= opt.n_step and not state["best"]:
        raise UserError(
            f"{opt.checkpoint_dir}: is at step {state['step']} already, and was never validated; give an --n_step above that, "
            f"now {opt.n_step}"
        )
    print(
        f"{net.count_params()} weights; {len(rows)} verified rows, {unverified.num_rows if unverified else 0} unverified, "
        f"{len(names)} classes ({len(heldout)} held out); from step {state['step']} to {opt.n_step}"
    )
    if state["step"] and chief:
        run_folder.describe(opt.checkpoint_dir, run)
        run_folder.publish(opt.checkpoint_dir, state, opt.max_to_keep)

    scorer = Scorer(
        net, references, opt.val_batch_size, compare_classes=opt.score != "cosine", temperature=opt.contrast_temperature, strategy=strategy
    )
    summaries = Summaries(opt.log_dir, run["flags"]) if chief else NoSummaries()

    def embed_classes():
        if by_rows:
            scorer.embed_by_rows(unverified)
            return scorer.class_embeddings.numpy()
        scorer.refresh()
        return None

    def validate(step):
        scores = scorer.score(val.features, val.class_ids)
        summaries.score_histograms(step, opt.score, scores.by(opt.score), val.labels)
        summaries.scalars("val", step, {"loss/supervised": metrics.mean_cosine_loss(scores.cosine, val.labels, opt.neg_weight)})
        fixed = metrics.FIXED_THRESHOLD if threshold is None else threshold
        return {"step": step, **metrics.evaluate(scores.by(opt.score), val.labels, val.class_ids, fixed, heldout)}

    batches = data_loader.Batches(
        train_rows, unverified, batch_size_sup=opt.batch_size_sup, batch_size_unsup=opt.batch_size_unsup, seed=opt.seed,
        train_rows=rows, use_class=usable,
    )
    train_steps = make_train_steps(net, velocity, references, opt=opt.flag_values_dict(), strategy=strategy)
    stop = stop_on_signals()
    if by_rows and state["step"] >= opt.n_step:  # no validation will
        embed_classes()
    try:
        state = train(
            net, velocity, state, opt=opt, criterion=criterion_of(opt, heldout), batches=batches, train_steps=train_steps,
            embed_classes=embed_classes, validate=validate, log=summaries.scalars, stop=stop,
        )
    except tf.errors.OpError as error:
        if opt.strategy != "multi_worker":
            raise
        raise UserError(
            f"another worker stopped or cannot be reached ({type(error).__name__}); start the same command again on every worker: "
            "they go on from the last checkpoint"
        ) from None
    if stop and state["step"] < opt.n_step:
        print(f"stopped at step {state['step']}, saved; the same command goes on from there")
        sys.exit(command.SIGINT_EXIT if stop[0] == signal.SIGINT else command.SIGTERM_EXIT)
    summaries.embeddings(
        names, scorer.class_embeddings.numpy(), val, scorer.embed(val.features), scorer.score(val.features, val.class_ids).by(opt.score)
    )
    best = state["best"]
    print(
        f"{opt.checkpoint_dir}: the best checkpoint is of step {best['step']} ({best['criterion']} {abs(best['score']):.4f}, "
        f"best threshold {best['threshold']:.4f})"
    )


if __name__ == "__main__":
    command.run(main)
