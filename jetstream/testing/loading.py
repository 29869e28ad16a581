"""Loading the caller's module in a rank: by its name where that works, else from its file.

Test modules have no importable name under pytest's ``--import-mode=importlib``; and a script that
calls run_ranks is ``__main__`` in the parent, which must not run a second time as such.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["MAIN_ALIAS", "load_module"]

#: Name of the parent's ``__main__`` in a rank, so that "if __name__ == '__main__'" is false there.
MAIN_ALIAS = "__jetstream_main__"


def load_module(name: str, file: str | None, *, rewrite_asserts: bool = False) -> ModuleType:
    """Loads module ``name`` and leaves it in sys.modules under that name; once.

    ``file`` is its source, None where only the name will do. ``rewrite_asserts``: let pytest make
    failing assertions say what the values were. Raises what importing raises.
    """
    alias = MAIN_ALIAS if name == "__main__" else name
    known = sys.modules.get(alias)
    if known is not None:
        return known
    if file is None or (not rewrite_asserts and _finds(alias, file)):
        return importlib.import_module(alias)
    spec = importlib.util.spec_from_file_location(alias, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    if name != alias:
        sys.modules[name] = module
    try:
        if not (rewrite_asserts and _run_rewritten(module, Path(file))):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    return module


def _finds(name: str, file: str) -> bool:
    """Would an import of ``name`` load ``file``?"""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin) == Path(file)


def _run_rewritten(module: ModuleType, path: Path) -> bool:
    """Runs a module with pytest's assertions; False if this pytest has no way to do that."""
    try:
        from _pytest.assertion.rewrite import rewrite_asserts
    except ImportError:
        return False
    source = path.read_bytes()
    tree = ast.parse(source, str(path))
    rewrite_asserts(tree, source, str(path))
    exec(compile(tree, str(path), "exec", dont_inherit=True), module.__dict__)
    return True
