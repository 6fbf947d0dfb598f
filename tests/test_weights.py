"""Files of networks: every kind of numbers, in every layout, comes back bit for bit or is refused
where it enters."""

import hashlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load, load_file, save

from cdelta import _files, _weights, networks, pretrained, training

KEY = jax.random.key(0)

# Everything that jax calls a kind of numbers, but those of which this machine makes no array.
KINDS = [kind for kind in vars(jnp).values() if isinstance(kind, type(jnp.int8))]
NAMES = sorted(
    {np.dtype(kind).name for kind in KINDS} - {"int1", "uint1", "float6_e2m3fn", "float6_e3m2fn"}
)
LAYOUTS = {
    "whole": lambda a: a,
    "transposed": lambda a: a.T,
    "of Fortran": np.asfortranarray,
    "every other": lambda a: a[:, ::2],
    "backwards": lambda a: a[::-1],
    "one entry thrice": lambda a: np.broadcast_to(a[0, 1], (3,)),
    "of one entry": lambda a: a[:1, :1],
    "empty": lambda a: a[:, :0],
    "a scalar": lambda a: np.array(a[0, 1]),
}


def numbers(dtype):
    """Entries that tell apart their order, and the widths that could be mistaken for theirs."""
    dtype = np.dtype(dtype)
    if dtype.name == "bool":
        return np.array([[0, 1, 1], [1, 0, 1]], bool)
    if jnp.issubdtype(dtype, jnp.integer):
        least, most = int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max)
        return np.array([[least, 1, most], [most, 0, least]], dtype)
    spread = np.array([[1, 2, 4], [1, 0.5, 2]]) * (1 + 0.5j if dtype.kind == "c" else 1)
    wide = dtype.name in ("float32", "float64", "complex64", "complex128")
    return (spread * (np.pi if wide else 1)).astype(dtype)


def alike(mine, theirs):
    """The same bits, shape, dtype and kind of array."""
    assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
    assert isinstance(mine, jax.Array) == isinstance(theirs, jax.Array)
    assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


def test_what_is_listed_is_what_jax_has():
    assert {"bfloat16", "float16", "float64", "complex128", "bool", "int4", "uint64"} < set(NAMES)
    assert {name for name in vars(ml_dtypes) if name.startswith("float8")} <= set(NAMES)


@pytest.mark.parametrize("dtype", NAMES)
def test_every_dtype_and_layout_comes_back_bit_for_bit(tmp_path, dtype):
    network = {name: lay(numbers(dtype)) for name, lay in LAYOUTS.items()}
    network["of jax"] = jnp.asarray(numbers(dtype))
    assert len({array.tobytes() for array in map(np.asarray, network.values())}) > 5  # they differ
    path = tmp_path / "network"
    training.save(path, network)
    like = {name: np.zeros(array.shape, array.dtype) for name, array in network.items()}
    like["of jax"] = jnp.asarray(like["of jax"])
    for name, array in training.load(path, like).items():
        alike(array, network[name])
    again = training.load(path, like)["whole"]
    again[0] = 1  # an array of NumPy is one that can be written, as it was


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
def test_random_keys_come_back_and_draw_the_same(tmp_path, generator):
    key = jax.random.key(3, impl=generator)
    network = {"one": key, "many": jax.random.split(key, (2, 3)), "none": key[None][:0]}
    training.save(tmp_path / "keys", network)
    back = training.load(tmp_path / "keys", jax.tree.map(jnp.zeros_like, network))
    for name, keys in network.items():
        assert back[name].dtype == keys.dtype
        alike(jax.random.key_data(back[name]), jax.random.key_data(keys))
    np.testing.assert_array_equal(jax.random.normal(back["one"]), jax.random.normal(key))
    other = jax.random.key(3, impl={"rbg": "threefry2x32"}.get(generator, "rbg"))
    with pytest.raises(ValueError, match=r"at one are key<.*>, not key<.*>"):
        training.load(tmp_path / "keys", {**network, "one": other})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_a_network_in_any_precision_is_shipped_and_loaded(tmp_path, dtype):
    """Of the recipe's network, in single precision, what is more would be rounded: not saved."""
    network = networks.MLP(2, 3, 1, rngs=nnx.Rngs(0))
    third = np.arange(6.0).reshape(3, 2) / 3
    state = jax.tree.map(
        lambda a: jnp.asarray(third if a.shape == (3, 2) else a, dtype), nnx.state(network)
    )
    network = nnx.merge(nnx.graphdef(network), state)
    recipe = {"network": "MLP", "arguments": {"shape": 2, "width": 3, "layers": 1}}
    training.save(tmp_path / "own", network)
    loaded = training.load(tmp_path / "own", network)
    jax.tree.map(alike, nnx.state(loaded), state)
    if dtype == "float64":
        with pytest.raises(ValueError, match="are float64, and some would be rounded in float32"):
            pretrained.save("it", network, tmp_path / "new", recipe=recipe)
        assert not (tmp_path / "new").exists()
        return
    pretrained.save("it", network, tmp_path, recipe=recipe)
    shipped = nnx.state(pretrained.load("it", tmp_path))
    jax.tree.map(alike, shipped, jax.tree.map(lambda a: a.astype(jnp.float32), state))


