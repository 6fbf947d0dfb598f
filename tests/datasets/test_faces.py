"""Rendered faces: their graph, their derivatives, what can be seen in them, and the files they are
written to."""

import itertools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cdelta.causal import SCM
from cdelta.datasets import faces

A, N = len(faces.ATTRIBUTES), len(faces.ATTRIBUTES) + len(faces.NUISANCES)
MAKEUP, CHEEKS, NOSE = (
    faces.ATTRIBUTES.index(n) for n in ("Heavy_Makeup", "Rosy_Cheeks", "Pointy_Nose")
)


def small(noise):
    """A face of 24 × 24 pixels, in double precision."""
    return faces.face(noise, faces.model(), 24, 24)


@pytest.fixture(scope="module")
def jacobian():
    return jax.jit(lambda noise: faces.jacobian(noise, faces.model(), 24, 24))


# ---------------------------------------------------------------------------------------- the graph


@pytest.mark.parametrize(
    ("graph", "correlation", "given_makeup"),
    [
        ("common_cause", 0.5**2, 0.0),
        ("mediator", 0.5**2, 0.0),
        # -ab / sqrt((1 - a²)(1 - b²)) for standardised effects
        ("collider", 0.0, -(0.5**2) / (1 - 0.5**2)),
        ("independent", 0.0, 0.0),
    ],
)
def test_graphs_have_the_correlations_that_their_paths_give(graph, correlation, given_makeup):
    cov = np.asarray(faces.model(graph, 0.5).cov)
    np.testing.assert_allclose(np.diag(cov), 1, atol=1e-14)
    np.testing.assert_allclose(cov[CHEEKS, NOSE], correlation, atol=1e-14)
    precision = np.linalg.inv(cov)
    held = -precision[CHEEKS, NOSE] / np.sqrt(precision[CHEEKS, CHEEKS] * precision[NOSE, NOSE])
    np.testing.assert_allclose(held, given_makeup, atol=1e-14)
    others = [i for i in range(A) if i not in (MAKEUP, CHEEKS, NOSE)]
    np.testing.assert_array_equal(cov[np.ix_(others, others)], np.eye(A - 3))
    assert not cov[np.ix_(others, [MAKEUP, CHEEKS, NOSE])].any()


def test_a_graph_of_ones_own():
    edges = {
        ("Young", "Smiling"): 0.5,
        ("Smiling", "Narrow_Eyes"): -0.8,
        ("Young", "Narrow_Eyes"): 0.3,
    }
    cov = faces.model(edges).cov
    young, smiling, narrow = (
        faces.ATTRIBUTES.index(n) for n in ("Young", "Smiling", "Narrow_Eyes")
    )
    np.testing.assert_allclose(jnp.diag(cov), 1, atol=1e-14)
    np.testing.assert_allclose(cov[young, smiling], 0.5, atol=1e-14)
    np.testing.assert_allclose(cov[young, narrow], 0.3 - 0.8 * 0.5, atol=1e-14)
    np.testing.assert_allclose(cov[smiling, narrow], -0.8 + 0.3 * 0.5, atol=1e-14)


@pytest.mark.parametrize(
    ("graph", "strength", "message"),
    [
        ("chain", 0.6, "graph must be one of common_cause, mediator, collider, independent"),
        ({("Young", "Hats"): 0.5}, 0.6, "got 'Hats'"),
        ({("Young", "Bangs"): 0.5, ("Bangs", "Young"): 0.5}, 0.6, "acyclic"),
        ("collider", 0.75, r"effects on Heavy_Makeup must explain a variance below 1, got 1\.1"),
        ("common_cause", 1.0, "below 1, got 1"),
    ],
)
def test_graphs_refused(unchecked, graph, strength, message):
    with pytest.raises(ValueError, match=message):
        faces.model(graph, strength)


# -------------------------------------------------------------------------------------- derivatives


