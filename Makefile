# make book   set up, build the book and serve it at http://127.0.0.1:8000
# make test   set up and run every test
# make lab    the notebooks in JupyterLab
# make site   build the book into _build/html without serving it
# make bench  the benchmarks; writes benchmarks/RESULTS.md
# make notebooks   run all notebooks and replays again and normalise the results (git diff is empty if nothing changed)
# make clean  remove what was built; `make distclean` removes the environment and the caches too

PYTHON ?= python3
PORT ?= 8000
PY := .venv/bin/python
JOBS ?= 2

.PHONY: book test lab site bench notebooks clean distclean setup
.DEFAULT_GOAL := book

book: site
	@$(PY) tools/serve.py _build/html $(PORT)

setup:
	@$(PYTHON) tools/setup_venv.py .venv

site: setup
	@$(PY) tools/fetch_pyodide.py >/dev/null
	@$(PY) tools/build_site.py

test: site
	@$(PY) -m pytest -n $(JOBS) --dist loadfile --nbval --nbval-sanitize-with tests/book/nbval.cfg $(ARGS)

lab: setup
	@cd book && ../$(PY) -m jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root)

bench: site
	@$(PY) -m benchmarks

notebooks: setup
	@$(PY) tools/normalise_notebooks.py
	@$(PY) tools/faithful.py

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf .venv .cache
