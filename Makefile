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
.PHONY: help env book execute test lint unit smoke again site pages train bench serve lock pairs clean
.DELETE_ON_ERROR:

help:
	@echo "make book [PROFILE=smoke|book|paper] [JOBS=2]   execute what changed and build the book"
	@echo "make test     lint, unit tests, notebooks twice and as a book (smoke), its pages in a browser"
	@echo "make pages    the book as readers get it, its pages in a browser"
	@echo "make train [NAMES='fives ...']                  train the shipped networks again, from nothing (an hour each)"
	@echo "make bench [NAMES='posterior ...']              benchmarks, as tables"
	@echo "make env      .venv from the locked requirements (PYTHON=python3.12 to choose one, 3.11 or later)"
	@echo "make serve    look at the book on localhost"
	@echo "make pairs    bring notebooks/*.ipynb in step with their *.md"
	@echo "make lock     resolve requirements.txt again from pyproject.toml"
	@echo "make clean    remove what was built (not .venv)"

# ------------------------------------------------------------------------------------------------- environment

env: $(STAMP)

# uv installs in seconds what takes pip minutes; where it cannot reach a package index that pip can, pip does it.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed, $(PYTHON) is older: make env PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check $(UV) && \
	  $(BIN)/uv pip install -q --python $(BIN)/python -r requirements.txt && \
	  $(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e . || \
	{ $(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e . ; }
	@touch $@

lock:
	@test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install -q $(UV); }
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
	@test -f $(PAGES) || { echo "nothing built yet: make book" >&2; exit 1; }
	@echo "http://localhost:8000/ (Ctrl-C ends it)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000 >/dev/null 2>&1

pairs: $(STAMP)
	$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.md

# ------------------------------------------------------------------------------------------------------- tests

# One after the other, the quick ones first; the last two, which need smoke, side by side: Sphinx takes one core.
test:
	$(MAKE) lint
	$(MAKE) unit
	$(MAKE) -j 2 again site

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

unit: $(STAMP)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --ignore tests/notebooks/test_pages.py

# Every chapter from nothing in the smoke profile,
smoke: $(STAMP)
	$(BIN)/python book/execute.py --profile smoke --jobs $(JOBS) --out _build/smoke

# a second time by nbval, which compares,
again: smoke
	$(BIN)/python -m tests.notebooks.again _build/smoke --jobs $(JOBS)

# and as a book, in a tree of its own: the one that somebody reads stays as it is.
site: smoke
	rm -rf $(SITE)
	mkdir -p $(SITE)/book
	cp -R _config.yml _toc.yml notebooks $(SITE)
	cp -R $(filter-out book/executed book/__pycache__,$(wildcard book/*)) $(SITE)/book
	cp -R _build/smoke $(SITE)/book/executed
	cd $(SITE) && $(CURDIR)/$(BIN)/jupyter-book build . -W --keep-going -n -q
	CDELTA_SITE=$(SITE)/_build/html $(BIN)/python -m pytest -q tests/notebooks/test_pages.py

# Before a release: the pages as readers get them.
pages: book
	$(BIN)/python -m pytest -q tests/notebooks/test_pages.py

# An interrupted training goes on from its last checkpoint, in build/training.
train: $(STAMP)
	$(BIN)/python -m cdelta.pretrained $(NAMES)

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks $(NAMES)

clean:
	rm -rf _build build dist book/executed *.egg-info .pytest_cache .ruff_cache
	find cdelta book tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
