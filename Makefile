# The front door. `make` alone lists the targets; each is a few lines that call the command `clusterkit`
# (.venv/bin/clusterkit --help) or a test tool.
#
# Grammar: make NOUN-VERB [VARIABLE=value ...]
#
# Variables (also from the environment):
#   CLUSTER   inventory below deploy/clusters/, or the path of one                  [local]
#   BUNDLE    distribution packages for hosts that reach no registry (cluster-up, broker-upgrade) []
#   TIMES     1: also show which step took how long (cluster-up)                           []
#   AUTHORITY 1: a new certificate authority, too (cluster-rotate)                         []
#   HOST      one host, such as h1 (broker-*, cluster-drain, -undrain, lab-ssh; lab-down: only this one) []
#   REASON    why a host is drained (cluster-drain)                                        []
#   TIMEOUT   seconds to wait: for running tasks (cluster-drain: as long as they take; cluster-scale: 300),
#             for the gate before each broker (broker-restart, -upgrade, cluster-restart: 120) []
#   FORCE     1: also when a queue is left without a consumer (cluster-drain)              []
#   SERVICE   one service, as make cluster-status lists them (cluster-logs, -restart)   [all]
#   LINES     last lines of each service's log, or of the record (cluster-logs, -audit)  [20]
#   FOLLOW    1: go on as lines come (cluster-logs)                                        []
#   YES       1: do not ask (cluster-destroy, dlq-drop)                                    []
#   JSON      1: print JSON, wherever a table is printed                                   []
#   FILE      a file (cluster-backup, -restore; queue-dump, -load)                         []
#   ID        dead letters, as make dlq-list names them, or beginnings (dlq-show, -replay, -drop) []
#   TO        a queue to put letters into, not where they came from (dlq-replay)           []
#   QUEUE     a queue (queue-dump; queue-load: another one; dlq-*: letters from it)        []
#   REASON    why letters died: rejected, delivery-limit, expired or full (dlq-*)          []
#   ALL       1: all dead letters (dlq-replay, -drop)                                      []
#   REDACT    1: hide arguments and results (dlq-list, -show)                              []
#   FORCE     1: replace what is there (cluster-restore); replay all the same (dlq-replay); load a file
#             that breaks off (queue-load)                                                   []
#   KEEP      1: the inventory that is there counts, not the backup's (cluster-restore)     []
#   PASSWORD_FILE  a file with a backup's password; else it is asked for (cluster-backup, -restore)
#   TASK      a task, such as tasks.compute.fibonacci (submit, cluster-tune; dlq-*: letters of it) []
#   APP_SOURCE  path, wheel or git URL instead of the inventory's app_source (cluster-release) []
#   CANARY    host that gets a release first (cluster-release, -rollback)         [a worker]
#   SERIAL    hosts at a time that get it afterwards (cluster-release, -rollback)  [a third]
#   ALLOW_MISSING  1: task names may go away (cluster-release, -rollback)                  []
#   RELEASE   release to go back to (cluster-rollback)                      [the one before]
#   NODE      a worker node, as the inventory names it (cluster-scale)                      []
#   N         tasks it runs at once on each of its hosts (cluster-scale); TASKs under way at a time (cluster-tune: 200) []
#   SECONDS   how long to look (cluster-discover: 3, cluster-tune: 30)                      []
#   APPLY     1: write what is proposed into the inventory (cluster-tune)                   []
#   ARGS      its arguments: a JSON list, or an object for keywords (submit; cluster-tune)  [[]]
#   WAIT      0: do not wait for the result (submit)                                      [1]
#   OPEN      1: open Flower in a browser (flower)                                         []
#   TESTS     what to test: a folder, a file, or anything pytest takes (test)         [tests]
#   LAB       name of a lab, and of the cluster on it (lab-*)                           [lab]
#   HOSTS     hosts of the lab; more than there are adds some (lab-up)    [as there are, or 7];
#             numbers of hosts to measure (bench-deploy)                         [1 2 4 8 16]
#   DEBIAN    release, trixie or bookworm (lab-up: as they have, or trixie; bundle)         []
#   COMMAND   what to run there instead of a shell; write $$ for $ (lab-ssh)                []
#   VARIANT   pool of the io workers: gevent, eventlet or threads (compose-up)              []
#   BROKERS   1 or 3 (compose-up)                                                           []
#   VOLUMES   1: remove messages and results, too (compose-down)                            []
#   DRILL     a drill, all, or random; make drill-list has their names (drill)          [all]
#   TASKS     tasks to send in each drill, at least (drill)                           [10000]
#   RATE      tasks a second (drill)                                                    [200]
#   SEED      decides about targets; the same one repeats a run (drill)                    []
#   BULK      1: send as submit_many does, many publishes under way (drill)                []
#   WORK      cpu, io or all (compare)                                                    [all]
#   ONLY      systems, with commas: threading, prefork, ... (compare)         [all of them]
#   REPEATS   rounds, of which the medians are shown (compare: 3); pairs of runs of each two systems (bench: 5) []
#   CONCURRENCY  calls at once, for all systems alike (compare)      [what `auto` is for each]
#             compare: TASK= a function of your own, mymodule:function; ARGS= its arguments for every call, or
#             a list of such lists; N= calls; KEEP=1 leaves its cluster running
#   BENCH     a benchmark: publish, drain, sleep, cpu, latency, profiles, map, cpumap, idle (bench) [all]
#   QUICK     1: the least of everything, to see whether it works (bench)                  []
#   WRITE     1: write the tables and pictures of docs/performance.md (bench),
#             or the tables of docs/howto/deploy-time.md (bench-deploy)                    []
#   PYTHON    interpreter the virtual environment is made with, 3.11 or later       [python3]

