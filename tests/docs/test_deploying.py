"""The examples for Docker, Kubernetes, CI and pre-commit: their files are read, and their commands run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from support.faultserver import FaultServer
from support.pages import BILLING, FILE, ROOT, run_line, run_shell, serving, shows, text_of, write
from support.volumes import ConfigMap
from support.waiting import wait_until


def broken() -> str:
    """A file that no check lets pass."""
    return text_of(FILE, {"max_attempts: 3": "max_attempts: three"})


# --- Docker ---------------------------------------------------------------------------------------------


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    for line in dockerfile.splitlines():
        name, _, rest = line.partition(" ")
        yield name, rest


@shows("containers: Docker and Kubernetes/1", "containers: Docker/1")
def test_what_the_image_is_made_of_runs(folder: Path, upstream: FaultServer) -> None:
    """Without a daemon nothing is built: what its lines do is done here, in the directory that they make."""
    steps = [*instructions(text_of("containers: Docker/1"))]
    assert [name for name, _ in steps] == [
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "COPY",
        "RUN",
        "USER",
        "ENV",
        "CMD",
    ]
    write(folder, "orders.py", "containers: Docker and Kubernetes/1", upstream)
    (_, check) = (line for name, line in steps if name == "RUN")
    copied, into = steps[4][1].split()[:-1], steps[1][1]
    assert all((folder / name).is_file() for name in copied)

    assert run_line(check, folder)[0] == 0
    variable, _, value = dict(steps)["ENV"].partition("=")
    assert value.startswith(f"{into}/")
    env = {variable: value.replace(into, str(folder))}
    command = shlex.join(json.loads(dict(steps)["CMD"])).replace("0.0.0.0:8000", "127.0.0.1:0")
    with serving(command, folder, env=env) as url:
        assert requests.get(f"{url}/healthz", timeout=20).status_code == 204

    (folder / "upstreams.yaml").write_text(broken())
    assert run_line(check, folder)[0] == 1


# --- Kubernetes -----------------------------------------------------------------------------------------


def manifests() -> Mapping[str, Any]:
    found = yaml.safe_load_all(text_of("containers: Kubernetes/1"))
    return {one["kind"]: one for one in found}


def test_the_manifests_fit_together() -> None:
    config, deployment = manifests()["ConfigMap"], manifests()["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["upstreams"]["configMap"]["name"] == config["metadata"]["name"]
    (container,) = pod["containers"]
    (check,) = pod["initContainers"]
    for one in container, check:
        assert {mount["name"] for mount in one["volumeMounts"]} == volumes.keys()
        assert not any("subPath" in mount for mount in one["volumeMounts"])
    (variable,) = container["env"]
    mounted = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "upstreams")
    assert variable == {"name": "HEADRACE_FILE", "value": f"{mounted}/{next(iter(config['data']))}"}
    ports = {port["containerPort"] for port in container["ports"]}
    for probe in "livenessProbe", "readinessProbe":
        assert container[probe]["httpGet"]["port"] in ports


@shows("containers: Kubernetes/1")
def test_a_pod_checks_its_file_starts_answers_its_probes_and_follows_an_edit_of_the_configmap(
    folder: Path, upstream: FaultServer
) -> None:
    """failures.md 37. The volume is one as the kubelet writes it; the commands are those of the pod."""
    config, pod = manifests()["ConfigMap"], manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,), (check,) = pod["containers"], pod["initContainers"]
    text = config["data"]["upstreams.yaml"].replace(BILLING, upstream.url)
    volume = ConfigMap(folder / "etc", text)
    there = {"/etc/headrace": str(volume.directory), "0.0.0.0:8000": "127.0.0.1:0"}
    write(folder, "orders.py", "containers: Docker and Kubernetes/1", upstream)
    with (folder / "orders.py").open("a") as application:
        application.write("@app.get('/status')\ndef status():\n    return headrace.current().status()\n")

    assert run_line(placed(shlex.join(check["command"]), there), folder)[0] == 0
    env = {one["name"]: placed(one["value"], there) for one in container["env"]}
    with serving(placed(shlex.join(container["command"]), there), folder, env=env) as url:
        for probe in "livenessProbe", "readinessProbe":
            assert requests.get(url + container[probe]["httpGet"]["path"], timeout=20).ok

        def status() -> Any:
            return requests.get(f"{url}/status", timeout=20).json()

        def mode() -> str:
            return str(status()["upstreams"]["billing"]["mode"])

        assert mode() == "enforce"
        volume.swap(text + "    mode: observe\n")
        wait_until(lambda: mode() == "observe", timeout_s=20)
        volume.swap(text + "    mode: obsreve\n")
        wait_until(lambda: status()["rejected"], timeout_s=20)
        assert mode() == "observe"
        assert requests.get(f"{url}/healthz", timeout=20).ok
    assert run_line(placed(shlex.join(check["command"]), there), folder)[0] == 1


def placed(text: str, there: Mapping[str, str]) -> str:
    for path, instead in there.items():
        text = text.replace(path, instead)
    return text


# --- CI -------------------------------------------------------------------------------------------------


def of_github(workflow: Any) -> tuple[list[str], dict[str, str]]:
    (job,) = workflow["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step], job["env"]


def of_gitlab(pipeline: Any) -> tuple[list[str], dict[str, str]]:
    (job,) = pipeline.values()
    return [*job["before_script"], *job["script"]], job["variables"]


@shows("ci: GitHub Actions/1", "ci: GitLab/1")
@pytest.mark.parametrize(
    ("key", "lines_of"),
    [
        pytest.param("ci: GitHub Actions/1", of_github, id="github"),
        pytest.param("ci: GitLab/1", of_gitlab, id="gitlab"),
    ],
)
def test_a_job_passes_a_sound_file_and_stops_a_broken_one(key: str, lines_of: Any, tmp_path: Path) -> None:
    lines, env = lines_of(yaml.safe_load(text_of(key)))
    install, *checks = lines
    assert install.startswith("pip install")
    headers = "    headers: {Authorization: '${env:BILLING_TOKEN}'}\n"

    for text, code in (text_of(FILE) + headers, 0), (broken() + headers, 1):
        (tmp_path / "upstreams.yaml").write_text(text)
        for line in checks:
            assert run_shell(line, tmp_path, env)[0] == code, line
    for name in re.findall(r"> (\S+)", " ".join(checks)):
        assert json.loads((tmp_path / name).read_text())["problems"]


@shows("ci: pre-commit/1")
def test_the_hook_that_is_named_is_offered_and_checks(tmp_path: Path) -> None:
    """pre-commit makes an environment of its own and runs `entry` with `args` in the repository's root."""
    (repository,) = yaml.safe_load(text_of("ci: pre-commit/1"))["repos"]
    offered = {one["id"]: one for one in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))}
    (named,) = repository["hooks"]
    hook = offered[named["id"]]
    assert hook["pass_filenames"] is False  # several files are one configuration
    (file,) = hook["args"]
    assert re.search(hook["files"], file)
    assert not re.search(hook["files"], f"other/{file}")

    for text, code in (text_of(FILE), 0), (broken(), 1):
        (tmp_path / file).write_text(text)
        assert run_line(shlex.join([*hook["entry"].split(), *hook["args"]]), tmp_path)[0] == code
