# Python >= 3.10 and make are all this needs; every target builds .venv first when it is missing or stale.
# Another Python: `make PYTHON=python3.12 demo`. Another package index, or wheels from a folder: pip's own configuration
# (`pip config set global.index-url …`, `global.find-links …`, or PIP_INDEX_URL, PIP_FIND_LINKS). On Linux
# the ordinary index serves torch with CUDA, several GB; a machine without a GPU saves them with an index of CPU wheels.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/made-in
MINE := $(VENV)/made-by-make

# The stamp names the folder the environment was made in: half-made, moved or without its Python, it is made anew. One
# that make did not make, or that lies elsewhere behind a link, is refused: making anew begins with emptying it.
FRESH := $(shell [ "$$(cat $(MADE) 2>/dev/null)" = "$$(pwd)" ] && $(BIN)/python -c '' 2>/dev/null || echo fresh)
# $(call unchanged,FILES,COMMAND,WHAT): run COMMAND and fail when it changes FILES, which are kept as they were.
unchanged = before=$$(cksum $(1)); kept=$$(mktemp); tar -cf $$kept $(1); $(2) && { [ "$$before" != "$$(cksum $(1))" ] || rm $$kept; } \
	  && { [ ! -e $$kept ] || { echo "$(3): they have been rewritten, look at \`git diff\` and commit;"; \
	  echo "as they were before: $$kept (tar)"; exit 1; }; }

# What `make gpu` runs with: .venv if it is whole, else a Python that has the libraries already, else .venv made first.
NEEDS := torch diffusers transformers accelerate peft torchmetrics safetensors tokenizers h5py matplotlib jinja2 PIL fastcore ftfy tqdm
ABLE := import importlib.util as u, sys; lost = [n for n in "$(NEEDS)".split() if not u.find_spec(n)]; \
  print(sys.executable, "lacks", *lost) if lost else None; sys.exit(bool(lost))
MINUTES := 9
DEVICE := cuda
OUT = runs/gpu$(if $(filter cpu,$(DEVICE)),-cpu)
SIZE = $(if $(filter cuda,$(DEVICE)),full,tiny)
COMMIT :=
REMAKE = $(MAKE) -s $(MADE)  # by another name: `make -n gpu` would run a line that says MAKE

.PHONY: help install demo test docs soak full gpu lab export clean-notebooks readme prepare lock clean fresh

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1:/p' Makefile | \
	  while IFS=: read -r target text; do printf '  make %-16s %s\n' "$$target" "$$text"; done

install: $(MADE) ## everything that the book needs, into .venv

demo: $(MADE) ## the toy world from raw stories to a scored, illustrated report
	@$(BIN)/arldm-demo

test: $(MADE) ## notebooks exported, clean and run, README in step, tests/
	@echo "== exported: arldm/ is what the notebooks say"
	@$(call unchanged,$$(find arldm -name '*.py' | sort),$(BIN)/nbdev-export,the modules in arldm/ were out of step with nbs/)
	@echo "== clean: notebooks are as nbdev-clean leaves them"
	@$(call unchanged,$$(find nbs -name '*.ipynb' | sort),$(BIN)/nbdev-clean,some notebooks were not clean)
	@echo "== README.md is what nbs/index.ipynb says"
	@$(BIN)/python docs/readme.py --check
	@echo "== notebooks: every cell runs"  # one process more than CI has cores, for some of them wait
	@OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 3 --timing
	@echo "== tests/"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist worksteal -m 'not gpu' tests

docs: $(MADE) ## the book as a site in _docs/, to be read offline or served
	@$(BIN)/python docs/build.py
	@echo "_docs/index.html; its search needs a server: $(BIN)/python -m http.server -d _docs"

