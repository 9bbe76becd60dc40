"""The judgement of a search. A winner has been chosen because it did well on the folds of the search: its score there
is too high. It and the baseline are trained once more, on all cells but those of one locked group, and tested on that
group, which the search never saw: one fold for each locked group. Only this study enters a comparison.

Its interval, as everywhere, is that of paired differences over folds, here over locked groups; with a single group
there is none, and several seeds tell no more than the luck of training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from guided.config import content_id
from guided.guide import load_guide
from sweeps.spec import Variant, label
from sweeps.strategy import Standing
from sweeps.study import Study


def winner_of(ranking: Sequence[Standing]) -> Standing | None:
    """The variant with the best validation score among those trained on every fold; None where there is none."""
    return next((standing for standing in ranking if standing.end == "finished"), None)


def judgement(study: Study, winner: Variant) -> Study:
    """The study that judges `winner` beside the baseline of the search `study`. A search whose winner is its baseline
    has found nothing better; the baseline is then judged alone."""
    baseline = study.sweep.variants[0]
    chosen = [baseline] if winner.config.id == baseline.config.id else [baseline, winner]
    variants = tuple(_judged(variant) for variant in chosen)
    guides = {variant.config.id: load_guide(variant.config.guide, study.data.classes) for variant in variants}
    sweep = replace(
        study.sweep,
        stage="judge",
        variants=variants,
        seeds=study.sweep.judge_seeds,
        partitions=(0,),
        search=None,
        budget=type(study.sweep.budget)(),
        identity=content_id([study.id, [variant.config.id for variant in variants]]),
        judges=study.id,
    )
    return Study(sweep, study.data, guides, study.out)


def _judged(variant: Variant) -> Variant:
    folds = variant.config.folds.model_copy(update={"tested": "holdout"})
    name = label(variant.varied) if variant.baseline else f"winner: {label(variant.varied)}"
    return replace(variant, label=name, config=variant.config.model_copy(update={"folds": folds}))


def earlier_judgements(study: Study) -> int:
    """How many other winners of the same sweep have been judged on the same data: each looks at the locked groups, and
    a choice among them by what was seen there would be optimistic again."""
    found = 0
    for path in (study.out / "studies").glob(f"{study.sweep.name}-*/study.json"):
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(
                f"the plan {path} is damaged, so that nobody can say whether these groups were judged on before; "
                "restore or delete it"
            ) from None
        same = plan.get("stage") == "judge" and plan["fingerprint"] == study.data.fingerprint
        found += same and plan["id"] != study.id
    return found
