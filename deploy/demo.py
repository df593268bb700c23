"""An authority and four departments, as processes of this machine, run the emergency-triage plan over real messages.

Uses the shipped commands only, in the order of docs/operations.md, in a new folder under ``runs/``. One person plays
every office here: fingerprints that people would compare by telephone are read from what the commands print, and every
approval is given. ``make deploy-demo`` runs ``cityfed-sim setup`` first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

DEPARTMENTS = ("environment", "health", "police", "transport")
FINGERPRINT = re.compile(r"(?:[0-9a-f]{4} ){7}[0-9a-f]{4}")
SCENARIO = "emergency-triage"
READY_S = 180.0
STOP_S = 30.0


@dataclass
class Demo:
    """One folder with every office in it.

    Attributes:
        folder: new; ``authority`` and one folder for each department.
        prepared: what ``cityfed-sim setup`` made.
        processes: both sides' ``up``, by name.
    """

    folder: Path
    prepared: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def say(self, line: str) -> None:
        """Tell the person who watches."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def call(self, package: str, *words: str | Path) -> str:
        """Run one command to its end and return what it printed."""
        command = [sys.executable, "-m", package, *map(str, words)]
        ended = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"{' '.join(command[2:])}\n{ended.stderr.strip()}")
        return ended.stdout

    def server(self, *words: str | Path) -> str:
        """Run a command of the authority."""
        return self.call("server", *words, "--home", "authority")

    def client(self, *words: str | Path) -> str:
        """Run a command of a department."""
        return self.call("clients", *words)

    def start(self, name: str, *words: str) -> None:
        """Start one side's processes."""
        with (self.folder / f"{name}.log").open("wb") as output:
            command = [sys.executable, "-m", *words]
            self.processes[name] = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def stop(self) -> None:
        """Stop the departments, then the authority."""
        for name in (*DEPARTMENTS, "authority"):
            process = self.processes.get(name)
            if process is None:
                continue
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
            process.wait()


def main() -> None:
    """Provision, run, tell, stop."""
    prepared = Path(os.environ.get("CITYFED_HOME") or ".cityfed").absolute()
    demo = Demo(new_folder(Path("runs").absolute()), prepared)
    began = time.monotonic()
    fingerprint = found(demo)
    try:
        start_authority(demo)
        shown = {name: join(demo, name, fingerprint) for name in DEPARTMENTS}
        for name in DEPARTMENTS:
            bind(demo, name, list(shown.values()))
        digest = agree(demo)
        demo.say(f"Provisioned, and a plan agreed, in {time.monotonic() - began:.0f} s. Starting the departments.")
        run(demo, digest)
    finally:
        demo.stop()
        demo.say("All processes are stopped.")
    tell(demo, time.monotonic() - began)


def new_folder(parent: Path) -> Path:
    """Make the first free folder."""
    number = 1
    while (parent / f"deploy-demo-{number}").exists():
        number += 1
    folder = parent / f"deploy-demo-{number}"
    folder.mkdir(parents=True)
    return folder


def found(demo: Demo) -> str:
    """Found the city on three free ports of loopback; return its fingerprint."""
    demo.say(f"A city in {demo.folder}")
    fleet, channel, shelf = map(str, free_ports(3))
    ports = ("--fleet-port", fleet, "--channel-port", channel, "--shelf-port", shelf)
    printed = demo.server("city", "init", "metropolis", "--host", "127.0.0.1", *ports)
    edit(demo.folder / "authority" / "server.toml", weights=demo.prepared / "models" / "minilm")
    return first_fingerprint(printed)


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on, below those that a system gives to calls: the channel opens much later."""
    free: list[int] = []
    for port in secrets.SystemRandom().sample(range(20_000, 30_000), 1_000):
        if len(free) < count and not is_open("127.0.0.1", port):
            free.append(port)
    return free


def start_authority(demo: Demo) -> None:
    """Start the authority's processes, and wait until the shelf is open: everybody gets the roster there."""
    demo.start("authority", "server", "up", "--home", "authority")
    city = json.loads((demo.folder / "authority" / "city.json").read_text())
    host, _, port = city["shelf"].rpartition(":")
    deadline = time.monotonic() + READY_S
    while not is_open(host, int(port)):
        if time.monotonic() > deadline:
            raise SystemExit(f"The shelf was not open within {READY_S:g} s: see {demo.folder}/authority/service/log.")
        time.sleep(0.2)


