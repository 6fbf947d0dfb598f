"""Data: toy densities, handwritten digits, faces.

``mnist`` and ``celeba`` are functions; ``toy`` and ``faces`` are modules.
"""

# Bound at once: importing the module first would otherwise leave the module, not the function,
# under this name.
from cdelta.datasets import faces, toy
from cdelta.datasets.celeba import celeba
from cdelta.datasets.mnist import mnist

__all__ = ["celeba", "faces", "mnist", "toy"]
