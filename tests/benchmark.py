"""Speed and memory of every stage against a plain yardstick, in one run on one machine: a table, benchmark.json, scaling.png.

    make bench
    python tests/benchmark.py --output_dir=bench --stages=convert,train

The data are generated: 2,048 non-negative numbers per row, 101 classes. Yardsticks, all held here: (convert, reading) a Python loop of
float(x) over split(",") into lists; (references) cv2.kmeans, and scikit-learn's KMeans beside it; (training) the same loss with the
references of every row encoded separately, fed from Python lists into a compiled step; (scoring) references encoded again for
every row; (classifier) the same training step on images that are in memory. Memory is what the process and its children hold for
themselves (RssAnon + RssShmem), at its peak. Where start-up is subtracted, it is the time that 1,000 rows take. `--stages=classes` runs
the commands with up to 5,000 classes, without a yardstick.
"""
import contextlib
import gzip
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
from absl import flags
from pyarrow import parquet
from tqdm import tqdm

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from util.lib import atomic, command, errors, figures, tsv
from util.lib import rows as rows_of_text

flags.DEFINE_string("output_dir", "bench", "Folder for the data, benchmark.json and scaling.png.")
flags.DEFINE_list(
    "stages", ["convert", "formats", "references", "train", "memory", "inference", "output", "scaling", "classifier"], "Which stages.",
)
flags.DEFINE_integer("repetitions", 3, "How often each stage is measured; the medians count.", lower_bound=1)
flags.DEFINE_integer("rows", 20000, "Rows of the main data set.", lower_bound=2000)
flags.DEFINE_integer("many_rows", 200000, "Rows of the large one, for memory and scaling.", lower_bound=2000)

IMG_DIM, NUM_CLASSES, NUM_REF = 2048, 101, 32
YARDSTICK_ROWS = 3000
ROW_GROUP = 128 << 20  # bytes of text, about 10,000 rows, that become a row group of parquet
MANY_IMAGES, FEW_IMAGES, CROP, IMAGE_BATCH = 4000, 500, 96, 32
START_ROWS = 1000  # of the file whose time is start-up: large enough that the compiled parser is loaded
SCALING_REPETITIONS = 5  # at least; and three times as many of the small sizes, whose times hardly exceed the noise of a start
CLASS_COUNTS, ROWS_PER_CLASS, KIND = (100, 1000, 5000), 40, 10  # of the stage `classes`; KIND: so many classes are alike
CLASS_DIM, CLASS_REF, PICTURED = 256, 8, 20  # numbers per feature there, references per class, and classes with images
PYTHON = sys.executable


