# The front door. `make` alone lists the targets; each is a few lines that call the command `clusterkit`
# (.venv/bin/clusterkit --help) or a test tool.
#
# Grammar: make NOUN-VERB [VARIABLE=value ...]
#
# Variables (also from the environment):
#   CLUSTER   inventory below deploy/clusters/, or the path of one                  [local]
#   SERVICE   one service, as make cluster-status lists them (cluster-logs, -restart)   [all]
#   LINES     last lines of each service's log (cluster-logs)                            [20]
#   FOLLOW    1: go on as lines come (cluster-logs)                                        []
#   YES       1: do not ask (cluster-destroy)                                              []
#   JSON      1: print JSON instead of tables (cluster-up, -status, -check, flower)        []
#   TASK      task to submit, such as tasks.compute.fibonacci (submit)                     []
#   ARGS      its arguments: a JSON list, or an object for keywords (submit)             [[]]
#   WAIT      0: do not wait for the result (submit)                                      [1]
#   OPEN      1: open Flower in a browser (flower)                                         []
#   TESTS     what to test: a folder, a file, or anything pytest takes (test)         [tests]
#   PYTHON    interpreter the virtual environment is made with, 3.11 or later       [python3]

CLUSTER ?= local
LINES ?= 20
ARGS ?= []
WAIT ?= 1
TESTS ?= tests
PYTHON ?= python3
export CLUSTER PYTHON YES
# JSON=1 must print JSON alone, also from within another make.
MAKEFLAGS += --no-print-directory

clusterkit := .venv/bin/clusterkit
json := $(if $(filter 1,$(JSON)),--json)

.DEFAULT_GOAL := help
.PHONY: help cluster-up cluster-status cluster-check cluster-logs cluster-restart cluster-down \
        cluster-destroy submit flower test lint format reference requirements

##@ Help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "; print "usage: make TARGET [VARIABLE=value ...]   (variables: head of the Makefile)"} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Cluster
cluster-up: .venv/.ready ## bring the cluster up, or to what its inventory says now; ends when probes came back
	@$(clusterkit) cluster up $(json)

cluster-status: .venv/.ready ## services, worker nodes, queues; exit code 7 when something is wrong
	@$(clusterkit) cluster status $(json)

cluster-check: .venv/.ready ## one probe task through every queue of every worker node
	@$(clusterkit) cluster check $(json)

cluster-logs: .venv/.ready ## the services' last log lines [SERVICE= LINES= FOLLOW=1]
	@$(clusterkit) cluster logs --lines $(LINES) $(if $(SERVICE),--service $(SERVICE)) $(if $(filter 1,$(FOLLOW)),--follow)

cluster-restart: .venv/.ready ## restart services one after the other; running tasks finish first [SERVICE=]
	@$(clusterkit) cluster restart $(SERVICE)

cluster-down: .venv/.ready ## stop the services; messages, results and settings stay
	@$(clusterkit) cluster down

cluster-destroy: .venv/.ready ## stop the services and remove all that was made for the cluster; asks, unless YES=1
	@$(clusterkit) cluster destroy

##@ Work
submit: .venv/.ready ## submit a task and wait for its result [TASK= ARGS= WAIT=0]
	@$(clusterkit) submit $(TASK) $(if $(TASK),'$(ARGS)') $(if $(filter 1,$(WAIT)),--wait)

flower: .venv/.ready ## Flower's address, and where its password is [OPEN=1]
	@$(clusterkit) flower $(json) $(if $(filter 1,$(OPEN)),--open)

##@ Development
test: .venv/.ready-dev ## all tests, from nothing: brings up a cluster of its own [TESTS=]
	@tests/provide
	@.venv/bin/pytest $(TESTS)

lint: .venv/.ready-dev ## ruff, mypy --strict, ansible-lint
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy deploy/clusterkit tasks clients ansible/library ansible/plugins tests
	@cd ansible && ../.venv/bin/ansible-lint -q

format: .venv/.ready-dev ## format the Python code
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix-only --quiet .

reference: .venv/.ready ## write docs/reference/ from the kit's own models
	@.venv/bin/python -m clusterkit.ops.reference

requirements: .venv/.ready-dev ## pin the newest versions that requirements/*.in allow, with hashes
	@cd requirements && for name in bootstrap worker control dev; do \
	  ../.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --no-annotate $$name.in -o $$name.txt; done

# The virtual environment: made by the first target that needs it, and again when a pin changes.
.venv/.ready: requirements/bootstrap.txt requirements/control.txt pyproject.toml deploy/pyproject.toml deploy/bootstrap
	@deploy/bootstrap requirements/control.txt
	@touch $@

.venv/.ready-dev: .venv/.ready requirements/dev.txt
	@deploy/bootstrap requirements/control.txt requirements/dev.txt
	@touch $@
