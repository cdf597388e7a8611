"""util/estimate_noise.py: intervals that hold the truth as often as they say, and what the command writes, warns of and leaves out."""
import numpy as np
import pytest
from conftest import CLASSES, convert, load_command, run_script, write_rows

NAMES = [*CLASSES[:4], "no one looked"]  # of the last class no row is verified
LINE = "{}\t{}\t0.25\t0.125\t{:.9g}\tcorrect\tramen\t0.75\tcosine\n"


def make_scores(num_rows, seed):
    """Rows with overconfident probabilities that depend on the class too: probability, class ids, whether the label is correct."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(5, num_rows, p=[0.3, 0.25, 0.2, 0.15, 0.1])
    true = 1 / (1 + np.exp(-rng.normal(1, 2, num_rows) + 0.5 * (ids - 2)))
    logit = 3 * np.log(true / (1 - true)) - 2
    return 1 / (1 + np.exp(-logit)), ids, rng.random(num_rows) < true


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """scores.tsv of 1,537 rows, val.npy of 211 random ones, train.npy of 83 others, low.npy of the 150 lowest scores."""
    folder = tmp_path_factory.mktemp("noise")
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
    p, ids, correct = make_scores(1537, 1)
    (folder / "scores.tsv").write_text("".join(LINE.format(f"r{i}", NAMES[c], q) for i, (q, c) in enumerate(zip(p, ids))))
    order = np.random.default_rng(2).permutation(np.flatnonzero(ids < 4))
    lowest = np.argsort(np.where(ids < 4, p, 2))[:150]
    for name, rows in {"val": order[:211], "train": order[211:294], "low": lowest}.items():
        verified = [[f"r{i}", NAMES[ids[i]], int(correct[i]), [0.5, 0.25, 1.0]] for i in rows]
        split = "train" if name == "train" else "val"
        (folder / name).mkdir()
        convert(split, folder / name, write_rows(folder / f"{name}.tsv", verified), folder / "classes.txt")
    return folder


def estimate(folder, output, *more, val="val", **options):
    return run_script(
        "util/estimate_noise.py", f"--score_file={folder}/scores.tsv", f"--val_npy={folder}/{val}/val.npy", f"--output_file={output}",
        *more, **options,
    )


def read(path):
    """{class: numbers of its line}."""
    header, *lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert header == ["class", "rows", "verified", "mislabeled", "low", "high"]
    return {line[0]: [float(x) for x in line[1:]] for line in lines}


def test_the_table(folder, tmp_path):
    done = estimate(folder, tmp_path / "n.tsv", f"--train_npy={folder}/train/train.npy", f"--picture_file={tmp_path}/n.png")
    _, ids, correct = make_scores(1537, 1)
    found = read(tmp_path / "n.tsv")
    assert next(iter(found)) == "all"
    shares = [numbers[2] for numbers in found.values()][1:]
    assert shares == sorted(shares, reverse=True)
    assert found["all"][:2] == [1537, 294]
    rows, verified, share, low, high = found["no one looked"]
    assert (rows, verified) == (np.sum(ids == 4), 0)
    assert low < share < high
    assert found["all"][3] <= np.mean(~correct) <= found["all"][4]
    assert found["all"][4] - found["all"][3] < 0.75 * 2 * 1.96 * np.sqrt(np.mean(correct) * np.mean(~correct) / 211)
    assert f"{100 * found['all'][2]:.1f} % of 1537 labels are wrong" in done.stdout
    assert "is no random sample: their classes are not as frequent as in all rows" in done.stderr
    assert (tmp_path / "n.png").read_bytes()[:4] == b"\x89PNG"


def test_known_rows_count_as_they_are(folder, tmp_path):
    """With every row of a class but a few known, its interval is nearly a point."""
    _, ids, correct = make_scores(1537, 1)
    rows = np.flatnonzero(ids == 3)[:-3]
    val = {line.split("\t")[0] for line in (folder / "val.tsv").read_text().splitlines()}
    known = [[f"r{i}", NAMES[3], int(correct[i]), [0.5, 0.25, 1.0]] for i in rows if f"r{i}" not in val]
    convert("train", tmp_path, write_rows(tmp_path / "train.tsv", known), folder / "classes.txt")
    estimate(folder, tmp_path / "n.csv", f"--train_npy={tmp_path}/train.npy")
    line = next(line for line in (tmp_path / "n.csv").read_text().splitlines() if line.startswith(f"{NAMES[3]},"))
    low, high = map(float, line.split(",")[-2:])
    assert high - low <= 4 / np.sum(ids == 3)
    assert low - 1e-4 <= np.mean(~correct[ids == 3]) <= high + 1e-4


def test_a_sample_that_is_not_random_is_noticed(folder, tmp_path):
    done = estimate(folder, tmp_path / "n.tsv", val="low")
    assert "low/val.npy: is no random sample: their scores are not like those of all rows" in done.stderr


@pytest.mark.parametrize("size", [1, 3])
def test_a_random_sample_of_small_classes_is_not_called_another(size):
    why_not = load_command("util.estimate_noise").why_not_random
    rng = np.random.default_rng(size)
    found = [why_not(rng.random(6000), np.arange(6000) // size, rng.permutation(6000)[:300], per_class=True) for _ in range(20)]
    assert found == [None] * 20


def test_a_key_that_is_verified_twice_is_one_row(folder, tmp_path):
    """And rows that were skipped as bad, without a class, are left out."""
    (tmp_path / "classes.txt").write_text("\n".join(NAMES) + "\n")
    lines = (folder / "val.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "twice.tsv").write_text("".join(lines + lines[:50]))
    convert("val", tmp_path / "val", tmp_path / "twice.tsv", tmp_path / "classes.txt")
    bad = "\t\tnan\tnan\tnan\tunknown\t\tnan\tprobability\n"
    (tmp_path / "scores.tsv").write_text((folder / "scores.tsv").read_text() + 2 * bad)
    estimate(folder, tmp_path / "once.txt")
    estimate(tmp_path, tmp_path / "twice.txt")
    assert (tmp_path / "twice.txt").read_text() == (tmp_path / "once.txt").read_text()


def test_classes_unlike_those_of_all_rows_are_noticed_unless_meant(tmp_path):
    command = load_command("util.estimate_noise")
    p, ids, _ = make_scores(1537, 3)
    rows = np.concatenate([np.flatnonzero(ids == c)[:40] for c in range(5)])
    assert "classes" in command.why_not_random(p, ids, rows, False)
    assert command.why_not_random(p, ids, rows, True) is None


@pytest.mark.parametrize("per_class", [None, 17])
def test_intervals_hold_the_truth(per_class):
    """In about 95 of 100 samples: of all rows, and of classes. The sample alone has intervals that are half as wide again."""
    command = load_command("util.estimate_noise")
    p, ids, correct = make_scores(1537, 4)
    truth = [np.mean(~correct), *(np.mean(~correct[ids == c]) for c in range(5))]
    rng, held, nothing = np.random.default_rng(5), [], np.full(len(p), -1, np.int8)
    for _ in range(60):
        rows = rng.choice(len(p), 90, replace=False)
        if per_class:
            rows = np.concatenate([rng.choice(np.flatnonzero(ids == c), per_class, replace=False) for c in range(5)])
        sample = command.take_sample(rows, ~correct[rows], ids, bool(per_class))
        found = {line.name: line for line in command.estimate(p, ids, nothing, sample, ["0", "1", "2", "3", "4"])}
        lines = [found["all"], *(found[str(c)] for c in range(5))]
        held.append([line.low <= share <= line.high for line, share in zip(lines, truth)])
    assert np.mean(held, axis=0)[0] >= 0.9
    assert np.mean(held, axis=0)[1:].mean() >= 0.92


def test_all_verified_rows_correct(folder, tmp_path):
    """No wrong label among 211: the upper end is not 0."""
    lines = [line.split("\t") for line in (folder / "val.tsv").read_text().splitlines()]
    rows = [[key, name, 1, [0.5, 0.25, 1.0]] for key, name, *_ in lines]
    convert("val", tmp_path, write_rows(tmp_path / "val.tsv", rows), folder / "classes.txt")
    run_script(
        "util/estimate_noise.py", f"--score_file={folder}/scores.tsv", f"--val_npy={tmp_path}/val.npy", f"--output_file={tmp_path}/n.tsv"
    )
    _, _, share, low, high = read(tmp_path / "n.tsv")["all"]
    assert 0 <= low <= share < 0.05
    assert 0.005 < high < 0.1


def test_many_classes(tmp_path):
    """300 classes of 5 rows: a line for each, and a picture."""
    rng = np.random.default_rng(6)
    names = [f"class {c}" for c in range(300)]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    p = rng.random(1500)
    (tmp_path / "scores.tsv").write_text("".join(LINE.format(f"r{i}", names[i % 300], q) for i, q in enumerate(p)))
    verified = [[f"r{i}", names[i % 300], int(rng.random() < p[i]), [0.5]] for i in rng.choice(1500, 90, replace=False)]
    (tmp_path / "val").mkdir()
    convert("val", tmp_path / "val", write_rows(tmp_path / "val.tsv", verified), tmp_path / "classes.txt")
    done = estimate(tmp_path, tmp_path / "n.tsv", f"--picture_file={tmp_path}/n.png")
    assert "random sample" not in done.stderr
    assert len(read(tmp_path / "n.tsv")) == 301
