# make book   everything from nothing: environment, executed notebooks, rendered book
# make test   all that CI runs
# make help   the other targets

PYTHON  ?= python3
PROFILE ?= book
JOBS    ?= 2
UV      := uv==0.13.9
BIN     := .venv/bin
STAMP   := .venv/.made
PAGES   := _build/html/index.html
SITE    := _build/site

.DEFAULT_GOAL := help
.PHONY: help env book execute test lint unit smoke again site look pages torch peers train bench mutants serve lab lock pairs clean FORCE
.DELETE_ON_ERROR:

help:
	@echo "make book [PROFILE=smoke|book|paper] [JOBS=2]   execute what changed and build the book"
	@echo "make test     lint, unit tests, notebooks twice and as a book (smoke), its pages in a browser"
	@echo "make torch    PyTorch joins .venv (nothing that is locked changes), and the tests that need it run"
	@echo "make peers    DoWhy in an environment of its own (build/peers), and the test that compares with it runs"
	@echo "make pages    the book as readers get it, its pages in a browser"
	@echo "make train [NAMES='fives ...']                  train the shipped networks again (an hour each)"
	@echo "make bench [NAMES='posterior ...']              benchmarks, as tables"
	@echo "make mutants [NAMES='flow ...'] [SAMPLE=8]      errors planted one at a time: which tests catch them (an hour; one minute)"
	@echo "make env      .venv from the locked requirements (PYTHON=python3.12 to choose one, 3.11 or later;"
	@echo "              EXTRAS=cuda for a GPU of NVIDIA's, EXTRAS=torch for models in PyTorch: they join what is locked)"
	@echo "make serve    look at the book on localhost ([PORT=8000]: that one or none)"
	@echo "make lab      open the chapters in JupyterLab, to run and change them"
	@echo "make pairs    bring notebooks/*.md and *.ipynb in step ([NAMES=01] [TAKE=md|ipynb] where both were edited)"
	@echo "make lock     resolve requirements.txt again from pyproject.toml"
	@echo "make clean    remove what was built (not .venv)"

# ------------------------------------------------------------------------------------------------- environment

env: $(STAMP)

