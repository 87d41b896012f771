"""Dockerfiles, compose file and Prometheus settings, checked against the repository and the real command lines."""

import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ["server", "sidecar"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


class Instruction(NamedTuple):
    word: str
    rest: str

    @property
    def command(self) -> list[str]:
        """The exec form, which needs no shell in the image and lets signals through."""
        told = json.loads(self.rest)
        assert isinstance(told, list)
        return told


def dockerfile(name: str) -> list[list[Instruction]]:
    """Instructions of each stage, lines joined and comments left out."""
    text = (ROOT / "deploy" / f"Dockerfile.{name}").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")).replace("\\\n", " ")
    stages: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stages.append([])
        stages[-1].append(Instruction(word, rest.strip()))
    return stages


def last(stage: list[Instruction], word: str) -> Instruction:
    return [instruction for instruction in stage if instruction.word == word][-1]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False, env=environment
    )


_HELP: dict[tuple[str, ...], str] = {}


def help_of(command: list[str]) -> str:
    """What the real command of an image says about itself; `python -m MODULE [subcommand] …`."""
    assert command[:2] == ["python", "-m"]
    names = (command[2], *[word for word in command[3:4] if not word.startswith("-")])
    if names not in _HELP:
        done = run("-m", *names, "--help")
        assert done.returncode == 0, done.stderr
        _HELP[names] = done.stdout
    return _HELP[names]


def flags(command: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in command if word.startswith("--")]


def check_flags(command: list[str]) -> None:
    told = re.findall(r"--[\w-]+", help_of(command))
    assert flags(command)
    for flag in flags(command):
        assert flag in told, f"{shlex.join(command)}: there is no {flag}"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_is_built_in_stages_and_runs_as_a_user_with_a_fixed_number(name: str) -> None:
    stages = dockerfile(name)
    assert len(stages) == 2
    final = stages[-1]
    assert re.fullmatch(r"\d{5}:\d{5}", last(final, "USER").rest)
    user = last(final, "USER").rest.partition(":")[0]
    assert f"--uid {user}" in " ".join(instruction.rest for instruction in final)
    words = [instruction.word for instruction in final]
    assert "RUN" not in words[words.index("USER") :], "what runs after USER cannot prepare folders any more"
    for stage in stages:
        image = stage[0].rest.split()[0]
        assert ":" in image, f"{image} has no version"
        assert not image.endswith(":latest")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_everything_that_is_copied_is_there_and_not_ignored(name: str) -> None:
    ignored = (ROOT / "deploy" / f"Dockerfile.{name}.dockerignore").read_text().splitlines()
    assert "*" in ignored
    kept = [line[1:] for line in ignored if line.startswith("!")]
    copied = [
        source
        for stage in dockerfile(name)
        for instruction in stage
        if instruction.word == "COPY" and not instruction.rest.startswith("--from=")
        for source in instruction.rest.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), f"{source} is hidden by the ignore file"
    # What pyproject.toml names must be there when the wheel is built.
    packages = re.findall(r'"((?:proto|server|client)/\w+)"', (ROOT / "pyproject.toml").read_text())
    assert packages
    for package in packages:
        assert package.partition("/")[0] in copied


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_installs_extras_that_exist(name: str) -> None:
    text = (ROOT / "deploy" / f"Dockerfile.{name}").read_text()
    [extras] = re.findall(r'"\.\[([\w,]+)\]"', text)
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), extra


