"""Trains CleanNet on verified and unverified rows, with validation, checkpoints and exact resume.

    python train.py --data_dir=data --checkpoint_dir=train/checkpoints
    python train.py --flagfile=recommended.flags --data_dir=data --checkpoint_dir=train/recommended

Reads train.npy, val.npy, all.npy, ref.npy and classes.txt from data_dir. The same command, started again, resumes at the last
checkpoint and arrives at the weights of an uninterrupted run.
"""
import os
import signal
import sys
import time

import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # PYTHONSAFEPATH leaves it out
import data_loader
from util.lib import arrays, command, run_folder, score_table
from util.lib.errors import UserError

# Input.
flags.DEFINE_string("data_dir", "./data/", "Folder of train.npy, val.npy, all.npy, ref.npy and classes.txt.")
flags.DEFINE_string(
    "heldout_class_list", None,
    "Lines of class name, tab, 1 (keep) or 0 (hold out). Verified rows of held-out classes are left out of training, and "
    "validation measures these classes apart.",
)
flags.DEFINE_integer("img_dim", 2048, "Numbers per feature, compared with the data's. By default the data's.", lower_bound=1)
flags.DEFINE_integer("num_ref", 32, "References per class, compared with ref.npy. By default as in ref.npy.", lower_bound=1)
flags.DEFINE_bool("skip_empty_classes", False, "Leave classes without rows in all.npy out of training. Otherwise they are an error.")
# Model and loss.
flags.DEFINE_enum(
    "embed_norm", "log", [*arrays.EMBED_NORMS, "l2norm", "auto"],
    "Normalisation of features, by docs/method.md. auto: log if none is negative and their mean is 0.1 to 10, else scaled_log.",
)
flags.DEFINE_float("dropout_rate", 0.0, "Share of the reference encoder's 512 units that a step drops.", lower_bound=0.0, upper_bound=0.99)
flags.DEFINE_float(
    "query_dropout_rate", 0.0, "Share of the numbers of a feature that a step hides from the query encoder.", lower_bound=0.0,
    upper_bound=0.99,
)
flags.DEFINE_float("neg_weight", 5.0, "Weight of rows verified as mislabeled in the loss.", lower_bound=0.0)
flags.DEFINE_float(
    "class_contrast", 0.0,
    "Weight of the class contrast in the loss, which pushes each row from the classes that it was not given. 0: the paper's loss.",
    lower_bound=0.0,
)
flags.DEFINE_float("contrast_temperature", 0.1, "The class contrast, and the probability, divide cosines by this.", lower_bound=1e-3)
flags.DEFINE_float(
    "contrast_smoothing", 0.0, "Share of the class contrast's target that is spread evenly over all classes.", lower_bound=0.0,
    upper_bound=0.99,
)
flags.DEFINE_integer("contrast_classes", 256, "Classes that the contrast compares per step; drawn if there are more.", lower_bound=1)
flags.DEFINE_enum(
    "class_embedding", "references", ["references", "rows", "auto"],
    "What represents a class in validation and inference. references: phi_s, as in the paper. rows: the mean of phi_q over its rows "
    "in all.npy (1,000 at most), weighted by their probabilities. auto: rows with a --heldout_class_list, else references.",
)
flags.DEFINE_enum(
    "score", "cosine", score_table.SCORES, f"What validation and inference score by: {score_table.SCORES_IN_WORDS}.",
)
flags.DEFINE_float("weight_decay", 1e-4, "Factor of the sum of |W|^2 / 2 over the weight matrices in the loss.", lower_bound=0.0)
# Optimisation.
flags.DEFINE_integer("batch_size_sup", 32, "Verified rows per step; 0 trains without any, or train.npy or val.npy.", lower_bound=0)
flags.DEFINE_integer("batch_size_unsup", 32, "Unverified rows per step; 0 trains without all.npy.", lower_bound=0)
flags.DEFINE_integer("n_step", 60000, "Steps of the whole training.", lower_bound=1)
flags.DEFINE_float("learning_rate", 0.01, "Learning rate of the first lr_update steps.", lower_bound=0.0)
flags.DEFINE_integer("lr_update", 30000, "The rate is multiplied by lr_decay every so many steps.", lower_bound=1)
flags.DEFINE_float("lr_decay", 0.1, "Factor of the rate every lr_update steps.", lower_bound=0.0)
flags.DEFINE_float("momentum", 0.9, "Share of the velocity that a step keeps.", lower_bound=0.0, upper_bound=1.0)
flags.DEFINE_integer("seed", 1, "Seed of the weights, of the order of the rows and of dropout.", lower_bound=0, upper_bound=2**31 - 1)
# Run.
flags.DEFINE_string("checkpoint_dir", "./train/checkpoints/", "Folder of the run. A run that it holds already is resumed.")
flags.DEFINE_string("log_dir", "./train/log/", "Folder of the TensorBoard summaries.", allow_override=True)
flags.DEFINE_integer("log_interval", 100, "Steps between two summaries.", lower_bound=1)
flags.DEFINE_integer("val_interval", 2000, "Steps between two validations, each with a checkpoint.", lower_bound=1)
flags.DEFINE_integer("val_batch_size", 64, "Rows per batch in validation; does not change the result.", lower_bound=1)
flags.DEFINE_string(
    "val_sim_thres", "0.1",
    "Score from which a label counts as correct in validation. auto: the best one on the validation rows, which then also "
    "chooses the best checkpoint, by the average error rate.",
)
flags.DEFINE_integer("max_to_keep", 3, "How many of the latest checkpoints are kept, beside the best.", lower_bound=1)
flags.DEFINE_bool("deterministic", True, "Make runs repeatable bit for bit, which an exact resume needs. false may be faster on a GPU.")
flags.DEFINE_enum(
    "strategy", "default", ["default", "mirrored", "multi_worker"],
    "default: one device. mirrored: every GPU of this machine. multi_worker: the machines in TF_CONFIG, which must share the "
    "folder checkpoint_dir.",
)
flags.DEFINE_integer("logical_cpus", 1, "Devices to split the CPU into, to try --strategy=mirrored without GPUs.", lower_bound=1)

