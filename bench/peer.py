"""Time vLLM's own kernels on the cases of a kernel benchmark, for bench/record.sh: FlashAttention 3 for decode and
prefill, reshape_and_cache_flash for append.

usage: peer.py BENCH.json OUT.json

Of the benchmark's cases those are taken that the peers have: NHD, bf16, head size 128, equal lengths, a permuted table.
Data is random and cold: the launches of one CUDA graph go through KV sets that are together at least four times the L2
cache. A time is the median of graph replays between two events, divided by the launches.
"""
import json
import math
import statistics
import sys

import torch
import vllm
from vllm import _custom_ops
from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

REPLAYS = 20
DEVICE = torch.device("cuda")
L2 = torch.cuda.get_device_properties(0).L2_cache_size


def integers(axes):
    return [int(axes.get(name, 0)) for name in ("batch", "context", "new", "block_size", "heads", "kv_heads")]


def taken(case):
    axes = case["axes"]
    return (axes["op"] in ("decode", "prefill", "append") and axes["layout"] == "NHD" and axes["dtype"] == "bf16"
            and axes["head_size"] == "128" and axes["table"] == "permuted" and axes.get("lengths") != "ragged")


def numbers(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def attention(axes, sets):
    """One launch for every set of keys and values."""
    batch, context, new, page, heads, kv_heads = integers(axes)
    queries, tokens = (1, context) if axes["op"] == "decode" else (new, context + new)
    pages = math.ceil(tokens / page)
    q = numbers(batch * queries, heads, 128)
    out = torch.empty_like(q)
    first = torch.arange(0, batch + 1, device=DEVICE, dtype=torch.int32) * queries
    lengths = torch.full((batch,), tokens, device=DEVICE, dtype=torch.int32)
    metadata = None
    if axes["op"] == "decode":
        metadata = get_scheduler_metadata(batch, queries, tokens, heads, kv_heads, 128, lengths, cu_seqlens_q=first,
                                          page_size=page, causal=True)

    def launch(key, value, table):
        return lambda: flash_attn_varlen_func(
            q, key, value, max_seqlen_q=queries, cu_seqlens_q=first, max_seqlen_k=tokens, seqused_k=lengths, causal=True,
            block_table=table, out=out, scheduler_metadata=metadata, fa_version=3)

    return [launch(numbers(batch * pages, page, kv_heads, 128), numbers(batch * pages, page, kv_heads, 128),
                   torch.randperm(batch * pages, device=DEVICE).to(torch.int32).view(batch, pages)) for _ in range(sets)]


def write(axes, sets):
    batch, context, new, page, _, kv_heads = integers(axes)
    assert context == 0
    pages = math.ceil(new / page)
    one = torch.ones(1, device=DEVICE)

    def launch(key, value, key_cache, value_cache, slots):
        return lambda: _custom_ops.reshape_and_cache_flash(key, value, key_cache, value_cache, slots, "auto", one, one)

    shapes = [(batch * new, kv_heads, 128)] * 2 + [(batch * pages, page, kv_heads, 128)] * 2
    return [launch(*(numbers(*s) for s in shapes),
                   torch.randperm(batch * pages * page, device=DEVICE)[:batch * new].to(torch.int64)) for _ in range(sets)]


def seconds(launches):
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    per = max(len(launches), 10) // len(launches) * len(launches)
    with torch.cuda.graph(graph):
        for i in range(per):
            launches[i % len(launches)]()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / per)
    return statistics.median(times)


def main():
    bench = json.load(open(sys.argv[1]))
    cases = {}
    for case in filter(taken, bench["cases"]):
        sets = min(math.ceil(4 * L2 / case["bytes"]), 1024)
        make = write if case["axes"]["op"] == "append" else attention
        try:
            cases[case["case"]] = seconds(make(case["axes"], sets))
        except RuntimeError as error:  # a page size that the peer does not take
            print(case["case"], "skipped:", str(error).splitlines()[0], file=sys.stderr)
        torch.cuda.empty_cache()
    json.dump({"peer": f"vLLM {vllm.__version__}: FlashAttention 3, reshape_and_cache_flash",
               "torch": torch.__version__, "device": torch.cuda.get_device_name(0), "median_s": cases},
              open(sys.argv[2], "w"), indent=1)


if __name__ == "__main__":
    main()
