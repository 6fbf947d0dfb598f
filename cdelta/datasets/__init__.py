"""Data: toy densities, painted shapes, handwritten digits, faces, pairs with a known cause.

``mnist`` and ``celeba`` are functions; ``toy``, ``shapes``, ``faces`` and ``pairs`` are modules.
"""

# Bound at once: importing the module first would otherwise leave the module, not the function,
# under this name.
from cdelta.datasets import faces, pairs, shapes, toy
from cdelta.datasets.celeba import celeba
from cdelta.datasets.mnist import mnist

__all__ = ["celeba", "faces", "mnist", "pairs", "shapes", "toy"]
