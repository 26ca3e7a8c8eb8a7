/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Everything that crosses from the kernel to user space, and nothing else.
 *
 * Written by the programs in this folder, read by monitor/decode.py. Also
 * compiles as host C, so a test compares every offset with decode.py without
 * a kernel.
 *
 * Conventions, unless a field says otherwise:
 *   *_ns      CLOCK_MONOTONIC nanoseconds (bpf_ktime_get_ns); 0 = not seen
 *   *_us      microseconds
 *   ports     host byte order; 0 = not known
 *   addresses network byte order; IPv4 in the first 4 bytes, the rest zero;
 *             a v4-mapped IPv6 address stays mapped (user space unmaps it)
 *   strings   NUL-terminated unless they fill the field
 */
#ifndef CONMOND_EVENT_H
#define CONMOND_EVENT_H

#include <linux/types.h>

#define COMM_LEN       16  /* TASK_COMM_LEN */
#define HEAD_LEN       32  /* first payload bytes kept each way */
#define RECORD_LOG_MAX 32  /* TLS records noted per connection; a power of two */
#define NAME_LEN       256 /* a DNS name is at most 253 characters */
#define SERVICE_LEN    32  /* longest in /etc/services is 16 */
#define ANSWER_MAX     128 /* addresses kept per lookup; a power of two */
#define ANSWER_SMALL   8   /* ... in the small form that most lookups fit; likewise */
#define HELLO_MAX      4096
#define HELLO_SMALL    1024 /* the usual padded ClientHello is 517 bytes; powers of two */
#define DNS_MAX        4096 /* of a message; a power of two */
#define DNS_SMALL      512  /* ... in the small form that most messages fit; likewise */
#define PLAIN_MAX      4096 /* of what a TLS library read or wrote; a power of two */
#define PLAIN_SMALL    256  /* ... in the small form; likewise */
#define PATH_LEN       256  /* of an executable's path, in the form that most fit */
#define PATH_LONG      4096 /* ... and of any; a power of two */
#define COMPONENT_LEN  256  /* a path's component is shorter; a power of two */

enum event_kind {
	EVENT_CONN = 1,   /* struct conn_event, cut after its last log entry */
	EVENT_LOOKUP = 2, /* struct lookup_event, cut after its last answer */
	EVENT_HELLO = 3,  /* struct hello_event, cut after its data (8-aligned) */
	EVENT_EXEC = 4,   /* struct exec_event, or exec_long_event */
	EVENT_EXIT = 5,   /* struct exit_event */
	EVENT_DNS = 6,    /* struct dns_event, cut after its data */
	EVENT_PLAIN = 7,  /* struct plain_event, cut after its data */
	EVENT_FORK = 8,   /* struct fork_event */
};

struct event_header {
	__u32 kind; /* enum event_kind */
	__u32 size; /* bytes that are valid, this header included */
};

/* Who did it: filled in the context of the calling thread. */
struct task_info {
	__u64 start_ns;  /* process start, CLOCK_BOOTTIME; with pid it names one process */
	__u64 cgroup_id; /* cgroup2 id; 0 = not known */
	__u64 exe_ino;   /* inode of mm->exe_file; 0 = kernel thread */
	__u32 exe_dev;   /* its device, kernel encoding: major << 20 | minor */
	__u32 pid;       /* tgid, init pid namespace */
	__u32 tid;       /* pid, init pid namespace */
	__u32 ppid;      /* tgid of real_parent */
	__u32 uid;       /* init user namespace */
	__u32 netns;     /* inode number of the network namespace */
	char comm[COMM_LEN];
};

/* One TLS record header seen on the wire, while a connection is young. */
struct tls_record {
	__u32 at_us; /* since connect_ns; saturates */
	__u16 len;   /* length field of the record header */
	__u8 type;   /* content type: 20 CCS, 21 alert, 22 handshake, 23 data */
	__u8 flags;  /* enum tls_record_flag */
};

enum tls_record_flag {
	RECORD_RX = 1,    /* received; else sent */
	RECORD_FIRST = 2, /* first record that starts in its packet */
};

