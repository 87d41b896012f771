"""What is wrong between two ends that do not agree about TLS: gRPC says "unavailable", and would try for ever.

Some of it gRPC's message tells. The rest a server tells in the first bytes of a handshake, so we make one ourselves.
"""

import contextlib
import socket
import ssl

from hermosis_client.access import Access

_PROBE_S = 1.0
# The other end hung up while the connection was being made, or a while later.
_HUNG_UP = ("Socket closed", "onnection reset", "roken pipe", "andshake", "GOAWAY")


def tls_trouble(address: str, access: Access, text: str) -> str:
    """What is wrong, and what to do; empty where it is not TLS, as far as can be known.

    Args:
      text: of the error that gRPC gave.
    """
    if access.tls:
        if "CERTIFICATE_VERIFY_FAILED" in text or "ostname" in text or "Peer name" in text:
            return (
                f"its certificate is not one that {access.ca_file} vouches for under this name; check the CA "
                "(ca_file, HERMOSIS_CA) and the names in the server's certificate"
            )
        if "WRONG_VERSION_NUMBER" in text:
            return (
                "the server speaks clear text, this client TLS; start it with TLS, or leave ca_file (HERMOSIS_CA) out"
            )
    if address.startswith("unix:") or not any(words in text for words in _HUNG_UP):
        return ""
    return _probed(address, access)


def _probed(address: str, access: Access) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # Nothing is sent: this only listens how the server answers.
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, ValueError):
        if access.certificate:
            context.load_cert_chain(access.certificate, access.key)
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S)
        with plain, context.wrap_socket(plain, server_hostname=host.strip("[]")) as secure:
            if not access.tls:
                return "the server speaks TLS, this client clear text; give ca_file (HERMOSIS_CA)"
            # What it thinks of our certificate it tells after the handshake; one that takes it speaks first.
            if _hangs_up(secure):
                return _certificate_trouble(access)
    return ""


def _hangs_up(secure: ssl.SSLSocket) -> bool:
    try:
        return not secure.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


def _certificate_trouble(access: Access) -> str:
    if access.certificate:
        return f"the server does not take the certificate {access.certificate}; have one signed by the CA it knows"
    return "the server asks for a client certificate; give certificate and key (HERMOSIS_CERTIFICATE, HERMOSIS_KEY)"
