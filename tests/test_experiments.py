"""What the chapters on the paper's synthetic experiments rest on and no single module states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import Gaussian, GaussianMixture, mixture, posterior


def _laws(seed: int, d: int = 3, components: int = 3) -> tuple[Gaussian, GaussianMixture]:
    keys = jax.random.split(jax.random.key(seed), 3)
    roots = jax.random.normal(keys[0], (components + 1, d, d)) / 2
    covs = roots @ roots.swapaxes(1, 2) + 0.3 * jnp.eye(d)
    means = 1.5 * jax.random.normal(keys[1], (components + 1, d))
    weights = jax.nn.softmax(jax.random.normal(keys[2], (components,)))
    return Gaussian(means[0], covs[0]), GaussianMixture(weights, means[1:], covs[1:])


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_without_its_second_term_each_jacobian_is_that_of_the_expected_end(t):
    """C2: with tΣ_k S_k⁻¹ for A_k the velocity becomes E[x1 | x_t] - μ0, and every difference of
    Jacobians (1 - t) times what it should be; any source, not the standard normal alone."""
    source, target = _laws(0)
    x = source.sample(jax.random.key(1), 1)[0]
    S = (1 - t) ** 2 * source.cov + t**2 * target.covs
    coded = t * target.covs @ jnp.linalg.inv(S)
    right = mixture.component_jacobians(t, source, target)
    np.testing.assert_allclose(coded, jnp.eye(3) + (1 - t) * right, rtol=0, atol=1e-13)

    gamma = mixture.responsibilities(t, x, source, target)
    centres = (1 - t) * source.mean + t * target.means
    ends = target.means + jnp.einsum("kij,kj->ki", coded, x - centres)
    np.testing.assert_allclose(
        gamma @ ends, posterior.mean(t, x, source, target), rtol=0, atol=1e-13
    )
    slope = jax.jacfwd(lambda x: posterior.mean(t, x, source, target))(x)
    expected = jnp.eye(3) + (1 - t) * mixture.velocity_jacobian(t, x, source, target)
    np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_seeing_differs_from_blending_by_the_spread_of_the_scores(t):
    """C2's second half: ∇v - Σ γ_k A_k = (1-t)/t Σ0 Σ γ_k (s_k - s̄)(s_k - s̄)ᵀ."""
    source, target = _laws(2)
    x = target.sample(jax.random.key(3), 1)[0] * t

    def log_component(x, mean, cov):
        S = (1 - t) ** 2 * source.cov + t**2 * cov
        off = x - (1 - t) * source.mean - t * mean
        return -off @ jnp.linalg.solve(S, off) / 2

    scores = jax.vmap(jax.grad(log_component), (None, 0, 0))(x, target.means, target.covs)
    gamma = mixture.responsibilities(t, x, source, target)
    centred = scores - gamma @ scores
    spread = (1 - t) / t * source.cov @ jnp.einsum("k,ki,kj->ij", gamma, centred, centred)
    blend = jnp.einsum("k,kij->ij", gamma, mixture.component_jacobians(t, source, target))
    seen = mixture.velocity_jacobian(t, x, source, target)
    np.testing.assert_allclose(seen - blend, spread, rtol=0, atol=1e-12)
    assert float(jnp.abs(spread).max()) > 1e-3  # the labels do disagree here
