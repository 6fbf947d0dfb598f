"""The tests of the path from source to page; ``book/`` holds scripts, which are imported from there."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))
