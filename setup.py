"""Everything is in pyproject.toml, but for the description on a package index: the README without
its picture, whose address is that of a file beside it."""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")

setup(
    long_description=re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n+", "", README),
    long_description_content_type="text/markdown",
)
