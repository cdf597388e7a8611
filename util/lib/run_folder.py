"""The folder of a training run (--checkpoint_dir): its settings, its checkpoints, and which of them is best.

    run.json            flags, shapes and data of the run         validation.jsonl    one line per validation
    classes.txt         the class list                            best.json           step and score of the best checkpoint
    ref.npy             the references                            step-00002000/      weights, momentum, state.json,
                                                                                      val_scores.npy, perhaps
                                                                                      class_embeddings.npy

A checkpoint is a folder that gets its name when it is complete. It holds the validations up to its step, so that a run that is
resumed from it forgets what came later.
"""
import json
import os
import platform
import re
import shutil
import tempfile

import numpy as np

from util.lib import arrays, atomic, checksums, class_list, json_file, score_table
from util.lib.errors import UserError, reason, warn
from util.lib.locks import Lock

SHAPE_FLAGS = ("img_dim", "num_ref", "embed_norm")  # properties of the data, kept apart from the settings
DATA_FILES = (  # of data_dir, which a training or scoring reads
    "classes.txt", *(f"{split}{end}" for split in ("train", "val", "all", "ref") for end in (".npy", "_keys.txt", "_checksums.json")),
)
REMEDY = "restore the file or train again"
NOTHING_VALIDATED = "latest step"  # criterion of the best checkpoint of a training without val.npy; its score is the step


def is_size(value):
    """Whether a value can be the length of an axis."""
    return json_file.is_count(value) and value > 0


RUN = {
    "shape": {
        "num_class": is_size, "num_ref": is_size, "img_dim": is_size,
        "embed_norm": json_file.one_of(*arrays.EMBED_NORMS),
        "embed_scale": json_file.Optional(lambda value: json_file.is_number(value) and value > 0),
    },
    "settings": {
        "score": json_file.one_of(*score_table.SCORES),
        "contrast_temperature": lambda value: json_file.is_number(value) and value >= 1e-3,
        "class_embedding": json_file.Optional(json_file.one_of("references", "rows", "auto")),
        "heldout_classes": json_file.Optional([json_file.is_text]), "val_sim_thres": json_file.Optional(json_file.is_text),
        "ref.npy": json_file.Optional(json_file.is_text), "val.npy": json_file.Optional(json_file.is_text),
    },
    "classes.txt": json_file.Optional(json_file.is_text),
}
BEST = {
    "step": json_file.is_count, "score": json_file.is_number, "criterion": json_file.is_text, "threshold": json_file.is_number_or_null,
}
STATE = {
    "step": json_file.is_count, "best": json_file.Optional(BEST),
    "class_embeddings": json_file.Optional(json_file.is_text), "val_scores": json_file.Optional(json_file.is_text),
    "history": [{
        "step": json_file.is_count, "chosen_threshold": json_file.Optional(json_file.is_number),
        "estimated_threshold": json_file.Optional(json_file.is_number),
    }],
}
STEP_FOLDER = re.compile(r"step-([0-9]{8,18})")


def load_run(folder):
    """Reads run.json, a dict of `shape`, `settings` and others. Raises UserError where the folder holds no run."""
    path = os.path.join(folder, "run.json")
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder, expected the --checkpoint_dir of a training; train first, or give its folder")
    if not os.path.exists(path):
        raise UserError(f"{folder}: has no run.json, so no training was started here; give the --checkpoint_dir of a training")
    run = json_file.load(path, "a run's description, as train.py writes it", RUN, REMEDY)
    for of_part, name, needed in (
        ("settings", "heldout_classes", run["settings"].get("class_embedding") == "auto"),
        ("shape", "embed_scale", run["shape"]["embed_norm"] == "scaled_log"),
    ):
        if needed and run[of_part].get(name) is None:
            raise UserError(f"{path}: {of_part} has no {name}, expected a run's description, as train.py writes it; {REMEDY}")
    return run


