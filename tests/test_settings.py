"""Options: how they are parsed and checked, what is refused; a plain application notices none of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import KNOWN_SETTINGS, Config
from hypothesis import given
from hypothesis import strategies as st

from poolparty import settings
from poolparty.errors import ConfigError
from poolparty.pool.routing import Route
from poolparty.settings import (
    OPTIONS,
    REFUSED,
    SECTION,
    WITHOUT_EFFECT,
    Options,
    PoolTable,
    parse_duration,
)

ROOT = Path(__file__).resolve().parents[1]


def pool_config(**values: object) -> Config:
    """A Config for GWorker, as it is when everything is loaded and validate() is next."""
    cfg = Config()
    cfg.set("worker_class", "poolparty.GWorker")
    cfg.set("pool_cmd", "sh app.sh")
    for name, value in values.items():
        cfg.set(name, value)
    return cfg


# Durations.

GO_DURATIONS = {
    "0": 0.0,
    "50ms": 0.05,
    "60s": 60.0,
    "1m30s": 90.0,
    "1.5h": 5400.0,
    "1h0m0.5s": 3600.5,
    "2us": 2e-6,
    "2\u00b5s": 2e-6,
    "2\u03bcs": 2e-6,
    "100ns": 1e-7,
    ".5s": 0.5,
    "1.s": 1.0,
    "+5s": 5.0,
    "5": 5.0,
    "0.25": 0.25,
    " 7s ": 7.0,
}


@pytest.mark.parametrize("text", GO_DURATIONS)
def test_durations_read_as_go_reads_them(text: str) -> None:
    assert parse_duration(text) == GO_DURATIONS[text]


@given(st.integers(0, 8000), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_a_duration_of_several_units_is_their_sum(hours: int, minutes: int, seconds: int, ms: int) -> None:
    exact = (hours * 3600_000 + minutes * 60_000 + seconds * 1000 + ms) / 1000
    assert parse_duration(f"{hours}h{minutes}m{seconds}s{ms}ms") == pytest.approx(exact, abs=1e-9)


@given(st.floats(0, settings.MAX_DURATION))
def test_a_bare_number_is_seconds_as_a_number_and_as_text(seconds: float) -> None:
    assert parse_duration(seconds) == seconds
    assert parse_duration(f"{seconds:.9f}") == pytest.approx(seconds, abs=1e-8)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_sentence(text: str) -> None:
    try:
        assert 0 <= parse_duration(text) <= settings.MAX_DURATION
    except ValueError as error:
        assert "give" in str(error)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "s",
        "5 s",
        "1d",
        "5sec",
        "1e3",
        "0x10",
        "5s-",
        "--5s",
        "-+5s",
        "\u0665s",
        "1_0s",
        None,
        True,
        b"5s",
    ],
)
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(value)


@pytest.mark.parametrize("value", ["-5s", -1, "-0.1", -(10**400)])
def test_a_negative_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="negative"):
        parse_duration(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "9" * 400, "9000h"])
def test_a_duration_no_timer_can_keep_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="longer than a year"):
        parse_duration(value)


# Options.


def test_each_option_has_its_field_in_the_order_of_the_table() -> None:
    assert [option.name for option in OPTIONS] == [field.name for field in fields(Options)]


def test_the_defaults_are_those_of_the_original() -> None:
    options = Options.from_cfg(pool_config())
    assert options == Options(
        pool_cmd=("sh", "app.sh"),
        listen_address=None,
        ctl_socket="./poolparty.sock",
        ctl_socket_group=None,
        admin_address=None,
        admin_prefix=None,
        agent_address=None,
        slowlog_timeout=0,
        request_ids=False,
        access_log_json=False,
        min_pool_size=1,
        max_pool_size=1,
        pools=(),
        total_pool_size=0,
        total_memory_limit=0,
        worker_spawn_timeout=0.05,
        worker_rendezvous_timeout=60,
        worker_request_timeout=60,
        worker_request_grace=5,
        stream_cancel_timeout=5.0,
        worker_restart_delay=1,
        worker_boot_timeout=60,
        worker_health_check_interval=120,
        worker_health_check_timeout=10,
        worker_attrition_delay=120,
        worker_restart_surge=1,
        spare_workers=0,
        worker_max_requests=0,
        worker_max_requests_jitter=0,
        worker_max_age=0,
        worker_idle_timeout=0,
        worker_memory_limit=0,
        worker_memory_kill=0,
        worker_env_clear=False,
        worker_env_keep=(
            *("PATH", "LANG", "LANGUAGE", "LC_*", "TZ"),
            *("HOME", "USER", "LOGNAME", "SHELL", "TMPDIR"),
        ),
        worker_rlimit_as=None,
        worker_rlimit_nofile=None,
        worker_rlimit_cpu=None,
        worker_rlimit_core=None,
        worker_nice=0,
        worker_no_new_privs=False,
        worker_oom_score_adj=None,
        pool_prefetch=4,
        response_buffer_size=1048576,
        request_read_timeout=60,
        request_write_timeout=60,
        request_backlog=1024,
        max_request_body_size=4194304,
        request_spool_size=1048576,
        request_spool_dir=None,
        static_root=None,
        static_url_prefix="/static/",
        static_compress=False,
        static_no_brotli=False,
        static_cache_dir=None,
        sendfile_root=None,
        reload_paths=None,
    )


OTHER_VALUES: dict[str, tuple[Any, Any]] = {
    "pool_cmd": (["a b", "c"], ("a b", "c")),
    "listen_address": ("unix:/tmp/x", "unix:/tmp/x"),
    "ctl_socket": ("/tmp/ctl", "/tmp/ctl"),
    "ctl_socket_group": (27, "27"),
    "min_pool_size": ("0", 0),
    "max_pool_size": (8, 8),
    "pools": (
        {"api": {"routes": ["/api"], "max_pool_size": "2"}},
        (PoolTable("api", (Route(b"", b"/api"),), {"max_pool_size": "2"}),),
    ),
    "total_pool_size": ("9", 9),
    "total_memory_limit": ("2G", 2 << 30),
    "worker_restart_surge": ("0", 0),
    "spare_workers": ("1", 1),
    "worker_max_requests": ("9", 9),
    "worker_max_requests_jitter": (3, 3),
    "worker_memory_limit": ("512M", 512 << 20),
    "worker_memory_kill": ("2GiB", 2 << 30),
    "worker_env_clear": ("true", True),
    "worker_env_keep": ("PATH, DB_*", ("PATH", "DB_*")),
    "worker_rlimit_as": ("1G", 1 << 30),
    "worker_rlimit_nofile": ("unlimited", settings.UNLIMITED),
    "worker_rlimit_cpu": ("1.5s", 2),
    "worker_rlimit_core": (0, 0),
    "worker_nice": ("-5", -5),
    "worker_no_new_privs": (True, True),
    "worker_oom_score_adj": ("-17", -17),
    "pool_prefetch": ("1", 1),
    "response_buffer_size": ("65536", 65536),
    "request_backlog": ("7", 7),
    "max_request_body_size": ("4G", 4 << 30),
    "request_spool_size": ("0", 0),
    "request_spool_dir": ("spool", "spool"),
    "static_root": ("files", "files"),
    "static_url_prefix": ("/files", "/files/"),
    "static_compress": (True, True),
    "static_no_brotli": ("true", True),
    "static_cache_dir": (Path("/var/cache/files"), "/var/cache/files"),
    "sendfile_root": ("private", "private"),
    "reload_paths": ("app.py:lib", ("app.py", "lib")),
    "admin_address": ("localhost:81", ("localhost", 81)),
    "admin_prefix": ("/-/pool", "/-/pool/"),
    "agent_address": ("unix:/run/agent.sock", "/run/agent.sock"),
    "request_ids": ("true", True),
    "access_log_json": (True, True),
}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_each_option_is_read_from_its_own_setting(option: settings.Option) -> None:
    raw, parsed = OTHER_VALUES.get(option.name, ("1m1s", 61.0))
    options = Options.from_cfg(pool_config(**{option.name: raw}))
    changed = {name.name for name in fields(Options) if getattr(options, name.name) != _default(name.name)}
    assert getattr(options, option.name) == parsed
    assert changed == {option.name}


def _default(name: str) -> object:
    return getattr(Options.from_cfg(pool_config()), name)


BAD = [
    ("max_pool_size", 0),
    ("max_pool_size", 10_000_000),
    ("max_pool_size", "eight"),
    ("max_pool_size", True),
    ("max_pool_size", 2.0),
    ("max_pool_size", "9" * 5000),
    ("min_pool_size", -1),
    ("min_pool_size", 2),
    ("spare_workers", 2),
    ("worker_restart_surge", -1),
    ("worker_spawn_timeout", 0),
    ("worker_rendezvous_timeout", "0s"),
    ("worker_request_timeout", -1),
    ("worker_request_grace", "soon"),
    ("request_backlog", 0),
    ("max_request_body_size", (1 << 50) + 1),
    ("max_request_body_size", "2000T"),
    ("request_spool_size", "-1"),
    ("request_spool_dir", 5),
    ("listen_address", "localhost:http"),
    ("listen_address", "localhost:70000"),
    ("listen_address", 8080),
    ("ctl_socket", ""),
    ("ctl_socket", "x" * 108),
    ("ctl_socket", None),
    ("ctl_socket_group", " "),
    ("ctl_socket_group", -1),
    ("worker_env_clear", 1),
    ("worker_env_keep", 5),
    ("worker_env_keep", "A=B"),
    ("worker_env_keep", "*_KEY"),
    ("worker_env_keep", ["HOME", None]),
    ("worker_rlimit_as", "31M"),
    ("worker_rlimit_as", "much"),
    ("worker_rlimit_as", 2**63),
    ("worker_rlimit_nofile", 15),
    ("worker_rlimit_cpu", 0),
    ("worker_rlimit_core", -1),
    ("worker_nice", 20),
    ("worker_no_new_privs", "maybe"),
    ("worker_oom_score_adj", 1001),
    ("pool_cmd", "sh 'app"),
    ("pool_cmd", ["sh", 5]),
    ("pool_cmd", ["sh", "a\0b"]),
    ("pool_cmd", 5),
    ("static_root", ""),
    ("static_root", 5),
    ("static_url_prefix", "static/"),
    ("static_url_prefix", "/static?"),
    ("static_compress", "sometimes"),
    ("static_compress", 1),
    ("static_cache_dir", "a\0b"),
    ("sendfile_root", ""),
    ("sendfile_root", ["/srv", "/var"]),
    ("reload_paths", []),
    ("reload_paths", "lib:"),
    ("reload_paths", ["lib", None]),
    ("reload_paths", 5),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_one_sentence_with_the_name_and_the_value(name: str, value: object) -> None:
    cfg = pool_config(**{name: value})
    with pytest.raises(ConfigError) as caught:
        Options.from_cfg(cfg)
    sentence = str(caught.value)
    assert sentence.startswith(f"{name} = " if value is not None and len(repr(value)) < 200 else f"{name}: ")
    assert sentence.endswith(".") and "\n" not in sentence
    if value is not None and len(repr(value)) < 200:
        assert repr(value) in sentence


@pytest.mark.parametrize("name", ["static_root", "sendfile_root"])
def test_a_root_that_is_no_directory_ends_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    cfg = pool_config(**{name: "file"}, chdir=str(tmp_path))
    with pytest.raises(ConfigError, match=rf"^{name} = 'file': there is no directory .*/file; give "):
        cfg.validate()


@pytest.mark.parametrize("name", ["static_root", "sendfile_root"])
def test_a_root_is_looked_for_from_chdir(tmp_path: Path, name: str) -> None:
    (tmp_path / "files").mkdir()
    pool_config(**{name: "files"}, chdir=str(tmp_path)).validate()


@pytest.mark.parametrize("nothing", [None, "", "  ", [], (), [""]])
def test_without_a_command_the_sentence_says_where_to_give_one(nothing: object) -> None:
    with pytest.raises(ConfigError, match=r"^pool_cmd.*`--`.*--pool-cmd"):
        Options.from_cfg(pool_config(pool_cmd=nothing))


def test_a_command_may_hold_paths() -> None:
    assert Options.from_cfg(pool_config(pool_cmd=["sh", Path("app.sh")])).pool_cmd == ("sh", "app.sh")


# Checks of the whole.


def test_a_plain_application_may_use_our_names_for_anything() -> None:
    cfg = Config()
    for option in OPTIONS:
        cfg.set(option.name, object())
    cfg.set("threads", 4)
    cfg.validate()
    assert cfg.wsgi_app is None
    assert cfg.bind == Config().bind
    assert cfg.graceful_timeout == 30


def test_gworker_needs_no_application_module() -> None:
    assert pool_config().wsgi_app == "poolparty.worker.gworker:application"


def test_a_class_derived_from_gworker_is_known_as_ours() -> None:
    gworker = type("GWorker", (), {"__module__": "poolparty.worker.gworker"})
    cfg = Config()
    cfg.set("worker_class", type("Mine", (gworker,), {}))
    assert settings.serves_a_pool(cfg)
    cfg.set("worker_class", type("GWorker", (), {}))
    assert not settings.serves_a_pool(cfg)


def test_the_stop_waits_for_the_longest_request_unless_told_otherwise() -> None:
    cfg = pool_config(worker_request_timeout="90.5s")
    cfg.validate()
    assert cfg.graceful_timeout == 96
    short = pool_config(worker_request_timeout="2s")
    short.validate()
    assert short.graceful_timeout == 30
    told = pool_config(worker_request_timeout="90s", graceful_timeout=30)
    told.validate()
    assert told.graceful_timeout == 30


def test_of_listen_address_and_bind_the_one_given_last_counts() -> None:
    cfg = pool_config(bind=["127.0.0.1:1"], listen_address="127.0.0.1:2")
    cfg.validate()
    assert cfg.bind == ["127.0.0.1:2"]
    cfg = pool_config(listen_address="127.0.0.1:2", bind=["127.0.0.1:1", "127.0.0.1:3"])
    cfg.validate()
    assert cfg.bind == ["127.0.0.1:1", "127.0.0.1:3"]
    cfg = pool_config(listen_address=":2")
    cfg.validate()
    assert cfg.address == [("", 2)]


@pytest.mark.parametrize("address", ["localhost:x", "localhost:65536", "fd://x"])
def test_a_bad_bind_is_a_sentence_too(address: str) -> None:
    with pytest.raises(ConfigError, match=f"^bind = '{address}': "):
        pool_config(bind=[address]).validate()


def test_the_program_is_looked_for_on_the_path_the_children_get(tmp_path: Path) -> None:
    program = tmp_path / "app"
    program.write_text("#!/bin/sh\n")
    cfg = pool_config(pool_cmd=["app"], raw_env=[f"PATH={tmp_path}"])
    with pytest.raises(ConfigError, match="no program app is on the PATH"):
        cfg.validate()
    program.chmod(0o755)
    cfg.validate()
    with pytest.raises(ConfigError, match="no program app is on the PATH"):
        pool_config(pool_cmd=["app"]).validate()


def test_a_relative_program_is_looked_for_in_chdir(tmp_path: Path) -> None:
    cfg = pool_config(pool_cmd="bin/app --flag", chdir=str(tmp_path))
    with pytest.raises(
        ConfigError, match=f"^pool_cmd = 'bin/app --flag': there is no file {tmp_path}/bin/app;"
    ):
        cfg.validate()
    program = tmp_path / "bin" / "app"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o644)
    with pytest.raises(ConfigError, match="is not executable"):
        cfg.validate()
    program.chmod(0o755)
    cfg.validate()
    with pytest.raises(ConfigError, match="is not executable"):
        pool_config(pool_cmd="./bin", chdir=str(tmp_path)).validate()


def test_a_worker_may_read_its_options_where_the_program_cannot_be_seen() -> None:
    assert Options.from_cfg(pool_config(pool_cmd="no-such-program")).pool_cmd == ("no-such-program",)


def test_a_malformed_variable_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^raw_env = \['PATH'\]: give each as NAME=value\.$"):
        pool_config(raw_env=["PATH"]).validate()


def test_a_heartbeat_directory_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    pool_config(worker_tmp_dir=str(tmp_path)).validate()
    with pytest.raises(ConfigError, match=r"^worker_tmp_dir = '/nowhere': no file can be made there"):
        pool_config(worker_tmp_dir="/nowhere").validate()


# TLS.


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    path = tmp_path_factory.mktemp("tls")
    command = (
        f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 1 -subj /CN=localhost"
    )
    for key, extra in (("key.pem", ["-nodes"]), ("encrypted.pem", ["-passout", "pass:secret"])):
        subprocess.run(
            [*command.split(), "-keyout", key, "-out", f"cert-{key}", *extra],
            cwd=path,
            check=True,
            capture_output=True,
        )
    return path


def test_a_good_certificate_passes(certificate: Path) -> None:
    pool_config(
        certfile=f"{certificate}/cert-key.pem", keyfile=f"{certificate}/key.pem", cert_reqs=1
    ).validate()


def test_a_certificate_that_cannot_be_served_is_a_sentence(certificate: Path) -> None:
    cert, key = f"{certificate}/cert-key.pem", f"{certificate}/key.pem"
    encrypted = {"certfile": f"{certificate}/cert-encrypted.pem", "keyfile": f"{certificate}/encrypted.pem"}
    for values, expected in (
        ({"certfile": "/nowhere"}, "^certfile = '/nowhere': this cannot be read"),
        ({"keyfile": key}, "^keyfile = .*give certfile too"),
        ({"certfile": key, "keyfile": key}, "^certfile = .*cannot be used for TLS"),
        ({"certfile": cert, "keyfile": encrypted["keyfile"]}, "^certfile = .*cannot be used for TLS"),
        (encrypted, "^certfile = .*encrypted"),
        ({"certfile": cert, "keyfile": key, "ciphers": "NONE-SUCH"}, "^ciphers = 'NONE-SUCH'"),
        ({"certfile": cert, "keyfile": key, "cert_reqs": 9}, "^cert_reqs = 9"),
        ({"certfile": cert, "keyfile": key, "ca_certs": "/nowhere"}, "^ca_certs = '/nowhere'"),
    ):
        with pytest.raises(ConfigError, match=expected):
            pool_config(**values).validate()


def test_a_context_of_the_users_own_making_is_left_to_the_user(certificate: Path) -> None:
    def make(cfg: Config, default: Callable[[], Any]) -> Any:
        raise AssertionError("not at the check")

    pool_config(certfile=f"{certificate}/cert-encrypted.pem", ssl_context=make).validate()


def test_statsd_is_the_pools_unless_gunicorns_own_logger_is_named() -> None:
    plain, own = "gunicorn.glogging.Logger", "gunicorn.instrument.statsd.Statsd"
    for values, expected in (
        ({}, plain),
        ({"statsd_host": "localhost"}, plain),
        ({"statsd_host": "localhost", "logger_class": own}, own),
    ):
        found = pool_config(**values).logger_class
        assert f"{found.__module__}.{found.__qualname__}" == expected
    application = Config()
    application.set("statsd_host", "localhost")
    assert application.logger_class.__qualname__ == "Statsd"


def test_a_statsd_that_cannot_be_sent_to_ends_the_start() -> None:
    with pytest.raises(ConfigError, match=r"^statsd_host"):
        pool_config(statsd_host="fd://3").validate()
    with pytest.raises(ConfigError, match=r"^statsd_prefix"):
        pool_config(statsd_host="localhost", statsd_prefix="a:b").validate()


# gunicorn's own options: every one has a verdict, so that a new gunicorn cannot bring one nobody thought
# about.

BY_GUNICORN = set(
    """accesslog backlog bind capture_output chdir check_config child_exit config control_socket
    control_socket_disable control_socket_mode daemon default_proc_name
    disable_redirect_access_to_syslog dogstatsd_tags enable_backlog_metric enable_stdio_inheritance
    errorlog graceful_timeout group initgroups logconfig logconfig_dict logconfig_json logger_class
    loglevel nworkers_changed on_exit on_reload on_starting pidfile post_fork pre_exec pre_fork
    print_config proc_name pythonpath raw_env reuse_port spew statsd_host statsd_prefix syslog
    syslog_addr syslog_facility syslog_prefix timeout umask user when_ready worker_class worker_exit
    worker_tmp_dir workers""".split()
)
BY_GWORKER = set(
    """access_log_format ca_certs cert_reqs certfile ciphers forwarded_allow_ips forwarder_headers
    header_map keepalive keyfile limit_request_field_size limit_request_fields limit_request_line
    post_worker_init proxy_allow_ips proxy_protocol reload reload_engine reload_extra_files
    secure_scheme_headers ssl_context worker_abort worker_connections worker_int""".split()
)


def test_every_option_of_gunicorn_has_exactly_one_verdict() -> None:
    refused = {refusal.name for refusal in REFUSED} - settings.REFUSED_AT_ODD_VALUES
    verdicts = [BY_GUNICORN, BY_GWORKER, refused, WITHOUT_EFFECT]
    names = {setting.name for setting in KNOWN_SETTINGS if setting.section != SECTION}
    assert set().union(*verdicts) == names
    assert sum(map(len, verdicts)) == len(names)


ASKED_FOR = {
    "wsgi_app": "app:app",
    "workers": 0,
    "worker_connections": 0,
    "threads": 2,
    "loglevel": "loud",
    "max_requests": 100,
    "preload_app": True,
    "paste": "app.ini",
    "raw_paste_global_conf": ["a=b"],
    "pre_request": lambda worker, request: None,
    "post_request": lambda worker, request, environ, response: None,
    "protocol": "uwsgi",
    "http_protocols": "h2,h1",
    "http2_cleartext": "upgrade",
    "http_parser": "python",
    "root_path": "/api",
    "permit_obsolete_folding": True,
    "strip_header_spaces": True,
    "permit_unconventional_http_method": True,
    "permit_unconventional_http_version": True,
    "casefold_http_method": True,
    "dirty_apps": ["app:App"],
    "dirty_workers": 1,
}


@pytest.mark.parametrize("refusal", REFUSED, ids=lambda refusal: refusal.name)
def test_an_option_that_would_mislead_is_refused(refusal: settings.Refusal) -> None:
    cfg = pool_config(**{refusal.name: ASKED_FOR[refusal.name]})
    with pytest.raises(ConfigError, match=rf"^{refusal.name}( = .*)?: .*\.$"):
        cfg.validate()


def test_gunicorns_defaults_ask_for_nothing_that_is_refused() -> None:
    pool_config().validate()


def test_our_flags_take_no_abbreviation_from_gunicorn_but_two() -> None:
    """argparse accepts any unambiguous prefix: --sp for --spew is taken away by --spare-workers, --str for
    --strip-header-spaces by --stream-cancel-timeout."""
    gunicorns = {
        flag for s in KNOWN_SETTINGS if s.section != SECTION for flag in s.cli or () if flag[:2] == "--"
    }
    gunicorns |= {"--help", "--version"}
    ours = {option.flag for option in OPTIONS}
    assert not gunicorns & ours
    prefixes = {flag[:end] for flag in gunicorns for end in range(3, len(flag))} - gunicorns
    unambiguous = {prefix for prefix in prefixes if sum(flag.startswith(prefix) for flag in gunicorns) == 1}
    taken = {prefix for prefix in unambiguous if any(flag.startswith(prefix) for flag in ours)}
    assert taken == {"--sp", "--str"}


# What is generated.


def test_the_documentation_of_the_options_is_not_stale() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings.settings_md()


def test_the_annotated_configuration_is_not_stale() -> None:
    assert (ROOT / "conf" / "annotated.py").read_text() == settings.annotated_conf()


def test_every_value_in_the_annotated_configuration_is_one_that_its_option_takes() -> None:
    lines = settings.annotated_conf().splitlines()
    values: dict[str, Any] = {}
    exec("\n".join(line.removeprefix("# ") for line in lines if " = " in line), values)
    assert {option.name for option in OPTIONS} <= set(values)
    cfg = Config()
    for name in set(values) - {"__builtins__", "user", "group", "chdir"}:
        cfg.set(name, values[name])
    options = Options.from_cfg(cfg)
    assert options.listen_address == "127.0.0.1:8080"
    assert options.max_pool_size == 1


def test_each_option_begins_with_one_short_sentence() -> None:
    for option in OPTIONS:
        first, *rest = option.text.split("\n\n")
        assert first.endswith(".") and "\n" not in first and len(first) <= 100, option.name
        assert rest, f"{option.name} says what, but not why"
