"""Names in the MLflow record: experiments, tags, metrics, artifacts; and what never gets into it. Imports nothing but
`re`, so that readers need nothing.

A study (sweep + data + resolved base) is one value of the tag `study`. A *variant* run is the parent of its *fold
runs*.
"""

from __future__ import annotations

import re

# --- tags -----------------------------------------------------------------------------------------------------------
ROLE = "role"
VARIANT_ROLE = "variant"
FOLD_RUN_ROLE = "fold_run"
STUDY_ROLE = "study"  # one run per study, for what belongs to no variant: thumbnails, and the report
UNFINISHED_ROLE = "unfinished study"  # that run while its files are being written: no reader asks for it
REFIT_ROLE = "refit"  # a variant trained on all cells: a model to use, no result

SWEEP = "sweep"  # name of the sweep file
STUDY = "study"  # id of the study; two studies never mix in a table
STARTED = "study_started"  # ISO time of the study's first start: the newest study of a sweep is the default
DATA_NAME = "data"
DATA_FINGERPRINT = "data_fingerprint"
GUIDE_HASH = "guide_hash"
QUESTION = "question"
VARIANT = "variant"  # label a person reads, e.g. "lowpass=0.6"
VARIANT_ID = "variant_id"  # config id
GIT_COMMIT = "git_commit"
GIT_DIRTY = "git_dirty"
VERSIONS = "versions"  # JSON {package: version}

STAGE = "stage"  # one of the next three; absent from runs of before there were searches
ABLATION = "ablation"
SEARCH = "search"  # trained in order to choose
JUDGE = "judge"  # the winner and the baseline, on groups that the search never saw
JUDGES = "judges"  # of a judgement: id of the search's study

# on variants
VARIED = "varied"  # JSON {dotted key: value}: what sets this variant apart from its siblings
ORDER = "order"  # position in the sweep file
BASELINE = "baseline"  # "true" on the variant the others are compared with
PLANNED = "planned"  # JSON list of [partition, fold, seed]
METRIC = "metric"  # the metric the sweep is about

# on fold runs
FOLD_RUN = "fold_run"  # content-addressed id of the record
PARTITION = "partition"
FOLD = "fold"
SEED = "seed"
STATUS = "status"  # finished | failed | diverged | stopped (by a search)
REASON = "reason"  # why it is not finished
CLASSIFIER = "classifier"  # the winner of the grid search, e.g. "svm C=0.1"
REUSED = "reused"  # "true": its embedding was kept by another training, whose curve and times these are
ADDED = "added"  # digest of the metrics that its record got later, from the kept embedding
GROUPED_BY = "grouped_by"  # region | patient | none: what the folds really kept together
NOTES = "notes"  # JSON list of what a reader must know (class absent from the test fold, best epoch in the warm-up ...)

# on refits
REFIT = "refit"  # content-addressed id of the model file