def test_bfloat16_is_the_formats_own():
    """Other programs read it, and so do we what they, and earlier versions, have written."""
    array = numbers("bfloat16")
    plain = save({"a": array})
    assert b'"BF16"' in plain and b"cdelta.dtypes" not in _weights.serialise({"a": array}, {})
    alike(_weights.parse(plain)[0]["a"], array)
    single = numbers("float32")
    alike(load(_weights.serialise({"a": single.T}, {}))["a"], single.T)


def test_files_of_earlier_versions_are_read(tmp_path):
    """As they were written: by safetensors alone, the checksum over the names' order."""
    for name in ("fives", "digit_classifier"):
        network = pretrained.load(name)
        stored = (pretrained.FOLDER / f"{name}.safetensors").read_bytes()
        assert _weights.serialise(_weights.leaves(nnx.state(network)), {}) == stored
        arrays = load(stored)
        for one, leaf in _weights.leaves(nnx.state(network)).items():
            np.testing.assert_array_equal(leaf, arrays[one])
    network = {"b": np.arange(3.0), "a": np.ones((2, 2), np.float32)}
    digest = hashlib.sha256(network["a"].tobytes() + network["b"].tobytes()).hexdigest()
    about = {"format": 1, "network": "dict", "sha256": digest, "facts": {"width": 2}}
    (tmp_path / "old").write_bytes(save(network, {"cdelta": json.dumps(about)}))
    jax.tree.map(alike, training.load(tmp_path / "old", network), network)
    training.save(tmp_path / "new", network, width=2)
    assert (tmp_path / "old").read_bytes() == (tmp_path / "new").read_bytes()
    assert load_file(tmp_path / "new").keys() == network.keys()


# ------------------------------------------------------------------------------------- refusals


class Named(nnx.Module):
    def __init__(self):
        self.it = nnx.Param({"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}})


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"a.b": np.ones(2), "a": {"b": np.zeros(2)}}, r"at \['a'\]\['b'\] and at \['a.b'\]"),
        ({"w": [np.ones(1)], "w.0": np.zeros(1)}, "would both be called 'w.0'"),
        ({"w": {"value": np.ones(1)}, "w.value": {"value": np.ones(1)}, "v": 1}, None),
        (Named(), "would both be called 'it.value.a.b'"),
        ({"__metadata__": np.ones(1)}, "no array called '__metadata__'"),
        ({"a": np.array(["x"])}, "must hold numbers, got an array of <U1 at a"),
        ({"a": np.array([object()])}, "must hold numbers, got an array of object at a"),
        ({"a": np.ones(1, np.longdouble)}, "must hold numbers, got an array of float128 at a"),
        ({"a": np.array(["2020"], "datetime64[D]")}, "must hold numbers"),
    ],
)
def test_what_could_not_be_told_apart_or_read_is_not_saved(tmp_path, network, message):
    path = tmp_path / "network"
    if message is None:
        training.save(path, network)
        jax.tree.map(np.testing.assert_array_equal, training.load(path, network), network)
        return
    with pytest.raises(ValueError, match=message):
        training.save(path, network)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("saved", "like", "message"),
    [
        (np.array([1.7]), np.array([1]), "at a are float64, not int64"),
        (np.array([1]), np.array([1.0]), "at a are int64, not float64"),
        (np.array([True]), np.array([1]), "at a are bool, not int64"),
        (np.array([1j]), np.array([1.0]), "at a are complex128, not float64"),
        (np.array([300]), np.array([1], np.uint8), "int64, and some are too large in uint8"),
        (np.array([-1]), np.array([1], np.uint64), "some are too large in uint64"),
        (np.array([1e300]), np.ones(1, np.float32), "some are too large in float32"),
        (np.array([1e300j]), np.ones(1, np.complex64), "some are too large in complex64"),
        (np.array([7e4]), jnp.ones(1, jnp.float16), "some are too large in float16"),
        (np.array([100.0]), jnp.ones(1, jnp.float4_e2m1fn), "too large in float4_e2m1fn"),
        (np.zeros((1, 2), np.uint32), KEY[None], r"at a have shape \(1, 2\), not \(1,\)"),
        (np.zeros(1, np.uint32), KEY[None], r"at a are uint32, not key<fry>"),
    ],
)
def test_another_kind_of_numbers_is_refused(tmp_path, saved, like, message):
    training.save(tmp_path / "network", {"a": saved})
    with pytest.raises(ValueError, match=message):
        training.load(tmp_path / "network", {"a": like})


