"""What is compiled, loaded and attached: the one list. A hook that fails has a name here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

__all__ = [
    "AGAIN",
    "CGROUP_HOOKS",
    "DEEP_FUNCTIONS",
    "FIELDS",
    "LICENSE",
    "LOOKUP_FUNCTIONS",
    "MAPS",
    "PROBED_FUNCTIONS",
    "PROGRAMS",
    "SOURCES",
    "TRACEPOINTS",
    "UPROBES",
    "Program",
    "ProgramType",
]

# In this order they make one translation unit, since BCC rewrites map calls in the main file
# only. conn.bpf.c has what the others share.
SOURCES: Final = (
    "conn.bpf.c",
    "dns.bpf.c",
    "hello.bpf.c",
    "udp.bpf.c",
    "packet.bpf.c",
    "resolve.bpf.c",
    "tls.bpf.c",
    "process.bpf.c",
    "live.bpf.c",
    "deep.bpf.c",
)


# As the source says it: BPF_LICENSE in conn.bpf.c.
LICENSE: Final = "Dual MIT/GPL"


# enum bpf_attach_type: one attachment to many places of a file. Kernels before 6.6 take no notice.
UPROBES: Final = 48


class ProgramType(IntEnum):
    """enum bpf_prog_type, include/uapi/linux/bpf.h."""

    KPROBE = 2  # uprobes too
    CGROUP_SKB = 8
    CGROUP_SOCK = 9
    RAW_TRACEPOINT = 17
    CGROUP_SOCK_ADDR = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One function of bpf/ and how the kernel is to check it."""

    name: str
    type: ProgramType
    attach_type: int = -1
    """enum bpf_attach_type; -1 where the program type has none."""
    on_request: bool = False
    """Loaded when somebody asks for what it does, not at the start."""


def _program(
    name: str, kind: ProgramType, attach_type: int = -1, *, on_request: bool = False
) -> Program:
    return Program(name=name, type=kind, attach_type=attach_type, on_request=on_request)


PROGRAMS: Final = (
    _program("sock_set_state", ProgramType.RAW_TRACEPOINT),
    _program("sock_state_again", ProgramType.RAW_TRACEPOINT),
    _program("process_fork", ProgramType.RAW_TRACEPOINT),
    _program("process_exec", ProgramType.RAW_TRACEPOINT),
    _program("process_exit", ProgramType.RAW_TRACEPOINT),
    _program("sock_error", ProgramType.RAW_TRACEPOINT),
    _program("packet_ingress", ProgramType.CGROUP_SKB, 0),
    _program("packet_egress", ProgramType.CGROUP_SKB, 1),
    _program("connect4_enter", ProgramType.CGROUP_SOCK_ADDR, 10),
    _program("connect6_enter", ProgramType.CGROUP_SOCK_ADDR, 11),
    _program("sock_release", ProgramType.CGROUP_SOCK, 34),
    _program("getaddrinfo_enter", ProgramType.KPROBE, UPROBES),
    _program("getaddrinfo_return", ProgramType.KPROBE, UPROBES),
    _program("hostent_enter", ProgramType.KPROBE, UPROBES),
    _program("hostent_return", ProgramType.KPROBE, UPROBES),
    _program("hostent2_enter", ProgramType.KPROBE, UPROBES),
    _program("hostent2_return", ProgramType.KPROBE, UPROBES),
    _program("openssl_enter", ProgramType.KPROBE, UPROBES),
    _program("openssl_return", ProgramType.KPROBE, UPROBES),
    _program("gnutls_enter", ProgramType.KPROBE, UPROBES),
    _program("gnutls_return", ProgramType.KPROBE, UPROBES),
    _program("nss_enter", ProgramType.KPROBE, UPROBES),
    _program("nss_return", ProgramType.KPROBE, UPROBES),
    _program("wolfssl_enter", ProgramType.KPROBE, UPROBES),
    _program("wolfssl_return", ProgramType.KPROBE, UPROBES),
    _program("mbedtls_enter", ProgramType.KPROBE, UPROBES),
    _program("mbedtls_return", ProgramType.KPROBE, UPROBES),
    _program("live_read", ProgramType.RAW_TRACEPOINT),
    _program("conn_forget", ProgramType.RAW_TRACEPOINT),
    _program("deep_write_enter", ProgramType.KPROBE, on_request=True),
    _program("deep_write_ex_enter", ProgramType.KPROBE, on_request=True),
    _program("deep_read_enter", ProgramType.KPROBE, on_request=True),
    _program("deep_read_ex_enter", ProgramType.KPROBE, on_request=True),
    _program("deep_return", ProgramType.KPROBE, on_request=True),
    _program("deep_free_enter", ProgramType.KPROBE, on_request=True),
    _program("deep_egress", ProgramType.CGROUP_SKB, 1, on_request=True),
)

# tracepoint -> program
TRACEPOINTS: Final = {
    "inet_sock_set_state": "sock_set_state",
    "sched_process_fork": "process_fork",
    "sched_process_exec": "process_exec",
    "sched_process_exit": "process_exit",
    "inet_sk_error_report": "sock_error",
}

