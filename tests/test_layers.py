"""The layer rule: each part of the engine imports only parts that stand before it in LAYERS."""

import ast
import re
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest

from source_tree import ROOT, python_files, relative, tree

# A room imports only rooms above it in this list. Rooms on one line are peers and do not import each other.
LAYERS = (
    ("errors",),
    ("config",),
    ("files", "web"),
    ("backend",),
    ("ops",),
    ("predict",),
    ("models",),
    ("codecs",),
    ("diffusion",),
    ("checkpoints",),
    ("adapters",),
    ("memory",),
    ("distributed",),
    ("rehearsal",),
    ("data",),
    ("scores",),
    ("inference",),
    ("train",),
    ("parity",),
    ("doctor",),
    ("plan", "bench", "evaluation", "curation", "model_tables"),
    ("serving",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
PACKAGE = "mova_engine"
# What these rooms may import beside the standard library; no torch above all. None: the package itself.
LIGHT = {
    None: (),
    "errors": (),
    "config": ("yaml", "cyclopts"),
    "predict": ("yaml",),
    "plan": ("yaml", "rich"),
    "cli": (),
}
# Of other rooms, the modules that import no torch either: what is declared of operators, and choosing by it.
LIGHT_MODULES = tuple(
    f"{PACKAGE}.ops{name}"
    for name in ("", ".machine", ".declarations", ".attention_table", ".lossy_table", ".table", ".choice", ".__main__")
)
_LAZY_TARGET = re.compile(rf"{PACKAGE}(\.\w+)+(:\w+)?")


def imported_modules(module: str, is_package: bool, node: ast.AST) -> list[str]:
    """Dotted names that one node imports: an import statement, or a lazy "module:attribute" target."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parent = module.split(".")
        parent = parent[: len(parent) - node.level + is_package] if node.level else []
        base = ".".join([*parent, node.module] if node.module else parent)
        # `from mova_engine import train` names the part in the list, not in the base.
        return [f"{base}.{alias.name}" for alias in node.names] if base == PACKAGE else [base]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and _LAZY_TARGET.fullmatch(node.value):
        return [node.value.split(":")[0]]
    return []


def violations(module: str, source: ast.Module, is_package: bool = False) -> list[str]:
    """What `module` imports against the rule, in words."""
    part = module.split(".")[1] if "." in module else None
    found = []
    for node in ast.walk(source):
        for name in imported_modules(module, is_package, node):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            others = () if module in LIGHT_MODULES else LIGHT.get(part, (top,))
            known = (*sys.stdlib_module_names, PACKAGE, *others)
            if top not in known:
                found.append(f"line {node.lineno}: {part or PACKAGE} is light: it may not import {name}")
            elif part is None and top == PACKAGE and target != "errors":
                found.append(f"line {node.lineno}: {PACKAGE} may not import {name}")
            elif top == PACKAGE and target in RANK and target != part and RANK[target] >= RANK.get(part, 0):
                found.append(f"line {node.lineno}: {part} may not import {target}")
    return found


def module_name(path) -> tuple[str, bool]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    is_package = parts[-1] == "__init__"
    return ".".join(parts[:-1] if is_package else parts), is_package


def test_every_part_has_a_layer():
    parts = {module_name(path)[0].split(".")[1] for path in python_files(PACKAGE) if path.parent != ROOT / PACKAGE}
    parts |= {path.stem for path in (ROOT / PACKAGE).glob("*.py") if path.stem != "__init__"}
    assert parts - set(RANK) == set(), "give the new part its place in LAYERS"


def test_each_layer_imports_only_those_before_it():
    found = []
    for path in python_files(PACKAGE):
        name, is_package = module_name(path)
        found += [f"{relative(path)}, {text}" for text in violations(name, tree(path), is_package)]
    assert not found, "\n".join(found)


def test_kernels_know_nothing_of_the_engine():
    found = []
    for path in python_files("kernels"):
        for node in ast.walk(tree(path)):
            names = imported_modules("mova_kernels.x", False, node)
            found += [f"{relative(path)}: line {node.lineno}" for name in names if name.split(".")[0] == PACKAGE]
    assert not found, "\n".join(found)


@cache
def import_graph() -> dict[str, set[str]]:
    """Every module of the engine and those of the engine that it imports anywhere, inside functions too."""
    modules = {module_name(path): path for path in python_files(PACKAGE)}
    names, graph = {name for name, _ in modules}, {}
    for (name, is_package), path in modules.items():
        found = graph.setdefault(name, set())
        for node in ast.walk(tree(path)):
            for base in imported_modules(name, is_package, node):
                inside = {f"{base}.{alias.name}" for alias in getattr(node, "names", ())} & names
                # `from package import module` needs the module; the package is being imported already.
                found |= inside or ({base} & names)
        found.discard(name)
    return graph


def test_no_import_cycles():
    graph = import_graph()
    assert sum(map(len, graph.values())) > 500
    TopologicalSorter(graph).prepare()


def test_operators_cases_and_verdicts_are_for_tests_and_reports():
    """Importing them would make product code depend on how it is judged."""
    reports = ("parity", "bench", "doctor")
    found = [
        name
        for name, imported in import_graph().items()
        if any(x.startswith(f"{PACKAGE}.ops.testing") for x in imported)
        and not name.startswith((f"{PACKAGE}.ops.testing", *(f"{PACKAGE}.{part}" for part in reports)))
    ]
    assert not found


# What exchanges tensors or values between processes, or makes a group that does, in torch.distributed.
_EXCHANGE = re.compile(
    r"(i?send|i?recv|batch_isend_irecv|P2POp|barrier|monitored_barrier|new_(sub)?group\w*|"
    r"(all_)?(gather|reduce|to_all)\w*|reduce_scatter\w*|scatter\w*|broadcast\w*|\w+_object(_list)?)"
)


def exchanges(source: ast.Module) -> list[str]:
    """Uses of torch.distributed that exchange something."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(source)
        if isinstance(node, ast.Attribute)
        and _EXCHANGE.fullmatch(node.attr)
        and ast.unparse(node.value) in ("dist", "torch.distributed", "distributed")
    ]


def test_processes_exchange_through_groups_that_know_their_device():
    """Elsewhere a tensor could meet a collective library that is not its device's, and no test on a CPU would tell."""
    own = "mova_engine/distributed/collectives.py"
    found = [f"{p}, {text}" for p in python_files(PACKAGE) if relative(p) != own for text in exchanges(tree(p))]
    assert not found, "\n".join(found)
    assert len(exchanges(tree(ROOT / own))) > 8, "the rule no longer sees what it looks for"


@pytest.mark.parametrize(
    "module, source",
    [
        ("mova_engine.config.model", "import torch"),
        ("mova_engine.ops.table", "def f():\n    from torch import Tensor"),
        ("mova_engine.backend.cpu", "from mova_engine.ops import bind"),
        ("mova_engine.models.layers", "def f():\n    from mova_engine import diffusion"),
        ("mova_engine.diffusion.schedule", "import mova_engine.inference.pipeline"),
        ("mova_engine.inference.pipeline", "from ..train import trainer"),
        ("mova_engine.parity.case", "from mova_engine.bench import jobs"),
        ("mova_engine.ops.table", "target = 'mova_engine.models.layers:attention'"),
    ],
)
def test_the_rule_sees_each_kind_of_breach(module, source):
    assert violations(module, ast.parse(source))


@pytest.mark.parametrize(
    "module, source",
    [
        ("mova_engine.config.model", "import math\nfrom mova_engine.errors import MovaError"),
        ("mova_engine.train.trainer", "from mova_engine.data import loader\nfrom . import step\nimport torch"),
        ("mova_engine.cli", "commands = {'train': 'mova_engine.train.__main__'}"),
    ],
)
def test_the_rule_admits_what_it_should(module, source):
    assert not violations(module, ast.parse(source))
