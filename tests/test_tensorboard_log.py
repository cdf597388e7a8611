"""util/lib/tensorboard_log.py: what a training leaves for TensorBoard, read back, and shown by TensorBoard itself."""
import json
import subprocess
import sys
import urllib.request

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_summaries(trained_dir):
    """The scalars of both splits, at every step that they are due."""
    found = {}
    for split in ("train", "val"):
        events = EventAccumulator(str(trained_dir / "log" / split), size_guidance={"tensors": 0}).Reload()
        found |= {(split, tag): [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    losses = [f"loss/{term}" for term in ("total", "supervised", "unsupervised", "reconstruction", "weight_penalty")]
    for tag in (*losses, "accuracy", "learning_rate", "examples_per_second"):
        assert found["train", tag] == list(range(5, 61, 5)), tag
    assert found["val", "accuracy"] == [20, 40, 60]


@pytest.mark.slow
def test_tensorboard_shows_both_splits(digits):
    """TensorBoard itself, on the log folder, asked through its HTTP API."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", f"--logdir={digits}/log", "--port=0", "--host=127.0.0.1"],
        stderr=subprocess.PIPE, text=True,
    )
    try:
        address = next(line.split("at ")[1].split()[0] for line in process.stderr if "http://" in line)
        tags = json.load(urllib.request.urlopen(address + "data/plugin/scalars/tags"))
        while not {"train", "val"} <= tags.keys():  # it loads while it serves
            tags = json.load(urllib.request.urlopen(address + "data/plugin/scalars/tags"))
        assert {"accuracy", "loss/supervised"} <= tags["train"].keys() & tags["val"].keys()
        points = json.load(urllib.request.urlopen(address + "data/plugin/scalars/scalars?run=val&tag=accuracy"))
        assert [step for _, step, _ in points] == [1000, 2000, 3000]
        histograms = json.load(urllib.request.urlopen(address + "data/plugin/histograms/tags"))
        assert {"cosine/correct", "cosine/mislabeled"} <= histograms["val"].keys()
        runs = json.load(urllib.request.urlopen(address + "data/plugin/projector/runs"))
        assert any("val" in run for run in runs)
    finally:
        process.kill()
        process.wait()
