"""The files of a pretrained encoder that are read without torch: its config, its tokenizer.

The folder holds ``config.json``, ``model.safetensors`` and ``tokenizer.json``; nothing is looked up by name and
nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from shared.errors import ConfigError, ModelError, SetupError
from shared.plan import ModelSpec


class EncoderConfig(msgspec.Struct, frozen=True):
    """The keys of ``config.json`` that define the encoder; others do not change what it computes."""

    model_type: Literal["bert"]
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: Literal["gelu"]
    layer_norm_eps: float
    max_position_embeddings: int
    type_vocab_size: int
    pad_token_id: int


def read_config(weights_dir: Path) -> EncoderConfig:
    """Read the shapes of the encoder; the weights are not touched.

    Raises:
        SetupError: ``base-weights-missing``.
        ModelError: ``encoder-config``.
    """
    data = read_base_file(weights_dir / "config.json")
    try:
        return msgspec.json.decode(data, type=EncoderConfig)
    except ValueError as cause:  # of the form, of the contents, or no UTF-8
        raise ModelError("encoder-config", f"{weights_dir / 'config.json'} is not a BERT config: {cause}.") from cause


def tokenize(spec: ModelSpec, texts: Sequence[str], weights_dir: Path) -> list[NDArray[np.int64]]:
    """Return the token ids of each text, cut to ``spec.max_tokens``, without padding.

    Raises:
        SetupError: ``base-weights-missing``.
        ModelError: ``encoder-config``, ``tokenizer-corrupt``.
        ConfigError: ``max-tokens``.
    """
    require_tokens(spec, weights_dir)
    path = weights_dir / "tokenizer.json"
    data = read_base_file(path)
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as cause:  # the tokenizer library raises plain Exception
        raise ModelError("tokenizer-corrupt", f"{path} is not a tokenizer file.") from cause
    tokenizer.no_padding()
    tokenizer.enable_truncation(spec.max_tokens)
    return [np.array(encoding.ids, dtype=np.int64) for encoding in tokenizer.encode_batch(list(texts))]


def require_tokens(spec: ModelSpec, weights_dir: Path) -> None:
    """Refuse texts of more tokens than the encoder has places for.

    Raises:
        SetupError: ``base-weights-missing``.
        ModelError: ``encoder-config``.
        ConfigError: ``max-tokens``.
    """
    limit = read_config(weights_dir).max_position_embeddings
    if spec.max_tokens > limit:
        raise ConfigError("max-tokens", f"`max_tokens` is {spec.max_tokens}, the encoder takes at most {limit}.")


def pad(rows: Sequence[NDArray[np.int64]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return ids and mask, both of shape (rows, longest row), padded on the right."""
    width = max((row.size for row in rows), default=1)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.bool_)
    for index, row in enumerate(rows):
        ids[index, : row.size] = row
        mask[index, : row.size] = True
    return ids, mask


def read_base_file(path: Path) -> bytes:
    """Read one file of the weights folder.

    Raises:
        SetupError: ``base-weights-missing``.
    """
    try:
        return path.read_bytes()
    except OSError as cause:
        raise SetupError("base-weights-missing", f"{path} of the base model cannot be read.") from cause
