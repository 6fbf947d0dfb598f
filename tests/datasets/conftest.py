"""One folder of rendered faces for all tests: in CelebA's layout, and not to be changed."""

import jax
import pytest

from cdelta.datasets import faces


@pytest.fixture(scope="session")
def celeba_folder(tmp_path_factory):
    key, n = jax.random.key(0), 24
    return (
        faces.write_celeba(tmp_path_factory.mktemp("celeba") / "root", n, key, progress=False),
        key,
        n,
    )
