"""A folder of rendered faces, and servers to download from."""

import jax
import pytest

from cdelta.datasets import faces
from tests.datasets.mirror import Mirror


@pytest.fixture(scope="session")
def celeba_folder(tmp_path_factory):
    """For all tests, in CelebA's layout, and not to be changed."""
    key, n = jax.random.key(0), 24
    return (
        faces.write_celeba(tmp_path_factory.mktemp("celeba") / "root", n, key, progress=False),
        key,
        n,
    )


@pytest.fixture
def serve():
    mirrors = []

    def start(*args, **kwargs):
        mirrors.append(Mirror(*args, **kwargs))
        return mirrors[-1]

    yield start
    for mirror in mirrors:
        mirror.close()
