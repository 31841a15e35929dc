"""What stands around the package: citation, workflow, hooks, templates and image agree with pyproject.toml."""

import json
import shutil
import subprocess
import time
import tomllib
import urllib.request
import uuid
from pathlib import Path

import pytest
import yaml

import nextpixel

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_versions_and_licences_agree() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == PROJECT["version"] == nextpixel.__version__
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert citation["abstract"] == PROJECT["description"]


def test_hooks_run_the_ruff_that_is_installed() -> None:
    [pinned] = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ruff==")]
    assert read(".pre-commit-config.yaml")["repos"][0]["rev"] == f"v{pinned.removeprefix('ruff==')}"


def test_the_workflow_runs_ci_and_publishes_only_tags_that_passed() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"]]
    versions = [name for name in named if name.startswith("3.")]
    assert jobs["test"]["strategy"]["matrix"]["python"] == versions
    assert {"run": ".ci/run"} in jobs["test"]["steps"]
    assert {"run": "make docs"} in jobs["docs"]["steps"] and jobs["publish-docs"]["needs"] == "publish"
    publish = jobs["publish"]
    assert publish["if"] == "startsWith(github.ref, 'refs/tags/v')" and publish["needs"] == ["test", "docs"]
    assert publish["permissions"]["id-token"] == "write" and "password" not in json.dumps(publish)


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_issue_forms_have_what_forms_need(form: Path) -> None:
    fields = yaml.safe_load(form.read_text())
    assert fields["name"] and fields["description"]
    assert all(field["attributes"]["label"] for field in fields["body"])


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.docker
@pytest.mark.timeout(1800)
def test_the_image_serves_as_an_ordinary_user_from_a_read_only_root() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        pytest.skip("needs a running Docker")
    name = f"nextpixel-test-{uuid.uuid4().hex[:8]}"
    docker("build", "-t", name, ".")
    try:
        assert docker("run", "--rm", "--entrypoint", "id", name, "-u") == "10001"
        docker("run", "-d", "--name", name, "--read-only", "--tmpfs", "/tmp:exec", "-p", "127.0.0.1::8000", name)
        address = docker("port", name, "8000")
        for _ in range(60):
            if docker("inspect", "-f", "{{.State.Health.Status}}", name) == "healthy":
                break
            time.sleep(2)
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=10) as answer:
            assert answer.status == 200
    finally:
        subprocess.run(["docker", "rm", "-f", name], capture_output=True)
        subprocess.run(["docker", "rmi", "-f", name], capture_output=True)