# A .venv is of use when it was made to the end, in this folder (its scripts name it), by a Python that is still there;
# any other is made anew. FORCE asks again where the folder was moved.
# uv installs in seconds what takes pip minutes; where it cannot reach a package index that pip can, pip does it.
# EXTRAS join it at the versions of the lock where that names one, and stay until .venv is made anew.
USABLE := test "$$(cat $(STAMP) 2>/dev/null)" = "$(CURDIR)" && $(BIN)/python -m pip --version >/dev/null 2>&1
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif
ifneq ($(EXTRAS),)
$(STAMP): FORCE
endif
COMMA := ,
SPACE := $(subst ,, )
JOINED := -c requirements.txt -e ".[$(subst $(SPACE),$(COMMA),$(strip $(EXTRAS)))]"
FORCE:

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed, $(PYTHON) is older: make env PYTHON=python3.12" >&2; exit 1; }
	@{ $(USABLE); } || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check $(UV) && \
	  $(BIN)/uv pip install -q --python $(BIN)/python -r requirements.txt && \
	  $(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e . || \
	{ $(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e . ; }
	$(if $(EXTRAS),$(BIN)/uv pip install -q --python $(BIN)/python $(JOINED) || \
	  $(BIN)/python -m pip install -q --disable-pip-version-check $(JOINED))
	@printf '%s' "$(CURDIR)" > $@

lock:
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install -q $(UV)
	$(BIN)/uv pip compile -q --universal --fork-strategy fewest --python-version 3.11 --extra test \
	  --no-emit-index-url --no-annotate pyproject.toml -o requirements.txt

# -------------------------------------------------------------------------------------------------------- book

execute: $(STAMP)
	$(BIN)/python book/execute.py --profile $(PROFILE) --jobs $(JOBS)

# Built clean each time: Sphinx would keep stale style sheets, numbers glued from other pages, and pages that are no more.
book: execute
	rm -rf _build/html _build/.doctrees _build/jupyter_execute
	$(BIN)/jupyter-book build . -W --keep-going -n -q
	@echo "The book is built. Open $(CURDIR)/$(PAGES)"

serve:
	@$(PYTHON) book/serve.py $(PORT)

lab: $(STAMP)
	$(BIN)/python book/lab.py

pairs: $(STAMP)
	$(BIN)/python book/pairs.py $(NAMES) $(if $(TAKE),--take $(TAKE))

# ------------------------------------------------------------------------------------------------------- tests

# One after the other, the quick ones first; two that need smoke side by side: Sphinx takes one core.
# Errors to plant and chapters to run a second time are samples here: `make mutants` and `make again` take all.
test:
	$(MAKE) lint
	$(MAKE) unit
	$(MAKE) mutants SAMPLE=8
	$(MAKE) -j 2 again site SAMPLE=6
	$(MAKE) look

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/oxlint --deny-warnings

unit: $(STAMP)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --durations 15 --ignore tests/notebooks/test_pages.py

# Every chapter from nothing in the smoke profile,
smoke: $(STAMP)
	$(BIN)/python book/execute.py --profile smoke --jobs $(JOBS) --out _build/smoke

# a second time by nbval, which compares (SAMPLE=6: so many, drawn by lot),
again: smoke
	$(BIN)/python -m tests.notebooks.again _build/smoke --jobs $(JOBS) $(if $(SAMPLE),--sample $(SAMPLE))

# as a book, in a tree of its own: the one that somebody reads stays as it is;
site: smoke
	rm -rf $(SITE)
	mkdir -p $(SITE)/book
	cp -R _config.yml _toc.yml notebooks tests $(SITE)
	find book -mindepth 1 -maxdepth 1 ! -name executed ! -name __pycache__ -exec cp -R {} $(SITE)/book ';'
	cp -R _build/smoke $(SITE)/book/executed
	cd $(SITE) && "$(CURDIR)/$(BIN)/jupyter-book" build . -W --keep-going -n -q

# and that book in browsers.
look:
	CDELTA_SITE=$(SITE)/_build/html $(BIN)/python -m pytest -q tests/notebooks/test_pages.py

# What needs PyTorch: it joins .venv beside the locked versions. By pip, which takes a wheel for the CPU where it finds
# one; uv would fetch the libraries of a GPU.
TORCH := torch==2.13.0
torch: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.txt $(TORCH)
	$(BIN)/python -m pytest -q tests/test_torch.py

# What is compared with DoWhy: it wants an older SciPy than the lock has, and so never joins .venv.
DOWHY := dowhy==0.14
PEERS := build/peers/bin/python
peers:
	$(PYTHON) -m venv build/peers
	$(PEERS) -m pip install -q --disable-pip-version-check -e . $(DOWHY) pytest beartype equinox
	$(PEERS) -m pytest -q tests/causal/test_flows.py -k another_library

# Before a release: the pages as readers get them.
pages: book
	$(BIN)/python -m pytest -q tests/notebooks/test_pages.py

# An interrupted training goes on from its last checkpoint, in build/training.
train: $(STAMP)
	$(BIN)/python -m cdelta.pretrained $(NAMES)

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks $(NAMES)

# tests/mutants/*.toml, each error in a copy; SAMPLE of the quick ones, always the same.
mutants: $(STAMP)
	$(BIN)/python -m tests.mutants $(NAMES) $(if $(SAMPLE),--sample $(SAMPLE))

clean:
	rm -rf _build build dist book/executed *.egg-info .pytest_cache .ruff_cache
	find cdelta book tests notebooks '(' -name __pycache__ -o -name .ipynb_checkpoints ')' -prune -exec rm -rf {} +
