"""A plain afternoon's gRPC parameter server: the gradient in one unary call as protobuf bytes, the weights back."""

from concurrent.futures import ThreadPoolExecutor

from benchmarks.peers.arguments import parse
from benchmarks.peers.child import MomentumServer, Voice, end_with_stdin, gradient, obey

METHOD = "/benchmark.Naive/Step"


def main() -> None:
    asked, voice = parse()
    if asked.role == "server":
        end_with_stdin()
        serve(voice, asked.parameters)
    else:
        work(voice, asked.address, asked.parameters)


def serve(voice: Voice, parameters: int) -> None:
    import grpc
    import numpy as np
    from google.protobuf.wrappers_pb2 import BytesValue

    model = MomentumServer(parameters)

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[BytesValue, BytesValue]":
            return grpc.unary_unary_rpc_method_handler(
                step, request_deserializer=BytesValue.FromString, response_serializer=BytesValue.SerializeToString
            )

    def step(request: BytesValue, context: grpc.ServicerContext) -> BytesValue:
        received = np.frombuffer(bytearray(request.value), np.float32)  # torch warns of memory that is only readable
        return BytesValue(value=model.step(received).tobytes())

    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(8), options=options)
    server.add_generic_rpc_handlers([Handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    voice.tell(address=f"127.0.0.1:{port}")
    voice.tell(ready=True)
    server.wait_for_termination()


def work(voice: Voice, address: str, parameters: int) -> None:
    import grpc
    import numpy as np
    from google.protobuf.wrappers_pb2 import BytesValue

    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    mine = gradient(parameters)
    weights = np.zeros(parameters, np.float32)
    with grpc.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary(
            METHOD, request_serializer=BytesValue.SerializeToString, response_deserializer=BytesValue.FromString
        )

        def exchange() -> None:
            weights[:] = np.frombuffer(call(BytesValue(value=mine.tobytes())).value, np.float32)

        obey(voice, {"one": [exchange]})


if __name__ == "__main__":
    main()
