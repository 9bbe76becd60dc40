"""The cluster files, checked as far as that goes without a cloud: by Ray's validators and against each other."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

import sweeps

FOLDER = Path(sweeps.__file__).parent / "cluster"
LOCK = (Path(sweeps.__file__).parent.parent / "requirements.lock").read_text()
LAUNCHER = ("aws", "gcp", "on_premises")


def read(name: str) -> dict[str, Any]:
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert isinstance(content, dict)
    return content


def ray_cluster(name: str) -> dict[str, Any]:
    """The RayCluster of a KubeRay file."""
    content = read(name)
    return (
        content
        if name == "raycluster"
        else {"metadata": content["metadata"], "spec": content["spec"]["rayClusterSpec"]}
    )


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_takes_the_file(name: str) -> None:
    validate_config(prepare_config(read(name)))


def test_the_launcher_would_refuse_a_wrong_file() -> None:
    content = read("aws")
    content["available_node_types"]["gpu_spot"]["max_worker"] = 8
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(content))


@pytest.mark.parametrize("name", ("aws", "gcp"))
def test_workers_come_from_zero_on_spot_and_the_head_trains_nothing(name: str) -> None:
    content = prepare_config(read(name))
    head, worker = content["available_node_types"]["head"], content["available_node_types"]["gpu_spot"]
    assert content["head_node_type"] == "head" and head["resources"] == {"CPU": 0}
    assert worker["min_workers"] == 0 and worker["max_workers"] == content["max_workers"] == 8
    assert worker["resources"]["GPU"] == 1
    spot = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}[name]
    assert "spot" in str(worker["node_config"][spot]).lower() and spot not in head["node_config"]


@pytest.mark.parametrize("name", LAUNCHER)
def test_nodes_of_the_launcher_share_a_token_and_a_folder(name: str) -> None:
    content = read(name)
    assert "~/.ray/auth_token" in content["file_mounts"].values()
    assert "RAY_AUTH_MODE=token" in str(content)
    assert "/mnt/out" in str(content.get("docker", content.get("setup_commands")))


@pytest.mark.parametrize("name", ("raycluster", "rayjob"))
def test_kuberay_reads_the_node_types(name: str) -> None:
    types = _derive_autoscaling_config_from_ray_cr(ray_cluster(name))["available_node_types"]
    worker = types["gpu-spot"]
    assert (worker["min_workers"], worker["max_workers"]) == (0, 8)
    assert (worker["resources"]["CPU"], worker["resources"]["GPU"]) == (8, 1)
    (head,) = [kind for kind_name, kind in types.items() if kind_name != "gpu-spot"]
    assert head["resources"]["CPU"] == 0 and "GPU" not in head["resources"]


@pytest.mark.parametrize("name", ("raycluster", "rayjob"))
def test_pods_share_a_token_an_image_and_a_folder(name: str) -> None:
    spec = ray_cluster(name)["spec"]
    assert spec["authOptions"] == {"mode": "token"} and spec["enableInTreeAutoscaling"] is True
    claim = read("storage")
    pods = [spec["headGroupSpec"]["template"]["spec"], spec["workerGroupSpecs"][0]["template"]["spec"]]
    images = set()
    for pod in pods:
        (container,) = pod["containers"]
        images.add(container["image"])
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/mnt/out"}
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"} in container["env"]
    assert images == {read("aws")["docker"]["image"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_job_and_the_standing_cluster_are_the_same_cluster() -> None:
    assert ray_cluster("rayjob")["spec"] == ray_cluster("raycluster")["spec"]


def test_the_job_runs_a_command_that_exists() -> None:
    from sweeps.__main__ import parser

    words = read("rayjob")["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "sweeps"]
    given = parser().parse_args(words[3:])
    assert given.out == Path("/mnt/out") and given.preset == "gpu"


def test_versions_agree_with_the_lock() -> None:
    (locked,) = re.findall(r"^ray==(\S+)", LOCK, re.M)
    assert locked == version("ray")
    (base,) = re.findall(r"^FROM rayproject/ray:(\S+)-py311 AS sweeps", (FOLDER / "Dockerfile").read_text(), re.M)
    assert base == locked
    assert {ray_cluster(name)["spec"]["rayVersion"] for name in ("raycluster", "rayjob")} == {locked}


def test_the_mlflow_server_keeps_runs_in_postgres_and_files_in_the_store() -> None:
    services = read("mlflow")["services"]
    server = services["mlflow"]
    assert "--backend-store-uri postgresql://" in server["command"]
    assert (
        "--artifacts-destination s3://mlflow" in server["command"] and "store/mlflow" in services["bucket"]["command"]
    )
    assert server["build"]["target"] == "mlflow" and "AS mlflow" in (FOLDER / "Dockerfile").read_text()
    # No secret stands in the file: compose refuses to start without them.
    told = (FOLDER / "mlflow.yaml").read_text()
    for secret in re.findall(r"PASSWORD\S*: (\S+)", told):
        assert secret.startswith("${"), secret