enum conn_flag {
	CONN_RX_FIN = 1 << 0, /* the peer sent FIN */
	CONN_RX_RST = 1 << 1, /* the peer sent RST */
	CONN_TX_FIN = 1 << 2,
	CONN_TX_RST = 1 << 3,
	CONN_TLS = 1 << 4,    /* a ClientHello was sent */
	CONN_RX_GAP = 1 << 5, /* records missed: loss or reordering while logging */
	CONN_TX_GAP = 1 << 6,
	CONN_SYNC_FAIL = 1 << 7,    /* connect() failed within the call; sk_err 0 = errno not known,
				  * and tx_record is the socket's mark, rx_record its interface */
	CONN_PACKETS = 1 << 8,      /* packet hooks saw this socket: payload figures are meant */
	CONN_SSL_RETURNED = 1 << 9, /* a handshake call was seen to return: ssl_ret is meant */
	CONN_LOCAL_CLOSE = 1 << 10, /* this side closed or shut down first */
	CONN_TLS_LATE = 1
		<< 11,      /* payload was exchanged before the ClientHello (STARTTLS, CONNECT) */
	CONN_UDP = 1 << 12, /* datagrams; connect_ns is the first one's */
	CONN_QUIC = 1
		<< 13, /* ... of QUIC; ssl_done_ns is the first datagram sent of 1-RTT packets alone */
	CONN_INBOUND = 1 << 14, /* accepted: tx is what the peer sent, and connect_ns the
				 * handshake's end here; task is who answered or closed */
	CONN_H2 = 1 << 15,      /* HTTP/2 in the clear: the first bytes each way are handed over */
	CONN_HALF_CLOSE = 1 << 16, /* with CONN_LOCAL_CLOSE: only its own direction was shut down,
				    * and its program was still there at the end */
	CONN_TX_LATE = 1 << 17,    /* more than a goodbye was sent after the peer's FIN */
	CONN_END_UNSEEN = 1 << 18, /* its socket was found to be gone: end_ns is when, and the
				    * figures of its end are not meant */
	CONN_LOOKUP_LOST = 1
		<< 19, /* a lookup of its process was lost just before: another may seem to fit */
	CONN_FOLDED = 1 << 20, /* small records received amid a body were taken out of log */
	CONN_HTTP = 1
		<< 21, /* a plain HTTP request came first: its head is in log, or handed over */
};

enum tls_library {
	LIB_NONE = 0,
	LIB_OPENSSL = 1,
	LIB_GNUTLS = 2,
	LIB_NSS = 3,
	LIB_WOLFSSL = 4,
	LIB_MBEDTLS = 5,
};

/* life of an entry; numbers are ours, the kernel's TCP_ states are in tcp_state */
enum conn_phase {
	PHASE_CALLING = 1, /* connect() entered, no SYN yet */
	PHASE_SYN_SENT = 2,
	PHASE_ESTABLISHED = 3,
	PHASE_FAILED = 4, /* ended before it was established */
	PHASE_CLOSED = 5,
};

/*
 * One connection. It is the value of the map conn_by_sk while the connection
 * is open, and the event once it has closed or failed.
 */
struct conn_event {
	struct event_header header;
	struct task_info task;
	__u64 sk;         /* address of struct sock, or of its flow: a key, never printed */
	__u64 cookie;     /* SO_COOKIE; 0 = not known */
	__u64 connect_ns; /* SYN_SENT entered (CALLING: connect() entered) */
	__u64 established_ns;
	__u64 end_ns; /* closed or failed; 0 while open */

	__u64 first_tx_ns;   /* first payload byte sent */
	__u64 first_rx_ns;   /* first payload byte received */
	__u64 first_resp_ns; /* first payload received after first_tx_ns */
	__u64 hello_ns;      /* ClientHello sent */
	__u64 turn_start_ns; /* first byte of the request now open or answered last */
	__u64 turn_sum_ns;   /* request/response turns; TLS: those after the log was full */
	__u64 turn_max_ns;

	__u64 ssl;          /* library object joined to this socket; 0 = none */
	__u64 ssl_first_ns; /* first handshake call for that object */
	__u64 ssl_done_ns;  /* return of the call that succeeded, where returns are seen */
	__u64 bytes_sent;   /* payload, without retransmissions; at close */
	__u64 bytes_received;

	__u32 turn_count;
	__u32 rtt_us; /* smoothed; 0 = never measured */
	__u32 rttvar_us;
	__u32 retransmits; /* segments, SYN included */
	__s32 ssl_ret;     /* what the last handshake call returned */
	__u32 ssl_calls;
	__u32 flags;   /* enum conn_flag */
	__u32 tx_next; /* TCP sequence after the newest payload sent */
	__u32 rx_next;
	__u32 tx_record; /* TCP sequence of the next TLS record header */
	__u32 rx_record;
	__u16 log_merged; /* records left out of log: of a body that goes on;
			   * CONN_HTTP: bytes of the request in it, 0 = handed over */
	__u16 log_last;   /* such a record's length and direction; 0 = the last was none;
			   * CONN_HTTP: bytes of tx_head that came before those */

