"""The shipped networks are what their manifests and the present code say."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cdelta import networks, pretrained, training
from cdelta.datasets.faces import painter, samples
from cdelta.pretrained import RECIPES, Recipe, __main__ as command

NAMES = sorted(path.stem for path in pretrained.FOLDER.glob("*.json"))


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """Several tests need the same data, and painting thousands of faces takes seconds."""
    plain, kept = Recipe.samples, {}

    def kept_samples(recipe, split):
        what = [recipe.data, recipe.data_arguments, recipe.objective, recipe.given, split]
        what = json.dumps(what)
        if what not in kept:
            kept[what] = plain(recipe, split)
        return kept[what]

    # off elsewhere in the tests (conftest.py): 5 times slower here
    optimized = {"xla_backend_optimization_level": 2}
    paint = jax.jit(painter.pictures.__wrapped__, static_argnums=(1, 2), compiler_options=optimized)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "pictures", paint)
        patch.setattr(Recipe, "samples", kept_samples)
        yield


def test_what_is_shipped_has_a_recipe_and_is_small():
    assert NAMES and set(NAMES) <= set(RECIPES)
    assert {path.stem for path in pretrained.FOLDER.glob("*.safetensors")} == set(NAMES)
    sizes = {name: (pretrained.FOLDER / f"{name}.safetensors").stat().st_size for name in NAMES}
    assert max(sizes.values()) <= 4 * 2**20, sizes


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_and_the_data_are_those_of_the_manifest(name):
    manifest = pretrained.read_manifest(name)
    assert manifest["recipe"] == RECIPES[name].as_json(), (
        "the recipe has changed: train again (make train)"
    )
    facts = pretrained.data_facts(RECIPES[name])
    assert manifest.get("data_sha256") == facts.get("data_sha256")
    np.testing.assert_allclose(
        manifest.get("data_looks", []), facts.get("data_looks", []), rtol=1e-5
    )
    for fact in ("versions", "seconds", "losses", "parameters"):
        assert manifest[fact]


@pytest.mark.parametrize("name", NAMES)
def test_the_code_still_trains_as_the_manifest_says(name):
    """The first three losses of a run started now; they change with network, loss, optimizer and
    data."""
    manifest = pretrained.read_manifest(name)
    losses = RECIPES[name].fit(steps=3, progress=False).losses
    np.testing.assert_allclose(
        losses, manifest["first_losses"], rtol=2e-4, err_msg="train again (make train)"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_still_have_the_held_out_loss_of_the_manifest(name):
    manifest, network = pretrained.read_manifest(name), pretrained.load(name)
    network = getattr(network, "network", network)  # what was trained, inside a VelocityFromTarget
    loss, stderr = RECIPES[name].held_out_loss(network)
    np.testing.assert_allclose(
        [loss, stderr], [manifest["held_out_loss"], manifest["held_out_stderr"]], rtol=2e-3
    )
    assert networks.parameter_count(network) == manifest["parameters"]


def test_the_classifier_reads_held_out_digits():
    images, labels = RECIPES["digit_classifier"].samples("held_out")
    logits = jax.jit(jax.vmap(pretrained.load("digit_classifier")))(images)
    accuracy = np.mean(np.argmax(logits, 1) == labels)
    assert accuracy > 0.95


# ------------------------------------------------------------------------ saving, loading, training


TINY = {"shape": (28, 28), "width": 4, "layers": 1}


def tiny(**changes):
    return dataclasses.replace(
        Recipe(
            "MLP",
            TINY,
            "mnist",
            {"digits": (5,)},
            steps=3,
            warmup=1,
        ),
        **changes,
    )


def weights(network):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(network))]


@pytest.mark.parametrize("kind", ["MLP", "paper", "classifier"])
def test_what_is_saved_is_loaded(tmp_path, kind):
    recipe = {
        "MLP": tiny(),
        "paper": tiny(
            network="UNet",
            arguments={"shape": (8, 8), "channels": (2, 2), "residual": False, "time": 4},
        ),
        "classifier": tiny(
            network="Classifier",
            arguments={"shape": (8, 8), "outputs": 2, "channels": (4,), "depths": (1,)},
        ),
    }[kind]
    network = recipe.build()
    if kind == "paper":  # running averages are weights too
        network.down[0][0].norm_first.mean[...] = jnp.array([3.0, 4.0], jnp.float32)
    pretrained.save("it", network, tmp_path, recipe=recipe.as_json())
    for a, b in zip(weights(network), weights(pretrained.load("it", tmp_path)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it.json", "it.safetensors"]


def test_training_writes_weights_and_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "RECIPES", {"it": tiny(objective="target_loss")})
    monkeypatch.setenv("TQDM_DISABLE", "1")
    pretrained.train("it", tmp_path)
    velocity, manifest = pretrained.load("it", tmp_path), pretrained.read_manifest("it", tmp_path)
    assert isinstance(velocity, networks.VelocityFromTarget) and velocity(
        0.5, jnp.ones((28, 28))
    ).shape == (28, 28)
    assert len(manifest["losses"]) == 3 and manifest["losses"] == pytest.approx(
        manifest["first_losses"], abs=1e-5
    )
    content = (tmp_path / "it.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == manifest["sha256"]
    again = training.fit(
        tiny().build(),
        tiny().samples("train"),
        jax.random.key(0),
        steps=3,
        batch=64,
        objective=training.target_loss,
        optimizer=training.adamw(2e-3, 3, 1),
        progress=False,
    )
    for a, b in zip(weights(again.network), weights(velocity.network), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_that_stops_early_is_on_the_schedule_of_the_whole():
    """And its average is the recipe's: none, here."""
    recipe = tiny(ema=0.0, steps=6)
    stopped = recipe.fit(steps=3, progress=False)
    by_hand = training.fit(
        recipe.build(), recipe.samples("train"), jax.random.key(0), steps=3, batch=64, ema=0,
        optimizer=training.adamw(2e-3, 6, 1), progress=False,
    )  # fmt: skip
    for a, b in zip(weights(stopped.network), weights(by_hand.network), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_recipe_may_begin_where_another_ended_and_weigh_what_it_watches(monkeypatch):
    """Its first loss is that of the other's weights, by hand; pixels that the watched attributes
    move count more, and the others something."""
    data = {"graph": "collider", "n": 200}
    first = RECIPES["faces_collider"]
    recipe = dataclasses.replace(first, data_arguments=data, steps=2, warmup=1, batch=8)
    weight, (images, labels) = recipe.weight(), samples.dataset(**data)
    assert weight(0.3).shape == (64, 64, 3) and float(weight(0.7).min()) > 0
    times = (jnp.arange(1000) + 0.5) / 1000
    assert float(jax.vmap(weight)(times).mean()) == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(weight(0.3), 10 * weight(0.9), rtol=1e-6)
    watched = [samples.ATTRIBUTES.index(name) for name in recipe.watched]
    pixel = np.unravel_index(int(weight(0.3).argmax()), images.shape[1:])
    strongest = [abs(np.corrcoef(images[:, *pixel], labels[:, i])[0, 1]) for i in range(14)]
    assert int(np.argmax(strongest)) in watched
    network = pretrained.load("faces").network
    rows = []

    def seen(network, key, x1, weight):
        rows.append((network, key, x1))
        return jnp.zeros(())

    found = recipe.fit(progress=False).losses[0]
    monkeypatch.setattr(training, "target_velocity_loss", seen)
    with jax.disable_jit():
        recipe.fit(progress=False)
    (_, key, x1), *_ = rows
    x1 = jnp.asarray(x1)
    monkeypatch.undo()
    by_hand = training.target_velocity_loss(network, key, x1, weight=weight)
    assert found == pytest.approx(float(by_hand), rel=1e-4)
    assert abs(float(training.target_velocity_loss(network, key, x1)) / found - 1) > 0.05


@pytest.fixture(scope="module")
def given(drawn_once):
    """The recipe of a network that is given attributes, on few faces."""
    few = {"graph": "common_cause", "n": 20}
    return dataclasses.replace(RECIPES["faces_given"], data_arguments=few, batch=8)


def test_given_are_logits_twice_the_attributes(given):
    images, logits = given.samples("train")
    faces = samples.sample(jax.random.key(0), 20, samples.model("common_cause"))
    np.testing.assert_allclose(logits, 2 * faces.attributes, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(images, faces.image)
    some = dataclasses.replace(given, given=given.given[2:0:-1])
    np.testing.assert_array_equal(some.samples("train")[1], logits[:, [2, 1]])

    # they are also weighed before t = .2
    weight, times = given.weight(), (jnp.arange(1000) + 0.5) / 1000
    np.testing.assert_allclose(weight(0.1), 10 * weight(0.9), rtol=1e-6)
    assert float(jax.vmap(weight)(times).mean()) == pytest.approx(1, rel=1e-4)


def test_a_network_that_is_given_attributes_begins_as_the_one_that_was_not(given, tmp_path):
    """Whatever it is given; it learns to use it, and an interrupted training goes on."""
    one, other, *_ = given.samples("train")[1]
    network, begun = given.build(), pretrained.load("faces").network
    x = jax.random.normal(jax.random.key(1), (64, 64, 3), jnp.float32)
    for logits in (one, other):
        np.testing.assert_array_equal(network(0.4, x, logits), begun(0.4, x))
    # it is the network that was interrupted, and not another, that goes on
    options = dict(checkpoints=tmp_path, every=1, progress=False)
    given.fit(steps=2, **options)
    trained, whole = given.fit(steps=3, **options), given.fit(steps=3, progress=False)
    for a, b in zip(weights(trained.network), weights(whole.network), strict=True):
        np.testing.assert_array_equal(a, b)
    learned = trained.network
    assert np.abs(learned(0.4, x, one) - learned(0.4, x, other)).max() > 0
    fresh = dataclasses.replace(given, start="").build()  # from nothing it uses it at once
    assert np.abs(fresh.c_in.kernel[...]).max() > 0


def test_a_start_that_does_not_fit_is_refused_before_training(given):
    for arguments in ({"channels": (8, 16)}, {"condition": 0}):
        other = dataclasses.replace(given, arguments={**given.arguments, **arguments})
        start = "faces" if "channels" in arguments else "faces_given"
        with pytest.raises(ValueError, match="start must fit the network that the recipe builds"):
            dataclasses.replace(other, start=start).build()


def test_the_held_out_loss_is_the_mean_over_held_out_rows():
    recipe = tiny()
    network, images = recipe.build(), recipe.samples("held_out")
    losses = []
    for i in range(3):
        rows = np.random.default_rng([0, i]).permutation(len(images))[:5]
        key = jax.random.fold_in(jax.random.key(0), i)
        losses.append(float(training.loss(network, key, jnp.asarray(images[rows]))))
    mean, stderr = recipe.held_out_loss(network, repeats=3, batch=5)
    assert mean == pytest.approx(np.mean(losses), rel=1e-5)
    assert stderr == pytest.approx(np.std(losses, ddof=1) / np.sqrt(3), rel=1e-3)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"name must be one of .*'nothing'"):
        pretrained.load("nothing")
    pretrained.save("it", tiny().build(), tmp_path, recipe=tiny().as_json())
    weights_file = tmp_path / "it.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"?")
    with pytest.raises(OSError, match=r"it\.safetensors is damaged"):
        pretrained.load("it", tmp_path)


def test_a_network_of_ones_own_is_saved_with_its_constructor(tmp_path):
    """What load needs of a recipe is enough: no data, no steps."""
    network = networks.MLP(2, width=5, rngs=nnx.Rngs(3))
    recipe = {"network": "MLP", "arguments": {"shape": 2, "width": 5}}
    pretrained.save("mine", network, tmp_path, recipe=recipe, note="of my own")
    x = jnp.array([0.3, -1.0], jnp.float32)
    np.testing.assert_array_equal(pretrained.load("mine", tmp_path)(0.5, x), network(0.5, x))
    assert pretrained.read_manifest("mine", tmp_path)["note"] == "of my own"
    pretrained.save("aim", network, tmp_path, recipe=recipe | {"objective": "target_loss"})
    velocity = networks.VelocityFromTarget(network)
    np.testing.assert_array_equal(pretrained.load("aim", tmp_path)(0.5, x), velocity(0.5, x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": None}, r"recipe is needed.*recipe=\{'network': 'MLP'"),
        ({"recipe": {"network": "MLP"}}, "recipe must name a network and its arguments"),
        ({"recipe": {"network": "nnx.Linear", "arguments": {}}}, "network of cdelta.networks"),
        ({"recipe": {"network": "UNet.tiny", "arguments": {}}}, "network of cdelta.networks"),
        (
            {"recipe": {"network": "MLP", "arguments": {"shape": 3, "breadth": 4}}},
            "MLP takes: .*breadth",
        ),
        ({"recipe": {"network": "MLP", "arguments": {"shape": 3}}}, r"shape \(4,\), not \(128,\)"),
        ({"recipe": tiny(arguments=TINY | {"layers": 2})}, r"at hidden\.1\.bias are missing"),
        (
            {"network": networks.MLP(28, 4, 2, rngs=nnx.Rngs(0))},
            r"weights at hidden\.1\.bias, where",
        ),
        ({"name": "../it"}, "name must be that of a file"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, change, message):
    arguments = {"name": "it", "network": tiny().build(), "recipe": tiny().as_json()} | change
    with pytest.raises(ValueError, match=message):
        pretrained.save(folder=tmp_path / "new", **arguments)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda text: text[: len(text) // 2], r"it\.json is damaged"),
        (lambda text: "", r"it\.json is damaged"),
        (lambda text: "[1]", r"it\.json is damaged: it holds no facts but list"),
        (lambda text: "{}", r"it\.json is incomplete: it has no sha256 and no recipe"),
        (lambda text: text.replace("recipe", "receipt"), "incomplete: it has no recipe"),
        (lambda text: text.replace("MLP", "PLM"), "damaged: recipe must name a network"),
        (lambda text: text.replace('"width"', '"wide"'), "damaged: recipe must have arguments"),
        (lambda text: text.replace('"width": 4', '"width": 5'), r"have shape \(4,\), not \(5,\)"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, breaks, message):
    pretrained.save("it", tiny().build(), tmp_path, recipe=tiny())
    manifest = tmp_path / "it.json"
    manifest.write_text(breaks(manifest.read_text()))
    with pytest.raises(OSError, match=message):
        pretrained.load("it", tmp_path)


def test_the_command_refuses_an_unknown_name():
    result = subprocess.run(
        [sys.executable, "-m", "cdelta.pretrained", "sixes"], capture_output=True, text=True
    )
    assert result.returncode == 2 and "unknown: sixes" in result.stderr and "fives" in result.stderr


def test_the_command_trains_what_is_named_where_it_is_told_and_says_how_well(
    tmp_path, monkeypatch, capsys
):
    for module in (pretrained, command):
        monkeypatch.setattr(module, "RECIPES", {"it": tiny(), "other": tiny()})
    monkeypatch.setenv("TQDM_DISABLE", "1")
    there, runs = tmp_path / "weights", tmp_path / "runs"
    options = ["--folder", str(there), "--checkpoints", str(runs)]
    monkeypatch.setattr(sys, "argv", ["python -m cdelta.pretrained", "it", *options])
    command.main()
    assert sorted(path.name for path in there.iterdir()) == ["it.json", "it.safetensors"]
    manifest = pretrained.read_manifest("it", there)
    assert manifest["recipe"] == tiny().as_json()
    said = capsys.readouterr().out
    assert "it: 3 steps" in said and f"{manifest['parameters']} parameters" in said
    assert f"{manifest['held_out_loss']:.4f} ± {manifest['held_out_stderr']:.4f}" in said


def test_trainings_are_those_that_are_there(tmp_path):
    names = pretrained.trainings("fives")
    assert names[0] == "fives" and set(names) <= set(pretrained.REPEATS["fives"])
    for name in ("mnist", "mnist_2", "mnist_old", "other"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert pretrained.trainings("mnist", tmp_path) == ("mnist", "mnist_2")
    assert pretrained.trainings("other", tmp_path) == ("other",)
    with pytest.raises(ValueError, match="got 'fives'"):
        pretrained.trainings("fives", tmp_path)
    recipes = [RECIPES[name] for name in pretrained.REPEATS["fives"]]
    assert [recipe.seed for recipe in recipes] == [0, 1, 2]
    assert all(dataclasses.replace(recipe, seed=0) == recipes[0] for recipe in recipes)
    begun = [RECIPES[name] for name in pretrained.REPEATS["faces_collider"]]
    assert [(recipe.seed, recipe.start) for recipe in begun] == [
        (7, "faces"), (8, "faces_1"), (9, "faces_2")
    ]  # fmt: skip
    for name in pretrained.REPEATS["faces_given"]:
        assert RECIPES[name].start == name.replace("_given", "")


def test_a_recipe_survives_json():
    for recipe in RECIPES.values():
        again = Recipe(**json.loads(json.dumps(recipe.as_json())))
        assert again.as_json() == recipe.as_json()
