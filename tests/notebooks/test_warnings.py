"""Chapter 19 shows every warning that a report can give."""

import ast
import re

from tests import ROOT

CHAPTER = (ROOT / "notebooks" / "19_your_own_flow.md").read_text("utf-8")
REPORTING = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "cdelta").glob("*.py")))


def warnings(source):
    """What findings are about that can be warnings; and the one that says a budget was missed."""
    kinds = {"budget"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding":
            if any(keyword.arg == "warning" for keyword in node.keywords):
                kinds.add(ast.literal_eval(node.args[1]))
    return kinds


def shown(chapter):
    lists = re.findall(r"^said\(\[(.*?)\]", chapter, re.M)
    return {kind for one in lists for kind in re.findall(r'"(\w+)"', one)}


def test_every_warning_has_its_example():
    assert shown(CHAPTER) == warnings(REPORTING)
    assert len(warnings(REPORTING)) > 10


def test_a_warning_without_an_example_is_noticed():
    new = 'Finding("It hums.", "hum", warning=loud)'
    assert warnings(f"{REPORTING}\n{new}\n") - shown(CHAPTER) == {"hum"}
    assert warnings(REPORTING) - shown(CHAPTER.replace('"degenerate"', "")) == {"degenerate"}