soak: $(MADE) ## the long forms of the reliability tests: thousands of damaged inputs, dozens of kills, every chapter in JupyterLab
	@ARLDM_SOAK=1 $(BIN)/python -m pytest -q -s tests/data/test_soak.py tests/toy/test_reader.py tests/cli/test_fetch_vist.py tests/train/test_checkpoint.py tests/train/test_loop.py tests/cli/test_cli.py tests/draw/test_test_set.py tests/bench/test_bench_draw.py tests/bench/test_speed.py tests/bench/test_gpu_run.py tests/model/test_refused.py tests/test_jupyter.py tests/test_docs.py tests/draw/test_pipeline.py tests/score/test_evaluate.py tests/lab/test_lab.py tests/test_story_browser.py

full: $(MADE) ## the full-size model with random weights: built, saved, loaded, one frame drawn (3 minutes, 8 GB)
	@ARLDM_FULL=1 $(BIN)/python -m pytest -q -s tests/model/test_full.py

gpu: ## all that needs a GPU, in MINUTES=9; results in OUT=runs/gpu (DEVICE=cpu shows that every row runs)
	@python=$(BIN)/python; if [ -n "$(FRESH)" ]; then \
	  if $(PYTHON) -c '$(ABLE)'; then python=$(PYTHON); else $(REMAKE) || exit 1; fi; fi; \
	  $$python -c 'from arldm.bench.bench import bench; bench()' gpu --minutes $(MINUTES) --device $(DEVICE) --size $(SIZE) \
	  --out $(OUT) $(if $(COMMIT),--commit $(COMMIT))

lab: $(MADE) ## open JupyterLab on the notebooks
	@$(BIN)/jupyter lab nbs

export: $(MADE) ## write arldm/ from the notebooks
	@$(BIN)/nbdev-export

clean-notebooks: $(MADE) ## strip from the notebooks what is not committed
	@$(BIN)/nbdev-clean

readme: $(MADE) ## write README.md from nbs/index.ipynb
	@$(BIN)/python docs/readme.py

prepare: export clean-notebooks readme ## all three, before a commit

lock: $(MADE) ## write constraints.txt from what .venv holds now
	@$(BIN)/python .ci/lock.py

clean: ## remove .venv, if make made it, and everything built
	@[ -L $(VENV) -o ! -e $(MINE) -a ! -e $(MADE) ] || rm -rf $(VENV)
	@rm -rf build dist *.egg-info _docs _proc .pytest_cache

$(MADE): constraints.txt settings.ini setup.py pyproject.toml $(FRESH)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "Python 3.10 or newer is needed; $(PYTHON) says: $$($(PYTHON) --version 2>&1)"; \
	  echo "name another one: make PYTHON=python3.12"; exit 1; }
	@[ -z "$(FRESH)" ] || [ ! -e $(VENV) -a ! -L $(VENV) ] || [ ! -L $(VENV) -a -e $(MINE) ] || [ ! -L $(VENV) -a -e $(MADE) ] || { \
	  echo "$(VENV) is there already, and make did not make it: move it away, or name another: make VENV=.venv2 …"; exit 1; }
	@[ -z "$(FRESH)" ] || { echo "making $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv --clear $(VENV) && touch $(MINE); }
	@rm -f $@
	@echo "installing (some minutes; everything pip says goes to $(VENV)/pip.log)"
	@{ $(BIN)/python -m pip install --no-compile --disable-pip-version-check --progress-bar off \
	  -c constraints.txt -e '.[dev,lite]' 2>&1 || echo FAILED; } | tee $(VENV)/pip.log | while read -r line; do case "$$line" in \
	  FAILED) echo "installing failed: $(VENV)/pip.log has the whole story"; exit 1;; \
	  Collecting*"(from arldm"*|Downloading*MB*|ERROR*) echo "  $$line";; \
	  "Installing collected"*) echo "  unpacking, this takes a while";; esac; done
	@# as pip would, but on all cores, and without tests and the many models of transformers
	@$(BIN)/python -m compileall -q -j 0 -x '/tests/|transformers/models/[^/]*/mod' $(VENV)/lib >> $(VENV)/pip.log 2>&1 || true
	@pwd > $@

fresh:
