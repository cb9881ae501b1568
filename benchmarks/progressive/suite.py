"""Progressive quality of the presets in one pass (test-then-learn).

ratings      RMSE on the half of MovieLens-1M with times, contrasted with sequential SGD in float64,
             and with float16 and bfloat16 factors; the file may not be redistributed
purchases    recall@10 on Online Retail, contrasted with decayed most-popular; also preset `clicks`
micro-batch  the same presets at B = 1, 16, 256, 4096, with records of 4,096 events that are
             predicted before they are learned, so that only the learning differs

The presets were tuned on the first part of each stream (`TUNED_PART`). "Untouched" figures use the
rest.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.progressive.data import RETAIL_SHIPPED, Stream, read_purchases, read_ratings
from benchmarks.progressive.recall import BATCH_EVENTS, model_hits, own_first_hits, popular_hits
from benchmarks.progressive.rmse import float64_errors, model_errors, rmse
from livefactor_kernels.spec.model import FactorDtype
from livefactor_kernels.spec.presets import preset

RATINGS_VARIABLE = "ML1M_RATINGS"
MICRO_BATCHES = (1, 16, 256, 4096)
MICRO_BATCH_RECORD = 4096
NARROW = (FactorDtype.FLOAT16, FactorDtype.BFLOAT16)
TUNED_PART = {"ml1m": 0.5, "retail": 0.6}

_FIGURE_OF_PRESET = {
    "ratings_sgd": "rmse_ml1m",
    "purchases_sgd": "recall10_retail",
    "clicks_sgd": "recall10_retail_clicks",
}
_LABELS = {
    "progressive_rmse_ml1m": "ratings, RMSE, one event per record",
    "progressive_rmse_ml1m_float64": "  plain sequential SGD in float64",
    "progressive_rmse_ratio": "  ratio (goal: 0.999 to 1.001)",
    "progressive_rmse_ratio_clipped": "  ratio to float64 with errors clipped by the spec",
    "progressive_rmse_ml1m_untouched": "  second half alone",
    "progressive_rmse_ml1m_float16": "  factors stored as float16",
    "progressive_rmse_ml1m_bfloat16": "  factors stored as bfloat16",
    "rmse_ratio_float16_to_float32": "  ratio, float16 (goal: 0.995 to 1.005)",
    "rmse_ratio_bfloat16_to_float32": "  ratio, bfloat16 (goal: 0.995 to 1.005)",
    "progressive_recall10_retail": f"purchases, recall@10, {BATCH_EVENTS} events per record",
    "progressive_recall10_retail_popular": "  decayed most-popular",
    "progressive_recall10_ratio": "  ratio (goal: over 1)",
    "progressive_recall10_retail_popular_all_time": "  most-popular of all time",
    "progressive_recall10_retail_own_first": "  own most frequent items first, then decayed most-popular",
    "progressive_recall10_retail_untouched": "  last 40 % alone",
    "progressive_recall10_retail_popular_untouched": "  last 40 % alone, decayed most-popular",
    "progressive_recall10_retail_clicks": f"clicks, recall@10, {BATCH_EVENTS} events per record",
} | {
    f"progressive_{figure}_b{size}": f"{name}, B = {size}, {MICRO_BATCH_RECORD} events per record"
    for name, figure in _FIGURE_OF_PRESET.items()
    for size in MICRO_BATCHES
}


def measure(ratings: Path | None, purchases: Path | None = RETAIL_SHIPPED) -> dict[str, float | None]:
    """Figures by name: RMSE in stars, recall as a share of all events. It takes a minute in one
    thread.

    Args:
        ratings: MovieLens-1M's ratings.csv.gz, or None.
        purchases: Online Retail's events.csv.gz, or None.

    Figures of a missing file are None.
    """
    figures: dict[str, float | None] = dict.fromkeys(_LABELS)
    with threadpool_limits(1):
        if ratings is not None and ratings.exists():
            figures |= ratings_figures(read_ratings(ratings))
        if purchases is not None and purchases.exists():
            figures |= purchases_figures(read_purchases(purchases))
    return figures


def ratings_figures(stream: Stream) -> dict[str, float]:
    """The figures for a stream of ratings."""
    spec = preset("ratings_sgd")
    errors, plain = model_errors(spec, stream), rmse(float64_errors(spec, stream))
    clipped = rmse(float64_errors(spec, stream, spec.limits.error_max))
    figures = {
        "progressive_rmse_ml1m": rmse(errors),
        "progressive_rmse_ml1m_float64": plain,
        "progressive_rmse_ratio": rmse(errors) / plain,
        "progressive_rmse_ratio_clipped": rmse(errors) / clipped,
        "progressive_rmse_ml1m_untouched": rmse(_untouched(errors, "ml1m")),
    }
    for dtype in NARROW:
        name, narrow = (
            dtype.name.lower(),
            rmse(model_errors(preset("ratings_sgd", factor_dtype=dtype), stream)),
        )
        figures[f"progressive_rmse_ml1m_{name}"] = narrow
        figures[f"rmse_ratio_{name}_to_float32"] = narrow / rmse(errors)
    for size in MICRO_BATCHES:
        other = model_errors(preset("ratings_sgd", micro_batch=size), stream, MICRO_BATCH_RECORD)
        figures[f"progressive_rmse_ml1m_b{size}"] = rmse(other)
    return figures


def purchases_figures(stream: Stream) -> dict[str, float]:
    """The figures for a stream of purchases."""
    hits, popular = model_hits(preset("purchases_sgd"), stream), popular_hits(stream)
    figures = {
        "progressive_recall10_retail": hits.mean(),
        "progressive_recall10_retail_popular": popular.mean(),
        "progressive_recall10_ratio": hits.mean() / popular.mean(),
        "progressive_recall10_retail_popular_all_time": popular_hits(stream, np.inf).mean(),
        "progressive_recall10_retail_own_first": own_first_hits(stream).mean(),
        "progressive_recall10_retail_untouched": _untouched(hits, "retail").mean(),
        "progressive_recall10_retail_popular_untouched": _untouched(popular, "retail").mean(),
        "progressive_recall10_retail_clicks": model_hits(preset("clicks_sgd"), stream).mean(),
    }
    for name in ("purchases_sgd", "clicks_sgd"):
        for size in MICRO_BATCHES:
            other = model_hits(preset(name, micro_batch=size), stream, MICRO_BATCH_RECORD)
            figures[f"progressive_{_FIGURE_OF_PRESET[name]}_b{size}"] = other.mean()
    return {name: float(value) for name, value in figures.items()}


def _untouched(events: np.ndarray, name: str) -> np.ndarray:
    return events[int(events.size * TUNED_PART[name]) :]


def table(figures: dict[str, float | None]) -> str:
    """The figures as lines of text."""
    width = max(map(len, _LABELS.values()))
    values = {name: "missing" if value is None else f"{value:.5f}" for name, value in figures.items()}
    return "\n".join(f"{label:{width}}  {values[name]}" for name, label in _LABELS.items())


def ratings_path() -> Path | None:
    """The path of MovieLens-1M's ratings from the environment, or None."""
    path = os.environ.get(RATINGS_VARIABLE)
    return Path(path) if path else None


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "benchmarks.progressive.suite", description=__doc__, formatter_class=style
    )
    parser.add_argument("--ratings", type=Path, help=f"MovieLens-1M's ratings.csv.gz (${RATINGS_VARIABLE})")
    parser.add_argument("--purchases", type=Path, default=RETAIL_SHIPPED, help="default: the shipped file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file, flat; null: no data")
    parser.set_defaults(ratings=ratings_path())
    args = parser.parse_args()
    figures = measure(args.ratings, args.purchases)
    print(table(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
