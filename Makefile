# make demo: the whole pipeline on real data. make test: lint and tests. Both first make the environment in .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEMO := demo
DATA := $(DEMO)/data
TRAIN := $(PY) train.py --data_dir=$(DATA)
MEASURE := $(PY) inference.py --mode=val --data_dir=$(DATA)

.PHONY: demo check test test-all bench clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-tests: $(VENV)/installed tests/requirements.txt
	$(PY) -m pip install --quiet -r tests/requirements.txt
	touch $@

demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(PY) util/make_digits.py --output_dir=$(DATA)
	for split in train val all; do $(PY) util/convert_data.py --split=$$split --class_list=$(DATA)/classes.txt \
		--data_path=$(DATA)/$$split.tsv --output_dir=$(DATA) || exit 1; done
	$(PY) util/find_reference.py --class_list=$(DATA)/classes.txt --input_npy=$(DATA)/all.npy --output_dir=$(DATA) --num_ref=16
	$(TRAIN) --checkpoint_dir=$(DEMO)/run --log_dir=$(DEMO)/log --flagfile=recommended.flags
	$(TRAIN) --checkpoint_dir=$(DEMO)/paper --log_dir=$(DEMO)/log_paper --n_step=3000 --val_interval=1000
	$(MEASURE) --checkpoint_dir=$(DEMO)/run --output_file=$(DEMO)/val.txt --val_sim_thres=auto --report_dir=$(DEMO)/report \
		--image_dir=$(DATA)/images \
		> $(DEMO)/found.txt
	$(MEASURE) --checkpoint_dir=$(DEMO)/paper --output_file=$(DEMO)/val_paper.txt > $(DEMO)/found_paper.txt
	$(PY) inference.py --image_feature_list=$(DATA)/all.tsv --checkpoint_dir=$(DEMO)/run --output_file=$(DEMO)/scores.tsv \
		--output_format=tsv --val_sim_thres=auto
	$(PY) util/draw_examples.py --score_file=$(DEMO)/scores.tsv --image_feature_list=$(DATA)/all.tsv --image_dir=$(DATA)/images \
		--verified_list=$(DATA)/train.tsv,$(DATA)/val.tsv --output_file=$(DEMO)/examples.png
	@echo; echo "What CleanNet found on 600 verified digits that it was not trained on:"; tail -n +3 $(DEMO)/found.txt
	@echo "The paper's model, without the recommended flags:"; tail -n +5 $(DEMO)/found_paper.txt
	@echo; echo "Data and pictures: $(DATA)   trained model: $(DEMO)/run   a score for each line of all.tsv: $(DEMO)/scores.tsv"
	@echo "Report: $(DEMO)/report/report.html   the digits that fit their label worst and best: $(DEMO)/examples.png"
	@echo "Curves: $(VENV)/bin/tensorboard --logdir=$(DEMO)/log"
	@echo "Review them in the browser: $(PY) util/verify_images.py --review=$(DEMO)/scores.tsv --image_dir=$(DATA)/images" \
		"--output=$(DEMO)/reviewed.tsv"

# The inner loop: under a minute.
check: $(VENV)/installed-tests
	$(VENV)/bin/ruff check .
	$(PY) -m pytest -n 2 --dist=loadfile -m check

test: $(VENV)/installed-tests
	$(VENV)/bin/ruff check .
	$(PY) -m pytest -n 2 --dist=loadfile -m "not slow"

test-all: $(VENV)/installed-tests
	$(VENV)/bin/ruff check .
	$(PY) -m pytest -n 2 --dist=loadfile

bench: $(VENV)/installed-tests
	$(PY) tests/benchmark.py --output_dir=bench

clean:
	rm -rf $(VENV) $(DEMO) bench
