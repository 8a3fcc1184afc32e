"""Drives vLLM's own Scheduler class (no server, no model) over random configurations and writes what it decided.

    python vllm_scheduler.py MODEL_DIR 200 | gzip -9n > vllm_scheduler.jsonl.gz

MODEL_DIR holds a config.json of a plain decoder. One line per case: the configuration, the requests, and for every
iteration of the engine's loop the scheduled (request, tokens) pairs, the preempted requests and the free blocks after
the batch was scheduled. TestSchedulerDecidesAsVLLM replays the cases. Recorded with vLLM 0.32.0.
"""

import json
import random
import sys

import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

init_none_hash(sha256)
model = ModelConfig(model=sys.argv[1], skip_tokenizer_init=True, dtype="bfloat16", max_model_len=4096)


def scheduler(c):
    cache = CacheConfig(
        block_size=c["block_size"], gpu_memory_utilization=0.9, enable_prefix_caching=c["prefix_caching"]
    )
    cache.num_gpu_blocks = c["blocks"]
    sched = SchedulerConfig(
        max_num_batched_tokens=c["batched_tokens"],
        max_num_seqs=c["seqs"],
        max_model_len=c["max_model_len"],
        enable_chunked_prefill=c["chunked"],
        long_prefill_token_threshold=c["threshold"],
        policy="priority" if c["priority"] else "fcfs",
        async_scheduling=c["async"],
        watermark=c["watermark"],
        scheduler_reserve_full_isl=c["full_isl"],
        is_encoder_decoder=False,
    )
    model.max_model_len = c["max_model_len"]
    config = VllmConfig(model_config=model, cache_config=cache, scheduler_config=sched)
    # Whatever the platform made of the wishes, the case stands.
    config.scheduler_config.async_scheduling = c["async"]
    config.cache_config.block_size = c["block_size"]
    spec = FullAttentionSpec(block_size=c["block_size"], num_kv_heads=1, head_size=1, dtype=torch.float32)
    return (AsyncScheduler if c["async"] else Scheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(c["blocks"], [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=c["block_size"],
        log_stats=True,
    )


def token(segment, offset):
    return (segment * 1000003 + offset * 7919) % (1 << 30)


def case(rng, n):
    bs = rng.choice([4, 8, 16])
    max_len = rng.choice([64, 128, 200])
    seqs = rng.choice([2, 4, 8, 16])
    chunked = rng.random() < 0.8
    batched = max(seqs, rng.choice([16, 32, 50, 128, 512]))
    if not chunked:
        batched = max(batched, max_len)
    floor = (max_len + bs - 1) // bs + 1
    c = {
        "block_size": bs,
        "max_model_len": max_len,
        "seqs": seqs,
        "batched_tokens": batched,
        "chunked": chunked,
        "blocks": floor + rng.choice([0, 1, 5, floor, 4 * floor]),
        "prefix_caching": rng.random() < 0.8,
        "threshold": rng.choice([0, 0, 0, 7, 20]),
        "priority": rng.random() < 0.3,
        "async": n % 2 == 1,
        "watermark": rng.choice([0.0, 0.0, 0.1]),
        "full_isl": rng.random() < 0.8,
    }
    requests, at = [], 0
    for i in range(rng.randint(5, 25)):
        at += rng.choice([0, 0, 0, 1, 3, 20])
        earlier = [r for r in requests if r["out"] and r["prompt_tokens"] + r["max_tokens"] < max_len - 8]
        if earlier and rng.random() < 0.4:  # the next turn of a conversation
            r = rng.choice(earlier)
            segments = r["prompt"] + [[r["out"], r["max_tokens"]]]
        elif rng.random() < 0.5:  # a shared prefix
            g = rng.randint(1, 3)
            segments = [[g, min(max_len // 2, bs * g + rng.choice([0, 3]))]]
        else:
            segments = []
        have = sum(k for _, k in segments)
        segments = segments + [[1000 + i, rng.randint(1, max(1, (max_len - have) // 2))]]
        prompt = sum(k for _, k in segments)
        requests.append({
            "at": at,
            "prompt": segments,
            "prompt_tokens": prompt,
            "max_tokens": rng.randint(1, min(max_len - prompt, rng.choice([4, 40, max_len]))),
            "out": 2000 + i,
            "priority": rng.randint(-1, 1),
            "abort": at + rng.randint(0, 12) if rng.random() < 0.08 else -1,
        })
    c["requests"] = requests
    return c


def run(c):
    s = scheduler(c)
    hasher = get_request_block_hasher(c["block_size"], sha256)
    steps, queue, produced = [], [], {}
    queries = hits = 0
    for k in range(5000):
        for i, r in enumerate(c["requests"]):
            if r["at"] == k:
                ids = [token(g, o) for g, n in r["prompt"] for o in range(n)]
                s.add_request(Request(
                    request_id=f"{i:04d}", prompt_token_ids=ids, pooling_params=None,
                    sampling_params=SamplingParams(max_tokens=r["max_tokens"], ignore_eos=True, temperature=0),
                    priority=r["priority"], arrival_time=float(i), block_hasher=hasher if c["prefix_caching"] else None,
                ))
                produced[f"{i:04d}"] = 0
            if r["abort"] == k:
                s.finish_requests(f"{i:04d}", RequestStatus.FINISHED_ABORTED)
        out = s.schedule()
        needs = []  # whether each item samples, by vLLM's own rule: it is no chunk
        for rid in out.num_scheduled_tokens:
            needs.append(not s.requests[rid].is_prefill_chunk)
        steps.append([
            [[int(rid), n] for rid, n in out.num_scheduled_tokens.items()],
            sorted(int(x) for x in (out.preempted_req_ids or ())),
            s.kv_cache_manager.block_pool.get_num_free_blocks(),
            len(s.running), len(s.waiting),
        ])
        queue.append((out, needs))
        if len(queue) < (2 if c["async"] else 1) and s.has_unfinished_requests():
            continue
        out, needs = queue.pop(0)
        ids = list(out.num_scheduled_tokens)
        sampled = []
        for rid, samples in zip(ids, needs):
            if samples:
                sampled.append([token(2000 + int(rid), produced[rid])])
                if rid in s.requests:
                    produced[rid] += 1
            else:
                sampled.append([])
        result = s.update_from_output(out, ModelRunnerOutput(
            req_ids=ids, req_id_to_index={r: j for j, r in enumerate(ids)}, sampled_token_ids=sampled,
            logprobs=None, prompt_logprobs_dict={}, pooler_output=[],
        ))
        for o in result.values():
            if o.scheduler_stats is not None:
                queries += o.scheduler_stats.prefix_cache_stats.queries
                hits += o.scheduler_stats.prefix_cache_stats.hits
        if k > c["requests"][-1]["at"] + 15 and not s.has_unfinished_requests() and not any(o.num_scheduled_tokens for o, _ in queue):
            break
    else:
        raise SystemExit("a case does not end")
    c["steps"], c["queries"], c["hits"] = steps, queries, hits
    c["free"] = s.kv_cache_manager.block_pool.get_num_free_blocks()
    return c


rng = random.Random(7)
for n in range(int(sys.argv[2])):
    print(json.dumps(run(case(rng, n)), separators=(",", ":")))
