"""Settings of the server: flags, environment (HERMOSIS_…) and defaults meet here, once, at start.

Each description says the unit, and what a different value trades; the command line shows them.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hermosis_server.records import Durability, DurabilityMode, Limits

_DEFAULTS = Limits()


class Settings(BaseSettings):
    """Everything that can be chosen when the server starts."""

    model_config = SettingsConfigDict(env_prefix="HERMOSIS_", frozen=True, extra="ignore")

    host: str = Field(
        "127.0.0.1", description="Address to listen on. Beyond loopback the server asks for TLS and for tokens."
    )
    port: int = Field(50051, ge=0, le=65535, description="TCP port; 0 takes a free one and prints it.")
    allow_insecure: bool = Field(
        False,
        description="Listen beyond loopback without TLS, or without asking who calls: whoever reaches the port can "
        "then read what is said, or read and change every session.",
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file of the server's certificate chain; with --tls-key the server speaks TLS only."
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's key, without a password.")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file of the CA of client certificates. Every client must then show one, and is known by it.",
    )
    require_token: bool = Field(
        False,
        description="Ask everybody for a token, even while 'hermosis token create' has made none; with the first one "
        "the server asks anyway.",
    )
    oidc_issuer: str = Field(
        "", description="Address of an OpenID Connect provider whose tokens are taken, as its tokens write it."
    )
    oidc_audience: str = Field("", description="What the provider's tokens must be for: this server's name there.")
    oidc_keys_url: str = Field(
        "", description="Where the provider's keys are, if its discovery document is not to be asked."
    )
    data_folder: Path = Field(
        Path("hermosis-data"), description="Folder for what must outlive the process; made if missing."
    )
    durability: Literal["none", "snapshot", "journal"] = Field(
        "snapshot",
        description="What is kept on disk of sessions that do not say: nothing, the whole state every so often, or "
        "every step too. More costs time at each step.",
    )
    snapshot_every_s: float = Field(
        30.0,
        ge=0,
        description="Seconds between snapshots of a session that went on, if it does not say; 0 is not by time.",
    )
    snapshot_every_steps: int = Field(
        0, ge=0, description="Steps between snapshots of a session, if it does not say; 0 is not by steps."
    )
    journal_bytes: int = Field(
        4 << 30,
        ge=1 << 20,
        description="Length of the journal beyond which sessions are written whole to let its oldest part go. Less "
        "takes less disk and recovers sooner, and writes more.",
    )
    copies: str = Field(
        "",
        description="Where each snapshot is copied to as well, so that it outlives this machine: s3://bucket/folder, "
        "gs://..., az://... or file:///folder. Credentials come from where the tools of that storage look for them, "
        "such as AWS_ACCESS_KEY_ID. Needs the extra cloud.",
    )
    device: str = Field(
        "auto",
        description="Where sessions live: auto (every GPU there is, else the processor), cpu, cuda:N, or several "
        "divided by commas; a session is placed where most memory is free.",
    )
    threads: int = Field(
        1,
        ge=1,
        description="Processor threads of a step on the cpu. More speed up large models, and take cores from the wire.",
    )
    batch_bytes: int = Field(
        256 << 20,
        ge=1,
        description="Most gradient bytes stepped in one launch. More serves many sessions at once, and takes more "
        "device memory for the moment.",
    )
    linger_s: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Seconds that a ready round waits for rounds of other sessions. More fills batches, and delays "
        "every step by as much.",
    )
    device_memory_bytes: int = Field(
        _DEFAULTS.device_bytes, ge=1 << 20, description="Most bytes of memory that sessions may hold on each device."
    )
    host_memory_bytes: int = Field(
        0,
        ge=0,
        description="Most bytes of host memory for sessions that idle and make room on the device; 0 keeps all there.",
    )
    staging_bytes: int = Field(
        _DEFAULTS.staging_bytes,
        ge=1 << 20,
        description="Most bytes of host memory for gradients and answers on their way, all sessions together. Beyond "
        "them new ones are refused, until a quarter is free. Should hold two of the largest gradients.",
    )
    session_bytes: int = Field(
        _DEFAULTS.session_bytes,
        ge=1 << 20,
        description="Most bytes of those that one session may have. Less leaves more to the others, and lets fewer "
        "gradients of one session be under way; two rounds with their answers are always allowed.",
    )
    segment_bytes: int = Field(
        _DEFAULTS.segment_bytes,
        ge=0,
        description="Most bytes of memory that workers on this machine may share with the server. Beyond them their "
        "gradients come over the stream, which is slower; 0 takes none.",
    )
    window_bytes: int = Field(
        _DEFAULTS.window_bytes,
        ge=1 << 20,
        description="Bytes of unanswered payload on one stream before the server stops reading it.",
    )
    max_streams: int = Field(
        _DEFAULTS.max_streams,
        ge=1,
        description="Most Exchange streams at a time, one a worker. Each takes some ten kilobytes, also when idle.",
    )
    idle_s: float = Field(
        _DEFAULTS.idle_s,
        gt=0,
        description="Seconds without a byte of progress after which a half-sent gradient is dropped, and a stream "
        "whose answers nobody reads is ended. A stream with nothing half-done may stay.",
    )
    max_sessions: int = Field(_DEFAULTS.max_sessions, ge=1, description="Most sessions at a time.")
    max_parameters: int = Field(_DEFAULTS.max_parameters, ge=1, description="Most elements in one session.")
    tenant_sessions: int = Field(0, ge=0, description="Most sessions of one tenant at a time; 0 leaves it open.")
    tenant_device_bytes: int = Field(
        0, ge=0, description="Most bytes of memory that the sessions of one tenant may hold; 0 leaves it open."
    )
    tenant_bytes_per_s: int = Field(
        0,
        ge=0,
        description="Most bytes a second that one tenant may send, its streams together. Beyond them streams are read "
        "more slowly and single calls are told to come later; 0 leaves it open.",
    )
    tenants: Path | None = Field(
        None,
        description="TOML file with a table for each tenant that has limits of its own: sessions, device_bytes, "
        "bytes_per_s.",
    )
    max_readings: int = Field(
        _DEFAULTS.max_readings, ge=1, description="Telemetry readings kept for each session, in memory."
    )
    grace_s: float = Field(5.0, ge=0, description="Seconds that calls have to end after a stop was asked for.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="TCP port for Prometheus to read how the whole server does; 0 takes a free one and logs it.",
    )
    metrics_host: str = Field(
        "127.0.0.1",
        description="Address of that port. It speaks clear text and asks nobody who they are: whoever reaches it reads "
        "loads and counts, though no session and no tenant by name.",
    )
    otel: bool = Field(
        False,
        description="Trace calls, streams and launches with OpenTelemetry, to where OTEL_EXPORTER_OTLP_ENDPOINT says. "
        "Each step takes some tens of microseconds more; OTEL_TRACES_SAMPLER thins them. Needs the extra otel.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level to log.")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="Log lines for people or for machines; auto is text on a terminal and json elsewhere."
    )
    until_stdin_closes: bool = Field(
        False, description="Stop when standard input ends, so that a parent that dies leaves no server behind."
    )

    def default_durability(self) -> Durability:
        """Of sessions that ask for none in particular."""
        return Durability(
            mode=DurabilityMode[self.durability.upper()],
            snapshot_every_steps=self.snapshot_every_steps,
            snapshot_every_s=self.snapshot_every_s,
        )

    @model_validator(mode="after")
    def _whole_pairs(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together; give both or none")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key: without TLS nobody shows a certificate")
        if bool(self.oidc_issuer) != bool(self.oidc_audience):
            raise ValueError("oidc_issuer and oidc_audience belong together: a token for others is none for us")
        return self

    def limits(self) -> Limits:
        """The limits that the engine keeps."""
        return Limits(
            max_sessions=self.max_sessions,
            max_parameters=self.max_parameters,
            max_readings=self.max_readings,
            max_streams=self.max_streams,
            window_bytes=self.window_bytes,
            session_bytes=self.session_bytes,
            idle_s=self.idle_s,
            staging_bytes=self.staging_bytes,
            device_bytes=self.device_memory_bytes,
            segment_bytes=self.segment_bytes,
        )
