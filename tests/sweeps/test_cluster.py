"""A sweep on a real Ray cluster on this machine: nodes that the autoscaler brings and lets go, and nodes that die."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import environment, executions
from test_engine import SETTINGS, command, records_of, sweep_file, wait_for

HEAD_ID = "f" * 51 + "00000"  # where Ray's fake node provider expects the head
WORKERS = 3


def processes(folder: Path, name: str) -> list[psutil.Process]:
    """Those of the cluster in `folder`, known by its path on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words and Path(words[0]).name.startswith(name) and any(str(folder) in word for word in words):
            found.append(process)
    return found


def training(folder: Path, head: psutil.Process) -> list[psutil.Process]:
    """Nodes on which a fold run is under way."""
    found = []
    for node in processes(folder, "raylet"):
        if node.pid != head.pid:
            words = [part for child in node.children(recursive=True) for part in child.cmdline()]
            found += [node] if any("ray::ResourceTrainable.train" in word for word in words) else []
    return found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and folder of a head without CPUs, whose autoscaler may bring three nodes of one CPU."""
    folder = Path(tempfile.mkdtemp(prefix="ry-"))  # short: sockets have 107 characters
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config: dict[str, Any] = {
        "cluster_name": "here",
        "max_workers": WORKERS,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 100,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": WORKERS},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{key: [] for key in ("initialization_commands", "cluster_synced_files")},
        **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }
    (folder / "cluster.json").write_text(json.dumps(config))
    env = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "disabled",
        "SWEEPS_NODE_CACHE": str(tmp_path / "node"),
        "PYTHONPATH": environment(tmp_path / "log")["PYTHONPATH"].split(":")[0],  # our code comes with the driver
    }
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    options = [f"--port={port}", f"--temp-dir={folder}", f"--autoscaling-config={folder / 'cluster.json'}"]
    options += ["--num-cpus=0", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    options += ["--object-store-memory=80000000"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen([*ray, *options], stdout=log, stderr=subprocess.STDOUT, env=env, cwd=folder)
    try:
        wait_for(lambda: processes(folder, "raylet"), 60, "the head")
        yield f"127.0.0.1:{port}", folder
    finally:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        family += [process for name in ("raylet", "gcs_server", "python", "ray") for process in processes(folder, name)]
        for process in family:
            if process.is_running():
                process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_the_autoscaler_brings_nodes_one_dies_and_all_go(cluster: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = cluster
    log, out = tmp_path / "log", tmp_path / "out"
    env = environment(log) | {
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "disabled",
        "SWEEPS_CLUSTER": str(folder / "cluster.json"),
    }
    (head,) = processes(folder, "raylet")
    most, over = [1], threading.Event()

    def count() -> None:
        while not over.wait(0.5):
            most.append(len(processes(folder, "raylet")))

    counter = threading.Thread(target=count)
    counter.start()
    driver = subprocess.Popen(
        command(
            sweep_file(tmp_path),
            out,
            "--no-mlflow",
            settings=SETTINGS.replace("epochs=4", "epochs=24 train.patience=24"),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
    )
    try:
        wait_for(lambda: len(executions(log)) >= 8 or driver.poll() is not None, 240, "some epochs on nodes that came")
        assert driver.poll() is None, driver.communicate()[0]
        wait_for(lambda: training(folder, head), 60, "a node with a fold run under way")
        node = training(folder, head)[0]
        for process in [*node.children(recursive=True), node]:
            process.kill()
        printed, _ = driver.communicate(timeout=300)
    finally:
        if driver.poll() is None:
            driver.kill()
        over.set()
        counter.join()
    assert driver.returncode == 0, printed
    wait_for(lambda: len(processes(folder, "raylet")) == 1, 120, "the nodes to go")
    assert most[0] == 1 and max(most) >= WORKERS, most
    records = records_of(out)
    assert len(records) == 6 and {record.status for record in records.values()} == {"finished"}
    counted = Counter(executions(log))
    assert len(counted) == 6 * 24
    # The node that died took one fold run with it: its epoch under way was begun twice, nothing else was.
    assert counted.total() - len(counted) <= 1
    assert sorted(len(record.details["attempts"]) for record in records.values())[-1] == 2
    copies = [path for path in (tmp_path / "node").iterdir() if path.is_dir()]
    assert len(copies) == 1 and copies[0].name in {path.name for path in (out / "cache").iterdir()}
