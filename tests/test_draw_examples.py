"""util/draw_examples.py through its command line, on the demo's digits."""
import cv2
import numpy as np
import pyarrow as pa
from conftest import read_table, run_script, truth
from pyarrow import parquet

from util.lib import figures


def test_lowest_scoring_rows_drawn_are_wrong(digits, tmp_path):
    done = run_script(
        "util/draw_examples.py", f"--score_file={digits}/scores.tsv", f"--image_feature_list={digits}/data/all.tsv",
        f"--image_dir={digits}/data/images", f"--verified_list={digits}/data/train.tsv,{digits}/data/val.tsv",
        f"--output_file={tmp_path}/examples.png",
    )
    assert "200 images of 10 classes" in done.stdout
    assert cv2.imread(str(tmp_path / "examples.png")).shape[1] > 1500
    true, table = truth(digits), read_table(digits / "scores.tsv")
    drawn = []
    for name in set(true.values()):
        lowest = sorted((row for row in table if row["class"] == name), key=lambda row: float(row["cosine"]))[:10]
        drawn += [true[row["key"]] != name for row in lowest]
    print(f"\ntruly wrong among the ten lowest of each class: {np.mean(drawn):.3f}")
    assert np.mean(drawn) >= 0.8


def test_mosaic_of_two_files_with_missing_and_hostile_keys(digits, tmp_path):
    lines = (digits / "data" / "all.tsv").read_text().splitlines()[:40]
    outside = tmp_path / "outside.png"
    cv2.imwrite(str(outside), np.zeros((8, 8), np.uint8))
    images = tmp_path / "images"
    images.mkdir()
    (images / "digit_0001.png").write_bytes(b"")
    listed = tmp_path / "list.tsv"
    rows = []
    for i, line in enumerate(lines):
        key, name, feature = line.split("\t")
        url = str(digits / "data" / "images" / key) if i >= 4 else ""
        rows.append(f"{'../outside.png' if i == 0 else key}\t{url}\t{name}\t{feature}\n")
    listed.write_text("".join(rows))
    for name in ("f.txt", "d.txt"):
        (tmp_path / name).write_text("".join(f"{i / 40}\n" for i in range(40)))
    done = run_script(
        "util/draw_examples.py", f"--score_file={tmp_path}/f.txt", f"--second_score_file={tmp_path}/d.txt",
        f"--image_feature_list={listed}", f"--image_dir={images}", f"--output_file={tmp_path}/out.png", "--num_examples=2",
    )
    assert "4 of them unreadable" in done.stdout  # ../outside.png, the empty file and two that are not there


def test_the_rows_may_be_parquet_or_csv(digits, tmp_path):
    """The same picture, to the byte, from text and from columns by name."""
    columns = {"class": [], "key": []}
    for line in (digits / "data" / "all.tsv").read_text().splitlines():
        key, name, _ = line.split("\t")
        columns["key"].append(key)
        columns["class"].append(name)
    parquet.write_table(pa.table({**columns, "feature": [[1.0]] * len(columns["key"])}), tmp_path / "all.parquet", row_group_size=700)
    (tmp_path / "all.csv").write_text("class,key\n" + "".join(f"{name},{key}\n" for name, key in zip(columns["class"], columns["key"])))
    verified = [line.split("\t")[:3] for line in (digits / "data" / "train.tsv").read_text().splitlines()]
    (tmp_path / "train.csv").write_text("key,class,label\n" + "".join(",".join(row) + "\n" for row in verified))
    drawn = []
    for folder, suffix, labels in ((digits / "data", "tsv", "tsv"), (tmp_path, "parquet", "csv"), (tmp_path, "csv", "csv")):
        run_script(
            "util/draw_examples.py", f"--score_file={digits}/scores.tsv", f"--image_feature_list={folder}/all.{suffix}", "--num_examples=2",
            f"--image_dir={digits}/data/images", f"--verified_list={folder}/train.{labels}", "--max_classes=3",
            f"--output_file={tmp_path}/x.png",
        )
        drawn.append((tmp_path / "x.png").read_bytes())
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_long_class_name_stays_beside_the_images(tmp_path):
    """Right of the titles, the picture is the same for any name."""
    drawn = []
    for name in ("pie", "electric ray, crampfish, numbfish, torpedo", "n" * 200, "many short words " * 13):
        cell = figures.Cell(np.full((96, 96, 3), 255, np.uint8), "x", "#555555")
        figures.mosaic([(name, [cell] * 2)] * 2, 96, str(tmp_path / "m.png"))
        drawn.append(cv2.imread(str(tmp_path / "m.png"))[:, figures.TITLE :])
        assert np.array_equal(drawn[0], drawn[-1])
