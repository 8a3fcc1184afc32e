"""What getting to a good setting costs: kvtune's way against a tuner that starts a server for every setting it tries.

    pip install optuna==5.0.0 && python3 bench/tuner.py bin/kvtune bench/results/h100/loop

The tuner is Optuna's TPE sampler as tuners of vLLM use it: a trial is a server's start and a run of the workload. Its
trials are not run on a GPU: they read a grid of settings that `kvtune simulate` computed from the cost model that is
fitted on the loop's profile. So both are judged on one surface, and only the number of trials is the tuner's; minutes of
a trial are those that the loop measured (time between two verified settings, and the run). What kvtune takes is the
loop's: profiling, then a start and a run to verify the plan, which is asked for on the same surface.

Trials are counted twice: to the first that is as good as the goal, which a tuner cannot know that it has reached, and as
the budget that users give one (auto-tuning-vllm's README: 100).
"""
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings

import optuna

GRID = {
    "max_num_batched_tokens": [512, 1024, 2048, 4096, 8192, 16384],
    "max_num_seqs": [64, 128, 256, 512, 1024],
    "block_size": [16, 32, 64, 128],
    "gpu_memory_utilization": [0.85, 0.9, 0.95],
}
WORKLOADS = {  # flags, objective (metric, statistic, sign: what is better is smaller), limits (metric, statistic, most)
    "conversation": ("--trace traces/AzureLLMInferenceTrace_conv.csv --rate 20 --num-requests 600",
                     ("total_throughput", None, -1), [("itl", "p99", 0.080), ("ttft", "p99", 2)]),
    "code": ("--trace traces/AzureLLMInferenceTrace_code.csv --rate 6 --num-requests 600", ("e2el", "mean", 1),
             [("ttft", "p99", 12)]),
}
STRATEGY = {"conversation": "throughput", "code": "latency"}
START, PROFILE = 115, 311  # seconds: mean of four starts between verified settings, profiling with its start
RUN = {"conversation": 42, "code": 106}  # seconds: mean of three runs; the simulated run, since it was not measured
SEEDS, TRIALS, BUDGET = 100, 200, 100
SERVER = ["--gpu", "H100", "--model", "meta-llama/Llama-3.1-8B"]
LOAD = ["--cost", "cost.json", *SERVER, "--max-model-len", "16384"]


def simulate(kvtune, folder, workload, setting):
    flags, (metric, stat, sign), limits = WORKLOADS[workload]
    if setting["max_num_seqs"] > setting["max_num_batched_tokens"]:
        return None  # vLLM does not start
    with tempfile.TemporaryDirectory() as out:
        words = [w for name, value in setting.items() for w in (f"--{name.replace('_', '-')}", str(value))]
        done = subprocess.run([kvtune, "simulate", *LOAD, *flags.split(), *words, "--format",
                               "json", "--quiet", "--output-dir", out], cwd=folder, capture_output=True, text=True)
        if done.returncode not in (0, 3):
            return None
    values = {(m["name"], m.get("stat")): m.get("value")
              for m in json.loads(done.stdout)["runs"][0]["result"]["metrics"]}
    over = max((values[(m, s)] / most - 1 for m, s, most in limits), default=0)
    return sign * values[(metric, stat)], over


def settings(grid):
    if not grid:
        return [{}]
    name = next(iter(grid))
    return [{name: v, **rest} for rest in settings({k: v for k, v in grid.items() if k != name}) for v in grid[name]]


def key(setting):
    return tuple(setting[name] for name in GRID)


def trials_to(surface, goal, seed):
    """How many trials the sampler takes to a setting that keeps the limits and is as good as the goal."""
    def objective(trial):
        found = surface[tuple(trial.suggest_categorical(name, values) for name, values in GRID.items())]
        if found is None:
            raise optuna.TrialPruned
        value, over = found
        trial.set_user_attr("over", over)
        if over <= 0 and value <= goal:
            trial.study.stop()
        return value

    sampler = optuna.samplers.TPESampler(seed=seed, constraints_func=lambda t: (t.user_attrs.get("over", 1),))
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=TRIALS)
    last = study.trials[-1]
    good = last.value is not None and last.user_attrs["over"] <= 0 and last.value <= goal
    return len(study.trials) if good else None


def plan(kvtune, folder, workload):
    flags, (metric, stat, sign), limits = WORKLOADS[workload]
    slos = [w for m, s, most in limits for w in ("--slo", f"{s} {m.upper()} <= {most * 1000:g}ms")]
    with tempfile.TemporaryDirectory() as out:
        file = os.path.join(out, "plans.json")
        subprocess.run([kvtune, "plan", *LOAD, *flags.split(), "--target-optimization",
                        STRATEGY[workload], *slos, "--quiet", "--output-file", file], cwd=folder, check=True,
                       capture_output=True)
        with open(file) as f:
            args = next(p for p in json.load(f)["plans"] if p["strategy"] == STRATEGY[workload])["args"]
    setting = {name: args[name] for name in GRID}
    return setting, simulate(kvtune, folder, workload, setting)


def compare(kvtune, folder, workload):
    """Prints one workload; returns the minutes of the sampler's median, of the budget, and of verifying the plan."""
    grid = settings(GRID)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        surface = dict(zip(map(key, grid), pool.map(lambda s: simulate(kvtune, folder, workload, s), grid)))
    kept = [v for v in surface.values() if v and v[1] <= 0]
    setting, (value, over) = plan(kvtune, folder, workload)
    best, trial = min(v for v, _ in kept), (START + RUN[workload]) / 60
    print(f"\n{workload}: {len(kept)} of {len(surface)} settings keep the limits; kvtune's plan {setting} is "
          f"{100 * abs(value / best - 1):.2f} % from the best of them{'' if over <= 0 else ', MISSES A LIMIT'}")
    for within in (0.03, 0.01):
        counts = [trials_to(surface, best + within * abs(best), seed) for seed in range(SEEDS)]
        found = [c if c is not None else TRIALS for c in counts]
        middle, most = statistics.median(found), statistics.quantiles(found, n=10)[8]
        print(f"  first trial within {100 * within:.0f} % of the best: median {middle:g}, 9 of 10 within {most:g}, "
              f"{counts.count(None)} not found in {TRIALS}; {middle * trial:.0f} and {most * trial:.0f} minutes")
    return middle * trial, BUDGET * trial, trial


def main():
    warnings.simplefilter("ignore", FutureWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kvtune, loop = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    data = os.environ.get("KVTUNE_DATA", os.path.join(os.path.dirname(__file__), "../../shared/data"))
    print(f"Optuna {optuna.__version__}, TPE, {SEEDS} seeds; trials SIMULATED by the model that is fitted on this loop")
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(os.path.abspath(os.path.join(data, "traces")), os.path.join(folder, "traces"))
        subprocess.run([kvtune, "fit", "--profiling-results", os.path.join(loop, "profile"), *SERVER, "--output-file",
                        "cost.json"], cwd=folder, check=True, capture_output=True)
        minutes = [compare(kvtune, folder, workload) for workload in WORKLOADS]
    found, budget, verify = map(sum, zip(*minutes))
    ours = PROFILE / 60 + verify
    print(f"\nGPU minutes for {' and '.join(WORKLOADS)}: kvtune {ours:.1f} (one profile, a start and a run each); the "
          f"tuner {found:.0f} to the first trial within 1 % in the median ({found / ours:.1f} times), {budget:.0f} with "
          f"{BUDGET} trials each ({budget / ours:.0f} times)")


if __name__ == "__main__":
    main()
