"""Computes a feature for every image with a convolutional network: the first step if you have images but no features.

    python util/extract_features.py --image_dir=images --output_file=data/all.tsv --write_class_list=data/classes.txt

By default image_dir holds one folder of images per class. With --image_list the rows of that list are the images, and
the output keeps its columns. The feature is added as text, or the rows are written as arrays with --output_dir.

Every image is resized by its shorter side, and its middle is cut out. JPEG, PNG, WebP and TIFF are read, in colour or
grey, with 8 or 16 bits, and turned as EXIF says; transparency is dropped. Images that cannot be read are listed in
<output>.rejected.tsv. To continue an interrupted run, run the same command again. docs/images.md shows more.
"""
import contextlib
import glob
import os
import sys
from functools import partial

import numpy as np
from absl import flags
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import array_writer, arrays, atomic, command, image_rows, images, networks, paths, threads, tsv
from util.lib.errors import UserError, warn
from util.lib.progress_folder import ProgressFolder

# Input.
flags.DEFINE_string("image_dir", None, "Folder of the images; nothing outside it is read.", required=True)
flags.DEFINE_string("image_list", None, "Tab-separated list of images; by default each folder in image_dir is a class.")
flags.DEFINE_list(
    "list_columns", ["key", "class"],
    "Columns of image_list, separated by commas, in their order: key and class, and url and label if it has them.",
)
flags.DEFINE_enum("path_column", "key", ["key", "url"], "Column of image_list that holds the path below image_dir.")
flags.DEFINE_enum(
    "on_bad_row", "skip", ["error", "skip"],
    "Images that cannot be read. error: stop at the first. skip: leave them out, list them in <output>.rejected.tsv.",
)
# Output.
flags.DEFINE_string("output_file", None, "Rows as text: .tsv or .tsv.gz.")
flags.DEFINE_string("output_dir", None, "Folder for arrays, instead of output_file; needs class_list and split.")
flags.DEFINE_string("class_list", None, "Class list of the arrays.")
flags.DEFINE_enum("split", None, ["train", "val", "all"], "Array to write; train and val need verification labels.")
flags.DEFINE_string("write_class_list", None, "Class list to write: the classes of the images, sorted.")
# Model.
flags.DEFINE_string(
    "model", "ResNet50", "Name of a model in keras.applications; the feature is its last map, averaged over the image."
)
flags.DEFINE_string("weights", "imagenet", "imagenet (Keras downloads it), none (random) or the path of a file.")
flags.DEFINE_string("keras_model", None, "Your own network, a .keras file, instead of model and weights.")
flags.DEFINE_string("layer", None, "Layer of keras_model whose output is the feature; by default the model's output.")
flags.DEFINE_string(
    "keras_hub_preset", None,
    "Instead of model: an image backbone of Keras Hub with its own preprocessing. A folder on disk, or a name, which is downloaded.",
)
flags.DEFINE_integer("resize", 256, "Pixels of the shorter side after resizing.", lower_bound=1)
flags.DEFINE_integer("crop", 224, "Pixels of each side of the middle that is cut out.", lower_bound=1)
flags.DEFINE_integer("batch_size", 32, "Images per batch; does not change the features.", lower_bound=1)

BLOCK_ROWS = 256  # rows in a block that goes into an array
READ_AHEAD = 2  # batches of images that threads read while the network works on one


class Progress:
    """The features computed so far, kept in a folder until the output is written, so that a run can be resumed.

    Args:
        folder: <output>.progress. identity: a dict for JSON; a folder that holds another one is started anew.
        dim: numbers per feature.
    """

    def __init__(self, folder, identity, dim):
        self._folder = ProgressFolder(folder, identity, ("features",))
        self.dim, self._record_size, self._path = dim, 4 * (dim + 1), self._folder.file("features")
        self._file = open(self._path, "ab")  # noqa: SIM115

    def count(self, multiple):
        """The number of images done, a multiple of `multiple`; removes the rest that a killed run left."""
        done = os.path.getsize(self._path) // self._record_size // multiple * multiple
        self._file.truncate(done * self._record_size)
        return done

    def add(self, usable, features):
        """Keeps the features of the next images. usable: bool [B]. features: float32 [B, D]."""
        self._file.write(np.concatenate([usable[:, None], features], axis=1, dtype=np.float32).data)
        self._file.flush()

    def records(self):
        """float32 [N, 1 + D], memory-mapped: 1 if the image can be used, else 0, then its feature."""
        return np.memmap(self._path, np.float32, "r").reshape(-1, self.dim + 1)

    def remove(self):
        """Deletes the folder."""
        self._file.close()
        self._folder.remove()


