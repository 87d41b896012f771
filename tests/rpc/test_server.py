"""The server as a process: health, reflection, addresses, signals."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hermosis_server.app import check_host, choose_devices
from hermosis_server.errors import InvalidRequest
from hermosis_server.rpc.server import SERVICES
from hermosis_server.rpc.status import CODES
from hermosis_server.storage.folder import DataFolder

ONES = np.ones(5, np.float32)


def test_health_is_serving_for_the_server_and_each_service(server: Any) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    for service in ("", *SERVICES):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_watch_hears_of_the_stop(host: Any) -> None:
    hosted = host()
    stub = health_pb2_grpc.HealthStub(hosted.server.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    stopping = threading.Thread(target=hosted.stop)
    stopping.start()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    stopping.join()


def test_reflection_lists_the_services(server: Any) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(stub.ServerReflectionInfo(iter([request]), timeout=10))
    assert set(SERVICES) <= {service.name for service in answer.list_services_response.service}


def test_every_error_has_a_status() -> None:
    from hermosis_server import errors

    named = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.HermosisError) and value is not errors.HermosisError
    }
    assert set(CODES) == named


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_clear_text_beyond_loopback_needs_a_word(host: str) -> None:
    with pytest.raises(InvalidRequest, match="allow-insecure"):
        check_host(host, allow_insecure=False)
    check_host(host, allow_insecure=True)


@pytest.mark.parametrize(
    ("tls", "asks", "told"),
    [(False, False, "clear text.* and asks nobody"), (True, False, "asks nobody"), (False, True, "clear text")],
)
def test_beyond_loopback_a_server_hides_what_is_said_and_asks_who_calls(tls: bool, asks: bool, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        check_host("0.0.0.0", allow_insecure=False, tls=tls, asks=asks)
    check_host("0.0.0.0", allow_insecure=False, tls=True, asks=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_open_to_this_machine_only(host: str) -> None:
    check_host(host, allow_insecure=False)


@pytest.mark.parametrize("wish", ["cuda:77", "nonsense", ""])
def test_a_device_that_is_not_there_is_named(wish: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be used"):
        choose_devices(wish)


def start(*flags: str, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "hermosis_server", "serve", "--port", "0", "--data-folder", str(folder), *flags]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def address_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("HERMOSIS READY address="), line
    return line.strip().partition("=")[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_process_in_good_order(number: signal.Signals, tmp_path: Path) -> None:
    process = start(folder=tmp_path)
    channel = grpc.insecure_channel(address_of(process))
    grpc.channel_ready_future(channel).result(timeout=20)
    process.send_signal(number)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0, log
    assert '"event": "stopped"' in log
    channel.close()


def test_the_end_of_stdin_stops_a_process_that_was_told_so(tmp_path: Path) -> None:
    process = start("--until-stdin-closes", folder=tmp_path)
    address_of(process)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = start("--port", port, folder=tmp_path)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"port {port}" in log
    assert "Traceback" not in log


def test_a_second_server_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with DataFolder(tmp_path):
        process = start(folder=tmp_path)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert str(os.getpid()) in log
    assert "Traceback" not in log


def test_a_bug_in_a_handler_is_bland_outside_and_told_in_the_log(
    host: Any, tools: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = host().server
    session = server.create()

    def broken(self: Any, session_id: str) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(type(server.engine), "session", broken)
    with pytest.raises(grpc.RpcError) as caught:
        server.push(session, ONES, 1)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert tools.reason_of(caught.value) == "InternalError"
    assert "secret" not in caught.value.details()
    incident = caught.value.details().split()[-1]
    assert incident in caplog.text
    assert "secret detail" in caplog.text
