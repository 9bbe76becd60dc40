"""The methods paragraph of a report: the protocol in words, and every setting."""

from __future__ import annotations

import json
from pathlib import PurePath

import pandas as pd

from analysis.runs import StudyRuns
from analysis.tables import Comparison

LOSSES = {
    "guide2d": "the distance of the first two components to the class's point on the guide (guide2D)",
    "guide_umap": "the distance to the guide's points lifted by inverse UMAP after every epoch (guideUMAP)",
    "distance": "the difference between distances in the embedding and on the guide (eq. 2)",
    "triplet": "the triplet loss with hard mining in the batch",
    "ctl": "the class-centre triplet loss",
    "ce": "cross-entropy on one more fully connected layer",
    "supcon": "the supervised contrastive loss",
    "prototype": "the distance to learned class points",
    "hierarchical_ce": "cross-entropy with labels softened over the lineages",
}


def settings(study: StudyRuns) -> pd.DataFrame:
    """Every setting of every variant: key, value (all values where variants differ, at most ten), varied (bool). Of
    paths only the last part is shown: where data lie says nothing about them."""
    keys = sorted({key for variant in study.variants for key in variant.parameters})
    rows = []
    for key in keys:
        values = list(dict.fromkeys(_plain(variant.parameters.get(key, "–")) for variant in study.variants))
        told = ", ".join(values[:10]) + (f" and {len(values) - 10} more" if len(values) > 10 else "")
        rows.append({"setting": key, "value": told, "varied": len(values) > 1})
    return pd.DataFrame(rows)


def _plain(value: str) -> str:
    path = PurePath(value)
    return path.name if path.is_absolute() and len(path.parts) > 2 else value


def methods(comparison: Comparison) -> str:
    """How the fold runs were made and compared, in sentences, of the baseline where variants differ."""
    study, of = comparison.study, comparison.study.baseline.parameters

    def number(key: str) -> str:
        return of.get(key, "–")

    keys = dict.fromkeys(key for variant in study.variants for key in variant.varied)
    places = study.frame
    folds, seeds = places["fold"].nunique(), places["seed"].nunique()
    grouped = sorted({str(value) for value in places.get("grouped_by", pd.Series(dtype=str)).dropna() if value})
    losses = list(dict.fromkeys(variant.parameters.get("loss.name", "") for variant in study.variants))
    told = [
        f"{len(study.variants)} variants"
        + (f", which differ in {', '.join(keys)}," if keys else "")
        + f" were trained on {study.data} (digest {study.fingerprint}).",
        "Settings named here are those of the baseline "
        f"{study.baseline.label}; the table below has every setting of every variant.",
        (
            f"They were judged on {', '.join(study.locked)}, locked away before the search that chose among its "
            "variants by validation: each trained on all cells but those of one of these groups and tested on that "
            f"group, over {seeds} seed(s); "
            if study.locked
            else f"Each was evaluated in {folds}-fold cross-validation"
            + (f" with cells of one {', '.join(grouped)} on one side" * (grouped not in ([], ["none"])))
            + f", over {places['partition'].nunique()} partition(s) and {seeds} seed(s); "
        )
        + f"{_percent(number('folds.validation'))} of the training cells were kept for validation "
        + f"(by {number('folds.validation_group')}).",
        f"A {number('backbone.name')} (weights: {_plain(number('backbone.weights'))}) with an embedding of up to "
        f"{number('embedding.length')} components"
        + (f", growing by the rule {number('embedding.rule')}," if number("embedding.growing") == "true" else "")
        + (" after a warm-up of three epochs with guide2D" if number("embedding.warmup") == "true" else "")
        + f" was trained on patches of {number('data.size')} px for at most {number('train.epochs')} epochs "
        f"(patience {number('train.patience')}) in batches of {number('train.batch_size')} by Adam with learning rate "
        f"{number('train.learning_rate')} ({number('train.schedule')} schedule), class balance by "
        f"{number('train.balance')}, in {number('train.precision')}.",
        "The loss was " + "; or ".join(LOSSES.get(loss, loss) for loss in losses) + ", plus a norm term of weight "
        f"{number('norm.weight')} ({number('norm.kind')}).",
        f"The guide was {_plain(number('guide.file'))} at radius {number('guide.radius')} "
        f"(transform {number('guide.transform')}).",
        "The epoch with the highest macro-F1 on validation cells "
        f"({number('validation.classifier')} classifier on the embedding) was kept; a classifier out of "
        f"{_list(number('classifier.families'))} was then chosen on its training embedding by grid search over "
        f"{number('classifier.inner_folds')} inner folds, and test cells were scored once.",
    ]
    if comparison.ratio is not None:
        told.append(
            "Variants were compared with the baseline on the same folds, seeds averaged first, by the corrected "
            f"resampled t (Nadeau & Bengio 2003; n_test/n_train = {comparison.ratio:.3f}), corrected for "
            f"{len(study.variants) - 1} comparisons by Holm; practical equality (± {comparison.rope:g}) by the "
            "Bayesian correlated t (Corani & Benavoli 2015)."
        )
    return " ".join(told)


def _percent(value: str) -> str:
    try:
        return f"{100 * float(value):g} %"
    except ValueError:
        return value


def _list(value: str) -> str:
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return ", ".join(map(str, found)) if isinstance(found, list) else value
