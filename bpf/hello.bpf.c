/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What packet and datagram hooks share: the first bytes of a direction, a
 * hello handed over, a turn counted.
 */
#include "event.h"
#include "kernel_fields.h"
#include "maps.h"

#define IPV6_HEADER     40
#define IPV6_EXTENSIONS 4 /* hops walked before giving up */
#define DIR_TX          1
#define DIR_RX          2
#define HEAD_SHORT      16 /* a head under this takes what follows: some write it byte by byte */

/*
 * Where the payload of this IP packet begins and what it is; 0 = not an IP
 * packet we understand.
 */
static __always_inline u32 parse_ip(struct __sk_buff *skb, u8 *protocol)
{
	u32 offset = IPV6_HEADER;
	u8 ip[10];
	u8 next;

	if (bpf_skb_load_bytes(skb, 0, ip, sizeof(ip)))
		return 0;
	if (ip[0] >> 4 == 4) {
		*protocol = ip[9];
		return (ip[0] & 15) * 4;
	}
	next = ip[6];
	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		u8 ext[2];

		/* hop-by-hop, routing, destination options */
		if (next != 0 && next != 43 && next != 60)
			break;
		if (bpf_skb_load_bytes(skb, offset, ext, sizeof(ext)))
			return 0;
		next = ext[0];
		offset += (ext[1] + 1) * 8;
	}
	*protocol = next;
	return offset;
}

/*
 * The first bytes of a direction, of len (not 0) at offset, after those that
 * are there. The verifier sees have and n each under HEAD_LEN, and head with
 * as much room behind it; together they never are over.
 */
static __always_inline void copy_head(struct __sk_buff *skb, u32 offset, u32 len, u8 *head,
				      u8 *head_len)
{
	u32 have = *head_len;
	u32 less_one;

	if (have >= HEAD_LEN)
		return;
	less_one = (len > HEAD_LEN - have ? HEAD_LEN - have : len) - 1;
	BOUND(have, HEAD_LEN - 1);
	BOUND(less_one, HEAD_LEN - 1);
	if (!bpf_skb_load_bytes(skb, offset, head + have, less_one + 1))
		*head_len = have + less_one + 1;
}

static __always_inline void fill_hello(struct hello_event *e, struct conn_event *c, u32 seq, u32 n,
				       bool rx, u64 now)
{
	e->header.kind = EVENT_HELLO;
	e->header.size = __builtin_offsetof(struct hello_event, data) + n;
	e->sk = c->sk;
	e->connect_ns = c->connect_ns;
	e->ts_ns = now;
	e->seq = seq;
	e->len = n;
	e->received = rx;
	e->number = c->flags & CONN_UDP    ? 0
		    : c->flags & CONN_H2   ? 3
		    : c->flags & CONN_HTTP ? 4
		    : rx                   ? c->hello_rx_seen
					   : 1;
}

/*
 * Hand over n bytes of a hello that start at offset in this packet. n is read
 * back from the event: where it comes from is then nothing to the verifier.
 */
static __always_inline void submit_hello(struct __sk_buff *skb, struct conn_event *c, u32 seq,
					 u32 offset, u32 n, bool rx, u64 now)
{
	const u32 fixed = __builtin_offsetof(struct hello_event, data);
	u32 size;
	struct hello_event *e;
	u32 less_one;
	long failed;

	if (!n)
		return;
	if (n <= HELLO_SMALL) {
		size = fixed + HELLO_SMALL;
		e = reserve(fixed + HELLO_SMALL, SHARE_HELLO, HELLO_MOST, COUNT_LOST_HELLO);
		if (!e)
			return;
		fill_hello(e, c, seq, n, rx, now);
		less_one = *(volatile u16 *)&e->len - 1;
		BOUND(less_one, HELLO_SMALL - 1);
		failed = bpf_skb_load_bytes(skb, offset, e->data, less_one + 1);
	} else {
		size = sizeof(*e);
		e = reserve(sizeof(*e), SHARE_HELLO, HELLO_MOST, COUNT_LOST_HELLO);
		if (!e)
			return;
		fill_hello(e, c, seq, n, rx, now);
		less_one = *(volatile u16 *)&e->len - 1;
		BOUND(less_one, HELLO_MAX - 1);
		failed = bpf_skb_load_bytes(skb, offset, e->data, less_one + 1);
	}
	if (failed)
		e->len = 0;
	events.ringbuf_submit(e, share_wakeup(size, SHARE_HELLO, HELLO_MOST));
}

/* logged: this packet went to the TLS record log, which user space judges */
static __always_inline void count_turn(struct conn_event *c, bool logged, u64 now)
{
	u64 took = now - c->turn_start_ns;

	if (logged)
		return;
	c->turn_count++;
	c->turn_sum_ns += took;
	if (took > c->turn_max_ns)
		c->turn_max_ns = took;
}