# ... -> the program that runs after it there, and makes up for its missed runs
AGAIN: Final = {"inet_sock_set_state": "sock_state_again"}

# In the order they are attached: what notes a connect() comes after what ends the note.
CGROUP_HOOKS: Final = (
    "packet_ingress",
    "packet_egress",
    "sock_release",
    "connect4_enter",
    "connect6_enter",
)

# library function -> (program at entry, program at each returning instruction)
PROBED_FUNCTIONS: Final = {
    "getaddrinfo": ("getaddrinfo_enter", "getaddrinfo_return"),
    # gethostbyname() and gethostbyname2() call these
    "gethostbyname_r": ("hostent_enter", "hostent_return"),
    "gethostbyname2_r": ("hostent2_enter", "hostent2_return"),
    "SSL_do_handshake": ("openssl_enter", "openssl_return"),
    "gnutls_handshake": ("gnutls_enter", "gnutls_return"),
    "SSL_ForceHandshake": ("nss_enter", "nss_return"),
    "wolfSSL_connect": ("wolfssl_enter", "wolfssl_return"),
    "mbedtls_ssl_handshake": ("mbedtls_enter", "mbedtls_return"),
}

# Of these an entry without a return is nothing.
LOOKUP_FUNCTIONS: Final = ("getaddrinfo", "gethostbyname_r", "gethostbyname2_r")

# library function -> (program at entry, program at each returning instruction or None):
# plaintext, on request
DEEP_FUNCTIONS: Final = {
    "SSL_write": ("deep_write_enter", "deep_return"),
    "SSL_write_ex": ("deep_write_ex_enter", "deep_return"),
    "SSL_write_early_data": ("deep_write_ex_enter", "deep_return"),
    "SSL_read": ("deep_read_enter", "deep_return"),
    "SSL_read_ex": ("deep_read_ex_enter", "deep_return"),
    "SSL_free": ("deep_free_enter", None),
    "gnutls_record_send": ("deep_write_enter", "deep_return"),
    "gnutls_record_send2": ("deep_write_enter", "deep_return"),
    "gnutls_record_recv": ("deep_read_enter", "deep_return"),
    "gnutls_record_recv_seq": ("deep_read_enter", "deep_return"),
    "gnutls_deinit": ("deep_free_enter", None),
}

MAPS: Final = (
    "events",
    "conn_by_sk",
    "counters",
    "losses",
    "ring_shares",
    "lookup_by_thread",
    "handshake_by_thread",
    "handshake_by_object",
    "dns_server_by_pid",
    "quic_flows_by_sk",
    "quic_client_by_flow",
    "live_by_slot",
    "unrecorded_by_sk",
    "lookup_lost_by_pid",
    "state_seen",
    "deep_by_pid",
    "deep_by_call",
    "deep_by_thread",
    "deep_by_object",
    "blank_conn",
    "blank_lookup",
    "blank_flows",
    "exec_being_told",
)

# Kernel fields whose offsets bpf/kernel_fields.h needs, as OFF_struct_field.
FIELDS: Final = {
    "sock_common": (
        "skc_family",
        "skc_dport",
        "skc_num",
        "skc_daddr",
        "skc_rcv_saddr",
        "skc_v6_daddr",
        "skc_v6_rcv_saddr",
        "skc_net",
        "skc_cookie",
        "skc_state",
        "skc_bound_dev_if",
        "skc_ipv6only",
        "skc_refcnt",
    ),
    "sock": (
        "sk_err",
        "sk_err_soft",
        "sk_error_queue",
        "sk_mark",
        "sk_protocol",
        "sk_shutdown",
        "sk_socket",
        "sk_txhash",
    ),
    "sk_buff_head": ("prev", "qlen"),
    "sk_buff": ("cb",),
    "sock_exterr_skb": ("ee",),
    "sock_extended_err": ("ee_errno", "ee_origin"),
    "socket": ("file", "state"),
    "inet_sock": ("inet_sport",),
    "tcp_sock": (
        "srtt_us",
        "mdev_us",
        "total_retrans",
        "bytes_sent",
        "bytes_retrans",
        "bytes_received",
        "rcv_nxt",
        "snd_nxt",
        "segs_out",
    ),
    "net": ("ns.inum",),
    "task_struct": (
        "tgid",
        "pid",
        "group_leader",
        "start_boottime",
        "real_parent",
        "mm",
        "cred",
        "comm",
        "nsproxy",
        "cgroups",
    ),
    "css_set": ("dfl_cgrp",),
    "cgroup": ("kn",),
    "kernfs_node": ("id",),
    "cred": ("uid",),
    "nsproxy": ("net_ns",),
    "mm_struct": ("exe_file",),
    "file": ("f_inode", "f_path"),
    "path": ("dentry", "mnt"),
    "inode": ("i_ino", "i_sb"),
    "super_block": ("s_dev",),
    "dentry": ("d_parent", "d_name"),
    "qstr": ("name", "len"),
    "mount": ("mnt", "mnt_parent", "mnt_mountpoint"),
    "vfsmount": ("mnt_root",),
}
