"""The small trained networks that the book shows, and the recipes that made them.

``load(name)`` gives one ready to use. ``python -m cdelta.pretrained`` trains them from nothing.
Beside each ``NAME.safetensors`` lies its manifest ``NAME.json``: recipe, checksum of the data,
versions, seconds, losses.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx

from cdelta import datasets, networks, training

FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything a training run depends on.

    ``network`` names a constructor in ``cdelta.networks``, ``objective`` a function in
    ``cdelta.training``, ``data`` a function in ``cdelta.datasets`` that takes ``split``.
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

    def build(self) -> nnx.Module:
        """The untrained network."""
        return attrgetter(self.network)(networks)(**self.arguments, rngs=nnx.Rngs(self.seed))

    def samples(self, split: str) -> Any:
        """The data of one ``split``: images, or images and labels for a classifier."""
        images, labels = attrgetter(self.data)(datasets)(split=split, **self.data_arguments)
        return (images, labels) if self.objective.endswith("cross_entropy") else images

    def fit(self, steps: int | None = None, **options: Any) -> training.Fit:
        """Train on the training split; ``steps`` stops early (on the schedule of the whole run)."""
        return training.fit(
            self.build(),
            self.samples("train"),
            jax.random.key(self.seed),
            steps=self.steps if steps is None else steps,
            batch=self.batch,
            objective=getattr(training, self.objective),
            optimizer=training.adamw(self.rate, self.steps, self.warmup),
            ema=self.ema,
            **options,
        )

    def held_out_loss(
        self, network: Any, repeats: int = 20, batch: int = 100
    ) -> tuple[float, float]:
        """Mean loss of ``network`` on held-out data and its standard error over ``repeats``
        batches."""
        data = self.samples("held_out")
        objective = jax.jit(getattr(training, self.objective))
        n = len(jax.tree.leaves(data)[0])
        losses = []
        for i in range(repeats):
            rows = np.random.default_rng([self.seed, i]).permutation(n)[:batch]
            key = jax.random.fold_in(jax.random.key(self.seed), i)
            losses.append(
                float(
                    objective(
                        network, key, jax.tree.map(lambda array, rows=rows: array[rows], data)
                    )
                )
            )
        return float(np.mean(losses)), float(np.std(losses, ddof=1) / np.sqrt(repeats))

    def as_json(self) -> dict[str, Any]:
        """The recipe in the form that a manifest holds."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
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
)


def load(name: str, folder: str | os.PathLike = FOLDER) -> nnx.Module:
    """The trained network ``name``: a velocity ``(t, x) -> dx/dt``, or a classifier
    ``x -> logits``.

    Raises ValueError for an unknown name, OSError when the weights are not those of the manifest.
    """
    known = sorted(path.stem for path in Path(folder).glob("*.json"))
    if name not in known:
        raise ValueError(f"name must be one of {known}, got {name!r}")
    manifest = read_manifest(name, folder)
    content = (Path(folder) / f"{name}.safetensors").read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise OSError(f"{name}.safetensors is damaged: its checksum is not the manifest's")

    from safetensors.numpy import load as parse

    recipe = Recipe(**manifest["recipe"])
    # no random numbers are drawn only to be replaced
    graph, state = nnx.split(nnx.eval_shape(recipe.build))
    weights = {tuple(key.split(".")): value for key, value in parse(content).items()}
    leaves = jax.tree_util.tree_flatten_with_path(state)
    network = nnx.merge(
        graph,
        jax.tree.unflatten(leaves[1], [_take(weights, path, leaf) for path, leaf in leaves[0]]),
    )
    network.eval()
    return (
        networks.VelocityFromTarget(network) if recipe.objective.startswith("target") else network
    )


def save(name: str, network: nnx.Module, folder: str | os.PathLike = FOLDER, **facts: Any) -> None:
    """Write the weights of ``network`` and a manifest with ``facts`` into ``folder``, each file
    whole or not at all."""
    from safetensors.numpy import save as serialise

    leaves = jax.tree_util.tree_flatten_with_path(nnx.state(network))[0]
    weights = {
        ".".join(_names(path)): np.asarray(leaf) for path, leaf in leaves if _is_weight(leaf)
    }
    content = serialise(weights)
    manifest = {"name": name, "sha256": hashlib.sha256(content).hexdigest(), **facts}
    _write(Path(folder) / f"{name}.safetensors", content)
    _write(Path(folder) / f"{name}.json", (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(name: str, folder: str | os.PathLike = FOLDER) -> dict[str, Any]:
    """What is recorded of the training of ``name``."""
    return json.loads((Path(folder) / f"{name}.json").read_text())


def train(
    name: str, folder: str | os.PathLike = FOLDER, checkpoints: str | os.PathLike | None = None
) -> None:
    """Train ``name`` by its recipe and save it with its manifest; with ``checkpoints`` an
    interrupted run goes on."""
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


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(entry.key) for entry in path if hasattr(entry, "key"))


def _is_weight(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)


def _take(weights: Mapping[tuple[str, ...], np.ndarray], path: tuple, leaf: Any) -> Any:
    if not _is_weight(leaf):
        return leaf
    value = weights[_names(path)]
    if value.shape != leaf.shape:
        raise OSError(
            f"the weights at {'.'.join(_names(path))} have shape {value.shape}, the network's {leaf.shape}"
        )
    return jax.numpy.asarray(value, dtype=leaf.dtype)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(content)
    os.replace(part, path)
