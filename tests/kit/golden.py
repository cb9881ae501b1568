"""Golden digests of models.

The contract promises that a log gives the same bits on every machine. If a digest here changes,
every existing log replays to another model. In that case, raise `spec.KERNEL_SEMANTICS` and give
the reason in docs/architecture.md first. Then store the new digests here. The command
`python tests/kit/golden.py` prints them.
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np

from livefactor_kernels.backend import Backend, create_backend, state_sections
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.model import (
    AdaptiveRate,
    Context,
    Counts,
    Embeddings,
    FactorDtype,
    Features,
    History,
    Loss,
    Mix,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Proposal,
    Regularization,
    Replay,
    Rule,
    Softmax,
    Solve,
)
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.start import Start
from synthetic import make_spec, push


def mix_spec(mix: Mix, start_events: float = 0.0) -> ModelSpec:
    """A spec of rule SOLVE with a mix."""
    return make_spec(
        Loss.IMPLICIT,
        k=20,
        rule=Rule.SOLVE,
        micro_batch=100,
        history=History(32, 64),
        solve=Solve(0.0, 4, 2, 10.0, start_events=start_events),
        counts=Counts(16, 8),
        mix=mix,
    )


SPECS: dict[str, ModelSpec] = {
    "squared": make_spec(Loss.SQUARED, k=64),
    "squared_adagrad_micro": make_spec(Loss.SQUARED, OptimizerKind.ADAGRAD, k=20, micro_batch=100),
    "logistic": make_spec(Loss.LOGISTIC, k=20, negatives=3),
    "bpr_adagrad": make_spec(Loss.BPR, OptimizerKind.ADAGRAD, k=9, negatives=4),
    "bpr_micro": make_spec(Loss.BPR, k=16, negatives=3, micro_batch=100),
    "squared_adaptive": make_spec(Loss.SQUARED, k=20, adaptive_rate=AdaptiveRate(64)),
    "logistic_adaptive": make_spec(Loss.LOGISTIC, k=40, negatives=3, adaptive_rate=AdaptiveRate(64)),
    "squared_float16": make_spec(Loss.SQUARED, k=64, factor_dtype=FactorDtype.FLOAT16),
    "logistic_adagrad_bfloat16": make_spec(
        Loss.LOGISTIC, OptimizerKind.ADAGRAD, k=20, negatives=3, factor_dtype=FactorDtype.BFLOAT16
    ),
    "squared_rowwise_adagrad": make_spec(Loss.SQUARED, OptimizerKind.ROWWISE_ADAGRAD, k=20),
    "logistic_adam_micro": make_spec(
        Loss.LOGISTIC, OptimizerKind.LAZY_ADAM, k=20, negatives=3, micro_batch=100
    ),
    "bpr_ftrl_bfloat16": make_spec(
        Loss.BPR,
        k=20,
        negatives=3,
        optimizer=Optimizer(OptimizerKind.FTRL, 0.1, 0.1, l1=0.01),
        micro_batch=16,
        factor_dtype=FactorDtype.BFLOAT16,
    ),
    "logistic_regularized": make_spec(
        Loss.LOGISTIC,
        k=20,
        negatives=3,
        micro_batch=16,
        history=History(16),
        regularization=Regularization(0.05, 0.2, 0.5, 0.3),
    ),
    "bpr_adversarial": make_spec(
        Loss.BPR,
        k=20,
        negatives=3,
        micro_batch=16,
        history=History(16),
        regularization=Regularization(0.05, 0.2, 0.5, adversarial_weight=0.7, adversarial_share=0.3),
    ),
    "bpr_context": make_spec(Loss.BPR, k=20, negatives=3, micro_batch=16, context=Context(24)),
    "bpr_micro_float16": make_spec(
        Loss.BPR, k=20, negatives=3, micro_batch=100, factor_dtype=FactorDtype.FLOAT16
    ),
    "squared_micro_bfloat16": make_spec(
        Loss.SQUARED, k=40, micro_batch=100, factor_dtype=FactorDtype.BFLOAT16
    ),
    "solve_counts": make_spec(
        Loss.IMPLICIT,
        k=20,
        rule=Rule.SOLVE,
        micro_batch=100,
        history=History(32, 64),
        solve=Solve(0.5, 4, 2),
        counts=Counts(16, 8),
    ),
    "solve_embeddings": make_spec(
        Loss.IMPLICIT,
        k=20,
        rule=Rule.SOLVE,
        micro_batch=100,
        history=History(32, 64),
        solve=Solve(0.5, 4, 2),
        embeddings=Embeddings(12, 3.0),
    ),
    "solve_features": make_spec(
        Loss.IMPLICIT,
        k=20,
        rule=Rule.SOLVE,
        micro_batch=100,
        history=History(32, 64),
        solve=Solve(0.5, 4, 2),
        embeddings=Embeddings(12, 3.0),
        features=Features(64, 5),
    ),
    "solve_features_follow": make_spec(
        Loss.IMPLICIT,
        k=20,
        rule=Rule.SOLVE,
        micro_batch=100,
        history=History(32, 64),
        solve=Solve(0.5, 4, 2),
        features=Features(64, 5, 3.0),
    ),
    "solve_start": mix_spec(Mix(0.05), start_events=8.0),
    "solve_mix": mix_spec(Mix(0.05)),
    "solve_mix_recent": mix_spec(Mix(0.05, 1.0)),
    "solve_mix_similar": mix_spec(Mix(0.05, 1.0, 6)),
    "solve_mix_roots": mix_spec(Mix(0.05, 1.0, 6, 2, True, 3.0)),
    "solve_mix_baskets": mix_spec(Mix(0.05, 1.0, 6, 1, True, 3.0, True)),
    "solve_mix_walks": mix_spec(Mix(0.05, 1.0, 6, 1, True, 3.0, True, 10, 1000)),
    "solve_squared": make_spec(
        Loss.SQUARED, k=20, rule=Rule.SOLVE, micro_batch=7, history=History(32, 64), solve=Solve(0.0, 4, 2)
    ),
    "solve_replay": make_spec(
        Loss.IMPLICIT,
        k=20,
        rule=Rule.SOLVE,
        micro_batch=100,
        history=History(32, 64),
        solve=Solve(0.5, 4, 2),
        replay=Replay(200, 0.5),
    ),
    "softmax_uniform_adagrad": make_spec(
        Loss.SOFTMAX,
        OptimizerKind.ADAGRAD,
        k=64,
        rule=Rule.SOFTMAX,
        softmax=Softmax(Proposal.UNIFORM),
        negatives=20,
        micro_batch=100,
    ),
    "softmax_popularity": make_spec(
        Loss.SOFTMAX, k=20, rule=Rule.SOFTMAX, negatives=20, micro_batch=16, history=History(16)
    ),
    "softmax_in_batch": make_spec(
        Loss.SOFTMAX,
        k=9,
        rule=Rule.SOFTMAX,
        softmax=Softmax(Proposal.IN_BATCH),
        micro_batch=40,
        history=History(16),
        counts=Counts(16, 8),
    ),
}
GOLDEN = {
    "squared": "5b2f2d828267796b7659817538f19658655a63bf7eb01da5d777a206dcc405d2",
    "squared_adagrad_micro": "29810c890c1b5a1c9f762fe50766f57dda8823e79535592a8c10b6139ce812ff",
    "logistic": "97ee0ce5ea1161542a987bcd26fe10ab21a4e7d458165489e225de33d3ab9f56",
    "bpr_adagrad": "7beba1dd7902a721728570a36ca3edb2154a74a12e06cd596b8105702db1e555",
    "bpr_micro": "ae67ebeafb8adaac32d9dc88a7a0139ec2324fabb8384da880b9ac40dbbc4389",
    "squared_adaptive": "27f95e479a37508e09ec1b4b8b71d51a1215abd489a3e5a88b99c9b068ff8d0b",
    "logistic_adaptive": "2f835efd3cb187edb08d4a355de2ea33c5aed8037c5eb29c587c5788cc0ad1ba",
    "squared_float16": "8ad0a1b4699a662989c57cc412949d0641f6442d25e0bdeece95d57f2f66e032",
    "logistic_adagrad_bfloat16": "e3025e5c541ac9e4efb627dd57fdd9e019f1b6b0371b717ce65de43e2ae6c255",
    "squared_rowwise_adagrad": "dfdc81c81a92baf12538059de383c8f24cc2c753ab46f490bef6d65a97634b5b",
    "logistic_adam_micro": "7749540427c05efd71983113a4bb04f2136fd460f812928de020dec3e244ea46",
    "bpr_ftrl_bfloat16": "8668cef2cbf71c51d7305eb789324ecbce92fc9873288d1620cf6e1e50bec5ae",
    "logistic_regularized": "d4500d426f1a6f8d022e73063131a4e64bad0a1de699d7203293a8c2f9f690c6",
    "bpr_adversarial": "456d9bb21b2421208480f1db7781dc483a540e850811dca2fa37dc053183ae2a",
    "bpr_context": "c1b6f5c1d5657b04281f7fcec0ef55e44035fe4228a0d5782122ad171abca262",
    "bpr_micro_float16": "aefc252b97ced486132901e2c57c0b90564c4d6a2074eb74903a166c5035146e",
    "squared_micro_bfloat16": "14ef95a8688f030800e3168f7de5cab68b06ba6d67eb10b7a1a1ef775ddd030e",
    "solve_counts": "641429f3c29574b9bd640432b357f776f858b1f12718cb463437b9a6bb301d4b",
    "solve_embeddings": "9a8a6258fe8fe09f66a7e21be04aa5c2c75c1743925754316965b8acc2dc5516",
    "solve_features": "d89355d54d3c70a29102879c52b1095ffc78f4e3f169573fc4c68ed4b124006e",
    "solve_features_follow": "feccec4437c0d61521c1e9f5d91bcffbda04291e1fbffeecb1db0c4029bfc333",
    "solve_start": "39c6d23f1208f49d89ca73d8efcf6eb98d946f3889978ad2452e0c16bb1eed08",
    "solve_mix": "ca3cbd7004eba69e69489f6650660b5e045149133a28dd75bbf14aa4bada390d",
    "solve_mix_recent": "28b2b47fef76dd9ffeab42e22963a9c80f8665b90f6a18a3aa5951ec8a7a3a8f",
    "solve_mix_similar": "3c04c8040c905e90ebccc609e5777d7eae113b7b12ed355449fbfff1f5809afd",
    "solve_mix_roots": "4d67d5e96ae65667ced4aa606efec2dd9b3fa49c2b75a736e44563bd4a157e75",
    "solve_mix_baskets": "543e8ce81bdaaaa92182e36c8a126e19a7d0c0890f92afce4525a8aab9511bbf",
    "solve_mix_walks": "0a457605ee2243bb91ad54ce653f515e83bec27b921b93072493f64445186c40",
    "solve_squared": "8a68d26443a1f77c714ca93f1d39497bad0c1f556e994365c0414ab5c30c64bf",
    "solve_replay": "16b81a95457dc0256485b862e09d87acc5acd88b89202b9143ec899ca608c190",
    "softmax_uniform_adagrad": "97252bf497f34d731ee6e8256da6aec43649a2fe23f90d3c65f13ff08af1d664",
    "softmax_popularity": "db732f0c100f23c86e07275fcddddbb6ca63522a1b1e1127df880595ca50eb17",
    "softmax_in_batch": "cc1831531236c432a4e0dd1e5c2b60c66232f99f028237c20d7164a029f89d53",
}
"""Taken with KERNEL_SEMANTICS = 1."""


def _stream(records: int = 4, events: int = 500):
    """Yield keys, values and weights that are computed from integers.

    The stream uses no random generator, because its numbers could change with its version.
    """
    state = 88172645463325252
    for _ in range(records):
        columns = []
        for _ in range(events):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            high = state >> 33
            user, item = high % 60 * 0x9E3779B97F4A7C15 % 2**64, min(high // 60 % 40, high // 2400 % 25)
            columns.append((user, item, (high >> 7) % 2, 0.25 + (high >> 11) % 8 / 4))
        yield tuple(zip(*columns, strict=True))


def _describe(model: Backend, turn: int) -> None:
    """Set vectors of known and of new items that are computed from integers."""
    d = model.spec.embeddings.dimension
    keys = np.arange(turn, 160, 3, dtype=np.uint64)
    numbers = (
        keys[:, None] * np.uint64(2654435761) + np.arange(d, dtype=np.uint64) * np.uint64(40503)
    ) % 4093
    vectors = (numbers.astype(np.float64) / 2048 - 1).astype(np.float16)
    rows = model.items.allocate(keys)
    model.set_embeddings(ITEMS, rows, vectors, model.revision + 1, model.items.allocated)


def _tell(model: Backend, turn: int) -> None:
    """Set bags of known and of new ids of a side that are computed from integers."""
    side = turn // 2 % 2
    table, per_id = (model.users, model.items)[side], model.spec.features.per_id
    keys = np.arange(turn, 160, 3, dtype=np.uint64)
    rows = table.allocate(keys * np.uint64(0x9E3779B97F4A7C15) if side == USERS else keys)
    sizes = (keys % np.uint64(per_id + 1)).astype(np.int64)
    owner = np.repeat(keys, sizes)
    place = np.arange(len(owner), dtype=np.uint64) - np.repeat(np.cumsum(sizes) - sizes, sizes).astype(
        np.uint64
    )
    features = (owner + place * np.uint64(7)) % np.uint64(60)
    weights = ((owner * np.uint64(31) + place) % np.uint64(16) + np.uint64(1)).astype(np.float32) / 8
    bags = Bags(np.cumsum(sizes), features, weights)
    model.set_features(side, rows, bags, model.revision + 1, table.allocated)


def _tell_context(model: Backend, items: np.ndarray) -> None:
    """Learn the events of a record with bags that are computed from the keys of their items."""
    sizes = (items % np.uint64(4)).astype(np.int64)
    features = np.repeat(items, sizes) * np.uint64(5) + np.arange(sizes.sum(), dtype=np.uint64)
    weights = (features % np.uint64(8) + np.uint64(1)).astype(np.float32) / 4
    rows = model.items.find(items, model.published[ITEMS])
    model.learn_context(rows, Bags(np.cumsum(sizes), features % np.uint64(31), weights))


def _begin(model: Backend) -> None:
    """Give users and items, of which some come later, factors that are computed from integers."""
    for side, table, stride in ((USERS, model.users, 0x9E3779B97F4A7C15), (ITEMS, model.items, 1)):
        keys = np.arange(0, 40, 2, dtype=np.uint64) * np.uint64(stride)
        rows = table.allocate(keys)
        places = np.arange(len(keys))[:, None] * 31 + np.arange(12) * 17
        factors = (places % 41).astype(np.float32) / 32 - np.float32(0.5)
        counts = model.users.allocated, model.items.allocated
        model.begin(Start(side, rows, factors, None, model.revision + 1, *counts))


def digest(name: str, backend: str = "cpu") -> str:
    """Return the SHA-256 digest of the state after the stream."""
    model = create_backend(backend, SPECS[name])
    if model.spec.solve.start_events:
        _begin(model)
    for users, items, values, weights in _stream():
        push(model, users, items, values, weights)
        if model.spec.embeddings.dimension:
            _describe(model, model.revision)
        if model.spec.features.size:
            _tell(model, model.revision)
        if model.spec.context.size:
            _tell_context(model, np.asarray(items, np.uint64))
    sha = hashlib.sha256()
    for section, view in state_sections(model).items():
        sha.update(f"{section} {view.dtype} {view.shape}\n".encode() + view.tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    for name in sys.argv[1:] or SPECS:
        print(name, digest(name))
