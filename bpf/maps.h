/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Every map, with who fills it and who empties it. README.md in this folder
 * has the same as a table.
 */
#ifndef CONMOND_MAPS_H
#define CONMOND_MAPS_H

#include "event.h"

#ifndef MAX_CONNS
#define MAX_CONNS 65536
#endif
#ifndef RING_PAGES
#define RING_PAGES 4096 /* 16 MB: over a second at 10,000 connections a second */
#endif
/*
 * No kind of event takes more of the ring than its share, in 16ths, so that a
 * flood of one costs only its own. What is left, a quarter at least, is for
 * connections that ended, which may take the whole.
 */
#define RING_16TH        (RING_PAGES * PAGE_SIZE / 16)
#define DNS_MOST         (2 * RING_16TH)
#define HELLO_MOST       (4 * RING_16TH)
#define LOOKUP_MOST      (3 * RING_16TH)
#define PROCESS_MOST     (1 * RING_16TH)
#define PLAIN_MOST       (2 * RING_16TH)
#define WAKEUP_BYTES     (RING_16TH / 2)
#define MAP_TRIES        4 /* an update or delete gives up when a lock is contended */
#define MAX_UNRECORDED   4096
#define MAX_LOOKUP_LOST  1024
#define LOOKUP_LOST_NS   1000000000ULL /* from a lookup that was lost to its connection */
#define MAX_LOOKUPS      4096          /* threads inside getaddrinfo() at one time */
#define MAX_HANDSHAKES   8192
#define MAX_QUIC_SOCKETS 4096
#define QUIC_FLOWS       8    /* connections over one socket at a time; a power of two */
#define MAX_DEEP         16   /* processes whose plaintext is read at one time */
#define MAX_DEEP_CALLS   1024 /* threads inside a library's call */
#define MAX_DEEP_TALKS   2048 /* library objects in use */
#define LIVE_KEYS        11   /* sockets read in one run: a raw tracepoint has 12 arguments */
#define LIVE_SLOTS       (LIVE_KEYS * 93)

/*
 * Elements are allocated when needed where the kernel has an allocator that
 * is safe in every context (bpf_mem_alloc, 6.1); before, all at once.
 */
#ifdef HAVE_BPF_MEM_ALLOC
#define GROW_ON_DEMAND 1 /* BPF_F_NO_PREALLOC */
#else
#define GROW_ON_DEMAND 0
#endif

enum lookup_function {
	GETADDRINFO = 1,
	GETHOSTBYNAME = 2,  /* gethostbyname_r(); gethostbyname() calls it */
	GETHOSTBYNAME2 = 3, /* gethostbyname2_r(); in musl gethostbyname_r() calls it */
};

/* A lookup call under way. */
struct lookup_call {
	__u64 start_ns;
	__u64 result;  /* the caller's struct addrinfo ** or struct hostent **, user memory */
	__u64 h_errno; /* the caller's int *; gethostbyname() and its kin only */
	__u64 stack;   /* stack pointer at entry: its return has the same */
	__u64 caller;  /* address it returns to */
	__u16 hint_family;
	__u16 hint_flags;
	__u32 function; /* enum lookup_function */
	char name[NAME_LEN];
	char service[SERVICE_LEN];
};

/* A thread's newest handshake call. */
struct handshake_call {
	__u64 ssl;
	__u64 enter_ns;
	__u64 exit_ns; /* 0 while inside, and where its return is not seen */
	__u64 stack;   /* stack pointer at entry: its return has the same */
	__u32 library;
	__u32 joined; /* 1 = a ClientHello was found to be its */
};

/* A library object whose handshake has not succeeded yet. */
struct handshake_key {
	__u64 ssl;
	__u32 pid;
	__u32 pad;
};

struct handshake {
	__u64 first_ns;
	__u64 sk; /* socket joined to it; 0 = none yet */
	__u32 calls;
	__s32 ret;
	__u32 returned; /* calls seen to return */
	__u32 pad;
};

/*
 * QUIC connections over one socket, the oldest overwritten. A key is the
 * socket's address, its upper 16 bits (all set in every kernel address) given
 * to a hash of the peer.
 */
struct quic_flows {
	__u64 keys[QUIC_FLOWS];
	__u32 begun;
	__u32 pad;
};

/* A process whose plaintext is read. */
struct deep_target {
	__u64 calls; /* of its library that were seen */
};

/* A call to read or write, by where its thread's stack was: calls nest (TLS in TLS). */
struct deep_call_key {
	__u64 thread;
	__u64 stack;
};

struct deep_call {
	__u64 object;
	__u64 buffer;  /* user memory */
	__u64 size_at; /* where the call leaves its size; 0 = it returns it */
	__u64 enter_ns;
	__u32 received;
	__u32 pad;
};

/* A thread's newest call to write, until its bytes leave. */
struct deep_write {
	__u64 object;
	__u64 exit_ns; /* 0 while inside */
	__u64 size;
	__u64 stack;
};

