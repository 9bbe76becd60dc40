"""A sweep: its file, its preset and the command line, resolved into variants; every error of a sweep told at once."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin

import yaml
from optuna.trial import BaseTrial
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from guided.config import Config, Data, Strict, content_id
from guided.strict_yaml import read_yaml
from guided.where import parse_where
from sweeps import schema
from sweeps.budget import Budget
from sweeps.space import Axis, Space, make_space, space_problems

HERE = Path(__file__).parent
PRESETS = HERE / "presets"


class SearchSpace(Protocol):
    """What a search needs of a space; `sweeps.space.Space` is one, the recorded variants of a replay another."""

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Values for the keys that apply."""

    def as_trial(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Optuna's parameters and distributions of these values."""

    def listed(self) -> list[dict[str, Any]] | None:
        """Every choice of a space that is a list, else None."""


class SpecError(ValueError):
    """Everything wrong with a sweep, one problem a line."""

    def __init__(self, where: str, problems: Iterable[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__(f"{where}:\n" + "\n".join(f"  - {problem}" for problem in self.problems))


class Resources(Strict):
    """What one fold run is given. Where it runs does not change what it is: not part of a variant."""

    device: Literal["cpu", "cuda"] = "cpu"
    cpus: Annotated[int, Field(ge=1)] = 1  # also torch's threads
    gpus: Annotated[float, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=1)] | None = None  # fold runs at a time; None: as many as fit
    system_metrics: bool = False  # record CPU, memory and GPU memory of every fold run, per epoch
    # Keep the embedding of every fold run in OUT/embeddings, for classifiers, truncations and metrics to come; what
    # variants of one sweep have in common is kept anyway.
    keep_embeddings: bool = False


class Objective(Strict):
    """What a search is after: a metric of a fold run, averaged over its folds. Never one of the test cells."""

    metric: str
    direction: Literal["maximize", "minimize"]


class NoStop(Strict):
    """Every variant is trained on every fold."""

    rule: Literal["none"] = "none"


class Racing(Strict):
    """A variant starts with `first` fold runs and goes on while its mean fold-paired difference to the best variant
    is at least -`margin`."""

    rule: Literal["racing"] = "racing"
    first: Annotated[int, Field(ge=1)] = 2
    margin: Annotated[float, Field(ge=0)] = 0.0


class Halving(Strict):
    """A variant starts with `first` fold runs and goes on to eta times as many, again and again, while its mean is
    among the best 1/eta of the variants that have come so far."""

    rule: Literal["halving"] = "halving"
    first: Annotated[int, Field(ge=1)] = 1
    eta: Annotated[int, Field(ge=2)] = 3


class Asha(Strict):
    """A fold run goes on while it is among the best 1/eta of its fold and loss, first after `min_epochs` beyond the
    warm-up. `auto`: at 60 % of its epochs, where embeddings that grow by the default rule have their length."""

    rule: Literal["asha"] = "asha"
    min_epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    eta: Annotated[int, Field(ge=2)] = 3


WARM_NONE, WARM_EVERYTHING = "none", "everything"


class SearchSettings(Strict):
    """The `search` block of a sweep file.

    `warm_start` names the studies whose variants compete from the start where they are of this space and recorded on
    every fold run of the search: those of a sweep, one (its folder under OUT/studies), `everything` under OUT, or
    `none`. It is looked at until the first variant is asked for.
    """

    sampler: Literal["tpe", "random", "qmc", "cmaes"] = "tpe"
    variants: Annotated[int, Field(ge=1)] = 48
    startup: Annotated[int, Field(ge=1)] = 10  # variants asked at random before TPE begins
    seed: Annotated[int, Field(ge=0)] = 0
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = (
        Objective(metric="best/val_f1_macro", direction="maximize"),
    )
    stop: Annotated[NoStop | Racing | Halving | Asha, Field(discriminator="rule")] = Halving()
    warm_start: str = WARM_NONE


class SweepFile(Strict):
    """A sweep file (sweeps/*.yaml).

    `extends` names another (shipped, or a path beside this file): its `base` is taken over key by key; of all else this
    file's word holds.
    """

    question: str
    kind: Literal["ablation", "search"]
    extends: str | None = None
    base: dict[str, Any] = Field(default_factory=dict)  # configuration keys, dotted or nested
    # An ablation has either `vary`, listed values, or `variants`, a name and its own keys for each.
    vary: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    design: Literal["grid", "one_at_a_time"] = "grid"  # of vary: every combination, or one key apart from the baseline
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    # A search has a space, and groups that it never sees, where its winner is judged.
    space: dict[str, Axis] = Field(default_factory=dict)
    search: SearchSettings = SearchSettings()
    locked: tuple[str, ...] = ()
    judge_seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    # Expressions over configuration keys, e.g. "not (loss.name == 'ce' and embedding.length > 64)"; a comparison with a
    # key that a variant does not have is false.
    constraints: tuple[str, ...] = ()
    baseline: dict[str, Any] | str  # one value for each varied key, or the name of a variant
    budget: Budget = Budget()
    max_failures: Annotated[int, Field(ge=1)] | None = None  # so many failed or diverged fold runs end the sweep
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    partitions: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    metric: Literal["test/f1_macro", "test/accuracy"] = "test/f1_macro"


class Preset(Strict):
    """A preset file (sweeps/presets/*.yaml). `loss_defaults` holds options by name of the loss they belong to."""

    data: dict[str, Any] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    resources: dict[str, Any] = Field(default_factory=dict)
    loss_defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One row of the comparison."""

    label: str  # what sets it apart, e.g. "lowpass=0.6"
    config: Config
    varied: dict[str, Any]
    baseline: bool


@dataclass(frozen=True)
class SearchPlan:
    """What a search asks among: a space, how it is searched, and the variant of its values (SpecError for none)."""

    space: SearchSpace
    settings: SearchSettings
    resolve: Callable[[dict[str, Any]], Variant]
    corners: tuple[Variant, ...] = ()  # of the space: what was tried before anything is asked
    corners_left: bool = False  # whether there are more than were tried


@dataclass(frozen=True)
class Sweep:
    """A resolved sweep: what will be trained, on which data, with what. A search begins with its baseline."""

    name: str
    question: str
    preset: str
    data: Data
    resources: Resources
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    partitions: tuple[int, ...]
    metric: str
    stage: Literal["ablation", "search", "judge"] = "ablation"
    budget: Budget = field(default_factory=Budget)
    max_failures: int | None = None
    left_out: tuple[str, ...] = ()  # labels of combinations that break a constraint
    search: SearchPlan | None = None
    judge_seeds: tuple[int, ...] = ()
    judges: str = ""  # of a judgement: the id of the search's study
    identity: str = ""  # of a search, whose variants grow: its space, settings and base, hashed

    @property
    def base_id(self) -> str:
        """What all variants share, hashed: the baseline's configuration without the varied keys."""
        if self.identity:
            return self.identity
        baseline = next(variant for variant in self.variants if variant.baseline)
        varied = {key for variant in self.variants for key in variant.varied}
        # Another loss has other options: where the loss varies, none of them is shared.
        varied = {"loss" if key == "loss.name" else key for key in varied}
        shared = {
            name: value
            for name, value in flat(baseline.config.model_dump(mode="json")).items()
            if not any(name == key or name.startswith(f"{key}.") for key in varied)
        }
        return content_id(shared)


# --- files ----------------------------------------------------------------------------------------------------------


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [f"cannot be read: {error}"]) from None
    except yaml.YAMLError as error:
        raise SpecError(str(path), [f"is not valid YAML: {error}"]) from None
    if not isinstance(content, dict):
        raise SpecError(str(path), ["must be a mapping of keys to values"])
    return content


def _extended(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a sweep file, with those of the file that it extends."""
    raw = _read_yaml(path)
    name = raw.get("extends")
    if name is None:
        return raw
    if not isinstance(name, str):
        raise SpecError(str(path), [f"extends: {name!r} is no name of a sweep and no path"])
    beside = path.parent / name
    other = beside if beside.is_file() else find_sweep(name)
    seen = (*seen, path.resolve())
    if other.resolve() in seen:
        raise SpecError(str(path), [f"extends: {' -> '.join(each.name for each in (*seen, other))} goes in a circle"])
    parent = _extended(other, seen)
    # One way to list what is varied: the file's own replaces the other's, and its baseline with it.
    ways = ("vary", "variants", "space")
    if any(way in raw for way in ways):
        parent = {key: value for key, value in parent.items() if key not in (*ways, "baseline", "design")}
    bases = [content.get("base") for content in (parent, raw)]
    merged = {**parent, **raw}
    if all(isinstance(base, dict) for base in bases):
        merged["base"] = flat(bases[0]) | flat(bases[1])  # type: ignore[arg-type]
    return merged


def shipped_sweeps() -> dict[str, Path]:
    """Name and file of every sweep that comes with the package."""
    return {path.stem: path for path in sorted(HERE.glob("*.yaml"))}


OWN = Path("sweeps")  # in the working directory


def own_sweeps() -> dict[str, Path]:
    """Name and file of every sweep in ./sweeps, unless that is the package itself."""
    return {} if OWN.absolute() == HERE else {path.stem: path for path in sorted(OWN.glob("*.yaml"))}


def find_sweep(name: str) -> Path:
    """File of a sweep: ./sweeps/NAME.yaml before one of that name in the package, before a path.

    Raises SpecError with the nearest name otherwise.
    """
    known = shipped_sweeps() | own_sweeps()
    if name in known:
        return known[name]
    path = Path(name)
    if path.is_file():
        return path
    raise SpecError(f"sweep {name!r}", [f"is neither a file nor one of: {', '.join(known)}{did_you_mean(name, known)}"])


TEMPLATE = """# What should this sweep answer? Say it in one sentence; the table and the report begin with it.
question: Does the distance loss classify better than guide2D?
kind: ablation
# What all variants share: any key of guided/config.py, e.g. guide.file, data come from the command line.
base: {{embedding.length: 64}}
# Every combination of these values is a variant.
vary: {{loss.name: [guide2d, distance]}}
# The variant that the others are compared with: one value of each key above.
baseline: {{loss.name: guide2d}}
#   plan it:   guided-sweeps plan {name}
#   train it:  guided-sweeps run {name}
"""


def new_sweep(name: str, like: str | None = None) -> Path:
    """Write ./sweeps/NAME.yaml: a sweep to be filled in, or a copy of the sweep `like`; returns its path.

    Raises ValueError for a name that is no plain file name and for a file that is there.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"{name!r} cannot name a sweep; take letters, digits, - and _, e.g. my_question")
    text = TEMPLATE.format(name=name) if like is None else find_sweep(like).read_text(encoding="utf-8")
    path = OWN / f"{name}.yaml"
    OWN.mkdir(exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{path} is there already; edit it, or choose another name") from None
    return path


def default_preset() -> str:
    """`gpu` where an NVIDIA GPU answers, else `laptop`. (Asking torch would cost its import in the driver.)"""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "laptop"
    answer = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False, timeout=30)
    return "gpu" if answer.returncode == 0 and "GPU" in answer.stdout else "laptop"


# --- resolving ------------------------------------------------------------------------------------------------------


def load_sweep(
    name: str,
    *,
    preset: str | None = None,
    settings: str = "",
    data: Mapping[str, Any] | None = None,
) -> Sweep:
    """Resolve a sweep. Later wins: defaults, preset, the file's base, `settings` ("train.epochs=4 guide.radius=2"),
    varied values. `data` are keys of the data section from the command line (source, limit, where, skip_bad).

    Raises SpecError with every unknown key, impossible value and contradiction at once.
    """
    path = find_sweep(name)
    raw = _extended(path)
    problems = [
        f"unknown key {str(key)!r}{did_you_mean(str(key), SweepFile.model_fields)}"
        for key in raw
        if key not in SweepFile.model_fields
    ]
    known = {key: value for key, value in raw.items() if key in SweepFile.model_fields}
    try:
        file = _validate(SweepFile, known)
    except ValidationError as error:
        raise SpecError(str(path), problems + [_told(entry) for entry in error.errors()]) from None
    preset = preset or default_preset()
    chosen = _load_preset(preset)
    given, set_problems = _parse_settings(settings)
    own, data_set, resource_set = given["config"], given["data"], given["resources"]
    problems += set_problems
    file = _with_settings(file, given, problems)
    problems += _structure_problems(file, own)
    data_values = {**chosen.data, **data_set, **(data or {})}
    resources_values = {**chosen.resources, **resource_set}
    data_model = _checked(Data, data_values, "data.", problems)
    resources = _checked(Resources, resources_values, "resources.", problems)

    constraints = _constraints(file, problems)

    def made(label: str, varied: Mapping[str, Any], told: list[str]) -> Variant | None:
        """The variant of some keys, or None after telling why there is none."""
        config = _config(chosen, base, own, varied, told)
        if config is not None:
            told += [f"{BREAKS} {text}" for text, holds in constraints if not holds(config)]
        return None if config is None or told else Variant(label, config, flat(varied), False)

    base = flat(file.base)
    if file.locked:
        base["folds.holdout"] = list(file.locked)
    if problems and file.kind == "search":
        raise SpecError(str(path), problems)
    resolved = Sweep(
        name=path.stem,
        question=file.question,
        preset=preset,
        data=data_model or Data(),
        resources=resources or Resources(),
        variants=(),
        seeds=file.seeds,
        partitions=file.partitions,
        metric=file.metric,
        budget=file.budget,
        max_failures=file.max_failures,
    )
    finish = _searched if file.kind == "search" else _ablated
    sweep = finish(resolved, file, made, problems)
    if problems or data_model is None or resources is None:
        raise SpecError(str(path), problems)
    return sweep


# So many combinations of a space are tried before a search; of a larger one, any two values together.
CORNERS = 2000

Make = Callable[[str, Mapping[str, Any], list[str]], Variant | None]


def _ablated(sweep: Sweep, file: SweepFile, made: Make, problems: list[str]) -> Sweep:
    """The sweep with every variant that is listed and allowed; adds what is wrong to `problems`."""
    variants: list[Variant] = []
    left_out: list[str] = []
    for name, varied, is_baseline in _rows(file):
        told: list[str] = []
        variant = made(name, varied, told)
        if variant is not None:
            variants.append(replace(variant, baseline=is_baseline, varied=dict(varied)))
        elif all(problem.startswith(BREAKS) for problem in told):
            left_out.append(name)
            if is_baseline:
                problems.append(f"baseline {name!r} {told[0]}")
        else:
            problems += told
    twins: dict[str, str] = {}
    for variant in variants:
        twin = twins.setdefault(variant.config.id, variant.label)
        if twin != variant.label:
            problems.append(f"variants {twin!r} and {variant.label!r} differ in nothing")
    if not problems and not any(variant.baseline for variant in variants):
        problems.append(_no_baseline(file))
    return replace(sweep, variants=tuple(variants), left_out=tuple(left_out))


def _searched(sweep: Sweep, file: SweepFile, made: Make, problems: list[str]) -> Sweep:
    """The sweep with its space, and its baseline as the first variant; adds what is wrong to `problems`."""
    space = make_space(file.space)
    baseline = flat(file.baseline) if isinstance(file.baseline, Mapping) else {}
    problems += [f"baseline: {problem}" for problem in space.wrong(baseline)]
    if problems:
        return sweep
    first = made(label(baseline), baseline, problems)
    whole = space.corners(CORNERS)
    tried = space.pairs(baseline) if whole is None else whole
    corners = _tried(space, tried, made, problems)
    if whole is not None:
        problems += [
            f"space: {key!r} never applies: its conditions ({axis.told()}) exclude each other"
            for key, axis in space.axes.items()
            if not any(key in values for values in whole)
        ]
    if first is None or problems:
        return sweep
    first = replace(first, baseline=True)

    def resolve(values: dict[str, Any]) -> Variant:
        told: list[str] = []
        variant = made(label(values), values, told)
        if variant is None:
            raise SpecError(label(values), told)
        return first if variant.config.id == first.config.id else variant

    settings = file.search.model_dump(mode="json", exclude={"variants", "warm_start"})
    shared = {
        key: value
        for key, value in flat(first.config.model_dump(mode="json")).items()
        if key not in file.space and not (key.startswith("loss.") and "loss.name" in file.space)
    }
    axes = {key: axis.model_dump(mode="json") for key, axis in file.space.items()}
    return replace(
        sweep,
        variants=(first,),
        stage="search",
        search=SearchPlan(space, file.search, resolve, corners, whole is None),
        judge_seeds=file.judge_seeds,
        identity=content_id([shared, axes, settings, list(file.constraints)]),
    )


def _tried(space: Space, rows: list[dict[str, Any]], made: Make, problems: list[str]) -> tuple[Variant, ...]:
    """The variants of these values. What is wrong goes to `problems`, each thing once, with the values that all
    combinations share for which it is so: those are its cause."""
    variants, wrong = [], dict[str, list[dict[str, Any]]]()
    for values in rows:
        told: list[str] = []
        variant = made(label(values), values, told)
        if variant is not None:
            variants.append(variant)
        for problem in told:
            if not problem.startswith(BREAKS):
                wrong.setdefault(problem, []).append(values)
    for problem, of in wrong.items():
        shared = {
            key: value
            for key, value in of[0].items()
            if len(space.axes[key].examples) > 1 and all(key in row and row[key] == value for row in of)
        }
        problems.append(f"{label(shared)}: {problem}" if shared else f"space: {problem}")
    return tuple(variants)


def _rows(file: SweepFile) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Label, varied keys and whether it is the baseline, of every variant in the order of the file."""
    if file.variants:
        for name, keys in file.variants.items():
            yield name, flat(keys), name == file.baseline
        return
    baseline = flat(file.baseline) if isinstance(file.baseline, Mapping) else None
    for values in itertools.product(*file.vary.values()):
        varied = dict(zip(file.vary, values, strict=True))
        apart = sum(varied[key] != value for key, value in (baseline or {}).items() if key in varied)
        if file.design == "grid" or apart <= 1:
            yield label(varied), varied, varied == baseline


def _no_baseline(file: SweepFile) -> str:
    if file.variants:
        return f"baseline {file.baseline!r} is not among the variants: {', '.join(file.variants)}" + did_you_mean(
            str(file.baseline), file.variants
        )
    options = ", ".join(f"{key}: {list(values)}" for key, values in file.vary.items())
    return f"baseline {file.baseline!r} is not among the variants; choose one value of each of {options}"


def label(varied: Mapping[str, Any]) -> str:
    """What a person reads: the last part of each varied key and its value."""
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={_shown(value)}" for key, value in varied.items())


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | list | dict) else str(value)


def _load_preset(name: str) -> Preset:
    available = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in available:
        raise SpecError(f"preset {name!r}", [f"is not one of: {', '.join(available)}{did_you_mean(name, available)}"])
    return _validate(Preset, _read_yaml(PRESETS / f"{name}.yaml"))


def _parse_settings(text: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Settings by what they set (config, data, resources, search, budget), and what could not be read."""
    parts: dict[str, dict[str, Any]] = {"config": {}, "data": {}, "resources": {}, "search": {}, "budget": {}}
    problems = []
    try:
        words = shlex.split(text)
    except ValueError as error:
        return parts, [f"SET {text!r} cannot be split into key=value pairs: {error}"]
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            problems.append(f"SET {word!r} is not of the form key=value, for example train.epochs=4")
            continue
        root, _, rest = key.partition(".")
        target, name = (parts[root], rest) if root in parts and root != "config" and rest else (parts["config"], key)
        if name in target:
            problems.append(f"SET gives {key!r} twice")
        try:
            target[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            problems.append(f"SET {key!r}: the value {value!r} cannot be read")
    return parts, problems


def _with_settings(file: SweepFile, given: Mapping[str, Mapping[str, Any]], problems: list[str]) -> SweepFile:
    """The file with the settings for its search and its budget."""
    changed: dict[str, Any] = {}
    if given["search"]:
        if file.kind != "search":
            problems.append(f"SET gives {'search.' + next(iter(given['search']))!r}, and the sweep is no search")
            return file
        own = file.search.model_dump(mode="json")
        stop = {key.removeprefix("stop."): value for key, value in given["search"].items() if key.startswith("stop.")}
        if stop:
            own["stop"] = stop if "rule" in stop else own["stop"] | stop
        own |= {key: value for key, value in given["search"].items() if not key.startswith("stop.")}
        changed["search"] = _checked(SearchSettings, own, "search.", problems)
    if given["budget"]:
        own = file.budget.model_dump(mode="json") | dict(given["budget"])
        changed["budget"] = _checked(Budget, own, "budget.", problems)
    return file.model_copy(update={key: value for key, value in changed.items() if value is not None})


BREAKS = "breaks the constraint"


def _constraints(file: SweepFile, problems: list[str]) -> list[tuple[str, Callable[[Config], bool]]]:
    """Each constraint and its test; what cannot be read goes to `problems`."""
    columns = list(dict.fromkeys(key for loss in loss_names() for key in config_keys(loss)))
    tests: list[tuple[str, Callable[[Config], bool]]] = []
    for text in file.constraints:
        try:
            test = parse_where(text, columns)
        except ValueError as error:
            problems.append(f"constraint {text!r}: {str(error).removeprefix('where: ')}")
            continue

        def holds(config: Config, test: Callable[[Mapping[str, str]], bool] = test) -> bool:
            # A number that is none compares false with everything, which is what an absent key shall do.
            row = dict.fromkeys(columns, "nan")
            for key, value in flat(config.model_dump(mode="json")).items():
                row[key] = value if isinstance(value, str) else json.dumps(value)
            return test(row)

        tests.append((text, holds))
    return tests


def _structure_problems(file: SweepFile, settings: Mapping[str, Any]) -> Iterator[str]:
    if file.kind == "ablation":
        if bool(file.vary) == bool(file.variants):
            yield "a sweep needs either `vary` (listed values, full grid) or `variants` (named ones)"
        if file.design == "one_at_a_time" and not file.vary:
            yield "design: one_at_a_time belongs to `vary`"
        for name in ("space", "search", "locked", "judge_seeds"):
            if name in file.model_fields_set:
                yield f"{name!r} belongs to kind: search"
    else:
        yield from _search_problems(file, settings)
    for name, keys in file.variants.items():
        for key in settings:
            if key in flat(keys):
                yield f"SET gives {key!r}, which variant {name!r} sets"
    for key in settings:
        if key in file.vary:
            yield f"SET gives {key!r}, which the sweep varies over {list(file.vary[key])}"
        if key in file.space:
            yield f"SET gives {key!r}, which the search varies over {file.space[key].told()}"
    for key in [*file.vary, *file.space, *(key for keys in file.variants.values() for key in flat(keys))]:
        if key.split(".")[0] == "folds":
            yield f"{key!r} would give variants different folds, and nothing could be compared on the same cells"
    for key, values in file.vary.items():
        repeated = [value for index, value in enumerate(values) if value in values[:index]]
        if repeated:
            yield f"vary: {key!r} lists {repeated[0]!r} twice"
    for name, values in (
        ("seeds", file.seeds),
        ("partitions", file.partitions),
        ("locked", file.locked),
        ("judge_seeds", file.judge_seeds),
    ):
        if len(set(values)) != len(values):
            yield f"{name}: {list(values)} has a value twice"


# What a search may be after: never something of the test cells.
OBJECTIVES = (
    schema.BEST_VAL_F1,
    schema.BEST_LENGTH,
    schema.BEST_EPOCH,
    schema.EPOCHS_RUN,
    schema.SECONDS,
)


def _search_problems(file: SweepFile, settings: Mapping[str, Any]) -> Iterator[str]:
    if not file.space:
        yield "a search needs `space`, the keys it may set and their values"
    for name in ("vary", "variants", "design"):
        if name in file.model_fields_set:
            yield f"{name!r} belongs to kind: ablation"
    if not isinstance(file.baseline, Mapping):
        yield f"the baseline of a search is a value for each key of its space, not {file.baseline!r}"
    if not file.locked:
        yield (
            "a search needs `locked`, regions or patients that it never sees, e.g. locked: [patient=P1, patient=P4]: "
            "its winner, tested on the folds that chose it, would look better than it is"
        )
    for where, keys in (("the base of a search sets", flat(file.base)), ("SET gives", settings)):
        for key in ("folds.holdout", "folds.tested"):
            if key in keys:
                yield f"{where} {key}, which a search sets by itself; name the groups under `locked`"
    known = list(dict.fromkeys(key for loss in loss_names() for key in config_keys(loss)))
    for key in file.space:
        if key not in known:
            yield f"space: unknown key {key!r}{did_you_mean(key, known)}"
    yield from space_problems(file.space)
    metrics = [objective.metric for objective in file.search.objectives]
    if repeated := [metric for at, metric in enumerate(metrics) if metric in metrics[:at]]:
        yield f"search.objectives: {repeated[0]!r} stands twice"
    for objective in file.search.objectives:
        if objective.metric not in OBJECTIVES:
            yield (
                f"search.objectives: {objective.metric!r} is not one of {', '.join(OBJECTIVES)}"
                f"{did_you_mean(objective.metric, OBJECTIVES)}"
            )


def _config(
    preset: Preset,
    base: Mapping[str, Any],
    settings: Mapping[str, Any],
    varied: Mapping[str, Any],
    problems: list[str],
) -> Config | None:
    merged = {**flat(preset.config), **base, **settings, **flat(varied)}
    defaults = preset.loss_defaults.get(str(merged.get("loss.name", "guide2d")), {})
    merged = {**{f"loss.{key}": value for key, value in defaults.items()}, **merged}
    name = str(merged.setdefault("loss.name", "guide2d"))
    known = config_keys(name)
    if not known:
        problems.append(
            f"loss.name: {name!r} is not one of {', '.join(loss_names())}{did_you_mean(name, loss_names())}"
        )
        return None
    for key in merged.keys() - set(known):
        elsewhere = [loss for loss in loss_names() if key in config_keys(loss)]
        if elsewhere:
            problems.append(f"{key!r} is an option of loss {', '.join(elsewhere)}, not of {name}")
        else:
            problems.append(f"unknown key {key!r}{did_you_mean(key, known)}")
    weights = merged.get("backbone.weights", "none")
    if weights not in ("none", "torchvision") and isinstance(weights, str):
        merged["backbone.weights"] = str(Path(weights).absolute())  # Tune's workers stand in folders of their own
    return _checked(Config, nested({key: merged[key] for key in merged if key in known}), "", problems)


def _checked(model: type[Any], values: Mapping[str, Any], prefix: str, problems: list[str]) -> Any | None:
    """The model of `values`, or None after adding what is wrong to `problems`."""
    unknown = [key for key in values if key not in model.model_fields]
    for key in unknown:
        problems.append(
            f"unknown key {prefix + key!r}{did_you_mean(prefix + key, [prefix + f for f in model.model_fields])}"
        )
    try:
        return _validate(model, {key: value for key, value in values.items() if key not in unknown})
    except ValidationError as error:
        problems += [_told(entry, prefix) for entry in error.errors()]
        return None


def _validate(model: type[Any], values: Mapping[str, Any]) -> Any:
    # Through JSON, where strictness still takes a list for a tuple. NaN would not survive; it is refused here.
    try:
        text = json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpecError(model.__name__, [f"values must be numbers, texts, lists or mappings: {error}"]) from None
    return TypeAdapter(model).validate_json(text)


def _told(error: Any, prefix: str = "") -> str:
    # The tag of a discriminated union stands in the location; it is no key a person wrote. (Only there: `distance` is
    # the name of a loss and of an option.)
    place = [str(part) for part in error["loc"]]
    if place[:1] == ["loss"]:
        del place[1:2]
    given = "" if error["type"] == "missing" else f" (given: {error['input']!r})"
    where = f"{prefix}{'.'.join(place)}" if place else prefix.removesuffix(".")
    return f"{where}: {error['msg'].lower()}{given}"


# --- keys -----------------------------------------------------------------------------------------------------------


def loss_names() -> list[str]:
    """Names of the losses a configuration may choose."""
    return [model.model_fields["name"].default for model in _loss_models()]


def _loss_models() -> list[type[BaseModel]]:
    return list(_models(Config.model_fields["loss"].annotation))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _models(part)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def config_keys(loss: str) -> list[str]:
    """Dotted keys of a configuration with that loss; empty for an unknown loss."""
    chosen = [model for model in _loss_models() if model.model_fields["name"].default == loss]
    if not chosen:
        return []
    keys: list[str] = []
    for name, info in Config.model_fields.items():
        model = chosen[0] if name == "loss" else next(_models(info.annotation))
        keys += [f"{name}.{key}" for key in model.model_fields]
    return keys


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} and {"a.b": 1} alike become {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flat` for keys of two parts."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        result.setdefault(section, {})[name] = value
    return result


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """The end of a refusal: the nearest of `options`, or nothing where none is near."""
    near = get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
