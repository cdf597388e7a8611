"""Lets classifier and detector take turns: each makes the other better (paper, section 3.4).

    python util/alternate.py --image_dir=images --data_dir=data --checkpoint_dir=runs/first --keras_model=network.keras \
        --rounds=2 --train_flags="--flagfile=recommended.flags" --output_dir=runs/alternation

Round 0 scores all.npy with the training run that there is, and trains a classifier on the images with these scores as weights.
Each further round extracts features of all images with that classifier, finds references, trains a detector on them, scores the
rows and trains the classifier on. It ends early when the error on the validation rows is not lower than in the round before.
The steps are commands of the suite, and the same command resumes. Writes rounds.json and rounds.png. docs/classifier.md has more.
"""
import os
import sys
from typing import NamedTuple

from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import (
    arrays,
    atomic,
    checksums,
    class_list,
    command,
    figures,
    image_rows,
    images,
    json_file,
    locks,
    metrics,
    paths,
    run_folder,
    scoring,
    subcommand,
)
from util.lib.errors import UserError

# Input.
flags.DEFINE_string("image_dir", None, "Folder of the images. The key of each row is a path below it.", required=True)
flags.DEFINE_string("data_dir", None, "Folder of train.npy, val.npy, all.npy, ref.npy and classes.txt, of these images.", required=True)
flags.DEFINE_string("checkpoint_dir", None, "Folder of a training run on data_dir, the first detector.", required=True)
flags.DEFINE_string("test_data", None, "Images of trusted classes, to test each classifier on: a list of key, tab, class.")
# Model.
flags.DEFINE_string("keras_model", None, "Network that round 0 fine-tunes, a .keras file; by default that of classifier_flags.")
flags.DEFINE_integer("resize", 256, "Pixels of the shorter side of an image after resizing.", lower_bound=1)
flags.DEFINE_integer("crop", 224, "Pixels of each side of what is cut out of an image.", lower_bound=1)
flags.DEFINE_string("classifier_flags", "", "Further flags of train_classifier.py, as one string. The weights are soft by default.")
flags.DEFINE_string("reference_flags", "", "Further flags of find_reference.py, as one string.")
flags.DEFINE_string("train_flags", "", "Further flags of train.py, as one string.")
# Run.
flags.DEFINE_integer("rounds", 2, "Most rounds after round 0.", lower_bound=0, upper_bound=100)
flags.DEFINE_string("output_dir", None, "Folder for rounds.json, rounds.png, and a folder per round.", required=True)

SPLITS = ("train", "val", "all")
FURTHER = ("classifier_flags", "reference_flags", "train_flags")
REMEDY = "give another --output_dir"
STEPS = {"settings": json_file.Each(lambda _: True), "done": [json_file.is_text]}
MEASURED = {"value": json_file.is_number, "low": json_file.is_number, "high": json_file.is_number}
REPORT = {"all": {"auroc": MEASURED, "chosen": {"average_error_rate": MEASURED}}}
PICTURED = (  # measure in rounds.json, label and colour in the picture
    ("average_error_rate", "average error rate", figures.RED), ("auroc", "AUROC", figures.BLUE),
    ("top_1", "top-1 of the classifier", figures.GREEN),
)


class Given(NamedTuple):
    """What all rounds have in common.

    data_dir, test_data: flags. images: dict of the flags image_dir, resize and crop. lists: folder of write_lists.
    further: {flag: list of str}, flags of the commands.
    """

    data_dir: str
    test_data: str | None
    images: dict
    lists: str
    further: dict

    @property
    def class_list(self):
        """The path of the class list."""
        return os.path.join(self.data_dir, "classes.txt")


class Steps:
    """Runs the commands of an alternation, each once: a file lists the finished ones.

    Args:
        path: of that file. settings: a dict for JSON that must be the same when the alternation is resumed.
    """

    def __init__(self, path, settings):
        self._path, self._kept = path, {"settings": settings, "done": []}
        if os.path.exists(path):
            self._kept = json_file.load(path, "the finished steps of an alternation", STEPS, REMEDY)
            for name in sorted({*self._kept["settings"], *settings}):
                old, new = self._kept["settings"].get(name), settings.get(name)
                if old != new:
                    raise UserError(f"{path}: was begun with {name}={old}, not {new}; go on with the same, or {REMEDY}")

    def run(self, folder, name, script, further=(), **arguments):
        """Runs a command unless that is done.

        Args:
            folder: of the round. name: of the step. script: path. further: list of str, flags. arguments: flags; None leaves one out.
        """
        name = f"{os.path.basename(folder)}, {name}"
        if name in self._kept["done"]:
            return
        own = [f"--{flag}={value}" for flag, value in arguments.items() if value is not None]
        output, warnings = subcommand.run(name, script, [*further, *own])  # of two flags of one name the last counts
        for line in warnings:
            tqdm.write(line, file=sys.stderr)
        tqdm.write(f"{name}: {output[-1]}", file=sys.stdout)
        self._kept["done"].append(name)
        atomic.write_json(self._path, self._kept)


