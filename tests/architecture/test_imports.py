"""Importing: the light client needs little, nothing happens on the way, and public names are said once."""

import importlib.util
import json
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

PACKAGES = ("hermosis", "hermosis_client", "hermosis_server", "hermosis_sidecar")


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def names_below(package: str) -> list[str]:
    """Import names of a package and all its modules, programs that run on import and what is not for here left out."""
    root = importlib.import_module(package)
    below = [module.name for module in pkgutil.walk_packages(root.__path__, f"{package}.")]
    needed = {"hermosis_server.dynamics.fused_cuda.kernels": "triton", "hermosis_client.jax_optimizer": "optax"}
    left_out = {name for name, library in needed.items() if not importlib.util.find_spec(library)}
    return [package, *(name for name in below if not name.endswith("__main__") and name not in left_out)]


def test_light_client_imports_with_the_base_install_alone() -> None:
    """What pip brings for `pip install hermosis` may be imported, and nothing else is there."""
    run_python("""
import sys
base = {"grpc", "google", "numpy", "typing_extensions", "hermosis", "hermosis_client"} | set(sys.stdlib_module_names)
class OnlyTheBaseInstall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in base:
            raise ModuleNotFoundError(f"{name} is not there in a light client", name=name)
sys.meta_path.insert(0, OnlyTheBaseInstall())
import hermosis_client
for name in ("torch", "hermosis_server", "fastapi"):
    assert name not in sys.modules
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} was not hidden, so this test shows nothing")
""")


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_has_no_side_effects(package: str) -> None:
    """What other people's packages do on import is done first, so that only our own doing is seen."""
    program = f"""
import importlib, json, logging, os, signal, sys, threading, warnings
names = {names_below(package)!r}
before = set(sys.modules)
for name in names:
    importlib.import_module(name)
ours = {PACKAGES!r}
foreign = [name for name in sys.modules if name not in before and name.partition(".")[0] not in ours]
print(json.dumps(foreign))
"""
    foreign = json.loads(run_python(program))
    watched = f"""
import importlib, json, logging, os, signal, sys, threading, warnings
def world():
    signals = [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    root = logging.getLogger()
    torch = sys.modules.get("torch")
    return dict(threads=threading.active_count(), environment=dict(os.environ), handlers=len(root.handlers),
                level=root.level, signals=signals, folder=os.getcwd(), filters=[str(line) for line in warnings.filters],
                torch_threads=torch and torch.get_num_threads(), cuda=bool(torch and torch.cuda.is_initialized()))
for name in {foreign!r}:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
before = world()
for name in {names_below(package)!r}:
    importlib.import_module(name)
after = world()
print(json.dumps([key for key in before if before[key] != after[key]]))
"""
    assert json.loads(run_python(watched)) == []


def public(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_of_packages_are_those_of_all(package: str) -> None:
    for name in names_below(package):
        module = importlib.import_module(name)
        if not hasattr(module, "__path__") or not public(module):
            continue
        assert set(getattr(module, "__all__", ())) == public(module), f"{name}.__all__"
