"""The structural model of a face's attributes: from independent noises to attributes."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Array

from cdelta.causal import LinearSCM, causal_order

ATTRIBUTES = (
    "Heavy_Makeup",
    "Rosy_Cheeks",
    "Pointy_Nose",
    "Smiling",
    "Young",
    "Eyeglasses",
    "Wearing_Lipstick",
    "Arched_Eyebrows",
    "Pale_Skin",
    "Blond_Hair",
    "Bangs",
    "Narrow_Eyes",
    "Big_Lips",
    "Chubby",
)

# cause, effect
GRAPHS = {
    "common_cause": (("Heavy_Makeup", "Rosy_Cheeks"), ("Heavy_Makeup", "Pointy_Nose")),
    "mediator": (("Rosy_Cheeks", "Heavy_Makeup"), ("Heavy_Makeup", "Pointy_Nose")),
    "collider": (("Rosy_Cheeks", "Heavy_Makeup"), ("Pointy_Nose", "Heavy_Makeup")),
    "independent": (),
}

# standard normal noises [attributes] -> attributes [attributes]
Structure = Callable[[Array], Array]


def model(
    graph: str | Mapping[tuple[str, str], float] = "common_cause", strength: float = 0.6
) -> LinearSCM:
    """A linear structural model of :data:`ATTRIBUTES` in which each has mean 0 and variance 1.

    ``graph`` is one of :data:`GRAPHS`, whose edges all get the effect ``strength``
    (``"common_cause"`` is what the paper supposes of CelebA: Heavy_Makeup causes Rosy_Cheeks and
    Pointy_Nose), or a mapping ``(cause, effect) -> effect``. Attributes without an edge are
    independent of all others.

    Raises ValueError for an unknown graph or attribute, a cycle, or effects that by themselves give
    an attribute a variance of 1 or more.
    """
    if isinstance(graph, str):
        if graph not in GRAPHS:
            raise ValueError(
                f"graph must be one of {', '.join(GRAPHS)} or a mapping of edges, got {graph!r}"
            )
        graph = dict.fromkeys(GRAPHS[graph], strength)
    weights = np.zeros((len(ATTRIBUTES), len(ATTRIBUTES)))
    for edge, effect in graph.items():
        for name in edge:
            if name not in ATTRIBUTES:
                raise ValueError(
                    f"graph must name attributes out of {', '.join(ATTRIBUTES)}, got {name!r}"
                )
        weights[ATTRIBUTES.index(edge[1]), ATTRIBUTES.index(edge[0])] = effect
    noise, cov = np.ones(len(ATTRIBUTES)), np.eye(len(ATTRIBUTES))
    # causes first: their covariance is known when an effect needs it
    for i in causal_order(weights):
        explained = weights[i] @ cov @ weights[i]
        if explained >= 1:
            raise ValueError(
                f"the effects on {ATTRIBUTES[i]} must explain a variance below 1, "
                f"got {explained:.3g}"
            )
        noise[i] = np.sqrt(1 - explained)
        cov[i] = cov[:, i] = weights[i] @ cov
        cov[i, i] = 1
    return LinearSCM(weights, noise)