def private_bytes(pid):
    """RssAnon + RssShmem of a process and its children."""
    total = 0
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon", "RssShmem")):
                total += int(line.split()[1]) * 1024
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            total += sum(private_bytes(int(child)) for child in (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total


def run(script, *arguments):
    """Runs a script of the suite. Returns (seconds, peak private bytes, seconds after its first line on stdout)."""
    began = time.perf_counter()
    process = subprocess.Popen([PYTHON, "-u", str(ROOT / script), *map(str, arguments)], stdout=subprocess.PIPE)
    peak = 0
    watch = threading.Event()

    def sample():
        nonlocal peak
        while not watch.wait(0.02):
            peak = max(peak, private_bytes(process.pid))

    thread = threading.Thread(target=sample)
    thread.start()
    process.stdout.readline()
    first_line = time.perf_counter()
    process.stdout.read()
    code = process.wait()
    ended = time.perf_counter()
    watch.set()
    thread.join()
    if code:
        raise errors.UserError(f"{script} {' '.join(map(str, arguments))}: exit code {code}")
    return ended - began, peak, ended - first_line


def make_rows(path, num_rows):
    """Writes text rows of 101 clusters, which repeat 1,000 features. Returns the bytes of the file."""
    if path.exists():
        return path.stat().st_size
    rng = np.random.default_rng(0)
    centres = np.abs(rng.normal(size=(NUM_CLASSES, IMG_DIM)))
    texts = []
    for i in range(1000):
        values = np.maximum(0, centres[i % NUM_CLASSES] + rng.normal(size=IMG_DIM) * 0.7 - 0.3)  # zeros, as after a ReLU
        texts.append(",".join(f"{x:.6g}" for x in values))
    partial = path.with_suffix(".part")
    with open(partial, "w") as file:
        for i in tqdm(range(num_rows), desc=f"making {path.name}", disable=None):
            j = int(rng.integers(1000))
            file.write(f"images/{i:07d}.jpg\tclass {j % NUM_CLASSES}\t{texts[j]}\n")
    partial.rename(path)
    return path.stat().st_size


def python_reading(path, num_rows):
    """The yardstick of reading: lists of Python floats. Returns (bytes a second, the array)."""
    began, size, rows = time.perf_counter(), 0, []
    with open(path) as file:
        for _ in range(num_rows):
            line = file.readline()
            size += len(line)
            _, _, feature = line.rstrip("\n").split("\t")
            rows.append([float(x) for x in feature.split(",")])
    array = np.array(rows, np.float32)
    return size / (time.perf_counter() - began), array


def convert(data, source):
    """Returns (seconds, peak private bytes)."""
    return run(
        "util/convert_data.py", "--split=all", f"--class_list={data}/classes.txt", f"--data_path={source}", f"--output_dir={data}/out"
    )[:2]


def bench_convert(data, *, rows, many_rows, repetitions):
    files = {"start": START_ROWS, "main": rows, "many": many_rows}
    sizes = {name: make_rows(data / f"rows_{count}.tsv", count) for name, count in files.items()}
    seconds, memory, yardstick = {name: [] for name in files}, dict.fromkeys(files, 0), []
    for _ in range(repetitions):
        for name, count in files.items():
            took, peak = convert(data, data / f"rows_{count}.tsv")
            seconds[name].append(took)
            memory[name] = max(memory[name], peak)
        yardstick.append(python_reading(data / f"rows_{rows}.tsv", YARDSTICK_ROWS)[0] / 1e6)
    results = []
    for name in ("main", "many"):
        rates = [sizes[name] / took / 1e6 for took in seconds[name]]
        results.append(compare(f"convert, {files[name]} rows, MB/s of text", rates, yardstick, memory[name]))
    rates = [(sizes["many"] - sizes["start"]) / (took - start) / 1e6 for took, start in zip(seconds["many"], seconds["start"])]
    return [*results, compare(f"convert, {many_rows} rows, start-up taken off, MB/s", rates, yardstick)]


def make_formats(data, source):
    """Writes the rows of a text file in the other formats. Returns {what: arguments of convert_data.py that name them}."""
    folder = data / f"formats_{source.stem}"
    kinds = {  # of parquet: the dtype, and arguments of the writer
        "float32": (np.float32, {}), "float32, not compressed": (np.float32, {"compression": "none", "use_dictionary": False}),
        "float16": (np.float16, {}),
    }
    files = {f"parquet, {kind}": folder / f"{i}.parquet" for i, kind in enumerate(kinds)}
    given = {name: [f"--data_path={path}"] for name, path in {"text, gzip": folder / "rows.tsv.gz", **files}.items()}
    given["npy and CSV"] = [f"--features={folder}/features.npy", f"--table={folder}/rows.csv"]
    if folder.exists():
        return given
    partial = folder.with_suffix(".part")
    partial.mkdir(exist_ok=True)
    names = [f"class {c}" for c in range(NUM_CLASSES)]
    with open(source, "rb") as text, gzip.open(partial / "rows.tsv.gz", "wb", compresslevel=1) as packed:
        shutil.copyfileobj(text, packed, 1 << 20)
    with contextlib.ExitStack() as stack:
        table = stack.enter_context(open(partial / "rows.csv", "w"))
        table.write("key,class\n")
        array, writers, count = stack.enter_context(open(partial / "features.npy", "wb")), {}, 0
        array.write(atomic.npy_header((0, IMG_DIM)))
        rows = rows_of_text.open_source(str(source), tsv.Parser(tsv.UNVERIFIED, names), columns={}, num_workers=1, block_size=ROW_GROUP)
        for block in rows_of_text.RowReader(rows):
            classes, ends = [names[c] for c in block.class_ids], np.arange(len(block.keys) + 1, dtype=np.int32) * IMG_DIM
            table.writelines(f"{key},{name}\n" for key, name in zip(block.keys, classes))
            array.write(block.features.data)
            count += len(block.keys)
            for (name, path), (dtype, options) in zip(files.items(), kinds.values()):
                lists = pa.ListArray.from_arrays(ends, block.features.astype(dtype).ravel())
                part = pa.table({"key": block.keys, "class": classes, "feature": lists})
                if name not in writers:
                    writers[name] = stack.enter_context(parquet.ParquetWriter(partial / path.name, part.schema, **options))
                writers[name].write_table(part)
        array.seek(0)
        array.write(atomic.npy_header((count, IMG_DIM)))
    partial.rename(folder)
    return given


def bench_formats(data, *, rows, many_rows, repetitions):
    """Rows per second of converting each format, by the clock and by the processor, against text."""
    source = data / f"rows_{many_rows}.tsv"
    make_rows(source, many_rows)
    given = {"text": [f"--data_path={source}"], **make_formats(data, source)}
    clock, processor, memory = ({name: [] for name in given} for _ in range(3))
    for _ in range(repetitions):
        for name, arguments in given.items():
            before = os.times()
            took, peak, _ = run(
                "util/convert_data.py", "--split=all", f"--class_list={data}/classes.txt", f"--output_dir={data}/out", *arguments
            )
            after = os.times()
            clock[name].append(many_rows / took)
            processor[name].append(many_rows / (sum(after[2:4]) - sum(before[2:4])))  # of children that ended
            memory[name].append(peak)
    results = []
    for name in given:
        results.append(compare(f"convert {name}, rows/s", clock[name], clock["text"], max(memory[name])))
        results.append(compare(f"convert {name}, rows per second of the processor", processor[name], processor["text"]))
    return results


def bench_references(data, *, rows, many_rows, repetitions):
    """The references of one class: util/lib/kmeans.py, and scikit-learn's KMeans, against cv2.kmeans with ten attempts."""
    import cv2
    from sklearn.cluster import KMeans

    from util.lib import kmeans

    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, kmeans.ITERATIONS, kmeans.TOLERANCE)

    def by_opencv(features, seed):
        cv2.setRNGSeed(seed)
        return cv2.kmeans(features, NUM_REF, None, criteria, 10, cv2.KMEANS_PP_CENTERS)[0]

    def by_sklearn(n_init):
        return lambda features, seed: KMeans(NUM_REF, n_init=n_init, max_iter=20, random_state=seed).fit(features).inertia_

    engines = {
        "": lambda features, seed: kmeans.centres_of(features, NUM_REF, seed)[1],
        ", scikit-learn, 1 attempt": by_sklearn(1), ", scikit-learn, 4 attempts": by_sklearn(4),
    }

    def rows_of_class(rng, modes, apart, noise):
        centres = np.abs(rng.normal(size=IMG_DIM)) * (apart < 1) + np.abs(rng.normal(size=(modes, IMG_DIM))) * apart
        return np.maximum(centres[rng.integers(modes, size=YARDSTICK_ROWS)] + rng.normal(size=(YARDSTICK_ROWS, IMG_DIM)) * noise, 0)

    results = []
    for name, shape in (("one cloud", (20, 0.25, 0.7)), ("60 clusters", (60, 1, 0.8))):
        rates, distances = {}, {}
        for seed in range(2 * repetitions):
            features = rows_of_class(np.random.default_rng(seed), *shape).astype(np.float32)
            for engine, distance_of in (engines | {"yardstick": by_opencv}).items():
                began = time.perf_counter()
                distances[engine] = distances.get(engine, 0.0) + distance_of(features, seed)
                rates.setdefault(engine, []).append(len(features) / (time.perf_counter() - began))
        for engine in engines:
            result = compare(f"references, a class of {name}{engine}, rows/s", rates[engine], rates["yardstick"])
            results.append(result | {"distance_ratio": distances[engine] / distances["yardstick"]})
    return results


def training_yardstick(net, references):
    """A compiled step of the same loss: references of every row encoded separately, each with its own dropout."""
    import tensorflow as tf

    import model

    velocity = [tf.Variable(tf.zeros_like(w.value)) for w in net.trainable_variables]
    weights = [w.value for w in net.trainable_variables]

    @tf.function
    def step(features, row_references, labels, verified, number):
        with tf.GradientTape() as tape:
            v_s = model.normalize_features(row_references, "log")  # [B, R, D]
            mask = tf.random.stateless_uniform([64, NUM_REF, 512], tf.stack([1, number])) >= 0.2
            phi_s = model.unit_length(net.ref_set_encoder(v_s, tf.cast(mask, tf.float32) / 0.8))
            _, terms = model.loss_terms(
                net, model.normalize_features(features, "log"), phi_s, tf.range(64), labels=labels, verified=verified,
                settings=model.LossSettings(),
            )
            loss = tf.add_n(list(terms.values()))
        for w, v, gradient in zip(weights, velocity, tape.gradient(loss, weights)):
            v.assign(0.9 * v + gradient)
            w.assign_sub(0.01 * v)
        return loss

    rng = np.random.default_rng(0)
    rows = [rng.random(IMG_DIM).tolist() for _ in range(500)]  # Python lists, as the references of each row are
    references = references.tolist()

    def run_step(number):
        """Returns the seconds that the compiled step took of it."""
        batch = np.array([rows[i] for i in rng.integers(500, size=64)], np.float32)
        row_references = np.array([references[c] for c in rng.integers(len(references), size=64)], np.float32)
        began = time.perf_counter()
        step(batch, row_references, np.ones(64, np.float32), np.repeat(np.float32([1, 0]), 32), np.int32(number)).numpy()
        return time.perf_counter() - began

    return run_step


def bench_train(data, *, rows, many_rows, repetitions):
    import tensorflow as tf

    import data_loader
    import model
    from util.lib import train_step

    results = []
    for num_classes in (NUM_CLASSES, 14):
        rng = np.random.default_rng(2)
        references = np.abs(rng.normal(size=(num_classes, NUM_REF, IMG_DIM))).astype(np.float32)

        class Array:
            num_rows, img_dim = 4000, IMG_DIM
            features = np.abs(rng.normal(size=(4000, IMG_DIM))).astype(np.float32)
            class_ids = np.sort(rng.integers(num_classes, size=4000)).astype(np.int32)
            labels = rng.integers(0, 2, 4000)
            first = np.searchsorted(class_ids, np.arange(num_classes + 1))

        everything = np.ones(num_classes, bool)
        data = data_loader.TrainingData(None, None, Array, None, Array, [], usable=everything, trained_on=np.arange(4000))
        batches = data_loader.Batches(data, batch_size_sup=32, batch_size_unsup=32, seed=1)
        net = model.CleanNet(NUM_REF, IMG_DIM)
        velocity = [tf.Variable(tf.zeros_like(w.value)) for w in net.trainable_variables]
        step = train_step.TrainStep(
            net, velocity, references, strategy=tf.distribute.get_strategy(), loss=model.LossSettings(), dropout_rate=0.2
        )
        yardstick_step = training_yardstick(model.CleanNet(NUM_REF, IMG_DIM), references)

        def ours_run(first, count, step=step, batches=batches):
            for low, high, chunk in batches.chunks(train_step.call_bounds(first, first + count)):
                step(*chunk, rates=np.full(high - low, 0.01, np.float32), first_step=low)

        ours_run(0, 20)
        yardstick_step(0)
        ours, yardstick, step_alone = [], [], []
        for repetition in range(3 * repetitions):
            began = time.perf_counter()
            ours_run(100 * repetition, 60)
            ours.append(60 / (time.perf_counter() - began))
            began = time.perf_counter()
            alone = sum(yardstick_step(number) for number in range(20))
            yardstick.append(20 / (time.perf_counter() - began))
            step_alone.append(20 / alone)
        results.append(compare(f"train, {num_classes} classes, steps/s", ours, yardstick))
        results.append(compare(f"train, {num_classes} classes, against the compiled step alone, steps/s", ours, step_alone))
    return results


def some_references():
    """float32 [C, R, D], the same at each call."""
    return np.abs(np.random.default_rng(3).normal(size=(NUM_CLASSES, NUM_REF, IMG_DIM))).astype(np.float32)


def make_array(path, num_rows, verified=False):
    """A .npy of rows of feature and class id, grouped by class; verified: and a verification label."""
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    width = IMG_DIM + 1 + verified
    rng = np.random.default_rng(4)
    with open(path, "wb") as file:
        file.write(atomic.npy_header((num_rows, width)))
        for start in range(0, num_rows, 1000):
            rows = np.arange(start, min(start + 1000, num_rows))
            part = rng.random((len(rows), width), np.float32)
            part[:, IMG_DIM] = rows * NUM_CLASSES // num_rows
            if verified:
                part[:, -1] = rows % 2
            file.write(part.data)


def bench_memory(data, *, rows, many_rows, repetitions):
    """What the real train.py holds for itself, with few and with many rows in all.npy."""
    results = []
    for count in (rows, many_rows):
        folder = data / f"training_{count}"
        make_array(folder / "all.npy", count)
        for split in ("train", "val"):
            make_array(folder / f"{split}.npy", 2000, verified=True)
        for split, size in (("all", count), ("train", 2000), ("val", 2000)):
            (folder / f"{split}_keys.txt").write_text("".join(f"{i}\n" for i in range(size)))
        (folder / "classes.txt").write_text((data / "classes.txt").read_text())
        np.save(folder / "ref.npy", some_references())
        shutil.rmtree(folder / "run", ignore_errors=True)
        peak = run(
            "train.py", f"--data_dir={folder}", f"--checkpoint_dir={folder}/run", f"--log_dir={folder}/run/log", "--dropout_rate=0.2",
            "--n_step=100", "--val_interval=100",
        )[1]
        size = (folder / "all.npy").stat().st_size
        results.append({"stage": f"train.py, all.npy of {count} rows, {size / 1e9:.2g} GB", "peak_mb": peak / 1e6})
    return results


def make_run(data):
    """A run folder with random weights, which score as fast as trained ones."""
    import tensorflow as tf

    import model
    from util.lib import run_folder

    folder = data / "run"
    if folder.exists():
        return folder
    references = some_references()
    names = (data / "classes.txt").read_text().splitlines()
    shape = {"num_class": NUM_CLASSES, "num_ref": NUM_REF, "img_dim": IMG_DIM, "embed_norm": "log"}
    settings = {"score": "cosine", "contrast_temperature": 0.1}
    run_folder.start_or_check(str(folder), {"shape": shape, "settings": settings}, names, references)
    net = model.CleanNet(NUM_REF, IMG_DIM)
    velocity = [tf.Variable(tf.zeros_like(w.value)) for w in net.trainable_variables]
    state = {"history": [], "best": {"step": 1, "score": 0.0}}
    run_folder.save(str(folder), 1, net, velocity, state, {})
    run_folder.publish(str(folder), {"step": 1, **state}, 3)
    return folder


def infer(data, source, *more):
    """Returns (seconds after the checkpoint was loaded, peak private bytes)."""
    _, peak, seconds = run(
        "inference.py", f"--checkpoint_dir={make_run(data)}", f"--image_feature_list={source}", f"--output_file={data}/out/pred.txt", *more
    )
    return seconds, peak


def scoring_yardstick(path):
    """Rows a second of a Python loop that reads, and encodes 32 references again for every row of a batch of 64."""
    import tensorflow as tf

    import model

    net = model.CleanNet(NUM_REF, IMG_DIM)
    references = some_references()

    @tf.function
    def score(features, row_references):
        return tf.reduce_sum(net.embed_queries(features) * net.embed_classes(row_references), axis=-1)

    score(np.zeros((64, IMG_DIM), np.float32), references[:64])
    count = YARDSTICK_ROWS // 2 // 64 * 64
    began = time.perf_counter()
    with open(path) as file:
        for _ in range(count // 64):
            rows, classes = [], []
            for _ in range(64):
                _, name, feature = file.readline().rstrip("\n").split("\t")
                rows.append([float(x) for x in feature.split(",")])
                classes.append(int(name.split()[1]))
            score(np.array(rows, np.float32), np.array([references[c] for c in classes])).numpy()
    return count / (time.perf_counter() - began)


def bench_inference(data, *, rows, many_rows, repetitions):
    make_run(data)
    counts = (START_ROWS, rows, many_rows)
    for count in counts:
        make_rows(data / f"rows_{count}.tsv", count)
        make_array(data / f"rows_{count}.npy", count)
    rates, memory, yardstick = {}, {}, []
    for _ in range(repetitions):
        for kind in ("tsv", "npy"):
            seconds = {}
            for count in counts:
                seconds[count], peak = infer(data, data / f"rows_{count}.{kind}")
                memory[kind, count] = max(memory.get((kind, count), 0), peak)
            for count in counts[1:]:
                rates.setdefault((kind, count), []).append((count - START_ROWS) / (seconds[count] - seconds[START_ROWS]))
        yardstick.append(scoring_yardstick(data / f"rows_{rows}.tsv"))
    names = {"tsv": "text", "npy": ".npy"}
    return [
        compare(f"inference from {names[kind]}, {count} rows, rows/s", found, yardstick, memory[kind, count])
        for (kind, count), found in rates.items()
    ]


def bench_output(data, *, rows, many_rows, repetitions):
    """The table of --output_format=tsv against the plain output, on half the large data set."""
    count = many_rows // 2
    path, start_path = data / f"rows_{count}.tsv", data / f"rows_{START_ROWS}.tsv"
    make_rows(path, count)
    make_rows(start_path, START_ROWS)
    start = infer(data, start_path)[0]
    ours, plain = [], []
    for _ in range(repetitions):
        plain.append((count - START_ROWS) / (infer(data, path)[0] - start))
        ours.append((count - START_ROWS) / (infer(data, path, "--output_format=tsv")[0] - start))
    return [compare(f"tsv output against plain, {count} rows, rows/s", ours, plain)]


def bench_scaling(data, *, rows, many_rows, repetitions):
    """Time against rows, best of the repetitions, interleaved, start-up taken off; slope on log axes."""
    sizes = [START_ROWS, many_rows // 20, many_rows // 4, many_rows]
    paths = [data / f"rows_{size}.tsv" for size in sizes]
    for path, size in zip(paths, sizes):
        make_rows(path, size)

    times = {name: [[] for _ in sizes] for name in ("convert", "inference")}
    for _ in range(max(repetitions, SCALING_REPETITIONS)):
        for i, source in enumerate(paths):
            for _ in range(3 if i < 2 else 1):
                times["convert"][i].append(convert(data, source)[0])
                times["inference"][i].append(infer(data, source)[0])
    more = np.array(sizes[1:]) - START_ROWS
    results, lines = [], {}
    for name, measured in times.items():
        start, *best = (min(values) for values in measured)
        seconds = np.array(best) - start
        if (seconds <= 0).any():
            raise errors.UserError(f"{name}: start-up took longer than {more[0]} rows more; this machine is too busy to measure on")
        slope = float(np.polyfit(np.log(more), np.log(seconds), 1)[0])
        lines[name] = (seconds, slope)
        results.append({"stage": f"{name}, slope of time against rows", "ours": slope, "seconds": seconds.tolist(), "rows": more.tolist()})
    draw_scaling(more, lines, data.parent / "scaling.png")
    return results


def make_images(folder):
    """Writes JPEGs of 400 x 300 pixels, 40 kB each, and list_<count>.tsv with the first of them in ten classes."""
    import cv2

    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("".join(f"class {c}\n" for c in range(10)))
    rng = np.random.default_rng(5)
    pictures = [cv2.resize(rng.integers(0, 256, (24, 32, 3), np.uint8), (400, 300), interpolation=cv2.INTER_CUBIC) for _ in range(50)]
    encoded = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures]
    for i in range(MANY_IMAGES):
        (folder / "images" / f"{i}.jpg").write_bytes(encoded[i % len(encoded)])
    for count in (FEW_IMAGES, MANY_IMAGES):
        (folder / f"list_{count}.tsv").write_text("".join(f"{i}.jpg\tclass {i % 10}\n" for i in range(count)))


def bench_classifier(data, *, rows, many_rows, repetitions):
    """train_classifier.py on images: its loop against its step on images in memory, by the clock and by the processor; its memory."""
    import keras
    import tensorflow as tf

    from util.lib import classifier, image_rows, networks, threads
    from util.lib.classifier_data import ImageRows

    folder = data / "images"
    make_images(folder)
    listed = image_rows.read_list(str(folder / f"list_{FEW_IMAGES}.tsv"), ["key", "class"], "key")
    source = ImageRows(
        listed, (folder / "classes.txt").read_text().splitlines(), image_dir=str(folder / "images"), resize=CROP + CROP // 8, crop=CROP,
        mirror=True, path="list", num_threads=threads.count(0), files=[],
    )
    network, preprocess, _ = networks.load_network(model="MobileNetV2", weights="none", crop=CROP)
    net = classifier.make_image_classifier(network, preprocess, CROP, 10, dropout_rate=0.5, seed=1)
    trainer = classifier.Trainer(
        net, learning_rate=1e-4, weight_decay=0.0, n_step=10**6, label_smoothing=0.0, strategy=tf.distribute.get_strategy()
    )
    every = np.arange(len(listed))
    batches = classifier.Batches(every, source.inputs, source.class_ids, np.ones(len(every), np.float32), batch_size=IMAGE_BATCH, seed=[1])
    in_memory = batches.chunk(0, 2)
    trainer(*in_memory)
    rates = {"by the clock": ([], []), "by the processor": ([], [])}
    for repetition in range(repetitions):
        bounds = [(first, first + 2) for first in range(12 * repetition, 12 * repetition + 12, 2)]
        for kind, chunks in enumerate((threads.in_order(lambda bound: batches.chunk(*bound), bounds, 1), [in_memory] * len(bounds))):
            began = time.perf_counter(), time.process_time()
            for chunk in chunks:
                trainer(*chunk)
            for name, clock, start in zip(rates, (time.perf_counter, time.process_time), began):
                rates[name][kind].append(12 * IMAGE_BATCH / (clock() - start))
    results = [compare(f"train_classifier, MobileNetV2 of {CROP} pixels, images/s {name}", *found) for name, found in rates.items()]
    keras.Sequential([keras.Input((CROP, CROP, 3)), keras.layers.Conv2D(8, 9, strides=8)]).save(folder / "small.keras")
    for count in (FEW_IMAGES, MANY_IMAGES):
        peak = run(
            "util/train_classifier.py", f"--image_dir={folder}/images", f"--image_list={folder}/list_{count}.tsv", "--n_epoch_head=0",
            f"--class_list={folder}/classes.txt", f"--keras_model={folder}/small.keras", f"--crop={CROP}", f"--resize={CROP}",
            f"--batch_size={IMAGE_BATCH}", f"--n_epoch={MANY_IMAGES // count}", f"--output_file={folder}/c.keras",
        )[1]
        results.append({"stage": f"train_classifier, {count} images, {MANY_IMAGES // IMAGE_BATCH} steps", "peak_mb": peak / 1e6})
    return results


def draw_scaling(sizes, lines, path):
    figure, axis = figures.figure(6, 4)
    for name, (seconds, slope) in lines.items():
        axis.loglog(sizes, seconds, "o-", label=f"{name}, slope {slope:.2f}")
    axis.set(xlabel="rows of 2,048 numbers", ylabel="seconds, start-up subtracted", title="Time against rows, two cores")
    axis.legend()
    figures.save_png(figure, str(path))


def make_classes(folder, num_classes):
    """Arrays and lists of classes of 40 rows, ten of a kind. A fifth of the labels is wrong; a tenth of the rows is verified."""
    import cv2

    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(5)
    kinds = np.abs(rng.normal(size=(-(-num_classes // KIND), CLASS_DIM)))
    centres = kinds[np.arange(num_classes) // KIND] + 0.2 * rng.normal(size=(num_classes, CLASS_DIM))
    given = np.repeat(np.arange(num_classes), ROWS_PER_CLASS)
    of_its_kind = np.minimum(given // KIND * KIND + rng.integers(KIND, size=len(given)), num_classes - 1)
    other = np.where(rng.random(len(given)) < 0.5, of_its_kind, rng.integers(num_classes, size=len(given)))
    true = np.where(rng.random(len(given)) < 0.2, other, given)
    rows = np.empty((len(given), CLASS_DIM + 2), np.float32)
    rows[:, :CLASS_DIM] = np.maximum(0, centres[true] + rng.normal(size=(len(given), CLASS_DIM)))
    rows[:, CLASS_DIM], rows[:, CLASS_DIM + 1] = given, true == given
    names, keys = [f"class {c:04d}" for c in range(num_classes)], [f"{i:06d}.png" for i in range(len(given))]
    parts = {"all": np.arange(len(given)), "train": np.arange(0, len(given), 20), "val": np.arange(10, len(given), 20)}
    for split, members in parts.items():
        np.save(folder / f"{split}.npy", rows[members, : CLASS_DIM + 1 + (split != "all")])
        (folder / f"{split}_keys.txt").write_text("".join(f"{keys[i]}\n" for i in members))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "rows.tsv").write_text("".join(f"{keys[i]}\t{names[c]}\t0\n" for i, c in enumerate(given)))
    with open(folder / "text.tsv", "w") as file:  # in random order
        for i in rng.permutation(len(given)):
            feature = ",".join(map(str, np.round(rows[i, :CLASS_DIM].astype(float), 3).tolist()))
            file.write(f"{keys[i]}\t{names[given[i]]}\t{feature}\n")
    (folder / "images").mkdir(exist_ok=True)
    for i in range(PICTURED * ROWS_PER_CLASS):
        shown = rows[i, : CLASS_DIM // 8 * 8].reshape(8, -1) * 80
        cv2.imwrite(str(folder / "images" / keys[i]), cv2.resize(shown.clip(0, 255).astype(np.uint8), (96, 96)))


def commands_of(folder):
    """What runs on the data of make_classes: {name: command line}, in this order."""
    run_of, scores = f"--checkpoint_dir={folder}/run", f"--score_file={folder}/scores.tsv"
    table = [f"--output_file={folder}/scores.tsv", "--output_format=tsv", "--val_sim_thres=auto"]
    report = [f"--output_file={folder}/val.txt", "--val_sim_thres=auto", f"--report_dir={folder}/report", f"--image_dir={folder}/images"]
    return {
        "convert_data": [
            "util/convert_data.py", "--split=all", f"--class_list={folder}/classes.txt", f"--data_path={folder}/text.tsv",
            f"--output_dir={folder}/converted",
        ],
        "find_reference": [
            "util/find_reference.py", f"--class_list={folder}/classes.txt", f"--input_npy={folder}/all.npy", f"--output_dir={folder}",
            f"--num_ref={CLASS_REF}",
        ],
        "check_data": ["util/check_data.py", f"--data_dir={folder}", f"--output_file={folder}/odd.tsv"],
        "choose_rows": [
            "util/choose_rows.py", "--for=train", f"--image_feature_list={folder}/all.npy", "--num=1000", f"--verified={folder}/val.npy",
            f"--output_file={folder}/to_verify.tsv",
        ],
        "train, 100 steps": [
            "train.py", f"--flagfile={ROOT}/recommended.flags", f"--data_dir={folder}", run_of, f"--log_dir={folder}/log",
            "--n_step=100", "--val_interval=100",
        ],
        "inference, a table": ["inference.py", run_of, f"--image_feature_list={folder}/all.npy", *table],
        "inference, a report": ["inference.py", "--mode=val", f"--data_dir={folder}", run_of, *report],
        "draw_examples": [
            "util/draw_examples.py", scores, f"--image_feature_list={folder}/rows.tsv", f"--image_dir={folder}/images",
            f"--output_file={folder}/examples.png",
        ],
        "export_weights": [
            "util/export_weights.py", scores, f"--list_file={folder}/cleaned.tsv", f"--output_file={folder}/weights.npy",
            "--relabel_precision=0.9", f"--val_npy={folder}/val.npy",
        ],
        "train_classifier, 5 folds and all rows, an epoch each": [
            "util/train_classifier.py", f"--input_npy={folder}/all.npy", "--folds=5", "--n_epoch=1", "--hidden_units=0",
            f"--table_file={folder}/second.tsv", f"--probabilities_file={folder}/second.npy", f"--output_file={folder}/second.keras",
            f"--test_data={folder}/val.npy", f"--report_dir={folder}/test",
        ],
        "combine_scores": [
            "util/combine_scores.py", f"--score_files={folder}/scores.tsv,{folder}/second.tsv", f"--val_npy={folder}/val.npy",
            "--calibrate", f"--output_file={folder}/combined.tsv",
        ],
        "estimate_noise": [
            "util/estimate_noise.py", scores, f"--val_npy={folder}/val.npy", f"--train_npy={folder}/train.npy",
            f"--output_file={folder}/noise.tsv", f"--picture_file={folder}/noise.png",
        ],
        "compare_methods, without training and logistic": [
            "util/compare_methods.py", f"--data_dir={folder}", f"--checkpoint_dirs={folder}/run", f"--output_dir={folder}/comparison",
            "--methods=mean,neighbours,simifeat,selfclean,fine,reconstruction,relations",
        ],
    }


def bench_classes(data, *, rows, many_rows, repetitions):
    """Each command with so many classes, of equally many rows each: processor seconds, start-up included, and memory."""
    results = []
    for count in CLASS_COUNTS:
        folder = data / f"classes_{count}"
        shutil.rmtree(folder, ignore_errors=True)
        make_classes(folder, count)
        for name, line in commands_of(folder).items():
            before = os.times()
            peak = run(*line)[1]
            seconds = sum(os.times()[2:4]) - sum(before[2:4])  # of ended children, user and system
            results.append({"stage": f"{name}, {count} classes, processor s", "ours": seconds, "peak_mb": peak / 1e6})
        results.append({"stage": f"a step of training, {count} classes, ms of the processor", "ours": 1000 * step_seconds(folder)})
    return results


def step_seconds(folder):
    """The median seconds of the processor of a step with the recommended flags on the data of make_classes."""
    import tensorflow as tf

    import data_loader
    import model
    from util.lib import train_step

    batches = data_loader.Batches(data_loader.load(str(folder), embed_norm="log"), batch_size_sup=32, batch_size_unsup=32, seed=1)
    net = model.CleanNet(CLASS_REF, CLASS_DIM)
    velocity = [tf.Variable(tf.zeros_like(w.value)) for w in net.trainable_variables]
    step = train_step.TrainStep(
        net, velocity, np.load(folder / "ref.npy"), strategy=tf.distribute.get_strategy(), dropout_rate=0.2, query_dropout_rate=0.3,
        loss=model.LossSettings(class_contrast=1.0, contrast_smoothing=0.1),
    )
    seconds = []
    for low, high, chunk in batches.chunks(train_step.call_bounds(0, 300)):
        began = time.process_time()
        step(*chunk, rates=np.full(high - low, 0.01, np.float32), first_step=low)
        seconds.append((time.process_time() - began) / (high - low))
    return statistics.median(seconds[1:])  # the first call compiles


def compare(stage, ours, yardstick, memory=None):
    """Medians, their ratio, and the peak memory in MB."""
    a, b = statistics.median(ours), statistics.median(yardstick)
    result = {"stage": stage, "ours": a, "yardstick": b, "ratio": a / b, "all": {"ours": ours, "yardstick": yardstick}}
    return result | ({"peak_mb": memory / 1e6} if memory else {})


STAGES = {
    "convert": bench_convert, "formats": bench_formats, "references": bench_references, "train": bench_train, "memory": bench_memory,
    "inference": bench_inference, "output": bench_output, "scaling": bench_scaling, "classifier": bench_classifier,
    "classes": bench_classes,
}


def main():
    opt = flags.FLAGS
    command.import_tensorflow()
    data = pathlib.Path(opt.output_dir) / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "classes.txt").write_text("".join(f"class {c}\n" for c in range(NUM_CLASSES)))
    results = []
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    for stage in opt.stages:
        results += STAGES[stage](data, rows=opt.rows, many_rows=opt.many_rows, repetitions=opt.repetitions)
        atomic.write_json(os.path.join(opt.output_dir, "benchmark.json"), {"machine": machine, "results": results})
    print("| stage | this suite | yardstick | ratio | peak memory, MB |\n|---|---|---|---|---|")
    for r in results:
        cells = [f"{r[name]:.3g}" if name in r else "" for name in ("ours", "yardstick", "ratio", "peak_mb")]
        extra = f" (distance {r['distance_ratio']:.5f} of the yardstick's)" if "distance_ratio" in r else ""
        print(f"| {r['stage']}{extra} | {' | '.join(cells)} |")
    shutil.rmtree(data / "out", ignore_errors=True)


if __name__ == "__main__":
    command.run(main)
