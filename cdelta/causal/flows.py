r"""A flow that can be intervened on: one conditional flow a feature, given the values of its causes
(C12)."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from cdelta import _check, _files, _roles, _weights
from cdelta._features import by_name
from cdelta._precision import working
from cdelta._pytree import as_pytree
from cdelta.causal import _conditional, _graph, _nodes
from cdelta.causal._conditional import Nodes
from cdelta.causal._nodes import Layout, Pieces, Sample
from cdelta.causal._vectors import EXACT
from cdelta.causal.acyclic import causal_order
from cdelta.causal.models import Equation, Shift, _Model

_FORMAT = 1  # of a saved flow of numbers
_FORMAT_NAMED = 2  # and of one whose samples go by name


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False, init=False)
class CausalFlow(_Model):
    r"""One conditional flow a feature, its scalar velocity given the *clean* values of its causes
    (C12).

    .. math:: \frac{dx_k}{dt} &= v_k(t, x_k \mid x_{\text{pa}(k)}), \\
        v_k &= E\bigl[x_k - \varepsilon_k \bigm| x_{k,t},\, x_{\text{pa}(k)}\bigr], \\
        x_{k,t} &= (1-t)\,\varepsilon_k + t\,x_k,

    in causal order, the noises :math:`\varepsilon_k` at :math:`t = 0` standard normal. Stacked,
    these flows are the increasing triangular (Knothe–Rosenblatt) map; it is the structural model
    itself wherever that has no hidden common cause and every equation increases in its noise. So
    interventions and counterfactuals are exact up to the fit.

    ``graph`` is one of: a matrix, ``graph[i, j]`` true where j is a cause of i; such a data frame,
    whose index and columns name the features and are read by name; pairs
    ``[(cause, effect), ...]`` of names; a mapping from each feature's name to its causes; a
    networkx ``DiGraph``. ``names`` are the features in the order of the data's columns; for pairs
    and mappings left out, that of their first appearance. ``width`` and ``layers`` are those of
    each feature's networks, ``solver_steps`` the Runge–Kutta steps of each flow.

    **Vectors and labels.** ``shapes={"image": (8, 8, 1)}`` names nodes that are vectors of any
    shape, ``labels={"digit": 10}`` those that are one of so many labels 0, 1, …, which must be
    roots. Samples then go by name, ``{"digit": [N], "tilt": [N], "image": [N, 8, 8, 1]}``, and so
    do noises; shapes that are not given are those of the data that :meth:`fit` is given by name.
    A vector has one flow of all its components, given its clean causes, from a standard normal
    noise of its shape; a label, as a cause, is ones and zeros, and is its own noise: it is drawn
    with the frequencies of the data, set by ``do``, kept by abduction. What a counterfactual says
    of a number is identified where the model is Markovian and increasing in its noises; of a
    vector it is not (noises may be turned without changing any law): this flow keeps the noise of
    its own straight paths, for a normal vector the residual.

    ``network={"image": module}`` is a velocity ``module(t, x, condition)`` of your own for a
    vector, ``module(t, x)`` where it has no causes, as ``networks.UNet((8, 8, 1), channels,
    condition=11, rngs=rngs)``: ``x`` is the value, standardised as one, in its shape, ``condition``
    its causes as one vector: in the nodes' order, numbers standardised, vectors flattened, labels
    as ones and zeros, and of all these the arcsinh. One in :class:`cdelta.networks.BesideNormal` is
    given the samples first: then the linear regression and the covariance are known, as above, and
    the paths are straight in the vector's own units.

    :meth:`fit` gives a fitted flow. Called with a noise ``[n]``, that gives features ``[n]``; its
    Jacobian is triangular in causal order. It answers as :class:`SCM` does, in float32, and takes
    many samples ``[N, n]`` at once where that takes one.

    Raises ValueError when the graph is not square, has a cycle (naming it), or names a feature that
    is not there; when shapes, labels or networks are of no node or do not fit together, or a label
    has causes.
    """

    parents: Bool[np.ndarray, "n n"]
    names: tuple[str, ...]
    sizes: tuple[int, int, int]
    nodes: Nodes | Pieces | None
    changes: Mapping[int, Any]
    layout: Layout | None
    networks: Mapping[str, Any]

    def __init__(
        self,
        graph: Any,
        names: Sequence[str] | None = None,
        *,
        width: int = 64,
        layers: int = 2,
        solver_steps: int = 24,
        shapes: Mapping[str, Sequence[int]] | None = None,
        labels: Mapping[str, int] | None = None,
        network: Mapping[str, Any] | None = None,
    ):
        parents, names = _graph.discovered(graph, names)
        sizes = (("width", width), ("layers", layers), ("solver_steps", solver_steps))
        layout = None
        if not (shapes is None and labels is None and network is None):
            layout = Layout.of(names, parents, shapes or {}, labels or {})
            _check_networks(network or {}, layout)
        sizes = tuple(_check.count(name, n) for name, n in sizes)
        self._set(parents, names, sizes, None, {}, layout, dict(network or {}))

    def _set(self, *fields: Any) -> None:
        for field, value in zip(dataclasses.fields(self), fields, strict=True):
            object.__setattr__(self, field.name, value)

    def _with(self, **fields: Any) -> "CausalFlow":
        new = object.__new__(CausalFlow)
        new._set(*({**vars(self), **fields}[field.name] for field in dataclasses.fields(self)))
        return new

    def tree_flatten_with_keys(self) -> tuple[tuple, tuple]:
        changes = {
            k: change if isinstance(change, Shift | Array) else as_pytree(change)
            for k, change in self.changes.items()
        }
        leaves = [(jax.tree_util.GetAttrKey("nodes"), self.nodes)]
        leaves += [(jax.tree_util.DictKey(k), change) for k, change in changes.items()]
        own = {name: as_pytree(network) for name, network in self.networks.items()}
        leaves += [(jax.tree_util.DictKey(name), network) for name, network in own.items()]
        static = self.parents.tobytes(), self.features, self.names, self.sizes, tuple(changes)
        return tuple(leaves), (*static, self.layout, tuple(own))

    @classmethod
    def tree_unflatten(cls, static: tuple, leaves: Iterable) -> "CausalFlow":
        content, n, names, sizes, changed, layout, own = static
        nodes, *rest = leaves
        new = object.__new__(cls)
        parents = np.frombuffer(content, bool).reshape(n, n)
        changes = dict(zip(changed, rest[: len(changed)], strict=True))
        networks = dict(zip(own, rest[len(changed) :], strict=True))
        new._set(parents, names, sizes, nodes, changes, layout, networks)
        return new

    @property
    def features(self) -> int:
        return len(self.parents)

    @property
    def order(self) -> tuple[int, ...]:
        """The features from first cause to last effect; among those that could come next, the
        lowest index first."""
        return causal_order(self.parents)

    @property
    def graph(self) -> Bool[np.ndarray, "n n"]:
        """``graph[i, j]``: j is a cause of i, as it was given."""
        return self.parents.copy()

    @property
    def fitted(self) -> bool:
        """Whether the flow has been fitted to data."""
        return self.nodes is not None

    def fit(
        self,
        x: Float[ArrayLike, "N n"] | Sample,
        key: PRNGKeyArray,
        *,
        held_out: Float[ArrayLike, "M n"] | Sample | None = None,
        steps: int = 1500,
        batch: int = 512,
        rate: float = 5e-3,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        progress: bool = False,
    ) -> "CausalFlow":
        r"""A flow fitted to samples, one a row; this one is left as it is. Of a data frame the
        columns are read by their names, where the features have some.

        What is known of each conditional law is taken out before anything is learned of its flow.
        Each feature is standardised (median, middle 68 %), then

        .. math:: x_k &= \ell_k(\text{pa}) + \sigma_k \bigl( m_k(\text{pa}) + e^{s_k(\text{pa})} r_k
            \bigr), \\ \dot r &= \frac{2t - 1}{(1-t)^2 + t^2}\, r + u_k(t, r \mid \text{pa}).

        :math:`\ell_k` is the linear regression; a network gives :math:`m_k, s_k` by maximum
        likelihood of a normal residual; another the velocity :math:`u_k` beyond that of N(0, 1), by
        flow matching of the residual. Of :math:`m_k`, :math:`s_k` and :math:`u_k` each the share is
        kept at which held-out samples are likeliest, and none where the gain is within two standard
        errors (no sample counts for more than 5 nats): a linear model stays a linear regression.

        ``held_out`` is by default the last tenth of ``x``. ``steps`` and ``batch`` are of each of
        the two trainings, ``rate`` their highest learning rate.

        Samples by name, ``{name: [N, *shape]}``, give a flow that goes by name. Of a vector,
        :math:`\sigma_k` is the symmetric root of the residual's covariance (its correlations shrunk
        as held-out samples want it), :math:`m_k` and :math:`s_k` are of each component, and one
        network gives the velocity of all, kept where it lowers the loss of flow matching. A network
        of one's own is trained by flow matching of the
        value itself, without those pieces. ``settings={"image": {"steps": 3000}}`` are a vector's
        own steps, batch or rate.

        Samples are standardised in double precision, NumPy's as they are; the flow is single. So
        a feature must vary by more than that rounds, and so must what its linear regression on its
        causes leaves: by 64 roundings. A curved function of the causes is not noticed.

        Raises ValueError when x has another number of features, is not finite, has a feature that
        is constant, or is such a function of its causes (naming it), or too few samples, for sizes
        that are not positive, and for samples by name whose names, shapes or labels are not those
        of the nodes, naming the node.
        """
        if self.changes:
            raise ValueError("fit is of the model that has not been intervened on")
        key = _check.key("key", key)
        defaults = {"steps": steps, "batch": batch, "rate": rate}
        if self.layout is not None or isinstance(x, Mapping):
            return self._fit_named(x, held_out, key, defaults, settings or {}, progress)
        if settings:
            raise ValueError(f"settings are of vectors, and x has none; got {settings}")
        from cdelta.causal import _fitting  # networks and an optimizer are not light

        x = self._data("x", x)
        if held_out is None:
            cut = len(x) - max(1, len(x) // 10)
            x, held_out = x[:cut], x[cut:]
        else:
            held_out = self._data("held_out", held_out)
        if len(x) < 10 * self.features or len(held_out) < 2:
            raise ValueError(
                f"x must hold at least {10 * self.features} samples besides those held out, and "
                f"held_out 2; got {len(x)} and {len(held_out)}"
            )
        constant = np.flatnonzero(x.std(0) == 0)
        if constant.size:
            raise ValueError(f"x must vary, but features {constant.tolist()} are constant")
        chosen = self._settings(defaults, progress)
        nodes = _fitting.fitted(self.parents, x, held_out, key, chosen, names=self.names)
        return self._with(nodes=nodes)

    def __call__(self, noise: Float[ArrayLike, " n"] | Sample) -> Float[Array, " n"] | Sample:
        """The features that these noises make."""
        self._need_fit()
        if self.layout is not None:
            noise, _ = _nodes.sample("noise", noise, self.layout, many=False)
            return _as_given(_forward(self, _widened(noise)), noise)
        noise = self._noise(noise)
        dtype = working(noise.dtype)
        nodes = self._nodes(dtype)
        x, z = noise.astype(dtype), jnp.zeros(self.features, dtype)
        for k in self.order:
            value = self._played(k, nodes, x, z, noise[k].astype(dtype))
            x = x.at[k].set(value)
            z = z.at[k].set((value - nodes.center[k]) / nodes.scale[k])
        return x.astype(noise.dtype)

    def noises(self, x: Float[ArrayLike, "*N n"] | Sample) -> Float[Array, "*N n"] | Sample:
        r"""Abduction: the noises that make ``x``, of one sample ``[n]`` or many ``[N, n]``; 0 for
        a feature that an intervention has set.

        All features at once: the causes of each are in ``x``. Raises ValueError for another shape
        or NaN, when x disagrees with a value that has been set, and for an intervened model with an
        equation of one's own.
        """
        if self.layout is not None:
            return self._named_backwards(x, False)[0]
        return self._backwards(x)[0]

    def jacobian(self, noise: Float[ArrayLike, " n"]) -> Float[Array, "n n"]:
        r"""The exact :math:`\partial x_i / \partial \varepsilon_j` at one noise; lower triangular
        in causal order. Raises ValueError where samples go by name: there take ``jax.jacfwd`` of
        the entries that are asked for."""
        if self.layout is not None:
            raise ValueError(
                f"jacobian is of features that are all numbers, this flow's nodes are {self.names}:"
                " take jax.jacfwd of flow(noise) with respect to the noise of a node"
            )
        return super().jacobian(noise)

    def log_prob(self, x: Float[ArrayLike, "*N n"] | Sample) -> Float[Array, "*N"]:
        r"""The log density of one sample ``[n]`` or many ``[N, n]``.

        .. math:: \log p(x) = \sum_k \Bigl( \log \varphi(\varepsilon_k)
            + \log \frac{\partial \varepsilon_k}{\partial x_k} \Bigr)

        A feature that an intervention has set is left out of the sum. Of a vector the slope is that
        of its volume, by the exact divergence, one product a component; a label has the log of its
        frequency. Raises ValueError as :meth:`noises` does, and for a vector of more than 256
        numbers that has not been set.
        """
        if self.layout is not None:
            return self._named_log_prob(x)
        noise, log_slopes = self._backwards(x)
        free = jnp.array([self._fixed(k) is None for k in range(self.features)])
        density = -(noise**2) / 2 - jnp.log(2 * jnp.pi).astype(noise.dtype) / 2 + log_slopes
        return jnp.sum(jnp.where(free, density, 0), -1)

    def counterfactual(
        self,
        x: Float[ArrayLike, "*N n"] | Sample,
        index: int | str | Mapping[int | str, ArrayLike | Shift | Equation],
        value: ArrayLike | Shift | Equation | None = None,
    ) -> Float[Array, "*N n"] | Sample:
        r"""What each sample would have been under ``do(index, value)`` or ``do({...})``, with the
        noises that made it what it was.

        .. math:: x^{cf} = F_{do}(F^{-1}(x))

        One sample ``[n]`` or many ``[N, n]``. Raises ValueError as ``do`` and ``noises`` do.
        """
        changed, noise = self.do(index, value), self.noises(x)
        if self.layout is not None:
            return changed._of_named_noises(noise)
        return _forwards(changed, noise) if noise.ndim == 2 else changed(noise)

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "N n"] | Sample:
        """``n`` independent draws. Raises ValueError when n is not a positive integer."""
        self._need_fit()
        n, key = _check.count("n", n), _check.key("key", key)
        if self.layout is not None:
            return self._of_named_noises(_nodes.draw(self, key, n))
        return _forwards(self, jax.random.normal(key, (n, self.features), jnp.float32))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted flow to one safetensors file, whole or not at all; its graph, names and
        sizes are JSON in the file's header. Of a network of one's own its arrays are written, not
        its code.

        Raises ValueError when the flow is not fitted, or has been intervened on, and for a network
        of whose arrays two would have one name.
        """
        self._need_fit()
        if self.changes:
            raise ValueError("save the flow that was fitted: interventions are not written")
        facts = {
            "format": _FORMAT,
            "graph": self.parents.astype(int).tolist(),
            "names": list(self.names),
            "sizes": list(self.sizes),
        }
        if self.layout is not None:
            facts |= {
                "format": _FORMAT_NAMED,
                "shapes": {n: s for n, s in zip(self.names, self.layout.shapes, strict=True) if s},
                "labels": {n: c for n, c in zip(self.names, self.layout.labels, strict=True) if c},
                "networks": list(self.networks),
            }
        arrays = _named(self.nodes)
        facts["sha256"] = _weights.digest(arrays)
        facts["header"] = _digest(facts)
        _files.write(path, _weights.serialise(arrays, {"cdelta.CausalFlow": json.dumps(facts)}))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], network: Mapping[str, Any] | None = None
    ) -> "CausalFlow":
        """The flow in a file that :meth:`save` has written; ``network`` are those of one's own,
        built as the ones that were fitted.

        Raises OSError when there is none, when it is damaged, or of a format that this version does
        not know; ValueError when the networks are not those of the flow that was saved.
        """
        path = Path(path)
        content = path.read_bytes()
        try:
            weights, texts = _weights.parse(content)
            facts = json.loads(texts["cdelta.CausalFlow"])
            if facts["format"] not in (_FORMAT, _FORMAT_NAMED):
                raise OSError(
                    f"{path} has format {facts['format']!r}; this version reads {_FORMAT} and "
                    f"{_FORMAT_NAMED}"
                )
            # earlier versions wrote no checksums
            header = facts.pop("header", None)
            if facts.get("sha256", found := _weights.digest(weights)) != found or (
                header not in (None, _digest(facts))
            ):
                raise OSError(f"{path} is damaged: its checksum is another")
            names, (width, layers, steps) = facts["names"], facts["sizes"]
            own, nodes = [], {}
            if facts["format"] == _FORMAT_NAMED:
                own = facts["networks"]
                nodes = {name: facts[name] for name in ("shapes", "labels")}
            new = cls(np.array(facts["graph"], bool), names or None,
                      width=width, layers=layers, solver_steps=steps, **nodes)  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise OSError(f"{path} is damaged, or no causal flow: {error}") from error
        if sorted(network or {}) != sorted(own):
            raise ValueError(
                f"network must hold those of the nodes {own}, as the flow in {path} was fitted "
                f"with, got {sorted(network or {})}"
            )
        if new.layout is not None:
            shapes = tuple(() if s is None else s for s in new.layout.shapes)
            layout = dataclasses.replace(new.layout, shapes=shapes)
            new = new._with(layout=layout, networks=dict(network or {}))
        return new._with(nodes=_loaded(path, new, weights))

    # ------------------------------------------------------------------------------------------

    def _changed(self, place: int, change: Any) -> "CausalFlow":
        before = self.changes.get(place)
        if isinstance(change, Shift) and before is not None:
            if isinstance(before, Shift):
                change = Shift(before.amount + change.amount)
            elif callable(before):
                change = functools.partial(_shifted, before, change.amount)
            else:
                change = before + change.amount
        return self._with(changes={**self.changes, place: change})

    def _constant(self, place: int, name: str, value: Any) -> Array:
        layout = self.layout
        if layout is None or layout.is_number(place):
            return super()._constant(place, name, value)
        if layout.labels[place]:
            value, shape = _nodes.label(name, value, layout.labels[place]), ()
        else:
            value, shape = _check.as_float(name, value), layout.shapes[place]
            _check.finite(name, value)
        _check.shape(name, value, shape, f", that of {self.names[place]!r}")
        return value

    def _changes(self, index: Any, value: Any) -> list[tuple[int, Any]]:
        if self.layout is not None:
            self._need_fit()  # or its shapes need not be known
        found = super()._changes(index, value)
        for place, change in found if self.layout is not None else []:
            name = self.names[place]
            if self.layout.labels[place] and (callable(change) or isinstance(change, Shift)):
                raise ValueError(f"value of {name!r}, a label, must be one of its labels")
            if self.layout.shapes[place] and isinstance(change, Shift):
                raise ValueError(
                    f"value of {name!r}, a vector, must be an array {self.layout.shapes[place]} or "
                    "a function; a Shift is of a number"
                )
        return found

    def _settings(self, chosen: Mapping[str, Any], progress: bool) -> Any:
        from cdelta.causal import _fitting

        rate = float(chosen["rate"])
        if not (np.isfinite(rate) and rate > 0):
            raise ValueError(f"rate must be positive, got {rate}")
        steps, batch = (_check.count(name, chosen[name]) for name in ("steps", "batch"))
        return _fitting.Settings(*self.sizes[:2], steps, batch, rate, bool(progress))

    def _fit_named(
        self, x: Any, held_out: Any, key: Any, defaults: dict, settings: Mapping, progress: bool
    ) -> "CausalFlow":
        from cdelta.causal import _vector_fitting

        if not self.names:
            raise ValueError("samples go by name: give the graph's nodes names")
        layout = self.layout or Layout.of(self.names, self.parents, {}, {})
        layout = layout.with_shapes(x)
        _check_networks(self.networks, layout)
        x = _nodes.data("x", x, layout)
        if held_out is None:
            count = len(next(iter(x.values())))
            x, held_out = _nodes.split(x, count - max(1, count // 10))
        else:
            held_out = _nodes.data("held_out", held_out, layout)
        _nodes.check_fit(layout, x, held_out, self.networks)
        vectors = [self.names[k] for k in layout.vectors]
        for k in layout.vectors:
            if self.names[k] not in self.networks and layout.columns(k) > _vector_fitting.LARGEST:
                raise ValueError(
                    f"{self.names[k]!r} has {layout.columns(k)} numbers, more than the "
                    f"{_vector_fitting.LARGEST} of which a covariance is taken: give "
                    f"network={{{self.names[k]!r}: module}}"
                )
        chosen = {"": self._settings(defaults, progress)}
        for name, own in settings.items():
            if name not in vectors or not set(own) <= set(defaults):
                raise ValueError(
                    f"settings must be of {list(defaults)} for some of the vectors {vectors}, got "
                    f"{name!r}: {own}"
                )
            chosen[name] = self._settings({**defaults, **own}, progress)
        nodes = _nodes.fit(layout, x, held_out, key, chosen, self.networks)
        return self._with(nodes=nodes, layout=layout)

    def _of_named_noises(self, noise: Any) -> dict[str, Array]:
        noise, many = _nodes.sample("noise", noise, self.layout)
        found = (_forwards if many else _forward)(self, _widened(noise))
        return _as_given(found, noise)

    def _named_backwards(self, x: Any, density: bool) -> tuple[dict, dict, bool]:
        self._need_fit()
        x, many = _nodes.sample("x", x, self.layout)
        self._refuse_own_equations()
        possible = [self._agrees(k, x[self.names[k]], many) for k in self.changes]
        noise, slopes = (_named_abducted if many else _named_abduct)(self, _widened(x), density)
        noise, slopes = (
            {name: _where(possible, a) for name, a in part.items()} for part in (noise, slopes)
        )
        return _as_given(noise, x), slopes, many

    def _named_log_prob(self, x: Any) -> Array:
        self._need_fit()
        for k in self.layout.vectors:
            if self.layout.columns(k) > EXACT and self._fixed(k) is None:
                raise ValueError(
                    f"{self.names[k]!r} has {self.layout.columns(k)} numbers, and the divergence "
                    f"of its flow is exact, a product each: a density is of at most {EXACT}"
                )
        noise, slopes, many = self._named_backwards(x, True)
        total = functools.partial(_nodes.log_density, self)
        return jax.vmap(total)(noise, slopes) if many else total(noise, slopes)

    def _played(self, k: int, nodes: Nodes, x: Array, z: Array, noise: Array) -> Array:
        change = self.changes.get(k)
        if change is None or isinstance(change, Shift):
            node = jax.tree.map(lambda array: array[k], nodes)
            value = _play(node, z, noise, self.sizes[2]) * node.scale + node.center
            return value if change is None else value + change.amount.astype(value.dtype)
        if not callable(change):
            return change.astype(noise.dtype)
        before = self.order[: self.order.index(k)]
        known = {self.names[j] if self.names else j: x[j] for j in before}
        return self._by_equation(k, change, known, noise, ())

    def _by_equation(
        self, k: int, change: Any, known: Mapping, noise: Array, shape: tuple[int, ...]
    ) -> Array:
        try:
            value = jnp.asarray(change(known, noise)).astype(noise.dtype)
        except KeyError as error:
            asked = error.args[0]
            if asked in known:
                raise
            name = self.names[k] if self.names else k
            raise ValueError(
                f"the equation of {name!r} asks for {asked!r}; it may ask for those before it: "
                f"{list(known)}"
            ) from error
        _check.shape("the value of an equation", value, shape)
        return value

    def _backwards(self, x: ArrayLike) -> tuple[Array, Array]:
        """Noises and the logs of their slopes."""
        self._need_fit()
        x = _check.as_float("x", by_name("x", x, self.names))
        if x.ndim not in (1, 2) or x.shape[-1] != self.features:
            raise ValueError(
                f"x must be one sample [{self.features}] or many [N, {self.features}], "
                f"got shape {x.shape}"
            )
        _check.finite("x", x)
        self._refuse_own_equations()
        possible = [self._agrees(k, x[..., k], x.ndim == 2) for k in self.changes]
        wide = x.astype(working(x.dtype))
        found = _abducted(self, wide) if x.ndim == 2 else _abduct(self, wide)
        return tuple(_where(possible, part.astype(x.dtype)) for part in found)

    def _refuse_own_equations(self) -> None:
        own = [k for k, change in self.changes.items() if self._own(change)]
        if own:
            raise ValueError(
                f"features {own} have equations of their own, which are not inverted: ask the "
                "model that has not been intervened on"
            )

    def _agrees(self, k: int, x: Array, many: bool) -> Array:
        """Whether samples have the value that was set; what is known not to is refused."""
        fixed = self._fixed(k)
        if fixed is None:
            return jnp.array(True)
        near = float(jnp.finfo(x.dtype).eps) ** 0.5 if jnp.issubdtype(x.dtype, jnp.floating) else 0
        agrees = jnp.abs(x - fixed) <= near * jnp.abs(fixed)
        if _check.concrete(agrees) and not agrees.all():
            shown = fixed.item() if fixed.ndim == 0 else f"an array {fixed.shape}"
            raise ValueError(
                "x must agree with the values that interventions have set, feature "
                f"{k} with {shown}"
            )
        return agrees.reshape(len(x), -1).all(1) if many else agrees.all()

    def _own(self, change: Any) -> bool:
        return callable(change) and not isinstance(change, Shift)

    def _fixed(self, k: int) -> Array | None:
        change = self.changes.get(k)
        return None if change is None or callable(change) or isinstance(change, Shift) else change

    def _nodes(self, dtype: Any) -> Nodes:
        return jax.tree.map(lambda array: array.astype(dtype), self.nodes)

    def _need_fit(self) -> None:
        if self.nodes is None:
            raise ValueError("this flow has not been fitted: flow.fit(x, key) gives one that is")

    def _data(self, name: str, x: ArrayLike) -> np.ndarray:
        x = _check.as_double(name, by_name(name, x, self.names))
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"{name} must have shape [N, {self.features}], got {x.shape}")
        _check.finite(name, _check.as_float(name, x))
        return x


@functools.partial(jax.jit, static_argnums=3)
def _play(node: Nodes, z: Array, noise: Array, steps: int) -> Array:
    """Compiled once for all features and all interventions."""
    return _conditional.play(node, z, noise, steps)


@jax.jit
def _forwards(
    flow: CausalFlow, noise: Float[Array, "N n"] | Sample
) -> Float[Array, "N n"] | Sample:
    if flow.layout is not None:
        return jax.vmap(functools.partial(_nodes.forwards, flow))(noise)
    return jax.vmap(flow)(noise)


@jax.jit
def _forward(flow: CausalFlow, noise: Sample) -> Sample:
    return _nodes.forwards(flow, noise)


@functools.partial(jax.jit, static_argnums=2)
def _named_abduct(flow: CausalFlow, x: Sample, density: bool) -> tuple[dict, dict]:
    return _nodes.backwards(flow, x, density)


@functools.partial(jax.jit, static_argnums=2)
def _named_abducted(flow: CausalFlow, x: Sample, density: bool) -> tuple[dict, dict]:
    return jax.vmap(lambda one: _nodes.backwards(flow, one, density))(x)


def _widened(x: Sample) -> dict[str, Array]:
    """Half precision as float32."""
    return {name: a.astype(working(a.dtype)) if _real(a) else a for name, a in x.items()}


def _as_given(found: Sample, like: Sample) -> dict[str, Array]:
    """In the precision of what was given."""
    dtype = next((a.dtype for a in like.values() if _real(a)), None)
    return {n: a.astype(dtype) if _real(a) and dtype else a for n, a in found.items()}


def _real(array: Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _check_networks(networks: Mapping[str, Any], layout: Layout) -> None:
    _nodes.known("network", networks, layout.names)
    for name, network in networks.items():
        if not callable(network):
            raise ValueError(f"network[{name!r}] must be a function of (t, x, condition)")
        _roles.refuse_state_first(f"network[{name!r}]", network, "the order is (t, x, condition)")
        k = layout.names.index(name)
        if layout.labels[k] or layout.shapes[k] == ():
            raise ValueError(f"network must be of vectors, and {name!r} is none")


@jax.jit
def _abducted(flow: CausalFlow, x: Float[Array, "N n"]) -> tuple[Array, Array]:
    return jax.vmap(functools.partial(_abduct, flow))(x)


@jax.jit
def _abduct(flow: CausalFlow, x: Float[Array, " n"]) -> tuple[Array, Array]:
    nodes = flow._nodes(x.dtype)
    z = (x - nodes.center) / nodes.scale
    # a shift moves what a feature is, for those after it, but not what its own noise made of it
    shifts = [flow.changes.get(k) for k in range(flow.features)]
    moved = jnp.stack(
        [s.amount.astype(x.dtype) if isinstance(s, Shift) else jnp.zeros((), x.dtype)
         for s in shifts]
    )  # fmt: skip
    own = jnp.diag(-moved / nodes.scale) + z
    noise, log_slopes = jax.vmap(lambda node, z: _conditional.noise(node, z, flow.sizes[2]))(
        nodes, own
    )
    free = jnp.array([flow._fixed(k) is None for k in range(flow.features)])
    return jnp.where(free, noise, 0), jnp.where(free, log_slopes, 0)


def _where(possible: Sequence[Array], array: Array) -> Array:
    """NaN in the place of what belongs to samples that no intervention could have made."""
    if not possible or not jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    all_of_them = functools.reduce(jnp.logical_and, possible)
    extra = array.ndim - all_of_them.ndim
    return jnp.where(all_of_them.reshape(all_of_them.shape + (1,) * extra), array, jnp.nan)


def _shifted(equation: Equation, amount: Array, x: Mapping, e: Array) -> Array:
    return jnp.asarray(equation(x, e)) + amount.astype(e.dtype)


# --------------------------------------------------------------------------------------- the graph


# ---------------------------------------------------------------------------------------- the file


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _named(nodes: Nodes | Pieces) -> dict[str, np.ndarray]:
    named: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(nodes)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in named:
            raise ValueError(
                f"network must have arrays whose names differ, but two would be called {name!r}, "
                f"one of them at {jax.tree_util.keystr(path)}: rename one"
            )
        if not _is_key(leaf):
            named[name] = np.asarray(leaf)
    return named


def _is_key(leaf: Any) -> bool:
    """A random stream of a network of one's own: nothing in a fitted flow depends on it."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _loaded(path: Path, flow: CausalFlow, weights: Mapping[str, np.ndarray]) -> Nodes | Pieces:
    """Weights in the places of a flow that has not been fitted."""
    n = flow.features
    if flow.layout is not None:
        own = {name: as_pytree(network) for name, network in flow.networks.items()}
        like = _nodes.untrained(flow.layout, flow.sizes[:2], own)
    else:
        like = _conditional.untrained(
            flow.parents, *np.zeros((2, n)), np.zeros((n, n)), *np.zeros((2, n)), flow.sizes[:2]
        )
    expected = _named(like)
    difference = _weights.difference(weights, expected)
    if difference:
        difference = difference.replace("the recipe's", "this")
        raise OSError(
            f"{path} is damaged: its arrays are not those of its graph and sizes ({difference})"
        )
    # of integers jax knows some that NumPy's isfinite does not take
    reals = [a for a in weights.values() if jnp.issubdtype(a.dtype, jnp.inexact)]
    if not all(np.isfinite(array).all() for array in reals):
        raise OSError(f"{path} is damaged: its weights must be finite")
    values = iter(jnp.asarray(weights[name], array.dtype) for name, array in expected.items())
    return jax.tree.map(lambda leaf: leaf if _is_key(leaf) else next(values), like)
