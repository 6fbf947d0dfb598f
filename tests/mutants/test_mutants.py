"""The kept errors can still be planted, and their tests are there."""

import pytest

from tests import ROOT
from tests.mutants import Mutant, modules, mutants, sample


@pytest.mark.parametrize("module", modules())
def test_every_error_applies_to_the_present_source_and_names_tests_that_are_there(module):
    """The text that an error replaces occurs once. Where the source has changed: write the error
    anew, and see it caught (``make mutants NAMES=...``)."""
    kept = mutants([module])
    assert len({mutant.new for mutant in kept}) > 1
    for mutant in kept:
        if mutant.module != module:  # datasets.faces is looked at as itself
            continue
        source = (ROOT / mutant.path).read_text("utf-8")
        compile(mutant.planted(source), mutant.path, "exec")
        assert mutant.breaks and mutant.tests
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / file).read_text("utf-8")


def test_an_error_that_does_not_apply_is_named():
    mutant = Mutant("linear", "nothing", "eye", "ones", ("test_linear.py",))
    assert mutant.planted("jnp.eye(3)") == "jnp.ones(3)"
    for source in ("jnp.zeros(3)", "jnp.eye(3) + jnp.eye(2)"):
        with pytest.raises(ValueError, match=r"linear\.py: the error 'nothing' cannot be planted"):
            mutant.planted(source)


def test_errors_are_chosen_by_module_and_a_sample_is_always_the_same():
    assert {mutant.module for mutant in mutants(["causal", "flow"])} > {"causal.effects", "flow"}
    with pytest.raises(ValueError, match="no errors are kept of flows"):
        mutants(["flows"])
    kept = mutants()
    some = sample(kept, 6)
    assert len(some) == 6 and some == sample(kept, 6) and all(mutant.quick for mutant in some)
    assert len({mutant.module for mutant in some}) > 2
