"""Readers of numbers, texts and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
import tomli_w

from clients.binding import Binding, Declaration, declaration_path, load_declaration
from clients.config import ClientConfig
from policies.load import complete, department_policy, parse_policy
from server.release import write_model
from shared.audit import ReceiptLine, read_receipt_lines, read_receipts, receipt_line, verify_line, view_entries
from shared.codec import encode, load_toml
from shared.contracts.contract import agreement_hash, load_contract
from shared.identity import fingerprint, sign_record
from shared.journal import verify_journal
from shared.model_file import read_model
from shared.parameters import vector_from_bytes
from shared.secagg.shamir import share_from_bytes
from shared.tasks.encoder_files import read_config
from shared.tasks.features import FeatureCache
from simulation.scenario import Scenario
from tests.city import MESSAGES
from tests.decoders.decoder import Decoder
from tests.decoders.journals import NOW, entry, journal_file
from tests.decoders.messages import KEYS, OFFICE, PLAN, ROOT, closed_round, head_receipt
from tests.mutations import mutate_bytes, mutate_safetensors, mutate_text
from tests.server.small_plan import LAYOUT


def vector_decoders() -> dict[str, Decoder]:
    model = np.ones(LAYOUT.size, dtype="<f4").tobytes()
    return {
        "model vector": Decoder(lambda data: vector_from_bytes(data, LAYOUT), (model,), mutate_bytes),
        "share": Decoder(share_from_bytes, (bytes(32), b"\x7f" * 32), mutate_bytes),
    }


def text_decoders() -> dict[str, Decoder]:
    """TOML and YAML."""
    key = bytes(32).hex()
    config = ClientConfig(
        department="health", roster_key=key, authority_key=key, policy_owner_key=key, members={"health": key}
    )
    policy = complete(
        department_policy("health"),
        dataset="reports",
        contract_hash="0" * 64,
        plan_key_fingerprint=fingerprint(OFFICE.public),
        roster_key_fingerprint=fingerprint(OFFICE.public),
    )

    def toml(record: type[Any]) -> Callable[[bytes], object]:
        return lambda data: load_toml(data.decode(errors="replace"), record, where="the file")

    scenario = (ROOT / "server" / "scenarios" / "emergency-triage.toml").read_bytes()
    contract = (ROOT / "shared" / "contracts" / "health" / "report-1.0.0.odcs.yaml").read_bytes()
    return {
        "client.toml": Decoder(
            toml(ClientConfig), (tomli_w.dumps(msgspec.to_builtins(config)).encode(),), mutate_text, share=8_000
        ),
        "policy": Decoder(lambda data: parse_policy(data, "the policy"), (policy.encode(),), mutate_text, share=8_000),
        "binding": Decoder(toml(Binding), ((MESSAGES / "health.toml").read_bytes(),), mutate_text, share=8_000),
        "scenario": Decoder(toml(Scenario), (scenario,), mutate_text, share=8_000),
        "contract": Decoder(
            lambda data: agreement_hash(load_contract(data.decode(errors="replace"))),
            (contract,),
            mutate_text,
            share=4_000,
        ),
    }


def file_decoders(folder: Path) -> dict[str, Decoder]:
    """What is read from a file by its path."""
    folder.mkdir(parents=True, exist_ok=True)

    def through(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        path = folder / name

        def written(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return written

    cached = safetensors.numpy.save({"keys": np.zeros((2, 32), np.uint8), "features": np.ones((2, 3), np.float32)})
    told = receipt_line("head-receipt", sign_record(KEYS["health"], "head-receipt", head_receipt()), run=bytes(32))
    signed = msgspec.json.encode(told) + b"\n"
    lines = signed + msgspec.json.encode(ReceiptLine(owner="health", sequence=4, digest="")) + b"\n"
    return {
        "model file": Decoder(
            through("model.safetensors", lambda path: read_model(path, LAYOUT)),
            (_model_file(folder / "seed.safetensors"),),
            mutate_safetensors,
        ),
        "feature cache": Decoder(
            through("features.safetensors", lambda path: FeatureCache(path).features([bytes(32)], _no_features)),
            (cached,),
            mutate_safetensors,
        ),
        "receipts": Decoder(through("receipts", lambda path: read_receipts(path, "health")), (lines,), mutate_text),
        "signed receipts": Decoder(through("signed-receipts", _verify_receipts), (signed,), mutate_text),
        "declaration": Decoder(
            through(declaration_path(folder / "health.toml").name, lambda _: load_declaration(folder / "health.toml")),
            (msgspec.json.format(msgspec.json.encode(_declaration())),),
            mutate_text,
        ),
        "encoder config": Decoder(
            through("config.json", lambda path: read_config(path.parent)), (_ENCODER.encode(),), mutate_text
        ),
        "journal view": Decoder(
            lambda body: list(view_entries(iter([entry(body)]))), (encode(closed_round()), encode(PLAN))
        ),
        "journal file": Decoder(
            through("read.sqlite", lambda path: verify_journal(path, owner="health")),
            (journal_file(folder / "seed.sqlite"),),
            mutate_bytes,
            share=1_000,
        ),
    }


def _verify_receipts(path: Path) -> None:
    """Read receipts and verify each, as a restoration does."""
    for line in read_receipt_lines(path):
        verify_line(line, [KEYS["health"].public])


_ENCODER = """{
 "model_type": "bert", "vocab_size": 30, "hidden_size": 8,
 "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
 "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 16,
 "type_vocab_size": 2, "pad_token_id": 0
}"""


def _no_features(positions: Sequence[int]) -> Any:
    """Whoever is asked was not found in the file."""
    return np.zeros((len(positions), 3), dtype=np.float32)


def _declaration() -> Declaration:
    return Declaration(
        dataset="reports",
        contract_hash="0" * 64,
        binding_digest="0" * 64,
        public_size=90,
        rows_checked=96,
        rows_usable=93,
        unit="record",
        units=93,
        failures=(),
        checked_at=NOW,
    )


def _model_file(path: Path) -> bytes:
    write_model(path, np.ones(LAYOUT.size, dtype=np.float32), PLAN)
    return path.read_bytes()
