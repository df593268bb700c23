"""Where the authority keeps things: one folder, laid out here and nowhere else.

::

    authority/                      --home, or `authority` under the current directory
    ├── server.toml                 names and addresses
    ├── city.json                   public: what every department is given
    ├── keys/roster.key, plan.key   Ed25519; sign rosters, and plans with accounts of rounds
    ├── ca/ca.key, ca.crt           the city's CA
    ├── tls/server.key, server.crt  what departments meet when they dial in
    ├── superexec.secret            Flower's executor proves itself with it
    ├── office.sqlite               journal of the roster office: every roster and certificate that was issued
    ├── roster.msgpack              the signed roster with the highest serial
    ├── members/DEPARTMENT.crt      the certificate of each of its members
    ├── plans/{drafts,signed,published}/DIGEST.plan
    ├── models/SHA256.safetensors   starting points that plans name
    ├── released/RUN/               models on the shelf, each put there by `cityfed-server model RUN --release`
    ├── journal.sqlite              journal of the coordinator
    ├── runs/, spool/, flower/      made by `cityfed-server up`
    └── service/                    status and logs of its processes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError

DEFAULT_HOME = "authority"


@dataclass(frozen=True)
class AuthorityHome:
    """The authority's folder, with the paths inside it.

    Args:
        root: path of the folder; it need not exist yet.
    """

    root: Path

    @property
    def config(self) -> Path:
        """Names and addresses: :class:`server.config.ServerConfig`."""
        return self.root / "server.toml"

    @property
    def city(self) -> Path:
        """What departments are given: :class:`shared.city.CityFile`."""
        return self.root / "city.json"

    @property
    def roster_key(self) -> Path:
        """Private key that signs rosters."""
        return self.root / "keys" / "roster.key"

    @property
    def plan_key(self) -> Path:
        """Private key that signs plans and accounts of rounds."""
        return self.root / "keys" / "plan.key"

    @property
    def ca_key(self) -> Path:
        """Private key of the city's CA."""
        return self.root / "ca" / "ca.key"

    @property
    def ca_certificate(self) -> Path:
        """Certificate of the city's CA."""
        return self.root / "ca" / "ca.crt"

    @property
    def server_key(self) -> Path:
        """Private key of the authority's own TLS."""
        return self.root / "tls" / "server.key"

    @property
    def server_certificate(self) -> Path:
        """The authority's own certificate."""
        return self.root / "tls" / "server.crt"

    @property
    def superexec_secret(self) -> Path:
        """Secret that Flower's executor proves itself with."""
        return self.root / "superexec.secret"

    @property
    def office_journal(self) -> Path:
        """Journal of the roster office."""
        return self.root / "office.sqlite"

    @property
    def roster(self) -> Path:
        """The signed roster with the highest serial, MessagePack."""
        return self.root / "roster.msgpack"

    @property
    def members(self) -> Path:
        """Folder of the members' certificates."""
        return self.root / "members"

    @property
    def plans(self) -> Path:
        """Folder of plans, one folder per state."""
        return self.root / "plans"

    @property
    def models(self) -> Path:
        """Folder of the starting points that plans name."""
        return self.root / "models"

    @property
    def released(self) -> Path:
        """Folder of the models on the shelf, one folder per run."""
        return self.root / "released"

    @property
    def journal(self) -> Path:
        """Journal of the coordinator."""
        return self.root / "journal.sqlite"

    @property
    def runs(self) -> Path:
        """Folder with one folder per run."""
        return self.root / "runs"

    @property
    def spool(self) -> Path:
        """Folder of uploads in progress."""
        return self.root / "spool"

    @property
    def flower(self) -> Path:
        """``FLWR_HOME`` of the authority's Flower processes, with the SuperLink's database."""
        return self.root / "flower"

    def plan(self, state: str, digest: str) -> Path:
        """File of one plan in a state of :class:`server.plan_files.PlanState`."""
        return self.plans / state / f"{digest}.plan"

    def model(self, sha256: str) -> Path:
        """The starting point with this hash."""
        return self.models / f"{sha256}.safetensors"

    @property
    def service(self) -> Path:
        """Folder with status and logs of the authority's processes."""
        return self.root / "service"

    def member(self, department: str) -> Path:
        """Certificate of one member."""
        return self.members / f"{department}.crt"


def open_home(root: Path) -> AuthorityHome:
    """Return the home of a city that was founded, for commands that would find nothing in any other folder.

    Raises:
        ConfigError: ``city-missing``.
    """
    home = AuthorityHome(root)
    if not home.config.is_file():
        raise ConfigError(
            "city-missing",
            f"{root} is no city's home: name it with --home, or found the city with `cityfed-server city init`.",
        )
    return home