def train_detector(steps, given, folder, classifier):
    """Extracts features with a classifier, the path of a .keras file, and trains a detector on them: data/ and run/ in a folder."""
    data = f"{folder}/data"
    for split in SPLITS:
        steps.run(
            folder, f"features of {split}", "util/extract_features.py", **given.images, image_list=f"{given.lists}/{split}.tsv",
            list_columns="key,class" if split == "all" else "key,class,label", keras_model=classifier, layer="feature",
            class_list=given.class_list, split=split, output_dir=data,
        )
    steps.run(
        folder, "references", "util/find_reference.py", given.further["reference_flags"], class_list=given.class_list,
        input_npy=f"{data}/all.npy", output_dir=data,
    )
    steps.run(
        folder, "detector", "train.py", given.further["train_flags"], data_dir=data, checkpoint_dir=f"{folder}/run",
        log_dir=f"{folder}/log",
    )


def measure_detector(steps, folder, data_dir, run):
    """Measures a run on the validation rows of its data, with a report in a folder. Returns {measure: {"value", "low", "high"}}."""
    steps.run(
        folder, "validation", "inference.py", mode="val", data_dir=data_dir, checkpoint_dir=run, val_sim_thres="auto",
        output_file=f"{folder}/val.txt", report_dir=f"{folder}/report",
    )
    path, remedy = f"{folder}/report/report.json", f"{REMEDY}, with verified rows of both kinds in val.npy"
    found = json_file.load(path, "a report of both kinds of rows", REPORT, remedy)["all"]
    return {"average_error_rate": found["chosen"]["average_error_rate"], "auroc": found["auroc"]}


def train_classifier(steps, given, folder, data_dir, run, network):
    """Scores all rows with a run, and trains a classifier with the scores as weights: scores.tsv and classifier.keras in a folder.

    Args:
        data_dir: folder of the rows that the run can score. network: dict of the flags keras_model and perhaps layer.

    Returns:
        Its accuracy on the test images, {"value", "low", "high"}, or None without such images.
    """
    scores, test = f"{folder}/scores.tsv", f"{folder}/test" if given.test_data else None
    steps.run(
        folder, "scores", "inference.py", image_feature_list=f"{data_dir}/all.npy", checkpoint_dir=run, output_file=scores,
        output_format="tsv", val_sim_thres="auto",
    )
    steps.run(
        folder, "classifier", "util/train_classifier.py", ["--weights=soft", *given.further["classifier_flags"]], **given.images,
        **network, image_list=f"{given.lists}/all.tsv", class_list=given.class_list, score_file=scores,
        verified=f"{given.data_dir}/train.npy", test_data=given.test_data, report_dir=test, output_file=f"{folder}/classifier.keras",
    )
    return test and json_file.load(f"{test}/test.json", "the test of a classifier", {"top_1": MEASURED}, REMEDY)["top_1"]


def play(steps, given, output_dir, *, run, keras_model, num_rounds):
    """Plays the rounds. Yields the results so far, a list as in rounds.json, after each.

    Args:
        run: folder of the first detector. keras_model: the first network, or None. num_rounds: int, at most, after round 0.
    """
    data_dir, network, results = given.data_dir, {"keras_model": keras_model}, []
    for number in tqdm(range(num_rounds + 1), desc="rounds", unit="round", disable=None):
        folder = os.path.join(output_dir, f"round{number}")
        if number:
            data_dir, run = f"{folder}/data", f"{folder}/run"
            train_detector(steps, given, folder, network["keras_model"])
        result = {"round": number, **measure_detector(steps, folder, data_dir, run), "top_1": None}
        errors = [found["average_error_rate"]["value"] for found in (*results, result)]
        if number and errors[-1] >= errors[-2]:
            yield [*results, result]
            return
        result["top_1"] = train_classifier(steps, given, folder, data_dir, run, network)
        network = {"keras_model": f"{folder}/classifier.keras", "layer": "feature"}
        results.append(result)
        yield results


def line_about(result):
    """One line about a round. result: of rounds.json."""
    shown = [
        f"{label} {100 * result[measure]['value']:.2f} % ({100 * result[measure]['low']:.2f} to {100 * result[measure]['high']:.2f})"
        for measure, label, _ in PICTURED if result[measure]
    ]
    return f"round {result['round']}: {', '.join(shown)}"


