"""The layers of the design, enforced from the syntax tree: what a module may import, and who touches the outside world.

Each rule is a function from a module to the list of its violations, and is itself tried on snippets that break it.
"""

import ast
import re
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The longest matching prefix of a module's dotted name gives its layer. A module that matches none is an error.
LAYERS = {
    "ctsam3d.volume": 0,
    "ctsam3d.resample": 0,
    "ctsam3d.model": 1,
    "ctsam3d.clicks": 1,
    "ctsam3d.expansion": 1,
    "ctsam3d.losses": 1,
    "ctsam3d.metrics": 1,
    "ctsam3d.acquisition": 1,
    "ctsam3d.segmenter": 2,
    "ctsam3d.patchwork": 2,
    "ctsam3d.session": 2,
    "ctsam3d.checkpoint": 2,
    "ctsam3d.data": 2,
    "ctsam3d.training": 3,
    "ctsam3d.evaluation": 3,
    "ctsam3d.labelapp": 4,
    "apps": 5,
    "scripts": 5,
}
FACADE = "ctsam3d"  # ctsam3d/__init__.py re-exports the public interface, up to layer 2
FACADE_LAYER = 2

PURE_FORBIDDEN = {"os", "io", "pathlib", "tempfile", "shutil", "time", "datetime", "logging", "random", "secrets"}
GLOBAL_RANDOM = re.compile(
    r"(numpy|np)\.random\.(?!Generator\b|BitGenerator\b|SeedSequence\b)\w+"
    r"|torch\.(manual_seed|seed)|torch\.random\.\w+|torch\.cuda\.manual_seed\w*"
)
DISK_METHODS = {"write_text", "write_bytes", "read_text", "read_bytes", "mkdir", "unlink", "rename", "touch", "tofile"}
DISK_FUNCTIONS = re.compile(
    r"(io\.)?open|(np|numpy)\.(save\w*|load\w*|fromfile|memmap)|(nib|nibabel)\.(save|load)|(sitk|SimpleITK)\.(Read|Write)\w+"
    r"|torch\.(save|load)|os\.(replace|rename|remove|unlink|makedirs|mkdir)|shutil\.\w+|(pydicom\.)?dcmread"
)


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, whether it is a package's __init__, and its syntax tree."""

    name: str
    tree: ast.Module
    package: bool = False
    lines: int = 0


def parsed(name: str, source: str, package: bool = False) -> Module:
    return Module(name, ast.parse(source), package, len(source.splitlines()))