# --- metrics of a fold run ------------------------------------------------------------------------------------------
# per epoch, step = epoch (from 0)
TRAIN_LOSS = "train/loss"
VAL_F1 = "val/f1_macro"
VAL_F1_HEAD = "val/f1_macro_head"  # of the loss's own head, where it has one
LENGTH = "embedding/length"
GUIDE_SHIFT = "guide/shift"
EPOCH_SECONDS = ("time/train", "time/embed", "time/validate", "time/refresh")
# where resources.system_metrics is on; MLflow's UI has a page of its own for this prefix
CPU_USE = "system/process_cpu_percentage"  # of one core, over the epoch; above 100 where several work
MEMORY_USE = "system/process_memory_megabytes"  # resident, when the epoch ends; memory-mapped images count
GPU_MEMORY_USE = "system/process_gpu_memory_megabytes"  # torch's peak in the epoch, without the CUDA context
# once
TEST_F1 = "test/f1_macro"
TEST_F1_HEAD = "test/f1_macro_head"  # absent where the best epoch lies in the warm-up: the head was not trained
TEST_ACCURACY = "test/accuracy"
TEST_F1_CLASS = "test/f1/"  # + class
# over the lineages of the guide, in stages (guided.metrics)
TEST_SEVERITY = "test/severity"
TEST_MISTAKE_SEVERITY = "test/mistake_severity"  # over mistakes only
TEST_LINEAGE_ACCURACY = "test/lineage_accuracy"
TEST_MATURITY_ERROR = "test/maturity_error"  # over cells of the right lineage
TEST_MATURITY_CELLS = "test/maturity_cells"  # how many those are
TEST_MATURITY_CORRELATION = "test/maturity_correlation"
TEST_TRUE_MATURITY_ERROR = "test/true_maturity_error"  # against the continuous maturity; synthetic data only
TEST_TRUE_MATURITY_CORRELATION = "test/true_maturity_correlation"
# confidence by distance to the class means of the training cells, and to the points of a guided loss
TEMPERATURE = "confidence/temperature"
TEST_ECE = "test/ece"
TEST_AURC = "test/aurc"
TEST_AURC_EXCESS = "test/aurc_excess"  # beyond a perfect order of the same mistakes
GUIDE_TEMPERATURE = "confidence/guide_temperature"
TEST_GUIDE_ECE = "test/guide_ece"
TEST_GUIDE_AURC = "test/guide_aurc"
TEST_GUIDE_AURC_EXCESS = "test/guide_aurc_excess"
# shape of the test embedding (guided.geometry)
SPREAD = "embedding/spread"
CLASS_SPREAD = "embedding/class_spread/"  # + class
EFFECTIVE_RANK = "embedding/effective_rank"
SILHOUETTE = "embedding/silhouette"
STRAIGHTNESS = "embedding/straightness"  # mean over lineages
LINEAGE_STRAIGHTNESS = "embedding/lineage_straightness/"  # + lineage
STAGE_ORDER = "embedding/order"  # mean over lineages
LINEAGE_ORDER = "embedding/lineage_order/"  # + lineage
# maturity read off the test embedding
MATURITY_CORRELATION = "embedding/maturity_correlation"
TRUE_MATURITY_CORRELATION = "embedding/true_maturity_correlation"
TRUE_MATURITY_WITHIN_CLASS = "embedding/true_maturity_within_class"
BEST_EPOCH = "best/epoch"
BEST_LENGTH = "best/length"
BEST_VAL_F1 = "best/val_f1_macro"
EPOCHS_RUN = "epochs/run"
TRAIN_CELLS = "data/train_cells"
VALIDATION_CELLS = "data/validation_cells"
TEST_CELLS = "data/test_cells"
SECONDS = "time/total"

# --- metrics of a variant -------------------------------------------------------------------------------------------
CV = "cv/"  # cv/<metric>_mean, cv/<metric>_std (ddof 1 over folds, seeds averaged first), cv/<metric>_folds

# --- artifacts of a fold run ----------------------------------------------------------------------------------------
PREDICTIONS = "predictions.parquet"  # id, true, predicted, region and patient where known, score per class
REGION, PATIENT = "region", "patient"
ARRAYS = "arrays.npz"  # test_embedding (N, n) fp16, test_labels, anchors (C, n), guide_2d (C, 2), classes
# and guide (C, n) where the loss draws cells to points
RECORD = "record.json"
# --- artifacts of a study's own run ---------------------------------------------------------------------------------
SPRITE = "cells.webp"  # thumbnails of at most 1,500 cells, row by row
CELLS = "cells.parquet"  # id, class, in the order of the thumbnails
CLASSES = (
    "classes.json"  # thumbnail, columns (of the sprite); classes, lineages, stages, points of the baseline's guide
)
REPORT = "report"  # folder
DIFF = "uncommitted.diff"  # of tracked files, where the code differed from its commit
# of a refit
MODEL = "model"  # the network from pixels to embedding, for mlflow.pytorch.load_model
MODEL_FILE = "model_file"  # the file that `guided predict` reads


def experiment_name(sweep: str, data: str) -> str:
    """One experiment per sweep and data set."""
    return f"{sweep} on {data}"


# A user, token or password, which may hold a slash where a user stands before it.
CREDENTIALS = re.compile(r"""(\b[A-Za-z][A-Za-z0-9+.-]*://)(?:[^/@\s]+|[^/@:\s]*:[^@\s"']+)@""")


def without_credentials(text: str) -> str:
    """The text with what stands before the @ of a URI (user, password, token) as ***: fit to be shown and recorded."""
    return CREDENTIALS.sub(r"\1***@", text)
