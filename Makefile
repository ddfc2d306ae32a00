# `make demo` and `make test` require only Python 3.11 or newer. The first target that runs creates .venv.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready

.PHONY: demo test test-all clients docs fuzz bento-test bento image audit check format bench clean

demo: $(SETUP)
	$(BIN)/repstitch demo --out demo

# One worker per core. Each worker computes with one thread (tests/conftest.py), so that they do not compete for cores.
PYTEST := $(BIN)/pytest -q -n auto --dist worksteal

test: $(SETUP)
	$(PYTEST)

# The tests of `make test`, then those that take longer.
test-all: test
	$(PYTEST) -m "slow and not gpu and not network and not clients"

# Drives real clients against a running service, and tools that check services. Needs PyPI, and for some of the tests
# Node.js, Java, and promtool of Debian's package prometheus; those are skipped without them.
clients: $(SETUP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[clients]'
	if command -v npm > /dev/null; then npm install --silent --prefix build/clients openai@6; fi
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -q -n 0 -m clients tests/clients

# Writes the reference pages and builds the site in build/site, without the network.
docs: $(SETUP)
	$(BIN)/python docs/build.py

fuzz: $(SETUP)
	$(BIN)/python benchmarks/fuzz.py --cases 20000

bento: $(SETUP)
	BENTOML_DO_NOT_TRACK=True $(BIN)/bentoml build .

# Requires Docker. Builds the image of the bento, then a layer with the health check.
image: bento
	BENTOML_DO_NOT_TRACK=True $(BIN)/bentoml containerize repstitch:latest --backend docker -t repstitch-bento:latest
	docker build --build-arg BENTO=repstitch-bento:latest -t repstitch:latest - < service/deploy/Dockerfile

bento-test: $(SETUP)
	$(BIN)/pytest -q -m slow tests/service

# Checks every pinned version against a database of known vulnerabilities; reports if no database can be reached.
audit: $(SETUP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt pip-audit
	$(BIN)/python .ci/audit

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(SETUP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(SETUP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/fit.py
	$(BIN)/python benchmarks/align.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/confidence.py --method auto
	$(BIN)/python benchmarks/repeats.py
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/migrate.py
	$(BIN)/python benchmarks/mixed.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/served.py
	$(BIN)/python benchmarks/transfer.py

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "repstitch needs Python 3.11 or newer; run: make PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the pinned dependencies into .venv (about 6 GB, some minutes, once)."
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(SETUP)

clean:
	rm -rf .venv demo build dist .pytest_cache .ruff_cache
