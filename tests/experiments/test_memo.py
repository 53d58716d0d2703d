"""What a study keeps when it is stopped."""

import math

import pytest

from entropy_optax.experiments import report
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.settings import SettingsError


def test_results_are_kept_exactly(tmp_path):
    path = tmp_path / "new" / "it.part"
    found = {"errors": [0.1 + 0.2, math.inf, 1 / 3], "label": "a"}
    assert Memo(path, ["basis"])("name", lambda: found) == found

    def never():
        raise AssertionError

    again = Memo(path, ["basis"])
    assert again("name", never) == found
    assert again("another", lambda: 1) == 1
    assert math.isnan(again("third", lambda: math.nan))
    assert math.isnan(Memo(path, ["basis"])("third", never))
    again.remove()
    assert not path.exists()
    again.remove()  # nothing was kept


def test_results_on_another_basis_are_not_taken(tmp_path, monkeypatch):
    path = tmp_path / "it.part"
    Memo(path, {"rate": (0.1, 0.2)})("name", lambda: 1)
    assert Memo(path, {"rate": (0.1, 0.2)})("name", lambda: 2) == 1
    with pytest.raises(
        SettingsError, match=r"it.part: holds results of other settings"
    ):
        Memo(path, {"rate": (0.1, 0.3)})
    monkeypatch.setattr(report, "versions", lambda: {"jax": "0"})
    with pytest.raises(SettingsError, match=r"or versions, remove it"):
        Memo(path, {"rate": (0.1, 0.2)})


def test_a_failure_keeps_what_was_before(tmp_path):
    path = tmp_path / "it.part"
    memo = Memo(path, 0)
    memo("first", lambda: 1)
    with pytest.raises(ZeroDivisionError):
        memo("second", lambda: 1 / 0)
    again = Memo(path, 0)
    assert again("first", lambda: 2) == 1
    assert again("second", lambda: 2) == 2
