"""Profiles of a chapter, as a person sets them by hand."""

import pytest

from cdelta import profiles

SETTINGS = {"smoke": {"n": 1}, "book": {"n": 2}, "paper": {"n": 3}}


def test_each_profile_has_its_settings():
    assert [profiles.choose(name, SETTINGS)["n"] for name in profiles.NAMES] == [1, 2, 3]


def test_an_unknown_profile_is_refused_by_name():
    with pytest.raises(ValueError, match="profile must be one of smoke, book, paper, got 'bok'"):
        profiles.choose("bok", SETTINGS)
    with pytest.raises(ValueError, match=r"settings must be those of .*, got \['smoke'\]"):
        profiles.choose("smoke", {"smoke": {}})
    for name in profiles.NAMES:  # whichever is asked for
        with pytest.raises(ValueError, match="the profile book lacks m, n"):
            profiles.choose(name, {"smoke": {"n": 1, "m": 2}, "book": {}, "paper": {"n": 3}})
