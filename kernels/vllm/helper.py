"""Runs vLLM's own kernels for kvtune: FlashAttention for decode and prefill, reshape_and_cache_flash for append.

Protocol 1. A request is a line of JSON on stdin, a reply one on stdout; either is followed by the bytes of the arrays
that its "arrays" lists as [name, bytes]. The first request is "open". A reply with "error" leaves the helper running;
with "unsupported" the kernels do not take the case. It ends with stdin, and so with the process that started it.

Data is that of the request. Launches take copies of it in turn, together at least four times the L2 cache, unless
"warm" was asked for. A sample is a CUDA graph of launches between two events.
"""
import json
import math
import os
import sys

PROTOCOL = 1
MOST_SETS, LEAST_SETS, ROOM = 1024, 8, 8 << 30  # copies of the data: at most, if ROOM bytes allow at least
MOST_GRAPHS = 64
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


class Unsupported(Exception):
    pass


class Server:
    def __init__(self, request):
        if request["protocol"] != PROTOCOL:
            raise ValueError(f"protocol {request['protocol']}: this helper speaks {PROTOCOL}")
        import torch
        import vllm
        if not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} finds no GPU")
        from vllm import _custom_ops
        from vllm import vllm_flash_attn
        self.torch, self.ops, self.flash = torch, _custom_ops, vllm_flash_attn
        self.version = 3 if vllm_flash_attn.is_fa_version_supported(3) else 2
        self.warm = request["warm"]
        self.device = torch.device("cuda", 0)
        self.l2 = torch.cuda.get_device_properties(0).L2_cache_size
        self.kernels = {}
        self.hello = {"protocol": PROTOCOL, "vllm": vllm.__version__, "torch": torch.__version__,
                      "device": torch.cuda.get_device_name(0), "attention": f"FlashAttention {self.version}"}

    def load(self, request, arrays):
        try:
            kernel = Kernel(self, request, arrays)
        except Unsupported:
            self.torch.cuda.empty_cache()
            raise
        self.kernels[request["kernel"]] = kernel
        return {"turn": len(kernel.launches)}, {}

    def run(self, request, _):
        kernel = self.kernels[request["kernel"]]
        for i in range(request["launches"]):
            kernel.launches[i % len(kernel.launches)]()
        self.torch.cuda.synchronize()
        return {}, {}

    def output(self, request, _):
        self.torch.cuda.synchronize()
        flat = {name: t.contiguous().view(self.torch.uint8).cpu().numpy().reshape(-1).data
                for name, t in self.kernels[request["kernel"]].outputs.items()}
        return {}, flat

    def series(self, request, _):
        graphs = self.kernels[request["kernel"]].graphs_of(request["launches"])
        return {"seconds": self.time([graphs[i % len(graphs)].replay for i in range(request["samples"])])}, {}

    def empty(self, request, _):
        return {"seconds": self.time([lambda: None] * request["samples"])}, {}

    def time(self, samples):
        event = lambda: self.torch.cuda.Event(enable_timing=True)
        pairs = [(event(), event()) for _ in samples]
        for sample, (begin, end) in zip(samples, pairs):
            begin.record()
            sample()
            end.record()
        self.torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]

    def close(self, request, _):
        self.kernels.pop(request["kernel"], None)
        self.torch.cuda.empty_cache()
        return {}, {}