def test_jacobian_is_the_limit_of_differences(jacobian):
    """Of image and attributes, in double precision, at faces all over the latent space: no kink
    anywhere."""
    model, h = faces.model(), 1e-5
    for key in range(3):
        noise = 1.3 * jax.random.normal(jax.random.key(key), (N,))
        image, attributes = jacobian(noise)
        assert image.shape == (24, 24, 3, N) and attributes.shape == (A, N)
        for k, e in enumerate(np.eye(N)):
            up, down = small(noise + h * e), small(noise - h * e)
            np.testing.assert_allclose(
                image[..., k], (up.image - down.image) / (2 * h), atol=1.5e-7
            )
        np.testing.assert_allclose(attributes[:, :A], model.structural_map, atol=1e-14)
        np.testing.assert_array_equal(attributes[:, A:], 0)


def test_reverse_mode_agrees_with_forward_mode(jacobian):
    noise = jax.random.normal(jax.random.key(5), (N,))
    direction = jax.random.normal(jax.random.key(6), (N,))
    weights = jax.random.normal(jax.random.key(7), (24, 24, 3))
    forward = jacobian(noise).image @ direction
    backward = jax.grad(lambda z: (weights * small(z).image).sum())(noise)
    np.testing.assert_allclose((weights * forward).sum(), backward @ direction, rtol=1e-11)


def test_attributes_of_a_nonlinear_structure():
    def equation(name):
        if name == "Rosy_Cheeks":
            return lambda x, e: jnp.tanh(x["Heavy_Makeup"]) + 0.5 * e
        return lambda x, e: e

    structure = SCM({name: equation(name) for name in faces.ATTRIBUTES})
    noise = jnp.zeros(N).at[MAKEUP].set(0.8).at[CHEEKS].set(-0.4)
    attributes = faces.face(noise, structure, 24, 24).attributes
    np.testing.assert_allclose(attributes[CHEEKS], np.tanh(0.8) - 0.2, atol=1e-14)
    rendered = faces.render(attributes, noise[A:], 24, 24)
    np.testing.assert_array_equal(faces.face(noise, structure, 24, 24).image, rendered)


# ------------------------------------------------------------------------------------ what one sees


def test_each_attribute_shows_and_they_can_be_told_apart():
    """Over [-2, 2] each changes some pixel by a tenth of black to white, and no two change the same
    pixels alike."""
    step = 1.0
    sweeps = []
    for k in range(N):
        sweep = np.stack([small(jnp.zeros(N).at[k].set(v)).image for v in np.arange(-2, 2.1, step)])
        assert np.abs(sweep[-1] - sweep[0]).max() > 0.2, (faces.ATTRIBUTES + faces.NUISANCES)[k]
        assert min(np.abs(b - a).max() for a, b in itertools.pairwise(sweep)) > 0.01
        sweeps.append((sweep[-1] - sweep[0]).ravel())
    # in noises, Heavy_Makeup moves its effects as well: undo the structure
    sweeps = np.array(sweeps)
    sweeps[:A] = np.linalg.solve(np.asarray(faces.model().structural_map).T, sweeps[:A])
    sweeps /= np.linalg.norm(sweeps, axis=1, keepdims=True)
    assert np.linalg.svd(sweeps, compute_uv=False)[-1] > 0.2


def test_blush_is_red_and_on_the_cheeks():
    at = {
        value: np.asarray(faces.render(jnp.zeros(A, jnp.float32).at[CHEEKS].set(value)))
        for value in (-2.0, 2.0)
    }
    change = at[2.0] - at[-2.0]
    y, x = np.unravel_index(np.abs(change).sum(-1).argmax(), (64, 64))
    assert 34 < y < 50 and (x < 28 or x > 35)
    assert change[y, x, 1] < -0.2 and change[y, x, 2] < -0.2  # green and blue go, red stays


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_pictures_are_finite_and_in_range(scale):
    p = scale * jax.random.normal(jax.random.key(1), (32, N), jnp.float32)
    images = np.stack([faces.render(row[:A], row[A:]) for row in p])
    assert images.dtype == np.float32 and images.shape == (32, 64, 64, 3)
    assert images.min() >= -1 and images.max() <= 1
    assert images.std() > 0.2


