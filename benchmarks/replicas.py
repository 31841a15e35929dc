"""Requests to three servers behind nginx, of which one is stopped and one is killed: which of them are lost?

    python benchmarks/replicas.py --requests 60 --clients 8

Starts the servers and nginx of docs/examples/nginx.conf on the loopback. A third of the way the first server gets
SIGTERM and drains, at two thirds the second one SIGKILL. Half of the requests are streamed. Exits with 1 if a request
is lost whose response had not begun, or is interrupted by the server that drains.
"""

import argparse
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[1] / "docs" / "examples" / "nginx.conf"
PORTS, PROXY = (8101, 8102, 8103), 8100


def wait_until_up(port: int, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


def ask(seed: int) -> str:
    """Draw a picture; what came of it."""
    connection = http.client.HTTPConnection("127.0.0.1", PROXY, timeout=150)
    body = json.dumps({"n": 1, "seed": seed, "stream": seed % 2 == 0})
    try:
        connection.request("POST", "/v1/sample", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        return f"lost before its response began: {type(error).__name__}"
    if response.status != 200:
        return f"lost before its response began: status {response.status}"
    try:
        text = response.read().decode()
    except (OSError, http.client.HTTPException):
        text = ""
    if seed % 2:
        return "complete" if text and json.loads(text)["images"] else "interrupted"
    return "complete" if "event: done" in text else "interrupted"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    serve = [sys.executable, "-m", "nextpixel", "serve", "--quiet", "--threads", "1", "--slots", "4"]
    serve += ["--shutdown-seconds", "60", "--port"]  # above the longest drawing
    lock, outcomes, done = threading.Lock(), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        servers = [subprocess.Popen([*serve, str(port)], stdout=subprocess.DEVNULL) for port in PORTS]
        proxy = subprocess.Popen(["nginx", "-p", folder, "-c", str(CONFIG)])
        try:
            for port in (*PORTS, PROXY):
                wait_until_up(port)

            def one(seed: int) -> None:
                nonlocal done
                outcome = ask(seed)
                with lock:
                    outcomes[outcome] += 1
                    done += 1
                    if done == args.requests // 3:
                        servers[0].send_signal(signal.SIGTERM)
                    if done == 2 * args.requests // 3:
                        outcomes["interrupted by draining"] = outcomes.pop("interrupted", 0)
                        servers[1].kill()

            with ThreadPoolExecutor(args.clients) as clients:
                list(clients.map(one, range(args.requests)))
            print(f"first server ended with {servers[0].wait(60)}, second with {servers[1].wait(60)}")
        finally:
            for process in (proxy, *servers):
                process.terminate()
                process.wait(60)
    outcomes["interrupted by the kill"] = outcomes.pop("interrupted", 0)
    outcomes.setdefault("lost before its response began", 0)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:>5}  {outcome}")
    bad = [outcome for outcome, count in outcomes.items() if count and re.search("lost|draining", outcome)]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