struct deep_talk {
	__u64 sk; /* socket joined to it; 0 = none yet */
	__u64 connect_ns;
	__u64 sent;
	__u64 received;
	__u32 last_dir; /* 0 none, 1 sent, 2 received */
	__u32 given;    /* bytes handed over since the direction changed */
};

/*
 * struct sock * -> connection. In: connect() (conn.bpf.c). Out: the change to
 * CLOSE, which every TCP socket goes through. Full: the connection is not
 * recorded and COUNT_CONN_FULL says so.
 */
BPF_F_TABLE("hash", u64, struct conn_event, conn_by_sk, MAX_CONNS, GROW_ON_DEMAND);

/*
 * tgid:tid -> call. In: lookup function entered. Out: its return, or the
 * thread's exit. Full: COUNT_LOOKUP_FULL.
 */
BPF_F_TABLE("hash", u64, struct lookup_call, lookup_by_thread, MAX_LOOKUPS, GROW_ON_DEMAND);

/*
 * tgid:tid -> newest handshake call. In: call entered. Out: the thread's
 * exit; the least recently used go first when full.
 */
BPF_TABLE("lru_hash", u64, struct handshake_call, handshake_by_thread, MAX_HANDSHAKES);

/*
 * (SSL object, tgid) -> handshake under way. In: first call. Out: the call
 * that succeeds, or the close of the socket joined to it; objects that never
 * get a socket (a server's failed handshakes) are the least recently used.
 */
BPF_TABLE("lru_hash", struct handshake_key, struct handshake, handshake_by_object, MAX_HANDSHAKES);

/*
 * tgid -> 1 for processes that answer DNS questions. In: an answer leaves.
 * Out: the least recently used.
 */
BPF_TABLE("lru_hash", u32, u8, dns_server_by_pid, 256);

/*
 * struct sock * -> keys in conn_by_sk of the QUIC connections over a socket
 * that is not connected. In: the first Initial sent to a peer. Out: the
 * socket's release. Full: COUNT_CONN_FULL.
 */
BPF_F_TABLE("hash", u64, struct quic_flows, quic_flows_by_sk, MAX_QUIC_SOCKETS, GROW_ON_DEMAND);

/*
 * Socket and peer, as in quic_flows -> 1 where the peer's Initial came first:
 * it is the client, and what is sent to it begins nothing. Out: the least
 * recently used.
 */
BPF_TABLE("lru_hash", u64, u8, quic_client_by_flow, 4096);

/*
 * tgid -> what was seen of it. In and out: user space, for as long as its
 * plaintext is read. What is in the three maps after it belongs to such
 * processes; out: the call's return, the object's end, or least recently used.
 */
BPF_F_TABLE("hash", u32, struct deep_target, deep_by_pid, MAX_DEEP, GROW_ON_DEMAND);
BPF_TABLE("lru_hash", struct deep_call_key, struct deep_call, deep_by_call, MAX_DEEP_CALLS);
BPF_TABLE("lru_hash", u64, struct deep_write, deep_by_thread, MAX_DEEP_CALLS);
BPF_TABLE("lru_hash", struct handshake_key, struct deep_talk, deep_by_object, MAX_DEEP_TALKS);

/*
 * Slot -> figures of an open connection. Written when user space asks, which
 * says what goes where and reads it through mmap.
 */
BPF_F_TABLE("array", u32, struct live_figures, live_by_slot, LIVE_SLOTS, 1 << 10 /* mmap */);

/*
 * struct sock * -> SO_COOKIE of a connection that conn_by_sk had no room for
 * and that was counted. Out: the least recently used.
 */
BPF_TABLE("lru_hash", u64, u64, unrecorded_by_sk, MAX_UNRECORDED);

/*
 * tgid -> when a lookup, or a question to port 53, of this process was lost.
 * Out: the least recently used.
 */
BPF_TABLE("lru_hash", u32, u64, lookup_lost_by_pid, MAX_LOOKUP_LOST);

/* The change of state that this CPU's sock_set_state looked at last. */
struct state_change {
	__u64 sk;
	__u64 state;
};
BPF_PERCPU_ARRAY(state_seen, struct state_change, 1);

/* Never written: copied to make a zeroed entry without stack or memset. */
BPF_ARRAY(blank_conn, struct conn_event, 1);
BPF_ARRAY(blank_lookup, struct lookup_call, 1);
BPF_ARRAY(blank_flows, struct quic_flows, 1);

/* Where the event of an exec is made, per CPU: a path does not fit on the stack. */
BPF_PERCPU_ARRAY(exec_being_told, struct exec_long_event, 1);

/* enum counter -> count since load, per CPU, of what is counted often ... */
BPF_PERCPU_ARRAY(counters, u64, COUNT_MAX);

/* ... and of what is lost, with the time: user space maps it and looks at each record. */
BPF_F_TABLE("array", u32, struct loss, losses, COUNT_MAX, 1 << 10 /* mmap */);

/* enum share -> bytes in the ring. consumed is written by user space. */
BPF_F_TABLE("array", u32, struct ring_share, ring_shares, SHARE_MAX, 1 << 10 /* mmap */);

BPF_RINGBUF_OUTPUT(events, RING_PAGES);

#endif
