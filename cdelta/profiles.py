"""The profiles of a chapter: how much it computes, from a test to the paper's own settings."""

from collections.abc import Mapping
from typing import Any

NAMES = ("smoke", "book", "paper")


def choose(profile: str, settings: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The settings of one profile: "smoke" (seconds, for tests), "book" (what the pages show, on a
    laptop) or "paper" (the paper's own, on a GPU).

    Raises ValueError when the profile is none of them, ``settings`` has not exactly those three, or
    one of them lacks what another has: a run of the one would find out nothing of the other.
    """
    if set(settings) != set(NAMES):
        raise ValueError(f"settings must be those of {', '.join(NAMES)}, got {list(settings)}")
    if profile not in NAMES:
        raise ValueError(f"profile must be one of {', '.join(NAMES)}, got {profile!r}")
    every = set().union(*settings.values())
    for name in NAMES:
        if lacking := every - set(settings[name]):
            raise ValueError(f"the profile {name} lacks {', '.join(sorted(lacking))}")
    return settings[profile]
