"""The small trained networks that the book shows, and the recipes that made them.

``load(name)`` gives one ready to use. ``python -m cdelta.pretrained`` trains them from nothing.
Beside each ``NAME.safetensors`` lies its manifest ``NAME.json``: recipe, checksum of the data,
versions, seconds, losses.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.special import logit

from cdelta import _files, _weights, datasets, networks, quality, training

FOLDER = Path(__file__).parent
CONDITION = ("c_in.kernel", "c_in.bias")  # the weights with which a network takes a condition in


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything a training run depends on.

    ``network`` names a constructor in ``cdelta.networks``, ``objective`` a function in
    ``cdelta.training``, ``data`` a function in ``cdelta.datasets`` that takes ``split``. ``start``
    names a network of this package whose weights it begins with; ``watched`` are attributes of
    faces whose pixels, and times, the loss weighs more (:meth:`weight`); ``given`` are those
    whose labels' logits are the network's condition.
    """

    network: str
    arguments: Mapping[str, Any]
    data: str
    data_arguments: Mapping[str, Any]
    objective: str = "loss"
    steps: int = 6000
    batch: int = 64
    rate: float = 2e-3
    warmup: int = 200
    ema: float = 0.995
    seed: int = 0
    start: str = ""
    watched: Sequence[str] = ()
    given: Sequence[str] = ()

    def build(self) -> nnx.Module:
        """The network before training. With ``start`` it has its weights; a condition that
        ``start`` did not have enters with weight 0, so that it begins as the same function.

        Raises ValueError when the weights of ``start`` do not fit.
        """
        network = _constructor(self.network)(**self.arguments, rngs=nnx.Rngs(self.seed))
        if not self.start:
            return network
        begun = load(self.start)
        weights = _weights.leaves(nnx.state(getattr(begun, "network", begun)))
        own = _weights.leaves(nnx.state(network))
        added = {path: jnp.zeros_like(own[path]) for path in CONDITION if path in own}
        difference = _weights.difference(added | weights, own)
        if difference:
            raise ValueError(f"start must fit the network that the recipe builds: {difference}")
        graph, state = nnx.split(network)
        network = nnx.merge(graph, _weights.filled(state, added | weights))
        network.train()
        return network

    def samples(self, split: str) -> Any:
        """The data of one ``split``: images; with labels for a classifier, with the logits of
        attributes where some are given."""
        images, labels = attrgetter(self.data)(datasets)(split=split, **self.data_arguments)
        if self.objective.endswith("cross_entropy"):
            return images, labels
        return (images, logit(labels[:, _columns(self.given)])) if self.given else images

    def fit(self, steps: int | None = None, **options: Any) -> training.Fit:
        """Train on the training split; ``steps`` stops early (on the schedule of the whole run)."""
        objective = getattr(training, self.objective)
        if self.watched:
            objective = functools.partial(objective, weight=self.weight())
        return training.fit(
            self.build(),
            self.samples("train"),
            jax.random.key(self.seed),
            steps=self.steps if steps is None else steps,
            batch=self.batch,
            objective=objective,
            optimizer=training.adamw(self.rate, self.steps, self.warmup),
            ema=self.ema,
            **options,
        )

    def weight(self) -> Callable[[jax.Array], jax.Array]:
        r"""What the square of each pixel and colour counts at time t, for the attributes watched.

        .. math:: w_p(t) \propto (R_p^2 + .02)\, (1 + 9 \cdot 1[t_0 < t < .6])

        with the share :math:`R_p^2` of the pixel's variance that the attributes' labels explain;
        1 on average. It is :math:`t_0 = .2`, from where on an attribute of a face comes to be told
        from the noise, at times which pay for three quarters of what a dependence is worth (chapter
        13); and 0 where attributes are given, which tell before the noise does.
        """
        images, labels = attrgetter(self.data)(datasets)(split="train", **self.data_arguments)
        share = quality.explained(
            labels[:, _columns(self.watched)], images.reshape(len(images), -1)
        )
        pixels = jnp.asarray((share + 0.02) / (share.mean() + 0.02), jnp.float32)
        pixels = pixels.reshape(images.shape[1:])
        begin = 0.0 if self.given else 0.2
        mean = 1 + 9 * (0.6 - begin)
        return lambda t: pixels * jnp.where((t > begin) & (t < 0.6), 10.0, 1.0) / mean

    def held_out_loss(
        self, network: Any, repeats: int = 20, batch: int = 100
    ) -> tuple[float, float]:
        """Mean loss of ``network`` on held-out batches, and its standard error: no weights."""
        data = self.samples("held_out")
        objective = jax.jit(getattr(training, self.objective))
        n = len(jax.tree.leaves(data)[0])
        losses = []
        for i in range(repeats):
            rows = np.random.default_rng([self.seed, i]).permutation(n)[:batch]
            key = jax.random.fold_in(jax.random.key(self.seed), i)
            some = jax.tree.map(lambda array, rows=rows: array[rows], data)
            losses.append(float(objective(network, key, some)))
        return float(np.mean(losses)), float(np.std(losses, ddof=1) / np.sqrt(repeats))

    def as_json(self) -> dict[str, Any]:
        """The recipe in the form that a manifest holds: without what most recipes have not."""
        fields = dataclasses.asdict(self).items()
        return json.loads(
            json.dumps({name: given for name, given in fields if given not in ("", ())})
        )


