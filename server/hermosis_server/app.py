"""App: the parts of a server, built once, started and stopped in order."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hermosis import allocator
from hermosis_server import __version__
from hermosis_server.access.audit import AuditLog
from hermosis_server.access.certificates import CertificateFiles
from hermosis_server.access.desk import Desk
from hermosis_server.access.gatekeeper import Gatekeeper
from hermosis_server.access.issuer import Issuer
from hermosis_server.access.tokens import TokenFile
from hermosis_server.engine.arena import Arena, staging_buffer
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.executor import Executor, warm_up
from hermosis_server.engine.keeper import Keeper
from hermosis_server.engine.quotas import Quotas, TenantLimits, read_overrides
from hermosis_server.engine.recovery import recover
from hermosis_server.engine.scheduler import StepQueue
from hermosis_server.errors import HermosisError, InvalidRequest
from hermosis_server.metrics import Exporter
from hermosis_server.rpc.codec import session as session_codec
from hermosis_server.rpc.server import RpcServer
from hermosis_server.rpc.tls import server_credentials
from hermosis_server.settings import Settings
from hermosis_server.storage.copies import Copies
from hermosis_server.storage.disk import Disk
from hermosis_server.storage.folder import DataFolder
from hermosis_server.storage.journal import JOURNAL, Journal
from hermosis_server.storage.store import Store
from hermosis_server.tracing import Tracing, configured

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that listens; at `metrics_address` too, where it was told to."""

    engine: Engine
    address: str
    metrics_address: str = ""


def choose_devices(wish: str) -> list[torch.device]:
    """The devices to serve from: those named, divided by commas, or with auto every GPU, else the processor.

    Raises:
      InvalidRequest: there is no such device here.
    """
    if wish == "auto":
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]
    return [_device(name.strip()) for name in wish.split(",")]


def _device(wish: str) -> torch.device:
    try:
        device = torch.device(wish)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidRequest(
            f"device {wish!r} cannot be used ({str(error).splitlines()[0]}); choose auto, cpu, or cuda devices that "
            "this torch build and driver offer",
            field="device",
        ) from error
    return device


