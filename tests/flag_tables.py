"""Writes docs/flags.md from the flags that the commands define.

    python tests/flag_tables.py
"""
import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from util.lib import arrays, other_methods, score_table

PAGE = ROOT / "docs" / "flags.md"
HEAD = """# Flags

Written `--name=value` or `--name value`; `--help` lists them. `--flagfile=PATH` reads flags from a file, one per line.
Made by `python tests/flag_tables.py` from the commands' own definitions.
"""


def command_paths():
    """Every command, in the order of the page."""
    paths = sorted(path for path in (ROOT / "util").glob("*.py") if path.name != "__init__.py")
    assert paths, "util/ holds no commands"
    return [ROOT / "train.py", ROOT / "inference.py", *paths]


def flags_of(path):
    """The flags that a command defines: list of (name, default as text or `required`, help)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_"):
            kind, values = node.func.attr, [_value(argument) for argument in node.args]
            name, default, text = values[0], values[1], values[3] if kind == "DEFINE_enum" else values[2]
            if kind == "DEFINE_enum":
                assert not isinstance(values[2], str), f"{path}: the values of {name} are made of what _value does not know"
                text += f" One of {', '.join(values[2])}."
            required = any(keyword.arg == "required" for keyword in node.keywords)
            found.append((name, "required" if required else _shown(default), text))
    return found


def _shown(default):
    if default is None or isinstance(default, bool):
        return {None: "", True: "true", False: "false"}[default]
    return f"{default:g}" if isinstance(default, float) else str(default)


def _value(node):
    """The value of an argument: a literal, or made of the constants of a module; any other name stays as it is written."""
    text = ast.unparse(node)
    try:
        return eval(text, {"arrays": arrays, "score_table": score_table, "other_methods": other_methods})
    except NameError:
        return text


def page():
    """The Markdown of the whole page."""
    text = HEAD
    for path in command_paths():
        text += f"\n## {path.relative_to(ROOT)}\n\n| flag | default | |\n|---|---|---|\n"
        for name, default, meaning in flags_of(path):
            meaning = meaning.replace("|x|", "‖x‖").replace("|W|", "‖W‖").replace("|", "\\|").replace("<", "&lt;")
            shown = f"`{default}`" if default and default != "required" else default
            text += f"| `--{name}` | {shown} | {meaning} |\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
