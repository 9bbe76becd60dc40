"""A study: a sweep on one data set, down to the list of its fold runs. Written to disk so that workers, `status` and a
later driver read the same thing."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from guided.config import Config, Data, content_id
from guided.data import Dataset, load_dataset
from guided.folds import Fold, holdout_rows, make_folds
from guided.growth import reaches_length
from guided.guide import EmbeddingGuide, load_guide
from guided.kept import embedding_key, kept_path
from sweeps.budget import Budget
from sweeps.records import FoldRun, folder_bytes
from sweeps.spec import Resources, SpecError, Sweep, Variant

# What makes an embedding grow faster, by rule; `staged` needs nothing but epochs.
HASTENED_BY = {
    "paper": " or embedding.factor",
    "literal": " or embedding.factor",
    "plateau": " or embedding.step, or lower embedding.patience",
}


@dataclass(frozen=True)
class Study:
    """A resolved sweep with its data and its guides."""

    sweep: Sweep
    data: Dataset
    guides: dict[str, EmbeddingGuide]  # by config id
    out: Path  # absolute

    @cached_property
    def id(self) -> str:
        """Sweep, data and what all variants share; adding variants, seeds or partitions keeps it."""
        return content_id([self.sweep.name, self.data.fingerprint, self.sweep.base_id])

    @property
    def folder(self) -> Path:
        """Where the study keeps its plan and its lock."""
        return self.out / "studies" / f"{self.sweep.name}-{self.id}"

    @property
    def warmups(self) -> Path:
        """Where fold runs that share a warm-up leave it for each other."""
        return self.folder / "warmups"

    @property
    def embeddings(self) -> Path:
        """Where fold runs keep their embeddings for each other, and for other studies."""
        return self.out / "embeddings"

    @cached_property
    def _sharing(self) -> set[str]:
        """Keys of the embeddings that several variants have in common."""
        return {key for key, count in self._embedding_keys.items() if count > 1}

    @cached_property
    def _embedding_keys(self) -> Counter[str]:
        """How many variants have each embedding."""
        return Counter(embedding_key(variant.config) for variant in self.sweep.variants)

    def keeps(self, config: Config) -> bool:
        """Whether the fold runs of a variant leave their embeddings."""
        return self.sweep.resources.keep_embeddings or embedding_key(config) in self._sharing

    def embedding_of(self, run: FoldRun) -> Path:
        """Where the embedding of a fold run lies, if it has been kept."""
        return kept_path(
            self.embeddings,
            self.data,
            self.folds[run.partition][run.fold],
            self.guides[run.config.id],
            run.config,
            seed=run.seed,
            device=self.sweep.resources.device,
        )

    def in_turns(self, runs: Sequence[FoldRun]) -> tuple[list[FoldRun], list[FoldRun]]:
        """Those of `runs` that train, and those that take the embedding which is there or which one of the others
        leaves."""
        if not self._sharing and not self.embeddings.exists():
            return list(runs), []  # without the hashes of 10,000 folds
        train, take, left = [], [], set()
        for run in runs:
            path = self.embedding_of(run)
            if path in left or path.exists():
                take.append(run)
            else:
                train.append(run)
            if self.keeps(run.config):
                left.add(path)
        return train, take

    @cached_property
    def fold_runs(self) -> list[FoldRun]:
        """Every fold run, in the order they are trained: fold by fold through all variants, so that the running
        comparison is always over nearly the same folds."""
        folds = range(self.sweep.variants[0].config.folds.number)
        return [
            self._fold_run(variant, partition, fold, seed)
            for seed in self.sweep.seeds
            for partition in self.sweep.partitions
            for fold in folds
            for variant in self.sweep.variants
        ]

    def _fold_run(self, variant: Variant, partition: int, fold: int, seed: int) -> FoldRun:
        guide = self.guides[variant.config.id].hash
        return FoldRun(variant.label, variant.config, self.data.fingerprint, guide, partition, fold, seed)

    @cached_property
    def _by_variant(self) -> dict[str, list[FoldRun]]:
        found: dict[str, list[FoldRun]] = {variant.label: [] for variant in self.sweep.variants}
        for run in self.fold_runs:
            found[run.variant].append(run)
        return found

    def runs_of(self, variant: Variant) -> list[FoldRun]:
        """The fold runs of one variant."""
        return list(self._by_variant[variant.label])

    @cached_property
    def folds(self) -> dict[int, list[Fold]]:
        """The folds of each partition, the same for every variant."""
        config = self.sweep.variants[0].config.folds
        return {partition: make_folds(self.data, config, partition) for partition in self.sweep.partitions}

    @cached_property
    def judgement_folds(self) -> list[Fold]:
        """The folds on which the winner of a search is judged, one for each group that it never sees."""
        config = self.sweep.variants[0].config.folds
        return make_folds(self.data, config.model_copy(update={"tested": "holdout"}))

    @cached_property
    def compared_folds(self) -> list[Fold]:
        """The folds that a comparison with the baseline is over: of a search, those of its judgement."""
        if self.sweep.search is not None:
            return self.judgement_folds
        return [fold for cut in self.folds.values() for fold in cut]

    @cached_property
    def test_train_ratio(self) -> float:
        """n_test / n_train of the compared folds, averaged: what the corrected test needs."""
        return float(np.mean([len(fold.test) / len(fold.train) for fold in self.compared_folds]))

    def warnings(self) -> list[str]:
        """What would make the comparison weaker than it looks."""
        told = []
        for variant in self.sweep.variants:
            embedding, epochs = variant.config.embedding, variant.config.train.epochs
            reaches = reaches_length(embedding, variant.config.train)
            if reaches is None:
                told.append(
                    f"variant {variant.label!r} grows when its validation score stalls: length {embedding.length} in "
                    f"{epochs} epochs is possible, not guaranteed; see best/length of its fold runs"
                )
            elif not reaches:
                told.append(
                    f"variant {variant.label!r} never reaches length {embedding.length} in {epochs} epochs; "
                    f"raise train.epochs{HASTENED_BY.get(embedding.rule, '') if embedding.growing else ''}"
                )
        notes: dict[str, list[str]] = {}
        for partition, folds in self.folds.items():
            for fold in folds:
                for note in fold.notes:
                    notes.setdefault(note, []).append(
                        f"{fold.index}" if partition == 0 else f"{partition}/{fold.index}"
                    )
        told += [f"fold {', '.join(where)}: {note}" for note, where in notes.items()]
        if self.folds[self.sweep.partitions[0]][0].grouped_by == "none":
            told.append("the data name no region or patient: folds are by single cell, which flatters every score")
        return told

    def disk_needed(self) -> int:
        """Bytes a full run writes at most, apart from the decoded images: records and their copies in MLflow,
        the checkpoints of the fold runs under way, and the embeddings that are kept. A search may try longer embeddings
        than its baseline's: they are a small part."""
        largest_test = max(len(fold.test) for cut in self.folds.values() for fold in cut)
        length = max(variant.config.embedding.length for variant in self.sweep.variants)
        record = largest_test * (2 * length + 4 * len(self.data.classes) + 40) + 50_000
        runs = len(self.fold_runs) * (1 if self.sweep.search is None else self.sweep.search.settings.variants)
        keys = len(self._embedding_keys) if self.sweep.resources.keep_embeddings else len(self._sharing)
        kept = keys * len(self.fold_runs) // len(self.sweep.variants) * len(self.data.labels) * 4 * length
        return 2 * record * runs + kept + 4 * 200_000_000

    def write(self) -> None:
        """Write the plan that workers and `status` read; keeps the time of the first start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "study.json"
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if path.exists():
            started = self.started
        sweep = self.sweep
        plan = {
            "id": self.id,
            "started": started,
            "sweep": sweep.name,
            "question": sweep.question,
            "preset": sweep.preset,
            "metric": sweep.metric,
            "stage": sweep.stage,
            "identity": sweep.identity,
            "judges": sweep.judges,
            "budget": sweep.budget.model_dump(mode="json"),
            "max_failures": sweep.max_failures,
            "data": sweep.data.model_dump(mode="json"),
            "data_name": self.data.name,
            "data_directory": os.path.relpath(self.data.directory, self.out),
            "fingerprint": self.data.fingerprint,
            "resources": sweep.resources.model_dump(mode="json"),
            "seeds": list(sweep.seeds),
            "partitions": list(sweep.partitions),
            "variants": [
                {
                    "label": variant.label,
                    "config": variant.config.model_dump(mode="json"),
                    "varied": variant.varied,
                    "baseline": variant.baseline,
                    "guide": _guide_to_json(self.guides[variant.config.id]),
                }
                for variant in sweep.variants
            ],
        }
        temporary = path.with_name(f"writing-{os.getpid()}")
        temporary.write_text(json.dumps(plan, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)

    @property
    def started(self) -> str:
        """ISO time of the first start. Raises ValueError naming the plan where it cannot be read."""
        path = self.folder / "study.json"
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["started"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the plan {path} is damaged ({error}); delete it, and the same command writes it anew (only the time "
                "of the first start is lost)"
            ) from None


def make_study(sweep: Sweep, out: Path, *, progress: bool = True) -> Study:
    """Load the data, fit a guide to each variant, cut the folds. Raises ValueError where one of them does not fit."""
    data = load_dataset(sweep.data, out / "cache", progress=progress)
    problems, guides = [], {}
    for variant in sweep.variants:
        try:
            guides[variant.config.id] = load_guide(variant.config.guide, data.classes)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise SpecError(f"sweep {sweep.name!r} on {data.name}", problems)
    study = Study(sweep, data, guides, out)
    if sweep.search is not None:
        problems += _locked_problems(study) or _guide_problems(sweep.search.corners, data.classes)
    if problems:
        raise SpecError(f"sweep {sweep.name!r} on {data.name}", problems)
    batches: dict[int, Variant] = {}  # one for each size
    for variant in (*sweep.variants, *(sweep.search.corners if sweep.search else ())):
        batches.setdefault(variant.config.train.batch_size, variant)
    for variant in batches.values() if sweep.search else sweep.variants:
        batch = variant.config.train.batch_size
        smallest = min(len(fold.train) for cut in study.folds.values() for fold in cut)
        if smallest < batch:
            problems.append(
                f"variant {variant.label!r}: a fold has {smallest} training cells, less than a batch of {batch}"
            )
    if problems:
        raise SpecError(f"sweep {sweep.name!r} on {data.name}", problems)
    return study


def _guide_problems(variants: Iterable[Variant], classes: Sequence[str]) -> list[str]:
    """Why a guide that a search may choose does not fit the classes: each guide once."""
    problems = []
    for guide, variant in {variant.config.guide: variant for variant in variants}.items():
        try:
            load_guide(guide, classes)
        except ValueError as error:
            problems.append(f"{variant.label}: {error}")
    return problems


def _locked_problems(study: Study) -> list[str]:
    """Why the groups that a search locks away cannot be, or its winner not be judged on them: told before, not after
    it."""
    config = study.sweep.variants[0].config.folds
    told = f"locked: [{', '.join(config.holdout)}]"
    if study.data.region is None and study.data.patient is None:
        return [
            f"{told}: the data name no regions and no patients, so that nothing can be locked away for the judgement"
        ]
    try:
        tested = [fold.test for fold in study.judgement_folds]
        holdout_rows(study.data, config)
    except ValueError as error:
        return [f"{told}: {str(error).removeprefix('folds.holdout: ')}"]
    if sum(map(len, tested)) > len(np.unique(np.concatenate(tested))):
        return [f"{told}: two of these groups have cells in common, which would be judged twice"]
    try:
        _ = study.folds
    except ValueError as error:
        return [f"{error}; {told} leaves the search no more"]
    return []


def read_study(folder: Path) -> Study:
    """What `Study.write` wrote. Raises ValueError naming the file where it cannot be read."""
    path = folder / "study.json"
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        variants = tuple(
            Variant(entry["label"], _config(entry["config"]), entry["varied"], entry["baseline"])
            for entry in plan["variants"]
        )
        from_json = [_guide_from_json(entry["guide"]) for entry in plan["variants"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the plan {path} cannot be read ({error}); run the sweep again to write it anew") from None
    out = folder.parent.parent
    sweep = Sweep(
        name=plan["sweep"],
        question=plan["question"],
        preset=plan["preset"],
        data=Data(**plan["data"]),
        resources=Resources(**plan["resources"]),
        variants=variants,
        seeds=tuple(plan["seeds"]),
        partitions=tuple(plan["partitions"]),
        metric=plan["metric"],
        # Absent from plans of before there were searches.
        stage=plan.get("stage", "ablation"),
        identity=plan.get("identity", ""),
        judges=plan.get("judges", ""),
        budget=Budget(**plan.get("budget", {})),
        max_failures=plan.get("max_failures"),
    )
    guides = {variant.config.id: guide for variant, guide in zip(variants, from_json, strict=True)}
    return Study(sweep, Dataset.open(out / plan["data_directory"]), guides, out)


def _config(values: dict[str, Any]) -> Config:
    return Config.model_validate_json(json.dumps(values))


def _guide_to_json(guide: EmbeddingGuide) -> dict[str, Any]:
    return {
        "name": guide.name,
        "classes": list(guide.classes),
        "points": guide.points.tolist(),
        "lineages": list(guide.lineages),
        "stages": list(guide.stages),
    }


def _guide_from_json(values: dict[str, Any]) -> EmbeddingGuide:
    return EmbeddingGuide(
        values["name"],
        tuple(values["classes"]),
        np.array(values["points"], dtype=np.float64),
        tuple(values["lineages"]),
        tuple(values["stages"]),
    )


def disk_report(study: Study) -> tuple[int, int]:
    """Bytes needed beyond what the study already has, and bytes free where it writes."""
    have = folder_bytes(study.out / "records") if (study.out / "records").exists() else 0
    study.out.mkdir(parents=True, exist_ok=True)
    return max(0, study.disk_needed() - have), shutil.disk_usage(study.out).free
