r"""Rendered faces whose causal graph is known: portraits of smooth shapes, differentiable all the
way to the noises.

A face is made in two maps, both differentiable: a structural model turns independent standard
normal noises into attributes (:data:`ATTRIBUTES`, most of them named as in CelebA), and
:func:`render` turns attributes, together with what nobody labels (:data:`NUISANCES`), into an RGB
image. So the true Jacobians of image and attributes are known (:func:`jacobian`), and any estimate
made from images alone can be held against them. :func:`write_celeba` writes faces as CelebA is laid
out, so that code for CelebA runs on them unchanged.
"""

from cdelta.datasets.faces.files import write_celeba
from cdelta.datasets.faces.painter import NUISANCES, render
from cdelta.datasets.faces.reading import Reading, read
from cdelta.datasets.faces.samples import (
    Face,
    Labelled,
    dataset,
    face,
    jacobian,
    noises,
    sample,
)
from cdelta.datasets.faces.structure import ATTRIBUTES, GRAPHS, Structure, model

__all__ = [
    "ATTRIBUTES",
    "GRAPHS",
    "NUISANCES",
    "Face",
    "Labelled",
    "Reading",
    "Structure",
    "dataset",
    "face",
    "jacobian",
    "model",
    "noises",
    "read",
    "render",
    "sample",
    "write_celeba",
]
