"""Data: toy densities, handwritten digits, faces.

``mnist`` is a function; ``toy`` is a module.
"""

# Bound at once: importing the module first would otherwise leave the module, not the function, under this name.
from cdelta.datasets import toy
from cdelta.datasets.mnist import mnist

__all__ = ["mnist", "toy"]