CLUSTER ?= local
LINES ?= 20
ARGS ?= []
WAIT ?= 1
TESTS ?= tests
PYTHON ?= python3
LAB ?= lab
export CLUSTER PYTHON YES LAB COMMAND
# JSON=1 must print JSON alone, also from within another make.
MAKEFLAGS += --no-print-directory

clusterkit := .venv/bin/clusterkit
letters = $(if $(TASK),--task $(TASK)) $(if $(QUEUE),--queue $(QUEUE)) $(if $(REASON),--reason $(REASON))
password := $(if $(PASSWORD_FILE),--password-file $(PASSWORD_FILE))
json := $(if $(filter 1,$(JSON)),--json)
rollout = $(if $(CANARY),--canary $(CANARY)) $(if $(SERIAL),--serial $(SERIAL)) $(if $(filter 1,$(ALLOW_MISSING)),--allow-missing)

.DEFAULT_GOAL := help
.PHONY: help cluster-preflight cluster-up cluster-status cluster-check cluster-logs cluster-restart \
        dlq-list dlq-show dlq-replay dlq-drop queue-dump queue-load \
        cluster-release cluster-rollback cluster-releases cluster-scale cluster-discover cluster-tune cluster-rotate cluster-backup cluster-restore cluster-audit cluster-drain cluster-undrain cluster-down cluster-destroy \
        broker-restart broker-upgrade broker-remove broker-replace bundle drill drill-list \
        lab-up lab-status lab-ssh lab-down compose-up compose-status compose-down submit flower compare \
        bench bench-deploy test lint format reference requirements

##@ Help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "; print "usage: make TARGET [VARIABLE=value ...]   (variables: head of the Makefile)"} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Cluster
cluster-preflight: .venv/.ready ## look for all that would keep it from coming up, on every host; changes nothing
	@$(clusterkit) cluster preflight $(json)

cluster-up: .venv/.ready ## bring the cluster up, or to what its inventory says now; ends when probes came back [BUNDLE= TIMES=1]
	@$(clusterkit) cluster up $(json) $(if $(BUNDLE),--bundle $(BUNDLE)) $(if $(filter 1,$(TIMES)),--times)

cluster-status: .venv/.ready ## services, worker nodes, queues; exit code 7 when something is wrong
	@$(clusterkit) cluster status $(json)

cluster-check: .venv/.ready ## one probe task through every queue of every worker node
	@$(clusterkit) cluster check $(json)

cluster-logs: .venv/.ready ## the services' last log lines [SERVICE= LINES= FOLLOW=1]
	@$(clusterkit) cluster logs --lines $(LINES) $(if $(SERVICE),--service $(SERVICE)) $(if $(filter 1,$(FOLLOW)),--follow)

cluster-restart: .venv/.ready ## restart services one after the other; running tasks finish first [SERVICE=]
	@$(clusterkit) cluster restart $(SERVICE) $(json) $(if $(TIMEOUT),--timeout $(TIMEOUT))

cluster-release: .venv/.ready ## roll a new release out, a canary host first; running tasks finish [APP_SOURCE= CANARY= SERIAL=]
	@$(clusterkit) cluster release $(json) $(if $(APP_SOURCE),--source '$(APP_SOURCE)') $(rollout)

cluster-rollback: .venv/.ready ## go back to the release before, or to a certain one [RELEASE= CANARY= SERIAL=]
	@$(clusterkit) cluster rollback $(json) $(RELEASE) $(rollout)

cluster-releases: .venv/.ready ## the releases: when, by whom, how many tasks, where they run
	@$(clusterkit) cluster releases $(json)