_FIRST = {
    "mnist": Recipe("UNet.small", {"shape": (28, 28)}, "mnist", {}, steps=4000),
    "fives": Recipe("UNet.small", {"shape": (28, 28)}, "mnist", {"digits": (5,)}, steps=2000),
    "digit_classifier": Recipe(
        "Classifier",
        {"shape": (28, 28), "outputs": 10},
        "mnist",
        {},
        "cross_entropy",
        steps=1500,
        batch=128,
    ),
    # predicts the target: a velocity carries the noise of 48 numbers a patch through 48
    # channels, and leaves some
    "faces": Recipe(
        "UNet.small",
        {"shape": (64, 64, 3), "patch": 4},
        "faces.dataset",
        {"graph": "common_cause", "n": 6000},
        "target_velocity_loss",
        steps=4500,
    ),
    # on faces whose attributes are independent, so that no logit learns to read one attribute
    # off another
    "face_classifier": Recipe(
        "Classifier",
        {
            "shape": (64, 64, 3),
            "outputs": 14,
            "channels": (48, 96, 128),
            "depths": (1, 1, 1),
            "patch": 4,
        },
        "faces.dataset",
        {"graph": "independent", "n": 6000},
        "binary_cross_entropy",
        steps=3000,
    ),
}

# begun where the common cause's ended: from nothing, dependences come late
_FIRST["faces_collider"] = dataclasses.replace(
    _FIRST["faces"],
    data_arguments={"graph": "collider", "n": 6000},
    start="faces",
    watched=("Heavy_Makeup", "Rosy_Cheeks", "Pointy_Nose"),
    steps=1000,
    rate=1e-3,
    warmup=50,
    ema=0.98,
    seed=7,
)

# the image given its attributes: as a causal flow has it at a node (C12)
_FIRST["faces_given"] = dataclasses.replace(
    _FIRST["faces"],
    arguments={**_FIRST["faces"].arguments, "condition": len(datasets.faces.ATTRIBUTES)},
    start="faces",
    given=datasets.faces.ATTRIBUTES,
    watched=("Heavy_Makeup", "Rosy_Cheeks", "Pointy_Nose"),
    steps=1000,
    warmup=50,
    ema=0.98,
    seed=7,
)

# What a chapter says of a trained flow it says of several trainings: the same recipe and data,
# other first weights, other batches.
REPEATS = {
    name: (name, f"{name}_1", f"{name}_2")
    for name in ("mnist", "fives", "faces", "faces_collider", "faces_given")
}


