"""Writes the README's tables of flags from the scripts' own definitions, between the marks for them.

    python tests/readme_flags.py
"""
import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BEGIN, END = "<!-- flags -->\n", "<!-- end of flags -->\n"


def script_paths():
    """Every script that defines flags, in the README's order."""
    paths = [ROOT / "train.py", ROOT / "inference.py", *sorted((ROOT / "util").glob("*.py"))]
    return [path for path in paths if flags_of(path)]


def flags_of(path):
    """The flags that a script defines: list of (name, default as text, help)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_"):
            kind, values = node.func.attr, [_value(argument) for argument in node.args]
            name, default, text = values[0], values[1], values[3] if kind == "DEFINE_enum" else values[2]
            if kind == "DEFINE_enum":
                text += f" One of {', '.join(values[2])}."
            found.append((name, _shown(default), text))
    return found


def _shown(default):
    if default is None or isinstance(default, bool):
        return {None: "", True: "true", False: "false"}[default]
    return f"{default:g}" if isinstance(default, float) else str(default)


def _value(node):
    """What an argument is: a literal, or made of the constants of score_files; another name stays as it is written."""
    text = ast.unparse(node)
    try:
        return eval(text, {"score_files": score_files})
    except NameError:
        return text


def tables():
    """The Markdown of all tables."""
    text = ""
    for path in script_paths():
        text += f"\n**{path.relative_to(ROOT)}**\n\n| flag | default | |\n|---|---|---|\n"
        for name, default, meaning in flags_of(path):
            meaning = meaning.replace("|x|", "‖x‖").replace("|W|", "‖W‖").replace("|", "\\|").replace("<", "&lt;")
            text += f"| `--{name}` | {f'`{default}`' if default else ''} | {meaning} |\n"
    return text + "\n"


def main():
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[-1]
    path.write_text(before + BEGIN + tables() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
