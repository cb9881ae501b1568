"""The figures as tables: all on the terminal and in docs/benchmarks.md, a few in the README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rich.console import Group
from rich.table import Table

from benchmarks import call_table
from benchmarks.pages import ROOT, six_digits, with_verdict, write_between

COMMAND = "make bench"
Figure = float | str | None
Figures = Mapping[str, Figure]

REQUIRED = (
    "kernel_events_per_s",
    "kernel_plain_events_per_s",
    "kernel_with_keys_events_per_s",
    "ingest_stream_durable_events_per_s",
    "ratio_ingest_to_kernel_with_keys",
    "ratio_ingest_to_kernel_with_keys_8k",
    "ratio_ingest_to_implicit_bpr",
    "freshness_p50_ms",
    "freshness_p99_ms",
    "score_500_p99_ms",
    "topk_100_of_1m_ratio_to_faiss",
)
"""Figures of every full run. A figure is null if its opponent is not installed."""

LATER = "later_"
"""The names of figures that say when single parts were measured begin with it."""

QUOTIENTS = {
    "ratio_kernel_to_plain": ("kernel_events_per_s", "kernel_plain_events_per_s"),
    "ratio_kernel_to_strict": ("kernel_events_per_s", "kernel_strict_events_per_s"),
    "ratio_kernel_to_rows_limit": ("kernel_events_per_s", "limit_rows_events_per_s"),
    "ratio_topk_100_of_1m_to_memory": ("topk_100_of_1m_gb_per_s", "memory_read_1m_gb_per_s"),
    "ratio_log_to_raw_disk": ("disk_8x8k_log_events_per_s", "disk_8x8k_raw_reserved_events_per_s"),
    "ratio_ingest_to_raw_disk": ("ingest_stream_durable_events_per_s", "disk_8x8k_raw_reserved_events_per_s"),
}


FORMATS = {
    "gb_per_s": "{:.1f} GB/s",
    "_wall_s": "{:.1f} s",
    "_cpu_s": "{:.1f} s",
    "_ms": "{:.2f} ms",
    "_mb": "{:,.0f} MB",
    "_mb_per_s": "{:,.0f} MB/s",
    "_share": "{:.4f}",
    "_ns": "{:.1f} ns",
    "_us": "{:,.1f} µs",
    "_bytes": "{:,.0f} bytes",
    "_records": "{:,.0f}",
}
"""Formats by the end of a figure's name."""


class Row(NamedTuple):
    """A figure in a table.

    `goal` is the goal in words, or "" if there is none. The end of the name tells the unit.
    """

    name: str
    label: str
    goal: str = ""