def _repeat(first: str, number: int) -> Recipe:
    """The training of ``first`` from other weights, with other draws."""
    recipe = _FIRST[first]
    start = REPEATS[recipe.start][number] if recipe.start else ""
    return dataclasses.replace(recipe, seed=recipe.seed + number, start=start)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    _FIRST
    | {
        name: _repeat(first, number)
        for first, names in REPEATS.items()
        for number, name in enumerate(names[1:], 1)
    }
)


def trainings(name: str, folder: str | os.PathLike = FOLDER) -> tuple[str, ...]:
    """The names under which ``folder`` has ``name``, trained from one seed or from several.

    Raises ValueError when it has none.
    """
    names = REPEATS.get(name, (name,))
    found = tuple(one for one in names if (Path(folder) / f"{one}.json").is_file())
    if not found:
        raise ValueError(f"name must be that of a network in {os.fspath(folder)}, got {name!r}")
    return found


def load(name: str, folder: str | os.PathLike = FOLDER) -> nnx.Module:
    """The trained network ``name``, a velocity ``(t, x) -> dx/dt`` or a classifier ``x -> logits``.

    Raises ValueError for an unknown name, OSError when the manifest is damaged or incomplete, or
    when the weights are not those of the manifest.
    """
    known = sorted(path.stem for path in Path(folder).glob("*.json"))
    if name not in known:
        raise ValueError(f"name must be one of {known}, got {name!r}")
    manifest = read_manifest(name, folder)
    missing = [fact for fact in ("sha256", "recipe") if fact not in manifest]
    if missing:
        raise OSError(f"{name}.json is incomplete: it has no {' and no '.join(missing)}")
    content = (Path(folder) / f"{name}.safetensors").read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise OSError(f"{name}.safetensors is damaged: its checksum is not the manifest's")

    try:
        weights, _ = _weights.parse(content)
    except ValueError as error:
        raise OSError(f"{name}.safetensors is no file that save wrote: {error}") from error
    try:
        graph, like = _untrained(manifest["recipe"])
    except ValueError as error:
        raise OSError(f"{name}.json is damaged: {error}") from error
    difference = _weights.difference(weights, _weights.leaves(like))
    if difference:
        raise OSError(f"{name}.safetensors does not fit the recipe in {name}.json: {difference}")
    network = nnx.merge(graph, _weights.filled(like, weights))
    network.eval()
    targets = manifest["recipe"].get("objective", "loss").startswith("target")
    return networks.VelocityFromTarget(network) if targets else network


def save(
    name: str,
    network: nnx.Module,
    folder: str | os.PathLike = FOLDER,
    *,
    recipe: Recipe | Mapping[str, Any] | None = None,
    **facts: Any,
) -> None:
    """Write the weights of ``network``, and a manifest with its recipe and ``facts``.

    Both files are written whole or not at all. ``recipe`` is that of the training, or what ``load``
    needs of it: a constructor in ``cdelta.networks`` and its arguments, ``{"network": "MLP",
    "arguments": {"shape": 2}}``, and ``"objective": "target_loss"`` when the network predicts the
    target.

    Raises ValueError, before anything is written, when ``load`` could not read what would be saved:
    also of weights that the recipe's dtype would round.
    """
    if recipe is None:
        raise ValueError(
            "recipe is needed, or load could not build the network: recipe={'network': "
            f"{type(network).__name__!r}, 'arguments': {{...}}}}, those of its constructor"
        )
    if not name or name != Path(name).name:
        raise ValueError(f"name must be that of a file without its folder, got {name!r}")
    recipe = recipe.as_json() if isinstance(recipe, Recipe) else json.loads(json.dumps({**recipe}))
    if "sha256" in facts:
        raise ValueError("facts must not have sha256, the checksum that is written beside them")
    weights = _weights.leaves(nnx.state(network))
    like = _weights.leaves(_untrained(recipe)[1])
    difference = _weights.difference(weights, like, exact=True)
    if difference:
        raise ValueError(f"recipe must build the network that is saved: {difference}")
    content = _weights.serialise(weights, {})
    manifest = {
        "name": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "recipe": recipe,
        **facts,
    }
    try:
        text = json.dumps(manifest, indent=1) + "\n"
    except TypeError as error:
        raise ValueError(f"facts must be what JSON can hold: {error}") from error
    with _files.whole(Path(folder) / f"{name}.safetensors") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # the disk has taken it: it comes to be once the manifest has
        _files.write(Path(folder) / f"{name}.json", text)


