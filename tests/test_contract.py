"""The names that users, chapters and other people's programs call: each is where it is said to be,
and takes these arguments under these names, in this order, with these defaults.

``CALLS`` holds one call a line, as somebody would write it: arguments by position first, then those
that must be accepted by name; a constant there is the default, ``...`` any value. A change that
this module catches breaks what others wrote, and belongs in a release with a new version.
"""

import ast
import dataclasses
import functools
import importlib
import inspect

import pytest

CALLS = """
cdelta.Gaussian(mean, cov)
cdelta.Gaussian.standard(d)
cdelta.Gaussian.sample(key, n)
cdelta.GaussianMixture(weights, means, covs)
cdelta.GaussianMixture.sample(key, n)
cdelta.Empirical(points, bandwidth=0.0)
cdelta.Empirical.sample(key, n)

cdelta.linear.conditional_mean(t, x, matrix)
cdelta.gaussian.conditional_mean(t, x, source, target)
cdelta.gaussian.velocity(t, x, source, target)
cdelta.gaussian.velocity_jacobian(t, source, target)
cdelta.gaussian.flow_map(t, x0, source, target)
cdelta.gaussian.flow_jacobian(t, source, target)
cdelta.gaussian.transport_map(t, x0, source, target)
cdelta.gaussian.transport_jacobian(t, source, target)
cdelta.mixture.log_density(t, x, source, target)
cdelta.mixture.responsibilities(t, x, source, target)
cdelta.mixture.responsibility_gradients(t, x, source, target)
cdelta.mixture.velocity(t, x, source, target)
cdelta.mixture.velocity_jacobian(t, x, source, target)
cdelta.mixture.component_jacobians(t, source, target)
cdelta.posterior.mean(t, x, source, target)
cdelta.posterior.cov(t, x, source, target)
cdelta.posterior.velocity(t, x, source, target)
cdelta.posterior.velocity_jacobian(t, x, source, target)
cdelta.posterior.velocity_jvp(t, x, tangent, source, target)

cdelta.Flow(velocity, solver="heun", steps=20, rtol=None)
cdelta.Flow.trajectory(x0, ts)
cdelta.Flow.inverse(x1)
cdelta.jacobian.finite_difference(f, x0, probe, eps)
cdelta.jacobian.jvp(f, x0, probe)
cdelta.jacobian.rows(f, x0)

cdelta.dependence.wiggle_moment(f, key, shape, samples, method="rows", eps=1e-3, names=None)
cdelta.dependence.feature_covariance(f, key, shape, samples, method="rows", names=None)
cdelta.dependence.covariance_bounds(f, key, shape, samples, method="rows", names=None)
cdelta.dependence.held_moment(f, key, shape, samples, held, weighting="inverse_norm", names=None)
cdelta.dependence.do_moment(f, key, shape, samples, index, parents, names=None)
cdelta.dependence.filtered_moment(differences, held, threshold, names=None)
cdelta.dependence.sample_moment(features, names=None)
cdelta.dependence.from_wiggles(wiggles, names=None)
cdelta.dependence.from_rows(rows, names=None)
cdelta.Moment.partial(k)
cdelta.Moment.select(indices)
cdelta.Moment.estimate(function)
cdelta.Moment.to_dataframe()
cdelta.Moment.plot()
cdelta.Moment.save(path)
cdelta.Moment.load(path)

cdelta.causal.LinearSCM(weights, noise)
cdelta.causal.LinearSCM.sample(key, n)
cdelta.causal.LinearSCM.do(index, value)
cdelta.causal.common_cause()
cdelta.causal.mediator()
cdelta.causal.collider()
cdelta.causal.published(name)
cdelta.causal.local_effects(rows, order)
cdelta.causal.effect(rows, k, parents)
cdelta.causal.frame_turn(f, key, shape, samples, order, names=None)
cdelta.causal.follow(f, x0, k, order, to=...)
cdelta.causal.steer(f, x0, targets)
cdelta.causal.CausalFlow(graph)
cdelta.causal.CausalFlow.fit(x, key)
cdelta.causal.CausalFlow.sample(key, n)
cdelta.causal.CausalFlow.do(index)
cdelta.causal.CausalFlow.counterfactual(x, index)
cdelta.causal.CausalFlow.noises(x)
cdelta.causal.CausalFlow.log_prob(x)
cdelta.causal.CausalFlow.save(path)
cdelta.causal.CausalFlow.load(path)
cdelta.causal.leaf_scores(velocity, x)
cdelta.causal.find_order(samples, key)

cdelta.adapters.batched(v)
cdelta.adapters.time_last(v)
cdelta.adapters.labelled(v, label, guidance=None, null=None)
cdelta.adapters.reversed_time(v)
cdelta.adapters.nchw(v)
cdelta.adapters.nhwc(v)
cdelta.adapters.from_epsilon(epsilon, schedule)
cdelta.adapters.from_x0(x0, schedule)
cdelta.adapters.from_score(score, schedule)
cdelta.adapters.from_denoiser(denoiser)
cdelta.torch.velocity(module)
cdelta.torch.features(module)
cdelta.torch.torch_map(f)

cdelta.report(f, key, shape, features=None, names=None, held=None, graph=None, budget=4096)
cdelta.Report.to_dataframe()
cdelta.Report.save(path)
cdelta.Report.load(path)
cdelta.pretrained.load(name)
cdelta.ledger.check(claim_id, quantity, value, bound, stderr=None, null=None)
cdelta.ledger.decide(claim_id, quantity, value, bound, stderr=None, null=None)
"""

