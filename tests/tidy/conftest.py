"""The files of the project, for the tests that read them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

_NOT_OURS = {".git", ".venv", "build", "dist"}


@pytest.fixture(scope="session")
def root() -> Path:
    """Returns the root of the repository."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def sources(root: Path) -> dict[str, str]:
    """Returns the text of every file that is tracked, or would be if added; by path from root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = sorted(set(listed.stdout.decode().split("\0")) - {""})
    else:
        paths = sorted(_walk(root))
    assert paths, "no files found: this test would pass whatever they contain"
    return {
        path: (root / path).read_bytes().decode("utf-8", "replace")
        for path in paths
        if (root / path).is_file()
    }


def _walk(root: Path) -> list[str]:
    """Returns the files below root, without those that the build leaves there."""
    found: list[str] = []
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if n not in _NOT_OURS and not n.endswith(("cache", "cache__"))]
        found += [str((Path(folder) / file).relative_to(root)) for file in files]
    return found
