# Every target sets up what it needs first; when nothing has changed, that takes no time. `make help` lists them.

# The Python that .venv is made from. constraints.txt is resolved for 3.11.
PYTHON := $(or $(PYTHON),$(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3))
BIN    := .venv/bin
SETUP  := $(PYTHON) deploy/setup_venv.py

SERVE_EXTRAS := service embedded trainer
ALL_EXTRAS   := $(SERVE_EXTRAS) synth video ray tracing dev

# Generates the code for both contracts in proto/ below a folder. A virtual path stands for each proto folder, so that
# the generated imports name our packages.
define protoc
$(BIN)/python -m grpc_tools.protoc -Iservice/rpc/handpose=proto/handpose \
	--python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) service/rpc/handpose/v1/hand_pose.proto && \
$(BIN)/python -m grpc_tools.protoc -Iservice/backends/tensorflow_serving/wire=proto/tensorflow_serving \
	--python_out=$(1) --pyi_out=$(1) service/backends/tensorflow_serving/wire/serving.proto
endef
GENERATED := service/rpc/handpose service/backends/tensorflow_serving/wire

.DEFAULT_GOAL := help
.PHONY: help install serve models test fuzz lint format proto profile constraints clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install:  ## Set up .venv with everything: serving, training, tests and linters
	@$(SETUP) $(ALL_EXTRAS)

serve: models  ## Set up, export the models and serve them on 127.0.0.1:8000 (HANDPOSE_REST_PORT changes it)
	@exec $(BIN)/python -m service

models:  ## Export the trained models into model_repo/, unless they are there
	@$(SETUP) $(SERVE_EXTRAS)
	@$(BIN)/python -m trainer export --if-missing

# TensorFlow and Mesa's renderer each bring an LLVM, and one process does not survive both.
RENDERER_TESTS := tests/trainer/data/synthetic

test: install  ## Run the tests (PYTEST="-k geometry" narrows them)
ifdef PYTEST
	@$(BIN)/python -m pytest $(PYTEST)
else
	@$(BIN)/python -m pytest $(RENDERER_TESTS)
	@$(BIN)/python -m pytest --ignore $(RENDERER_TESTS)
endif

# Not one of the extras of `make install`: nothing else needs it.
fuzz:  ## Fuzz every door of the service (FUZZ="images rpc --minutes 30" chooses; default a minute each)
	@$(SETUP) $(ALL_EXTRAS) fuzz
	@$(BIN)/python -m tests.fuzz $(FUZZ)

lint: install  ## Check style, types and layers, and that the generated code fits proto/
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@echo "comparing the generated code with what proto/ generates"
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call protoc,"$$fresh") && for folder in $(GENERATED); do \
		diff -r -x __init__.py -x __pycache__ "$$fresh/$$folder" $$folder \
		|| { echo "$$folder is out of date: run make proto"; exit 1; }; done

format: install  ## Mend what ruff can mend, and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

proto: install  ## Generate the gRPC and TensorFlow Serving messages from proto/
	@$(call protoc,.)

profile:  ## Print parameters and cost of the models, as in the paper's Table 1
	@$(SETUP) trainer
	@$(BIN)/python -m trainer profile

constraints:  ## Resolve all extras afresh and write constraints.txt
	@$(SETUP)
	@$(BIN)/python deploy/pin_constraints.py $(ALL_EXTRAS)

clean:  ## Remove .venv and the tools' caches; exported models stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find service trainer tests deploy -name __pycache__ -prune -exec rm -rf {} +
