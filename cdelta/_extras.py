"""Packages that only an extra installs."""

import importlib
from types import ModuleType


def optional(name: str, extra: str = "data") -> ModuleType:
    """The module ``name``, which cdelta needs only for some of what it does.

    Raises ImportError saying which extra installs its package.
    """
    package = name.split(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{package} is needed for this, install it with: pip install "cdelta[{extra}]"'
        ) from error
