"""The client needs the base install alone."""

import pkgutil
import subprocess
import sys

import hermosis_client

NEED_MORE = {"jax_optimizer", *(f"torch_{part}" for part in ("group", "local", "optimizer", "overlap", "pending"))}


def test_all_but_two_parts_works_without_torch_jax_and_the_server() -> None:
    names = {module.name for module in pkgutil.iter_modules(hermosis_client.__path__)}
    assert names >= NEED_MORE
    program = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "jax", "optax", "fastapi", "hermosis_server", "hermosis_sidecar"}}:
            raise ModuleNotFoundError(name + " is hidden", name=name)
sys.meta_path.insert(0, Hidden())
import importlib
for name in {sorted(names - NEED_MORE)!r}:
    importlib.import_module("hermosis_client." + name)
import numpy
layout = hermosis_client = sys.modules["hermosis_client"].ParameterLayout.of({{"w": (2, 2)}})
assert layout.flat({{"w": numpy.ones((2, 2))}}).tolist() == [1.0] * 4
with sys.modules["hermosis_client"].Client("127.0.0.1:1", timeout_s=0.2) as client:
    try:
        client.capabilities()
    except sys.modules["hermosis_client"].ConnectionFailed:
        print("works")
try:
    import hermosis_client.torch_optimizer
except ModuleNotFoundError as error:
    assert error.name == "torch", error
    print("torch is hidden")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["works", "torch is hidden"], done.stderr
