# make book     execute every notebook, build the book, print the file to open
# make test     lint, unit tests, and the notebooks against their stored outputs
# make oldest   the unit tests with the lowest versions that pyproject.toml allows, on Python 3.11, in .venv-oldest
# make outputs  store the notebooks' outputs anew, after the ledger has changed
# make accessible  check the built book in Chromium: axe finds nothing serious, pages work from file://
# Each but oldest creates .venv on first use and reuses it.

PYTHON ?= python3
BIN := .venv/bin
# so many workers of one thread each: the models are too small to gain much from a second thread
PARALLEL := -n auto --maxprocesses 4
test oldest: export OMP_NUM_THREADS = 1

# $(call part,what it is,command): run it and say how many seconds it took; a failure stays one
part = @echo "$(1)"; began=$$(date +%s); $(2); status=$$?; echo "  $$(($$(date +%s) - began)) s"; exit $$status

.PHONY: book test oldest outputs accessible clean

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "This project needs Python 3.11, 3.12 or 3.13; name one with: make PYTHON=python3.12 …"; exit 1; }
	@echo "Creating .venv and installing what the book and the tests need (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	@touch $@

test: .venv/.installed
	$(call part,Checking style,$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet .)
	$(call part,Checking types and the order of the floors,$(BIN)/lint-imports --no-logo && $(BIN)/mypy lkca)
	$(call part,Running the unit tests,$(BIN)/python -m pytest -q $(PARALLEL) --dist worksteal tests)
	$(call part,Running the notebooks (each row trains for five steps on scikit-learn's digits),\
	  $(BIN)/python -m pytest -q -W default $(PARALLEL) --dist loadfile --nbval --nbval-cell-timeout=3600 notebooks)

book: .venv/.installed
	@echo "Executing the notebooks and building the book, warnings are errors"
	@$(BIN)/jupyter-book build --all -W --keep-going -n . || \
	  { cat _build/html/reports/*.log 2>/dev/null; exit 1; }
	@$(BIN)/python tests/check_offline.py _build/html
	@echo "Open _build/html/index.html"

# cleared, or uv would keep what is installed and still allowed
.venv-oldest/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "The lowest versions are those of Python 3.11; name it with: make oldest PYTHON=python3.11"; exit 1; }
	@echo "Creating .venv-oldest with the lowest versions that are allowed (a few minutes, once)"
	@$(PYTHON) -m venv --clear .venv-oldest
	@.venv-oldest/bin/python -m pip install --quiet --upgrade 'pip>=25.1' uv
	@.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
	  --editable . --group dev
	@touch $@

oldest: .venv-oldest/.installed
	@echo "Running the unit tests with the lowest versions"
	@.venv-oldest/bin/python -m pytest -q $(PARALLEL) --dist worksteal tests

outputs: .venv/.installed
	@$(BIN)/python tests/store_outputs.py notebooks/*.ipynb

accessible: .venv/.installed
	@$(BIN)/python -m pip install --quiet --group accessible
	@test -n "$$CHROMIUM" || command -v chromium chromium-browser google-chrome >/dev/null || $(BIN)/playwright install chromium
	@$(BIN)/python tests/check_accessible.py _build/html

clean:
	rm -rf .venv .venv-oldest _build results/scratch
