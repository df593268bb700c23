"""An authority's home with three members and a signed plan for them, and no department behind it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from server.city import load_plan_key
from server.home import AuthorityHome
from server.roster import admit, read_request
from server.runs import RunFolder, Submitted
from shared.codec import encode
from shared.identity import IdentityKey, Signed, sign_record
from shared.plan import PLAN_LABEL
from shared.private_files import make_private_folder
from shared.supervise import ProgramStatus, process_status
from tests.deployed_city import enrol, found, load_city, now
from tests.server.small_plan import plan_with

MEMBERS = ("environment", "health", "police")
PLAN = plan_with(dict.fromkeys(MEMBERS, 1.0))
ALIVE, GONE = process_status(os.getpid()), ProgramStatus(pid=os.getpid(), started="1")


def small_home(folder: Path) -> AuthorityHome:
    """Found the city on ports that nobody listens on, and publish its plan."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        home = found(folder, channel_port=probe.getsockname()[1])
    for name in MEMBERS:
        enrolled = enrol(
            folder / name,
            name,
            city_file=home.city,
            city_fingerprint=load_city(home).fingerprint(),
            policy_owner_key=IdentityKey.generate().public.hex(),
        )
        admit(home, read_request(enrolled.request), fingerprint_typed=enrolled.fingerprint, now=now())
    published = home.plan("published", PLAN.digest().hex())
    make_private_folder(published.parent)
    published.write_bytes(encode(signed_plan(home)))
    return home


def signed_plan(home: AuthorityHome) -> Signed:
    return sign_record(load_plan_key(home), PLAN_LABEL, PLAN)


def submitted(home: AuthorityHome, *, process: ProgramStatus = ALIVE) -> RunFolder:
    """The folder of the plan's run, for which a process answers."""
    folder = RunFolder(home.runs / PLAN.run_id().hex())
    folder.submit(Submitted(plan=signed_plan(home), nodes={}), process=process, now=now())
    return folder