@pytest.mark.parametrize("name", DOCKERFILES)
def test_start_and_health_check_are_commands_that_exist(name: str) -> None:
    final = dockerfile(name)[-1]
    start = last(final, "ENTRYPOINT").command + last(final, "CMD").command
    check_flags(start)
    health = last(final, "HEALTHCHECK").rest
    check = json.loads(health[health.index("CMD") + 3 :])
    if check[1] == "-m":
        check_flags(check)
    else:
        compile(check[2], "health check", "exec")
    port = last(final, "EXPOSE").rest
    assert port in start
    assert port in " ".join(check)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_health_check_says_no_where_nothing_listens(name: str) -> None:
    health = last(dockerfile(name)[-1], "HEALTHCHECK").rest
    check = json.loads(health[health.index("CMD") + 3 :])
    words = [re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", word) for word in check[1:]]
    assert run(*words).returncode != 0


def test_compose_file_fits_the_compose_specification() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [str(checker), "--builtin-schema", "vendor.compose-spec", str(ROOT / "docker-compose.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_healthy_hardened_and_seen_from_this_machine_only(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["profiles"], "a service without a profile would start without a server"
    for port in service["ports"]:
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_each_profile_brings_one_server_and_everything_else(profile: str) -> None:
    started = [name for name, service in SERVICES.items() if profile in service["profiles"]]
    assert sorted(started) == sorted([f"server-{profile}", "sidecar", "prometheus"])
    assert [name for name, each in SERVICES.items() if each["profiles"] == ["observability"]] == ["grafana"]
    server = SERVICES[f"server-{profile}"]
    assert server["networks"]["default"]["aliases"] == ["server"]
    assert "data:/var/lib/hermosis" in server["volumes"]
    assert "--data-folder=/var/lib/hermosis" in server["command"]
    devices = server.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert [device["capabilities"] for device in devices] == ([["gpu"]] if profile == "gpu" else [])


def test_dependencies_and_volumes_are_declared() -> None:
    for service in SERVICES.values():
        for dependency, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy"
            # A service of another profile is not started, and must not be waited for.
            assert how.get("required", True) == set(service["profiles"]).issubset(SERVICES[dependency]["profiles"])
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists()


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "build" in service])
def test_service_is_built_from_its_dockerfile_and_started_with_flags_that_exist(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (ROOT / build["context"]).resolve() == ROOT
    image = build["dockerfile"].rpartition(".")[2]
    stages = dockerfile(image)
    for argument in build.get("args", {}):
        assert any(instruction == ("ARG", f'{argument}=""') for stage in stages for instruction in stage)
    start = last(stages[-1], "ENTRYPOINT").command + SERVICES[name]["command"]
    check_flags(start)
    inside = SERVICES[name]["ports"][0].rpartition(":")[2]
    assert f"--port={inside}" in start
    assert inside in " ".join(SERVICES[name]["healthcheck"]["test"])
    health = last(stages[-1], "HEALTHCHECK").rest
    assert SERVICES[name]["healthcheck"]["test"][1:] == json.loads(health[health.index("CMD") + 3 :])


def test_server_beyond_loopback_needs_the_flag_that_compose_gives(tmp_path: Path) -> None:
    """The flag is there because of this refusal; where the refusal goes, so must the flag."""
    assert "--allow-insecure" in SERVICES["server-cpu"]["command"]
    arguments = ["--host", "0.0.0.0", "--port", "0", "--data-folder", str(tmp_path)]
    refused = run("-m", "hermosis_server", "serve", *arguments)
    assert refused.returncode != 0
    assert "insecure" in refused.stderr


SECURE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.secure.yml").read_text())["services"]


def test_secure_server_starts_beyond_loopback_without_being_told_that_it_is_open(tmp_path: Path) -> None:
    service, settings = SERVICES["server-cpu"], SECURE["server-cpu"]
    assert settings == SECURE["server-gpu"]
    plain, secure = service["command"], settings["command"]
    check_flags(["python", "-m", "hermosis_server", *secure])
    assert set(plain) - set(secure) == {"--allow-insecure"}
    assert run("-m", "hermosis_server", "certificates", str(tmp_path), "--host", "127.0.0.1").returncode == 0
    arguments = [
        word.replace("/tls/", f"{tmp_path}/").replace("/var/lib/hermosis", f"{tmp_path}/data") for word in secure
    ]
    arguments = [re.sub("--port=.*", "--port=0", word) for word in arguments]
    server = subprocess.Popen(
        [sys.executable, "-m", "hermosis_server", *arguments, "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with server:
        assert server.stdout is not None
        ready = server.stdout.readline()
        assert ready.startswith("HERMOSIS READY")
        port = ready.strip().rpartition(":")[2]
        check = [word.replace("50051", port) for word in service["healthcheck"]["test"][2:]]
        environment = {
            **os.environ,
            "HERMOSIS_CA": settings["environment"]["HERMOSIS_CA"].replace("/tls", str(tmp_path)),
        }
        healthy = subprocess.run([sys.executable, *check], env=environment, capture_output=True, text=True, check=False)
        assert healthy.stdout.strip() == "SERVING", healthy.stderr
        assert server.stdin is not None
        server.stdin.close()


def test_secure_compose_names_settings_that_exist() -> None:
    from hermosis_sidecar.settings import Settings

    prefix = "HERMOSIS_SIDECAR_"
    for name in SECURE["sidecar"]["environment"]:
        assert name.removeprefix(prefix).lower() in Settings.model_fields
    mounted = {volume.split(":")[1] for volume in SECURE["server-cpu"]["volumes"]}
    named = {word.partition("=")[2] for word in SECURE["server-cpu"]["command"] if word.startswith("--tls")}
    assert named | {SECURE["server-cpu"]["environment"]["HERMOSIS_CA"]} == mounted
    assert all(source.endswith(":ro") for source in SECURE["server-cpu"]["volumes"])


def test_sidecar_and_prometheus_ask_their_neighbours_by_the_names_and_ports_they_have() -> None:
    assert "--server=server:50051" in SERVICES["sidecar"]["command"]
    assert "--port=50051" in SERVICES["server-cpu"]["command"]
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    assert set(prometheus) == {"global", "rule_files", "scrape_configs"}
    jobs = {job["job_name"]: job for job in prometheus["scrape_configs"]}
    [targets] = jobs["hermosis"]["static_configs"]
    [target] = targets["targets"]
    host, _, port = target.partition(":")
    assert host in SERVICES
    assert f"--port={port}" in SERVICES[host]["command"]
    assert jobs["hermosis"]["metrics_path"] == "/metrics"
    assert jobs["hermosis-server"]["static_configs"] == [{"targets": ["server:9464"]}]
    for service in (SERVICES["server-cpu"], SERVICES["server-gpu"], SECURE["server-cpu"]):
        assert {"--metrics-host=0.0.0.0", "--metrics-port=9464"} <= set(service["command"])
        assert not any("9464" in port for port in service.get("ports", ())), "nobody is asked who they are there"
    assert SERVICES["sidecar"]["environment"] == {"HERMOSIS_SIDECAR_ALLOWED_HOSTS": host}


def test_prometheus_reads_the_settings_that_are_mounted() -> None:
    mounted = [volume.split(":") for volume in SERVICES["prometheus"]["volumes"] if volume.endswith(":ro")]
    assert {source.removeprefix("./"): target for source, target, _ in mounted} == {
        "deploy/prometheus.yml": "/etc/prometheus/prometheus.yml",
        "deploy/prometheus-rules.yml": "/etc/prometheus/rules.yml",
    }
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    assert prometheus["rule_files"] == ["/etc/prometheus/rules.yml"]


def test_grafana_finds_what_is_mounted_and_asks_prometheus() -> None:
    service = SERVICES["grafana"]
    mounted = {target: source for source, target, *_ in (volume.split(":") for volume in service["volumes"])}
    [provider] = yaml.safe_load((ROOT / "deploy" / "grafana" / "dashboards.yml").read_text())["providers"]
    assert mounted[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    folder, _, name = home.rpartition("/")
    assert (ROOT / mounted[folder] / name).is_file()
    [source] = yaml.safe_load((ROOT / "deploy" / "grafana" / "datasource.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert SERVICES["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]


def test_no_package_registry_is_named() -> None:
    files = [file for file in (ROOT / "deploy").rglob("*") if file.is_file()]
    for file in [ROOT / "docker-compose.yml", *files]:
        for host in re.findall(r"https?://([\w.-]+)", file.read_text()):
            assert host in ("127.0.0.1", "prometheus"), f"{file.name} names {host}"
