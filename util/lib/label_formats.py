"""Decisions in formats of others: Label Studio's JSON tasks and a table with commas and a header (docs/formats.md).

A module of its own because these formats change with other people's programs, and the decisions file does not.
"""
import csv

from util.lib import atomic, class_list, csv_rows, decisions, json_file
from util.lib.errors import UserError, counted

CHOICES = {decisions.CORRECT: "correct", decisions.MISLABELED: "mislabeled", decisions.UNCLEAR: "unclear"}
LABELS = {choice: label for label, choice in CHOICES.items()}
TIME = "1970-01-01T00:00:00Z"  # of a decision that came without one
AUTHOR = "imported"
TASK = {
    "data": {"image": json_file.is_text, "class": json_file.is_text},
    "annotations": json_file.Optional([{
        **{name: json_file.Optional(json_file.is_text) for name in ("created_username", "created_at", "updated_at")},
        "result": [{"from_name": json_file.is_text, "value": lambda value: isinstance(value, dict)}],
    }]),
}
REMEDY = "docs/formats.md shows its form"


def check_name(path):
    """Raises UserError unless the suffix names one of the formats."""
    if not path.endswith((".json", ".csv")):
        raise UserError(f"{path}: expected a name that ends in .json (Label Studio's tasks) or .csv (a table with a header)")


def write(path, tally, rows=()):
    """Writes the last decision of each author on each row, and the rows that nobody has decided.

    Args:
        path: ends in .json or .csv. tally: decisions.Tally. rows: iterable of (key, class name), written first, decided or not.
    """
    rows = dict.fromkeys([*rows, *tally.standing])
    decided = {row: [own[-1] for own in tally.standing.get(row, {}).values()] for row in rows}
    if path.endswith(".json"):
        atomic.write_json(path, [_task(*row, found) for row, found in decided.items()])
        return
    lines = [line for row, found in decided.items() for line in found or [(*row, "", "", "", "")]]
    atomic.write_text(path, csv_rows.to_text(path, [decisions.COLUMNS, *lines]))


def _task(key, class_name, found):
    """A task of Label Studio. found: list of Decision on the row."""
    annotations = []
    for decision in found:
        result = [_result("label", "choices", CHOICES[decision.label])]
        if decision.right_class:
            result.append(_result("right_class", "text", decision.right_class))
        annotations.append({"created_username": decision.author, "created_at": decision.time, "result": result})
    return {"data": {"image": key, "class": class_name}, "annotations": annotations}


def _result(name, kind, value):
    return {"from_name": name, "to_name": "image", "type": "textarea" if kind == "text" else kind, "value": {kind: [value]}}


def read(path):
    """Reads what write() wrote, or Label Studio exported. Returns a list of Decision; rows that nobody has decided are left out."""
    number, found = 0, []
    for number, decision in _read_tasks(path) if path.endswith(".json") else _read_table(path):
        why = decisions.why_not(decision)
        if decision.label == decisions.UNDO:
            why = f'label "{decision.label}", expected 1 (correct), 0 (mislabeled) or -1 (unclear)'
        if why:
            raise UserError(f"{path}:{number}: {why}; {REMEDY}")
        found.append(decision)
    if not found:
        raise UserError(f"{path}: holds no decisions; {REMEDY}")
    return found


def _read_table(path):
    """Yields (line number, Decision) of a .csv."""
    lines = csv.reader(class_list.read_lines(path, "table of decisions"), strict=True)
    try:
        header = next(lines, [])
        missing = [name for name in decisions.COLUMNS[:3] if name not in header]
        if missing:
            raise UserError(f"{path}:1: no column {missing[0]} in the header, expected {', '.join(decisions.COLUMNS)}; {REMEDY}")
        for line in lines:
            if line and len(line) != len(header):
                raise UserError(f"{path}:{lines.line_num}: {counted(len(line), 'column')}, expected {len(header)}, as in the header")
            row = dict(zip(header, line))
            if row.get("label"):
                said = row["label"], row.get("author") or AUTHOR, row.get("time") or TIME, row.get("right class", "")
                yield lines.line_num, decisions.Decision(row["key"], row["class"], *said)
    except csv.Error as error:
        raise UserError(f"{path}:{lines.line_num}: {error}; {REMEDY}") from None


def _read_tasks(path):
    """Yields (number of the task, Decision) of a .json."""
    for number, task in enumerate(json_file.load(path, "tasks of Label Studio", [TASK], REMEDY), 1):
        for annotation in task.get("annotations") or ():
            values = {result["from_name"]: result["value"] for result in annotation["result"]}
            choice, right = (_first(values.get(name, {}), kind) for name, kind in (("label", "choices"), ("right_class", "text")))
            if choice is None or annotation.get("was_cancelled"):  # begun, or skipped
                continue
            time = (annotation.get("updated_at") or annotation.get("created_at") or TIME)[:19] + "Z"  # without parts of a second
            row = task["data"]["image"], task["data"]["class"]
            yield number, decisions.Decision(*row, LABELS.get(choice, choice), _author(annotation), time, right or "")


def _author(annotation):
    """Who decided: Label Studio exports a number for each person, or an object that has it."""
    user = annotation.get("completed_by")
    user = user.get("id") if isinstance(user, dict) else user
    return annotation.get("created_username") or (AUTHOR if user is None else f"user {user}")


def _first(value, kind):
    """The first text of a list in an object; None where there is none."""
    found = value.get(kind)
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, str) else None


def not_yet(imported, tally):
    """The Decisions that were never there.

    One without a time was there, and is new again, if it is the file's last one on a row and corrects an imported one that stands.
    """
    last = {(decision[:2], decision.author): decision for decision in imported}

    def corrects(decision):
        own = tally.standing.get(decision[:2], {}).get(decision.author)
        if decision.time != TIME or not own or decision != last[decision[:2], decision.author]:
            return False
        return own[-1].time == TIME and own[-1] != decision

    return [decision for decision in dict.fromkeys(imported) if decision not in tally.seen or corrects(decision)]