# Flags that may change when a run is resumed; all others make it what it is.
FREE_FLAGS = {
    "data_dir", "checkpoint_dir", "log_dir", "n_step", "log_interval", "val_interval", "val_batch_size", "max_to_keep",
    "deterministic", "heldout_class_list", "skip_empty_classes", "strategy", "logical_cpus",
}


def choose_embed_norm(asked, checkpoint_dir):
    """The normalisation of a training: what was asked for, or for None and auto that of the run to resume. None then is log."""
    if asked in (None, "auto") and os.path.isdir(checkpoint_dir) and run_folder.steps(checkpoint_dir):
        return run_folder.load_run(checkpoint_dir)["shape"]["embed_norm"]
    return {None: "log", "l2norm": "l2_norm"}.get(asked, asked)


def check_batches(*, batch_size_sup, batch_size_unsup, class_contrast):
    """Raises UserError where the batches hold nothing to learn from."""
    if not batch_size_sup and not (batch_size_unsup and class_contrast):
        raise UserError(
            "--batch_size_sup=0 leaves unverified rows and the class contrast to learn from: give --batch_size_unsup and "
            "--class_contrast=1, or --flagfile=recommended.flags"
        )


def check_data_for(data, *, class_embedding, score, class_contrast):
    """Raises UserError where the data lack what flags need. Returns whether classes are to be embedded by their rows."""
    by_rows = run_folder.embeds_by_rows({"class_embedding": class_embedding, "heldout_classes": data.heldout_ids})
    if by_rows and data.unverified is None:
        raise UserError(
            f"--class_embedding={class_embedding} takes means over all.npy, which --batch_size_unsup=0 leaves out; "
            "give one of them up"
        )
    if data.usable.sum() < 2 and (score != "cosine" or class_contrast):
        raise UserError(
            "--score=margin or probability and --class_contrast compare classes, and there is one only; leave them out"
        )
    return by_rows


def train(state, batches, run_steps, validator, *, n_step, log_interval, val_interval, rates, save, log, stop, show):
    """Trains from state["step"] to n_step; validates and saves at every val_interval and at the end.

    Args:
        state: of run_folder.RunWriter.start_or_resume. batches: data_loader.Batches.
        run_steps: train_step.TrainStep.
        validator: validation.Validator. rates: dict, arguments of train_step.learning_rates.
        save: function (state, class embeddings to keep). log: tensorboard_log.TensorBoardLog.
        stop: list; a signal number in it ends the training after the running call. show: whether to show a progress bar.

    Returns:
        The state at the end, or where a signal ended it.
    """
    from util.lib.train_step import METRICS, call_bounds, check_finite, learning_rates  # late: they bring TensorFlow

    saved, values, since = state["step"], [], time.monotonic()
    with tqdm(total=n_step, initial=saved, desc="training", unit="step", disable=None if show else True) as bar:
        for first, last, chunk in batches.chunks(call_bounds(saved, n_step, log_interval, val_interval)):
            schedule = learning_rates(first, last, **rates)
            values.append(run_steps(*chunk, rates=schedule, first_step=first))
            check_finite(values[-1], first, embed_norm=run_steps.embed_norm, learning_rate=rates["learning_rate"])
            bar.update(last - first)
            state, at_end = {**state, "step": last}, last == n_step
            if last % log_interval == 0 or at_end:
                scalars = dict(zip(METRICS, np.concatenate(values).mean(axis=0)))
                scalars |= {} if chunk.verified.any() else {"accuracy": None}  # it is about verified rows
                rows = sum(map(len, values)) * chunk.features.shape[1]
                speed = rows / (time.monotonic() - since)
                log.scalars("train", last, {**scalars, "learning_rate": schedule[-1], "examples_per_second": speed})
                bar.set_postfix(loss=f"{scalars['loss/total']:.3f}")
                values, since = [], time.monotonic()
            if last % val_interval == 0 or at_end:
                class_embeddings = validator.embed_classes()
                state = validator.validate(state)
                save(state, class_embeddings)
                saved, since = last, time.monotonic()
                if at_end:
                    validator.log_embeddings()
            if stop and not at_end:
                if saved != last:
                    save(state, validator.embed_classes())
                break
    return state


