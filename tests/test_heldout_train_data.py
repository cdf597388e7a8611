"""util/heldout_train_data.py through its command line."""
import gzip

import pytest
from conftest import make_rows, run_script, write_rows


@pytest.mark.parametrize("suffix", ["tsv", "tsv.gz"])
def test_heldout_rows_are_left_out(tmp_path, suffix):
    rows = make_rows(40, url=True)
    path = write_rows(tmp_path / "train.tsv", rows)
    (tmp_path / "heldout.tsv").write_text("ramen\t0\napple pie\t1\ntacos\t0\n")  # the others are kept
    out = tmp_path / f"kept.{suffix}"
    run_script(
        "util/heldout_train_data.py", f"--heldout_class_list={tmp_path}/heldout.tsv", f"--input_file={path}", f"--output_file={out}"
    )
    expected = [line for line in path.read_text().splitlines() if line.split("\t")[2] not in ("ramen", "tacos")]
    text = gzip.decompress(out.read_bytes()).decode() if suffix.endswith("gz") else out.read_text()
    assert text.splitlines() == expected
    assert 0 < len(expected) < 40


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_rows_and_header_of_csv_are_copied(tmp_path, suffix):
    rows = [f'{name},"1,2",k{i},1' for i, name in enumerate(["ramen", "apple pie", '"tacos"', "sushi", '"a, b"'])]
    lines = ["class,feature,key,label", *rows]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "heldout.tsv").write_text("ramen\t0\ntacos\t0\n")
    out = tmp_path / f"kept.{suffix}"
    done = run_script(
        "util/heldout_train_data.py", f"--heldout_class_list={tmp_path}/heldout.tsv", f"--input_file={tmp_path}/train.csv",
        f"--output_file={out}",
    )
    text = gzip.decompress(out.read_bytes()).decode() if suffix.endswith("gz") else out.read_text()
    assert text.splitlines() == [lines[i] for i in (0, 2, 4, 5)]
    assert "3 verified rows kept, 2 rows" in done.stdout
