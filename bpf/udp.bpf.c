/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * UDP: what a process exchanges with one peer over a connected socket, and
 * QUIC over any. Begun by the first datagram sent, since connect() alone
 * sends nothing (getaddrinfo() does it to sort addresses), and ended by the
 * release of the socket or its next connect().
 */
#include "event.h"
#include "kernel_fields.h"
#include "maps.h"

#define QUIC_V1        0x00000001
#define QUIC_V2        0x6b3343cf
#define QUIC_LONG      0xc0 /* header form and fixed bit */
#define QUIC_LEAST     1200 /* a client's Initial fills a datagram of so much */
#define QUIC_DATAGRAMS 8    /* of one direction, handed over while the handshake is under way */

struct udp_part {
	u32 offset; /* of the payload, from the IP header */
	u32 len;    /* of the payload */
	u16 sport;
	u16 dport;
};

/* 0 = this is no UDP packet we understand, or it is empty. */
static __always_inline int parse_udp(struct __sk_buff *skb, struct udp_part *part)
{
	u8 udp[8];
	u8 next = 0;

	part->offset = parse_ip(skb, &next);
	if (!part->offset || next != IPPROTO_UDP ||
	    bpf_skb_load_bytes(skb, part->offset, udp, sizeof(udp)))
		return 0;
	part->sport = (u16)udp[0] << 8 | udp[1];
	part->dport = (u16)udp[2] << 8 | udp[3];
	part->offset += sizeof(udp);
	part->len = skb->len > part->offset ? skb->len - part->offset : 0;
	return part->len != 0;
}

/* 1 = an Initial packet of a version that we can read (RFC 9000, 9369). */
static __always_inline int is_quic_initial(struct __sk_buff *skb, struct udp_part *part)
{
	u32 version;
	u8 h[5];

	if (part->len < QUIC_LEAST || bpf_skb_load_bytes(skb, part->offset, h, sizeof(h)))
		return 0;
	if ((h[0] & QUIC_LONG) != QUIC_LONG)
		return 0;
	version = (u32)h[1] << 24 | (u32)h[2] << 16 | (u32)h[3] << 8 | h[4];
	return (version == QUIC_V1 && (h[0] & 0x30) == 0x00) ||
	       (version == QUIC_V2 && (h[0] & 0x30) == 0x10);
}

/* The datagram's peer, for a socket that is not connected. */
static __always_inline void read_flow(struct __sk_buff *skb, struct conn_event *c,
				      struct udp_part *part)
{
	u8 first;

	if (bpf_skb_load_bytes(skb, 0, &first, 1))
		return;
	c->lport = part->sport;
	c->rport = part->dport;
	if (first >> 4 == 4) {
		c->family = AF_INET;
		bpf_skb_load_bytes(skb, 12, c->laddr, 4);
		bpf_skb_load_bytes(skb, 16, c->raddr, 4);
	} else {
		c->family = AF_INET6;
		bpf_skb_load_bytes(skb, 8, c->laddr, 16);
		bpf_skb_load_bytes(skb, 24, c->raddr, 16);
	}
}

/* 0 = the kernel's own socket (NFS, VXLAN), whose release no hook tells of. */
static __always_inline int has_file(u64 sk)
{
	char *socket = READ_PTR(sk, OFF_sock_sk_socket);

	return socket && READ_PTR(socket, OFF_socket_file);
}

static __always_inline void note_datagram(struct __sk_buff *skb, struct conn_event *c,
					  struct udp_part *part, bool rx, u64 now)
{
	bool quic_long = 0;
	u32 left;

	if (c->flags & CONN_QUIC) {
		u8 first = 0;

		bpf_skb_load_bytes(skb, part->offset, &first, 1);
		quic_long = (first & QUIC_LONG) == QUIC_LONG;
		/* counted down: datagrams still to be handed over */
		left = rx ? c->hello_rx_left : c->hello_tx_left;
		if (quic_long && left) {
			u32 n = part->len > HELLO_MAX ? HELLO_MAX : part->len;

			submit_hello(skb, c, QUIC_DATAGRAMS - left, part->offset, n, rx, now);
			if (rx)
				c->hello_rx_left = left - 1;
			else
				c->hello_tx_left = left - 1;
		}
		if (!quic_long && !rx && !c->ssl_done_ns)
			c->ssl_done_ns = now; /* first datagram of 1-RTT packets alone */
	}
	if (rx) {
		c->sk_err = 0; /* it answers after all */
		c->bytes_received += part->len;
		if (!c->first_rx_ns)
			c->first_rx_ns = now;
		if (!c->first_resp_ns)
			c->first_resp_ns = now;
		if (!c->rx_head_len)
			copy_head(skb, part->offset, part->len, c->rx_head, &c->rx_head_len);
		if (c->last_dir == DIR_TX)
			count_turn(c, 0, now);
		c->last_dir = DIR_RX;
		return;
	}
	c->bytes_sent += part->len;
	if (!c->first_tx_ns)
		c->first_tx_ns = now;
	if (!c->tx_head_len)
		copy_head(skb, part->offset, part->len, c->tx_head, &c->tx_head_len);
	if (c->last_dir != DIR_TX)
		c->turn_start_ns = now;
	c->last_dir = DIR_TX;
}

/* What a QUIC connection of a socket that is not connected is known by. */
static __always_inline u64 flow_key(struct __sk_buff *skb, u64 sk, struct udp_part *part, bool rx)
{
	u32 peer[4] = {};
	u32 hash = rx ? part->sport : part->dport;
	u8 first = 0;

	bpf_skb_load_bytes(skb, 0, &first, 1);
	if (first >> 4 == 4)
		bpf_skb_load_bytes(skb, rx ? 12 : 16, peer, 4);
	else
		bpf_skb_load_bytes(skb, rx ? 8 : 24, peer, 16);
	for (int i = 0; i < 4; i++)
		hash = (hash ^ peer[i]) * 0x9e3779b1U;
	hash >>= 16;
	if (hash == 0xffff)
		hash = 0;
	return (sk & 0x0000ffffffffffffULL) | (u64)hash << 48;
}

