"""An authority and four departments, as processes of this machine, run the emergency-triage plan over real messages.

Uses the shipped commands only, in the order of docs/operations.md, in a new folder under ``runs/``. One person plays
every office here: fingerprints that people would compare by telephone are read from what the commands print, and every
approval is given. What departments do each by themselves they do at the same time. ``make deploy-demo`` runs
``cityfed-sim setup`` first. Exit code 0 with a model, 1 without, 130 after Ctrl-C; no process is left in any case.
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
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

DEPARTMENTS = ("environment", "health", "police", "transport")
FINGERPRINT = re.compile(r"(?:[0-9a-f]{4} ){7}[0-9a-f]{4}")
SCENARIO = "emergency-triage"
READY_S = 180.0
STOP_S = 30.0
INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Demo:
    """One folder with every office in it.

    Attributes:
        folder: new; ``authority`` and one folder for each department.
        prepared: what ``cityfed-sim setup`` made.
        processes: both sides' ``up``, by name.
        calls: commands that are at work.
        over: set when nothing more is to begin.
        authority: held by the department that is served: the authority's office does one thing at a time.
    """

    folder: Path
    prepared: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    calls: set[subprocess.Popen[str]] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)
    authority: threading.Lock = field(default_factory=threading.Lock)

    def say(self, line: str) -> None:
        """Tell the person who watches."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def call(self, package: str, *words: str | Path) -> str:
        """Run one command to its end and return what it printed."""
        command = [sys.executable, "-m", package, *map(str, words)]
        if self.over.is_set():
            raise SystemExit("The demo is over.")
        called = subprocess.Popen(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.calls.add(called)
        try:
            printed, said = called.communicate()
        finally:
            self.calls.discard(called)
        if called.returncode:
            raise SystemExit(f"{' '.join(command[2:])}\n{said.strip()}")
        return printed

    def server(self, *words: str | Path) -> str:
        """Run a command of the authority."""
        with self.authority:
            return self.call("server", *words, "--home", "authority")

    def client(self, *words: str | Path) -> str:
        """Run a command of a department."""
        return self.call("clients", *words)

    def each(self, act: Callable[[str], None]) -> None:
        """Let every department do something, all at the same time; the first that fails ends the demo."""
        with ThreadPoolExecutor(len(DEPARTMENTS)) as pool:
            at_work = [pool.submit(act, name) for name in DEPARTMENTS]
            try:
                for work in at_work:
                    work.result()
            except BaseException:
                self.end_calls()  # or the pool would wait for all that the others still have to do
                raise

    def start(self, name: str, *words: str) -> None:
        """Start one side's processes."""
        with (self.folder / f"{name}.log").open("wb") as output:
            command = [sys.executable, "-m", *words]
            self.processes[name] = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def end_calls(self) -> None:
        """Let no command begin any more, and end those at work."""
        self.over.set()
        for called in tuple(self.calls):
            called.terminate()

    def stop(self) -> None:
        """End everything: commands at work, the departments, then the authority."""
        self.end_calls()
        for names in (DEPARTMENTS, ("authority",)):
            ending = [self.processes[name] for name in names if name in self.processes]
            for process in ending:
                process.terminate()
            deadline = time.monotonic() + STOP_S
            for process in ending:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
                process.kill()
                process.wait()


def main() -> None:
    """Provision, run, tell; stop everything in any case."""
    for number in SIGNALS:
        signal.signal(number, interrupt)
    prepared = Path(os.environ.get("CITYFED_HOME") or ".cityfed").absolute()
    if not (prepared / "departments").is_dir():
        raise SystemExit(f"{prepared} holds no messages: start this by `make deploy-demo`, which prepares them.")
    demo = Demo(new_folder(Path("runs").absolute()), prepared)
    code = 0
    try:
        play(demo)
    except KeyboardInterrupt:
        code = INTERRUPTED
        demo.say(f"Stopping. What there is lies in {demo.folder}.")
    finally:
        demo.stop()
    demo.say("Every process has ended.")
    sys.exit(code)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """End as Ctrl-C does, whatever the signal; another one must not leave a process behind."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def play(demo: Demo) -> None:
    """Do what the offices of a city do, from nothing to a model."""
    began = time.monotonic()
    city, members = found(demo), dict.fromkeys(DEPARTMENTS, "")
    start_authority(demo)

    def enter(name: str) -> None:
        members[name] = join(demo, name, city)

    demo.each(enter)
    demo.each(lambda name: bind(demo, name, list(members.values())))
    digest = publish(demo)
    demo.each(lambda name: approve(demo, name, digest))
    demo.say(f"Provisioned, and a plan agreed, in {time.monotonic() - began:.0f} s. Starting the departments.")
    run(demo, digest)
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
    for source in ("binding.toml", "reports.csv"):
        shutil.copy(prepared / source, demo.folder / name)
    # What the encoder makes of the messages stays where it was prepared: the next demo or simulation finds it there.
    cache = prepared / "features.safetensors"
    edit(demo.folder / config, weights=demo.prepared / "models" / "minilm", feature_cache=cache)
    demo.client("policy", "draft", config, name)
    demo.client("policy", "sign", config, "--key", f"{name}-owner.key")
    demo.client("data", "check", f"{name}/binding.toml", "--config", config)
    demo.client("data", "declare", config, "--out", f"{name}-summary.json")


def publish(demo: Demo) -> str:
    """Draft, sign and publish the plan; returns its digest."""
    summaries = [f"{name}-summary.json" for name in DEPARTMENTS]
    digest = demo.server("plan", "draft", SCENARIO, *summaries).split()[-1]
    demo.server("plan", "sign", digest)
    demo.server("plan", "publish", digest)
    return digest


def approve(demo: Demo, name: str, digest: str) -> None:
    """Let a steward and IT of a department approve the plan."""
    demo.say(f"{name} approves plan {digest[:16]}")
    config = f"{name}/client.toml"
    demo.client("plan", "fetch", config)
    for role in ("steward", "it"):
        demo.client("plan", "approve", config, digest, "--person", f"{name}-{role}")


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
    demo.each(lambda name: fetch(demo, name, model.parent.name))
    demo.say("Every department has fetched the model from the authority's shelf and verified it.")


def fetch(demo: Demo, name: str, run_id: str) -> None:
    """Let a department install the model of a run."""
    demo.client("model", "fetch", f"{name}/client.toml", run_id)


def everybody_online(demo: Demo) -> bool:
    """Ask the authority who is there."""
    nodes = json.loads(demo.server("status", "--json"))["nodes"]
    return all(nodes.get(name, {}).get("online") for name in DEPARTMENTS)


def tell(demo: Demo, seconds: float) -> None:
    """Say what came out and what to look at."""
    demo.say(demo.server("runs").strip())
    for name in DEPARTMENTS:
        spent = json.loads(demo.client("budget", f"{name}/client.toml", "--json"))["spent_epsilon"]
        demo.client("audit", "verify", f"{name}/client.toml")
        demo.say(f"  {name}: epsilon {spent:.4f} spent, journal in order")
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
