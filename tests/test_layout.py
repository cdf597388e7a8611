"""The shape of the repository: commands apart from what they share, short functions, and words that mean one thing."""
import ast
import re

import flag_tables
import pytest
from conftest import ROOT

pytestmark = pytest.mark.check

COMMANDS = flag_tables.command_paths()
SHARED = sorted(path for path in (ROOT / "util" / "lib").glob("*.py") if path.name != "__init__.py")
CORE = [ROOT / "model.py", ROOT / "data_loader.py"]
PRODUCT = [*CORE, *COMMANDS, *SHARED]
OWN_REASON = "A module of its own because"  # what the docstring of a module with a single user begins its reason with


def source(path):
    return path.read_text(encoding="utf-8")


def imports_of(path):
    """The modules of util/lib that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(source(path))):
        if isinstance(node, ast.ImportFrom) and node.module == "util.lib":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("util.lib."):
            names.add(node.module.rpartition(".")[2])
    return names


def functions_of(path):
    return [node for node in ast.walk(ast.parse(source(path))) if isinstance(node, ast.FunctionDef)]


def test_the_files_are_found():
    assert len(COMMANDS) > 10
    assert len(SHARED) > 15


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_a_command_runs_and_defines_flags(path):
    assert flag_tables.flags_of(path)
    assert 'if __name__ == "__main__":\n    command.run(main' in source(path)


@pytest.mark.parametrize("path", SHARED, ids=lambda path: path.name)
def test_a_shared_module_is_never_run_and_has_users(path):
    assert "__main__" not in source(path).replace('    if __name__ == "__main__":\n        command.run(main)', "")  # of a docstring
    assert not flag_tables.flags_of(path)
    users = [user for user in PRODUCT if user != path and path.stem in imports_of(user)]
    assert users, "nothing imports it"
    assert len(users) > 1 or OWN_REASON in ast.get_docstring(ast.parse(source(path))).replace("\n", " ")


def test_imports_flow_one_way():
    """No shared module reaches itself through its imports, and none imports a command."""
    reach = {path.stem: imports_of(path) for path in SHARED}
    for _ in reach:
        reach = {name: found | {far for near in found for far in reach.get(near, ())} for name, found in reach.items()}
    assert not [name for name, found in reach.items() if name in found]


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: path.name)
def test_functions_are_short_and_take_few_arguments(path):
    for node in functions_of(path):
        assert node.end_lineno - node.lineno < 60, node.name
        arguments = [argument.arg for argument in node.args.posonlyargs + node.args.args]
        assert len([name for name in arguments if name not in ("self", "cls")]) <= 7, node.name
        assert node.name == "main" or "opt" not in arguments, f"{node.name}: flags are read in main"


def test_train_reads_as_a_story():
    assert source(ROOT / "train.py").count("\n") <= 250
    (main,) = [node for node in functions_of(ROOT / "train.py") if node.name == "main"]
    assert main.end_lineno - main.lineno < 45


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: path.name)
def test_public_functions_are_documented(path):
    tree = ast.parse(source(path))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "main" and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


# Words that the glossary of docs/method.md has another one for, and turns that are not English.
BANNED = (
    "SPEC.md", "taken up", "in one go", "again and again", "one's own", "at once to know", "see above", r"\b1 classes", "a class has it",
    r"rows a class", r"rows a step(?! gets)", r"one a line", r"name a line", r"numbers a feature", r"references a class", r"one a core",
)


@pytest.mark.parametrize("path", [*PRODUCT, *(ROOT / "docs").glob("*.md"), ROOT / "README.md"], ids=lambda path: path.name)
def test_words(path):
    text = " ".join(source(path).split())
    assert not [word for word in BANNED if re.search(word, text)]