def test_another_precision_is_rounded_and_nothing_else(tmp_path):
    network = {"real": np.array([0.1, -np.inf, np.nan]), "whole": np.array([7])}
    training.save(tmp_path / "network", network)
    like = {"real": jnp.zeros(3, jnp.bfloat16), "whole": np.zeros(1, np.int8)}
    back = training.load(tmp_path / "network", like)
    alike(back["real"], jnp.asarray(network["real"], jnp.bfloat16))
    alike(back["whole"], np.array([7], np.int8))


def test_a_file_that_would_not_come_back_is_not_written(tmp_path, monkeypatch):
    path, network = tmp_path / "network", {"a": np.arange(4.0)}
    training.save(path, network)
    before = path.read_bytes()

    def turned(arrays, metadata):
        return save({name: array[::-1].copy() for name, array in arrays.items()}, metadata)

    monkeypatch.setattr("safetensors.numpy.save", turned)
    with pytest.raises(OSError, match="could not be written so that they can be read back"):
        training.save(path, {"a": np.arange(4.0) + 1})
    assert path.read_bytes() == before and len([*tmp_path.iterdir()]) == 1


def with_metadata(content, metadata):
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size]) | {"__metadata__": metadata}
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + size :]


def test_headers_of_others_are_named(tmp_path):
    path, network = tmp_path / "network", {"a": numbers("int4")}
    training.save(path, network)
    content = path.read_bytes()
    texts = _weights.metadata(content)
    about = json.loads(texts["cdelta"])
    for metadata in (
        {},
        {"cdelta": "[]"},
        {"cdelta": "{}"},
        {"cdelta": "null"},
        {"cdelta": "no JSON"},
        {"cdelta": json.dumps({**about, "sha256": None})},
        {"cdelta": json.dumps({**about, "facts": []})},
        {"cdelta": json.dumps({**about, "format": 2})},
    ):
        path.write_bytes(with_metadata(content, {**texts, "cdelta": "", **metadata}))
        for read in (training.saved_facts, lambda p: training.load(p, network)):
            with pytest.raises(OSError, match="is no file that save wrote: "):
                read(path)
    for kept in ("[]", "7", '{"a": "int5"}', '{"a": "key of nothing"}'):
        path.write_bytes(with_metadata(content, {**texts, "cdelta.dtypes": kept}))
        with pytest.raises(OSError, match="is no file that save wrote: "):
            training.load(path, network)
    path.write_bytes(content[:8] + b"[]" + content[10:])
    for read in (training.saved_facts, lambda p: training.load(p, network)):
        with pytest.raises(OSError, match="is no file that save wrote: "):
            read(path)


def test_facts_have_any_name(tmp_path):
    network = networks.MLP(2, 3, 1, rngs=nnx.Rngs(0))
    facts = {"network": "MLP", "path": "here", "format": 9, "kind": None}
    training.save(tmp_path / "network", network, **facts)
    assert training.saved_facts(tmp_path / "network") == facts
    recipe = {"network": "MLP", "arguments": {"shape": 2, "width": 3, "layers": 1}}
    for facts, message in (
        ({"sha256": "0"}, "facts must not have sha256"),
        ({"thing": object()}, "facts must be what JSON can hold"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrained.save("it", network, tmp_path / "new", recipe=recipe, **facts)
    assert not (tmp_path / "new").exists()


def test_a_manifest_that_cannot_be_written_leaves_the_network_that_was_there(tmp_path, monkeypatch):
    recipe = {"network": "MLP", "arguments": {"shape": 2, "width": 3, "layers": 1}}
    first, second = (networks.MLP(2, 3, 1, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    pretrained.save("it", first, tmp_path, recipe=recipe)

    plain = _files.write

    def full(path, content):
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        plain(path, content)

    monkeypatch.setattr(_files, "write", full)
    with pytest.raises(OSError, match="No space left"):
        pretrained.save("it", second, tmp_path, recipe=recipe)
    jax.tree.map(alike, nnx.state(pretrained.load("it", tmp_path)), nnx.state(first))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it.json", "it.safetensors"]