def is_open(host: str, port: int) -> bool:
    """Say whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def join(demo: Demo, name: str, city: str) -> str:
    """Enrol a department and have it admitted; return its fingerprint."""
    demo.say(f"{name} joins")
    owner = demo.client("policy", "owner-key", f"{name}-owner.key").strip()
    trust = ("--city", "authority/city.json", "--fingerprint", city, "--policy-owner", owner)
    mine = first_fingerprint(demo.client("enrol", name, "--home", name, *trust))
    admission = f"{name}-admission.json"
    demo.server("city", "admit", f"{name}/enrolment-request.json", "--fingerprint", mine, "--out", admission)
    demo.client("admit", f"{name}/client.toml", admission)
    return mine


def bind(demo: Demo, name: str, members: list[str]) -> None:
    """Approve every member's key, bind the messages of this department under its packaged policy, tell their size."""
    demo.say(f"{name} binds its messages")
    config, prepared = f"{name}/client.toml", demo.prepared / "departments" / name
    demo.client("roster", "fetch", config)
    demo.client("roster", "approve", config, *members, "--roster", f"{name}/roster.msgpack")
    for path in prepared.iterdir():
        shutil.copy(path, demo.folder / name)
    weights = demo.prepared / "models" / "minilm"
    edit(demo.folder / config, weights=weights, feature_cache="features.safetensors")
    demo.client("policy", "draft", config, name)
    demo.client("policy", "sign", config, "--key", f"{name}-owner.key")
    demo.client("data", "check", f"{name}/binding.toml", "--config", config)
    demo.client("data", "declare", config, "--out", f"{name}-summary.json")


def agree(demo: Demo) -> str:
    """Draft, sign and publish the plan; a steward and IT of every department approve it. Returns its digest."""
    summaries = [f"{name}-summary.json" for name in DEPARTMENTS]
    digest = demo.server("plan", "draft", SCENARIO, *summaries).split()[-1]
    demo.server("plan", "sign", digest)
    demo.server("plan", "publish", digest)
    for name in DEPARTMENTS:
        demo.say(f"{name} approves plan {digest[:16]}")
        config = f"{name}/client.toml"
        demo.client("plan", "fetch", config)
        for role in ("steward", "it"):
            demo.client("plan", "approve", config, digest, "--person", f"{name}-{role}")
    return digest


def run(demo: Demo, digest: str) -> None:
    """Start the departments, wait until every one is there, run the plan, hand out the model."""
    for name in DEPARTMENTS:
        demo.start(name, "clients", "up", f"{name}/client.toml")
    deadline = time.monotonic() + READY_S
    while not everybody_online(demo):
        if time.monotonic() > deadline:
            raise SystemExit(f"Not every department was there within {READY_S:g} s: see {demo.folder}/*/service/log.")
        time.sleep(1.0)
    demo.say("Every department is online. The run begins.")
    began = time.monotonic()
    status = json.loads(demo.server("run", digest, "--json"))
    demo.say(f"The run {status['state']}: {status['rounds']} rounds in {time.monotonic() - began:.0f} s.")
    (model,) = demo.folder.glob("authority/runs/*/model.safetensors")
    (plan,) = demo.folder.glob("authority/plans/published/*.plan")
    demo.client("privacy-audit", "health/client.toml", plan, "--out", "health-audit")
    demo.server("model", model.parent.name, "--release", "--audit", "health-audit/attack-audit.json")
    for name in DEPARTMENTS:
        demo.client("model", "fetch", f"{name}/client.toml", model.parent.name)
    demo.say("Every department has fetched the model from the authority's shelf and verified it.")


def everybody_online(demo: Demo) -> bool:
    """Ask the authority who is there."""
    nodes = json.loads(demo.server("status", "--json"))["nodes"]
    return all(nodes.get(name, {}).get("online") for name in DEPARTMENTS)


def tell(demo: Demo, seconds: float) -> None:
    """Say what came out and what to look at."""
    demo.say(demo.server("runs").strip())
    for name in DEPARTMENTS:
        spent = demo.client("budget", f"{name}/client.toml").splitlines()[1].split()[-1]
        demo.client("audit", "verify", f"{name}/client.toml")
        demo.say(f"  {name}: epsilon {spent} spent, journal in order")
    (model,) = demo.folder.glob("authority/runs/*/model.safetensors")
    demo.say(f"{seconds:.0f} s in all. To look at, in {demo.folder}:")
    for what, where in (
        ("the model", model.relative_to(demo.folder)),
        ("the same as a department installed it", f"police/models/{model.parent.name}"),
        ("what the run had to say", (model.parent / "log.jsonl").relative_to(demo.folder)),
        ("what a department's node had to say", "police/service/log/node.log"),
        ("everything a department decided, charged and let out", "cityfed-client audit show police/client.toml"),
    ):
        demo.say(f"  {what}: {where}")


def edit(path: Path, **values: object) -> None:
    """Fill in settings that stand empty in a configuration file."""
    text = path.read_text()
    for key, value in values.items():
        if f'{key} = ""' not in text:
            raise SystemExit(f"{path} has no empty setting {key}.")
        text = text.replace(f'{key} = ""', f"{key} = {json.dumps(str(value))}")
    path.write_text(text)


def first_fingerprint(printed: str) -> str:
    """Return what a person would read out."""
    return FINGERPRINT.findall(printed)[0]


if __name__ == "__main__":
    main()
