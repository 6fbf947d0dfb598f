"""What the tests of rendered faces share."""

from cdelta.datasets import faces

A, N = len(faces.ATTRIBUTES), len(faces.ATTRIBUTES) + len(faces.NUISANCES)
MAKEUP, CHEEKS, NOSE = (
    faces.ATTRIBUTES.index(n) for n in ("Heavy_Makeup", "Rosy_Cheeks", "Pointy_Nose")
)


def small(noise):
    """A face of 24 × 24 pixels, in double precision."""
    return faces.face(noise, faces.model(), 24, 24)