cluster-scale: .venv/.ready ## let a worker node run N tasks at once, while it runs and in the inventory [NODE= N= TIMEOUT=]
	@$(clusterkit) cluster scale $(NODE) $(N) $(json) $(if $(TIMEOUT),--timeout $(TIMEOUT))

cluster-discover: .venv/.ready ## what the hosts have, what is used, what the worker nodes leave unused [SECONDS=]
	@$(clusterkit) cluster discover $(json) $(if $(SECONDS),--seconds $(SECONDS))

cluster-tune: .venv/.ready ## measure the tasks, and propose concurrency and prefetch [SECONDS= TASK= ARGS= N= APPLY=1]
	@$(clusterkit) cluster tune $(json) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(TASK),--task $(TASK) --args '$(ARGS)') \
	  $(if $(N),--number $(N)) $(if $(filter 1,$(APPLY)),--apply)

cluster-rotate: .venv/.ready ## new certificates for every host; no connection is cut [AUTHORITY=1]
	@$(clusterkit) cluster rotate $(if $(filter 1,$(AUTHORITY)),--authority)

cluster-backup: .venv/.ready ## inventory, secrets, definitions and schedule in one encrypted file; no messages [FILE= PASSWORD_FILE=]
	@$(clusterkit) cluster backup $(FILE) $(password) $(json)

cluster-restore: .venv/.ready ## a blank cluster from a backup; clients keep their credentials [FILE= FORCE=1 KEEP=1]
	@$(clusterkit) cluster restore $(FILE) $(if $(filter 1,$(FORCE)),--force) $(if $(filter 1,$(KEEP)),--keep-inventory) $(password) $(json)

cluster-audit: .venv/.ready ## who changed the cluster, when and with what command [LINES=]
	@$(clusterkit) cluster audit --lines $(LINES) $(json)

cluster-drain: .venv/.ready ## have a host run no tasks: what runs there ends first [HOST= REASON= TIMEOUT= FORCE=1]
	@$(clusterkit) cluster drain $(HOST) $(json) $(if $(REASON),--reason '$(REASON)') $(if $(TIMEOUT),--timeout $(TIMEOUT)) $(if $(filter 1,$(FORCE)),--force)

cluster-undrain: .venv/.ready ## have it work again, with the release that the cluster runs by now [HOST=]
	@$(clusterkit) cluster undrain $(HOST) $(json)

cluster-down: .venv/.ready ## stop the services; messages, results and settings stay
	@$(clusterkit) cluster down

cluster-destroy: .venv/.ready ## stop the services and remove all that was made for the cluster; asks, unless YES=1
	@$(clusterkit) cluster destroy

##@ Dead letters and queues
dlq-list: .venv/.ready ## dead letters: when, from where, why, which task [TASK= QUEUE= REASON= REDACT=1]
	@$(clusterkit) dlq list $(letters) $(if $(filter 1,$(REDACT)),--redact) $(json)

dlq-show: .venv/.ready ## all of one [ID= REDACT=1]
	@$(clusterkit) dlq show $(ID) $(if $(filter 1,$(REDACT)),--redact) $(json)

dlq-replay: .venv/.ready ## back into their queues, or into another [ID= TASK= QUEUE= REASON= ALL=1 TO= FORCE=1]
	@$(clusterkit) dlq replay $(ID) $(letters) $(if $(filter 1,$(ALL)),--all) $(if $(TO),--to $(TO)) $(if $(filter 1,$(FORCE)),--force) $(json)

dlq-drop: .venv/.ready ## out of the cluster, into a file; asks, unless YES=1 [ID= TASK= QUEUE= REASON= ALL=1]
	@$(clusterkit) dlq drop $(ID) $(letters) $(if $(filter 1,$(ALL)),--all) $(json)

queue-dump: .venv/.ready ## drain a queue into a file [QUEUE= FILE=]
	@$(clusterkit) queue dump $(QUEUE) $(FILE) $(json)

queue-load: .venv/.ready ## put a file's messages back, or into another queue [FILE= QUEUE= FORCE=1]
	@$(clusterkit) queue load $(FILE) $(if $(QUEUE),--queue $(QUEUE)) $(if $(filter 1,$(FORCE)),--force) $(json)

##@ Hosts
broker-restart: .venv/.ready ## restart the brokers one after the other, each when the others can do without it [HOST=]
	@$(clusterkit) broker restart $(json) $(if $(HOST),--host $(HOST)) $(if $(TIMEOUT),--timeout $(TIMEOUT))

broker-upgrade: .venv/.ready ## bring the distribution's newer RabbitMQ to them the same way [BUNDLE=]
	@$(clusterkit) broker upgrade $(json) $(if $(BUNDLE),--bundle $(BUNDLE)) $(if $(TIMEOUT),--timeout $(TIMEOUT))