def test_one_picture_at_all_resolutions():
    p = 0.5 * jax.random.normal(jax.random.key(2), (N,), jnp.float32)
    tall = faces.render(p[:A], p[A:], 98, 64)
    low, high = (np.asarray(faces.render(p[:A], p[A:], size, size)) for size in (64, 128))
    np.testing.assert_allclose(tall[17:81], low, atol=1e-6)
    halved = high.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.sqrt(((halved - low) ** 2).mean()) < 0.02


# ------------------------------------------------------------------------------------------ samples


def test_samples_are_the_faces_of_their_noises():
    key, model = jax.random.key(3), faces.model("collider")
    images, attributes = faces.sample(key, 3, model, 16, 16)
    noise = faces.noises(key, 3)
    assert images.dtype == attributes.dtype == noise.dtype == jnp.float32
    np.testing.assert_allclose(
        attributes, noise[:, :A] @ np.asarray(model.structural_map).T, atol=1e-6
    )
    np.testing.assert_allclose(
        images[1], faces.render(attributes[1], noise[1, A:], 16, 16), atol=1e-5
    )
    np.testing.assert_array_equal(faces.noises(key, 2), noise[:2])
    np.testing.assert_array_equal(faces.noises(key, 1, start=2), noise[2:])


def test_a_dataset_to_train_on():
    images, labels = faces.dataset("train", "independent", 40)
    again = faces.sample(jax.random.key(0), 40, faces.model("independent"))
    np.testing.assert_allclose(images, again.image, atol=1e-6)
    np.testing.assert_allclose(
        np.log(labels / (1 - labels)), 2 * again.attributes, rtol=1e-4, atol=1e-5
    )
    others = faces.dataset("held_out", "independent", 40)
    assert len(others.images) == len(others.labels) == 4
    assert np.abs(others.labels[:, None] - labels).max(-1).min() > 0.01  # no face is in both
    with pytest.raises(ValueError, match=r'split must be "train" or "held_out", got \'test\''):
        faces.dataset("test")


def test_noises_are_standard_normal_and_independent():
    n = 20_000
    noise = np.asarray(faces.noises(jax.random.key(4), n), np.float64)
    assert np.abs(noise.mean(0) * np.sqrt(n)).max() < 4
    z = np.sqrt(n) * (noise.T @ noise / n - np.eye(N)) / np.sqrt(1 + np.eye(N))
    assert np.abs(z).max() < 4.5 and 0.8 < z[np.triu_indices(N)].std() < 1.2


def test_calls_refused(unchecked):
    with pytest.raises(ValueError, match=rf"noise must have shape \({N},\)"):
        faces.face(jnp.zeros(A))
    with pytest.raises(ValueError, match=rf"attributes must have shape \({A},\)"):
        faces.render(jnp.zeros(N))
    with pytest.raises(ValueError, match=r"nuisances must have shape"):
        faces.render(jnp.zeros(A), jnp.zeros(A))
    with pytest.raises(ValueError, match="n must be positive, got 0"):
        faces.sample(jax.random.key(0), 0)


