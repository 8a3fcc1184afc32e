"""Reads an HdrHistogram interval log with PyPI's hdrhistogram and prints, as JSON, what it holds: one object per
interval, in order. Arguments: the log, then the percentiles to ask each interval for."""

import json
import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

reader = HistogramLogReader(sys.argv[1], HdrHistogram(1, 3_600_000_000_000, 3))
intervals = []
while (h := reader.get_next_interval_histogram()) is not None:
    intervals.append({
        "tag": h.get_tag(),
        "start_ms": h.get_start_time_stamp(),
        "end_ms": h.get_end_time_stamp(),
        "count": h.get_total_count(),
        "max_ns": h.get_max_value(),
        "mean_ns": h.get_mean_value(),
        "percentiles_ns": [h.get_value_at_percentile(float(p)) for p in sys.argv[2:]],
    })
print(json.dumps({"start_s": reader.get_start_time_sec(), "intervals": intervals}))