def extract(listed, read, network, preprocess, progress, *, size, batch_size, on_bad_row, source):
    """Runs the network over the images that are not done yet and adds their features to the progress.

    Args:
        listed: list of image_rows.Image. read: of image_rows.image_reader. network, preprocess: of networks.load_network.
        progress: Progress. size: (height, width) of the pixels that are read. batch_size, on_bad_row: the flags.
        source: where the list comes from, for messages.

    Returns:
        {line: why} of the images that cannot be used.
    """
    import tensorflow as tf

    channels, reasons = network.inputs[0].shape[-1], {}
    run = tf.function(lambda pixels: network(preprocess(pixels), training=False))
    done = progress.count(batch_size)
    with tqdm(total=len(listed), initial=done, desc="extracting features", unit="image", disable=None) as bar:
        paths = (image.path for image in listed[done:])
        results = threads.in_order(read, paths, max(2, os.cpu_count() or 2), ahead=READ_AHEAD * batch_size)
        for start in range(done, len(listed), batch_size):
            part = listed[start : start + batch_size]
            batch, usable = np.zeros((batch_size, *size, channels), np.float32), np.zeros(len(part), bool)
            for i, image in enumerate(part):
                pixels, why = next(results)
                if pixels is not None:
                    usable[i] = True
                    batch[i] = pixels if channels == 3 else pixels.mean(axis=2, keepdims=True)
                elif on_bad_row == "error":
                    hint = "--on_bad_row=skip leaves such images out"
                    raise UserError(f"{source}:{image.line}: {image.path}: {why} ({hint})")
                else:
                    reasons[image.line] = why
            # The batch is always full, so that a feature has the same bits whatever else is in the batch.
            features = run(tf.constant(batch)).numpy()[: len(part)]
            if not np.isfinite(features[usable]).all():
                raise UserError(
                    f"{part[0].path}: the model gives features that are not finite from this image on; "
                    "use another model"
                )
            progress.add(usable, features.reshape(len(part), progress.dim) * usable[:, None])
            bar.update(len(part))
    return reasons


def write_text(path, listed, records, names):
    """Writes a row per usable image: its columns `names`, then its feature. records: of Progress."""
    with atomic.whole_file(path) as file:
        for image, record in zip(tqdm(listed, desc="writing", unit="row", disable=None, delay=1), records):
            if record[0]:
                columns = [image.columns[name] for name in names]
                feature = ",".join([f"{x:.7g}" for x in record[1:].tolist()])
                file.write("\t".join([*columns, feature]).encode() + b"\n")


