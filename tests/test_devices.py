"""The same estimate on one device, on eight, and on two processes: each in interpreters of their
own."""

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
    arrays = [np.stack([moment.matrix for moment in moments]), np.stack([moment.stderr for moment in moments])]
    np.savez(out, *arrays, devices=jax.device_count(), processes=jax.process_count())
    """
)


def start(out, devices=1, resume="", process=0, port=""):
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", PROGRAM, str(out), str(resume), str(process), str(port)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


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
