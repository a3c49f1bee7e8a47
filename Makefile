# Needs make and Python 3.10 or newer, nothing else. Two environments, so that `run` never waits for PyTorch.
PYTHON ?= $(shell command -v python3 || command -v python3.11)
VENV ?= .venv
TEST_VENV ?= .venv-test
DEMO := edge/demo/hand.mcap

.PHONY: run test quick lint demo bench clean

run: $(VENV)/.installed  ## track the recorded hand and publish it
	$(VENV)/bin/edge-hand run --camera replay --source $(DEMO) --view

test: lint  ## everything that must hold before a commit
	OMP_NUM_THREADS=1 $(TEST_VENV)/bin/python -m pytest -n 2 --dist loadfile --ignore tests/test_train.py
	OMP_NUM_THREADS=1 $(TEST_VENV)/bin/python -m pytest tests/test_train.py  # compares runs bit by bit: by itself

quick: $(TEST_VENV)/.installed  ## the tests that are not slow; a third process, since many of them wait
	OMP_NUM_THREADS=1 $(TEST_VENV)/bin/python -m pytest -n 3 --dist loadfile -m "not slow"

lint: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/ruff format --check .
	mkdir -p .types
	ln -sfn .. .types/edge_hand
	MYPYPATH=.types $(TEST_VENV)/bin/mypy $(addprefix -p edge_hand.,hand edge calibration trainer exporters)

demo: $(VENV)/.installed
	$(VENV)/bin/edge-hand eval --source $(DEMO) --every 225 --out out/demo
	cp out/demo/sheet.png docs/demo.png

bench: $(VENV)/.installed
	$(VENV)/bin/edge-hand bench --camera replay --source $(DEMO) --threads 1 --json out/bench.json

clean:
	rm -rf $(VENV) $(TEST_VENV) .types .mypy_cache .pytest_cache .ruff_cache .hypothesis build out *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: EXTRAS :=
$(TEST_VENV)/.installed: EXTRAS := [train,calibration,dev,realsense]

# The .gitignore keeps git and ruff out of an environment, whatever its name.
%/.installed: pyproject.toml constraints.txt
	test -x $*/bin/python || $(PYTHON) -m venv $*
	echo '*' > $*/.gitignore
	$*/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.$(EXTRAS)'
	touch $@
