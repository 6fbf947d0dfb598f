"""The API page's lists by task: every name that is public, each a name that there is."""

import functools
import importlib
import inspect
import re

import pytest

from tests import ROOT
from tests.test_contract import ATTRIBUTES, LINES, found

PAGE = (ROOT / "book" / "api.md").read_text("utf-8")
LISTS, REFERENCE = re.search(r"^## By task$(.*?)^(## Theory$.*)", PAGE, re.S | re.M).groups()
ROLE = re.compile(r"\{(?:func|class|meth)\}`(cdelta\.[\w.]+)`")


def listed(text):
    return set(ROLE.findall(text))


@functools.cache
def documented():
    """What the reference shows: of each module its members, or those that are named."""
    names = {}
    for kind, path, options in re.findall(
        r"^\.\. auto(\w+):: (cdelta[\w.]*)\n((?:   .*\n)*)", REFERENCE, re.M
    ):
        if kind != "module":
            names[path] = found(path)
            continue
        module = importlib.import_module(path)
        chosen = re.search(r":members: (.+(?:\n {13}.+)*)", options)
        public = (
            re.split(r",\s*", chosen[1].strip()) if chosen else getattr(module, "__all__", None)
        )
        for name, value in vars(module).items():
            own = getattr(value, "__module__", "").startswith(path)
            if name in public if public else own and not name.startswith("_"):
                names[f"{path}.{name}"] = value
    return {path: value for path, value in names.items() if callable(value)}


def targets(paths):
    """The objects, whatever they are called: cdelta.Flow is cdelta.flow.Flow."""
    return {id(inspect.unwrap(found(path))) for path in paths}


CONTRACT = [*(line.partition("(")[0] for line in LINES), *ATTRIBUTES]


@pytest.mark.parametrize("path", dict.fromkeys(CONTRACT))
def test_every_name_that_others_call_is_in_a_list(path):
    assert path in listed(LISTS)


def test_everything_that_the_reference_shows_is_in_a_list():
    known = targets(listed(LISTS))
    shown = documented()
    missing = [path for path, value in shown.items() if id(inspect.unwrap(value)) not in known]
    assert missing == [] and len(shown) > 100


def test_lists_name_what_there_is():
    for path in listed(LISTS):
        assert callable(found(path)), path


def test_a_name_that_is_gone_or_not_listed_is_noticed():
    assert listed("{func}`cdelta.jacobian.rows`, `cdelta.jacobian.jvp`") == {"cdelta.jacobian.rows"}
    with pytest.raises(AttributeError):
        found("cdelta.jacobian.columns")
    without = LISTS.replace("{func}`cdelta.jacobian.reach`", "")
    shown = documented()["cdelta.jacobian.reach"]
    assert id(inspect.unwrap(shown)) not in targets(
        path for path in listed(without) if path.startswith("cdelta.jacobian")
    )