# what is read of an object, besides calling it
ATTRIBUTES = {
    "cdelta.Gaussian": "mean cov",
    "cdelta.GaussianMixture": "weights means covs mean cov",
    "cdelta.Empirical": "points bandwidth mean cov",
    "cdelta.Flow": "solver steps __call__",
    "cdelta.Moment": "matrix stderr samples effective_samples correlation correlation_stderr "
    "degenerate held names __getitem__ _repr_html_",
    "cdelta.Report": "moments findings warnings samples names __str__ _repr_html_",
    "cdelta.causal.LinearSCM": "weights noise names graph mean cov",
    "cdelta.causal.SCM": "names graph sample do counterfactual",
    "cdelta.causal.FrameTurn": "turn stderr",
    "cdelta.causal.Order": "order decided scores",
    "cdelta.causal.LeafScores": "stderr",
    "cdelta.causal.CausalFlow": "names graph",
}

LINES = [line for line in CALLS.splitlines() if line]


def found(path):
    """What a dotted path leads to: modules first, then attributes."""
    package, *names = path.split(".")
    return functools.reduce(getattr, names, importlib.import_module(package))


def broken(line):
    """What a call finds changed; empty when nothing is."""
    call = ast.parse(line, mode="eval").body
    path = ast.unparse(call.func)
    try:
        target = found(path)
    except AttributeError as error:
        return str(error)
    parameters = list(inspect.signature(target).parameters.values())
    # a method that is looked up on its class still has its self
    owner = found(path.rpartition(".")[0])
    if inspect.isclass(owner) and not inspect.ismethod(target):
        parameters = parameters[1:]
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given = [argument.id for argument in call.args]
    taken = [p.name for p in by_position[: len(given)]]
    if taken != given:
        return f"{path} takes {taken} by position, not {given}"
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    asked = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    for name, default in asked.items():
        if name not in named:
            return f"{path} has no argument {name}"
        if default is not ... and named[name].default != default:
            return f"{path} has {name}={named[name].default!r}, not {default!r}"
    for p in named.values():
        if p.default is p.empty and p.name not in {*given, *asked}:
            return f"{path} cannot be called without {p.name}"
    return ""


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.partition("(")[0])
def test_a_call_is_as_it_is_written(line):
    assert broken(line) == ""


@pytest.mark.parametrize("path", ATTRIBUTES)
def test_what_is_read_of_an_object_is_there(path):
    kind = found(path)
    has = {*dir(kind), *getattr(kind, "_fields", ())}
    if dataclasses.is_dataclass(kind):
        has |= {field.name for field in dataclasses.fields(kind)}
    assert set(ATTRIBUTES[path].split()) - has == set()


def test_solvers_and_methods_are_those_that_are_named():
    import cdelta

    for solver in ("euler", "heun", "midpoint", "rk4", "tsit5"):
        assert cdelta.Flow(lambda t, x: -x, solver).solver == solver
    assert cdelta.dependence.METHODS == ("rows", "jvp", "finite_difference")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cdelta.dependence.wriggle_moment(f)", "no attribute 'wriggle_moment'"),
        ("cdelta.gaussian.velocity(x, t, source, target)", "takes ['t', 'x', 'source', 'target']"),
        ("cdelta.Flow(velocity, solver='rk4')", "has solver='heun', not 'rk4'"),
        ("cdelta.Flow(velocity, tolerance=None)", "has no argument tolerance"),
        ("cdelta.Flow()", "cannot be called without velocity"),
        ("cdelta.Moment.save()", "cannot be called without path"),
        ("cdelta.jacobian.jvp(f, x0)", "cannot be called without probe"),
    ],
)
def test_what_a_change_would_look_like(line, said):
    assert said in broken(line)