def run_json(flag_values, free_flags, data):
    """What run.json holds: shape and settings, which must not change during a run, and flags and versions for the record.

    Args:
        flag_values: {name: value}. free_flags: names of those that may change. data: data_loader.TrainingData.
    """
    import tensorflow as tf

    settings = {name: value for name, value in flag_values.items() if name not in free_flags and name not in SHAPE_FLAGS}
    settings["heldout_classes"] = [data.class_names[c] for c in data.heldout_ids]
    for array in filter(None, (data.train, data.val, data.unverified)):
        settings[os.path.basename(array.path)] = array.identity()
    settings["ref.npy"] = checksums.of(data.references)
    shape = dict(zip(("num_class", "num_ref", "img_dim"), data.references.shape)) | {"embed_norm": data.embed_norm}
    return {
        "shape": shape | ({"embed_scale": data.embed_scale} if data.embed_scale else {}),
        "settings": settings,
        "classes.txt": checksums.of_class_list(data.class_names),
        "flags": flag_values,
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__, "numpy": np.__version__},
    }


def check_unaltered(folder, run, class_names, references):
    """Raises UserError where the classes.txt or ref.npy of a run are not those that it was trained with. run: of load_run."""
    kept = {
        "classes.txt": (run.get("classes.txt"), checksums.of_class_list(class_names)),
        "ref.npy": (run["settings"].get("ref.npy"), checksums.of(references)),
    }
    for name, (expected, found) in kept.items():
        if expected is not None and found != expected:
            raise UserError(
                f"{os.path.join(folder, name)}: is not the file that the run was trained with ({found}, run.json has "
                f"{expected}); restore it, or train again"
            )


def start_or_check(folder, run, class_names, references):
    """Prepares a folder for a new run, or checks that it holds an earlier part of the same run.

    Args:
        run: dict of `shape` and `settings`, which must not change during a run, and of others, which may.
        class_names: list of str. references: float32 [C, R, D].
    """
    atomic.make_folder(folder)
    atomic.remove_stale(os.path.abspath(folder), "step-*")
    if steps(folder):
        settings, shape = (load_run(folder)[part] for part in ("settings", "shape"))
        for old, new in ((shape, run["shape"]), (settings, run["settings"])):
            for name in sorted({*old, *new}):
                if old.get(name) != new.get(name):
                    raise UserError(
                        f"{folder}: the run there has {name}={old.get(name)}, this command {name}={new.get(name)}; "
                        "go on with the same, or give another --checkpoint_dir"
                    )
        class_list.require_beside(folder, class_names, "the class list of data_dir")
    else:
        atomic.write_text(os.path.join(folder, "classes.txt"), "\n".join(class_names) + "\n")
        atomic.write_npy(os.path.join(folder, "ref.npy"), references)
        write_run_json(folder, run)


def write_run_json(folder, run):
    """Writes run.json; again when a run is resumed, since n_step and other free flags may have changed."""
    atomic.write_json(os.path.join(folder, "run.json"), run)


def step_folder(folder, step):
    """The folder of a step's checkpoint."""
    return os.path.join(folder, f"step-{step:08d}")


def steps(folder):
    """The steps that have a checkpoint, ascending."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot read the checkpoint folder: {reason(error)}") from None
    return sorted(int(match[1]) for match in map(STEP_FOLDER.fullmatch, names) if match)


def _tracked(net, velocity=None):
    """The tf.train.Checkpoint of a model and, for training, its momentum."""
    import tensorflow as tf

    names = [w.path for w in net.trainable_variables]
    parts = {"weights": dict(zip(names, (w.value for w in net.trainable_variables)))}
    if velocity is not None:
        parts["velocity"] = dict(zip(names, velocity))
    return tf.train.Checkpoint(**parts)


def save(folder, step, net, velocity, state, kept):
    """Writes a checkpoint, whole or not at all.

    Args:
        net: model.CleanNet. velocity: list of tf.Variable. state: dict, kept with the checkpoint as JSON.
        kept: {name: float32 array or None}, kept beside it, its checksum in the state; None is left out.
    """
    import tensorflow as tf

    path = step_folder(folder, step)
    temporary = atomic.temporary_name(path)
    try:
        os.makedirs(temporary)
        _tracked(net, velocity).write(os.path.join(temporary, "ckpt"))
        for name, array in kept.items():
            if array is not None:
                state = {**state, name: checksums.of(array)}
                atomic.write_npy(os.path.join(temporary, f"{name}.npy"), array)
        atomic.write_json(os.path.join(temporary, "state.json"), {"step": step, **state})
        for name in os.listdir(temporary):
            with open(os.path.join(temporary, name), "r+b") as file:  # Windows flushes what may be written
                os.fsync(file.fileno())
        if os.path.exists(path):  # of an earlier attempt, unreadable since
            shutil.rmtree(path)
        os.replace(temporary, path)
    except (OSError, ValueError, tf.errors.OpError, UserError) as error:
        text = " ".join(str(reason(error) if isinstance(error, OSError) else getattr(error, "message", error)).split())[:200]
        raise UserError(
            f"{path}: cannot save this checkpoint: {text}; the checkpoints before it are intact: "
            "make room, then start the same command again"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(folder, state, max_to_keep):
    """Brings validation.jsonl and best.json up to a checkpoint's state, and removes all but the latest checkpoints and the best."""
    history = "".join(json.dumps(entry) + "\n" for entry in state["history"])
    atomic.write_text(os.path.join(folder, "validation.jsonl"), history)
    best = state["best"]
    if best:
        atomic.write_json(os.path.join(folder, "best.json"), best)
    for step in [step for step in steps(folder) if step <= state["step"]][:-max_to_keep]:  # later ones could not be read
        if not best or step != best["step"]:
            doomed = atomic.temporary_name(step_folder(folder, step))
            os.replace(step_folder(folder, step), doomed)  # a kill half-way must not leave half a checkpoint
            shutil.rmtree(doomed)


