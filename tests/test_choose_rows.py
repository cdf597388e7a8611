"""util/choose_rows.py through its command line: what a choice holds, that it repeats itself, and what it leaves out."""
import collections
import shutil

import numpy as np
import pytest
from conftest import CLASSES, run_script


def choose(folder, *flags, rows=None, output="list.tsv"):
    """Runs the command. Returns (the list, tuples of key, class and why; stdout)."""
    done = run_script(
        "util/choose_rows.py", f"--image_feature_list={rows or folder / 'data' / 'all.npy'}", f"--output_file={folder / output}", *flags
    )
    return [tuple(line.split("\t")) for line in (folder / output).read_text().splitlines()], done.stdout


def keys_of(path):
    """The first column of a file."""
    return [line.split("\t")[0] for line in path.read_text().splitlines()]


@pytest.fixture
def folder(sample_dir, tmp_path):
    """A copy of the sample whose verified rows have keys of all.npy: every third row for validation."""
    shutil.copytree(sample_dir, tmp_path / "sample")
    folder = tmp_path / "sample"
    keys = keys_of(folder / "data" / "all_keys.txt")[::3]
    (folder / "verified.tsv").write_text("".join(f"{key}\t1\tsomebody\n" for key in keys))
    (folder / "data" / "val_keys.txt").write_text("".join(f"{key}\n" for key in keys[:67]))
    return folder


def test_a_choice_for_validation_is_a_random_sample(folder):
    """Its classes come as often as they are, whatever the seed; the same seed gives the same list."""
    shares = collections.Counter()
    for seed in range(20):
        chosen, said = choose(folder, "--for=val", "--num=50", f"--seed={seed}")
        assert len({key for key, _, _ in chosen}) == 50
        assert {why for _, _, why in chosen} == {"random"}
        shares.update(name for _, name, _ in chosen)
    ids = np.load(folder / "data" / "all.npy")[:, -1].astype(int)
    for c, name in enumerate(CLASSES):
        assert shares[name] / 1000 == pytest.approx(np.mean(ids == c), abs=0.04)
    assert "only that keeps measures unbiased" in said
    assert choose(folder, "--for=val", "--num=50", "--seed=19") == (chosen, said)
    assert choose(folder, "--for=val", "--num=50", "--seed=18")[0] != chosen


def test_the_interval_is_that_of_the_mean_over_classes(folder):
    chosen, said = choose(folder, "--for=val", "--num=60")
    counts = collections.Counter(name for _, name, _ in chosen)
    half = 1.96 * np.sqrt(0.1 * 0.9 * sum(1 / n for n in counts.values())) / len(counts)
    assert f"10 ± {100 * half:.1f}" in said
    per_class, said = choose(folder, "--for=val", "--per_class=7")
    assert collections.Counter(name for _, name, _ in per_class) == dict.fromkeys(CLASSES, 7)
    assert f"5 ± {100 * 1.96 * np.sqrt(0.05 * 0.95 / 35):.1f}" in said


@pytest.mark.parametrize("flags", [["--strategy=random"], ["--strategy=balanced"], [], ["--score_file"]], ids=str)
def test_choices_for_training_repeat_and_leave_verified_rows_out(folder, trained_dir, flags):
    if flags == ["--score_file"]:
        score(folder, trained_dir)
        flags = [f"--score_file={folder}/scores.tsv"]
    verified = f"--verified={folder}/verified.tsv,{folder}/data/val.npy"
    chosen, said = choose(folder, "--for=train", "--num=33", verified, *flags)
    assert choose(folder, "--for=train", "--num=33", verified, *flags)[0] == chosen
    keys = [key for key, _, _ in chosen]
    assert len(set(keys)) == 33
    assert not set(keys) & set(keys_of(folder / "verified.tsv"))
    given = dict(zip(keys_of(folder / "data" / "all_keys.txt"), np.load(folder / "data" / "all.npy")[:, -1].astype(int)))
    assert all(CLASSES[given[key]] == name for key, name, _ in chosen)
    counts = collections.Counter(name for _, name, _ in chosen)
    if flags != ["--strategy=random"]:
        assert sorted(counts.values()) == [6, 6, 7, 7, 7]
        assert len({name for _, name, _ in chosen[:5]}) == 5  # a part of the list is balanced too
    everything, said = choose(folder, "--for=train", "--num=10000", verified, *flags)
    assert len(everything) == 211 - 71
    assert "all that there are" in said


def score(folder, trained_dir):
    run_script(
        "inference.py", f"--checkpoint_dir={trained_dir}/run", f"--image_feature_list={folder}/all.tsv",
        f"--output_file={folder}/scores.tsv", "--output_format=tsv", "--val_sim_thres=auto",
    )


def test_informative_rows_are_the_uncertain_ones(folder, trained_dir):
    """By the vote, and by a run's scores: nearer to the middle than random rows are."""
    score(folder, trained_dir)
    table = [line.split("\t") for line in (folder / "scores.tsv").read_text().splitlines()]
    scores = {row[0]: float(row[2]) for row in table}
    threshold = min(float(row[2]) for row in table if row[5] == "correct")
    random, _ = choose(folder, "--for=train", "--num=60", "--strategy=random")
    by_score, _ = choose(folder, "--for=train", "--num=60", f"--score_file={folder}/scores.tsv")
    distances = [np.mean([abs(scores[key] - threshold) for key, _, _ in chosen]) for chosen in (by_score, random)]
    assert distances[0] < 0.9 * distances[1]
    assert all(f"score {scores[key]:.3f}" in why for key, _, why in by_score)
    by_vote, _ = choose(folder, "--for=train", "--num=40")
    everything, _ = choose(folder, "--for=train", "--num=211")
    middle = [np.mean([abs(int(why.split()[0]) - 10) for _, _, why in chosen]) for chosen in (by_vote, everything)]
    assert middle[0] < middle[1]


def test_text_and_array_give_the_same_choice_and_classes_narrow_it(folder):
    rows = sorted((folder / "all.tsv").read_text().splitlines(keepends=True), key=lambda row: CLASSES.index(row.split("\t")[1]))
    (folder / "grouped.tsv").write_text("".join(rows))  # the order of all.npy
    (folder / "some.txt").write_text("tacos\nramen\n")
    for flags in (["--for=val"], ["--for=train", "--num=20"]):
        of_array, _ = choose(folder, *flags, "--classes=ramen,tacos")
        of_text, _ = choose(
            folder, *flags, f"--classes={folder}/some.txt", f"--class_list={folder}/classes.txt", rows=folder / "grouped.tsv"
        )
        assert of_array == of_text
        assert {name for _, name, _ in of_array} == {"ramen", "tacos"}


def test_rows_verified_in_a_csv_are_left_out(folder):
    keys = keys_of(folder / "data" / "all_keys.txt")
    (folder / "labels.csv").write_text('label,"key",class\n' + "".join(f'1,"{key}",x\n' for key in keys[:7]))
    chosen, _ = choose(folder, "--for=train", "--strategy=random", "--num=9999", f"--verified={folder}/labels.csv")
    assert {key for key, _, _ in chosen} == set(keys[7:])


def test_a_key_that_comes_twice_is_chosen_once(folder):
    path = folder / "data" / "all_keys.txt"
    keys = path.read_text().splitlines()
    path.write_text("\n".join([*keys[:100], *keys[:111]]) + "\n")
    (folder / "data" / "all_checksums.json").unlink()
    chosen, _ = choose(folder, "--for=train", "--num=211")
    assert len(chosen) == len({key for key, _, _ in chosen}) == 111