def device_name(device: torch.device) -> str:
    """How GetCapabilities calls a device."""
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def check_host(host: str, *, allow_insecure: bool, tls: bool = False, asks: bool = False) -> None:
    """Raises InvalidRequest when the server would be open to others without anybody having said so.

    Args:
      tls:  whether what is said is hidden from others.
      asks: whether callers must prove who they are.
    """
    missing = [] if tls else ["speaks clear text (give --tls-certificate and --tls-key)"]
    if not asks:
        missing.append("asks nobody who they are (make a token with 'hermosis token create', or give --tls-client-ca)")
    if missing and not (_is_loopback(host) or allow_insecure):
        raise InvalidRequest(
            f"host {host} is reachable from other machines, and this server {' and '.join(missing)}; "
            "mend that, listen on 127.0.0.1, or pass --allow-insecure inside a network you trust",
            field="host",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.asynccontextmanager
async def running(
    settings: Settings, folder: Path | None = None, *, tracing: Tracing | None = None
) -> AsyncIterator[Running]:
    """A server from the first open port to the last finished step.

    It listens at once, says NOT_SERVING and Recovering until all sessions are back, and gives itself then.

    Args:
      folder:  where sessions are kept, held by nobody else; None keeps them in memory only.
      tracing: in place of the one that the settings ask for; closed at the end.

    Stopping says NOT_SERVING, refuses new work, finishes rounds that are complete, writes what is not on disk, and
    then ends the calls.
    """
    certificates = _certificates(settings)
    asks_certificates = certificates is not None and certificates.current.client_ca is not None
    gatekeeper = Gatekeeper(
        TokenFile(settings.data_folder),
        require_token=settings.require_token,
        issuer=_issuer(settings),
        takes_certificates=asks_certificates,
    )
    check_host(
        settings.host, allow_insecure=settings.allow_insecure, tls=certificates is not None, asks=gatekeeper.asks
    )
    quotas = _quotas(settings)
    tracing = tracing or (configured(__version__) if settings.otel else None)
    devices = choose_devices(settings.device)
    torch.set_num_threads(settings.threads)
    limits = settings.limits()
    if any(device.type == "cpu" for device in devices):
        warm_up()
    executors = [_executor(device, settings) for device in devices]
    pinned = any(device.type == "cuda" for device in devices)
    keeper = None if folder is None else _keeper(folder, settings)
    engine = Engine(
        executors,
        limits=limits,
        allocate=lambda size: staging_buffer(size, pinned=pinned),
        keeper=keeper,
        durability=settings.default_durability(),
        quotas=quotas,
        tracing=tracing,
    )
    engine.recovering = keeper is not None
    audit = AuditLog(settings.data_folder)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    names = ", ".join(map(device_name, devices))
    rpc = RpcServer(
        engine,
        gatekeeper,
        Desk(settings.data_folder),
        device_name=names,
        address=f"{host}:{settings.port}",
        audit=audit,
        credentials=None if certificates is None else server_credentials(certificates),
    )
    try:
        port = await rpc.start()
    except RuntimeError as error:
        await engine.stop()
        raise InvalidRequest(
            f"port {settings.port} on {settings.host} cannot be opened; another server may have it: "
            "stop that one, or choose --port 0 for a free one",
            field="port",
        ) from error
    try:
        exporter = _exporter(engine, settings)
    except InvalidRequest:
        await engine.stop()
        await rpc.stop(0)
        raise
    if keeper is not None:
        await recover(engine, keeper)
        engine.recovering = False
        keeper.start()
    await rpc.serve()
    logger.info("event=serving version=%s address=%s device=%s", __version__, f"{host}:{port}", names)
    try:
        yield Running(engine, f"{host}:{port}", exporter.address if exporter else "")
    finally:
        logger.info("event=stopping")
        await rpc.refuse()
        await engine.stop()
        await rpc.stop(settings.grace_s)
        if exporter is not None:
            await exporter.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
        audit.close()
        logger.info("event=stopped")


def _exporter(engine: Engine, settings: Settings) -> Exporter | None:
    if settings.metrics_port is None:
        return None
    exporter = Exporter(engine, host=settings.metrics_host, port=settings.metrics_port)
    logger.info("event=metrics address=%s", exporter.address)
    if not _is_loopback(settings.metrics_host):
        logger.warning("event=metrics_open address=%s caution=%r", exporter.address, "whoever reaches it may read it")
    return exporter


def _certificates(settings: Settings) -> CertificateFiles | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def _issuer(settings: Settings) -> Issuer | None:
    if not settings.oidc_issuer:
        return None
    return Issuer(settings.oidc_issuer, settings.oidc_audience, keys_url=settings.oidc_keys_url)


def _quotas(settings: Settings) -> Quotas:
    limits = TenantLimits(
        sessions=settings.tenant_sessions,
        device_bytes=settings.tenant_device_bytes,
        bytes_per_s=settings.tenant_bytes_per_s,
    )
    return Quotas(limits, read_overrides(settings.tenants, limits) if settings.tenants else None)


def _executor(device: torch.device, settings: Settings) -> Executor:
    arena = Arena(device, limit_bytes=settings.device_memory_bytes, host_limit_bytes=settings.host_memory_bytes)
    queue = StepQueue(batch_bytes=settings.batch_bytes, linger_s=settings.linger_s)
    return Executor(arena, queue, threads=settings.threads)


def _keeper(folder: Path, settings: Settings) -> Keeper:
    disk = Disk()
    journal = Journal(folder / JOURNAL, disk, most_bytes=settings.journal_bytes)
    limits = settings.limits()
    return Keeper(
        Store(folder, disk),
        journal,
        copies=Copies(settings.copies) if settings.copies else None,
        encode=session_codec.document,
        decode=lambda raw: session_codec.from_document(raw, limits),
    )


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if settings.until_stdin_closes:
        _call_at_end_of_stdin(loop, stop)
    with DataFolder(settings.data_folder) as folder:
        await _until(stop, settings, folder.path)


async def _until(stop: asyncio.Event, settings: Settings, folder: Path) -> None:
    async with running(settings, folder) as server:
        # For whoever started this process, in one line that is easy to find.
        print(f"HERMOSIS READY address={server.address}", flush=True)
        await stop.wait()


def _call_at_end_of_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    def wait() -> None:
        # By file descriptor: a buffered reader's lock, held by this thread, would abort the interpreter's exit.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait, name="hermosis-stdin", daemon=True).start()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed: a sixth more small messages a second."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def serve(settings: Settings) -> int:
    """Serves until SIGTERM, SIGINT or, if asked for, the end of standard input. Returns the exit status."""
    from hermosis_server import failpoints, logs

    logs.configure(level=settings.log_level, style=settings.log_format)
    allocator.keep_memory()
    failpoints.arm_from_environment()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings))
    except HermosisError as error:
        print(f"hermosis: {error}", file=sys.stderr)
        return 2
    return 0
