"""The profiles of a chapter: how much it computes, from a test to the paper's own settings."""

from collections.abc import Mapping
from typing import Any

NAMES = ("smoke", "book", "paper")


def choose(profile: str, settings: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The settings of one profile: "smoke" (seconds, for tests), "book" (what the pages show, on a
    laptop) or "paper" (the paper's own, on a GPU).

    Raises ValueError when the profile is none of them, or ``settings`` has not exactly those three.
    """
    if set(settings) != set(NAMES):
        raise ValueError(f"settings must be those of {', '.join(NAMES)}, got {list(settings)}")
    if profile not in NAMES:
        raise ValueError(f"profile must be one of {', '.join(NAMES)}, got {profile!r}")
    return settings[profile]