def load_modules() -> list[Module]:
    modules = []
    for file in sorted((ROOT / "lib").rglob("*.py")):
        parts = file.relative_to(ROOT / "lib").with_suffix("").parts
        package = parts[-1] == "__init__"
        modules.append(parsed(".".join(parts[:-1] if package else parts), file.read_text(encoding="utf-8"), package))
    for file in [*(ROOT / "apps" / "ctsam3d").glob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        modules.append(parsed(name, file.read_text(encoding="utf-8")))
    return modules


def layer(name: str) -> int | None:
    """The layer of a dotted name, None where the design gives it none."""
    found = [prefix for prefix in LAYERS if name == prefix or name.startswith(prefix + ".")]
    return LAYERS[max(found, key=len)] if found else None


def imports(module: Module) -> list[str]:
    """Dotted names that the module imports, anywhere in it; ``from a import b`` gives ``a.b``.

    What stands under ``if TYPE_CHECKING`` counts: a type is a dependency too.
    """
    out = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            out += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.name.split(".")
            base = base[: len(base) - node.level + module.package] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            out += [prefix if alias.name == "*" else f"{prefix}.{alias.name}" for alias in node.names]
    return out


def top_level(names: list[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` for an attribute chain, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


# ---- the rules ---------------------------------------------------------------------------------------------------


def breaks_layering(module: Module) -> list[str]:
    """Imports of our own code go to the same layer or below; the facade reaches up to layer 2."""
    own = FACADE_LAYER if module.name == FACADE else layer(module.name)
    if own is None:
        return [f"{module.name} belongs to no layer of the design"]
    out = []
    for name in imports(module):
        if name == FACADE or not name.startswith(FACADE + "."):
            if name == FACADE and own < 5:
                out.append(f"{module.name} imports the facade {name}")
            continue
        target = layer(name)
        if target is None and own == 5:
            continue  # ctsam3d.load, ctsam3d.read_volume: scripts may use the facade
        if target is None:
            out.append(f"{module.name} imports {name}, which belongs to no layer")
        elif target > own:
            out.append(f"{module.name} (L{own}) imports {name} (L{target})")
    return out


def breaks_monailabel(module: Module) -> list[str]:
    """Only labelapp/ and the app know MONAI Label."""
    allowed = module.name.startswith(("ctsam3d.labelapp", "apps."))
    return [] if allowed or "monailabel" not in top_level(imports(module)) else [f"{module.name} imports monailabel"]


def breaks_purity(module: Module) -> list[str]:
    """Layers 0 and 1 touch no file, clock, log or global random state."""
    if (layer(module.name) or 0) > 1 or module.name == FACADE:
        return []
    out = [f"{module.name} imports {name}" for name in sorted(top_level(imports(module)) & PURE_FORBIDDEN)]
    for name in imports(module):
        if GLOBAL_RANDOM.fullmatch(name):
            out.append(f"{module.name} imports {name}")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and GLOBAL_RANDOM.fullmatch(dotted(node)):
            out.append(f"{module.name}:{node.lineno} uses {dotted(node)}")
    return out + disk_calls(module)


def breaks_disk(module: Module) -> list[str]:
    """Among layers 0 to 2, only data/ and checkpoint.py read or write files."""
    allowed = module.name == "ctsam3d.checkpoint" or module.name.startswith("ctsam3d.data")
    return [] if allowed or (layer(module.name) or 0) > 2 else disk_calls(module)


def disk_calls(module: Module) -> list[str]:
    out = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if DISK_FUNCTIONS.fullmatch(dotted(node.func)) or method in DISK_METHODS:
            out.append(f"{module.name}:{node.lineno} calls {ast.unparse(node.func)}")
    return out


def find_cycle(modules: list[Module]) -> list[str]:
    """Names along one import cycle, empty where there is none.

    Importing a name from a package's __init__ is importing the package; an __init__ that gathers its own modules is no
    cycle with them.
    """
    known = {module.name for module in modules}
    graph = {}
    for module in modules:
        targets = set()
        for name in imports(module):
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name and name != module.name and not module.name.startswith(name + "."):
                targets.add(name)
        graph[module.name] = targets
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


# ---- the rules, on the project -----------------------------------------------------------------------------------

MODULES = load_modules()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_every_module_keeps_the_rules(module):
    rules = (breaks_layering, breaks_monailabel, breaks_purity, breaks_disk)
    assert [violation for rule in rules for violation in rule(module)] == []


def test_modules_import_each_other_without_a_cycle():
    assert find_cycle(MODULES) == []


def test_the_app_is_wiring_only():
    for module in MODULES:
        if module.name == "apps.ctsam3d.main":
            assert module.lines <= 80, f"apps/ctsam3d/main.py has {module.lines} lines, 80 is the limit"
    assert not (ROOT / "apps" / "ctsam3d" / "__init__.py").exists()


# ---- the rules, on snippets that break them ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ctsam3d.volume", "from ctsam3d.session import Session"),
        ("ctsam3d.volume", "from ctsam3d import session"),
        ("ctsam3d.volume", "def f():\n    import ctsam3d.training.loop"),
        ("ctsam3d.resample", "from .model import build"),
        ("ctsam3d.model.build", "from ..data import io"),
        ("ctsam3d.session", "from ctsam3d.evaluation.report import write"),
        ("ctsam3d.session", "import ctsam3d"),
        ("ctsam3d.training.loop", "from ctsam3d.labelapp import train"),
        ("ctsam3d.unheard_of", ""),
        ("ctsam3d.training.loop", "from ctsam3d.unheard_of import x"),
    ],
)
def test_layering_rule_sees(name, source):
    assert breaks_layering(parsed(name, source)) != []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ctsam3d.resample", "from ctsam3d.volume import Box"),
        ("ctsam3d.session", "from ctsam3d import clicks, resample\nimport torch"),
        ("ctsam3d.labelapp.infer", "from ctsam3d.training.loop import fit\nfrom monailabel.interfaces import app"),
        ("apps.ctsam3d.main", "import monailabel\nfrom ctsam3d.labelapp.infer import Infer"),
        ("scripts.evaluate", "import ctsam3d\nfrom ctsam3d import load"),
        ("ctsam3d.data.datalist", "import json\nopen('x')"),
        ("ctsam3d.checkpoint", "path.write_bytes(b'')"),
        ("ctsam3d.clicks", "import numpy as np\ndef f(rng: np.random.Generator): return rng.random()"),
        ("ctsam3d.evaluation.report", "open('report.md', 'w')"),
        ("ctsam3d.model.build", "from ctsam3d.model import encoder"),
    ],
)
def test_rules_let_pass(name, source):
    module = parsed(name, source)
    for rule in (breaks_layering, breaks_monailabel, breaks_purity, breaks_disk):
        assert rule(module) == []


def test_facade_reaches_to_layer_2_and_no_further():
    ok = parsed("ctsam3d", "from ctsam3d import model, session\nfrom ctsam3d.data.io import read_volume", package=True)
    assert breaks_layering(ok) == []
    assert breaks_layering(parsed("ctsam3d", "from ctsam3d import evaluation", package=True)) != []
    assert breaks_layering(parsed("ctsam3d", "from .training import loop", package=True)) != []


@pytest.mark.parametrize("source", ["import monailabel.config", "from monailabel import config"])
def test_monailabel_rule_sees(source):
    assert breaks_monailabel(parsed("ctsam3d.training.loop", source)) != []
    assert breaks_monailabel(parsed("scripts.train", source)) != []


@pytest.mark.parametrize(
    "source",
    [
        "import os",
        "import os.path",
        "from pathlib import Path",
        "def f():\n    from time import time",
        "import logging",
        "import random",
        "import io",
        "np.random.rand(3)",
        "numpy.random.seed(0)",
        "rng = np.random.default_rng()",
        "from numpy.random import rand",
        "torch.manual_seed(0)",
        "torch.cuda.manual_seed_all(0)",
        "open('x')",
        "np.save('x', y)",
        "path.write_text('x')",
    ],
)
def test_purity_rule_sees(source):
    assert breaks_purity(parsed("ctsam3d.clicks", source)) != []


@pytest.mark.parametrize("call", ["open(p, 'w')", "p.write_text('')", "np.savez(p)", "nib.save(a, p)", "torch.load(p)"])
def test_disk_rule_sees(call):
    assert breaks_disk(parsed("ctsam3d.session", call)) != []


def test_cycles_are_seen():
    a, b = parsed("ctsam3d.clicks", "from ctsam3d.metrics import dsc"), "def f():\n    import ctsam3d.clicks"
    assert set(find_cycle([a, parsed("ctsam3d.metrics", b)])) == {"ctsam3d.clicks", "ctsam3d.metrics"}
    package = [parsed("ctsam3d.model", "from ctsam3d.model import build", True), parsed("ctsam3d.model.build", "")]
    assert find_cycle(package) == []


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (parsed("ctsam3d.a.b", "from . import c"), ["ctsam3d.a.c"]),
        (parsed("ctsam3d.a.b", "from ..d import e"), ["ctsam3d.d.e"]),
        (parsed("ctsam3d.a", "from .c import d", package=True), ["ctsam3d.a.c.d"]),
        (parsed("ctsam3d.a", "from x import *"), ["x"]),
    ],
)
def test_relative_imports_are_resolved(module, expected):
    assert imports(module) == expected
