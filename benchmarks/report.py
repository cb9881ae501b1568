"""The figures as tables: on the terminal, in docs/benchmarks.md and, the few that matter, in the README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rich.console import Group
from rich.table import Table

from benchmarks.pages import ROOT, six_digits, write_between

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
"""Every full run has them; null where an opponent is not installed."""

QUOTIENTS = {
    "ratio_kernel_to_plain": ("kernel_events_per_s", "kernel_plain_events_per_s"),
    "ratio_kernel_to_strict": ("kernel_events_per_s", "kernel_strict_events_per_s"),
    "ratio_kernel_to_rows_limit": ("kernel_events_per_s", "limit_rows_events_per_s"),
    "ratio_topk_100_of_1m_to_memory": ("topk_100_of_1m_gb_per_s", "memory_read_1m_gb_per_s"),
    "ratio_log_to_raw_disk": ("disk_8x8k_log_events_per_s", "disk_8x8k_raw_reserved_events_per_s"),
    "ratio_ingest_to_raw_disk": ("ingest_stream_durable_events_per_s", "disk_8x8k_raw_reserved_events_per_s"),
}


FORMATS = {"gb_per_s": "{:.1f} GB/s", "_ms": "{:.2f} ms", "_ns": "{:.1f} ns", "_bytes": "{:,.0f} bytes"}
"""By the end of a name."""


class Row(NamedTuple):
    """A figure in a table. goal: what is to be reached, in words. Units are at the end of the name."""

    name: str
    label: str
    goal: str = ""


KERNELS = [
    Row("kernel_events_per_s", "update kernel, B = 1, exact bits"),
    Row("kernel_plain_events_per_s", "plain Numba loop, fast-math, no prefetch"),
    Row("kernel_strict_events_per_s", "plain Numba loop, strict"),
    Row("ratio_kernel_to_plain", "kernel to the plain fast-math loop", "at least 2"),
    Row("ratio_kernel_to_strict", "kernel to the plain strict loop"),
    Row("kernel_one_record_with_keys_events_per_s", "kernel with key look-ups, one record of all events"),
    Row("kernel_logistic_events_per_s", "logistic loss, 4 negatives"),
    Row("kernel_bpr_events_per_s", "BPR, 4 negatives"),
    Row("kernel_bpr_adagrad_events_per_s", "BPR, 4 negatives, AdaGrad"),
    Row("kernel_micro_batch_1024_events_per_s", "squared loss, B = 1,024"),
    Row("keymap_100000_find_65536_ns", "a key look-up among 100 thousand keys"),
    Row("keymap_10000000_find_65536_ns", "a key look-up among 10 million keys"),
]
INGEST = [
    Row("kernel_with_keys_events_per_s", "in process: kernel with key look-ups, batches of 65,536"),
    Row("kernel_with_keys_8k_events_per_s", "in process: the same, batches of 8,192"),
    Row("ingest_stream_durable_events_per_s", "streamed, durable acks, batches of 65,536"),
    Row("ingest_stream_durable_8k_events_per_s", "streamed, durable acks, batches of 8,192"),
    Row("ingest_stream_unsynced_events_per_s", "streamed, log written but not synced, 65,536"),
    Row("ingest_unary_durable_events_per_s", "unary calls one by one, 65,536"),
    Row("ingest_unary_durable_8k_events_per_s", "unary calls one by one, 8,192"),
    Row("ingest_stream_durable_logistic_events_per_s", "logistic loss, 1 negative, streamed, 65,536"),
    Row(
        "ingest_stream_durable_labels_events_per_s", "logistic loss, labels 0 and 1 as sent, streamed, 65,536"
    ),
    Row("ratio_ingest_to_kernel_with_keys", "streamed to kernel with keys, 65,536", "at least 0.70"),
    Row("ratio_ingest_to_kernel_with_keys_8k", "streamed to kernel with keys, 8,192", "at least 0.50"),
    Row("ratio_ingest_to_unsynced", "durable to not synced"),
]
OPPONENTS = [
    Row("implicit_bpr_events_per_s", "implicit BPR in process, 1 thread, 1 negative"),
    Row("river_mf_events_per_s", "River BiasedMF in process"),
    Row("ratio_ingest_to_implicit_bpr", "streamed logistic, 1 negative, to implicit BPR", "at least 5"),
    Row("ratio_ingest_labels_to_implicit_bpr", "streamed logistic, labels as sent, to implicit BPR"),
    Row("ratio_ingest_to_river_mf", "streamed squared loss to River"),
]
FRESHNESS = [
    Row("freshness_p50_ms", "event sent to a Score that knows it, half load, p50", "under 2"),
    Row("freshness_p99_ms", "the same, p99", "under 8"),
    Row("freshness_quiet_p50_ms", "quiet, p50"),
    Row("freshness_quiet_p99_ms", "quiet, p99"),
    Row("empty_call_p50_ms", "a call that does nothing, half load, p50"),
    Row("empty_call_quiet_p50_ms", "quiet, p50"),
    Row("ratio_freshness_to_two_empty_calls", "freshness to two such calls, half load, p50"),
    Row("ratio_freshness_quiet_to_two_empty_calls", "quiet, p50"),
    Row("freshness_64k_p50_ms", "half load in batches of 65,536, p50"),
    Row("freshness_64k_p99_ms", "the same, p99"),
    Row("ack_p50_ms", "durable, visible ack alone, half load, p50"),
    Row("ack_p99_ms", "the same, p99"),
    Row("ack_quiet_p50_ms", "ack, quiet, p50"),
    Row("ack_quiet_p99_ms", "ack, quiet, p99"),
    Row("ack_unary_p50_ms", "ack of a unary call, half load, p50"),
    Row("ack_unary_p99_ms", "the same, p99"),
    Row("freshness_peak_events_per_s", "peak of the loading producer, batches of 8,192"),
    Row("freshness_load_share_of_peak", "share of it that the load carried"),
]
READS = [
    Row("score_500_p50_ms", "Score, 500 candidates, p50"),
    Row("score_500_p99_ms", "Score, 500 candidates, p99"),
    Row("score_500_loaded_p50_ms", "half load, p50"),
    Row("score_500_loaded_p99_ms", "half load, p99"),
    *(
        Row(f"{who}_100_of_{size}{load}_{quantile}_ms", f"{label}{words}, {quantile}")
        for size, of in (("100k", "100 thousand"), ("1m", "a million"))
        for who, label in (("recommend", f"Score, top 100 of {of}"), ("faiss", f"faiss, top 100 of {of}"))
        for load, words in (("", ""), ("_loaded", ", half load"))
        for quantile in ("p50", "p99")
    ),
    Row("topk_100_of_100k_ratio_to_faiss", "in process: top 100 of 100 thousand, speed to faiss"),
    Row("topk_100_of_1m_ratio_to_faiss", "in process: top 100 of a million, speed to faiss", "at least 1"),
    Row("topk_100_of_1m_64_users_ratio_to_faiss", "in process: the same for 64 users at once"),
]
QUALITY = [
    Row("progressive_rmse_ml1m", "MovieLens-1M, progressive RMSE"),
    Row("progressive_rmse_ratio", "to sequential float64 SGD", "0.999 to 1.001"),
    Row("rmse_ratio_float16_to_float32", "factors stored as float16, to float32", "0.995 to 1.005"),
    Row("rmse_ratio_bfloat16_to_float32", "factors stored as bfloat16, to float32", "0.995 to 1.005"),
    Row("progressive_recall10_retail", "Online Retail, progressive recall@10"),
    Row("progressive_recall10_retail_popular", "decayed most-popular"),
    Row("progressive_recall10_ratio", "to decayed most-popular", "over 1"),
]
LIMITS = [
    Row("kernel_event_bytes", "moved by the kernel for an event"),
    Row("kernel_with_keys_event_bytes", "with key look-ups"),
    Row("limit_rows_events_per_s", "moving the same rows, no arithmetic"),
    Row("ratio_kernel_to_rows_limit", "kernel to that"),
    Row("limit_memory_copy_gb_per_s", "memory, copying, one core"),
    Row("memory_read_1m_gb_per_s", "memory, reading, one core"),
    Row("topk_100_of_1m_gb_per_s", "read by top 100 of a million"),
    Row("ratio_topk_100_of_1m_to_memory", "to reading alone"),
    Row("log_event_bytes", "received and logged for an event"),
    Row("disk_8x8k_raw_reserved_events_per_s", "the same bytes, raw on the disk, groups of 65,536"),
    Row("disk_8x8k_log_events_per_s", "through the log"),
    Row("disk_8k_raw_reserved_p50_ms", "a raw write and sync of 8,192 events, p50"),
    Row("disk_8k_log_p50_ms", "the log's append of 8,192 events, p50"),
    Row("ratio_log_to_raw_disk", "log to raw"),
    Row("ratio_ingest_to_raw_disk", "ingest to raw"),
]
SECTIONS = {
    "Kernels": KERNELS,
    "Ingest through gRPC": INGEST,
    "Beside other libraries": OPPONENTS,
    "Freshness": FRESHNESS,
    "Reads": READS,
    "Quality": QUALITY,
    "Limits": LIMITS,
}
CHOSEN = (
    "kernel_events_per_s",
    "ratio_kernel_to_plain",
    "ingest_stream_durable_events_per_s",
    "ingest_stream_durable_8k_events_per_s",
    "ratio_ingest_to_kernel_with_keys",
    "ratio_ingest_to_kernel_with_keys_8k",
    "ratio_ingest_to_implicit_bpr",
    "freshness_p50_ms",
    "freshness_p99_ms",
    "score_500_p50_ms",
    "score_500_p99_ms",
    "topk_100_of_1m_ratio_to_faiss",
    "progressive_rmse_ratio",
    "progressive_recall10_ratio",
)
"""Of the README."""


def completed(figures: Figures, whole: bool) -> dict[str, Figure]:
    """The figures with their quotients; of a whole run also every name that is missing, as None."""
    names = [row.name for rows in SECTIONS.values() for row in rows] if whole else []
    result: dict[str, Figure] = dict.fromkeys([*REQUIRED, *names] if whole else []) | dict(figures)
    for name, (over, under) in QUOTIENTS.items():
        left, right = figures.get(over), figures.get(under)
        if isinstance(left, float | int) and isinstance(right, float | int):
            result[name] = left / right
    return six_digits(result)


def shown(name: str, value: Figure) -> str:
    """A figure with its unit, which its name ends with."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return value
    if name.endswith("_events_per_s"):
        return f"{value / 1e6:.2f} M/s" if value >= 1e5 else f"{value / 1e3:.1f} k/s"
    ending = next((ending for ending in FORMATS if name.endswith(ending)), None)
    if ending is not None:
        return FORMATS[ending].format(value)
    return f"{value:.4f}" if name.startswith(("progressive", "rmse")) else f"{value:.2f}"


