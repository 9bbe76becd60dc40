"""A real MLflow server for tests, in processes that can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


class Server:
    """An MLflow server of its own port and folder, in a process group of its own."""

    def __init__(self, uri: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        options = {"--backend-store-uri": uri, "--artifacts-destination": str(folder / "files"), "--workers": "1"}
        options |= {"--host": "127.0.0.1", "--port": str(self._port)}
        words = [word for option in options.items() for word in option]
        self._command = [sys.executable, "-m", "mlflow", "server", *words]
        self._folder = folder

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self._folder,
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)
            except OSError:
                assert self._process.poll() is None, "the server did not start"
                time.sleep(0.5)
            else:
                return
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