def draw(results, path):
    """Draws each measure against the rounds, with its intervals. results: of rounds.json."""
    shown = [part for part in PICTURED if results[0][part[0]]]
    figure, axes = figures.figure(4 * len(shown), 3.2, len(shown))
    for axis, (measure, label, colour) in zip(axes, shown):
        x = [result["round"] for result in results if result[measure]]
        value, low, high = ([100 * result[measure][part] for result in results if result[measure]] for part in MEASURED)
        axis.plot(x, value, "o-", color=colour)
        axis.vlines(x, low, high, color=colour, alpha=0.4)
        axis.set(xlabel="round", ylabel=f"{label}, %", xticks=range(len(results)))
    figures.save_png(figure, path)


def open_data(data_dir):
    """Opens the arrays of a folder. Returns (class names, {split: arrays.FeatureArray})."""
    names = class_list.load(os.path.join(data_dir, "classes.txt"))
    return names, {
        split: arrays.FeatureArray(os.path.join(data_dir, f"{split}.npy"), class_names=names, verified=split != "all") for split in SPLITS
    }


def write_lists(folder, class_names, data):
    """Writes the rows of each array as a list of images: key, class and perhaps label. class_names, data: of open_data."""
    for split, array in data.items():
        columns = [array.sample_keys(), [class_names[c] for c in array.class_ids]]
        columns += [] if array.labels is None else [map(str, array.labels)]
        atomic.write_text(os.path.join(folder, f"{split}.tsv"), "".join("\t".join(row) + "\n" for row in zip(*columns)))


def settings_of(flag_values, data):
    """What an alternation must have in common with an interrupted one to resume it, a dict for JSON.

    Args:
        flag_values: {name: value}. data: {split: arrays.FeatureArray}.
    """
    folder = flag_values["checkpoint_dir"]
    step = scoring.open_run(folder, threshold=metrics.FIXED_THRESHOLD).step
    files = [os.path.join(run_folder.step_folder(folder, step), "ckpt.index")]  # it has a checksum of each tensor
    files += filter(None, (flag_values["keras_model"], flag_values["test_data"]))
    return {
        **{name: value for name, value in flag_values.items() if name not in ("rounds", "output_dir")},
        **{f"{split}.npy": array.identity() for split, array in data.items()},
        **{f"contents of {path}": checksums.of_file(path) for path in files},
    }


def main():
    opt = flags.FLAGS
    flag_values = command.own_flags(opt)
    further = {name: subcommand.split_flags(name, flag_values[name]) for name in FURTHER}
    image_rows.check_flags(
        image_dir=opt.image_dir, image_list=None, list_columns=["key", "class"], path_column="key", resize=opt.resize, crop=opt.crop,
        keras_model=opt.keras_model, layer=None,
    )
    for path, what in ((opt.keras_model, "a .keras file"), (opt.test_data, "a list of images")):
        if path:
            paths.open_input(path, what).close()
    class_names, data = open_data(opt.data_dir)
    settings = settings_of(flag_values, data)
    outputs = {name: os.path.join(opt.output_dir, name) for name in ("steps.json", "rounds.json", "rounds.png")}
    lists = os.path.join(opt.output_dir, "lists")
    listed = {f"lists/{split}.tsv": os.path.join(lists, f"{split}.tsv") for split in SPLITS}
    paths.check_distinct(outputs | listed, {f"--{name}": flag_values[name] for name in ("test_data", "keras_model")})
    images.check_outputs(outputs, opt.image_dir)
    atomic.check_writable(outputs.values())
    locks.Lock(os.path.join(opt.output_dir, "alternation"))  # of all that it writes, until the end of the command
    steps = Steps(outputs["steps.json"], settings)
    write_lists(lists, class_names, data)
    images_of = {name: flag_values[name] for name in ("image_dir", "resize", "crop")}
    given = Given(opt.data_dir, opt.test_data, images_of, lists, further)
    for results in play(steps, given, opt.output_dir, run=opt.checkpoint_dir, keras_model=opt.keras_model, num_rounds=opt.rounds):
        atomic.write_json(outputs["rounds.json"], results)
        tqdm.write(line_about(results[-1]), file=sys.stdout)
    draw(results, outputs["rounds.png"])
    best = min(results, key=lambda result: result["average_error_rate"]["value"])["round"]
    print(f"{opt.output_dir}: rounds.json, rounds.png; round {best} is the best: round{best}/scores.tsv, round{best}/classifier.keras")


if __name__ == "__main__":
    command.run(main)
