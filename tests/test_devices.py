"""The same estimate on one device, on many and on two processes, each in interpreters of their own.

And wherever the arrays of f were before, whatever mesh the caller has set, with anybody's solver.
"""

import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

# A flow with array parameters (leaves of the pytree f) and a constant caught in a closure, run in
# every estimator.
PROGRAM = textwrap.dedent(
    """
    import sys
    import jax
    import jax.numpy as jnp
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    out, resume, process, port = sys.argv[1], sys.argv[2] or None, int(sys.argv[3]), sys.argv[4]
    if port:
        jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)

    import cdelta
    from cdelta.dependence import feature_covariance, held_moment, wiggle_moment

    @jax.tree_util.register_pytree_node_class
    class Layer:
        def __init__(self, matrix):
            self.matrix = matrix

        def __call__(self, t, x):
            return jnp.tanh(self.matrix @ x) - t * x

        def tree_flatten(self):
            return (self.matrix,), None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(*leaves)

    flow = cdelta.Flow(Layer(jax.random.normal(jax.random.key(1), (3, 3))), "midpoint", 4)
    readout = jax.random.normal(jax.random.key(2), (3, 3))
    key = jax.random.key(0)
    moments = [
        wiggle_moment(flow, key, (3,), 101, batch=8, resume=resume),
        wiggle_moment(lambda x: readout @ flow(x), key, (3,), 101, "jvp", batch=3),
        feature_covariance(flow, key, (3,), 101),
        held_moment(lambda x: readout @ flow(x), key, (3,), 101, 1),
    ]
    arrays = [np.stack([getattr(m, name) for m in moments]) for name in ("matrix", "stderr")]
    np.savez(out, *arrays, devices=jax.device_count(), processes=jax.process_count())
    """
)


# Four devices: each case against the same estimate from arrays of NumPy, on one device.
ELSEWHERE = textwrap.dedent(
    """
    import diffrax
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    jax.config.update("jax_enable_x64", True)

    from cdelta.dependence import feature_covariance, held_moment, wiggle_moment

    weights = np.asarray(jax.random.normal(jax.random.key(1), (4, 3)))
    devices = jax.devices()
    assert len(devices) == 4
    backwards = Mesh(np.asarray(devices[::-1]), ("other",))
    places = {
        "last device": jax.device_put(weights, devices[-1]),
        "another order": jax.device_put(weights, NamedSharding(backwards, PartitionSpec("other"))),
        "some devices": jax.device_put(
            weights, NamedSharding(Mesh(np.asarray(devices[1:3]), ("two",)), PartitionSpec())
        ),
    }

    def f(w):
        return jax.tree_util.Partial(lambda w, x: jnp.sin(w @ x), w)  # a leaf

    def estimates(f, **run):
        key = jax.random.key(0)
        yield wiggle_moment(f, key, 3, 21, batch=8, **run).matrix
        yield held_moment(f, key, 3, 21, 1, method="jvp", batch=8, **run).matrix

    reference = list(estimates(f(weights), devices=devices[:1]))

    def same(name, found, reference=reference):
        for mine, theirs in zip(found, reference, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, err_msg=name)
        print("same:", name)

    for name, array in places.items():
        same(f"{name}, leaf", estimates(f(array)))
        same(f"{name}, closure", estimates(lambda x: jnp.sin(array @ x)))
        same(f"{name}, one device", estimates(f(array), devices=devices[2:3]))
    same("devices backwards", estimates(f(places["last device"]), devices=devices[::-1]))
    for axis in ("other", "samples"):
        with jax.set_mesh(Mesh(np.asarray(devices[::-1]), (axis,))):
            same(f"the caller's mesh, {axis}", estimates(f(weights)))
            same(f"one device under a mesh, {axis}", estimates(f(weights), devices=devices[:1]))

    # anybody's solve: the default adjoint of diffrax takes reverse passes alone
    def solved(x0):
        term = diffrax.ODETerm(lambda t, x, w: jnp.tanh(w[:3] @ x))
        controller = diffrax.PIDController(1e-8, 1e-8)
        return diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, 1.0, 0.1, x0, jnp.asarray(weights),
            stepsize_controller=controller,
        ).ys[0]

    key = jax.random.key(0)
    latents = jnp.stack([
        jax.random.normal(jax.random.split(jax.random.fold_in(key, i))[0], (3,)) for i in range(5)
    ])
    rows = np.asarray(jax.jit(jax.vmap(jax.jacrev(solved)))(latents))
    direct = [np.einsum("sik,sjk->ij", rows, rows) / 5]
    for name, some in (("one", devices[:1]), ("four", devices)):
        same(f"diffrax, {name}", [wiggle_moment(solved, key, 3, 5, devices=some).matrix], direct)
        assert np.isfinite(feature_covariance(solved, key, 3, 5, devices=some).matrix).all()
    """
)


def start(out, devices=1, resume="", process=0, port="", program=PROGRAM):
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", program, str(out), str(resume), str(process), str(port)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*processes):
    outputs = []
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        outputs.append(output)
    return outputs


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "moments.npz"
    finish(start(out))
    with np.load(out) as arrays:
        assert arrays["devices"] == 1
        return arrays["arr_0"], arrays["arr_1"]


def same(out, reference, devices, processes):
    with np.load(out) as arrays:
        assert (arrays["devices"], arrays["processes"]) == (devices, processes)
        for name, expected in zip(("arr_0", "arr_1"), reference, strict=True):
            np.testing.assert_allclose(arrays[name], expected, rtol=1e-10, atol=1e-13)


def test_eight_devices_give_the_estimate_of_one(reference, tmp_path):
    finish(start(tmp_path / "moments.npz", devices=8))
    same(tmp_path / "moments.npz", reference, 8, 1)


def test_two_processes_give_the_estimate_of_one_and_share_its_file(reference, tmp_path):
    def both(name):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        outs = [tmp_path / f"{name}{process}.npz" for process in range(2)]
        finish(
            *(
                start(out, 2, tmp_path / "sums.npz", process, port)
                for process, out in enumerate(outs)
            )
        )
        for out in outs:
            same(out, reference, 4, 2)

    both("first")
    assert (tmp_path / "sums.npz").exists()
    both("again")  # from the file: the sums reach the process that did not read it
    assert sorted(path.name for path in tmp_path.iterdir() if "sums" in path.name) == ["sums.npz"]


def test_arrays_and_meshes_of_the_caller_may_be_anywhere(tmp_path):
    (output,) = finish(start(tmp_path / "unused", devices=4, program=ELSEWHERE))
    assert output.count("same:") == 16