class Kernel:
    """A case: launches, one for each copy of its data, and what the first of them leaves."""

    def __init__(self, server, request, arrays):
        self.server, self.graphs, self.per = server, [], 0
        self.torch, self.case = server.torch, request["case"]
        if self.case["layout"] not in ("NHD", "HND"):
            raise Unsupported(f"vLLM's {server.hello['attention']} has no layout {self.case['layout']}")
        if self.case["dtype"] not in DTYPES:
            raise Unsupported(f"{self.case['dtype']}: vLLM's {server.hello['attention']} wants queries in it too, which "
                              "is another operation")
        self.arrays, self.dtype = arrays, getattr(self.torch, DTYPES[self.case["dtype"]])
        makers = {"decode": self.attention, "prefill": self.attention, "append": self.append}
        if self.case["op"] not in makers:
            raise Unsupported(f"vLLM's kernels do not include {self.case['op']}")
        count = 1
        if not server.warm:
            count = min(math.ceil(4 * server.l2 / request["bytes"]), MOST_SETS)
            count = max(count, min(ROOM // request["bytes"], LEAST_SETS))
        try:
            self.launches, self.outputs = makers[self.case["op"]](request, count)
            self.launches[-1]()  # a page size that the kernel does not take is said here
            self.torch.cuda.synchronize()
        except self.torch.OutOfMemoryError as error:
            raise Unsupported(f"the GPU's memory does not hold {count} copies of the case that launches take in turn, to "
                              "find none in the L2 cache: fewer blocks, or --warm") from error
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            if "CUDA" in text:
                raise
            raise Unsupported(text) from error
        self.arrays = {}

    def array(self, name, dtype, *shape):
        flat = self.torch.frombuffer(self.arrays[name], dtype=self.torch.uint8).to(self.server.device)
        return flat.view(dtype).view(*shape)

    def cache(self, name):
        """A cache as vLLM's kernels see it: (blocks, slots, heads, head size), whatever its layout in memory."""
        blocks, page, heads, size = (self.case[k] for k in ("blocks", "block_size", "kv_heads", "head_size"))
        if self.case["layout"] == "NHD":
            return self.array(name, self.dtype, blocks, page, heads, size)
        return self.array(name, self.dtype, blocks, heads, page, size).permute(0, 2, 1, 3)

    def attention(self, request, count):
        torch, case, server = self.torch, self.case, self.server
        heads, kv_heads, size = case["heads"], case["kv_heads"], case["head_size"]
        context, new = request["context"], request["new"]
        decode = case["op"] == "decode"
        queries = [1 if decode else n for n in new]
        tokens = [c + n for c, n in zip(context, new)]
        batch, longest, most = len(tokens), max(tokens), max(queries)
        q = self.array("query", self.dtype, sum(queries), heads, size)
        out = torch.full_like(q, math.nan)
        first = torch.tensor([0] + queries, device=server.device).cumsum(0).to(torch.int32)
        lengths = torch.tensor(tokens, device=server.device, dtype=torch.int32)
        table = self.array("table", torch.int32, batch, -1)
        metadata = None
        if decode and server.version == 3:
            metadata = server.flash.get_scheduler_metadata(
                batch, most, longest, heads, kv_heads, size, lengths, qkv_dtype=self.dtype, cu_seqlens_q=first,
                page_size=case["block_size"], causal=True)

        def launch(key, value):
            return lambda: server.flash.flash_attn_varlen_func(
                q, key, value, max_seqlen_q=most, cu_seqlens_q=first, max_seqlen_k=longest, seqused_k=lengths,
                causal=True, block_table=table, out=out, scheduler_metadata=metadata, fa_version=server.version)

        # What lies in unused slots is multiplied by a probability of 0; a server's cache has numbers there, not NaN.
        key, value = (self.cache(name).nan_to_num_(nan=0.0) for name in ("key", "value"))
        copies = [(key, value)] + [(key.clone(), value.clone()) for _ in range(count - 1)]
        return [launch(*c) for c in copies], {"attention": out}

    def append(self, _, count):
        torch, server, size = self.torch, self.server, self.case["head_size"]
        new = [self.array(name, self.dtype, -1, self.case["kv_heads"], size) for name in ("new_key", "new_value")]
        slots = self.array("slots", torch.int64, -1)
        one = torch.ones(1, device=server.device)

        def launch(key, value, key_cache, value_cache):
            return lambda: server.ops.reshape_and_cache_flash(key, value, key_cache, value_cache, slots, "auto", one, one)

        first = (*new, self.cache("key"), self.cache("value"))
        copies = [first] + [tuple(t.clone() for t in first) for _ in range(count - 1)]
        memory = [t if self.case["layout"] == "NHD" else t.permute(0, 2, 1, 3) for t in first[2:]]
        return [launch(*c) for c in copies], dict(zip(("key", "value"), memory))

    def graphs_of(self, per):
        """Graphs of per launches each, which together are back at the first copy if MOST_GRAPHS allow it."""
        if self.per != per:
            self.graphs = []
            turn = len(self.launches)
            for at in range(min(turn // math.gcd(turn, per), MOST_GRAPHS)):
                graph = self.torch.cuda.CUDAGraph()
                with self.torch.cuda.graph(graph):
                    for i in range(at * per, (at + 1) * per):
                        self.launches[i % turn]()
                graph.replay()
                self.graphs.append(graph)
            self.torch.cuda.synchronize()
            self.per = per
        return self.graphs


def main():
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no reply
    server = None
    while line := requests.readline():
        request, arrays, sent = json.loads(line), {}, {}
        for name, size in request.get("arrays") or []:
            arrays[name] = bytearray(size)
            if requests.readinto(arrays[name]) != size:
                return
        try:
            if request["do"] == "open":
                server = Server(request)
                reply = server.hello
            else:
                reply, sent = getattr(server, request["do"])(request, arrays)
        except Unsupported as error:
            reply = {"error": str(error), "unsupported": True}
        except Exception as error:  # whatever it is, the other side is told
            reply = {"error": f"{type(error).__name__}: {error}"}
        reply["arrays"] = [[name, len(data)] for name, data in sent.items()]
        replies.write(json.dumps(reply).encode() + b"\n")
        for data in sent.values():
            replies.write(data)
        replies.flush()


if __name__ == "__main__":
    main()
