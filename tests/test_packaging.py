import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

IMPORT_ALL = """
import importlib, pkgutil, sys
import cdb_video
names = [m.name for m in pkgutil.walk_packages(cdb_video.__path__, "cdb_video.")]
for name in names:
    assert importlib.import_module(name).__file__.startswith(sys.argv[1]), name
print(len(names))
"""


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_each_imports(tmp_path: Path) -> None:
    # setuptools writes its scratch folder beside the sources: build from a copy.
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "cdb_video"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(sources)], check=True)
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--wheel-dir", str(wheels), str(sources)]
    subprocess.run([*pip, *build], check=True)
    [wheel] = wheels.glob("cdb_video-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)

    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(target)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    modules = [p for p in (ROOT / "cdb_video").rglob("*.py") if p != ROOT / "cdb_video/__init__.py"]
    assert int(done.stdout) == len(modules)
    assert (target / "cdb_video" / "py.typed").exists()
    templates = [path.relative_to(ROOT) for path in (ROOT / "cdb_video").rglob("*.j2")]
    assert templates
    assert all((target / template).exists() for template in templates)
