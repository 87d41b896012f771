"""TLS: the server's certificate files as gRPC wants them, read again when they change."""

import grpc

from hermosis_server.access.certificates import CertificateFiles, ServerCertificate


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files. Open connections stay as they are; the next ones meet the new."""

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        changed = files.changed()
        return None if changed is None else _configuration(changed)

    asks = files.current.client_ca is not None
    # gRPC takes None for "nothing new"; its type stubs do not know.
    credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
        _configuration(files.current),
        fetch,  # type: ignore[arg-type]
        require_client_authentication=asks,
    )
    return credentials


def _configuration(shown: ServerCertificate) -> grpc.ServerCertificateConfiguration:
    configuration: grpc.ServerCertificateConfiguration = grpc.ssl_server_certificate_configuration(
        [(shown.key, shown.certificate)], root_certificates=shown.client_ca
    )
    return configuration
