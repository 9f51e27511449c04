"""Packages with plug-ins, made importable as an installation would, without pip."""

import os
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from kintsugi import operators, priors, samplers
from kintsugi.pipeline import metrics

REGISTRIES = (operators.REGISTRY, samplers.REGISTRY, priors.REGISTRY, metrics.REGISTRY)
MINE = Path(__file__).resolve().parent / "plugin"
SITE = Path(__file__).resolve().parent / "site"  # where the stand-ins of tests and benchmarks are installed


def python_path(*folders: Path) -> str:
    """PYTHONPATH with folders before what it has."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def know_stand_ins() -> None:
    """Have the stand-ins in this process, and those that it starts."""
    if str(SITE) not in sys.path:
        sys.path.insert(0, str(SITE))
        os.environ["PYTHONPATH"] = python_path(SITE)


def write(folder: Path, name: str, version: str, groups: dict[str, dict[str, str]]) -> Path:
    """The metadata of a distribution, in a folder for sys.path; `groups`: its entry points."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in of.items()) for group, of in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def write_mine(folder: Path, version: str | None = None) -> Path:
    """The package of `tests/kit/plugin` in a folder for sys.path, perhaps as another version."""
    project = tomllib.loads((MINE / "pyproject.toml").read_text())["project"]
    write(folder, project["name"], version or project["version"], project["entry-points"])
    shutil.copy(MINE / "kintsugi_mine.py", folder)
    return folder


def install_mine(patch: pytest.MonkeyPatch, folder: Path, version: str | None = None) -> Path:
    """Put that package on sys.path."""
    patch.syspath_prepend(write_mine(folder, version))
    for registry in REGISTRIES:
        patch.setattr(registry, "loaded", {})
    return folder
