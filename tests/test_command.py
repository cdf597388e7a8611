"""util/lib/command.py: flags that were given, and a script's own ones (how commands end: test_bad_input.py)."""
import pytest
from absl import flags

from util.lib import command

pytestmark = pytest.mark.check


@pytest.fixture
def flag_values():
    """Two flags of this module, of which one is given, with its default; and one of another module."""
    values = flags.FlagValues()
    flags.DEFINE_integer("img_dim", 2048, "", flag_values=values)
    flags.DEFINE_float("rate", 0.5, "", flag_values=values)
    flags.DEFINE_integer("foreign", 3, "", flag_values=values, module_name="elsewhere")
    values(["test_command", "--img_dim=2048", "--foreign=4"])
    return values


def test_a_flag_is_given_even_with_its_default(flag_values):
    assert command.given(flag_values, "img_dim") == 2048
    assert command.given(flag_values, "rate") is None


def test_a_scripts_own_flags_are_all_that_it_defines(flag_values, monkeypatch):
    monkeypatch.setattr("sys.argv", [__name__])
    assert command.own_flags(flag_values) == {"img_dim": 2048, "rate": 0.5}