def load_state(folder, step):
    """Reads a checkpoint's state.json: a dict of step, history (a list of validations) and best (None before the first)."""
    path = os.path.join(step_folder(folder, step), "state.json")
    state = json_file.load(path, f"the state of step {step}", STATE, "take another checkpoint")
    if state["step"] != step:
        raise UserError(f"{path}: is not the state of step {step}, expected what train.py writes; take another checkpoint")
    return {"best": None, **state}


def restore(folder, step, net, velocity=None):
    """Reads a checkpoint into a model and, for training, its momentum. Returns its state."""
    path = os.path.join(step_folder(folder, step), "ckpt")
    state = load_state(folder, step)
    tracked = _tracked(net, velocity)
    try:
        tracked.read(path).assert_existing_objects_matched().expect_partial()
    except Exception as error:  # TensorFlow raises many kinds on a damaged file, IndexError among them
        text = " ".join(str(getattr(error, "message", None) or error).split())[:160]
        raise UserError(
            f"{path}: cannot be read as the weights of this model ({text}); it is damaged or of another shape: "
            "take another checkpoint, or train again"
        ) from None
    if not all(np.isfinite(w).all() for w in net.trainable_variables):
        raise UserError(f"{path}: holds weights that are not finite; take another checkpoint, or train again")
    return state


class RunWriter:
    """Writes the folder of a training.

    Args:
        folder: path. net: model.CleanNet. velocity: list of tf.Variable. chief: whether this process is the one that writes.
        max_to_keep: latest checkpoints kept, beside the best.
    """

    def __init__(self, folder, net, velocity, *, chief, max_to_keep):
        self._folder, self._net, self._velocity = folder, net, velocity
        self._chief, self._max_to_keep = chief, max_to_keep

    def start_or_resume(self, run, data, n_step):
        """Starts a run, or restores the model and its momentum from the same run so far.

        Args:
            run: of run_json(). data: data_loader.TrainingData. n_step: where the training is to end.

        Returns:
            The state: dict of step, history (a list of validations), best, and val_scores as validation.Validator has them.
        """
        atomic.make_folder(self._folder)
        if self._chief:
            self._lock = Lock(os.path.join(self._folder, "run"))  # until the process ends
            start_or_check(self._folder, run, data.class_names, data.references)
        state = restore_latest(self._folder, self._net, self._velocity) or {"step": 0, "history": [], "best": None, "val_scores": None}
        if state["step"] >= n_step and not state["best"]:
            raise UserError(
                f"{self._folder}: is at step {state['step']} already, and was never validated; give an --n_step above that, "
                f"now {n_step}"
            )
        if state["step"] and self._chief:
            write_run_json(self._folder, run)
            publish(self._folder, state, self._max_to_keep)
        return state

    def save(self, state, class_embeddings):
        """Saves a checkpoint and brings the folder up to it. class_embeddings: float32 [C, E] of a run that embeds by rows, or None."""
        parts = {part: state[part] for part in ("history", "best")}
        if self._chief:
            kept = {"class_embeddings": class_embeddings, "val_scores": state["val_scores"]}
            save(self._folder, state["step"], self._net, self._velocity, parts, kept)
            publish(self._folder, state, self._max_to_keep)
        else:  # every worker saves, since reading a variable may need all of them; only the chief's is kept
            with tempfile.TemporaryDirectory() as nowhere:
                save(nowhere, state["step"], self._net, self._velocity, parts, {})


