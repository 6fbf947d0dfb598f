"""The book's style, and the pages that a test displays."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest

from cdelta import figures
from cdelta.figures import page


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        figures.use()
        yield
        plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """The HTML of every figure displayed in the test."""
    pages = []
    monkeypatch.setattr(page, "display", lambda bundle, raw: pages.append(bundle["text/html"]))
    return pages