broker-remove: .venv/.ready ## take a broker host out of the cluster, its queues' members first [HOST=]
	@$(clusterkit) broker remove $(HOST)

broker-replace: .venv/.ready ## forget a broker host that lost its data, so that cluster-up joins it anew [HOST=]
	@$(clusterkit) broker replace $(HOST)

bundle: .venv/.ready ## the distribution's packages in one file, for hosts that reach no registry [DEBIAN=]
	@$(clusterkit) bundle $(if $(DEBIAN),--debian $(DEBIAN)) $(json)

##@ Lab
lab-up: .venv/.ready ## blank hosts on this machine, and the inventory of a cluster on them [HOSTS= DEBIAN= LAB=]
	@$(clusterkit) lab up $(if $(HOSTS),--hosts $(HOSTS)) $(if $(DEBIAN),--debian $(DEBIAN)) $(json)

lab-status: .venv/.ready ## the lab's hosts; exit code 7 when one is not well
	@$(clusterkit) lab status $(json)

lab-ssh: .venv/.ready ## log in to a host, or run a command there [HOST= COMMAND=]
	@$(clusterkit) lab ssh $(HOST)

lab-down: .venv/.ready ## remove the lab: hosts, network, keys, inventory; or one host [HOST=]
	@$(clusterkit) lab down $(if $(HOST),--host $(HOST))

##@ Compose
compose-up: .venv/.ready ## the same cluster as containers on this machine; ends when probes came back [VARIANT= BROKERS=]
	@$(clusterkit) compose up $(json) $(if $(VARIANT),--variant $(VARIANT)) $(if $(BROKERS),--brokers $(BROKERS))

compose-status: .venv/.ready ## its services, worker nodes and queues
	@$(clusterkit) compose status $(json)

compose-down: .venv/.ready ## stop its containers; messages and results stay, unless VOLUMES=1
	@$(clusterkit) compose down $(if $(filter 1,$(VOLUMES)),--volumes)

##@ Work
submit: .venv/.ready ## submit a task and wait for its result [TASK= ARGS= WAIT=0]
	@$(clusterkit) submit $(TASK) $(if $(TASK),'$(ARGS)') $(if $(filter 1,$(WAIT)),--wait)

flower: .venv/.ready ## Flower's address, and where its password is [OPEN=1]
	@$(clusterkit) flower $(json) $(if $(filter 1,$(OPEN)),--open)

compare: CLUSTER = compare
compare: .venv/.ready ## the same work under nine systems, side by side [WORK= ONLY= REPEATS= CONCURRENCY= TASK= ARGS= N=]
	@$(clusterkit) compare $(json) $(if $(TASK),'$(TASK)' --args '$(ARGS)') $(if $(WORK),--work $(WORK)) \
	  $(if $(ONLY),--only '$(ONLY)') $(if $(REPEATS),--repeats $(REPEATS)) $(if $(N),--calls $(N)) \
	  $(if $(CONCURRENCY),--concurrency $(CONCURRENCY)) $(if $(filter 1,$(KEEP)),--keep)

##@ Drills
drill: .venv/.ready ## cause faults under load and count what they cost; needs drills: true [DRILL= TASKS= RATE= SEED= BULK=1]
	@$(clusterkit) drill run $(DRILL) $(if $(TASKS),--tasks $(TASKS)) $(if $(RATE),--rate $(RATE)) $(if $(SEED),--seed $(SEED)) $(if $(filter 1,$(BULK)),--bulk) $(json)

drill-list: .venv/.ready ## every drill: what it does, what should be seen, whether it is possible here
	@$(clusterkit) drill list $(json)

##@ Development
test: .venv/.ready-dev ## all tests, from nothing: brings up a cluster of its own [TESTS=]
	@tests/provide
	@.venv/bin/pytest $(if $(filter tests,$(TESTS)),--numprocesses 2) $(TESTS)

bench: .venv/.ready-dev ## the kit beside its peers, pair by pair, on a cluster of its own [BENCH= REPEATS= QUICK=1 WRITE=1]
	@PYTHONPATH=tests/benchmarks/app .venv/bin/python -m tests.benchmarks $(BENCH) $(json) $(if $(REPEATS),--repeats $(REPEATS)) $(if $(filter 1,$(QUICK)),--quick) $(if $(filter 1,$(WRITE)),--write)

bench-deploy: .venv/.ready-dev ## how long cluster-up takes on labs of 1, 2, 4, 8 and 16 hosts [HOSTS= WRITE=1]
	@.venv/bin/python -m tests.benchmarks.deploy $(HOSTS) $(json) $(if $(filter 1,$(WRITE)),--write)

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