KERNELS = [
    Row("kernel_events_per_s", "update kernel, B = 1, exact bits"),
    Row("kernel_plain_events_per_s", "plain Numba loop, fast-math, no prefetch"),
    Row("kernel_strict_events_per_s", "plain Numba loop, strict arithmetic"),
    Row("ratio_kernel_to_plain", "update kernel ÷ plain fast-math loop", "at least 2"),
    Row("ratio_kernel_to_strict", "update kernel ÷ plain strict loop"),
    Row(
        "kernel_one_record_with_keys_events_per_s",
        "update kernel with key look-ups, one record of all events",
    ),
    Row("kernel_logistic_events_per_s", "logistic loss, 4 negatives"),
    Row("kernel_bpr_events_per_s", "BPR, 4 negatives"),
    Row("kernel_bpr_adagrad_events_per_s", "BPR, 4 negatives, AdaGrad"),
    Row("kernel_micro_batch_1024_events_per_s", "squared loss, B = 1,024"),
    Row("kernel_solve_clicks_512_events_per_s", "`clicks`, records of 512 events"),
    Row("kernel_solve_clicks_64_events_per_s", "`clicks`, records of 64 events"),
    Row("kernel_solve_clicks_1_events_per_s", "`clicks`, records of one event"),
    Row(
        "kernel_solve_embeddings_512_events_per_s", "`clicks`, records of 512 events, items with 384 numbers"
    ),
    Row(
        "kernel_solve_features_512_events_per_s",
        "`clicks`, records of 512 events, users and items with 5 features each",
    ),
    Row("kernel_solve_context_512_events_per_s", "`clicks`, records of 512 events with 5 features each"),
    Row("kernel_solve_auto_512_events_per_s", "`auto`, records of 512 events"),
    Row("kernel_solve_auto_64_events_per_s", "`auto`, records of 64 events"),
    Row("kernel_solve_auto_1_events_per_s", "`auto`, records of one event"),
    Row("keymap_100000_find_65536_ns", "one key look-up among 100 thousand keys"),
    Row("keymap_10000000_find_65536_ns", "one key look-up among 10 million keys"),
]
INGEST = [
    Row("kernel_with_keys_events_per_s", "in process: kernel with key look-ups, batches of 65,536"),
    Row("kernel_with_keys_8k_events_per_s", "in process: kernel with key look-ups, batches of 8,192"),
    Row("ingest_stream_durable_events_per_s", "stream, durable, batches of 65,536"),
    Row("ingest_stream_durable_8k_events_per_s", "stream, durable, batches of 8,192"),
    Row("ingest_stream_unsynced_events_per_s", "stream, log without sync, batches of 65,536"),
    Row("ingest_unary_durable_events_per_s", "unary calls, one at a time, batches of 65,536"),
    Row("ingest_unary_durable_8k_events_per_s", "unary calls, one at a time, batches of 8,192"),
    Row(
        "ingest_stream_durable_logistic_events_per_s", "stream, logistic loss, 1 negative, batches of 65,536"
    ),
    Row(
        "ingest_stream_durable_labels_events_per_s",
        "stream, logistic loss, labels as sent, batches of 65,536",
    ),
    Row(
        "ratio_ingest_to_kernel_with_keys",
        "stream ÷ kernel with key look-ups, batches of 65,536",
        "at least 0.70",
    ),
    Row(
        "ratio_ingest_to_kernel_with_keys_8k",
        "stream ÷ kernel with key look-ups, batches of 8,192",
        "at least 0.50",
    ),
    Row("ratio_ingest_to_unsynced", "durable stream ÷ stream without sync"),
    Row("brokers_nats_events_per_s", "`livefactor ingest`, NATS, 1,000 events a message", "at least 0.1 M"),
    Row("brokers_redis_events_per_s", "`livefactor ingest`, Redis, 1,000 events a message", "at least 0.1 M"),
]
OPPONENTS = [
    Row("implicit_bpr_events_per_s", "implicit BPR, in process, 1 thread, 1 negative"),
    Row("river_mf_events_per_s", "River BiasedMF, in process"),
    Row("ratio_ingest_to_implicit_bpr", "stream, logistic loss, 1 negative ÷ implicit BPR", "at least 5"),
    Row("ratio_ingest_labels_to_implicit_bpr", "stream, logistic loss, labels as sent ÷ implicit BPR"),
    Row("ratio_ingest_to_river_mf", "stream, squared loss ÷ River BiasedMF"),
]
CLIENTS = [
    Row("client_threads_32_per_s", "calls/s of 32 threads with one `Scorer`, 500 candidates"),
    Row("client_loop_32_per_s", "calls/s of 32 tasks of an event loop with one `AsyncScorer`"),
    Row("ratio_client_loop_32_to_threads", "32 tasks ÷ 32 threads, calls/s", "at least 0.90"),
    Row("ratio_client_loop_1000_to_threads", "1,000 tasks ÷ 32 threads, calls/s", "at least 0.90"),
    Row("client_threads_32_cpu_us", "CPU time of the client a call, 32 threads"),
    Row("client_loop_32_cpu_us", "CPU time of the client a call, 32 tasks"),
]
ACCESS = [
    Row("access_token_check_us", "check of a token and its role", "under 20"),
    Row("access_plain_call_cpu_us", "CPU time of client and server a call, 64 candidates, plain text"),
    Row("ratio_access_tls_call_cpu", "the same with TLS ÷ plain text", "at most 1.3"),
    Row("ratio_access_token_call_cpu", "the same with a token ÷ without"),
    Row("ratio_access_tls_ingest_cpu", "CPU time of bulk ingest, TLS ÷ plain text"),
    Row("ratio_access_tls_ingest_rate", "events/s of bulk ingest, TLS ÷ plain text", "at least 0.90"),
]
FRESHNESS = [
    Row("freshness_p50_ms", "freshness, half load, p50", "under 2"),
    Row("freshness_p99_ms", "freshness, half load, p99", "under 8"),
    Row("freshness_quiet_p50_ms", "freshness, no load, p50"),
    Row("freshness_quiet_p99_ms", "freshness, no load, p99"),
    Row("empty_call_p50_ms", "empty call, half load, p50"),
    Row("empty_call_quiet_p50_ms", "empty call, no load, p50"),
    Row("ratio_freshness_to_two_empty_calls", "freshness ÷ two empty calls, half load, p50"),
    Row("ratio_freshness_quiet_to_two_empty_calls", "freshness ÷ two empty calls, no load, p50"),
    Row("freshness_64k_p50_ms", "freshness, half load in batches of 65,536, p50"),
    Row("freshness_64k_p99_ms", "freshness, half load in batches of 65,536, p99"),
    Row("ack_p50_ms", "acknowledgement, half load, p50"),
    Row("ack_p99_ms", "acknowledgement, half load, p99"),
    Row("ack_quiet_p50_ms", "acknowledgement, no load, p50"),
    Row("ack_quiet_p99_ms", "acknowledgement, no load, p99"),
    Row("ack_unary_p50_ms", "acknowledgement of a unary call, half load, p50"),
    Row("ack_unary_p99_ms", "acknowledgement of a unary call, half load, p99"),
    Row("freshness_peak_events_per_s", "peak rate of the loading producer, batches of 8,192"),
    Row("freshness_load_share_of_peak", "rate of the load ÷ peak rate"),
]
READS = [
    Row("score_500_p50_ms", "Score, 500 candidates, p50"),
    Row("score_500_p99_ms", "Score, 500 candidates, p99"),
    Row("score_500_loaded_p50_ms", "Score, 500 candidates, half load, p50"),
    Row("score_500_loaded_p99_ms", "Score, 500 candidates, half load, p99"),
    *(
        Row(f"{who}_100_of_{size}{load}_{quantile}_ms", f"{label}{words}, {quantile}")
        for size, of in (("100k", "100 thousand"), ("1m", "1 million"))
        for who, label in (("recommend", f"Score, top 100 of {of}"), ("faiss", f"faiss, top 100 of {of}"))
        for load, words in (("", ""), ("_loaded", ", half load"))
        for quantile in ("p50", "p99")
    ),
    Row("topk_100_of_100k_ratio_to_faiss", "in process: speed of top 100 of 100 thousand ÷ faiss"),
    Row("topk_100_of_1m_ratio_to_faiss", "in process: speed of top 100 of 1 million ÷ faiss", "at least 1"),
    Row(
        "topk_100_of_1m_64_users_ratio_to_faiss", "in process: top 100 of 1 million, 64 users at once ÷ faiss"
    ),
]
CHALLENGERS = [
    Row("ratio_challengers_200k_cpu", "CPU time up to 200 thousand events, beside ÷ alone", "at most 2"),
    Row("ratio_challengers_1m_cpu", "CPU time up to 1 million events, beside ÷ alone", "at most 2"),
    Row(
        "ratio_challengers_beyond_1m_cpu",
        "CPU time from there to 1.6 million events and the end of the last contest, beside ÷ alone",
        "at most 1.2",
    ),
    Row("ratio_challengers_ack_p99", "acknowledgement p99, beside ÷ alone", "at most 1.1"),
    Row("ratio_challengers_peak", "largest memory, beside ÷ alone", "at most 2.5"),
    Row("ratio_challengers_settled", "memory after the contests, beside ÷ alone", "at most 1.2"),
    *(
        Row(f"challengers_{who}_{name}", f"{label}, {who}")
        for name, label in (
            ("200k_cpu_s", "CPU time up to 200 thousand events"),
            ("1m_cpu_s", "CPU time up to 1 million events"),
            ("beyond_1m_cpu_s", "CPU time from there on"),
            ("ack_p99_ms", "acknowledgement p99"),
            ("peak_mb", "largest memory"),
            ("settled_mb", "memory after the contests"),
        )
        for who in ("alone", "beside")
    ),
    Row("challengers_contests", "complete contests"),
]
QUALITY = [
    Row("progressive_rmse_ml1m", "MovieLens-1M: progressive RMSE"),
    Row("progressive_rmse_ratio", "MovieLens-1M: RMSE ÷ sequential float64 SGD", "0.999 to 1.001"),
    Row("rmse_ratio_float16_to_float32", "MovieLens-1M: RMSE, float16 ÷ float32 factors", "0.995 to 1.005"),
    Row("rmse_ratio_bfloat16_to_float32", "MovieLens-1M: RMSE, bfloat16 ÷ float32 factors", "0.995 to 1.005"),
    Row("progressive_recall10_retail", "Online Retail: progressive recall@10"),
    Row("progressive_recall10_retail_popular", "Online Retail: decayed most-popular"),
    Row("progressive_recall10_ratio", "Online Retail: recall@10 ÷ decayed most-popular", "over 1"),
]
RECOVERY = [
    Row(
        "recovery_clicks_sgd_events_per_s",
        "open and replay, records of one event, `clicks_sgd`",
        "at least 150 k",
    ),
    Row("recovery_clicks_sgd_cpu_events_per_s", "the same by CPU time"),
    Row("recovery_open_events_per_s", "open alone: read and verify"),
    Row("recovery_clicks_events_per_s", "open and replay, records of one event, `clicks`"),
    Row("recovery_clicks_cpu_events_per_s", "the same by CPU time"),
    Row("recovery_auto_events_per_s", "open and replay, records of one event, `auto`"),
    Row("recovery_auto_cpu_events_per_s", "the same by CPU time"),
    Row("recovery_load", "load average of the machine"),
    Row(
        "restart_clicks_wall_s", "`serve` after a kill, 1 million records of one event, `clicks`", "under 10"
    ),
    Row("restart_clicks_cpu_s", "the same by CPU time"),
    Row("restart_clicks_replayed_records", "records that this restart replayed"),
    Row("restart_auto_wall_s", "`serve` after a kill, 300 thousand records of one event, `auto`", "under 10"),
    Row("restart_auto_cpu_s", "the same by CPU time"),
    Row("restart_auto_replayed_records", "records that this restart replayed"),
    Row("first_start_auto_cpu_s", "first `serve`, nothing compiled, CPU time, `auto`"),
    Row("first_start_clicks_cpu_s", "first `serve`, nothing compiled, CPU time, `clicks`"),
    Row("first_start_clicks_sgd_cpu_s", "first `serve`, nothing compiled, CPU time, `clicks_sgd`"),
    Row("first_start_purchases_sgd_cpu_s", "first `serve`, nothing compiled, CPU time, `purchases_sgd`"),
]
SNAPSHOTS = [
    Row("snapshot_mb", "a whole snapshot: its size"),
    Row("snapshot_mb_per_s", "a whole snapshot: bytes a second"),
    Row("snapshot_quiet_ack_max_ms", "longest acknowledgement of 64 events"),
    Row("snapshot_ack_max_ms", "the same while a snapshot is taken"),
    Row("snapshot_10_mb_ack_max_ms", "the same while a snapshot of 10 MB is taken"),
    Row("snapshot_1_gb_ack_max_ms", "the same while a snapshot of 1 GB is taken"),
    Row("snapshot_1_gb_removed_ack_max_ms", "the same while a snapshot of 1 GB is removed"),
    Row("increment_share", "an incremental one after 1 % of the users: share of the bytes", "under 0.02"),
    Row("increment_mb_per_s", "an incremental one: bytes of the state a second"),
    Row("forget_s_per_million_events", "forgetting a user: seconds a million events"),
]
FOLLOWERS = [
    Row("follower_lag_p50_ms", "an acknowledged event in an answer of a follower, no load, p50"),
    Row("follower_lag_p99_ms", "the same, p99"),
    Row("follower_call_p50_ms", "the same call that waits for nothing, p50"),
    Row("follower_call_p99_ms", "the same, p99"),
    Row("follower_lag_loaded_p50_ms", "an acknowledged event in an answer, half of the peak load, p50"),
    Row("follower_lag_loaded_p99_ms", "the same, p99"),
    Row("follower_call_loaded_p50_ms", "the same call that waits for nothing, p50"),
    Row("follower_call_loaded_p99_ms", "the same, p99"),
    Row("follower_peak_events_per_s", "peak rate of the leader with a follower on this machine"),
    Row("follower_load_share_of_peak", "the load: share of the peak rate"),
]
LIMITS = [
    Row("kernel_event_bytes", "bytes that the kernel moves for an event"),
    Row("kernel_with_keys_event_bytes", "bytes that the kernel with key look-ups moves for an event"),
    Row("limit_rows_events_per_s", "moving the same rows without arithmetic"),
    Row("ratio_kernel_to_rows_limit", "update kernel ÷ moving the same rows"),
    Row("limit_memory_copy_gb_per_s", "copying memory, one core"),
    Row("memory_read_1m_gb_per_s", "reading memory, one core"),
    Row("topk_100_of_1m_gb_per_s", "bytes that top 100 of 1 million reads in a second"),
    Row("ratio_topk_100_of_1m_to_memory", "top 100 of 1 million ÷ reading memory"),
    Row("log_event_bytes", "bytes that are received and logged for an event"),
    Row("disk_8x8k_raw_reserved_events_per_s", "raw disk: the same bytes, groups of 65,536 events"),
    Row("disk_8x8k_log_events_per_s", "the log: the same bytes, groups of 65,536 events"),
    Row("disk_8k_raw_reserved_p50_ms", "raw disk: write and sync of 8,192 events, p50"),
    Row("disk_8k_log_p50_ms", "the log: append of 8,192 events, p50"),
    Row("call_raw_sync_p50_ms", "raw disk: write and sync of 4,096 bytes, p50"),
    Row("ratio_log_to_raw_disk", "log ÷ raw disk"),
    Row("ratio_ingest_to_raw_disk", "stream ÷ raw disk"),
]
SECTIONS = {
    "Kernels": KERNELS,
    "Ingest through gRPC": INGEST,
    "Beside other libraries": OPPONENTS,
    "Freshness": FRESHNESS,
    "Reads": READS,
    "Clients": CLIENTS,
    "Access": ACCESS,
    "Restart": RECOVERY,
    "Snapshots": SNAPSHOTS,
    "Followers": FOLLOWERS,
    "Challengers": CHALLENGERS,
    "Quality": QUALITY,
    "Limits": LIMITS,
}
CHOSEN = (
    "ingest_stream_durable_events_per_s",
    "ingest_stream_durable_8k_events_per_s",
    "ratio_kernel_to_plain",
    "ratio_ingest_to_implicit_bpr",
    "ratio_ingest_to_river_mf",
    "freshness_quiet_p50_ms",
    "freshness_p50_ms",
    "freshness_p99_ms",
    "score_500_p50_ms",
    "score_500_p99_ms",
    "recommend_100_of_100k_p50_ms",
    "topk_100_of_1m_ratio_to_faiss",
)
"""The figures that the README shows."""


