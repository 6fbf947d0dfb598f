r"""Structural causal models with a known graph: what dependence, conditioning and intervention are
compared with.

A model gives each feature one equation in its causes and a standard normal noise of its own, so it
is a map :math:`x = F(\varepsilon)` with :math:`\varepsilon \sim N(0, I)`. An intervention changes
an equation: a constant or a function replaces it, a shift is added to it. A counterfactual keeps
the noises of what was seen and changes an equation (abduction, action, prediction).
"""

from cdelta.causal.acyclic import causal_order
from cdelta.causal.effects import FrameTurn, effect, frame_turn, local_effects
from cdelta.causal.flows import CausalFlow
from cdelta.causal.graphs import collider, common_cause, mediator
from cdelta.causal.images import ImageModel, Noises, counterfactual_images
from cdelta.causal.models import NOISE_BOUND, SCM, LinearSCM, Shift
from cdelta.causal.order import LeafScores, Order, find_order, leaf_scores
from cdelta.causal.paths import follow, steer
from cdelta.causal.published import PUBLISHED, published

__all__ = [
    "NOISE_BOUND",
    "PUBLISHED",
    "SCM",
    "CausalFlow",
    "FrameTurn",
    "ImageModel",
    "LeafScores",
    "LinearSCM",
    "Noises",
    "Order",
    "Shift",
    "causal_order",
    "collider",
    "common_cause",
    "counterfactual_images",
    "effect",
    "find_order",
    "follow",
    "frame_turn",
    "leaf_scores",
    "local_effects",
    "mediator",
    "published",
    "steer",
]