def blocks_of(listed, records, class_names):
    """Yields the usable images as blocks of rows, tsv.Block, without those labelled -1. records: of Progress."""
    class_ids = {name: i for i, name in enumerate(class_names)}
    for start in range(0, len(listed), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        good = [
            (image, record) for image, record in zip(listed[part], records[part])
            if record[0] and image.columns.get("label") != "-1"
        ]
        yield tsv.Block(
            keys=[image.columns["key"] for image, _ in good],
            class_ids=np.array([class_ids[image.columns["class"]] for image, _ in good], np.int32),
            labels=np.array([int(image.columns.get("label", 0)) for image, _ in good], np.int32),
            lines=np.array([image.line for image, _ in good], np.int64),
            features=np.array([record[1:] for _, record in good], np.float32).reshape(len(good), records.shape[1] - 1),
            rejected=[], num_lines=len(listed[part]), num_dropped=0,
        )


def write_arrays(path, listed, records, class_names, split):
    """Writes the usable images as the array of a split, with its keys and its class list. records: of Progress."""
    blocks = blocks_of(listed, records, class_names)
    if not array_writer.write(blocks, path, class_names, grouped=split == "all", verified=split != "all", source=path):
        raise UserError(f"{path}: no rows are left, all usable images are labelled -1; verify some")


def write_rejected(path, listed, usable, reasons, read):
    """Lists the images that cannot be used: line, reason, path.

    Args:
        usable: [N], 1 or 0 per image. read: of image_rows.image_reader.
        reasons: {line: why}; images of an interrupted run, which it lacks, are read again to find out.
    """
    bad = [image for image, good in zip(listed, usable) if not good]
    with atomic.whole_file(path) as file:
        for image in bad:
            why = reasons.get(image.line) or read(image.path)[1]
            file.write(f"{image.line}\t{why}\t{image.path}\n".encode())
    warn(f"{len(bad)} images left out; {path} has each with its reason")


def check_flags(
    *, image_dir, image_list, list_columns, path_column, output_file, output_dir, class_path, split, keras_model, layer,
    resize, crop, keras_hub_preset, own_size,
):
    """Checks flags against each other; the arguments are their values. Returns the path of the output.

    own_size: whether --resize or --crop was given.
    """
    if keras_hub_preset and (keras_model or own_size):
        raise UserError("--keras_hub_preset brings its network and its size; leave out --keras_model, --resize and --crop")
    image_rows.check_flags(
        image_dir=image_dir, image_list=image_list, list_columns=list_columns, path_column=path_column, resize=resize, crop=crop,
        keras_model=keras_model, layer=layer,
    )
    if bool(output_file) == bool(output_dir):
        raise UserError("give --output_file for text, or --output_dir with --class_list and --split for arrays")
    if output_dir and not (class_path and split):
        raise UserError("--output_dir needs --class_list and --split, to write arrays")
    if split in ("train", "val") and "label" not in list_columns:
        raise UserError(f"--split={split} needs verification labels: an --image_list with label among --list_columns")
    return output_file or os.path.join(output_dir, f"{split}.npy")


def main():
    opt = flags.FLAGS
    path = check_flags(
        image_dir=opt.image_dir, image_list=opt.image_list, list_columns=opt.list_columns, path_column=opt.path_column,
        output_file=opt.output_file, output_dir=opt.output_dir, class_path=opt.class_list, split=opt.split,
        keras_model=opt.keras_model, layer=opt.layer, resize=opt.resize, crop=opt.crop,
        keras_hub_preset=opt.keras_hub_preset, own_size=opt["resize"].present or opt["crop"].present,
    )
    source = opt.image_list or opt.image_dir
    outputs = arrays.files_of("the output", path) if opt.output_dir else {"the output": path}
    outputs |= {"rejected images": f"{path}.rejected.tsv", "--write_class_list": opt.write_class_list}
    inputs = {"--image_list": opt.image_list, "--class_list": opt.class_list, "--keras_model": opt.keras_model, "--weights": opt.weights}
    paths.check_distinct(outputs, inputs)
    images.check_outputs(outputs, opt.image_dir)
    listed = image_rows.load(opt.image_dir, opt.image_list, opt.list_columns, opt.path_column)
    found = sorted({image.columns["class"] for image in listed})
    class_names = image_rows.load_class_list(opt.class_list, found, source, opt.output_dir) if opt.class_list else None
    command.import_tensorflow()
    if opt.keras_hub_preset:
        network, convert = networks.load_hub_preset(opt.keras_hub_preset)
        preprocess, called, size = lambda pixels: pixels, opt.keras_hub_preset, network.inputs[0].shape[1:3]
    else:
        network, preprocess, called = networks.load_network(
            model=opt.model, weights=opt.weights, keras_model=opt.keras_model, layer=opt.layer, crop=opt.crop
        )
        convert, size = partial(images.middle, resize=opt.resize, crop=opt.crop), (opt.crop, opt.crop)
    dim = network.outputs[0].shape[-1]
    preset_files = sorted(glob.glob(f"{glob.escape(opt.keras_hub_preset)}/*")) if opt.keras_hub_preset else []
    identity = image_rows.run_identity(
        listed, opt.image_dir, [opt.keras_model, opt.weights, *preset_files], model=called, weights=opt.weights, layer=opt.layer,
        resize=opt.resize, crop=opt.crop, batch=opt.batch_size, path_column=opt.path_column, dim=dim,
        on_bad_row=opt.on_bad_row,
    )
    atomic.check_writable(outputs.values())
    progress = Progress(f"{path}.progress", identity, dim)
    read = image_rows.image_reader(opt.image_dir, convert)
    reasons = extract(
        listed, read, network, preprocess, progress, size=size, batch_size=opt.batch_size,
        on_bad_row=opt.on_bad_row, source=source,
    )
    records = progress.records()
    num_good = int(records[:, 0].sum())
    if not num_good:
        first = next(iter(reasons.values()), "unknown")
        raise UserError(f"{opt.image_dir}: none of the {len(listed)} images can be read; the first: {first}")
    if opt.output_file:
        write_text(path, listed, records, [name for name in image_rows.COLUMNS if name in opt.list_columns])
    else:
        write_arrays(path, listed, records, class_names, opt.split)
    if opt.write_class_list:
        atomic.write_text(opt.write_class_list, "".join(f"{name}\n" for name in found))
    if num_good < len(listed):
        write_rejected(f"{path}.rejected.tsv", listed, records[:, 0], reasons, read)
    else:
        with contextlib.suppress(FileNotFoundError):  # of an earlier run
            os.remove(f"{path}.rejected.tsv")
    del records  # Windows does not delete a file that is mapped
    progress.remove()
    left_out = f"; left out: {len(listed) - num_good}" if num_good < len(listed) else ""
    print(f"{path}: {num_good} images, features of {dim} numbers{left_out}")


if __name__ == "__main__":
    command.run(main)
