"""The README says what is: every flag is in it, and its commands run as printed."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import readme_flags
from conftest import ROOT, run_script

README = (ROOT / "README.md").read_text(encoding="utf-8")
# Reasons for which a block of commands is not run here.
EXEMPT = {"make", "installing", "GPU", "fetches weights", "needs a model of yours", "needs Food-101N", "several machines", "Beam"}


def shell_blocks():
    """(reason not to run or None, commands) of every block of shell commands."""
    return re.findall(r"(?:<!-- not run: (.*?) -->\n)?```sh\n(.*?)```", README, flags=re.S)


def test_tables_of_flags_are_those_of_the_scripts():
    table = README.split(readme_flags.BEGIN)[1].split(readme_flags.END)[0]
    assert table == readme_flags.tables(), "run python tests/readme_flags.py"


def test_every_flag_that_the_readme_names_exists():
    known = {name for path in readme_flags.script_paths() for name, _, _ in readme_flags.flags_of(path)}
    known |= {"help", "name", "logdir", "runner", "direct_num_workers", "direct_running_mode"}  # absl, a placeholder, TensorBoard, Beam
    named = set(re.findall(r"--([a-z][a-z_]+)", README))
    assert named <= known, named - known


@pytest.mark.parametrize("path", readme_flags.script_paths(), ids=lambda path: path.name)
def test_help_lists_the_flags_that_the_tables_were_made_from(path):
    done = run_script(path.relative_to(ROOT), "--help", check=False)
    listed = set(re.findall(r"^  --(?:\[no\])?([a-z_]+)", done.stdout, flags=re.M))
    assert listed == {name for name, _, _ in readme_flags.flags_of(path)}


def test_blocks_that_are_not_run_are_known():
    assert {reason for reason, _ in shell_blocks() if reason} == EXEMPT


def test_commands_run_as_printed(tmp_path):
    for name in ("train.py", "inference.py", "model.py", "data_loader.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "util", tmp_path / "util", ignore=shutil.ignore_patterns("__pycache__"))
    commands = "".join(block for reason, block in shell_blocks() if not reason)
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "runs" / "pred.txt").read_text().splitlines()) == 1797
    for line in ("24.7 % mislabeled", "data/ref.npy: 16 references of 64 numbers for each of 10 classes", "held-out classes at 0."):
        assert line in done.stdout
    methods = json.loads((tmp_path / "runs" / "comparison" / "comparison.json").read_text())["methods"]
    recommended = methods["CleanNet recommended (probability)"]["all"]
    assert recommended["error"] < 4 and recommended["auroc"] > 0.99  # 24 and 0.5 for trusting every label
