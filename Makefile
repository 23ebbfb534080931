# Everything is `make`: each target makes .venv first when it is missing.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: study test test-slow check format bench claims clean

study: .venv
	$(BIN)/batchnorm study $(ARGS)

# Each kernel is compiled once; ARGS may name some tests, which compile what they need themselves.
# Files go to workers in the order of tests/conftest.py, and alone are tests that measure time.
test: .venv
	$(if $(ARGS),,$(BIN)/python tests/compile_kernels.py)
	$(BIN)/python -m pytest -m "not slow and not alone" \
		--numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/python -m pytest -m alone $$(grep -rl --include='*.py' mark.alone tests)

test-slow: .venv
	$(BIN)/python -m pytest -m slow $(ARGS)

check: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: .venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv
	$(BIN)/python benchmarks/run.py $(ARGS)

# README's table and docs/claims.md from a run's folder, and one on other seeds: ARGS='runs/full runs/other'.
claims: .venv
	$(BIN)/python benchmarks/claims.py $(ARGS)

# TensorFlow and JAX, for those who want them in the benchmark too.
.venv-peers: benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	touch $@

clean:
	rm -rf .venv .venv-peers build dist .pytest_cache .ruff_cache .hypothesis

# The stamp inside is written last, so an interrupted install is made again.
.venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[study]" --group dev
	touch $@
