"""The training of a tiny transformer that the test makes. It needs the extra `adapt`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from livefactor_server.files.encoding import Encoder, EncoderError
from livefactor_server.tuning.adapting.adapter import AdapterError, last_adapter, load, write_adapter
from livefactor_server.tuning.adapting.augmenting import Augmentation
from livefactor_server.tuning.adapting.pairs import Pairs, pairs_of
from livefactor_server.tuning.adapting.run import hits
from livefactor_server.tuning.adapting.training import Training, train

for package in ("torch", "peft", "sentence_transformers"):
    pytest.importorskip(package, reason=f"the extra `adapt` is not installed: {package}")

KINDS = ("bath", "boat", "bird", "bell")
WORDS = (*KINDS, *(f"w{at}" for at in range(30)))


def make_encoder(folder: Path, seed: int = 0) -> Path:
    """A sentence-transformers folder with a random BERT of a few thousand parameters."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    tokens = {word: at for at, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    words = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    network = BertModel(BertConfig(vocab_size=len(tokens), max_position_embeddings=16, **shape))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder / "raw"
    )
    network.save_pretrained(folder / "raw")
    made = Transformer(str(folder / "raw"))
    SentenceTransformer(modules=[made, Pooling(16)]).save(str(folder / "model"))
    return folder / "model"


def shop(rng: np.random.Generator, first_user: int = 0) -> tuple[list[str], Pairs]:
    """64 texts, of which one word of three says the kind, and users who like one kind."""
    texts = [" ".join([KINDS[at % 4], *rng.choice(WORDS[4:], 2)]) for at in range(64)]
    users = np.repeat(np.arange(first_user, first_user + 60), 8)
    items = 4 * rng.integers(0, 16, len(users)) + users % 4
    return texts, pairs_of(users, items, 4)


def test_the_vectors_of_what_users_have_together_come_closer_and_a_folder_keeps_them(tmp_path: Path) -> None:
    folder, rng = make_encoder(tmp_path / "encoder"), np.random.default_rng(1)
    texts, pairs = shop(rng)
    encoder, losses = Encoder(folder), []
    frozen = encoder.encode(texts, 32, lambda done: None)
    encoder.adapt(None, 8)
    np.testing.assert_allclose(encoder.encode(texts, 32, lambda done: None), frozen, atol=1e-6)
    none = pairs.take(np.arange(0))
    train(
        encoder,
        texts,
        frozen.copy(),
        pairs,
        none,
        Training(80, 32, 0.005),
        lambda at, loss: losses.append(loss),
    )
    vectors = encoder.encode(texts, 32, lambda done: None)
    others = shop(np.random.default_rng(1), first_user=100)[1]
    assert hits(vectors, others) > 1.3 * hits(frozen, others)
    assert len(losses) == 80 and np.mean(losses[-10:]) < np.mean(losses[:10])
    first = write_adapter(
        tmp_path / "out", encoder, None, list(range(64)), vectors, lineage="a", revision=5, steps=80, pairs=9
    )
    again = Encoder(folder)
    assert last_adapter(tmp_path / "out") == first
    load(again, first)
    np.testing.assert_allclose(again.encode(texts, 7, lambda done: None), vectors, atol=1e-5)
    # A loaded adapter learns on, and its folder has the hash of the one before it.
    train(
        again,
        texts,
        vectors.copy(),
        pairs,
        pairs,
        Training(3, 8, augmentation=Augmentation(0.3)),
        lambda at, loss: None,
    )
    second = write_adapter(
        tmp_path / "out", again, first, [1], vectors[:1], lineage="a", revision=6, steps=3, pairs=9
    )
    assert second.facts.previous == first.digest and second.facts.files != first.facts.files
    other = Encoder(make_encoder(tmp_path / "other", seed=1))
    with pytest.raises(AdapterError, match="was trained for the encoder with the hash"):
        load(other, first)
    (first.folder / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(EncoderError, match="the adapter does not fit"):
        Encoder(folder).adapt(first.folder)
