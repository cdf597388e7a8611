"""The README and docs/ say what is: every flag is in them, their commands run as printed, and their links lead somewhere."""
import json
import os
import re
import shutil
import subprocess
import sys

import flag_tables
import pytest
from conftest import ROOT, run_script

# The pages in the order in which their commands run.
ORDER = (
    "README", "choosing", "formats", "notebook", "method", "classifier", "deciding", "images", "verifying", "devices", "results",
    "experiments", "speed", "flags",
)
PAGES = {name: ROOT / (f"{name}.md" if name == "README" else f"docs/{name}.md") for name in ORDER}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
# Reasons for which a block of commands is not run here.
EXEMPT = {
    "make", "installing", "GPU", "fetches weights", "needs a model of yours", "needs Food-101N", "needs Clothing1M", "several machines",
    "Beam", "needs FiftyOne", "takes minutes", "takes hours", "needs data of your own", "opens a page",
}


def shell_blocks(text):
    """(reason not to run or None, commands) of every block of shell commands."""
    return re.findall(r"(?:<!-- not run: (.*?) -->\n)?```sh\n(.*?)```", text, flags=re.S)


def prose_of(text):
    """The sentences of a page, without code, tables, headings and pictures."""
    text = re.sub(r"```.*?```|<!--.*?-->", "\n\n", text, flags=re.S)
    text = re.sub(r"^(#|\||!\[).*$", "", text, flags=re.M)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    sentences = [s for paragraph in paragraphs for s in re.split(r"(?<=[.!?:])\s+", " ".join(paragraph.split()))]
    return [sentence for sentence in sentences if len(sentence.split()) > 2]


def test_every_page_is_tested():
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == {path.name for path in PAGES.values()} - {"README.md"}


def test_the_front_page_is_short():
    assert len(TEXTS["README"].encode()) <= 14000
    assert TEXTS["README"].count("\n") <= 240


@pytest.mark.parametrize("page", [name for name in ORDER if name != "flags"])
def test_sentences_are_short(page):
    lengths = [len(sentence.split()) for sentence in prose_of(TEXTS[page])]
    assert len(lengths) > 10
    assert sum(lengths) / len(lengths) <= 15


@pytest.mark.parametrize("page", ORDER)
def test_links_and_pictures_resolve(page):
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[page]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_the_page_of_flags_is_that_of_the_commands():
    assert TEXTS["flags"] == flag_tables.page(), "run python tests/flag_tables.py"


def known_flags():
    return {name for path in flag_tables.command_paths() for name, _, _ in flag_tables.flags_of(path)}


@pytest.mark.parametrize("page", ORDER)
def test_every_flag_that_is_named_exists(page):
    # absl's own, a placeholder, TensorBoard's and Beam's.
    others = {"help", "name", "flagfile", "logdir", "runner", "direct_num_workers", "direct_running_mode"}
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z_]+)", TEXTS[page]))
    assert named <= known_flags() | others, named - known_flags()


def test_recommended_flags_exist():
    named = re.findall(r"^--(\w+)=", (ROOT / "recommended.flags").read_text(), flags=re.M)
    assert len(named) == 11
    assert set(named) <= {name for name, _, _ in flag_tables.flags_of(ROOT / "train.py")}


@pytest.mark.parametrize("path", flag_tables.command_paths(), ids=lambda path: path.name)
def test_help_lists_the_flags_of_the_page_from_any_folder(path, tmp_path):
    done = run_script(path.relative_to(ROOT), "--help", cwd=tmp_path, check=False)
    listed = set(re.findall(r"^  --(?:\[no\])?([a-z_]+)", done.stdout, flags=re.M))
    assert listed == {name for name, _, _ in flag_tables.flags_of(path)}


def test_blocks_that_are_not_run_are_known():
    assert {reason for text in TEXTS.values() for reason, _ in shell_blocks(text) if reason} == EXEMPT


def test_commands_run_as_printed(tmp_path):
    """All pages in turn, in one folder: what a reader would do."""
    for name in ("train.py", "inference.py", "model.py", "data_loader.py", "recommended.flags"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "util", tmp_path / "util", ignore=shutil.ignore_patterns("__pycache__"))
    commands = "".join(block for text in TEXTS.values() for reason, block in shell_blocks(text) if not reason)
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "runs" / "pred.txt").read_text().splitlines()) == 1797
    for line in ("24.7 % mislabeled", "data/ref.npy: 16 references of 64 numbers for each of 10 classes", "held-out classes at 0."):
        assert line in done.stdout
    methods = json.loads((tmp_path / "runs" / "comparison" / "comparison.json").read_text())["methods"]
    recommended = methods["CleanNet digits (probability)"]["all"]
    assert recommended["chosen"]["average_error_rate"] < 0.04  # trusting every label: 0.24
    assert recommended["auroc"] > 0.99