	__u16 family; /* AF_INET or AF_INET6, of the socket */
	__u16 lport;
	__u16 rport;
	__u16 sk_err;        /* errno at failure or close; 0 = none */
	__u16 hello_tx_left; /* bytes of ClientHello still to copy */
	__u16 hello_rx_left;
	__u8 phase;       /* enum conn_phase */
	__u8 tcp_state;   /* last TCP_ state that was noted: conn.bpf.c */
	__u8 ssl_library; /* enum tls_library */
	__u8 last_dir;    /* of the last payload: 0 none, 1 sent, 2 received */
	__u8 alert_tx;    /* plaintext alert description + 1; 0 = none; 255 = encrypted */
	__u8 alert_rx;
	__u8 tx_head_len;
	__u8 rx_head_len;
	__u8 log_len;       /* entries in log */
	__u8 hello_rx_seen; /* ServerHello records begun: 2 after a HelloRetryRequest */
	__u8 tx_partial;    /* bytes of a record header split over packets */
	__u8 rx_partial;
	__u8 laddr[16];
	__u8 raddr[16];
	__u8 tx_head[HEAD_LEN]; /* first payload bytes sent */
	__u8 rx_head[HEAD_LEN];
	__u8 tx_split[12]; /* the split record header, and room the verifier asks for */
	__u8 rx_split[12];
	struct tls_record log[RECORD_LOG_MAX];
};

/* One address of a getaddrinfo() answer. */
struct answer {
	__u16 family;
	__u16 port;
	__u32 scope_id;
	__u8 addr[16];
};

enum lookup_flag {
	LOOKUP_LONG = 1,       /* the list is longer than we walk */
	LOOKUP_UNREADABLE = 2, /* memory could not be read */
	LOOKUP_LEFT = 4,       /* given up by a jump out of the call: when is not known */
};

/* The thread ended inside the call, or left it by a jump: glibc's EAI_CANCELED. */
#define LOOKUP_GIVEN_UP -101

/* A call of getaddrinfo(), or of gethostbyname() and its kin, that ended. */
struct lookup_event {
	struct event_header header;
	struct task_info task;
	__u64 start_ns;
	__u64 end_ns;
	__s32 ret;          /* EAI_ code, glibc's numbers; 0 = success, LOOKUP_GIVEN_UP */
	__u16 hint_family;  /* 0 = any */
	__u16 hint_flags;   /* AI_ flags, low 16 bits */
	__u16 answer_total; /* entries in the list, consecutive duplicates folded */
	__u16 answer_len;   /* entries that follow */
	__u32 flags;        /* enum lookup_flag */
	char name[NAME_LEN];
	char service[SERVICE_LEN];
	struct answer answers[ANSWER_MAX];
};

/* Part of a ClientHello or ServerHello, as sent, record headers included. */
struct hello_event {
	struct event_header header;
	__u64 sk;
	__u64 connect_ns; /* with sk, names the connection */
	__u64 ts_ns;
	__u32 seq;     /* TCP sequence of data[0]; a QUIC datagram's number */
	__u16 len;     /* bytes of data */
	__u8 received; /* 1 = ServerHello */
	__u8 number;   /* 1 first hello of its side, 2 after a HelloRetryRequest; 0 a QUIC datagram;
			* 3 HTTP/2 in the clear; 4 the head of a plain HTTP request */
	__u8 data[HELLO_MAX];
};

/* A process replaced its program. */
struct exec_event {
	struct event_header header;
	struct task_info task;
	__u64 ts_ns;
	__u32 path_start;    /* the path is path[path_start .. PATH_LEN) */
	__u32 path_cut;      /* 1 = longer than fits: path is not valid */
	char path[PATH_LEN]; /* as /proc/PID/exe shows it, no NUL */
};

/* The same where the path is longer; also of EVENT_EXEC, told by its size. */
struct exec_long_event {
	struct event_header header;
	struct task_info task;
	__u64 ts_ns;
	__u32 path_start; /* the path is path[path_start .. PATH_LONG) */
	__u32 path_cut;
	char path[PATH_LONG];
	char slack[COMPONENT_LEN]; /* never valid: room the verifier asks for */
};

/* A process, not a thread, was forked: it knows what its parent knew. */
struct fork_event {
	struct event_header header;
	__u64 ts_ns;
	__u64 start_ns; /* of the new one, as in task_info */
	__u64 parent_start_ns;
	__u32 pid;
	__u32 parent; /* tgid */
};

/* A process ended (its last thread, as the kernel sees the group leader go). */
struct exit_event {
	struct event_header header;
	__u64 ts_ns;
	__u64 start_ns;
	__u32 pid;
	__u32 pad;
};

