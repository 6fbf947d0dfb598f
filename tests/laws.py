"""Random well-conditioned laws for the tests."""

import jax
import jax.numpy as jnp

from cdelta import Gaussian, GaussianMixture


def spd(key, d):
    """A random covariance with eigenvalues of order one."""
    root = jax.random.normal(key, (d, d)) / jnp.sqrt(d)
    return root @ root.T + 0.3 * jnp.eye(d)


def gaussian(key, d):
    key_mean, key_cov = jax.random.split(key)
    return Gaussian(jax.random.normal(key_mean, (d,)), spd(key_cov, d))


def mixture(key, d, components=3):
    key_weights, key_means, key_covs = jax.random.split(key, 3)
    weights = jax.random.dirichlet(key_weights, 2 * jnp.ones(components))
    means = 1.5 * jax.random.normal(key_means, (components, d))
    return GaussianMixture(
        weights, means, jax.vmap(lambda k: spd(k, d))(jax.random.split(key_covs, components))
    )


def pair(seed, d):
    """Source and target, both Gaussian."""
    key_source, key_target = jax.random.split(jax.random.key(seed))
    return gaussian(key_source, d), gaussian(key_target, d)


def pair_mixture(seed, d, components=3):
    """A Gaussian source and a mixture target."""
    key_source, key_target = jax.random.split(jax.random.key(seed))
    return gaussian(key_source, d), mixture(key_target, d, components)
