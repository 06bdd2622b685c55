# `make` alone lists what there is. Nothing here needs root; everything goes into .venv and the checkout.

PYTHON ?= python3
ROS ?= jazzy
VIDEO ?=
CAMERA ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2
PIP_ARGS ?=
FUZZ_SECONDS ?= 60
FUZZ_ARGS ?=

# Another distribution has an environment of its own. The checkout holds the messages of one: the next command for the
# other one builds them again.
VENV := .venv$(if $(filter-out jazzy,$(ROS)),-$(ROS))
ROS_REQUIREMENTS := requirements-ros$(if $(filter-out jazzy,$(ROS)),-$(ROS)).txt
ifeq ($(wildcard $(ROS_REQUIREMENTS)),)
$(error ROS is '$(ROS)', expected jazzy or kilted: there are no wheels of others)
endif
BIN := $(VENV)/bin
STEP := @sh scripts/step.sh

CREATED := $(VENV)/.created
REQUIRED := $(VENV)/.required
REQUIRED_TEST := $(VENV)/.required_test
BUILT := tar_vis_ros/_lib/.built-$(ROS)

# A sourced apt ROS must not mix with the wheels in .venv.
unexport PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH
unexport LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test quick lint fuzz size setup clean distclean
.DEFAULT_GOAL := help

help:  ## list these commands
	@echo 'tar_vis_ros: tracked instance masks from a camera topic'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'
	@echo 'variables: VIDEO=file.mp4  CAMERA=0  PYTHON=python3.11  ROS=kilted  PYTEST_ARGS=  TEST_PROCESSES=2  DEMO_ARGS=  PIP_ARGS=  FUZZ_SECONDS=60'

demo: setup  ## masks on a moving camera's pictures, results in demo/ (VIDEO=file.mp4 or CAMERA=0 for your own)
	@$(BIN)/tar-vis-demo $(if $(VIDEO),--video '$(VIDEO)') $(if $(CAMERA),--camera '$(CAMERA)') $(DEMO_ARGS)

test: setup $(REQUIRED_TEST)  ## run every test, in two processes (PYTEST_ARGS='-k masks' for some)
	@$(BIN)/python -m pytest test -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations=20 $(PYTEST_ARGS)

quick: setup $(REQUIRED_TEST)  ## the tests that take no longer than two minutes together
	@$(BIN)/python -m pytest test -q -m quick $(PYTEST_ARGS)

lint: $(REQUIRED_TEST)  ## ruff over the whole tree
	@$(BIN)/ruff check .

fuzz: setup  ## damaged and hostile input against the live code (FUZZ_SECONDS=60, FUZZ_ARGS='--seed 1')
	@$(BIN)/python test/fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)

size:  ## lines of the product, by room
	@$(PYTHON) scripts/size.py

setup: $(REQUIRED) $(BUILT)  ## only make .venv and build the messages
	@:

clean:  ## remove what was built; the next command builds it again
	rm -rf build install log dist *.egg-info tar_vis_ros/msg tar_vis_ros/_lib tar_vis_ros/*.so tar_vis_core/runtime/kernels/*.so .pytest_cache .ruff_cache
	find tar_vis_core tar_vis_ros test launch -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the environments and demo/ too
	rm -rf .venv .venv-kilted demo

$(CREATED):
	@sh scripts/check_system.sh $(PYTHON)
	$(STEP) 'making $(VENV)' $(PYTHON) -m venv $(VENV)
	@touch $@

$(REQUIRED): $(CREATED) requirements.txt $(ROS_REQUIREMENTS)
	$(STEP) 'installing requirements (some minutes the first time)' \
		$(BIN)/python -m pip install -q $(PIP_ARGS) -r requirements.txt -r $(ROS_REQUIREMENTS)
	@touch $@

$(REQUIRED_TEST): $(REQUIRED) requirements-test.txt
	$(STEP) 'installing test requirements' $(BIN)/python -m pip install -q $(PIP_ARGS) -r requirements-test.txt
	@touch $@

$(BUILT): $(REQUIRED) $(wildcard msg/*.msg tar_vis_core/runtime/kernels/*.cpp tar_vis_core/runtime/kernels/*.h) CMakeLists.txt setup.py pyproject.toml package.xml
	@sh scripts/check_system.sh $(PYTHON)
	$(STEP) 'building messages and kernels (half a minute)' \
		$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	@touch $@
