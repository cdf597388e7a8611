# make demo: the whole pipeline on real data. make test: lint and tests. Both first make the environment in .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEMO := demo
DATA := $(DEMO)/data
RUN := $(DEMO)/run

.PHONY: demo test test-all bench clean

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
	$(PY) util/convert_data.py --split=train --class_list=$(DATA)/classes.txt --data_path=$(DATA)/train.tsv --output_dir=$(DATA)
	$(PY) util/convert_data.py --split=val --class_list=$(DATA)/classes.txt --data_path=$(DATA)/val.tsv --output_dir=$(DATA)
	$(PY) util/convert_data.py --split=all --class_list=$(DATA)/classes.txt --data_path=$(DATA)/all.tsv --output_dir=$(DATA)
	$(PY) util/find_reference.py --class_list=$(DATA)/classes.txt --input_npy=$(DATA)/all.npy --output_dir=$(DATA) --num_ref=16
	$(PY) train.py --data_dir=$(DATA) --checkpoint_dir=$(RUN) --log_dir=$(DEMO)/log --n_step=3000 --val_interval=500
	$(PY) inference.py --mode=val --data_dir=$(DATA) --checkpoint_dir=$(RUN) --output_file=$(DEMO)/val.txt \
		--report_dir=$(DEMO)/report > $(DEMO)/found.txt
	$(PY) inference.py --image_feature_list=$(DATA)/all.tsv --checkpoint_dir=$(RUN) --output_file=$(DEMO)/scores.tsv \
		--output_format=tsv --val_sim_thres=auto
	$(PY) util/draw_examples.py --score_file=$(DEMO)/scores.tsv --image_feature_list=$(DATA)/all.tsv --image_dir=$(DATA)/images \
		--verified_list=$(DATA)/train.tsv,$(DATA)/val.tsv --output_file=$(DEMO)/examples.png
	@echo; echo "What CleanNet found on 600 verified digits that it was not trained on:"; cat $(DEMO)/found.txt
	@echo; echo "Data and pictures: $(DATA)   trained model: $(RUN)   a score for each line of all.tsv: $(DEMO)/scores.tsv"
	@echo "Report: $(DEMO)/report/report.html   the digits that fit their label worst and best: $(DEMO)/examples.png"
	@echo "Curves: $(VENV)/bin/tensorboard --logdir=$(DEMO)/log"

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
