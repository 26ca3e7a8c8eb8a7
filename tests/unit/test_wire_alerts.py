"""Alert and cipher numbers get the names of the registries."""

from conmon.ciphers import CIPHER_NAMES, cipher_name, is_grease
from monitor.wire.alerts import ALERT_NAMES, CERTIFICATE_ALERTS, alert_name


def test_alerts_are_named_as_in_the_rfc():
    assert alert_name(40) == "handshake_failure"
    assert alert_name(48) == "unknown_ca"
    assert alert_name(77) == "alert_77"
    assert ALERT_NAMES.keys() >= CERTIFICATE_ALERTS


def test_suites_are_named_as_in_the_registry():
    assert cipher_name(0x1302) == "TLS_AES_256_GCM_SHA384"
    assert cipher_name(0xC02F) == "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
    assert cipher_name(0xCCA8) == "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"
    assert cipher_name(0x1399) == "0x1399"
    assert len(CIPHER_NAMES) == 357
    assert all(name.startswith("TLS_") for name in CIPHER_NAMES.values())


def test_the_sixteen_grease_numbers_are_no_suites():
    grease = [n for n in range(0x10000) if is_grease(n)]
    assert grease == [(i << 4 | 0xA) * 0x101 for i in range(16)]
    assert {cipher_name(n) for n in grease} == {"GREASE"}
    assert not CIPHER_NAMES.keys() & set(grease)