def make_model(data, *, strategy, seed):
    """A new model for data_loader.TrainingData, and its velocity, a list of tf.Variable; both under a strategy."""
    import tensorflow as tf

    import model

    with strategy.scope():
        net = model.CleanNet(*data.references.shape[1:], data.embed_norm, seed, data.embed_scale)
        return net, [tf.Variable(tf.zeros_like(w.value), trainable=False) for w in net.trainable_variables]


def report_end(state, stop, n_step, checkpoint_dir):
    """Prints where the results are. Ends the process if a signal, the first in `stop`, ended the training early."""
    if stop and state["step"] < n_step:
        print(f"stopped at step {state['step']}, saved; the same command resumes there")
        sys.exit(command.SIGINT_EXIT if stop[0] == signal.SIGINT else command.SIGTERM_EXIT)
    best = state["best"]
    if best["criterion"] == run_folder.NOTHING_VALIDATED:
        print(
            f"{checkpoint_dir}: the checkpoint is of step {best['step']}; without val.npy nothing was measured, and its threshold, "
            f"{best['threshold']:.4f}, is an estimate from the scores alone"
        )
        return
    threshold = "" if best["threshold"] is None else f", best threshold {best['threshold']:.4f}"
    print(f"{checkpoint_dir}: the best checkpoint is of step {best['step']} ({best['criterion']} {abs(best['score']):.4f}{threshold})")


def main():
    opt = flags.FLAGS
    embed_norm = choose_embed_norm(command.given(opt, "embed_norm"), opt.checkpoint_dir)
    threshold = command.parse_threshold(opt.val_sim_thres)
    batch_sizes = {"batch_size_sup": opt.batch_size_sup, "batch_size_unsup": opt.batch_size_unsup}
    check_batches(**batch_sizes, class_contrast=opt.class_contrast)
    data = data_loader.load(
        opt.data_dir, embed_norm=embed_norm, heldout_class_list=opt.heldout_class_list, img_dim=command.given(opt, "img_dim"),
        num_ref=command.given(opt, "num_ref"), with_verified=opt.batch_size_sup > 0, with_unverified=opt.batch_size_unsup > 0,
        choose_threshold=threshold is None, skip_empty_classes=opt.skip_empty_classes,
    )
    flag_values = command.own_flags(opt) | {"embed_norm": data.embed_norm}
    by_rows = check_data_for(data, class_embedding=opt.class_embedding, score=opt.score, class_contrast=opt.class_contrast)
    command.import_tensorflow()  # late: what is wrong with the flags or the data is reported before
    import model
    from util.lib import devices, tensorboard_log, train_step, validation

    strategy = devices.make_strategy(opt.strategy, logical_cpus=opt.logical_cpus, deterministic=opt.deterministic, batch_sizes=batch_sizes)
    net, velocity = make_model(data, strategy=strategy, seed=opt.seed)
    run = run_folder.run_json(flag_values, FREE_FLAGS, data)
    chief = devices.join_cluster(opt.strategy, strategy, [run["shape"], run["settings"]])
    writer = run_folder.RunWriter(opt.checkpoint_dir, net, velocity, chief=chief, max_to_keep=opt.max_to_keep)
    state = writer.start_or_resume(run, data, opt.n_step)
    print(f"{net.count_params()} weights; {data.in_words()}; from step {state['step']} to {opt.n_step}")
    data.advise_on_few_rows(batch_size_sup=opt.batch_size_sup, class_contrast=opt.class_contrast)
    log = tensorboard_log.open_log(opt.log_dir, flag_values, chief)
    validator = validation.Validator(
        net, data, strategy=strategy, log=log, score=opt.score, temperature=opt.contrast_temperature, threshold=threshold,
        by_rows=by_rows, neg_weight=opt.neg_weight, batch_size=opt.val_batch_size,
    )
    run_steps = train_step.TrainStep(
        net, velocity, data.references, strategy=strategy, momentum=opt.momentum, seed=opt.seed, dropout_rate=opt.dropout_rate,
        query_dropout_rate=opt.query_dropout_rate,
        loss=model.LossSettings(**{name: flag_values[name] for name in model.LossSettings._fields}),
    )
    stop = command.stop_on_signals()
    with devices.lost_worker_is_a_user_error(opt.strategy):
        state = train(
            state, data_loader.Batches(data, seed=opt.seed, **batch_sizes), run_steps, validator, n_step=opt.n_step,
            log_interval=opt.log_interval, val_interval=opt.val_interval, save=writer.save, log=log, stop=stop, show=chief,
            rates={"learning_rate": opt.learning_rate, "lr_decay": opt.lr_decay, "lr_update": opt.lr_update},
        )
    report_end(state, stop, opt.n_step, opt.checkpoint_dir)


if __name__ == "__main__":
    command.run(main)
