"""The files of deploy/ pass the linters of their kinds, and fit the settings of the server."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from repository import ROOT, tool

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
EXPOSURE_MAX = 2.0
"""`systemd-analyze security` says 9.6 of a unit without hardening."""


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_dockerfile_passes_hadolint() -> None:
    assert run(tool("hadolint"), "deploy/Dockerfile").strip() == ""


def test_the_image_holds_what_its_build_needs() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for name in line.split()
    }
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line[1:] for line in allowed if line.startswith("!")}
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_compose_file_fits_the_specification() -> None:
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml")
    (compose,) = documents(DEPLOY / "compose.yaml")
    mounted = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", ())
        if volume.startswith(".")
    ]
    assert mounted
    assert [path for path in mounted if not (DEPLOY / path).exists()] == []
    # No port is open to other machines.
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


RESOURCES = [path for path in KUBERNETES.glob("*.yaml") if path.name != "kustomization.yaml"]


@pytest.mark.parametrize("path", RESOURCES, ids=lambda path: path.name)
def test_a_resource_fits_the_schema_of_kubernetes(path: Path) -> None:
    for document in documents(path):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_schema_finds_a_wrong_field() -> None:
    (wrong,) = documents(KUBERNETES / "disruption.yaml")
    wrong["spec"]["minAvailible"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_the_kustomization_names_every_resource() -> None:
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    assert set(kustomization["resources"]) == {path.name for path in RESOURCES}


def merged(base: Any, patch: Any) -> Any:
    """Return what a strategic merge makes of both, as far as these files use it."""
    if isinstance(base, dict) and isinstance(patch, dict):
        made = {key: merged(base[key], patch[key]) if key in base and key in patch else value
                for key, value in (base | patch).items()}  # fmt: skip
        return {key: value for key, value in made.items() if value is not None}
    named = (
        (isinstance(each, dict) and "name" in each for each in [*base, *patch])
        if isinstance(base, list)
        else ()
    )
    if isinstance(base, list) and all(named):
        found = {each["name"]: each for each in base}
        for each in patch:
            found[each["name"]] = merged(found.get(each["name"], {}), each)
        return list(found.values())
    return patch


def test_the_set_with_tls_fits_the_schema_and_asks_by_command() -> None:
    (base,) = documents(KUBERNETES / "statefulset.yaml")
    (patch,) = documents(KUBERNETES / "tls" / "statefulset.yaml")
    made = merged(base, patch)
    kubernetes_validate.validate(made, kubernetes_validate.latest_version(), strict=True)
    (container,) = made["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert "grpc" not in container[probe]
        assert container[probe]["exec"]["command"][:2] == ["livefactor", "health"]
    assert "--insecure" not in container["args"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in made["spec"]["volumeClaimTemplates"]}
    assert mounts == claims | {volume["name"] for volume in made["spec"]["template"]["spec"]["volumes"]}


def test_budget_policy_and_service_select_the_pods() -> None:
    (pods,) = documents(KUBERNETES / "statefulset.yaml")
    labels = pods["spec"]["template"]["metadata"]["labels"]
    assert pods["spec"]["selector"]["matchLabels"] == labels
    selectors = [
        documents(KUBERNETES / "disruption.yaml")[0]["spec"]["selector"]["matchLabels"],
        documents(KUBERNETES / "network.yaml")[0]["spec"]["podSelector"]["matchLabels"],
        documents(KUBERNETES / "service.yaml")[0]["spec"]["selector"],
    ]
    assert selectors == [labels] * 3


@pytest.mark.parametrize("files", ["compose", "kubernetes", "kubernetes-tls"])
def test_the_commands_are_accepted_by_the_server(files: str) -> None:
    import typer

    from livefactor_server.cli.app import app

    if files == "compose":
        words = documents(DEPLOY / "compose.yaml")[0]["services"]["livefactor"]["command"]
    else:
        folder = KUBERNETES / "tls" if files.endswith("tls") else KUBERNETES
        words = documents(folder / "statefulset.yaml")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
    serve = typer.main.get_command(app).commands["serve"]
    context = serve.make_context("serve", [*words][1:])
    assert context.params["host"] == "0.0.0.0"


def variables(text: str) -> set[str]:
    return set(re.findall(r"\bLIVEFACTOR_[A-Z_]+", text))


def test_every_variable_that_the_files_set_is_a_setting() -> None:
    from livefactor_server.cli.serve.settings import unknown_variables

    found = {
        name
        for path in DEPLOY.rglob("*")
        if path.is_file()
        for name in variables(path.read_text(encoding="utf-8"))
    }
    assert {"LIVEFACTOR_DATA", "LIVEFACTOR_LOG_FORMAT"} <= found
    assert unknown_variables(dict.fromkeys(found, "")) == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "livefactor.service").read_text(encoding="utf-8")
    unit = tmp_path / "livefactor.service"
    unit.write_text(text.replace("/opt/livefactor/bin/livefactor", tool("livefactor")))
    assert run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)).strip() == ""
    report = run("systemd-analyze", "security", "--offline=true", "--no-pager", str(unit))
    level = re.search(r"exposure level for \S+: ([\d.]+)", report)
    assert level is not None
    assert float(level[1]) <= EXPOSURE_MAX
