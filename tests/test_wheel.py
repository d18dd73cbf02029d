"""The built wheel, installed alone where nothing of this checkout and no compiler can be seen.

HALFV_WHEEL names the folder of one (`make test-wheel`); else scripts/build-wheel.py builds one as it is released, with
llama-server and backends that are loaded, but for two kinds of processor in place of all. No fixture of conftest.py,
which loads other libraries, is used.
"""

from __future__ import annotations

import base64
import email
import importlib.metadata
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import urllib.request
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parent.parent
NEEDS = ("numpy", "tqdm", "jinja2", "pillow", "markupsafe")  # dependencies, and theirs
LEFT_OUT = ("HALFV", "PYTHON", "LLAMA", "MTMD", "LD_", "GGML")  # of the environment
PICTURE, QUESTION, ANSWER = ROOT / "examples" / "receipt.png", "What is the total?", "79.00"
VARIANTS = {"x86_64": "x64;haswell", "aarch64": "armv8.0_1;armv8.2_1"}  # by platform.machine(); else all
PORTABLE = "HALFV_WHEEL" in os.environ or shutil.which("ccache") is not None  # else it takes minutes to build one
COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)


def run(*command: str | Path, cwd: Path, path: Path | None = None, stderr: bool = False, **variables: str) -> str:
    """What a command prints, with nothing on the path but the folder `path`, where it is given."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_OUT)}
    env |= ({"PATH": str(path)} if path else {}) | variables
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stderr if stderr else done.stdout


@dataclass
class Installed:
    """The wheel, and the folders of programs and modules of the environment that it is alone in."""

    wheel: Path
    programs: Path
    modules: Path

    def halfv(self, *args: str | Path, cwd: Path) -> str:
        return run(self.programs / "halfv", *args, cwd=cwd, path=self.programs)

    def python(self, code: str, cwd: Path) -> str:
        return run(self.programs / "python", "-c", code, cwd=cwd, path=self.programs)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = ROOT / os.environ.get("HALFV_WHEEL", "")
    if folder == ROOT:
        folder = tmp_path_factory.mktemp("wheel")
        if PORTABLE:
            options = f"{os.environ.get('CMAKE_ARGS', '')} -DHALFV_CPU_VARIANTS={VARIANTS.get(platform.machine(), '')}"
            build = [sys.executable, ROOT / "scripts" / "build-wheel.py", "cpu", "-b", "build/wheel-test"]
            run(*build, "-o", folder, cwd=ROOT, CMAKE_ARGS=options)
        else:  # that of `make build`, with one backend that is linked: only what changed since then is compiled
            pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps")
            run(*pip, "--no-build-isolation", "-Ccmake.define.HALFV_BUILD_TESTS=ON", "-w", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("halfv_edge-*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Dependencies are links to those of this environment, so nothing is downloaded."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=os.name != "nt")
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    modules = Path(run(programs / "python", "-c", find, cwd=folder).strip())
    for name in NEEDS:
        found = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {".."}:
            (modules / top).symlink_to(found.locate_file(top))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", programs / "python")
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    return Installed(wheel, programs, modules)


def test_nothing_of_the_checkout_is_used(installed: Installed, tmp_path: Path) -> None:
    code = "import halfv_edge as a, halfv_cpp as b, halfv_convert as c; print(a.__file__, b.__file__, c.__file__)"
    places = installed.python(code, cwd=tmp_path).split()
    assert len(places) == 3 and all(Path(place).is_relative_to(installed.modules) for place in places)


def test_the_first_question_of_the_readme(installed: Installed, tmp_path: Path) -> None:
    assert QUESTION in (ROOT / "README.md").read_text()
    assert ANSWER in installed.halfv("chat", PICTURE, "-p", QUESTION, cwd=tmp_path)


def test_tokens(installed: Installed, tmp_path: Path) -> None:
    text = installed.halfv("tokens", PICTURE, "-p", QUESTION, "-o", "map.png", "--json", cwd=tmp_path)
    assert json.loads(text) and (tmp_path / "map.png").stat().st_size > 1000


def test_backends_are_loaded_from_the_package(installed: Installed, tmp_path: Path) -> None:
    info = json.loads(installed.halfv("info", "--json", cwd=tmp_path))
    assert "CPU" in info["backends"] and Path(info["lib_dir"]).is_relative_to(installed.modules)
    names = [path.name for path in Path(info["lib_dir"]).iterdir() if "ggml-cpu" in path.name]
    if PORTABLE:
        assert len(names) > 1  # one for each kind of processor
        assert "manylinux" in installed.wheel.name or sys.platform != "linux"


def test_serve(installed: Installed) -> None:
    picture = {"type": "image_url", "image_url": {"url": as_data_url(PICTURE.read_bytes())}}
    message = {"role": "user", "content": [picture, {"type": "text", "text": QUESTION}]}
    running = runpy.run_path(str(ROOT / "halfv_edge" / "testing" / "server.py"))["RunningServer"]  # not installed here
    with running([str(installed.programs / "halfv"), "serve"], {"PATH": str(installed.programs)}) as server:
        body = json.dumps({"messages": [message], "temperature": 0, "max_tokens": 16}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/v1/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=120) as reply:
            assert ANSWER in json.load(reply)["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def compiler() -> str:
    if COMPILER is None or os.name == "nt":
        pytest.skip("there is no C compiler here to build the program with")
    return COMPILER


def test_a_program_in_c(installed: Installed, compiler: str, tmp_path: Path) -> None:
    """Built elsewhere, as docs/embedding.md says, run where there is no compiler. Its answer is not looked at: it does
    not know the demo model's chat template."""
    package = installed.modules / "halfv_cpp"
    options = [f"-I{package}/include", f"-L{package}/lib", "-lmtmd", "-lllama", "-lggml", f"-Wl,-rpath,{package}/lib"]
    run(compiler, ROOT / "examples" / "embed.c", *options, "-o", tmp_path / "embed", cwd=tmp_path)
    code = "from halfv_edge.hub.demo import demo_model; print(*demo_model(), sep='\\n')"
    model = installed.python(code, cwd=tmp_path).split()
    said = run(tmp_path / "embed", *model, PICTURE, QUESTION, cwd=tmp_path, path=installed.programs, stderr=True)
    given, kept = map(int, re.findall(r"visual tokens (\d+) -> (\d+) ->", said)[0])
    assert 0 < kept < given