static __always_inline void begin_datagrams(struct __sk_buff *skb, struct conn_event *c,
					    struct udp_part *part, bool quic)
{
	c->flags |= CONN_UDP | CONN_PACKETS;
	c->phase = PHASE_ESTABLISHED;
	c->established_ns = c->connect_ns;
	c->cookie = bpf_get_socket_cookie(skb);
	if (quic) {
		c->flags |= CONN_QUIC;
		c->hello_ns = c->connect_ns;
		c->hello_tx_left = QUIC_DATAGRAMS;
		c->hello_rx_left = QUIC_DATAGRAMS;
	}
	note_datagram(skb, c, part, 0, c->connect_ns);
}

static __always_inline void count_flow(struct __sk_buff *skb, u64 key)
{
	u64 cookie = bpf_get_socket_cookie(skb);

	if (!is_unrecorded(key, cookie))
		count_unrecorded(key, cookie);
}

/* An Initial that leaves to a new peer, by a socket that is not connected. */
static __always_inline void begin_flow(struct __sk_buff *skb, u64 sk, u64 key,
				       struct udp_part *part, bool known)
{
	struct quic_flows *flows;
	struct conn_event *c;

	flows = quic_flows_by_sk.lookup(&sk);
	if (!flows) {
		int zero = 0;
		struct quic_flows *blank = blank_flows.lookup(&zero);

		if (!blank || !has_file(sk))
			return;
		if (quic_flows_by_sk.update(&sk, blank) && quic_flows_by_sk.update(&sk, blank)) {
			count_flow(skb, key);
			return;
		}
		flows = quic_flows_by_sk.lookup(&sk);
		if (!flows)
			return;
	}
	if (!known) {
		u32 place = flows->begun++;
		u64 oldest;

		place &= QUIC_FLOWS - 1;
		oldest = flows->keys[place];
		c = conn_by_sk.lookup(&oldest);
		if (oldest && c && c->phase < PHASE_FAILED)
			end_conn(c, oldest, PHASE_CLOSED);
		flows->keys[place] = key;
	}
	c = new_conn_at(key, sk);
	if (!c) {
		count_flow(skb, key);
		return;
	}
	read_flow(skb, c, part);
	begin_datagrams(skb, c, part, 1);
	if (known || flows->begun > 1)
		c->cookie = 0; /* it names one connection, the first */
}

/* A datagram of a socket that is not connected: of QUIC, or nothing to us. */
static __always_inline void on_unconnected(struct __sk_buff *skb, u64 sk, struct udp_part *part,
					   bool rx)
{
	bool initial = is_quic_initial(skb, part);
	struct conn_event *c;
	u64 key;

	if (!initial && !quic_flows_by_sk.lookup(&sk))
		return;
	key = flow_key(skb, sk, part, rx);
	c = conn_by_sk.lookup(&key);
	/* the same peer again, from the beginning */
	if (c && (rx || !initial || !c->ssl_done_ns)) {
		if ((rx ? part->sport : part->dport) == c->rport)
			note_datagram(skb, c, part, rx, bpf_ktime_get_ns());
		return;
	}
	if (!initial)
		return;
	if (rx) {
		u8 one = 1;

		quic_client_by_flow.update(&key, &one);
		return;
	}
	if (quic_client_by_flow.lookup(&key))
		return;
	if (c && c->phase < PHASE_FAILED)
		end_conn(c, key, PHASE_CLOSED);
	begin_flow(skb, sk, key, part, c != 0);
}

/* A datagram of a socket that nothing is known of yet. sk may be computed with. */
static __always_inline void on_udp(struct __sk_buff *skb, u64 sk, bool rx)
{
	struct udp_part part = {};
	struct conn_event *c;
	u16 peer;

	if (!parse_udp(skb, &part))
		return;
	/* what leaves has been through address translation: Docker sends questions to other ports */
	peer = swap16(READ_FIELD(u16, sk, OFF_sock_common_skc_dport));
	if (peer && !rx)
		part.dport = peer;
	dns_datagram(skb, sk, part.sport, part.dport, part.offset, part.len, rx);
	if (part.sport == DNS_PORT || part.dport == DNS_PORT)
		return;
	if (!peer) {
		on_unconnected(skb, sk, &part, rx);
		return;
	}
	if (rx || !has_file(sk) || is_unrecorded(sk, bpf_get_socket_cookie(skb)))
		return;
	c = new_conn(sk);
	if (!c) {
		count_unrecorded(sk, bpf_get_socket_cookie(skb));
		return;
	}
	read_endpoints(c, sk);
	begin_datagrams(skb, c, &part, is_quic_initial(skb, &part));
}

/* A datagram of a flow that is known. */
static __always_inline void on_flow(struct __sk_buff *skb, struct conn_event *c, bool rx)
{
	struct udp_part part = {};

	if (!parse_udp(skb, &part))
		return;
	note_datagram(skb, c, &part, rx, bpf_ktime_get_ns());
}

/* ICMP says that nobody listens there, or that there is no way to it. */
int sock_error(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];
	struct conn_event *c = conn_by_sk.lookup(&sk);
	u32 err;

	if (!c || !(c->flags & CONN_UDP))
		return 0; /* TCP says it by its state */
	err = READ_FIELD(u32, sk, OFF_sock_sk_err);
	if (err)
		c->sk_err = err;
	return 0;
}
