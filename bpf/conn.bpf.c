/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Life of a TCP connection that a local process opens: begun, established,
 * failed, closed. One event, at its end.
 */
/* BCC makes a string of these words. */
/* clang-format off */
#define BPF_LICENSE Dual MIT/GPL
/* clang-format on */

#include "event.h"
#include "kernel_fields.h"
#include "maps.h"

static __always_inline void count(int which)
{
	u64 *n = counters.lookup(&which);

	if (n)
		*n += 1;
}

/*
 * The reader polls on a timer. It is woken as well whenever a CPU has filled
 * another eighth of the ring, so that a burst does not have to wait for it.
 */
static __always_inline u64 wakeup_flags(u32 size)
{
	int which = COUNT_BYTES;
	u64 *bytes = counters.lookup(&which);
	u64 before;

	if (!bytes)
		return BPF_RB_FORCE_WAKEUP;
	before = *bytes;
	*bytes = before + size;
	return before / WAKEUP_BYTES == *bytes / WAKEUP_BYTES ? BPF_RB_NO_WAKEUP
							      : BPF_RB_FORCE_WAKEUP;
}

/*
 * The ring's lock gives up under contention (6.18: -EAGAIN with room to
 * spare), so a failed submit is tried again before it is counted as lost.
 */
static __always_inline void submit_conn(struct conn_event *c)
{
	u32 entries = c->log_len;
	u32 size;

	if (entries > RECORD_LOG_MAX)
		entries = RECORD_LOG_MAX;
	size = __builtin_offsetof(struct conn_event, log) + entries * sizeof(struct tls_record);
	c->header.kind = EVENT_CONN;
	c->header.size = size;
	/* why connect() failed is asked while its process is likely still there */
	u64 flags = c->flags & CONN_SYNC_FAIL ? BPF_RB_FORCE_WAKEUP : wakeup_flags(size);

	if (!events.ringbuf_output(c, size, flags))
		return;
	for (int i = 0; i < 4; i++) {
		if (!events.ringbuf_output(c, size, flags)) {
			count(COUNT_RETRIES);
			return;
		}
	}
	count(COUNT_LOST_CONN);
}

static __always_inline void forget_handshake(struct conn_event *c)
{
	struct handshake_key key = {.ssl = c->ssl, .pid = c->task.pid};
	struct handshake *h;

	if (!c->ssl)
		return;
	h = handshake_by_object.lookup(&key);
	if (h && h->sk == c->sk)
		handshake_by_object.delete(&key);
}

static __always_inline void end_conn(struct conn_event *c, u64 sk, u8 phase)
{
	c->end_ns = bpf_ktime_get_ns();
	c->phase = phase;
	forget_handshake(c);
	submit_conn(c);
	conn_by_sk.delete(&sk);
}

/* key: what it is known by in conn_by_sk. */
static __always_inline struct conn_event *new_conn_at(u64 key, u64 sk)
{
	int zero = 0;
	struct conn_event *blank = blank_conn.lookup(&zero);
	struct conn_event *c;

	if (!blank)
		return 0;
	if (conn_by_sk.update(&key, blank)) {
		count(COUNT_CONN_FULL);
		return 0;
	}
	c = conn_by_sk.lookup(&key);
	if (!c)
		return 0;
	count(COUNT_CONNS);
	c->sk = key;
	c->connect_ns = bpf_ktime_get_ns();
	read_task(&c->task);
	c->task.netns = read_sock_netns(sk);
	return c;
}

static __always_inline struct conn_event *new_conn(u64 sk)
{
	return new_conn_at(sk, sk);
}

/*
 * CLOSE to SYN_SENT runs in the thread that called connect(): the only
 * moment at which the caller is known.
 */
static __always_inline void on_syn_sent(u64 sk)
{
	struct conn_event *c = conn_by_sk.lookup(&sk);

	if (READ_FIELD(u16, sk, OFF_sock_sk_protocol) != IPPROTO_TCP)
		return;
	if (!c || c->phase != PHASE_CALLING) {
		if (c)
			count(COUNT_STALE);
		c = new_conn(sk);
		if (!c)
			return;
		c->cookie = READ_FIELD(u64, sk, OFF_sock_common_skc_cookie);
	}
	c->connect_ns = bpf_ktime_get_ns();
	c->phase = PHASE_SYN_SENT;
	c->tcp_state = TCP_SYN_SENT;
	read_endpoints(c, sk);
}

/*
 * A connection that a local process will accept. Nobody's context: who serves
 * it is read when it answers or closes.
 */
static __always_inline void on_inbound(u64 sk)
{
	struct conn_event *c;

	if (READ_FIELD(u16, sk, OFF_sock_sk_protocol) != IPPROTO_TCP)
		return;
	c = new_conn(sk);
	if (!c)
		return;
	__builtin_memset(&c->task, 0, sizeof(c->task));
	c->task.netns = read_sock_netns(sk);
	c->flags = CONN_INBOUND | CONN_PACKETS;
	c->cookie = READ_FIELD(u64, sk, OFF_sock_common_skc_cookie);
	c->established_ns = c->connect_ns;
	c->phase = PHASE_ESTABLISHED;
	c->tcp_state = TCP_ESTABLISHED;
	read_endpoints(c, sk);
	c->tx_next = READ_FIELD(u32, sk, OFF_tcp_sock_rcv_nxt);
	c->rx_next = READ_FIELD(u32, sk, OFF_tcp_sock_snd_nxt);
}