def test_no_library_of_the_current_folder_is_loaded(installed: Installed, compiler: str, tmp_path: Path) -> None:
    """llama.cpp looks for backends there, which would let a downloaded file run."""
    code = '#include <stdio.h>\n__attribute__((constructor)) static void run(void) { fclose(fopen("loaded", "w")); }'
    (tmp_path / "other.c").write_text(code)
    for name in ("libggml-cpu.so", "libggml-cpu-other.so", "libggml-cuda.so"):
        run(compiler, "-shared", "-fPIC", "other.c", "-o", name, cwd=tmp_path)
    assert ANSWER in installed.halfv("chat", PICTURE, "-p", QUESTION, cwd=tmp_path)
    assert not (tmp_path / "loaded").exists()


def as_data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def test_no_path_of_the_building_machine(wheel: Path) -> None:
    """Libraries are looked for there else, on machines of others."""
    places = [str(place).encode() for place in (ROOT, Path.home() / ".cache")]
    with zipfile.ZipFile(wheel) as archive:
        found = [name for name in archive.namelist() if any(place in archive.read(name) for place in places)]
    assert found == [] or not PORTABLE


def test_what_a_package_index_shows(wheel: Path) -> None:
    """Nothing lies beside the README there."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    text = metadata.get_payload()
    links = re.findall(r'\]\(([^)]*)\)|src="([^"]*)"', text)
    assert len(links) > 10 and all("".join(link).startswith("https://") for link in links)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"Homepage", "Changelog"} <= {url.partition(",")[0] for url in metadata.get_all("Project-URL")}


def test_the_server(installed: Installed, tmp_path: Path) -> None:
    found = json.loads(installed.halfv("doctor", "--json", cwd=tmp_path))
    assert found["problems"] == [] and found["model"]["prunes"]
    assert Path(found["server"]["path"]).is_relative_to(installed.modules)
    assert "--api-key" in installed.halfv("serve", "--help-all", cwd=tmp_path)
