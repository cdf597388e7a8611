"""util/check_data.py through its command line: planted duplicates and images of another style, and nothing else, are found."""
import shutil

import cv2
import numpy as np
import pytest
from commands import run_command
from conftest import CLASSES, IMG_DIM, ROOT, run_script

from util.lib import styles


def check(data, folder, *more):
    """Runs the command. Returns (the list, tuples of key, class, what and group; stdout)."""
    done = run_script("util/check_data.py", f"--data_dir={data}", f"--output_file={folder}/odd.tsv", *more)
    return [tuple(line.split("\t")) for line in (folder / "odd.tsv").read_text().splitlines()], done.stdout


def write_arrays(data, features, class_ids, verified=None):
    """all.npy with the keys k0, k1, …, and (split, rows of it) as verified rows, all correct."""
    data.mkdir(exist_ok=True)
    order = np.argsort(class_ids, kind="stable")
    keys = np.array([f"k{i}" for i in range(len(features))])
    rows = np.concatenate([features, class_ids[:, None]], axis=1).astype(np.float32)
    np.save(data / "all.npy", rows[order])
    (data / "all_keys.txt").write_text("".join(f"{key}\n" for key in keys[order]))
    (data / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for split, members in (verified or {}).items():
        np.save(data / f"{split}.npy", np.concatenate([rows[members], np.ones((len(members), 1), np.float32)], axis=1))
        (data / f"{split}_keys.txt").write_text("".join(f"k{i}\n" for i in members))


@pytest.mark.parametrize("num_rows", [211, 4507], ids=["each with each", "by cells"])
def test_planted_duplicates_are_found_and_no_others(tmp_path, num_rows):
    rng = np.random.default_rng(0)
    features, class_ids = rng.random((num_rows, IMG_DIM)) ** 3, np.arange(num_rows) % 5
    features[7] = features[2]  # the same class
    features[9] = features[5] = features[3]  # three classes
    near = rng.permutation(np.arange(100, num_rows))[:40].reshape(20, 2)
    features[near[:, 1]] = features[near[:, 0]] + rng.normal(size=(20, IMG_DIM)) * 0.001
    class_ids[near[:, 1]] = class_ids[near[:, 0]]
    write_arrays(tmp_path / "data", features, class_ids, {"train": [2, 11], "val": [7, 12]})
    found, said = check(tmp_path / "data", tmp_path, "--near_cosine=0.9999")
    groups = {}
    for key, name, what, group in found:
        assert name == CLASSES[class_ids[int(key[1:])]]
        groups.setdefault((group, what), set()).add(int(key[1:]))
    assert groups.pop(("duplicates 1", "exact duplicate, train and val")) == {2, 7}
    assert groups.pop(("duplicates 2", "exact duplicate, several classes")) == {3, 5, 9}
    assert {what for _, what in groups} == {"near duplicate"}
    assert sorted(map(sorted, groups.values())) == sorted(sorted(pair) for pair in near.tolist())
    assert "duplicates: 45 rows in 22 groups; 1 across classes, 1 across train and val" in said
    assert check(tmp_path / "data", tmp_path, "--near_cosine=0.9999") == (found, said)


def test_a_row_that_only_a_split_has_is_looked_at_too(sample_dir, tmp_path):
    """train.npy and val.npy of other images than all.npy, with one image in both under two keys."""
    data = tmp_path / "data"
    shutil.copytree(sample_dir / "data", data)
    train, val = np.load(data / "train.npy"), np.load(data / "val.npy")
    val[5, :IMG_DIM] = train[8, :IMG_DIM]
    np.save(data / "val.npy", val)
    (data / "val_checksums.json").unlink()
    found, _ = check(data, tmp_path, "--near_cosine=1")
    keys = [(data / f"{split}_keys.txt").read_text().splitlines()[i] for split, i in (("train", 8), ("val", 5))]
    assert {key for key, _, what, _ in found if "train and val" in what} == set(keys)


def image(style, rng):
    """An image of a style, uint8 [48, 48, 3]."""
    if style == styles.EMPTY:
        return np.full((48, 48, 3), 200, np.uint8)
    if style == styles.DRAWING:
        pixels = np.full((48, 48, 3), 255, np.uint8)
        cv2.circle(pixels, (24, 24), int(rng.integers(8, 20)), (0, 0, 0), 2)
        return pixels
    pixels = cv2.resize(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8), (48, 48))
    if style == styles.TINY:
        return pixels[::8, ::8]
    return pixels if style == styles.COLOUR else np.repeat(pixels[..., :1], 3, axis=2)


def test_styles_by_class(tmp_path):
    """Photographs, a few images of every other style, and a class of line drawings alone."""
    rng = np.random.default_rng(1)
    odd = {11: styles.EMPTY, 22: styles.GREY, 33: styles.DRAWING, 44: styles.TINY}
    class_ids = np.arange(130) % 5
    (tmp_path / "images").mkdir()
    kinds = {i: styles.DRAWING if class_ids[i] == 2 else odd.get(i, styles.COLOUR) for i in range(129)}
    for i, style in kinds.items():
        cv2.imwrite(str(tmp_path / "images" / f"k{i}.png"), image(style, rng))
    for i in kinds:
        (tmp_path / "images" / f"k{i}.png").rename(tmp_path / "images" / f"k{i}")
    write_arrays(tmp_path / "data", rng.random((130, IMG_DIM)), class_ids)
    found, said = check(tmp_path / "data", tmp_path, f"--image_dir={tmp_path}/images", f"--picture_file={tmp_path}/odd.png")
    expected = {f"k{i}": style for i, style in kinds.items() if style != styles.COLOUR} | {"k129": styles.UNREADABLE}
    assert {key: what.split(",")[0] for key, _, what, _ in found} == expected
    assert {name for _, name, what, _ in found if what == "line drawing, as its class"} == {"sushi"}
    assert "colour is the usual one" in said
    assert "classes of one other style: sushi (line drawing)" in said
    picture = cv2.imread(str(tmp_path / "odd.png"))
    assert picture.shape[0] > 5 * 96
    few, said = check(tmp_path / "data", tmp_path, f"--image_dir={tmp_path}/images", "--images_per_class=3")
    assert "styles of 15 images" in said
    assert len(few) < len(found)


def test_near_duplicates_are_searched_in_bounded_memory(tmp_path):
    """40,000 rows are parted among 400 of them in a few blocks, not in a table of 128 MB of rows by parts."""
    rng = np.random.default_rng(0)
    write_arrays(tmp_path / "data", rng.normal(size=(40_000, 8)), np.arange(40_000) % 5)
    (tmp_path / "measured.py").write_text(
        "import runpy, sys, tracemalloc\n"
        "tracemalloc.start()\n"
        f"try: runpy.run_path({str(ROOT / 'util' / 'check_data.py')!r}, run_name='__main__')\n"
        "finally: print('peak', tracemalloc.get_traced_memory()[1] >> 20, file=sys.stderr)\n"
    )
    done = run_command(
        tmp_path / "measured.py", f"--data_dir={tmp_path}/data", f"--output_file={tmp_path}/odd.tsv", "--near_cosine=0.99999"
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split("peak ")[1]) < 90
