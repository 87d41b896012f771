"""The file of tokens: what is kept, what is refused, and what a reader sees while it changes."""

import json
import stat
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hermosis_server.access.tokens import PREFIX, TokenFile, fingerprint
from hermosis_server.cli.root import app
from hermosis_server.errors import InvalidRequest, Unauthenticated
from hermosis_server.identity import Role


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_token_is_256_random_bits_and_only_its_fingerprint_is_kept(tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path)
    made = [tokens.create(f"n{number}", role="worker") for number in range(3)]
    assert len(set(made)) == 3
    for token in made:
        assert token.startswith(PREFIX)
        assert len(token) >= len(PREFIX) + 43  # 256 bits in base64
        assert token not in tokens.path.read_text()
        assert token.removeprefix(PREFIX) not in tokens.path.read_text()
        assert fingerprint(token) in tokens.path.read_text()


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path / "new")
    tokens.create("n", role="worker")
    assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(tokens.path.parent.stat().st_mode) == 0o700


def test_a_token_lets_in_whom_it_was_made_for(tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path)
    token = tokens.create("ci", role="worker", tenant="acme", sessions="run-*", lifetime_s=60)
    admission = TokenFile(tmp_path).admit(token)
    identity = admission.identity
    assert (identity.subject, identity.tenant, identity.role, identity.sessions) == (
        "ci",
        "acme",
        Role.WORKER,
        "run-*",
    )
    assert identity.full_name("run-1") == "acme.run-1"
    assert identity.full_name("other") is None


def test_a_token_ends_when_it_expires_and_when_it_is_revoked(tmp_path: Path) -> None:
    clock = Clock()
    tokens = TokenFile(tmp_path, clock=clock)
    short, long = tokens.create("short", role="viewer", lifetime_s=10), tokens.create("long", role="viewer")
    clock.now_s += 9.9
    tokens.admit(short)
    clock.now_s += 0.1
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.admit(short)
    tokens.revoke("long")
    with pytest.raises(Unauthenticated, match="revoked"):
        tokens.admit(long)
    with pytest.raises(InvalidRequest, match="no token"):
        tokens.revoke("long")
    tokens.create("long", role="viewer")  # the name is free again


def test_another_process_sees_changes_and_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    server, command = TokenFile(tmp_path), TokenFile(tmp_path)
    token = command.create("n", role="viewer")
    assert server.refresh()
    assert not server.refresh()
    server.admit(token)
    command.revoke("n")
    assert server.refresh()
    with pytest.raises(Unauthenticated):
        server.admit(token)


def test_tokens_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    def make(name: str) -> None:
        TokenFile(tmp_path).create(name, role="viewer")

    makers = [threading.Thread(target=make, args=(f"n{number}",)) for number in range(8)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert {record.name for record in TokenFile(tmp_path).records} == {f"n{number}" for number in range(8)}


@pytest.mark.parametrize("name", ["", "../escape", "a/b", "a b", "a\nb", ".hidden", "x" * 64, "a\0b", "ä"])
def test_names_that_are_no_plain_words_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        TokenFile(tmp_path).create(name, role="viewer")


@pytest.mark.parametrize("tenant", ["", "../x", "a.b", "a/b", "A", "a\n", "x" * 64, "-a"])
def test_tenants_that_could_be_taken_for_something_else_are_refused(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(InvalidRequest, match="tenant"):
        TokenFile(tmp_path).create("n", role="viewer", tenant=tenant)


@pytest.mark.parametrize("sessions", ["", "a.b", "[ab]", "../*", "a\n"])
def test_patterns_are_of_what_ids_are_of(tmp_path: Path, sessions: str) -> None:
    with pytest.raises(InvalidRequest, match="sessions"):
        TokenFile(tmp_path).create("n", role="viewer", sessions=sessions)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no json",
        "[]",
        "{}",
        '{"tokens": [{"name": "n"}]}',
        '{"tokens": [{"name": "n", "fingerprint": "f", "role": "KING", "created_s": 1}]}',
        '{"tokens": 3}',
    ],
)
def test_a_file_that_makes_no_sense_stops_the_server_rather_than_letting_everybody_in(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "tokens.json").write_text(content)
    with pytest.raises(InvalidRequest, match=r"tokens\.json"):
        TokenFile(tmp_path)


def hermosis(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["token", *arguments])


def test_commands_make_list_and_revoke_tokens(tmp_path: Path) -> None:
    folder = ("--data-folder", str(tmp_path))
    made = hermosis("create", "--name", "ci", "--role", "worker", "--session", "run-*", "--expires", "30d", *folder)
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert TokenFile(tmp_path).admit(token).identity.role is Role.WORKER
    [listed] = json.loads(hermosis("list", "--json", *folder).stdout)
    assert (listed["name"], listed["status"], listed["sessions"]) == ("ci", "valid", "run-*")
    assert token not in hermosis("list", *folder).stdout
    assert hermosis("revoke", "ci", *folder).exit_code == 0
    [listed] = json.loads(hermosis("list", "--json", *folder).stdout)
    assert listed["status"] == "revoked"
    with pytest.raises(Unauthenticated):
        TokenFile(tmp_path).admit(token)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "--name", "n", "--role", "king"), "role"),
        (("create", "--name", "../n", "--role", "worker"), "name"),
        (("create", "--name", "n", "--role", "worker", "--expires", "soon"), "--expires"),
        (("create", "--name", "n", "--role", "worker", "--expires", "0d"), "--expires"),
        (("revoke", "nobody"), "nobody"),
    ],
)
def test_commands_say_what_will_not_do(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    refused = hermosis(*arguments, "--data-folder", str(tmp_path))
    assert refused.exit_code != 0
    assert told in refused.output
    assert TokenFile(tmp_path).records == []