def completed(figures: Figures, whole: bool) -> dict[str, Figure]:
    """The figures with their quotients. After a whole run, missing figures are None."""
    names = [row.name for rows in SECTIONS.values() for row in rows] if whole else []
    result: dict[str, Figure] = dict.fromkeys([*REQUIRED, *names] if whole else []) | dict(figures)
    for name, (over, under) in QUOTIENTS.items():
        left, right = figures.get(over), figures.get(under)
        if isinstance(left, float | int) and isinstance(right, float | int):
            result[name] = left / right
    return six_digits(result)


def shown(name: str, value: Figure) -> str:
    """A figure as text, with the unit that the end of its name tells."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return value
    if name.endswith("_events_per_s"):
        return f"{value / 1e6:.2f} M events/s" if value >= 1e5 else f"{value / 1e3:.1f} k events/s"
    ending = next((ending for ending in FORMATS if name.endswith(ending)), None)
    if ending is not None:
        return FORMATS[ending].format(value)
    return f"{value:.4f}" if name.startswith(("progressive", "rmse")) else f"{value:.2f}"


def rows_of(figures: Figures, chosen: tuple[str, ...] = ()) -> Iterator[tuple[str, list[Row]]]:
    """(title, rows) of every section that has figures, or that has figures of `chosen`."""
    for title, rows in SECTIONS.items():
        kept = [row for row in rows if row.name in figures and (not chosen or row.name in chosen)]
        if kept:
            yield title, kept


def tables(figures: Figures) -> Group:
    """All figures as tables for a terminal."""
    parts = []
    for title, rows in rows_of(figures):
        table = Table("figure", "measured", "goal", title=title, title_justify="left", min_width=80)
        table.columns[1].justify = "right"
        for row in rows:
            value = figures[row.name]
            table.add_row(row.label, shown(row.name, value), with_verdict(row.goal, value))
        parts.append(table)
    if (calls := call_table.table(figures)) is not None:
        parts.append(calls)
    return Group(*parts)


def machine_line(figures: Figures) -> str:
    """The machine, the versions and the date."""
    text = (
        "Measured {run_date} on {machine_cpu} with {machine_cores} cores, {machine_l3_cache} of L3 cache and "
        "{machine_memory_gb} GB of memory; {machine_system}, data on {machine_disk_file_system}. Versions: Python "
        "{version_python}, NumPy {version_numpy}, Numba {version_numba}, grpcio {version_grpcio}, faiss "
        "{version_faiss_cpu}, implicit {version_implicit}, River {version_river}. The load average before the run "
        "was {machine_load_before:.2f}. The run took {run_seconds:.0f} s."
    )
    known = {name: "missing" if value is None else value for name, value in figures.items()}
    later = [
        f"{name.removeprefix(LATER)}: {value}." for name, value in figures.items() if name.startswith(LATER)
    ]
    return " ".join([text.format_map(known), *(["Measured later:", *later] if later else [])])


def full_page(figures: Figures) -> str:
    """The tables of docs/benchmarks.md."""
    lines = [machine_line(figures)]
    for title, rows in rows_of(figures):
        lines += ["", f"### {title}", "", "| figure | in cpu.json | measured | goal |", "|---|---|---:|---|"]
        for row in rows:
            value = figures[row.name]
            goal = with_verdict(row.goal, value)
            lines.append(f"| {row.label} | `{row.name}` | {shown(row.name, value)} | {goal} |")
    lines += call_table.page(figures)
    return "\n".join(lines)


def short_page(figures: Figures) -> str:
    """The table of the README."""
    lines = ["| figure | measured |", "|---|---:|"]
    for _, rows in rows_of(figures, CHOSEN):
        lines += [f"| {row.label} | {shown(row.name, figures[row.name])} |" for row in rows]
    machine = f"{figures['machine_cpu']}, {figures['machine_cores']} cores"
    return "\n".join([*lines, "", f"Measured {figures['run_date']} on {machine}, with k = 64 factors."])


PAGES = {ROOT / "docs" / "benchmarks.md": full_page, ROOT / "README.md": short_page}


def write_pages(figures: Figures) -> None:
    """Write the tables into docs/benchmarks.md and the README."""
    for path, page in PAGES.items():
        write_between(path, COMMAND, page(figures))
