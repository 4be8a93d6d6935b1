"""Server reflection that keeps the protos' comments, under grpc.reflection.v1 and v1alpha (the messages are the same).

Python's generated code drops the comments; they are kept beside it in descriptors.binpb, written by scripts/gen-protos.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from importlib import resources
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import Default
from grpc_reflection.v1alpha import reflection_pb2

NAMES: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


class Reflection:
    """Answers what grpcurl and other tools ask about the services."""

    def __init__(self, service_names: Iterable[str]) -> None:
        self._service_names = sorted({*service_names, *NAMES})
        described = descriptor_pb2.FileDescriptorSet.FromString(
            resources.files("onefold.v1").joinpath("descriptors.binpb").read_bytes()
        )
        self._files = {file.name: file for file in described.file}

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """To be added to a server."""
        method = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in NAMES]

    async def _serve(
        self, requests: AsyncIterator[reflection_pb2.ServerReflectionRequest], context: Any
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        async for request in requests:
            answer = self._answer(request)
            answer.valid_host = request.host
            answer.original_request.CopyFrom(request)
            yield answer

    def _answer(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        try:
            match request.WhichOneof("message_request"):
                case "list_services":
                    return reflection_pb2.ServerReflectionResponse(
                        list_services_response=reflection_pb2.ListServiceResponse(
                            service=[reflection_pb2.ServiceResponse(name=name) for name in self._service_names]
                        )
                    )
                case "file_by_filename":
                    return self._file(request.file_by_filename)
                case "file_containing_symbol":
                    return self._file(Default().FindFileContainingSymbol(request.file_containing_symbol).name)
                case "file_containing_extension":
                    extension = request.file_containing_extension
                    extended = Default().FindMessageTypeByName(extension.containing_type)
                    found = Default().FindExtensionByNumber(extended, extension.extension_number)
                    return self._file(found.file.name)  # type: ignore[attr-defined]  # the stubs lack it
                case "all_extension_numbers_of_type":
                    name = request.all_extension_numbers_of_type
                    extensions = Default().FindAllExtensions(Default().FindMessageTypeByName(name))
                    return reflection_pb2.ServerReflectionResponse(
                        all_extension_numbers_response=reflection_pb2.ExtensionNumberResponse(
                            base_type_name=name, extension_number=sorted(each.number for each in extensions)
                        )
                    )
                case _:
                    return _error(grpc.StatusCode.INVALID_ARGUMENT, "The request asks for nothing.")
        except KeyError:
            return _error(grpc.StatusCode.NOT_FOUND, "There is nothing of this name.")

    def _file(self, name: str) -> reflection_pb2.ServerReflectionResponse:
        file = self._files.get(name)
        if file is None:
            file = descriptor_pb2.FileDescriptorProto()
            Default().FindFileByName(name).CopyToProto(file)
        return reflection_pb2.ServerReflectionResponse(
            file_descriptor_response=reflection_pb2.FileDescriptorResponse(
                file_descriptor_proto=[file.SerializeToString()]
            )
        )


def _error(code: grpc.StatusCode, message: str) -> reflection_pb2.ServerReflectionResponse:
    return reflection_pb2.ServerReflectionResponse(
        error_response=reflection_pb2.ErrorResponse(error_code=code.value[0], error_message=message)
    )
