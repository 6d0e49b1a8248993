# Three commands need nothing but Python >= 3.11, pip and make:
#   make demo   build the embedded data, train on two processes, evaluate, release, recognise
#   make test   lint, types and tests
#   make docs   the site, build/site/index.html, from README.md and docs/
# And for those who change what reads foreign bytes:
#   make test-cluster   two machines on this one, and a real Slurm (root; apt-get install iproute2 slurm-wlm munge), about ten minutes
#   make test-processors   what computes with floats, as on three kinds of processor that this one can stand in for
#   make test-gpu    the same on one GPU: attention, curves of every strategy, the plan's memory, a whole run
#   make strategies   every way of splitting the work gives the same numbers, about five minutes
#   make chaos   a run that is killed a hundred times ends as the undisturbed one, about half an hour
#   make fuzz   damaged shards, media, checkpoints, manifests, releases: 20,000 examples of each test, half an hour
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
SLOWEST := --durations=20 --durations-min=1
# A test that hangs is ended after so many seconds; these may take longer than any of `make test` (tests/patience.py).
LONG := -o faulthandler_timeout=36000
# Whose results depend on the order in which a processor sums and on what it rounds to.
NUMERIC := $(addprefix tests/,model optim predict evaluate hub parallel train capacity tune \
	release/test_export.py release/test_trained_model.py checkpoint/test_stored_weights.py)

.PHONY: demo test docs test-cluster test-processors test-gpu strategies chaos fuzz lint recipes clean

demo: $(VENV)/.installed
	$(BIN)/python tools/demo.py --run-dir $(DEMO)

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(SLOWEST) $(AGAIN)  # else the longest file comes last, alone

test-cluster: $(VENV)/.installed
	$(BIN)/python -m pytest -o addopts=-ra $(AGAIN) tests/cluster

# Without vector instructions; PyTorch's own kernels with AVX2; and every library with AVX2 alone, as on most laptops.
test-processors: $(VENV)/.installed
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n 3 --dist loadfile $(SLOWEST) $(AGAIN) $(NUMERIC)
	ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -n 3 --dist loadfile $(SLOWEST) $(AGAIN) $(NUMERIC)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
		$(BIN)/python -m pytest -n 3 --dist loadfile $(SLOWEST) $(AGAIN) $(NUMERIC)

test-gpu: $(VENV)/.installed
	MMSCALE_TEST_GPU=1 $(BIN)/python -m pytest -rP tests/gpu

strategies: $(VENV)/.installed
	MMSCALE_STRATEGIES=all $(BIN)/python -m pytest $(LONG) -rP tests/parallel/test_same_numbers.py tests/parallel/test_nvme.py

chaos: $(VENV)/.installed
	MMSCALE_CHAOS_KILLS=100 $(BIN)/python -m pytest $(LONG) -rP tests/chaos

fuzz: $(VENV)/.installed
	MMSCALE_FUZZ_EXAMPLES=20000 $(BIN)/python -m pytest $(LONG) tests/data/test_fuzz.py tests/checkpoint/test_checkpoint_fuzz.py

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The marker is written last, so an installation cut short is taken up again.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("mmscale needs Python 3.11 or 3.12, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12") if not (3, 11) <= sys.version_info[:2] <= (3, 12) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf build runs
