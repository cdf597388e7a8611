"""A run whose files have a flipped bit: inference says so in one line, or its scores are those of the unharmed run.

    pytest -s tests/test_bit_flips.py -m slow     # prints the table
"""
import collections
import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from commands import run_command
from conftest import run_script, train_arguments

# STEP: the folder of the best checkpoint. class_embeddings.npy belongs to a run that embeds classes by their rows.
KINDS = (
    "run.json", "best.json", "STEP/state.json", "classes.txt", "ref.npy", "validation.jsonl", "STEP/ckpt.index",
    "STEP/ckpt.data-00000-of-00001", "STEP/class_embeddings.npy", "STEP/val_scores.npy",
)
OUTCOMES = ("detected", "harmless", "silently wrong", "another end")


@pytest.fixture(scope="module")
def runs(sample_dir, trained_dir, tmp_path_factory):
    """Two run folders: classes embedded by references, and by rows. Returns {whether by rows: (run folder, scores)}."""
    folder = tmp_path_factory.mktemp("rows")
    arguments = train_arguments(sample_dir / "data", folder, class_embedding="rows", n_step=20)
    run_script("train.py", *arguments)
    found = {False: trained_dir / "run", True: folder / "run"}
    return {by_rows: (run, score(run, sample_dir, folder / f"{by_rows}.tsv")[1]) for by_rows, run in found.items()}


def score(run, sample_dir, output):
    """Scores rows by the best checkpoint at its own threshold. Returns the finished process and the table, or None."""
    done = run_command(
        "inference.py", f"--checkpoint_dir={run}", f"--image_feature_list={sample_dir}/all.tsv",
        f"--output_file={output}", "--output_format=tsv", "--val_sim_thres=auto", "--num_samples=20",
    )
    return done, output.read_bytes() if output.exists() else None


def flip(path, place):
    """Flips the bit of a file that is at a place from 0 to 1, a share of the file."""
    data = bytearray(path.read_bytes())
    bit = int(place * len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit}"


def outcome(kind, place, runs, sample_dir, folder):
    """Flips a bit in a copy of a run and scores. Returns (one of OUTCOMES, what happened in words)."""
    run, expected = runs["class_embeddings" in kind]
    shutil.copytree(run, folder / "run")
    steps = {path.name for path in run.glob("step-*")}
    best = next(step for step in steps if f'"step": {int(step[5:])},' in (run / "best.json").read_text())
    where = flip(folder / "run" / kind.replace("STEP", best), place)
    done, scores = score(folder / "run", sample_dir, folder / "scores.tsv")
    shutil.rmtree(folder / "run")
    words = f"{kind}, {where}: exit code {done.returncode}: {done.stderr[-300:]}"
    lines = [line for line in done.stderr.splitlines() if "warning: " not in line]
    if done.returncode:
        told = len(lines) == 1 and lines[0].startswith("inference.py: error: ")
        return "detected" if told and done.returncode == 1 and scores is None else "another end", words
    return "harmless" if scores == expected and not lines else "silently wrong", words


def flip_bits(count, seed, runs, sample_dir, tmp_path):
    """Flips `count` bits in each kind of file, one per run, and prints the table. Returns what went wrong, in words."""
    rng, table, wrong = random.Random(seed), collections.Counter(), []
    flips = [(kind, rng.random()) for kind in KINDS for _ in range(count)]

    def one(numbered):
        number, (kind, place) = numbered
        folder = tmp_path / str(number)
        folder.mkdir()
        return kind, *outcome(kind, place, runs, sample_dir, folder)

    with ThreadPoolExecutor(2) as pool:
        for kind, found, words in pool.map(one, enumerate(flips)):
            table[kind, found] += 1
            wrong += [words] if found in OUTCOMES[2:] else []
    print(f"\n| file | flips | {' | '.join(OUTCOMES)} |\n|---|---|{'---|' * len(OUTCOMES)}")
    for kind in KINDS:
        print(f"| {kind} | {count} | {' | '.join(str(table[kind, found]) for found in OUTCOMES)} |")
    return wrong


@pytest.mark.parametrize("count", [5, pytest.param(23, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_detected_or_harmless(runs, sample_dir, tmp_path, count):
    """Nothing that a run keeps can be damaged by one bit so that other scores come out."""
    wrong = flip_bits(count, 16 + count, runs, sample_dir, tmp_path)
    assert not wrong, "\n".join(wrong)
