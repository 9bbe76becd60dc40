"""Where fold runs run: this machine or a Ray cluster, whether it can hold one, how code and data reach its nodes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

# Read by Ray when it is imported or started.
os.environ.setdefault("RAY_AUTH_MODE", "disabled" if "RAY_ADDRESS" not in os.environ else "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming behaviour; else Ray warns at every start

import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from guided.data import Dataset
from sweeps.spec import Resources
from sweeps.study import Study

PACKAGES = ("guided", "sweeps", "analysis")
CLUSTER_FILE = "SWEEPS_CLUSTER"  # the cluster file (launcher or KubeRay), where workers start from none
NODE_DATA = "SWEEPS_NODE_DATA"  # set on the workers of a cluster: read a copy of the data on the node's own disk
NODE_CACHE = "SWEEPS_NODE_CACHE"  # where such copies go; default: a folder of this user in the temporary directory


@dataclass(frozen=True)
class Place:
    """A Ray that fold runs fit into."""

    workers: int  # fold runs at a time, those included that wait for a node to come
    nodes: int  # that are there or that the autoscaler may bring


def start_ray(study: Study, uri: str | None) -> Place:
    """Connect to RAY_ADDRESS, or start Ray on this machine.

    Raises ValueError where a fold run could never start (Tune would wait for ever), where OUT is not the same folder
    on every node, and for an SQLite store on several nodes.
    """
    resources = study.sweep.resources
    _check_resources(resources)
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {
            "num_cpus": max(len(os.sched_getaffinity(0)), 1),
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20,  # images go by memory map, nothing large by Ray
        }
    elif address.startswith("ray://"):
        raise ValueError(
            f"RAY_ADDRESS={address} is a Ray Client address; the driver writes into OUT and must run on a node that "
            "sees it: submit the same command as a job (`ray job submit`), or run it on the head with RAY_ADDRESS=auto"
        )
    else:
        root = Path(__file__).parent.parent
        options["runtime_env"] = {
            # The checkout's code, whatever the image holds; dependencies come with the image.
            "py_modules": [str(root / name) for name in PACKAGES],
            "env_vars": {NODE_DATA: "1"},
        }
    ray.init(**options)
    alive = [node for node in ray.nodes() if node["Alive"]]
    types = _node_types()
    place = Place(_fold_runs(alive, types, resources), max(len(alive), 1 + sum(count for _, count in types)))
    if place.nodes > 1:
        if uri is not None and uri.startswith("sqlite:"):
            raise ValueError(
                f"{uri} is an SQLite store, and this cluster has or may have {place.nodes} nodes: SQLite locks through "
                "the file system, which shared ones do not do reliably, and the store would be lost with its node; "
                "start an MLflow server and set MLFLOW_TRACKING_URI (sweeps/cluster/mlflow.yaml), or run with "
                "--no-mlflow and project the records later"
            )
        _check_shared(study.out, alive)
    return place


def _check_resources(resources: Resources) -> None:
    if resources.device == "cuda" and resources.gpus == 0:
        raise ValueError(
            "resources.device is cuda and resources.gpus is 0: Ray would give a fold run no GPU; "
            'SET="resources.gpus=1", or a share of one such as 0.25'
        )
    if resources.gpus > 1 and resources.gpus != int(resources.gpus):
        raise ValueError(f"resources.gpus is {resources.gpus:g}: above 1 Ray gives whole GPUs only")


def _node_types() -> list[tuple[Mapping[str, float], int]]:
    """Resources and largest number of nodes of each type that the autoscaler may bring, the head apart.

    Ray tells nobody what its autoscaler could bring; its cluster file does. Raises ValueError naming that file where it
    is none.
    """
    named = os.environ.get(CLUSTER_FILE)
    path = Path(named) if named else Path.home() / "ray_bootstrap_config.yaml"  # where `ray up` puts it on the head
    if "RAY_ADDRESS" not in os.environ or (named is None and not path.exists()):
        return []
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if content.get("kind") == "RayJob":
            content = {**content, "kind": "RayCluster", "spec": content["spec"]["rayClusterSpec"]}
        if content.get("kind") == "RayCluster":
            content = _derive_autoscaling_config_from_ray_cr(content)
        types: dict[str, Any] = content["available_node_types"]
        return [
            (kind["resources"], int(kind.get("max_workers", content.get("max_workers", 0))))
            for name, kind in types.items()
            if name != content["head_node_type"]
        ]
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no cluster file with available_node_types ({error}); see {CLUSTER_FILE}") from None


def _fold_runs(alive: list[dict[str, Any]], types: list[tuple[Mapping[str, float], int]], resources: Resources) -> int:
    """How many fold runs fit at a time. Raises ValueError where no node, present or to come, can hold one."""
    present = [_fits(node["Resources"], resources) for node in alive]
    to_come = [_fits(kind, resources) * count for kind, count in types]
    if not any(present) and not any(to_come):
        kinds = [node["Resources"] for node in alive] + [kind for kind, _ in types]
        found = "; ".join(f"{kind.get('CPU', 0):g} CPUs, {kind.get('GPU', 0):g} GPUs" for kind in kinds)
        raise ValueError(
            f"a fold run asks for {resources.cpus} CPUs and {resources.gpus:g} GPUs, and no node has them "
            f"(found: {found}); "
            'choose another preset, or SET="resources.cpus=… resources.gpus=… resources.device=cpu"'
            + (
                f"; if nodes are to come, name the cluster file in {CLUSTER_FILE}"
                if "RAY_ADDRESS" in os.environ
                else ""
            )
        )
    fit = max(sum(present), sum(to_come))
    return min(fit, resources.workers or fit)


def _fits(node: Mapping[str, float], resources: Resources) -> int:
    cpus = int(node.get("CPU", 0) // resources.cpus)
    if not resources.gpus:
        return cpus
    gpus = node.get("GPU", 0)
    # Ray gives a share of one GPU, never of two: 0.4 fits twice on each.
    by_gpu = gpus // resources.gpus if resources.gpus >= 1 else gpus * (1 // resources.gpus)
    return min(cpus, int(by_gpu))


def _check_shared(out: Path, alive: list[dict[str, Any]]) -> None:
    """Raises ValueError naming the nodes that do not see this very OUT."""
    token = out / f".shared-{uuid4().hex[:12]}"
    token.write_text("")
    try:
        look = ray.remote(num_cpus=0)(os.path.exists)
        answers = {
            node["NodeManagerHostname"]: look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(token))
            for node in alive
        }
        blind = [name for name, answer in answers.items() if not ray.get(answer)]
    finally:
        token.unlink()
    if blind:
        raise ValueError(
            f"OUT {out} is not the same folder on every node ({', '.join(blind)} does not see it); put it on storage "
            "that all of them mount"
        )


def node_copy(directory: Path) -> Path:
    """A copy of a data cache on this node's own disk, made once per node and verified pixel by pixel.

    Workers that come while it is made wait for it. Raises ValueError naming the folder where it cannot be made.
    """
    root = Path(os.environ.get(NODE_CACHE) or Path(tempfile.gettempdir()) / f"guided-cache-{os.getuid()}")
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if root.stat().st_uid != os.getuid():
        raise ValueError(f"{root} belongs to another user; set {NODE_CACHE} to a folder of your own on every node")
    target = root / directory.name
    with (root / f"{directory.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        needed = sum(path.stat().st_size for path in directory.iterdir())
        free = shutil.disk_usage(root).free
        if needed > free:
            raise ValueError(
                f"{root} has {free / 1e9:.2f} GB free and the data need {needed / 1e9:.2f} GB; "
                f"set {NODE_CACHE} to a larger disk of the node"
            )
        scratch = root / f".copying-{uuid4().hex[:12]}"
        try:
            shutil.copytree(directory, scratch)
            Dataset.open(scratch, verify=True)
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target
