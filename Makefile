# Everything keeps its environment in .venv/; a stamp per set of extras makes repeat runs instant.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEMO_ARGS ?=
# Of make experiment: motion_digits, balance, real_video or collapse; cpu or gpu; further options.
NAME ?= collapse
SIZE ?= cpu
ARGS ?=
# Two processes, each with whole files of tests: fixtures of a file are made once. The files come in the order of
# their names: in that of their numbers of tests, the few long ones would be last, and one process alone with them.
# One thread of OpenMP each: more of them than cores would wait for one another with all their might.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder --durations=20
# Some machines forbid it; then each of the hundreds of processes of the tests compiles torch's modules anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test pytest lint types format bench experiment nightly clean

help:
	@echo "make demo     curate real and drawn video and pretrain a small model on it, on this machine (minutes, CPU is enough)"
	@echo "make test     lint, types and all tests"
	@echo "make lint     ruff check and ruff format --check"
	@echo "make types    mypy over the four packages, bench/ and experiments/"
	@echo "make format   let ruff rewrite what it can"
	@echo "make bench    run the benchmarks of bench/ and redraw docs/speed.png"
	@echo "make experiment NAME=motion_digits SIZE=cpu    an experiment of experiments/, and the page of evidence"
	@echo "make nightly  motion_digits and collapse on the CPU; fails where a claim does not hold"
	@echo "make clean    remove caches and build/ (.venv/ and demo/ stay)"

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "SurgRec needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv; then run make again." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# uv installs in a quarter of pip's time; where it cannot be had, pip does the same work.
$(VENV)/.installed-%: pyproject.toml | $(PY)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv \
		|| echo "uv cannot be installed here; going on with pip." >&2
	@echo "Installing SurgRec with the extras $* into $(VENV)/"
	@if [ -x $(VENV)/bin/uv ]; then $(VENV)/bin/uv pip install --quiet --python $(PY) -e '.[$*]'; \
		else $(PY) -m pip install --quiet --disable-pip-version-check -e '.[$*]'; fi
	@touch $@

DEMO_READY := $(VENV)/.installed-demo
TEST_READY := $(VENV)/.installed-test,demo,bench
BENCH_READY := $(VENV)/.installed-demo,bench

demo: $(DEMO_READY)
	$(PY) -m surgrec.demo --out demo $(DEMO_ARGS)

test: lint types pytest

pytest: $(TEST_READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -v $(PYTEST_ARGS)

lint: $(TEST_READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(TEST_READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# mypy does not read setuptools' package-dir, so it is shown the installed layout as a folder of links.
types: $(TEST_READY)
	@rm -rf build/types && mkdir -p build/types/surgrec
	@cd build/types/surgrec && ln -s ../../../surgrec/* . && ln -s ../../../configs ../../../kernels ../../../loaders .
	cd build/types && ../../$(PY) -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p surgrec
	@if ls bench/*.py >/dev/null 2>&1; then set -x; \
		MYPYPATH=build/types $(PY) -m mypy --config-file pyproject.toml bench; fi
	MYPYPATH=build/types:bench $(PY) -m mypy --config-file pyproject.toml experiments

bench: $(BENCH_READY)
	$(PY) bench/index_speed.py
	$(PY) bench/sampler_speed.py
	$(PY) bench/loader_throughput.py
	$(PY) bench/plot_speed.py

experiment: $(BENCH_READY)
	$(PY) experiments/run.py $(NAME) --size $(SIZE) $(ARGS)
	$(PY) experiments/evidence.py

# Results of a night are no evidence until somebody looks at them: they stay in build/.
nightly: $(BENCH_READY)
	rm -rf build/nightly
	$(PY) experiments/run.py collapse --out build/nightly/collapse --results build/nightly/results
	$(PY) experiments/run.py motion_digits --out build/nightly/motion_digits --results build/nightly/results

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find configs kernels loaders surgrec tests bench experiments -name __pycache__ -type d -prune -exec rm -rf {} +