static __always_inline void read_server_task(struct conn_event *c)
{
	u32 netns = c->task.netns;

	if (!(c->flags & CONN_INBOUND) || c->task.pid)
		return;
	read_task(&c->task);
	c->task.netns = netns;
}

int sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];
	u32 state = ctx->args[2];
	struct conn_event *c;

	if (state == TCP_SYN_SENT) {
		on_syn_sent(sk);
		return 0;
	}
	c = conn_by_sk.lookup(&sk);
#ifdef INBOUND
	if (!c && state == TCP_ESTABLISHED && (u32)ctx->args[1] == TCP_SYN_RECV)
		on_inbound(sk);
	/* only close() and shutdown() lead there, in the context of their caller */
	if (c && (state == TCP_FIN_WAIT1 || state == TCP_LAST_ACK))
		read_server_task(c);
#endif
	if (!c)
		return 0;
	c->tcp_state = state;
	if (state == TCP_ESTABLISHED && !c->established_ns) {
		c->established_ns = bpf_ktime_get_ns();
		c->phase = PHASE_ESTABLISHED;
		read_endpoints(c, sk);
		return 0;
	}
	if (state == TCP_CLOSE_WAIT || state == TCP_CLOSING)
		c->flags |= CONN_RX_FIN;
	if (state == TCP_FIN_WAIT1)
		c->flags |= CONN_LOCAL_CLOSE;
	if (state != TCP_CLOSE)
		return 0;
	c->sk_err = READ_FIELD(u32, sk, OFF_sock_sk_err);
	if (!c->lport)
		c->lport = swap16(READ_FIELD(u16, sk, OFF_inet_sock_inet_sport));
	read_tcp_figures(c, sk);
	end_conn(c, sk, c->established_ns ? PHASE_CLOSED : PHASE_FAILED);
	return 0;
}

/*
 * connect() that fails before a SYN (no route, a forbidden address) never
 * changes the socket's state. So it is noted when entered, and reported as
 * failed when the socket connects again or is released without a SYN; what is
 * still CALLING after a second is reported by user space.
 */
static __always_inline int on_connect(struct bpf_sock_addr *ctx, bool v6)
{
	struct bpf_sock *typed = ctx->sk;
	struct conn_event *c;
	u64 sk;

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return 1;
	/* the verifier lets nobody compute with a typed pointer: copy its value */
	read_kernel(&sk, sizeof(sk), &typed);
	c = conn_by_sk.lookup(&sk);
	if (c && c->flags & CONN_UDP)
		end_conn(c, sk, PHASE_CLOSED); /* from now on it speaks to another peer */
	if (ctx->protocol == IPPROTO_UDP)
		return 1;
	if (c && c->phase == PHASE_CALLING) {
		c->flags |= CONN_SYNC_FAIL;
		end_conn(c, sk, PHASE_FAILED);
	}
	c = new_conn(sk);
	if (!c)
		return 1;
	c->phase = PHASE_CALLING;
	c->cookie = bpf_get_socket_cookie(ctx);
	c->rport = swap16(ctx->user_port);
	c->family = v6 ? AF_INET6 : AF_INET;
	if (v6) {
		u32 *raddr = (u32 *)c->raddr;

		raddr[0] = ctx->user_ip6[0];
		raddr[1] = ctx->user_ip6[1];
		raddr[2] = ctx->user_ip6[2];
		raddr[3] = ctx->user_ip6[3];
	} else {
		*(u32 *)c->raddr = ctx->user_ip4;
	}
	return 1;
}

int connect4_enter(struct bpf_sock_addr *ctx)
{
	return on_connect(ctx, 0);
}

int connect6_enter(struct bpf_sock_addr *ctx)
{
	return on_connect(ctx, 1);
}

/* The QUIC connections over a socket that was not connected. */
static __always_inline void end_quic_flows(u64 sk)
{
	struct quic_flows *flows = quic_flows_by_sk.lookup(&sk);

	if (!flows)
		return;
	for (int i = 0; i < QUIC_FLOWS; i++) {
		u64 key = flows->keys[i];
		struct conn_event *c = conn_by_sk.lookup(&key);

		if (c)
			end_conn(c, key, PHASE_CLOSED);
	}
	quic_flows_by_sk.delete(&sk);
}

int sock_release(struct bpf_sock *ctx)
{
	u64 sk = (u64)ctx;
	struct conn_event *c = conn_by_sk.lookup(&sk);

	if (ctx->protocol == IPPROTO_UDP)
		end_quic_flows(sk);
	if (c && c->flags & CONN_UDP) {
		end_conn(c, sk, PHASE_CLOSED);
	} else if (c && c->phase == PHASE_CALLING) {
		c->flags |= CONN_SYNC_FAIL;
		end_conn(c, sk, PHASE_FAILED);
	}
	return 1;
}
