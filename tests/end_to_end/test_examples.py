"""Example clients that do not use the livefactor package, some in other languages, against a real
server.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ITEMS = {"teapot", "cup", "saucer", "kite", "string"}


def check_output(output: str) -> int:
    """Check that an example pushed all rows and got three known items.

    Returns the revision of its push.
    """
    pushed = re.search(r"^pushed 7 purchases, visible at revision (\d+)$", output, re.MULTILINE)
    scored = re.search(r"^ada's best at revision (\d+):$", output, re.MULTILINE)
    assert pushed, output
    assert scored, output
    assert int(scored[1]) >= int(pushed[1]) >= 1
    listed = [line.split() for line in output[scored.end() :].splitlines() if line]
    assert len(listed) == len({name for _, name in listed} & ITEMS) == 3
    scores = [float(score) for score, _ in listed]
    assert scores == sorted(scores, reverse=True)
    return int(pushed[1])


def run(command: list[str], timeout_s: float = 60) -> str:
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=timeout_s, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples outside the repository. A reader would copy them too."""
    folder = tmp_path_factory.mktemp("elsewhere") / "examples"
    return shutil.copytree(ROOT / "examples", folder, ignore=shutil.ignore_patterns("node_modules"))


def test_the_examples_hold_the_current_contract() -> None:
    copies = ROOT / "examples" / "node" / "protos" / "livefactor" / "v1"
    protos = {path.name: path.read_text() for path in (ROOT / "protos" / "livefactor" / "v1").glob("*.proto")}
    assert {path.name: path.read_text() for path in copies.iterdir()} == protos, "make proto copies them"


def test_reflection_client(server, copied: Path) -> None:
    example = copied / "reflection_client.py"
    assert "import livefactor" not in example.read_text()
    first = check_output(run([sys.executable, str(example), server.target]))
    # In the second run, the model exists and the producer resumes.
    assert check_output(run([sys.executable, str(example), server.target])) > first


@pytest.fixture(scope="module")
def node_client(copied: Path) -> Path:
    """The folder of the Node example with its packages.

    Skips, with the reason, if they are missing.
    """
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js and npm are not on this machine")
    folder = copied / "node"
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if installed.returncode:
        pytest.skip(f"npm could not install the example's packages: {installed.stderr.strip()[-300:]}")
    return folder / "client.mjs"


def test_node_client(server, node_client: Path) -> None:
    first = check_output(run(["node", str(node_client), server.target]))
    assert check_output(run(["node", str(node_client), server.target])) > first


GO_TOOLS = ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")


@pytest.fixture(scope="module")
def go_client(copied: Path) -> Path:
    """The program of the Go example. Skips, with the reason, if it cannot be built here."""
    if missing := [tool for tool in GO_TOOLS if not shutil.which(tool)]:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    folder = copied / "go"
    subprocess.run([folder / "generate.sh"], check=True, timeout=60)
    tidy = subprocess.run(
        ["go", "mod", "tidy"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    if tidy.returncode:
        pytest.skip(f"go could not fetch the example's modules: {tidy.stderr.strip()[-300:]}")
    subprocess.run(["go", "build", "-o", "client", "."], cwd=folder, check=True, timeout=240)
    return folder / "client"


def test_go_client(server, go_client: Path) -> None:
    first = check_output(run([str(go_client), server.target]))
    assert check_output(run([str(go_client), server.target])) > first


def test_the_go_example_is_written_as_gofmt_writes_it() -> None:
    if not shutil.which("gofmt"):
        pytest.skip("gofmt is not on this machine")
    listed = subprocess.run(
        ["gofmt", "-l", ROOT / "examples" / "go"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (listed.returncode, listed.stdout + listed.stderr) == (0, "")


def test_both_clients_make_the_same_keys(server, copied: Path, node_client: Path) -> None:
    """Python asks for the ids that Node pushed."""
    check_output(run(["node", str(node_client), server.target, "shared"]))
    before = described_items(server.target)
    check_output(run([sys.executable, str(copied / "reflection_client.py"), server.target, "shared"]))
    assert before == described_items(server.target) == len(ITEMS)


def described_items(target: str) -> int:
    import grpc

    from livefactor.v1 import models_pb2, models_pb2_grpc

    with grpc.insecure_channel(target) as channel:
        models = models_pb2_grpc.ModelServiceStub(channel)
        return models.DescribeModel(
            models_pb2.DescribeModelRequest(model="shared"), timeout=10
        ).description.items


@pytest.mark.parametrize("engine", ["tantivy", "postgres"])
def test_search(copied: Path, engine: str) -> None:
    """The re-ranked candidates have the clicked items nearer to the top than the engine."""
    if engine == "postgres" and not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    command = [sys.executable, str(copied / "search" / "search.py"), "--engine", engine]
    output = run([*command, "--purchases", "8000", "--searches", "200"], timeout_s=280)
    found = re.findall(r": (0\.\d+), in the later half (0\.\d+)$", output, re.MULTILINE)
    engine, ranked, with_words = (float(whole) for whole, _ in found)
    assert min(ranked, with_words) > 1.5 * engine, output
    assert re.search(r"^one Score call takes \d+\.\d ms \(median\)$", output, re.MULTILINE)
