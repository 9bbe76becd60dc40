"""A sweep: its file, its preset and the command line, resolved into variants; every error of a sweep told at once."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from guided.config import Config, Data, Strict, content_id
from guided.strict_yaml import read_yaml

HERE = Path(__file__).parent
PRESETS = HERE / "presets"


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


class SweepFile(Strict):
    """A sweep file (sweeps/*.yaml)."""

    question: str
    kind: Literal["ablation"]
    base: dict[str, Any] = Field(default_factory=dict)  # configuration keys, dotted or nested
    # Either `vary`, the full grid of the listed values, or `variants`, a name and its own keys for each.
    vary: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    baseline: dict[str, Any] | str  # one value for each varied key, or the name of a variant
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
class Sweep:
    """A resolved sweep: what will be trained, on which data, with what."""

    name: str
    question: str
    preset: str
    data: Data
    resources: Resources
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    partitions: tuple[int, ...]
    metric: str

    @property
    def base_id(self) -> str:
        """What all variants share, hashed: the baseline's configuration without the varied keys."""
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
    raise SpecError(
        f"sweep {name!r}", [f"is neither a file nor one of: {', '.join(known)}{_did_you_mean(name, known)}"]
    )


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
    raw = _read_yaml(path)
    problems = [
        f"unknown key {str(key)!r}{_did_you_mean(str(key), SweepFile.model_fields)}"
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
    own, data_set, resource_set, set_problems = _parse_settings(settings)
    problems += set_problems
    problems += _structure_problems(file, own)
    data_values = {**chosen.data, **data_set, **(data or {})}
    resources_values = {**chosen.resources, **resource_set}
    data_model = _checked(Data, data_values, "data.", problems)
    resources = _checked(Resources, resources_values, "resources.", problems)

    variants: list[Variant] = []
    for name, varied, is_baseline in _rows(file):
        config = _config(chosen, flat(file.base), own, varied, problems)
        if config is not None:
            variants.append(Variant(name, config, varied, is_baseline))
    twins: dict[str, str] = {}
    for variant in variants:
        twin = twins.setdefault(variant.config.id, variant.label)
        if twin != variant.label:
            problems.append(f"variants {twin!r} and {variant.label!r} differ in nothing")
    if not problems and not any(variant.baseline for variant in variants):
        problems.append(_no_baseline(file))
    if problems or data_model is None or resources is None:
        raise SpecError(str(path), problems)
    return Sweep(
        name=path.stem,
        question=file.question,
        preset=preset,
        data=data_model,
        resources=resources,
        variants=tuple(variants),
        seeds=file.seeds,
        partitions=file.partitions,
        metric=file.metric,
    )


def _rows(file: SweepFile) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Label, varied keys and whether it is the baseline, of every variant in the order of the file."""
    if file.variants:
        for name, keys in file.variants.items():
            yield name, flat(keys), name == file.baseline
        return
    baseline = flat(file.baseline) if isinstance(file.baseline, Mapping) else None
    for values in itertools.product(*file.vary.values()):
        varied = dict(zip(file.vary, values, strict=True))
        yield label(varied), varied, varied == baseline


def _no_baseline(file: SweepFile) -> str:
    if file.variants:
        return f"baseline {file.baseline!r} is not among the variants: {', '.join(file.variants)}" + _did_you_mean(
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
        raise SpecError(f"preset {name!r}", [f"is not one of: {', '.join(available)}{_did_you_mean(name, available)}"])
    return _validate(Preset, _read_yaml(PRESETS / f"{name}.yaml"))


def _parse_settings(text: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[str]]:
    """Settings for the configuration, the data and the resources, and what could not be read."""
    parts: dict[str, dict[str, Any]] = {"config": {}, "data": {}, "resources": {}}
    problems = []
    try:
        words = shlex.split(text)
    except ValueError as error:
        return {}, {}, {}, [f"SET {text!r} cannot be split into key=value pairs: {error}"]
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            problems.append(f"SET {word!r} is not of the form key=value, for example train.epochs=4")
            continue
        root, _, rest = key.partition(".")
        target, name = (parts[root], rest) if root in ("data", "resources") and rest else (parts["config"], key)
        if name in target:
            problems.append(f"SET gives {key!r} twice")
        try:
            target[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            problems.append(f"SET {key!r}: the value {value!r} cannot be read")
    return parts["config"], parts["data"], parts["resources"], problems


def _structure_problems(file: SweepFile, settings: Mapping[str, Any]) -> Iterator[str]:
    if bool(file.vary) == bool(file.variants):
        yield "a sweep needs either `vary` (listed values, full grid) or `variants` (named ones)"
    for name, keys in file.variants.items():
        for key in settings:
            if key in flat(keys):
                yield f"SET gives {key!r}, which variant {name!r} sets"
    for key in settings:
        if key in file.vary:
            yield f"SET gives {key!r}, which the sweep varies over {list(file.vary[key])}"
    for key in [*file.vary, *(key for keys in file.variants.values() for key in flat(keys))]:
        if key.split(".")[0] == "folds":
            yield f"{key!r} would give variants different folds, and nothing could be compared on the same cells"
    for key, values in file.vary.items():
        repeated = [value for index, value in enumerate(values) if value in values[:index]]
        if repeated:
            yield f"vary: {key!r} lists {repeated[0]!r} twice"
    for name, values in (("seeds", file.seeds), ("partitions", file.partitions)):
        if len(set(values)) != len(values):
            yield f"{name}: {list(values)} has a value twice"


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
            f"loss.name: {name!r} is not one of {', '.join(loss_names())}{_did_you_mean(name, loss_names())}"
        )
        return None
    for key in merged.keys() - set(known):
        elsewhere = [loss for loss in loss_names() if key in config_keys(loss)]
        if elsewhere:
            problems.append(f"{key!r} is an option of loss {', '.join(elsewhere)}, not of {name}")
        else:
            problems.append(f"unknown key {key!r}{_did_you_mean(key, known)}")
    weights = merged.get("backbone.weights", "none")
    if weights not in ("none", "torchvision") and isinstance(weights, str):
        merged["backbone.weights"] = str(Path(weights).absolute())  # Tune's workers stand in folders of their own
    return _checked(Config, nested({key: merged[key] for key in merged if key in known}), "", problems)


def _checked(model: type[Any], values: Mapping[str, Any], prefix: str, problems: list[str]) -> Any | None:
    """The model of `values`, or None after adding what is wrong to `problems`."""
    unknown = [key for key in values if key not in model.model_fields]
    for key in unknown:
        problems.append(
            f"unknown key {prefix + key!r}{_did_you_mean(prefix + key, [prefix + f for f in model.model_fields])}"
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
    if place[0] == "loss":
        del place[1:2]
    given = "" if error["type"] == "missing" else f" (given: {error['input']!r})"
    return f"{prefix}{'.'.join(place)}: {error['msg'].lower()}{given}"


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


def _did_you_mean(word: str, options: Iterable[str]) -> str:
    near = get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
