"""Settings of the sidecar: from the environment (HERMOSIS_SIDECAR_…) or the command line, read once at start."""

import os
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})


class Settings(BaseSettings):
    """What a sidecar needs to know. Every field can be given as HERMOSIS_SIDECAR_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="HERMOSIS_SIDECAR_", frozen=True, extra="forbid")

    server: str = Field(default="127.0.0.1:50051", description="host:port of the optimization server")
    token: SecretStr = Field(
        default=SecretStr(""),
        description="the sidecar's own token for the server, of a viewer; for /metrics and /healthz alone: whatever "
        "callers ask is asked with what they bring",
    )
    ca_file: str = Field(
        default="", description="PEM file of the CA of the server's certificate, or system; empty speaks clear text"
    )
    certificate: str = Field(
        default="",
        description="PEM file of the sidecar's certificate for a server that asks for one; callers then need a token",
    )
    key: str = Field(default="", description="PEM file of the certificate's key")
    open_metrics: bool = Field(
        default=False,
        description="answer /metrics to anybody, though the sidecar has a token; else it asks for the very same one",
    )
    host: str = Field(
        default="127.0.0.1", description="address to listen on; anything but loopback opens the door to others"
    )
    port: int = Field(default=8080, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    allowed_hosts: Annotated[frozenset[str], NoDecode] = Field(
        default=frozenset(),
        description="names in the Host header to answer to, separated by commas; none means the loopback names while "
        "listening on one of them, which keeps foreign web pages out, and any name otherwise",
    )
    timeout_s: float = Field(default=5.0, gt=0, description="seconds a call to the server may take, retries included")
    ready_timeout_s: float = Field(
        default=1.0, gt=0, description="seconds the server has to answer a readiness question"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="warning", description="least level to log; at info the web server tells of itself"
    )
    log_format: Literal["auto", "text", "json"] = Field(
        default="auto",
        description="log lines for people or for machines; auto is text on a terminal and json elsewhere",
    )
    live_interval_s: float = Field(
        default=0.1,
        ge=0,
        description="least seconds between two live readings of a session; smaller is finer and costs more",
    )
    overview_interval_s: float = Field(
        default=2.0, gt=0, description="seconds between two overviews of the server on a live stream that asks for them"
    )
    retry_s: float = Field(default=1.0, gt=0, description="seconds between attempts to follow a server that is away")
    viewer_readings: int = Field(
        default=1024, ge=1, description="readings kept for a slow viewer; beyond, the oldest go"
    )
    max_viewers: int = Field(default=256, ge=1, description="live streams at a time")
    max_body_bytes: int = Field(default=16 << 20, ge=1, description="largest request body in bytes")
    history_folder: str = Field(
        default="hermosis-history",
        description="folder for what was measured, one a server; empty keeps nothing beyond what the server holds",
    )
    history_url: SecretStr = Field(
        default=SecretStr(""),
        description="database for what was measured instead of the folder: postgresql://user:password@host/name, which "
        "needs the extra postgres",
    )
    history_raw_s: float = Field(
        default=2 * 86400.0,
        gt=0,
        description="seconds for which every reading is kept; older ones are thinned to one a minute",
    )
    history_keep_s: float = Field(
        default=30 * 86400.0, gt=0, description="seconds for which anything is kept; more takes more disk"
    )
    history_look_s: float = Field(
        default=2.0,
        gt=0,
        description="seconds between two looks at all sessions for what happened to them; less sees more and asks more "
        "of the server",
    )
    metrics_sessions: int = Field(
        default=1000, ge=0, description="sessions with their own metrics, the newest first; more make Prometheus slow"
    )

    @field_validator("server")
    @classmethod
    def _host_and_port(cls, server: str) -> str:
        if "://" in server or ":" not in server:
            raise ValueError(f"{server!r} is not written host:port, as in 127.0.0.1:50051")
        return server

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _separated_by_commas(cls, names: object) -> object:
        return names.replace(",", " ").lower().split() if isinstance(names, str) else names

    def history_database(self) -> str:
        """URL of the database for what was measured; empty where none is kept."""
        given = self.history_url.get_secret_value()
        if given or not self.history_folder:
            return given
        return f"sqlite:///{os.path.abspath(self.history_folder)}/history.db"

    def answers_to(self) -> frozenset[str] | None:
        """Names in the Host header that are answered, without port; None means any."""
        if self.allowed_hosts:
            return self.allowed_hosts | LOOPBACK_NAMES
        bound = f"[{self.host}]" if ":" in self.host else self.host
        return LOOPBACK_NAMES | {bound} if bound in LOOPBACK_NAMES or bound.startswith("127.") else None
