"""The pretrained text encoder: a BERT read from a local folder, mean-pooled to unit length.

The weights must have the hash that the plan states. Importing this module imports transformers, which takes
seconds; training a head on cached features does without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from shared.errors import ModelError
from shared.plan import ModelSpec
from shared.tasks.device import one_thread
from shared.tasks.encoder_files import EncoderConfig, pad, read_base_file, read_config, tokenize

UNUSED_TENSORS = ("pooler.", "embeddings.position_ids")
"""Prefixes of tensors in published weights that a mean-pooled encoder does not have."""


class MeanPoolEncoder(nn.Module):
    """BERT without dropout and pooler; the mean of the last layer's token vectors, scaled to unit length.

    Token-type and position ids are explicit, contiguous and repeated for every unit: left to BERT they have
    batch size 1, which per-unit gradients cannot use (privacy 8).

    Args:
        config: the shapes.
        trainable_layers: how many of the last layers are trained; embeddings stay frozen.
    """

    def __init__(self, config: EncoderConfig, *, trainable_layers: int = 0) -> None:
        super().__init__()
        settings = structs.asdict(config)
        bert = BertModel(
            BertConfig(**settings, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), add_pooling_layer=False
        )
        self.embeddings, self.layer = bert.embeddings, bert.encoder.layer
        # Ids are always explicit here, and a default one that has no value must not be used by accident.
        del self.embeddings.position_ids, self.embeddings.token_type_ids
        self.requires_grad_(requires_grad=False)
        for layer in self.layer[config.num_hidden_layers - trainable_layers :]:
            layer.requires_grad_(requires_grad=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return unit vectors of shape (batch, hidden_size).

        Args:
            input_ids: shape (batch, tokens), int64.
            attention_mask: shape (batch, tokens), bool, True for tokens that count.
        """
        batch, tokens = input_ids.shape
        positions = torch.arange(tokens, device=input_ids.device).repeat(batch, 1)
        hidden: Tensor = self.embeddings(
            input_ids=input_ids, token_type_ids=torch.zeros_like(input_ids), position_ids=positions
        )
        for layer in self.layer:
            hidden = layer(hidden, attention_mask[:, None, None, :])
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return nn.functional.normalize(mean, dim=1)


def load_encoder(spec: ModelSpec, weights_dir: Path, *, trainable_layers: int = 0) -> MeanPoolEncoder:
    """Load the encoder whose weights have the hash that the plan states.

    Raises:
        SetupError: ``base-weights-missing``.
        ModelError: ``encoder-config``, ``base-weights-mismatch``, ``base-weights-corrupt``.
    """
    config = read_config(weights_dir)
    path = weights_dir / "model.safetensors"
    data = read_base_file(path)
    if hashlib.sha256(data).hexdigest() != spec.base_weights_sha256:
        raise ModelError("base-weights-mismatch", f"{path} does not have the SHA-256 that the plan states.")
    try:
        published = {name: value for name, value in load(data).items() if not name.startswith(UNUSED_TENSORS)}
        tensors = {name.removeprefix("encoder."): value for name, value in published.items()}
        # Made without values, so that nothing is drawn from torch's global generator; the load is strict.
        with torch.device("meta"):
            encoder = MeanPoolEncoder(config, trainable_layers=trainable_layers)
        encoder.to_empty(device="cpu").load_state_dict(tensors)
    except (SafetensorError, RuntimeError, ValueError) as cause:
        raise ModelError("base-weights-corrupt", f"{path} does not fit the encoder of its config.json.") from cause
    return encoder


def encode_texts(spec: ModelSpec, texts: Sequence[str], weights_dir: Path, device: torch.device) -> NDArray[np.float32]:
    """Return the frozen encoder's features, shape (n, hidden_size).

    Guarantees:
        A text's features are a function of that text and the weights alone, bit for bit: it goes through the encoder
        by itself. In a batch the last bits depend on the longest text and on how many there are.

    Raises:
        SetupError: ``base-weights-missing``.
        ModelError: see :func:`load_encoder` and :func:`tokenize`.
        ConfigError: ``max-tokens``.
    """
    encoder = load_encoder(spec, weights_dir).to(device).eval()
    config = read_config(weights_dir)
    rows = tokenize(spec, texts, weights_dir)
    features = np.empty((len(rows), config.hidden_size), dtype=np.float32)
    with one_thread(when=True), torch.inference_mode():  # one text is too little work for several
        for number, row in enumerate(rows):
            ids, mask = pad([row], config.pad_token_id)
            vector = encoder(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))
            features[number] = vector.cpu().numpy()[0]
    return features