def rows_of(figures: Figures, chosen: tuple[str, ...] = ()) -> Iterator[tuple[str, list[Row]]]:
    """(title, rows) of every section that has figures; with `chosen`, of those alone."""
    for title, rows in SECTIONS.items():
        kept = [row for row in rows if row.name in figures and (not chosen or row.name in chosen)]
        if kept:
            yield title, kept


def tables(figures: Figures) -> Group:
    """For a terminal."""
    parts = []
    for title, rows in rows_of(figures):
        table = Table("figure", "measured", "to reach", title=title, title_justify="left", min_width=80)
        table.columns[1].justify = "right"
        for row in rows:
            table.add_row(row.label, shown(row.name, figures[row.name]), row.goal)
        parts.append(table)
    return Group(*parts)


def machine_line(figures: Figures) -> str:
    """Machine, versions and date in a sentence."""
    text = (
        "{run_date}, {machine_cpu}, {machine_cores} cores, L3 cache {machine_l3_cache}, {machine_memory_gb} "
        "GB of memory, {machine_system}, data on {machine_disk_file_system}; Python {version_python}, NumPy "
        "{version_numpy}, Numba {version_numba}, grpcio {version_grpcio}, faiss {version_faiss_cpu}, "
        "implicit {version_implicit}, River {version_river}; load average before {machine_load_before:.2f}; "
        "{run_seconds:.0f} s in all."
    )
    return text.format_map({name: "missing" if value is None else value for name, value in figures.items()})


def full_page(figures: Figures) -> str:
    """What docs/benchmarks.md shows between its marks."""
    lines = [machine_line(figures)]
    for title, rows in rows_of(figures):
        lines += ["", f"### {title}", "", *_markdown(figures, rows)]
    return "\n".join(lines)


def short_page(figures: Figures) -> str:
    """What the README shows between its marks."""
    rows = [row for _, kept in rows_of(figures, CHOSEN) for row in kept]
    return (
        "\n".join(_markdown(figures, rows))
        + f"\n\n{figures['machine_cpu']}, {figures['machine_cores']} cores; k = 64."
    )


PAGES = {ROOT / "docs" / "benchmarks.md": full_page, ROOT / "README.md": short_page}


def write_pages(figures: Figures) -> None:
    """Put the tables where people read them."""
    for path, page in PAGES.items():
        write_between(path, COMMAND, page(figures))


def _markdown(figures: Figures, rows: list[Row]) -> list[str]:
    cells = [(row.label, f"`{row.name}`", shown(row.name, figures[row.name]), row.goal) for row in rows]
    return [
        "| | in cpu.json | measured | to reach |",
        "|---|---|---:|---|",
        *(f"| {' | '.join(c)} |" for c in cells),
    ]