enum dns_flag {
	DNS_RECEIVED = 1,
	DNS_CUT = 2,     /* there was more than data holds */
	DNS_STREAM = 4,  /* payload of a TCP segment: pieces of messages, each after its length */
	DNS_INSIDE = 8,  /* asked inside a lookup call that is probed, which says it better */
	DNS_SERVER = 16, /* asked by a process that answers such questions itself */
	DNS_STUB = 32,   /* asked of systemd-resolved, at 127.0.0.53 or 127.0.0.54 */
};

/* Bytes to or from port 53: a question leaving, an answer arriving. */
struct dns_event {
	struct event_header header;
	struct task_info task; /* questions only: who sends it */
	__u64 sk;              /* the socket: a key that answer and question share */
	__u64 ts_ns;
	__u16 len;   /* bytes of data */
	__u16 flags; /* enum dns_flag */
	__u32 seq;   /* DNS_STREAM: TCP sequence of data[0] */
	__u8 data[DNS_MAX];
};

/*
 * Bytes that went into a TLS library or came out of it, before they were
 * encrypted or after: of one process, while somebody asked for that.
 */
struct plain_event {
	struct event_header header;
	__u64 sk;         /* with connect_ns, names the connection; 0 = not known yet */
	__u64 connect_ns; /* likewise */
	__u64 object;     /* the library's object: a key, never printed */
	__u64 enter_ns;   /* call entered */
	__u64 exit_ns;    /* ... and returned */
	__u64 offset;     /* bytes of this direction before these, since somebody asked */
	__u32 pid;
	__u32 total; /* bytes that the call took or gave */
	__u16 len;   /* bytes of data */
	__u8 received;
	__u8 turned; /* 1 = the last bytes seen went the other way, or there were none */
	__u32 pad;
	__u8 data[PLAIN_MAX];
};

/*
 * What a socket says when it is asked, not sent by itself: the value of the
 * map live_by_slot, which user space maps.
 */
struct live_figures {
	__u64 cookie; /* SO_COOKIE; 0 = none, or the socket changed while it was read */
	__u64 bytes_sent;
	__u64 bytes_received; /* a FIN counts as one */
	__u32 rtt_us;         /* smoothed; 0 = never measured */
	__u32 rttvar_us;
	__u32 retransmits;
	__u32 refs;     /* references to it; 0 = it is gone */
	__u8 tcp_state; /* TCP_ state */
	__u8 protocol;  /* IPPROTO_TCP or IPPROTO_UDP; 0 = another */
	__u8 pad[6];
};

/* One of enum counter that counts what is seldom: value of the map losses, which user space maps. */
struct loss {
	__u64 count;
	__u64 last_ns;
};

/*
 * What one kind of event has of the ring: value of the map ring_shares, which
 * user space maps and where it writes consumed.
 */
struct ring_share {
	__u64 produced; /* bytes, since load */
	__u64 consumed; /* produced, as it stood before the ring was read last */
};

enum share {
	SHARE_DNS = 0,
	SHARE_HELLO = 1,
	SHARE_LOOKUP = 2,
	SHARE_PROCESS = 3, /* exec and exit */
	SHARE_PLAIN = 4,
	SHARE_MAX = 5,
};

/* Indices of the per-CPU counter array. */
enum counter {
	COUNT_LOST_CONN = 0, /* submits that failed after every retry */
	COUNT_LOST_LOOKUP = 1,
	COUNT_LOST_HELLO = 2,
	COUNT_LOST_EXEC = 3,
	COUNT_LOST_EXIT = 4,
	COUNT_CONN_FULL = 5, /* connections that conn_by_sk had no room for */
	COUNT_LOOKUP_FULL = 6,
	COUNT_RETRIES = 7, /* submits that needed a second try and got through */
	COUNT_CONNS = 8,   /* connections begun */
	COUNT_STALE = 9,   /* ended unseen: found in the way of a new connection */
	COUNT_BYTES = 10,  /* handed over in conn events */
	COUNT_LOST_DNS = 11,
	COUNT_LOST_PLAIN = 12,
	COUNT_UNDELETED = 13, /* entries of conn_by_sk handed over, but still there */
	COUNT_MAX = 14,
};

_Static_assert(sizeof(struct task_info) == 64, "mirrored in decode.py");
_Static_assert(sizeof(struct tls_record) == 8, "mirrored in decode.py");
_Static_assert(sizeof(struct answer) == 24, "mirrored in decode.py");
_Static_assert(sizeof(struct live_figures) == 48, "mirrored in monitor/kernel/live.py");
_Static_assert(sizeof(struct loss) == 16, "mirrored in monitor/kernel/losses.py");
_Static_assert(sizeof(struct ring_share) == 16, "mirrored in monitor/kernel/ring.py");
_Static_assert(sizeof(struct exit_event) == 32, "mirrored in decode.py");
_Static_assert(sizeof(struct fork_event) == 40, "mirrored in decode.py");

#endif
