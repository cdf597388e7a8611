"""Reads JSON that the suite wrote earlier and that may have been altered since: its shape is checked before it is used."""
import json
import math

from util.lib import paths
from util.lib.errors import UserError

LARGEST = 64 << 20  # bytes


class Optional:
    """A part of a schema that may be missing or null: read it with get()."""

    def __init__(self, schema):
        self.schema = schema


class Each:
    """An object with any keys, whose values all have one schema."""

    def __init__(self, schema):
        self.schema = schema


def load(path, what, schema, remedy):
    """Reads a JSON file.

    Args:
        path: of the file. what: what it holds, for messages. schema: of check(). remedy: what the user can do about a bad one.

    Returns:
        The value, of the shape that the schema says.
    """
    with paths.open_input(path, what) as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise UserError(f"{path}: is larger than {LARGEST >> 20} MB, expected {what}; {remedy}")
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({str(error)[:100]}), expected {what} as JSON; {remedy}") from None
    why = check(value, schema)
    if why:
        raise UserError(f"{path}: {why}, expected {what}; {remedy}")
    return value


def check(value, schema, name="it"):
    """What is wrong with a value, in words, or None.

    Args:
        schema: {key: schema} for an object that has these keys, Each(schema), [schema] for a list of such, a function that a value must
            satisfy, or Optional(schema). name: of the value, for the answer.
    """
    if isinstance(schema, Optional):
        return None if value is None else check(value, schema.schema, name)
    if isinstance(schema, Each):
        return check(value, dict.fromkeys(value, schema.schema) if isinstance(value, dict) else {}, name)
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return f"{name} is {_shown(value)} and no JSON object"
        for key, part in schema.items():
            if key not in value and not isinstance(part, Optional):
                return f"{name} has no {key}"
            why = check(value.get(key), part, key)
            if why:
                return why
        return None
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{name} is {_shown(value)} and no JSON list"
        return next(filter(None, (check(item, schema[0], f"an item of {name}") for item in value)), None)
    return None if schema(value) else f"{name} is {_shown(value)}, which it cannot be"


def _shown(value):
    return repr(value)[:60]


def is_number_or_null(value):
    """Whether a value is a finite number, or null."""
    return value is None or is_number(value)


def is_number(value):
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)


def is_count(value):
    """Whether a value is a whole number from 0 on that fits an int32."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def is_text(value):
    """Whether a value is a str."""
    return isinstance(value, str)


def one_of(*values):
    """A schema for one of some values."""
    return lambda value: isinstance(value, type(values[0])) and value in values
