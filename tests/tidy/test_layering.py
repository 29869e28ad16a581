"""Who may import whom: the dependency law of the C folders and of the Python packages."""

from __future__ import annotations

import ast
import re
from pathlib import PurePosixPath

Sources = dict[str, str]

# C: what the files of a folder may include besides their own folder and the public headers.
C_LAW: dict[str, set[str]] = {
    "base": set(),
    "shm": {"base"},
    "wire": {"base"},
    "reduce": {"base"},
    "stat": {"base", "shm"},
    "rel": {"base", "wire"},
    "link": {"base", "shm", "wire"},
    "sim": {"base", "wire", "rel", "link", "stat"},
    "plan": {"base", "reduce"},
    "engine": {"base", "shm", "wire", "reduce", "stat", "rel", "link", "plan"},
    "ffi": {"base"},
}
PUBLIC_INCLUDES = {"stddef.h", "stdint.h"}

# Python: a module belongs to the layer of its longest prefix here; all others are at the top.
LAYERS = {
    "jetstream._native": "native",
    "jetstream._core": "core",
    "jetstream.errors": "base",
    "jetstream.arrays": "base",
    "jetstream.dtypes": "base",
    "jetstream.config": "base",
    "jetstream.environ": "base",
    "jetstream.places": "base",
    "jetstream.tensors": "base",
    "jetstream.tensor_heads": "base",
    "jetstream.transport": "transport",
    "jetstream.control": "control",
    "jetstream.collectives": "collectives",
}
PYTHON_LAW: dict[str, set[str]] = {
    "base": {"core"},
    "core": {"native", "base"},
    "transport": {"core", "base"},
    "control": {"core", "base"},
    "collectives": {"core", "base", "transport", "control"},
    "top": {"core", "base", "transport", "control", "collectives"},
}
PACKAGES = {
    "jetstream": "jetstream",
    "transport": "jetstream.transport",
    "collectives": "jetstream.collectives",
}


def c_includes(text: str) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*([<"][^>"]+)', text, re.MULTILINE)


def c_offences(sources: Sources) -> list[str]:
    """Returns the includes that the law forbids, as "file: include"."""
    owner = {
        PurePosixPath(path).name: PurePosixPath(path).parts[1]
        for path in sources
        if path.startswith("csrc/") and path.endswith((".h", ".def"))
    }
    found: list[str] = []
    for path, text in sources.items():
        parts = PurePosixPath(path).parts
        if parts[0] != "csrc" or not path.endswith((".c", ".h")) or parts[1] in ("include", "ffi"):
            continue
        may_see = C_LAW.get(parts[1], set()) | {parts[1]}
        for include in c_includes(text):
            name = include[1:]
            is_public = include.startswith("<jetstream/")
            is_own = include.startswith('"') and owner.get(name) in may_see
            is_system = include.startswith("<") and name not in owner
            if not (is_public or is_own or is_system):
                found.append(f"{path}: {name}")
    return found


def python_modules(sources: Sources) -> dict[str, str]:
    """Returns the text of each module of the installed package, by its full name."""
    modules: dict[str, str] = {}
    for path, text in sources.items():
        pure = PurePosixPath(path)
        if pure.suffix in (".py", ".pyi") and pure.parts[0] in PACKAGES and len(pure.parts) > 1:
            names = [PACKAGES[pure.parts[0]], *pure.parts[1:-1], pure.stem]
            modules[".".join(names).removesuffix(".__init__")] = text
    return modules


def layer_of(module: str) -> str:
    prefix = ".".join(module.split(".")[:2])
    return LAYERS.get(prefix, "top")


def imported_modules(text: str, modules: dict[str, str]) -> list[str]:
    """Returns the full names of what a module imports; of "from a import b", a.b if it is one."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            inner = [f"{source}.{alias.name}" for alias in node.names]
            names += [name if name in modules else source for name in inner]
    return names


def python_offences(modules: dict[str, str]) -> list[str]:
    """Returns the imports that the law forbids, as "module: import"."""
    found: list[str] = []
    for module, text in modules.items():
        layer = layer_of(module)
        if layer == "native":
            continue
        allowed = PYTHON_LAW[layer] | {layer}
        for name in imported_modules(text, modules):
            is_ours = name.split(".")[0] == "jetstream"
            if is_ours and layer_of(name) not in allowed:
                found.append(f"{module}: {name}")
    return found


def test_c_law_in_the_sources(sources: Sources) -> None:
    offences = c_offences(sources)
    assert not offences, "\n" + "\n".join(offences)


def test_c_law_in_the_build(sources: Sources) -> None:
    """The build gives each folder just the include path of the law."""
    lines = re.findall(r"^js_folder\((.+)\)$", sources["csrc/CMakeLists.txt"], re.MULTILINE)
    assert {line.split()[0]: set(line.split()[1:]) for line in lines} == C_LAW


def test_every_c_folder_is_under_the_law(sources: Sources) -> None:
    folders = {
        PurePosixPath(path).parts[1]
        for path in sources
        if path.startswith("csrc/") and path.endswith((".c", ".h"))
    }
    assert folders - {"include"} <= set(C_LAW)


def test_public_headers_depend_on_nothing(sources: Sources) -> None:
    foreign = [
        f"{path}: {include[1:]}"
        for path, text in sources.items()
        if path.startswith("csrc/include/")
        for include in c_includes(text)
        if not include.startswith("<jetstream/") and include[1:] not in PUBLIC_INCLUDES
    ]
    assert not foreign, "\n" + "\n".join(foreign)


def test_python_law(sources: Sources) -> None:
    modules = python_modules(sources)
    assert modules
    offences = python_offences(modules)
    assert not offences, "\n" + "\n".join(offences)


def test_imports_are_absolute_and_installed_names(sources: Sources) -> None:
    """From the root, `import transport` would work and make a second copy of each module."""
    wrong = [
        f"{path}: {name}"
        for path, text in sources.items()
        if path.endswith(".py")
        for name in imported_modules(text, {})
        if name.split(".")[0] in ("transport", "collectives", "")
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_scans_find_what_they_look_for() -> None:
    sources = {
        "csrc/base/js_a.h": "",
        "csrc/engine/js_b.h": "",
        "csrc/base/js_c.c": '#include "js_a.h"\n#include <stdio.h>\n',
        "csrc/base/js_d.c": '#include "js_b.h"\n# include "../engine/js_b.h"\n',
        "csrc/wire/js_e.c": "#include <js_b.h>\n#include <jetstream/js_api.h>\n",
    }
    assert c_offences(sources) == [
        "csrc/base/js_d.c: js_b.h",
        "csrc/base/js_d.c: ../engine/js_b.h",
        "csrc/wire/js_e.c: js_b.h",
    ]
    files = {
        "jetstream/__init__.py": "from jetstream import communicator",
        "jetstream/communicator.py": "import jetstream._native",
        "jetstream/_native.pyi": "",
        "jetstream/_core/native.py": "from jetstream import _native, errors",
        "jetstream/errors.py": "",
        "jetstream/control/x.py": "from jetstream.transport import links",
        "transport/links.py": "import jetstream\nfrom jetstream import errors, init",
    }
    assert python_offences(python_modules(files)) == [
        "jetstream.communicator: jetstream._native",
        "jetstream.control.x: jetstream.transport.links",
        "jetstream.transport.links: jetstream",
        "jetstream.transport.links: jetstream",
    ]
