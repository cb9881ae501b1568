"""The settings of `livefactor serve`: flags, or environment variables LIVEFACTOR_<NAME>. Flags win.

Each setting is declared once, as a field of `ServerSettings`. The command, its help and its checks
follow from the declaration. Only the command line uses this module. The engine takes plain
dataclasses.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from livefactor_kernels.spec.names import DEFAULT_PRESET
from livefactor_server.cli.serve.checks import known_archive, known_policy, known_preset

if TYPE_CHECKING:
    from livefactor_server.access.entry import Entry
    from livefactor_server.hosting.host import HostingSettings
    from livefactor_server.judging.observer import ObserverSettings
    from livefactor_server.rpc.calls import ServiceSettings

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
PREFIX = "LIVEFACTOR_"
CLIENT_VARIABLES = (
    "LIVEFACTOR_TARGET",
    "LIVEFACTOR_SECRET",
    "LIVEFACTOR_TOKEN",
    "LIVEFACTOR_CA",
    "LIVEFACTOR_CERTIFICATE",
    "LIVEFACTOR_KEY",
)
"""Environment variables of the commands that talk to a server."""


class EntryError(ValueError):
    """Settings do not fit together."""


def _option(help: str, **rules: Any) -> Any:
    return typer.Option(help=help, **rules)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """All settings of the command. Their names contain the units."""

    data: Annotated[Path, _option("Folder of the models. Only one server at a time can use it.")] = Path(
        "livefactor-data"
    )
    host: Annotated[
        str, _option("Address to listen on. An address other than loopback needs TLS, or --insecure.")
    ] = "127.0.0.1"
    port: Annotated[int, _option("Port of gRPC. 0 takes a free one.", min=0, max=65_535)] = 50_051
    metrics_port: Annotated[
        int,
        _option(
            "Port of the Prometheus metrics, on the same host. 0 takes a free one, -1 turns them off.",
            min=-1,
            max=65_535,
        ),
    ] = 50_052
    console: Annotated[
        bool, _option("Show the models in a browser (docs/console.md). It needs the extra `console`.")
    ] = False
    console_port: Annotated[
        int, _option("Port of the web console, on the same host. 0 takes a free one.", min=0, max=65_535)
    ] = 50_053
    tls_cert: Annotated[
        Path | None,
        _option(
            "Certificate chain of the server (PEM), for TLS. A changed file is taken up without a restart."
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        _option("Private key of that certificate (PEM). Others must not be able to read the file."),
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        _option("Authorities (PEM) of client certificates. With it, every client must have a certificate."),
    ] = None
    access: Annotated[
        Path | None,
        _option(
            "Access file with the tokens, roles and models of callers. Without it, everybody may do everything."
        ),
    ] = None
    encryption_key_file: Annotated[
        Path | None,
        _option(
            "File with the key that encrypts logs and snapshots: 64 hexadecimal digits. Others must not be"
            " able to read it."
        ),
    ] = None
    encryption_key_command: Annotated[
        str, _option("Command that prints this key, for example one of a key store. It runs at the start.")
    ] = ""
    signing_key_file: Annotated[
        Path | None,
        _option(
            "File with an Ed25519 private key in PEM form, which signs a checkpoint of each snapshot. Others must"
            " not be able to read it."
        ),
    ] = None
    insecure: Annotated[
        bool, _option("Allow an address other than loopback without TLS: all traffic can be read on the way.")
    ] = False
    preset: Annotated[
        str,
        _option(
            "Preset of the model 'default', which is made if the data folder is empty. '' makes no model.",
            callback=known_preset,
        ),
    ] = DEFAULT_PRESET
    spec: Annotated[
        Path | None,
        _option(
            "Spec file (TOML) of the model 'default', which is made if the data folder is empty. The preset"
            " supplies the fields that the file does not set."
        ),
    ] = None
    backend: Annotated[
        Literal["cpu", "cuda", "reference", "auto"],
        _option(
            "Backend: cpu, cuda (a GPU), auto (cuda if there is a GPU, else cpu), or reference (plain"
            " NumPy, slow). All give the same bits."
        ),
    ] = "cpu"
    batch_events_max: Annotated[int, _option("Maximum number of rows in a batch.", min=1, max=65_536)] = (
        65_536
    )
    queue_bytes_max: Annotated[
        int, _option("Maximum bytes of batches that wait for the log, per model.", min=1 << 16)
    ] = 64 << 20
    memory_bytes_max: Annotated[
        int,
        _option(
            "Maximum bytes of memory of a model. At this limit, new users, items, labels and marks are rejected.",
            min=1 << 20,
        ),
    ] = 8 << 30
    producer_rows_per_s: Annotated[
        float,
        _option(
            "Maximum rows a second that a producer may send to a model. Beyond it, streams wait and unary"
            " calls are refused for a while. 0 sets no limit.",
            min=0,
        ),
    ] = 0.0
    producer_new_ids_per_minute: Annotated[
        int,
        _option(
            "Maximum new users and items that a producer may add to a model in a minute. Beyond it, rows"
            " with further new ones are rejected. 0 sets no limit.",
            min=0,
        ),
    ] = 0
    user_rows_per_minute: Annotated[
        int,
        _option(
            "Maximum events a minute of one user of a model. Further ones are rejected. 0 sets no limit.",
            min=0,
        ),
    ] = 0
    streams_max: Annotated[int, _option("Maximum number of open update streams.", min=1, max=4096)] = 256
    update_slots: Annotated[
        int, _option("Maximum number of unary update calls at a time. Further ones wait.", min=1, max=512)
    ] = 64
    score_slots: Annotated[
        int, _option("Maximum number of Score calls at a time. Further ones wait.", min=1, max=512)
    ] = 16
    score_workers: Annotated[
        int,
        _option(
            "Number of processes that answer Score calls beside the one that learns. 0 answers all calls in one"
            " process.",
            min=0,
            max=256,
        ),
    ] = 0
    snapshot_every_events: Annotated[
        int, _option("Take a snapshot after this many events. 0 takes one only on drain.", min=0)
    ] = 20_000_000
    snapshots_kept: Annotated[int, _option("Number of newest snapshots to keep, per model.", min=1)] = 3
    snapshot_chain: Annotated[
        int,
        _option(
            "Number of incremental snapshots between two whole ones. They hold only what changed. 0 takes whole"
            " ones alone.",
            min=0,
            max=1000,
        ),
    ] = 0
    log_keep: Annotated[
        str,
        _option(
            "How much of each log to keep at least, such as 30d, 100GB or 5000000r (revisions). Older segments"
            " go once a verified snapshot stands in for them. '' keeps all.",
            callback=known_policy,
        ),
    ] = ""
    log_archive: Annotated[
        str,
        _option(
            "Folder, or URL of fsspec such as s3://bucket/logs, that these segments are moved to. '' lets"
            " --log-keep delete them.",
            callback=known_archive,
        ),
    ] = ""
    judge_record_share: Annotated[
        float, _option("Share of the records whose events are judged. 0 turns the judge off.", min=0, max=1)
    ] = 0.015625
    judge_events_per_record_max: Annotated[
        int, _option("Maximum number of events that are judged in one record.", min=1, max=65_536)
    ] = 64
    judge_sampled_share: Annotated[
        float,
        _option("Share of the judged events that are ranked among 100 sampled items.", min=0, max=1),
    ] = 0.25
    judge_ranked_share: Annotated[
        float, _option("Maximum share of the judged events that are ranked among all items.", min=0, max=1)
    ] = 0.125
    judge_window_events: Annotated[
        int, _option("Number of judged events that windowed figures cover.", min=1, max=1_000_000)
    ] = 10_000
    judge_half_life_events: Annotated[
        int, _option("Half-life of decayed figures, in judged events.", min=1, max=125_000)
    ] = 2_000
    judge_popularity_half_life_events: Annotated[
        int, _option("Half-life of the decayed most-popular baseline, in learned events.", min=1)
    ] = 20_000
    judge_hold: Annotated[
        bool,
        _option("Stop updates when the loss or the factors diverge, until an operator releases them."),
    ] = False
    quarantine: Annotated[
        float,
        _option(
            "Hold batches whose loss, gradient or share of new ids is this many deviations above the usual,"
            " until an operator decides. 0 holds none.",
            min=0,
        ),
    ] = 0.0
    quarantine_bytes_max: Annotated[
        int, _option("Maximum bytes of held batches, a model. Beyond it, outliers are refused.", min=1 << 20)
    ] = 64 << 20
    served_bytes_max: Annotated[
        int, _option("Maximum bytes of Score answers that are kept under a score id. 0 keeps none.", min=0)
    ] = 64 << 20
    served_s: Annotated[float, _option("Seconds for which such answers are kept.", min=1)] = 3600.0
    auto_cpu_share: Annotated[
        float,
        _option(
            "Maximum share of one core that challengers of models take. 0 turns challengers off.",
            min=0,
            max=1,
        ),
    ] = 0.25
    follow: Annotated[
        str,
        _option(
            "Address of a server to follow: this one takes its models and their logs, answers from them, and"
            " takes no updates. LIVEFACTOR_TOKEN and LIVEFACTOR_CA are those of a client."
        ),
    ] = ""
    ack_after_followers: Annotated[
        int,
        _option(
            "Acknowledge a batch only when this many followers have it on disk. 0 waits for none.",
            min=0,
            max=16,
        ),
    ] = 0
    ack_wait_s: Annotated[
        float,
        _option(
            "Seconds after which a batch that too few followers have gets UNAVAILABLE. Clients then send it again.",
            min=0.1,
        ),
    ] = 10.0
    tensorboard: Annotated[
        Path | None,
        _option("Folder for TensorBoard files with the judge's figures. Without a folder, none are written."),
    ] = None
    drain_s: Annotated[
        float,
        _option(
            "Maximum seconds from SIGTERM to the end. What still runs then, such as a last snapshot, is ended.",
            min=1,
        ),
    ] = 30.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _option("Minimum severity of messages in the server's log. With debug every call has a line."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], _option("Form of the server's log: text, or a line of JSON a message.")
    ] = "text"

    trace_endpoint: Annotated[
        str,
        _option(
            "OTLP endpoint (gRPC) that gets traces, such as http://localhost:4317. Without one, none are made."
        ),
    ] = ""
    trace_sample: Annotated[
        float,
        _option("Share of the calls without a traceparent, and of streamed batches, to trace.", min=0, max=1),
    ] = 0.01

    def entry(self) -> Entry:
        """How calls come in.

        Raises:
            EntryError: an address other than loopback has no TLS, or an option lacks another one.
            CertificateError: the certificate or the key cannot be used.
            AccessFileError: the access file has a fault.
        """
        from livefactor_server.access.entry import Entry
        from livefactor_server.access.grants import Grants

        if self.log_archive and not self.log_keep:
            raise EntryError("--log-archive needs --log-keep")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise EntryError("--tls-cert and --tls-key need each other")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise EntryError("--tls-client-ca needs --tls-cert and --tls-key")
        if self.tls_cert is None and self.host not in LOOPBACK and not self.insecure:
            raise EntryError(
                f"{self.host} is not loopback, so it needs TLS (--tls-cert, --tls-key); --insecure serves it"
                " in plain text"
            )
        certificate = None
        if self.tls_cert is not None and self.tls_key is not None:
            from livefactor_server.access.certificates import CertificateFiles

            certificate = CertificateFiles(self.tls_cert, self.tls_key, self.tls_client_ca)
            certificate.check()
        return Entry(certificate, None if self.access is None else Grants(self.access))

    def set_up_process(self) -> None:
        """Sets what a process has one of: the key of the data at rest, and the collector of traces.

        Raises:
            BadKey: there is no usable key.
            TracingMissing: the extra `otel` is not installed.
        """
        if self.encryption_key_file is not None or self.encryption_key_command:
            from livefactor_server.hosting.keys import read_key
            from livefactor_server.log import sealing

            sealing.use(read_key(self.encryption_key_file, self.encryption_key_command))
        if self.trace_endpoint:
            from livefactor_server.telemetry import traces

            traces.set_up(self.trace_endpoint, self.trace_sample, version("livefactor"))

    def hosting(self) -> HostingSettings:
        """The settings of the models.

        Raises:
            BackendUnavailable: the backend cannot run here, or not with score workers.
            SpecFileError: the spec file is refused.
        """
        from livefactor.access import Access
        from livefactor.channel import parse_target
        from livefactor_kernels.backend import BackendUnavailable, choose_backend
        from livefactor_kernels.spec.presets import preset
        from livefactor_server.engine.engine import EngineSettings
        from livefactor_server.engine.quotas import QuotaSettings
        from livefactor_server.files.specs import read_spec
        from livefactor_server.hosting.following.leader import Leader
        from livefactor_server.hosting.host import HostingSettings
        from livefactor_server.hosting.keeper import KeeperSettings
        from livefactor_server.hosting.retaining.retention import Policy
        from livefactor_server.snapshots.signing import read_signing_key

        name = self.preset or DEFAULT_PRESET
        spec = read_spec(self.spec, name) if self.spec else None
        backend = choose_backend(self.backend, spec or preset(name))
        if self.score_workers and backend != "cpu":
            raise BackendUnavailable(f"--score-workers needs the backend cpu, got {backend}")
        return HostingSettings(
            default_preset=self.preset,
            default_spec=spec,
            engine=EngineSettings(
                self.queue_bytes_max,
                self.memory_bytes_max,
                backend,
                self._observer(),
                QuotaSettings(
                    self.producer_rows_per_s, self.producer_new_ids_per_minute, self.user_rows_per_minute
                ),
                self.ack_after_followers,
                self.ack_wait_s,
            ),
            keeper=KeeperSettings(
                self.snapshot_every_events,
                self.snapshots_kept,
                Policy.of(self.log_keep, self.log_archive) if self.log_keep else None,
                self.snapshot_chain,
                None if self.signing_key_file is None else read_signing_key(self.signing_key_file),
            ),
            auto_cpu_share=self.auto_cpu_share,
            leader=Leader(parse_target(self.follow), Access.from_environment()) if self.follow else None,
        )

    def _observer(self) -> ObserverSettings:
        from livefactor_server.judging.judge import JudgeSettings
        from livefactor_server.judging.observer import ObserverSettings
        from livefactor_server.judging.screening import ScreenSettings

        judge = JudgeSettings(
            self.judge_record_share,
            self.judge_events_per_record_max,
            self.judge_sampled_share,
            self.judge_ranked_share,
            self.judge_window_events,
            self.judge_half_life_events,
            self.judge_popularity_half_life_events,
        )
        screen = ScreenSettings(self.quarantine, self.quarantine_bytes_max) if self.quarantine else None
        return ObserverSettings(judge, self.judge_hold, self.tensorboard, screen)

    def service(self) -> ServiceSettings:
        """The settings of the RPC handlers."""
        from livefactor_server.rpc.calls import ServiceSettings

        return ServiceSettings(
            batch_events_max=self.batch_events_max,
            streams_max=self.streams_max,
            update_slots=self.update_slots,
            score_slots=self.score_slots,
            default_preset=self.preset,
            served_bytes_max=self.served_bytes_max,
            served_s=self.served_s,
        )


def variable_of(setting: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + setting.upper()


def parameters() -> list[inspect.Parameter]:
    """The settings as parameters of a command, each with its flag and its environment variable."""
    hints = get_type_hints(ServerSettings, include_extras=True)
    made = []
    for setting in fields(ServerSettings):
        kind, option = hints[setting.name].__origin__, hints[setting.name].__metadata__[0]
        flag = "--" + setting.name.replace("_", "-")
        option.param_decls = (f"{flag}/--no-{flag[2:]}" if kind is bool else flag,)
        option.envvar = variable_of(setting.name)
        option.show_envvar = False
        option.show_default = setting.default is not None
        made.append(
            inspect.Parameter(
                setting.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=setting.default,
                annotation=Annotated[kind, option],
            )
        )
    return made


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """One line for each variable that has the prefix and is no setting.

    The line names the nearest setting.
    """
    known = [*(variable_of(setting.name) for setting in fields(ServerSettings)), *CLIENT_VARIABLES]
    lines = []
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"there is no setting for the environment variable {name}{hint}")
    return lines
