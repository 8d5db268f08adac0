"""API keys: how they are given, sent and kept, and what they open."""

import hashlib

import pytest

from server.api.access.keys import MAX_KEYS, ApiKeyError, open_key_ring
from server.api.access.scopes import Scope
from server.settings import Settings
from server.settings_sources import read_settings
from tests.support.ingress import send_request

SECRET = {"Authorization": "Bearer secret"}
HASH = "sha256:" + hashlib.sha256(b"secret").hexdigest()


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}]
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/generate", "/openapi.json", "/x"])
def test_everything_but_health_needs_the_key(path, headers):
    response = send_request(path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["type"] == "authentication_error"


def test_the_key_lets_in_and_health_is_public():
    assert send_request(headers=SECRET).status_code == 200
    assert send_request("/health").status_code == 200
    assert send_request(settings={"host": "0.0.0.0"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        SECRET,
        {"Authorization": "bearer secret"},
        {"X-Api-Key": "secret"},
        {"X-Api-Key": "secret", "Authorization": "Bearer wrong"},
        {"X-Api-Key": "wrong", **SECRET},
    ],
)
@pytest.mark.parametrize("given", ["secret", "other,secret", HASH, HASH.upper()])
def test_either_header_lets_in_by_a_key_or_its_hash(headers, given):
    response = send_request(headers=headers, settings={"host": "0.0.0.0", "api_key": given})
    assert response.status_code == 200
    assert response.headers["x-client"] == hashlib.sha256(b"secret").hexdigest()[:12]


@pytest.mark.parametrize("sent", [HASH, HASH.removeprefix("sha256:"), "secret,other", "other"])
def test_neither_a_hash_nor_a_list_is_a_key(sent):
    for given in (HASH, "secret,another"):
        response = send_request(
            headers={"X-Api-Key": sent}, settings={"host": "0.0.0.0", "api_key": given}
        )
        assert response.status_code == 401


def test_a_client_without_a_key_has_no_name():
    assert send_request(settings={"host": "0.0.0.0"}).headers["x-client"] == "-"
    assert send_request("/health").headers["x-client"] == "-"


@pytest.mark.parametrize("key", [b"Bearer \xff\xfe", b"Bearer ", b"", b"Bearer secret2", b"\xff"])
@pytest.mark.parametrize("header", [b"Authorization", b"X-Api-Key"])
def test_a_malformed_key_is_a_wrong_key(header, key):
    assert send_request(headers={header: key}).status_code == 401


@pytest.mark.parametrize("key", ["", " ", "\t", " secret", "secret\n", "se\x00cret", "a,", ",a"])
def test_a_key_that_no_client_can_send_is_an_invalid_setting(key, monkeypatch):
    with pytest.raises(ValueError, match="must not be empty"):
        Settings(api_key=key)
    monkeypatch.setenv("TRIMTAB_API_KEY", key.replace("\x00", "\x01"))
    with pytest.raises(ValueError, match="must not be empty"):
        Settings()


@pytest.mark.parametrize("text", ["sha256:", "sha256:abc", HASH + "0", HASH[:-1] + "g"])
def test_a_hash_that_is_none_is_an_invalid_setting(text):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        Settings(api_key=text)


def test_settings_do_not_hold_a_key_itself(tmp_path):
    config = tmp_path / "trimtab.toml"
    config.write_text('api_key = ["hunter2", "other"]')
    for settings in (
        read_settings({"api_key": "hunter2"}, {}),
        read_settings({}, {}, config),
    ):
        assert "hunter2" not in repr(settings)
        assert open_key_ring(settings.api_key, None).find(b"hunter2")


FILE = f"""
# the team
{HASH} metrics

plain infer,metrics
mine
root admin
"""


@pytest.fixture
def ring(tmp_path):
    file = tmp_path / "keys"

    def opened(text=FILE, *, given=()):
        file.write_text(text)
        return open_key_ring(Settings(api_key=given).api_key, file)

    return opened


@pytest.mark.parametrize(
    ("key", "scopes"),
    [
        ("secret", {"metrics"}),
        ("plain", {"infer", "metrics"}),
        ("mine", {"infer"}),
        ("root", {"infer", "metrics", "admin"}),
        ("flag", {"infer", "metrics", "admin"}),
    ],
)
def test_a_key_opens_the_scopes_of_its_line(ring, key, scopes):
    found = ring(given="flag").find(key.encode())
    assert {scope for scope in Scope if found.opens(scope)} == {"public", *scopes}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no key"),
        ("# only words\n\n", "has no key"),
        ("hunter2 infer metrics", "line 1"),
        ("\nhunter2 all", "line 2"),
        ("hunter2 infer,", "scopes are admin, infer, metrics"),
        ("hunter2 public", "scopes are admin, infer, metrics"),
        ("sha256:12 infer", "64 hexadecimal digits"),
        ("hunter2\nhunter2 admin", "given twice"),
        ("\n".join(f"key{i}" for i in range(MAX_KEYS + 1)), "at most 1000"),
        ("x" * 2**21, "larger than"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_refused_without_showing_a_key(ring, text, says):
    with pytest.raises(ApiKeyError, match=says) as caught:
        ring(text)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ApiKeyError, match="cannot read"):
        open_key_ring((), tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ApiKeyError, match="UTF-8"):
        open_key_ring((), tmp_path / "binary")


def test_all_hashes_are_compared_whichever_is_right(ring, monkeypatch):
    compared = []
    monkeypatch.setattr(
        "server.api.access.keys.hmac.compare_digest", lambda a, b: compared.append(a) or a == b
    )
    keys = ring()
    for sent in (b"secret", b"root", b"wrong"):
        compared.clear()
        keys.find(sent)
        assert len(compared) == 4