# ----------------------------------------------------------------------------------------- as files


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_layout_is_celebas(celeba_folder):
    """Read with nothing but the standard library and Pillow."""
    root, key, n = celeba_folder
    assert sorted(path.name for path in (root / "img_align_celeba").iterdir()) == [
        f"{i:06d}.jpg" for i in range(1, n + 1)
    ]
    with Image.open(root / "img_align_celeba" / "000001.jpg") as image:
        assert image.size == (178, 218) and image.mode == "RGB" and image.format == "JPEG"
    lines = (root / "list_attr_celeba.txt").read_text().splitlines()
    names = lines[1].split()
    assert (
        lines[0] == str(n)
        and len(names) == 40
        and names == sorted(names, key=str.lower)
        and len(lines) == n + 2
    )
    attributes = np.asarray(
        faces.noises(key, n)[:, :A] @ np.asarray(faces.model().structural_map).T
    )
    for i, line in enumerate(lines[2:]):
        name, *values = line.split()
        assert name == f"{i + 1:06d}.jpg" and set(values) <= {"1", "-1"}
        found = dict(zip(names, map(int, values), strict=True))
        assert [found.pop(a) for a in faces.ATTRIBUTES] == np.where(
            attributes[i] > 0, 1, -1
        ).tolist()
        assert set(found.values()) == {-1}
    parts = [line.split() for line in (root / "list_eval_partition.txt").read_text().splitlines()]
    assert [name for name, _ in parts] == [f"{i:06d}.jpg" for i in range(1, n + 1)]
    assert [part for _, part in parts[:10]] == ["0"] * 8 + ["1", "2"]
    assert not list(root.rglob("*.part"))


def test_the_centre_of_a_file_is_the_face(celeba_folder):
    root, key, _ = celeba_folder
    with Image.open(root / "img_align_celeba" / "000002.jpg") as image:
        square = image.crop((0, 20, 178, 198)).resize((64, 64), Image.Resampling.BILINEAR)
    difference = np.asarray(square) / 127.5 - 1 - np.asarray(faces.sample(key, 2).image[1])
    assert np.sqrt((difference**2).mean()) < 0.04  # the antialiasing filter is wider than a pixel


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    key, written = jax.random.key(9), []
    whole = faces._whole

    def interrupted(path, mode="w"):
        if path.suffix == ".jpg":
            written.append(path.name)
            if len(written) > 3:
                raise KeyboardInterrupt
        return whole(path, mode)

    monkeypatch.setattr(faces, "_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        faces.write_celeba(tmp_path / "a", 6, key, workers=1, progress=False)
    assert not (tmp_path / "a" / "list_attr_celeba.txt").exists()
    first = contents(tmp_path / "a" / "img_align_celeba")
    assert 0 < len(first) < 6 and all(name.endswith(".jpg") for name in first)

    written.clear()
    monkeypatch.setattr(
        faces, "_whole", lambda path, mode="w": written.append(path.name) or whole(path, mode)
    )
    faces.write_celeba(tmp_path / "a", 6, key, progress=False)
    assert not set(written) & set(first)  # nothing is written twice
    # the same as in one go; and a longer run leaves what is there
    faces.write_celeba(tmp_path / "b", 4, key, progress=False)
    faces.write_celeba(tmp_path / "b", 6, key, progress=False)
    for folder in ("", "img_align_celeba"):
        ours, theirs = (contents(tmp_path / name / folder) for name in "ab")
        assert ours == theirs


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="disk"), faces._whole(tmp_path / "a.txt") as file:
        file.write("half")
        raise OSError("disk full")
    assert os.listdir(tmp_path) == []


def test_folders_refused(celeba_folder, tmp_path):
    root, key, n = celeba_folder
    with pytest.raises(ValueError, match=r"faces.json tells of others"):
        faces.write_celeba(root, n, jax.random.key(123), progress=False)
    with pytest.raises(ValueError, match=r"faces.json tells of others"):
        faces.write_celeba(root, n, key, faces.model("independent"), progress=False)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="with other files in it"):
        faces.write_celeba(tmp_path, n, key, progress=False)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(ValueError, match="n must be positive, got 0"):
        faces.write_celeba(tmp_path / "new", 0, key)
    assert not (tmp_path / "new").exists()
    assert (
        json.loads((root / "faces.json").read_text())["faces of the key"]
        == jax.random.key_data(key).tolist()
    )