def read_manifest(name: str, folder: str | os.PathLike = FOLDER) -> dict[str, Any]:
    """What is recorded of the training of ``name``. Raises OSError when it is damaged."""
    path = Path(folder) / f"{name}.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise OSError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict):
        raise OSError(f"{path} is damaged: it holds no facts but {type(manifest).__name__}")
    return manifest


def train(
    name: str, folder: str | os.PathLike = FOLDER, checkpoints: str | os.PathLike | None = None
) -> None:
    """Train ``name`` by its recipe and save it with its manifest.

    With ``checkpoints`` (a folder) an interrupted run goes on.
    """
    recipe = RECIPES[name]
    result = recipe.fit(
        checkpoints=None if checkpoints is None else Path(checkpoints) / name, every=500
    )
    loss, stderr = recipe.held_out_loss(result.network)
    every = max(1, recipe.steps // 60)
    facts = {
        "recipe": recipe.as_json(),
        "parameters": networks.parameter_count(result.network),
        **data_facts(recipe),
        "versions": {package: version(package) for package in ("jax", "flax", "optax", "numpy")},
        "seconds": round(result.seconds),
        "first_losses": [float(value) for value in result.losses[:3]],
        "losses": [
            round(float(part.mean()), 5)
            for part in np.split(result.losses, range(every, recipe.steps, every))
        ],
        "held_out_loss": loss,
        "held_out_stderr": stderr,
    }
    save(name, result.network, folder, **facts)


def data_facts(recipe: Recipe) -> dict[str, Any]:
    """What a manifest says of the training data: the SHA-256 of its bytes, ``data_sha256``.

    Where the data is rendered its last bits differ between machines; ``data_looks`` then holds each
    array's mean and standard deviation.
    """
    leaves = jax.tree.leaves(recipe.samples("train"))
    if recipe.data.startswith("faces"):
        return {
            "data_looks": [
                [float(leaf.mean(dtype=np.float64)), float(leaf.std(dtype=np.float64))]
                for leaf in leaves
            ]
        }
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return {"data_sha256": digest.hexdigest()}


def _untrained(recipe: Any) -> tuple[Any, Any]:
    """The graph of the network that ``recipe`` builds, and its state as shapes alone.

    No random numbers are drawn only to be replaced.
    """
    if not isinstance(recipe, Mapping) or not {"network", "arguments"} <= set(recipe):
        raise ValueError(f"recipe must name a network and its arguments, got {recipe!r}")
    constructor = _constructor(recipe["network"])
    try:
        shapes = nnx.eval_shape(lambda: constructor(**recipe["arguments"], rngs=nnx.Rngs(0)))
    except TypeError as error:
        raise ValueError(
            f"recipe must have arguments that {recipe['network']} takes: {error}"
        ) from error
    return nnx.split(shapes)


def _columns(attributes: Sequence[str]) -> list[int]:
    return [datasets.faces.ATTRIBUTES.index(name) for name in attributes]


def _constructor(network: Any) -> Callable[..., nnx.Module]:
    """The class of ``cdelta.networks``, or the class method of one, that ``network`` names."""
    name, _, method = str(network).partition(".")
    kind = getattr(networks, name, None)
    ours = isinstance(kind, type) and kind.__module__ == networks.__name__
    constructor = getattr(kind, method, None) if method else kind
    if not ours or not callable(constructor):
        raise ValueError(f"recipe must name a network of cdelta.networks, got {network!r}")
    return constructor
