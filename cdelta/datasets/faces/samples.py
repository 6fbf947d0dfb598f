"""Faces from noises: one, its Jacobian, many, and a dataset to train on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from cdelta import _check
from cdelta.datasets.faces.painter import NUISANCES, pictures, render
from cdelta.datasets.faces.structure import ATTRIBUTES, Structure, model


class Face(NamedTuple):
    """An image and its attributes; or the Jacobian of both; or many of both."""

    image: Float[Array, "..."]
    attributes: Float[Array, "..."]


def face(
    noise: Float[ArrayLike, " noises"],
    structure: Structure | None = None,
    height: int = 64,
    width: int = 64,
) -> Face:
    """The face that independent standard normal noises make: attributes' noises first, then the
    nuisances.

    ``structure`` maps the attributes' noises to attributes: a :class:`~cdelta.causal.LinearSCM`, a
    :class:`~cdelta.causal.SCM` or any differentiable function; by default
    ``model("common_cause")``. Returns
    ``(image [height, width, 3] in [-1, 1], attributes [attributes])``.

    Raises ValueError when the noise's or the attributes' number is wrong.
    """
    noise = _check.as_single("noise", noise)
    n = len(ATTRIBUTES)
    names = ", one for each of faces.ATTRIBUTES and faces.NUISANCES"
    _check.shape("noise", noise, (n + len(NUISANCES),), names)
    attributes = (model() if structure is None else structure)(noise[:n]).astype(noise.dtype)
    return Face(render(attributes, noise[n:], height, width), attributes)


def jacobian(
    noise: Float[ArrayLike, " noises"],
    structure: Structure | None = None,
    height: int = 64,
    width: int = 64,
) -> Face:
    r"""The true derivatives of a face with respect to its noises, by forward mode.

    Returns ``(image [height, width, 3, noises], attributes [attributes, noises])``: what an
    estimate of dependence made from images can be held against.
    """
    make = functools.partial(face, structure=structure, height=height, width=width)
    return jax.jacfwd(make)(_check.as_single("noise", noise))


def noises(key: PRNGKeyArray, n: int, start: int = 0) -> Float[Array, "n noises"]:
    """The noises of faces ``start`` to ``start + n``, each from its own key: asking for more
    changes none of them.

    Raises ValueError when n is not positive.
    """
    n, key = _check.count("n", n), _check.key("key", key)
    return jax.vmap(functools.partial(_noise, key))(jnp.arange(start, start + n))


def _noise(key: PRNGKeyArray, i: ArrayLike) -> Array:
    return jax.random.normal(
        jax.random.fold_in(key, i), (len(ATTRIBUTES) + len(NUISANCES),), jnp.float32
    )


def sample(
    key: PRNGKeyArray, n: int, structure: Structure | None = None, height: int = 64, width: int = 64
) -> Face:
    """``n`` independent faces, ``(images [n, height, width, 3], attributes [n, attributes])``, in
    float32.

    They are the faces of ``noises(key, n)``, and those that ``write_celeba`` writes with the same
    key. Raises ValueError when n, height or width is not positive.
    """
    height, width = _check.count("height", height), _check.count("width", width)
    noise = noises(key, n)
    attributes = attributes_of(noise, structure)
    drawn = jnp.concatenate([attributes, noise[:, len(ATTRIBUTES) :]], 1)
    return Face(pictures(drawn, height, width), attributes)


class Labelled(NamedTuple):
    """Images, and for each attribute the probability that somebody who labels them says yes."""

    images: Float[np.ndarray, "n 64 64 3"]
    labels: Float[np.ndarray, "n attributes"]


@functools.lru_cache(maxsize=2)  # rendering takes milliseconds a face
def dataset(split: str = "train", graph: str = "common_cause", n: int = 6000) -> Labelled:
    r"""``n`` faces of one of :data:`GRAPHS` to train on, or n/10 others (``"held_out"``), as NumPy
    arrays.

    Labels waver as people's do: an attribute a is said to be there with probability
    :math:`\sigma(2a)`, and the labels are these probabilities. A classifier that sees a has then
    the logit 2a: smooth, and linear in the attribute.

    Raises ValueError for an unknown split or graph, or when n is not positive.
    """
    n = _check.count("n", n)
    if split not in ("train", "held_out"):
        raise ValueError(f'split must be "train" or "held_out", got {split!r}')
    held_out = split == "held_out"
    n = max(1, n // 10) if held_out else n
    images, attributes = sample(jax.random.key(held_out), n, model(graph))
    return Labelled(np.asarray(images), np.asarray(jax.nn.sigmoid(2 * attributes)))


def attributes_of(noise: Array, structure: Structure | None) -> Array:
    """``[n, noises] -> [n, attributes]``"""
    structure = model() if structure is None else structure
    return jax.jit(jax.vmap(structure))(noise[:, : len(ATTRIBUTES)]).astype(noise.dtype)
