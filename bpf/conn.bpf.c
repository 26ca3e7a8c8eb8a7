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

static __always_inline void count_often(int which)
{
	u64 *n = counters.lookup(&which);

	if (n)
		*n += 1;
}

/* What is lost: the time first, for whoever sees the count sees that too. */
static __always_inline void count(int which)
{
	struct loss *loss = losses.lookup(&which);

	if (!loss)
		return;
	loss->last_ns = bpf_ktime_get_ns();
	__sync_fetch_and_add(&loss->count, 1);
}

static __always_inline void uncount(int which)
{
	struct loss *loss = losses.lookup(&which);

	if (loss)
		__sync_fetch_and_add(&loss->count, -1);
}

/* The calling process's, whose next connection must not be given the name of an earlier one. */
static __always_inline void note_lost_lookup(u32 pid)
{
	u64 now = bpf_ktime_get_ns();

	lookup_lost_by_pid.update(&pid, &now);
}

static __always_inline bool is_lookup_lost(u32 pid, u64 now)
{
	int lookups = COUNT_LOST_LOOKUP, full = COUNT_LOOKUP_FULL, dns = COUNT_LOST_DNS;
	struct loss *a = losses.lookup(&lookups);
	struct loss *b = losses.lookup(&full);
	struct loss *c = losses.lookup(&dns);
	u64 *lost;

	if (!a || !b || !c || !(a->count | b->count | c->count))
		return 0;
	lost = lookup_lost_by_pid.lookup(&pid);
	return lost && now - *lost < LOOKUP_LOST_NS;
}

/*
 * The reader polls on a timer. It is woken as well whenever a CPU has filled
 * another part of the ring, so that a burst does not have to wait for it.
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

/* What a kind of event that is no connection's end has of the ring; 0 = no room for size more. */
static __always_inline struct ring_share *share_with_room(u64 size, int share, u64 most)
{
	struct ring_share *held = ring_shares.lookup(&share);

	return held && held->produced - held->consumed + size <= most ? held : 0;
}

/* Room for such an event; 0 = none within its share. size and most are constants. */
static __always_inline void *try_reserve(u64 size, int share, u64 most)
{
	struct ring_share *held = share_with_room(size, share, most);
	void *e;

	if (!held)
		return 0;
	e = events.ringbuf_reserve(size);
	if (!e)
		e = events.ringbuf_reserve(size);
	if (e)
		__sync_fetch_and_add(&held->produced, size);
	return e;
}

/* ... or it is counted as lost. */
static __always_inline void *reserve(u64 size, int share, u64 most, int counter)
{
	void *e = try_reserve(size, share, most);

	if (!e)
		count(counter);
	return e;
}