def embeds_by_rows(settings):
    """Whether a run embeds classes by their rows. settings: dict of class_embedding (a flag of train.py) and heldout_classes."""
    asked = settings.get("class_embedding", "references")
    return asked == "rows" or (asked == "auto" and len(settings["heldout_classes"]) > 0)


def load_class_embeddings(folder, step, settings, shape):
    """The class embeddings kept with a checkpoint, float32 [C, E]; None for a run that embeds classes by their references.

    Args:
        settings: dict, of run.json. shape: (C, E), which the embeddings must have.
    """
    if not embeds_by_rows(settings):
        return None
    array = _load_kept(folder, load_state(folder, step), "class_embeddings", shape, f"means of rows {shape}")
    if not np.isfinite(array).all():
        raise UserError(
            f"{step_folder(folder, step)}/class_embeddings.npy: found numbers that are not finite, expected means of rows {shape}; "
            "take another checkpoint, or train in a new --checkpoint_dir"
        )
    return array


def load_val_scores(folder, state, num_rows=None):
    """The scores of the validation rows that were kept with a checkpoint.

    Args:
        state: of load_state. num_rows: of val.npy, or None: any.

    Returns:
        float32 [validations, rows], NaN for rows without a score; None for a run without val.npy, or by an earlier version.
    """
    if state.get("val_scores") is None:
        return None
    shape = (len(state["history"]), num_rows)
    return _load_kept(folder, state, "val_scores", shape, f"scores {shape[0]} x {num_rows or 'rows'} of the validations")


def _load_kept(folder, state, name, shape, what):
    """An array that was kept with a checkpoint, float32 of a shape, in which None stands for any length. what: it is, for messages."""
    path = os.path.join(step_folder(folder, state["step"]), f"{name}.npy")
    array = arrays.open_array(path, what, "train.py and a new --checkpoint_dir")
    if any(expected not in (None, found) for expected, found in zip(shape, array.shape)):
        raise UserError(f"{path}: found {array.shape}, expected {what}; take another checkpoint, or train in a new --checkpoint_dir")
    array = np.array(array)
    expected = state.get(name)
    if expected is not None and checksums.of(array) != expected:
        raise UserError(f"{path}: is damaged ({checksums.of(array)}, state.json has {expected}); take another checkpoint, or train again")
    return array


def restore_latest(folder, net, velocity=None):
    """Restores the latest readable checkpoint. Returns its state, or None where the folder has no checkpoint."""
    error = None
    for step in reversed(steps(folder)):
        try:
            state = restore(folder, step, net, velocity)
            return {**state, "val_scores": load_val_scores(folder, state)}
        except UserError as unreadable:
            warn(f"{unreadable}; trying the one before")
            error = unreadable
    if error:
        raise UserError(f"{folder}: none of its checkpoints can be read; move it away to start anew ({error})")
    return None


def pick_step(folder, which):
    """The step of the checkpoint that `which` names: `best`, `latest` or a number."""
    known = steps(folder)
    if not known:
        raise UserError(f"{folder}: has no checkpoint yet; train until the first validation, or give another folder")
    if which == "latest":
        return known[-1]
    if which == "best":
        path = os.path.join(folder, "best.json")
        if not os.path.exists(path):
            raise UserError(f"{path}: not found, no validation has finished; use --checkpoint=latest, or train on")
        which = str(json_file.load(path, "the step of the best checkpoint", {"step": json_file.is_count}, REMEDY)["step"])
    if not (which.isascii() and which.isdigit() and len(which) < 19) or int(which) not in known:
        raise UserError(
            f'{folder}: has no checkpoint of step "{which[:40]}", only of {", ".join(map(str, known))}; '
            "give --checkpoint=best, latest or one of these"
        )
    return int(which)


def auto_threshold(folder, state):
    """The threshold of the last validation up to a checkpoint, and whether it is an estimate. state: of load_state."""
    last = next((entry for entry in reversed(state["history"]) if entry["step"] <= state["step"]), {})
    estimated = last.get("chosen_threshold") is None
    threshold = last.get("estimated_threshold" if estimated else "chosen_threshold")
    if threshold is None:
        raise UserError(f"{folder}: no validation chose a threshold yet; give --val_sim_thres a number")
    return threshold, estimated
