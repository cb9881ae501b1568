"""A livefactor client that knows only an address. Reflection gives it the calls and messages.

    pip install grpcio grpcio-reflection protobuf
    python reflection_client.py localhost:50051

It creates a model, pushes a few purchases exactly once, and asks for a customer's best items at the
revision of that push.
"""

import hashlib
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PURCHASES = [
    ("ada", "teapot"),
    ("ada", "cup"),
    ("bob", "teapot"),
    ("bob", "cup"),
    ("bob", "saucer"),
    ("eve", "kite"),
    ("eve", "string"),
]


class Contract:
    """The server's services, found by reflection. `call` takes a message's fields as keywords."""

    def __init__(self, channel):
        self._channel = channel
        self._pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))

    def call(self, service, method, **fields):
        """Makes one unary call of livefactor.v1. Messages are dictionaries of their fields."""
        name = f"livefactor.v1.{service}"
        descriptor = self._pool.FindServiceByName(name).methods_by_name[method]
        request = GetMessageClass(descriptor.input_type)(**fields)
        send = self._channel.unary_unary(
            f"/{name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(descriptor.output_type).FromString,
        )
        # The server compiles its kernels for the first model.
        return send(request, timeout=60, wait_for_ready=True)


def key(text):
    """The 64-bit key of a string id: BLAKE2b with an 8-byte digest, as a little-endian number."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def create_model(livefactor, model):
    """Creates the model, unless an earlier run of this example did."""
    try:
        livefactor.call("ModelService", "CreateModel", model=model, preset="purchases")
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.ALREADY_EXISTS:
            raise


def push(livefactor, model, producer_id):
    """Pushes the purchases as one batch, stamped so that a retry is applied once.

    Returns the answer.
    """
    # Labels let answers contain the texts of ids. Sending them twice changes nothing, so they need
    # no stamp.
    items = sorted({item for _, item in PURCHASES})
    labels = {"side": "SIDE_ITEM", "ids": [key(item) for item in items], "labels": items}
    livefactor.call("UpdateService", "ApplyUpdates", model=model, labels=labels)
    opened = livefactor.call("UpdateService", "OpenProducer", model=model, producer_id=producer_id)
    return livefactor.call(
        "UpdateService",
        "ApplyUpdates",
        model=model,
        producer={"id": producer_id, "epoch": opened.epoch, "sequence": opened.last_sequence + 1},
        interactions={
            "user_ids": [key(user) for user, _ in PURCHASES],
            "item_ids": [key(item) for _, item in PURCHASES],
        },
    )


def main(target, model="reflected"):
    """Runs the example on the server at `target`."""
    with grpc.insecure_channel(target) as channel:
        livefactor = Contract(channel)
        create_model(livefactor, model)
        ack = push(livefactor, model, producer_id="reflection-client")
        print(f"pushed {ack.accepted} purchases, visible at revision {ack.position.revision}")
        best = livefactor.call(
            "ScoringService",
            "Score",
            model=model,
            min_position=ack.position,
            user_ids=[key("ada")],
            top_k={"k": 3},
            with_labels=True,
        )
        print(f"ada's best at revision {best.position.revision}:")
        for item, score in zip(best.labels, best.scores, strict=True):
            print(f"  {score:+.4f}  {item}")


if __name__ == "__main__":
    main(*sys.argv[1:])
