"""Measure how long the app takes to start and for one face, against the command line, and how much memory, in one run.

    python benchmarks/serving.py [PHOTO]

The app's time runs from sending the photo until its results can be fetched; to fetch them, `gradio_client` takes 0.1 s more for
each of three files.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gradio_client import Client, handle_file

ROOT = Path(__file__).parents[1]
RUNS = 8


def main(photo: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"GRADIO_SERVER_PORT": port, "GRADIO_TEMP_DIR": folder}
        started = time.monotonic()
        with subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as app:
            next(line for line in app.stdout if "Running on" in line)
            print(f"app: up after {time.monotonic() - started:.1f} s")
            client, seconds = Client(f"http://127.0.0.1:{port}", verbose=False, download_files=False), []
            for _ in range(1 + RUNS):
                started = time.monotonic()
                client.predict(photo=handle_file(photo), seed=0, api_name="/anonymize")
                seconds.append(time.monotonic() - started)
            peak = next(line for line in Path(f"/proc/{app.pid}/status").read_text().splitlines() if "VmHWM" in line)
            app.terminate()
        by_app = statistics.median(seconds[1:])
        memory = int(peak.split()[1]) / 2**20
        print(f"app: first face {seconds[0]:.2f} s, then {by_app:.2f} s (median of {RUNS}), peak {memory:.2f} GiB")

        for number in range(1 + RUNS):
            shutil.copy(photo, Path(folder, f"{number:02}{photo.suffix}"))
        command = [sys.executable, "-m", "diffdeid", "anonymize", folder, "-o", f"{folder}/out", "--seed", "0", "--json"]
        lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        by_command = statistics.median(json.loads(line)["seconds"] for line in lines[1:])
    print(
        f"command line: {by_command:.2f} s; the app takes {by_app - by_command:+.2f} s, {by_app / by_command:.2f} times as long"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/assets/astronaut.png")