/* The reader is woken when half of a share is full, and then now and then. */
static __always_inline u64 share_wakeup(u64 size, int share, u64 most)
{
	struct ring_share *held = ring_shares.lookup(&share);
	u64 bytes;

	if (!held)
		return BPF_RB_NO_WAKEUP;
	bytes = held->produced - held->consumed;
	if (bytes < most / 2 || bytes / (most / 16) == (bytes - size) / (most / 16))
		return BPF_RB_NO_WAKEUP;
	return BPF_RB_FORCE_WAKEUP;
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
			count_often(COUNT_RETRIES);
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

/* What cannot be deleted says by its phase that it was handed over; user space deletes it. */
static __always_inline void end_conn(struct conn_event *c, u64 sk, u8 phase)
{
	long failed = 0;

	c->end_ns = bpf_ktime_get_ns();
	c->phase = phase;
	forget_handshake(c);
	submit_conn(c);
	for (int i = 0; i < MAP_TRIES; i++) {
		failed = conn_by_sk.delete(&sk);
		if (!failed || failed == -ENOENT)
			return;
	}
	count(COUNT_UNDELETED);
}

/* Its end was missed, and its socket or the memory of it serves another connection. */
static __always_inline void end_unseen(struct conn_event *c, u64 sk)
{
	if (c->phase >= PHASE_FAILED)
		return; /* handed over already */
	count_often(COUNT_STALE);
	c->flags |= CONN_END_UNSEEN;
	end_conn(c, sk, PHASE_CLOSED);
}

/* key: what it is known by in conn_by_sk. 0 = no room; the caller counts that. */
static __always_inline struct conn_event *new_conn_at(u64 key, u64 sk)
{
	int zero = 0;
	struct conn_event *blank = blank_conn.lookup(&zero);
	struct conn_event *c;
	long failed = 0;

	if (!blank)
		return 0;
	for (int i = 0; i < MAP_TRIES; i++) {
		failed = conn_by_sk.update(&key, blank);
		if (!failed || failed == -E2BIG)
			break;
	}
	if (failed)
		return 0;
	c = conn_by_sk.lookup(&key);
	if (!c)
		return 0;
	count_often(COUNT_CONNS);
	c->sk = key;
	c->connect_ns = bpf_ktime_get_ns();
	read_task(&c->task);
	c->task.netns = read_sock_netns(sk);
	if (is_lookup_lost(c->task.pid, c->connect_ns))
		c->flags |= CONN_LOOKUP_LOST;
	return c;
}

static __always_inline struct conn_event *new_conn(u64 sk)
{
	return new_conn_at(sk, sk);
}

/* There was no room: counted, once for each. key: as of new_conn_at(). */
static __always_inline void count_unrecorded(u64 key, u64 cookie)
{
	count(COUNT_CONN_FULL);
	unrecorded_by_sk.update(&key, &cookie);
}

static __always_inline bool is_unrecorded(u64 key, u64 cookie)
{
	u64 *counted = unrecorded_by_sk.lookup(&key);

	return counted && *counted == cookie;
}

/*
 * What the socket was when it sent no SYN yet, in fields that have their use
 * after that: by what has changed, on_unsent() tells how far connect() came.
 */
static __always_inline void note_before_syn(struct conn_event *c, u64 sk)
{
	c->tx_record = READ_FIELD(u32, sk, OFF_sock_sk_txhash);
	c->rx_record = READ_FIELD(u32, sk, OFF_tcp_sock_segs_out);
	c->rx_next = READ_FIELD(u32, sk, OFF_sock_sk_error_queue + OFF_sk_buff_head_qlen);
}

/* What decides a route besides the address: user space asks for one in the same way. */
static __always_inline void read_route_key(struct conn_event *c, u64 sk)
{
	c->tx_record = READ_FIELD(u32, sk, OFF_sock_sk_mark);
	c->rx_record = READ_FIELD(u32, sk, OFF_sock_common_skc_bound_dev_if);
	c->lport = READ_FIELD(u16, sk, OFF_sock_common_skc_num);
	if (c->family == AF_INET6)
		read_kernel(c->laddr, 16, (char *)sk + OFF_sock_common_skc_v6_rcv_saddr);
	else
		read_kernel(c->laddr, 4, (char *)sk + OFF_sock_common_skc_rcv_saddr);
}

/*
 * The newest ICMP error that the socket was told of while connect() had it
 * locked: it ends nothing then, but wakes who waits. Who asks for SO_ERROR
 * takes sk_err_soft away; the message stays (kernel commit 45af29ca761c, 6.0).
 */
static __always_inline u32 icmp_error(struct conn_event *c, u64 sk)
{
	u64 queue = sk + OFF_sock_sk_error_queue;
	u64 ee = OFF_sk_buff_cb + OFF_sock_exterr_skb_ee;
	u32 soft = READ_FIELD(u32, sk, OFF_sock_sk_err_soft);
	u64 newest;
	u8 origin;

	if (soft || READ_FIELD(u32, queue, OFF_sk_buff_head_qlen) <= c->rx_next)
		return soft;
	newest = READ_FIELD(u64, queue, OFF_sk_buff_head_prev);
	origin = READ_FIELD(u8, newest, ee + OFF_sock_extended_err_ee_origin);
	if (origin != SO_EE_ORIGIN_ICMP && origin != SO_EE_ORIGIN_ICMP6)
		return 0;
	return READ_FIELD(u32, newest, ee + OFF_sock_extended_err_ee_errno);
}

/*
 * SYN_SENT to CLOSE without sk_err: either connect() itself fails, which only
 * its caller is told, or the program has left. As long as the call has not
 * come through, struct socket is unconnected.
 *
 * tcp_v4_connect() and tcp_v6_connect() hash the socket, which picks a port
 * and fails for want of one; then sk_txhash is drawn, a route with the ports
 * looked up and the SYN sent, of which only ECONNREFUSED counts.
 */
static __always_inline void on_unsent(struct conn_event *c, u64 sk)
{
	u64 socket = READ_FIELD(u64, sk, OFF_sock_sk_socket);
	bool inside = socket && READ_FIELD(u32, socket, OFF_socket_state) == SS_UNCONNECTED &&
		      !READ_FIELD(u8, sk, OFF_sock_sk_shutdown);

	if (!inside || c->flags & CONN_PACKETS) {
		c->sk_err = icmp_error(c, sk);
		return;
	}
	c->flags |= CONN_SYNC_FAIL;
	if (READ_FIELD(u32, sk, OFF_sock_sk_txhash) == c->tx_record)
		c->sk_err = EADDRNOTAVAIL;
	else if (READ_FIELD(u32, sk, OFF_tcp_sock_segs_out) != c->rx_record)
		c->sk_err = ECONNREFUSED;
	else
		read_route_key(c, sk);
}

/*
 * CLOSE to SYN_SENT runs in the thread that called connect(): the only
 * moment at which the caller is known.
 */
static __always_inline void on_syn_sent(u64 sk, bool again)
{
	struct conn_event *c = conn_by_sk.lookup(&sk);

	if (READ_FIELD(u16, sk, OFF_sock_sk_protocol) != IPPROTO_TCP)
		return;
	if (again && c && c->phase == PHASE_SYN_SENT)
		return;
	if (!c || c->phase != PHASE_CALLING) {
		u64 cookie = READ_FIELD(u64, sk, OFF_sock_common_skc_cookie);
		bool counted = !c && is_unrecorded(sk, cookie);

		if (c)
			end_unseen(c, sk);
		c = new_conn(sk);
		if (!c) {
			if (!counted)
				count_unrecorded(sk, cookie);
			return;
		}
		if (counted) {
			uncount(COUNT_CONN_FULL);
			unrecorded_by_sk.delete(&sk);
		}
		c->cookie = cookie;
	}
	c->connect_ns = bpf_ktime_get_ns();
	c->phase = PHASE_SYN_SENT;
	c->tcp_state = TCP_SYN_SENT;
	c->sk_err = 0;
	read_endpoints(c, sk);
	note_before_syn(c, sk);
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
	if (!c) {
		count(COUNT_CONN_FULL);
		return;
	}
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

/* The entry is of a socket that is gone, whose memory is this one's now. */
static __always_inline bool is_another(struct conn_event *c, u64 sk)
{
	return c->cookie && c->cookie != READ_FIELD(u64, sk, OFF_sock_common_skc_cookie);
}

/* Whether anything is to be noted of this change: for half of them no entry need be looked for. */
static __always_inline bool is_noted(u32 state)
{
	const u32 noted = 1 << TCP_SYN_SENT | 1 << TCP_ESTABLISHED | 1 << TCP_FIN_WAIT1 |
			  1 << TCP_CLOSE_WAIT | 1 << TCP_CLOSING | 1 << TCP_CLOSE;

#ifdef INBOUND
	if (state == TCP_LAST_ACK)
		return 1;
#endif
	return noted >> (state & 31) & 1;
}

static __always_inline int on_state(struct bpf_raw_tracepoint_args *ctx, bool again)
{
	u64 sk = ctx->args[0];
	u32 state = ctx->args[2];
	struct conn_event *c;

	if (state == TCP_SYN_SENT) {
		on_syn_sent(sk, again);
		return 0;
	}
	c = conn_by_sk.lookup(&sk);
	if (c && c->phase >= PHASE_FAILED)
		return 0;
	if (c && (state == TCP_ESTABLISHED || state == TCP_CLOSE) && is_another(c, sk)) {
		end_unseen(c, sk);
		c = 0;
	}
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
	if (state == TCP_FIN_WAIT1) {
		c->flags |= CONN_LOCAL_CLOSE;
		if (!(READ_FIELD(u8, sk, OFF_sock_sk_shutdown) & RCV_SHUTDOWN))
			c->flags |= CONN_HALF_CLOSE;
	}
	if (state != TCP_CLOSE)
		return 0;
	c->sk_err = READ_FIELD(u32, sk, OFF_sock_sk_err);
	if (!c->established_ns && !c->sk_err)
		on_unsent(c, sk);
	if (c->flags & CONN_HALF_CLOSE && !READ_FIELD(u64, sk, OFF_sock_sk_socket))
		c->flags &= ~CONN_HALF_CLOSE; /* closed since */
	if (!c->lport)
		c->lport = swap16(READ_FIELD(u16, sk, OFF_inet_sock_inet_sport));
	read_tcp_figures(c, sk);
	end_conn(c, sk, c->established_ns ? PHASE_CLOSED : PHASE_FAILED);
	return 0;
}

int sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	int zero = 0;
	struct state_change *seen;

	if (!is_noted(ctx->args[2]))
		return 0;
	seen = state_seen.lookup(&zero);
	if (seen) {
		seen->sk = ctx->args[0];
		seen->state = ctx->args[2];
	}
	return on_state(ctx, 0);
}

/*
 * The same once more, for what the first one missed: the kernel skips a
 * program that is already running on this CPU, where a softirq came in
 * between (6.2, commit 05b24ff9b2cf), but only one of the two at a time. What
 * the first has done is done: nothing in here does it twice.
 */
int sock_state_again(struct bpf_raw_tracepoint_args *ctx)
{
	int zero = 0;
	struct state_change *seen;

	if (!is_noted(ctx->args[2]))
		return 0;
	seen = state_seen.lookup(&zero);
	if (seen && seen->sk == ctx->args[0] && seen->state == ctx->args[2])
		return 0;
	return on_state(ctx, 1);
}

#ifdef HAVE_CGROUP_RETVAL
static long (*const get_retval)(void) = (void *)186;
#endif

/* ::ffff:0:0/96; an IPv4 address has zeros there. */
static __always_inline bool is_mapped(u8 *addr)
{
	u32 *word = (u32 *)addr;

	return !word[0] && !word[1] && word[2] == 0xffff0000U;
}

/* connect() was noted and sent no SYN. */
static __always_inline void end_call(struct conn_event *c, u64 sk)
{
	u32 index = READ_FIELD(u32, sk, OFF_sock_common_skc_bound_dev_if);

	c->flags |= CONN_SYNC_FAIL;
	/* ... of a link-local address's scope is bound before it can fail */
	if (index)
		c->rx_record = index;
	if (!c->sk_err && is_mapped(c->raddr) &&
	    READ_FIELD(u8, sk, OFF_sock_common_skc_ipv6only) & MASK_sock_common_skc_ipv6only)
		c->sk_err = ENETUNREACH;
	end_conn(c, sk, PHASE_FAILED);
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
	if (c && c->flags & CONN_UDP && c->phase < PHASE_FAILED)
		end_conn(c, sk, PHASE_CLOSED); /* from now on it speaks to another peer */
	if (ctx->protocol == IPPROTO_UDP)
		return 1;
	if (c && c->phase == PHASE_CALLING)
		end_call(c, sk);
	else if (c)
		end_unseen(c, sk); /* a socket that connects is closed */
	c = new_conn(sk);
	if (!c) {
		count_unrecorded(sk, bpf_get_socket_cookie(ctx));
		return 1;
	}
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
	read_route_key(c, sk);
	if (ctx->user_family != c->family)
		c->sk_err = EAFNOSUPPORT;
#ifdef HAVE_CGROUP_RETVAL
	/* programs of cgroups further down ran before, and all run whatever one says */
	long denied = get_retval();

	if (denied < 0)
		c->sk_err = -denied;
#endif
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

		if (c && c->phase < PHASE_FAILED)
			end_conn(c, key, PHASE_CLOSED);
	}
	for (int i = 0; i < MAP_TRIES; i++) {
		if (!quic_flows_by_sk.delete(&sk))
			break;
	}
}

int sock_release(struct bpf_sock *ctx)
{
	u64 sk = (u64)ctx;
	struct conn_event *c = conn_by_sk.lookup(&sk);

	if (ctx->protocol == IPPROTO_UDP)
		end_quic_flows(sk);
	if (c && c->phase >= PHASE_FAILED)
		return 1;
	if (c && c->flags & CONN_UDP) {
		end_conn(c, sk, PHASE_CLOSED);
	} else if (c && c->phase == PHASE_CALLING) {
		end_call(c, sk);
	}
	return 1;
}
